//! Artifacts: manifests whose config says nothing of a platform (OCI image-spec manifest.md, "guidelines for artifact usage"),
//! as Flux and ORAS push them; and images that are read like one.

use serde::Deserialize;

use crate::client::Client;
use crate::error::Error;
use crate::manifest::{Blob, Parsed, parse};
use crate::name::ImageName;
use crate::platform::Platform;

/// Media types of image configs (OCI image-spec config.md, Docker image manifest v2 schema 2).
const IMAGE_CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// The file's name, as ORAS pushes one.
const TITLE: &str = "org.opencontainers.image.title";
/// "true" when the file is a directory's archive.
const UNPACK: &str = "io.deis.oras.content.unpack";

/// An artifact, or an image read like one.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// Digest of the manifest.
    pub digest: String,
    /// Whether its config is an image's.
    pub is_image: bool,
    /// In the manifest's order.
    pub layers: Vec<ArtifactLayer>,
}

/// A layer of an artifact.
#[derive(Debug, Clone)]
pub struct ArtifactLayer {
    /// The blob.
    pub blob: Blob,
    /// Its file name.
    pub title: Option<String>,
    /// Whether it is a directory's archive.
    pub unpack: bool,
}

#[derive(Deserialize)]
struct Annotated {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

impl Client {
    /// Pins a name to one manifest; of an index, that of the platform.
    ///
    /// # Errors
    /// As the last place answered: the registry itself, after its mirrors.
    pub async fn resolve_artifact(&self, name: &ImageName, platform: &Platform) -> Result<Artifact, Error> {
        let mut last = None;
        for place in self.places(name)? {
            let found = async {
                let (digest, header, bytes) = self.manifest(&place, name, name.selector()).await?;
                match parse(name, &header, &bytes, platform)? {
                    Parsed::Index { chosen } => {
                        let (digest, header, bytes) = self.manifest(&place, name, &chosen.digest).await?;
                        Ok((digest, parse(name, &header, &bytes, platform)?, bytes))
                    }
                    parsed => Ok((digest, parsed, bytes)),
                }
            };
            match found.await {
                Ok((digest, parsed, bytes)) => return read(name, digest, parsed, &bytes),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::Invalid {
            what: name.to_string(),
            detail: "there is no place to read it from".to_owned(),
        }))
    }
}

fn read(name: &ImageName, digest: String, parsed: Parsed, bytes: &[u8]) -> Result<Artifact, Error> {
    let invalid = |detail: String| Error::Invalid { what: format!("the manifest of {name}"), detail };
    let Parsed::Manifest { config, layers, .. } = parsed else {
        return Err(invalid("its index names another index; expected an artifact or an image".to_owned()));
    };
    let annotated: Annotated = serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?;
    let layers = layers.into_iter().zip(annotated.layers).map(|(blob, layer)| ArtifactLayer {
        blob,
        title: layer.annotations.get(TITLE).cloned(),
        unpack: layer.annotations.get(UNPACK).is_some_and(|value| value == "true"),
    });
    let is_image = IMAGE_CONFIGS.contains(&config.media_type.as_str());
    Ok(Artifact { digest, is_image, layers: layers.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_and_kind_are_read() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let manifest = |config: &str| {
            serde_json::json!({"schemaVersion": 2,
                "config": {"mediaType": config, "digest": digest, "size": 2},
                "layers": [
                    {"mediaType": "x", "digest": digest, "size": 1, "annotations": {TITLE: "a.txt"}},
                    {"mediaType": "y", "digest": digest, "size": 1, "annotations": {TITLE: "d", UNPACK: "true"}},
                    {"mediaType": "z", "digest": digest, "size": 1}]})
            .to_string()
        };
        let name = ImageName::parse("r.x/a:1").expect("a name");
        let artifact = |config: &str| {
            let text = manifest(config);
            let platform = Platform::parse("linux/amd64").expect("a platform");
            let parsed = parse(&name, "", text.as_bytes(), &platform).expect("a manifest");
            read(&name, "d".into(), parsed, text.as_bytes()).expect("an artifact")
        };
        let flux = artifact("application/vnd.cncf.flux.config.v1+json");
        assert!(!flux.is_image && artifact(IMAGE_CONFIGS[0]).is_image);
        let read: Vec<_> = flux.layers.iter().map(|l| (l.title.as_deref(), l.unpack)).collect();
        assert_eq!(read, [(Some("a.txt"), false), (Some("d"), true), (None, false)]);
    }
}
