//! `spec.source`: where the files of the build context come from.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Bytes of all inline files together at most: the request travels in a ConfigMap, which holds 1 MiB, and JSON escapes
/// may double a text.
pub const MAX_INLINE_BYTES: usize = 512 << 10;

/// Where the files of the build context come from; exactly one member is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.inline), has(self.configMap), has(self.git), has(self.http), has(self.oci), has(self.flux)].filter(x, x).size() == 1").message("exactly one of inline, configMap, git, http, oci and flux must be set")
)]
pub struct Source {
    /// Small files written in this object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<InlineSource>,
    /// The keys of a ConfigMap in the same namespace, each a file. A change of its contents starts a new run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapSource>,
    /// A commit of a git repository. What a branch or tag names is looked up once per run: a commit that is pushed later
    /// starts no new run. At most 4 GiB and 500,000 files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitSource>,
    /// An archive from a web server: tar (plain, gzip, zstd or xz) or zip, told by its content. At most 4 GiB and 500,000
    /// files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// An artifact in a registry, as Flux and ORAS push one, or an image whose file system is the source. Read with the
    /// registry credentials of the build. At most 4 GiB and 500,000 files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciSource>,
    /// What a Flux source of this namespace has fetched. A new artifact starts a new run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flux: Option<FluxSource>,
}

/// A commit of a git repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.ref) && has(self.commit))").message("at most one of ref and commit may be set"),
    validation = Rule::new("self.url.startsWith('https://') || self.url.startsWith('http://') || has(self.secretName)").message("a repository over ssh needs secretName: a Secret with identity (or ssh-privatekey) and known_hosts"),
    validation = Rule::new("!self.url.startsWith('http://') || !has(self.secretName)").message("credentials go over https or ssh only: expected an https:// or ssh URL, or no secretName")
)]
pub struct GitSource {
    /// `https://host/path`, `http://host/path` (without credentials), `ssh://[user@]host/path` or `user@host:path`, at most
    /// 2048 characters. User and password belong into the Secret.
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^(https?://|ssh://([A-Za-z0-9_][A-Za-z0-9._-]*@)?)([A-Za-z0-9][A-Za-z0-9._-]*|\\[[A-Fa-f0-9:]+\\])(:[0-9]{1,5})?/[A-Za-z0-9._~%/+@:,=&!$()*;-]+$') || self.matches('^[A-Za-z0-9_][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9._-]*:[A-Za-z0-9._~%/+@:,=&!$()*;][A-Za-z0-9._~%/+@:,=&!$()*;-]*$')").message("must be a git URL like https://host/path.git, ssh://git@host/path.git or git@host:path.git, without a password")
    )]
    pub url: String,
    /// Branch, tag, or full reference (`refs/pull/1/head`), 1 to 255 characters; what the repository's HEAD names when this
    /// and `commit` are absent. A branch wins over a tag of the same name.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9_][A-Za-z0-9._/@+#=-]*$') && !self.contains('..') && !self.contains('//') && !self.endsWith('/') && !self.endsWith('.')").message("must be a branch, a tag or refs/..., like main or v1.0")
    )]
    pub reference: Option<String>,
    /// The commit: 40 or 64 lower-case hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 40, max = 64), regex(pattern = r"^([0-9a-f]{40}|[0-9a-f]{64})$"))]
    pub commit: Option<String>,
    /// Commits of history to fetch, 0 (all) to 1000000. The history itself is not part of the build context.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub depth: i32,
    /// Check submodules out, and theirs. They may be on https and ssh; credentials are used for the same server only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub submodules: bool,
    /// Fetch files that are in Git LFS; otherwise the build context has their pointers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lfs: bool,
    /// Secret of this namespace with the credentials, under Flux' or Kubernetes' key names: `username` and `password`, or
    /// `bearerToken`, for https; `identity` or `ssh-privatekey`, and `known_hosts`, for ssh; `ca.crt` for an authority of
    /// your own. The service account must list it in its `secrets`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub secret_name: Option<String>,
}

/// An archive from a web server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.url.startsWith('https://') || has(self.sha256)").message("plain http needs sha256: nothing else says that the bytes are the right ones"),
    validation = Rule::new("self.url.startsWith('https://') || !has(self.secretName)").message("credentials go over https only: expected an https:// URL, or no secretName")
)]
pub struct HttpSource {
    /// `https://host/path`, or `http://host/path` with `sha256`; at most 2048 characters. User and password belong into the
    /// Secret.
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^https?://([A-Za-z0-9][A-Za-z0-9._-]*|\\[[A-Fa-f0-9:]+\\])(:[0-9]{1,5})?/[A-Za-z0-9._~%/+@:,=&!$()*;?-]+$')").message("must be a URL like https://host/path.tar.gz, without a password")
    )]
    pub url: String,
    /// SHA-256 of the archive's bytes, 64 lower-case hexadecimal digits. Other bytes end the build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 64, max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
    /// Secret of this namespace with `username` and `password`, or `bearerToken`; and `ca.crt` for an authority of your own.
    /// The service account must list it in its `secrets`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub secret_name: Option<String>,
}

/// An artifact or an image in a registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct OciSource {
    /// `[host[:port]/]repository[:tag][@sha256:...]`, at most 512 characters, read as `docker` reads it. What a tag names is
    /// looked up once per run.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9\\\\[][A-Za-z0-9._/:@\\\\[\\\\]-]*$')").message("must be an image reference: [host[:port]/]repository[:tag][@sha256:...]")
    )]
    pub image: String,
}

/// A Flux source of the same namespace, whose artifact is the source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FluxSource {
    /// Kind of the Flux object.
    pub kind: FluxKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// Kind of the Flux object, in the group `source.toolkit.fluxcd.io`: `GitRepository`, `OCIRepository`, `Bucket` or
/// `ExternalArtifact`.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum FluxKind {
    /// A git repository.
    #[default]
    GitRepository,
    /// An OCI repository.
    #[serde(rename = "OCIRepository")]
    OciRepository,
    /// An object store.
    Bucket,
    /// An artifact that another controller made.
    ExternalArtifact,
}

impl FluxKind {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::GitRepository, Self::OciRepository, Self::Bucket, Self::ExternalArtifact];

    /// The word that the object uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GitRepository => "GitRepository",
            Self::OciRepository => "OCIRepository",
            Self::Bucket => "Bucket",
            Self::ExternalArtifact => "ExternalArtifact",
        }
    }

    /// The plural that URLs of the API use.
    pub fn plural(self) -> &'static str {
        match self {
            Self::GitRepository => "gitrepositories",
            Self::OciRepository => "ocirepositories",
            Self::Bucket => "buckets",
            Self::ExternalArtifact => "externalartifacts",
        }
    }
}

fn one() -> i32 {
    1
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
