//! `spec.cache`: where results of steps are kept for later builds.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Where results of steps are kept for later builds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cache {
    /// `[HOST[:PORT]/]REPOSITORY` without a tag, at most 255 characters: each result has a tag of its own there. The build
    /// needs the right to pull and push there, with the credentials that it has for its output; the namespace's policies
    /// allow it as they allow an output. Builds of other namespaces do not get its results. Who may push there decides what
    /// is in images that are built with it.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^((([a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*)|\\[[a-fA-F0-9:]+\\])(:[0-9]{1,5})?/)?[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*$')").message("must be a repository without a tag: [host[:port]/]repository in lower case, like registry.example.com/team/cache")
    )]
    pub repository: String,
}
