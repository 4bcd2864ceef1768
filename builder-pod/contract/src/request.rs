//! What is to be built: written once by the operator (or the CLI), read by courier and builder.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::policy::Policy;
use crate::source::{Git, Http, Oci};

/// One attempt at one build. A field that its reader does not know is refused and never passed over: it would be another build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BuildRequest {
    /// [`crate::VERSION`].
    pub version: u32,
    /// Names this attempt in journal, permit and report; unique for all time (`<uid>-<run>-<attempt>`).
    pub attempt: String,
    /// Where the files come from.
    pub source: Source,
    /// The build context's root within the source; `.` for all of it.
    pub context_dir: String,
    /// The Dockerfile's path within the context.
    pub dockerfile: String,
    /// The Dockerfile itself, where it does not lie in the context (`kiln build -f OUTSIDE DIR`); `dockerfile` then only
    /// names it in messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dockerfile_text: Option<String>,
    /// The stage to build; the last one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Build arguments.
    #[serde(default)]
    pub args: BTreeMap<String, String>,
    /// Labels that are added to the image's config.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What steps may have beyond the usual, in BuildKit's words (`network.host`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entitlements: Vec<String>,
    /// Named contexts (`--build-context`): what FROM and `--from` may name beside stages and images.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub contexts: BTreeMap<String, NamedContext>,
    /// `os/arch[/variant]`.
    pub platform: String,
    /// Where the image goes.
    pub output: Output,
    /// How the layers that this build makes are compressed; those of bases and of the cache stay as they are.
    #[serde(default, skip_serializing_if = "Compression::is_default")]
    pub compression: Compression,
    /// How steps are kept apart from the builder.
    pub isolation: Isolation,
    /// Seconds until the builder gives up; counted from its own start.
    pub timeout_seconds: u64,
    /// Mirrors and plain-HTTP registries.
    #[serde(default)]
    pub registries: Registries,
    /// What the platform's policies say of it.
    #[serde(default, skip_serializing_if = "Policy::is_empty")]
    pub policy: Policy,
    /// Where results of steps are looked up and kept; absent: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
}

/// A repository with the results of steps of earlier builds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cache {
    /// `[host[:port]/]repository`, without tag and digest.
    pub repository: String,
    /// Who shares entries: a build of another scope never gets them. The namespace, or `policy/` and the policies that have
    /// namespaces share, put there by the operator; empty on a plain machine.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scope: String,
}

/// Where the build context comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// Small files carried in the request itself (inline and ConfigMap sources).
    Files(Vec<File>),
    /// A directory of this machine (`kiln build DIR`).
    Directory(String),
    /// A git repository. This and what follows is fetched into [`crate::paths::CONTEXT_TREE`] before the build.
    Git(Git),
    /// An archive from a web server.
    Http(Http),
    /// An artifact or an image in a registry.
    Oci(Oci),
}

impl Source {
    /// Whether the `source` container fetches it.
    pub fn is_fetched(&self) -> bool {
        matches!(self, Self::Git(_) | Self::Http(_) | Self::Oci(_))
    }
}

/// Where a named context comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NamedContext {
    /// A directory of this machine.
    Directory(String),
    /// An image, by reference, or `oci-layout://` and the directory of a layout on this machine.
    Image(String),
    /// Files of a git repository.
    Git(Git),
}

/// A file of the context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct File {
    /// Relative path, `/`-separated, without `..`.
    pub path: String,
    /// What is in it.
    pub content: Content,
}

/// What is in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Content {
    /// UTF-8 text as it is.
    Text(String),
    /// Bytes in standard base64 with padding (a ConfigMap's `binaryData`).
    Base64(String),
}

/// Where the image goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Output {
    /// Push to a registry. All references name one repository; the image is pushed by digest, and the tags move last.
    Registry {
        /// `host/repository:tag`, normalised, the first is the one that users are told.
        references: Vec<String>,
        /// Whether the operator's permit is needed before a tag moves.
        permit: bool,
    },
    /// An OCI image layout in a directory.
    OciLayout {
        /// The directory; made when absent.
        path: String,
        /// Recorded as `org.opencontainers.image.ref.name` and `io.containerd.image.name`.
        references: Vec<String>,
    },
    /// An OCI image layout in a tar archive.
    OciArchive {
        /// The file.
        path: String,
        /// As above.
        references: Vec<String>,
    },
}

impl Output {
    /// The repository of its first reference, without tag and digest.
    pub fn repository(&self) -> Option<&str> {
        let (Self::Registry { references, .. }
        | Self::OciLayout { references, .. }
        | Self::OciArchive { references, .. }) = self;
        let name = references.first()?;
        let name = name.split_once('@').map_or(name.as_str(), |(name, _)| name);
        let last = name.rfind('/').map_or(0, |slash| slash + 1);
        Some(name[last..].find(':').map_or(name, |colon| &name[..last + colon]))
    }
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Compression {
    /// gzip, as every registry and runtime reads it.
    #[default]
    Gzip,
    /// zstd: smaller and faster; registries and runtimes of the last years read it.
    Zstd,
    /// Not at all.
    Uncompressed,
}

impl Compression {
    /// Media type of such a layer (OCI image-spec layer.md).
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            Self::Uncompressed => "application/vnd.oci.image.layer.v1.tar",
        }
    }

    // By reference, as serde calls it.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How steps are kept apart from the builder (design section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    /// The pod has a user namespace of its own; steps get a part of its ids.
    UserNamespace,
    /// The pod has the host's ids; steps get a high range of them.
    HostRange,
}

impl Isolation {
    /// The word that spec and status use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UserNamespace => "UserNamespace",
            Self::HostRange => "HostRange",
        }
    }
}

/// Mirrors and plain-HTTP registries, from the cluster's settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Registries {
    /// Tried in order before the registry itself.
    #[serde(default)]
    pub mirrors: Vec<Mirror>,
    /// `host[:port]` of registries that are talked to over plain HTTP.
    #[serde(default)]
    pub insecure: Vec<String>,
}

/// Other places that serve a registry's images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mirror {
    /// The registry as image names have it (`docker.io`).
    pub registry: String,
    /// `host[:port][/prefix]` of each mirror; plain HTTP when the host is in [`Registries::insecure`].
    pub mirrors: Vec<String>,
}

/// Bytes of a request at most: a ConfigMap holds 1 MiB, and inline sources are limited to 512 KiB.
pub const MAX_REQUEST: usize = 1 << 20;
/// Bytes of an attempt's name: a UID and two numbers have some 60. It is in the report, which has to fit.
pub const MAX_ATTEMPT: usize = 128;

impl BuildRequest {
    /// Reads a request and checks its version.
    ///
    /// # Errors
    /// What is wrong with the bytes, in words.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_REQUEST {
            return Err(format!(
                "the request has {} bytes, more than the {MAX_REQUEST} allowed",
                bytes.len()
            ));
        }
        let request: Self =
            serde_json::from_slice(bytes).map_err(|e| format!("the request is not valid: {e}"))?;
        if !crate::reads(request.version) {
            return Err(format!(
                "the request has version {}, this program reads {} to {}; operator and builder image must be of one release, or of two that follow one another",
                request.version,
                crate::OLDEST_VERSION,
                crate::VERSION
            ));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/".contains(&b);
        if request.attempt.len() > MAX_ATTEMPT || !request.attempt.bytes().all(plain) {
            return Err(format!(
                "the request's attempt is {:?}; expected at most {MAX_ATTEMPT} letters, digits and - _ . : /",
                crate::text::truncate(&request.attempt, MAX_ATTEMPT)
            ));
        }
        Ok(request)
    }
}
