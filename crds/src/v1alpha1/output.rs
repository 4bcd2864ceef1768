//! `spec.output`: where the image goes.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the image goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// `[HOST[:PORT]/]REPOSITORY[:TAG]`, at most 255 characters. Read as `docker` reads it: without a host Docker Hub is
    /// meant, without a tag `latest`. A digest is not allowed: it is the result. Where it is absent the namespace's BuildPolicy
    /// (`spec.output.template`) says where the image goes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(
        validation = Rule::new("!self.contains('@')").message("must not carry a digest (@sha256:...): the digest is the result of the build; name a tag"),
        validation = Rule::new(r"self.contains('@') || self.matches('^((([a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*)|\\[[a-fA-F0-9:]+\\])(:[0-9]{1,5})?/)?[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$')").message("must be an image reference: [host[:port]/]repository[:tag], the repository in lower case, like registry.example.com/team/app:1.0")
    )]
    pub image: String,
    /// Further tags of the same repository, moved together with the first: at most 16, each 1 to 128 characters of
    /// `[A-Za-z0-9_.-]`, not beginning with `.` or `-`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub tags: Vec<String>,
    /// Talk to the output's registry over plain HTTP. For test registries.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// Seconds since 1970-01-01 that no time in the image is later than, as the build argument `SOURCE_DATE_EPOCH`: two
    /// builds of one input then have one digest. Times as they are when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 253_402_300_799_i64))]
    pub source_date_epoch: Option<i64>,
    /// How the layers that the build makes are compressed; those of base images stay as they are. gzip when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
}

/// How layers are compressed. `gzip`: as every registry and runtime reads it. `zstd`: smaller and faster; registries and
/// runtimes of the last years read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As every registry and runtime reads it.
    Gzip,
    /// Smaller and faster.
    Zstd,
}
