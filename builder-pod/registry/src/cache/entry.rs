//! Entries of a cache: a small artifact per step (OCI image-spec manifest.md, "guidelines for artifact usage"), whose tag is
//! what names the step's result. All that it says is in the manifest, so that a look-up is one request: the layer's
//! descriptor, with the diff ID as its annotation, and when the step ended.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::{CREATED, KEY, MANIFEST, empty};
use crate::client::Client;
use crate::error::Error;
use crate::manifest::{Blob, Parsed, parse};
use crate::name::{ImageName, is_digest};
use crate::platform::Platform;
use crate::push::{Origin, Put};

/// What the artifact is.
pub(super) const ARTIFACT: &str = "application/vnd.kiln.cache.step.v1+json";
/// Annotation of the layer.
const DIFF_ID: &str = "build.kiln.cache.diff-id";

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// The step's layer.
    pub layer: Blob,
    /// `sha256:…` of the layer's tar.
    pub diff_id: String,
    /// When the step ended, RFC 3339.
    pub created: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    artifact_type: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Client {
    /// The entry under the tag of `name`, and its manifest's digest; nothing where there is none. Mirrors are not asked.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no entry, else as the registry answered.
    pub async fn read_entry(&self, name: &ImageName) -> Result<Option<(String, CacheEntry)>, Error> {
        let place = self.origin(name)?;
        match self.manifest(&place, name, name.selector()).await {
            Ok((digest, header, bytes)) => {
                Ok(Some((digest, read(name, name.tag().unwrap_or_default(), &header, &bytes)?)))
            }
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts an entry under the tag of `name`, its layer from `origin`; says how the layer came there. The repository has to
    /// be prepared ([`Client::prepare_cache`]).
    ///
    /// # Errors
    /// As the registry answered at the end of the retries.
    pub async fn write_entry(
        &self,
        name: &ImageName,
        entry: &CacheEntry,
        origin: &Origin,
    ) -> Result<Put, Error> {
        let put = self.put_blob(name, &entry.layer, origin).await?;
        let tag = name.tag().unwrap_or_default();
        let bytes = Bytes::from(document(tag, entry).to_string());
        // Not asked for afterwards: what is not there, or is another, is noticed when it is read.
        match self.send_manifest(name, tag, MANIFEST, &bytes, self.inner.retry.settle, &|| true).await {
            // Another build has kept the same step's result; here, too, it is one that may be used.
            Ok(_) | Err(Error::ImmutableTag { .. }) => Ok(put),
            Err(error) => Err(error),
        }
    }
}

fn document(tag: &str, entry: &CacheEntry) -> serde_json::Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": empty(),
        "layers": [{
            "mediaType": entry.layer.media_type,
            "digest": entry.layer.digest,
            "size": entry.layer.size,
            "annotations": {DIFF_ID: entry.diff_id},
        }],
        "annotations": {KEY: tag, CREATED: entry.created},
    })
}

fn read(name: &ImageName, tag: &str, header: &str, bytes: &[u8]) -> Result<CacheEntry, Error> {
    let invalid = |detail: String| Error::Invalid { what: format!("the cache entry {name}"), detail };
    let Parsed::Manifest { layers, .. } = parse(name, header, bytes, &Platform::parse("linux/amd64")?)?
    else {
        return Err(invalid("it is an index".to_owned()));
    };
    let document: Document = serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?;
    if document.artifact_type != ARTIFACT {
        return Err(invalid(format!("its type is {:?}, expected {ARTIFACT}", document.artifact_type)));
    }
    if document.annotations.get(KEY).map(String::as_str) != Some(tag) {
        return Err(invalid("it was made for another tag".to_owned()));
    }
    let ([layer], [noted]) = (layers.as_slice(), document.layers.as_slice()) else {
        return Err(invalid(format!("it has {} layers, expected one", layers.len())));
    };
    let diff_id = noted.annotations.get(DIFF_ID).filter(|id| is_digest(id));
    let diff_id = diff_id.ok_or_else(|| invalid("its layer has no diff ID".to_owned()))?;
    let created = document.annotations.get(CREATED).cloned().unwrap_or_default();
    Ok(CacheEntry { layer: layer.clone(), diff_id: diff_id.clone(), created })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> CacheEntry {
        let id = |letter: &str| format!("sha256:{}", letter.repeat(64));
        CacheEntry {
            layer: Blob {
                media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
                digest: id("a"),
                size: 7,
            },
            diff_id: id("b"),
            created: "2026-01-02T03:04:05Z".into(),
        }
    }

    fn read_back(tag: &str, change: &dyn Fn(&mut serde_json::Value)) -> Result<CacheEntry, Error> {
        let mut written = document("t", &entry());
        change(&mut written);
        let name = ImageName::parse("r.x/cache:t").expect("a name");
        read(&name, tag, "", written.to_string().as_bytes())
    }

    #[test]
    fn an_entry_reads_back() {
        assert_eq!(read_back("t", &|_| ()).expect("an entry"), entry());
    }

    #[test]
    fn what_is_no_entry_of_the_tag_is_refused() {
        assert!(read_back("u", &|_| ()).is_err());
        let changes: [fn(&mut serde_json::Value); 5] = [
            |m| m["artifactType"] = "x".into(),
            |m| m["layers"] = json!([]),
            |m| m["layers"][0]["annotations"] = json!({}),
            |m| m["layers"][0]["digest"] = "sha256:../x".into(),
            |m| m["annotations"] = json!({CREATED: "x"}),
        ];
        for change in changes {
            assert!(read_back("t", &change).is_err());
        }
    }
}
