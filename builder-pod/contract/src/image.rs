//! The few OCI shapes that cross the socket. Field names and meanings: OCI image-spec descriptor.md.

use serde::{Deserialize, Serialize};

/// What a blob is, by digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// IANA-like media type.
    pub media_type: String,
    /// `sha256:` and 64 lower-case hex digits.
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

/// A base image whose reference has been pinned to one manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedImage {
    /// The name as the Dockerfile has it, normalised (`docker.io/library/alpine:latest`).
    pub reference: String,
    /// `host/repository@sha256:…` of the platform's manifest; names the image in further calls.
    pub pinned: String,
    /// Digest of the platform's manifest.
    pub digest: String,
    /// Media type of that manifest (OCI or Docker schema 2).
    pub media_type: String,
    /// The image config, byte for byte (its digest was checked), JSON. At most 4 MiB.
    pub config: String,
    /// Layers from the bottom up.
    pub layers: Vec<Descriptor>,
}

/// An artifact or image that is a build's source, pinned to one manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    /// `host/repository@sha256:…`; names it in further calls.
    pub pinned: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Whether it is an image, whose layers stand on one another, and not an artifact.
    pub is_image: bool,
    /// In the manifest's order.
    pub layers: Vec<ArtifactLayer>,
}

/// A layer of an [`Artifact`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactLayer {
    /// The blob.
    pub blob: Descriptor,
    /// Annotation `org.opencontainers.image.title`: the file's name, as ORAS pushes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Annotation `io.deis.oras.content.unpack`: the file is a directory's archive.
    #[serde(default)]
    pub unpack: bool,
}

/// Whether `digest` is `sha256:` and 64 lower-case hex digits: the only algorithm that Kiln accepts.
pub fn is_sha256_digest(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

#[cfg(test)]
mod tests {
    use super::is_sha256_digest;

    #[test]
    fn digests_are_strict() {
        assert!(is_sha256_digest(&format!("sha256:{}", "0a".repeat(32))));
        for bad in ["sha256:../../x", "md5:00", "sha512:00", ""] {
            assert!(!is_sha256_digest(bad), "{bad}");
        }
        assert!(!is_sha256_digest(&format!("sha256:{}", "0A".repeat(32))));
    }
}
