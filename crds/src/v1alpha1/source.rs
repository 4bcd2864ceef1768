//! `spec.source`: where the files of the build context come from.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Bytes of all inline files together at most: the request travels in a ConfigMap, which holds 1 MiB, and JSON escapes
/// may double a text.
pub const MAX_INLINE_BYTES: usize = 512 << 10;

/// Where the files of the build context come from; exactly one member is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.inline), has(self.configMap)].filter(x, x).size() == 1").message("exactly one of inline and configMap must be set")
)]
pub struct Source {
    /// Small files written in this object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<InlineSource>,
    /// The keys of a ConfigMap in the same namespace, each a file. A change of its contents starts a new run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapSource>,
}

/// Small files written in the object itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.files.map(f, size(f.content)).sum() <= 524288").message("the contents of all inline files together must have at most 524288 bytes (512 KiB); use another source for more")
)]
pub struct InlineSource {
    /// The files: 1 to 256, at most 512 KiB together, each path once.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".into()]))]
    pub files: Vec<InlineFile>,
}

/// A file of the build context.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct InlineFile {
    /// Path below the source's root, `/`-separated (`Dockerfile`, `conf/app.ini`), 1 to 512 characters; no leading `/`,
    /// no empty, `.` or `..` part.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("self.split('/').all(p, p != '' && p != '.' && p != '..')").message("must be a relative path without empty, '.' or '..' parts, like conf/app.ini")
    )]
    pub path: String,
    /// The file's text, UTF-8, at most 512 KiB. The file's mode is 0644.
    #[schemars(length(max = 524_288))]
    pub content: String,
}

/// A ConfigMap whose keys are the files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapSource {
    /// Name of the ConfigMap, in the namespace of this object. `data` and `binaryData` both count.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}
