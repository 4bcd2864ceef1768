//! `spec.cache`: where results of steps, and what their cache mounts hold, are kept for later builds.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Where results of steps, and what their cache mounts hold, are kept for later builds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.repository) || has(self.mounts)").message("expected repository, mounts or both"))]
pub struct Cache {
    /// `[HOST[:PORT]/]REPOSITORY` without a tag, at most 255 characters: each result has a tag of its own there; the one of a
    /// BuildPolicy when absent. The build
    /// needs the right to pull and push there, with the credentials that it has for its output; the namespace's policies
    /// allow it as they allow an output. Builds of other namespaces do not get its results. Who may push there decides what
    /// is in images that are built with it. What cache mounts hold (`RUN --mount=type=cache`) is saved there, too, once the
    /// image is ready, unless `mounts` has a place for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^((([a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*)|\\[[a-fA-F0-9:]+\\])(:[0-9]{1,5})?/)?[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*$')").message("must be a repository without a tag: [host[:port]/]repository in lower case, like registry.example.com/team/cache")
    )]
    pub repository: Option<String>,
    /// Where cache mounts are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mounts: Option<CacheMounts>,
}

/// Where cache mounts (`RUN --mount=type=cache`) are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CacheMounts {
    /// Name of a PersistentVolumeClaim in the namespace of this object, 1 to 253 characters. The steps of the build use its
    /// files in place, and nothing of them is saved to a registry. One build at a time has a cache; another one waits for it
    /// (`sharing=locked`) or has one of its own meanwhile. Who may use the claim decides what is in images.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub claim_name: String,
}
