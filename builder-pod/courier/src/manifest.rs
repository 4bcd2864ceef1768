//! Composing the image manifest (OCI image-spec manifest.md), and checking that it can hold. Pure.

use kiln_contract::Descriptor;
use kiln_contract::image::is_sha256_digest;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Media type of the manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of the config.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A manifest, ready to be pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Composed {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: String,
    /// The config's descriptor.
    pub config: Descriptor,
    /// Bytes of config and layers together.
    pub size: u64,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// `sha256:` digest of bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// The OCI name of a layer's media type; Docker's own ones mean the same bytes.
fn oci_layer(media_type: &str) -> Option<&'static str> {
    Some(match media_type {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            "application/vnd.oci.image.layer.v1.tar"
        }
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            "application/vnd.oci.image.layer.v1.tar+gzip"
        }
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            "application/vnd.oci.image.layer.v1.tar+zstd"
        }
        _ => return None,
    })
}

/// Composes the manifest of an image.
///
/// # Errors
/// What does not fit together, in words.
pub fn compose(config: &str, layers: &[Descriptor]) -> Result<Composed, String> {
    let parsed: Config =
        serde_json::from_str(config).map_err(|e| format!("the image config is not valid: {e}"))?;
    let diff_ids = &parsed.rootfs.diff_ids;
    if diff_ids.len() != layers.len() {
        return Err(format!("the config speaks of {} layers, {} were given", diff_ids.len(), layers.len()));
    }
    for digest in diff_ids.iter().chain(layers.iter().map(|l| &l.digest)) {
        if !is_sha256_digest(digest) {
            return Err(format!("{digest:?} is no sha256 digest"));
        }
    }
    let mut entries = Vec::new();
    for layer in layers {
        let media_type = oci_layer(&layer.media_type).ok_or_else(|| {
            format!("a layer of media type {:?} can't be part of an image", layer.media_type)
        })?;
        entries.push(json!({"mediaType": media_type, "digest": layer.digest, "size": layer.size}));
    }
    let config = Descriptor {
        media_type: CONFIG.to_owned(),
        digest: digest(config.as_bytes()),
        size: config.len() as u64,
    };
    let size = config.size + layers.iter().map(|l| l.size).sum::<u64>();
    let document = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": config.digest, "size": config.size},
        "layers": entries,
    });
    let bytes = serde_json::to_vec(&document).map_err(|e| e.to_string())?;
    Ok(Composed { digest: digest(&bytes), bytes, config, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(kind: &str) -> Descriptor {
        Descriptor { media_type: kind.into(), digest: format!("sha256:{}", "1".repeat(64)), size: 7 }
    }

    fn config(layers: usize) -> String {
        json!({"rootfs": {"type": "layers", "diff_ids": vec![format!("sha256:{}", "2".repeat(64)); layers]}})
            .to_string()
    }

    #[test]
    fn docker_layers_become_oci_layers() {
        let composed = compose(&config(1), &[layer("application/vnd.docker.image.rootfs.diff.tar.gzip")])
            .expect("composed");
        let text = String::from_utf8(composed.bytes.clone()).expect("JSON");
        assert!(text.contains("vnd.oci.image.layer.v1.tar+gzip") && !text.contains("docker"));
        assert_eq!(composed.digest, digest(&composed.bytes));
        assert_eq!(composed.size, 7 + config(1).len() as u64);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(compose(&config(2), &[layer("application/vnd.oci.image.layer.v1.tar")]).is_err());
        assert!(compose("{}", &[]).is_err());
        assert!(compose(&config(1), &[layer("text/html")]).is_err());
    }
}
