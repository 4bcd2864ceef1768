//! What a build did last: an artifact without layers, all of which is in its manifest, so that reading it is one request. The
//! next build of that name puts its own in its place.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{CREATED, KEY, MANIFEST, empty};
use crate::client::Client;
use crate::error::Error;
use crate::name::ImageName;

/// What the artifact is.
pub(super) const ARTIFACT: &str = "application/vnd.kiln.cache.build.v1+json";
/// Annotation: the steps, as JSON.
const STEPS: &str = "build.kiln.cache.steps";

/// What a build did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheRecord {
    /// When it ended, RFC 3339.
    pub created: String,
    /// Its steps, by a word that names each.
    pub steps: BTreeMap<String, CacheStep>,
}

/// What is said of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStep {
    /// The tag of its entry.
    pub entry: String,
    /// What the entry's tag is made of beside the scope.
    pub key: String,
    /// Short digests of what it depends on, by group.
    #[serde(default)]
    pub inputs: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    artifact_type: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Client {
    /// The record under the tag of `name`; nothing where there is none. Mirrors are not asked.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no record, else as the registry answered.
    pub async fn read_record(&self, name: &ImageName) -> Result<Option<CacheRecord>, Error> {
        let place = self.origin(name)?;
        match self.manifest(&place, name, name.selector()).await {
            Ok((_, _, bytes)) => read(name.tag().unwrap_or_default(), &bytes)
                .map(Some)
                .map_err(|detail| Error::Invalid { what: format!("the cache's record {name}"), detail }),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts a record under the tag of `name`. The repository has to be prepared ([`Client::prepare_cache`]).
    ///
    /// # Errors
    /// As the registry answered at the end of the retries.
    pub async fn write_record(&self, name: &ImageName, record: &CacheRecord) -> Result<(), Error> {
        let tag = name.tag().unwrap_or_default();
        let bytes = Bytes::from(document(tag, record).to_string());
        match self.send_manifest(name, tag, MANIFEST, &bytes, self.inner.retry.settle, &|| true).await {
            // Where tags do not move, the first record stays; later builds are held against that one.
            Ok(_) | Err(Error::ImmutableTag { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn document(tag: &str, record: &CacheRecord) -> serde_json::Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": empty(),
        "layers": [empty()],
        "annotations": {KEY: tag, CREATED: record.created, STEPS: json!(record.steps).to_string()},
    })
}

/// What a manifest of a record says; else what is wrong with it.
pub(super) fn read(tag: &str, bytes: &[u8]) -> Result<CacheRecord, String> {
    let document: Document = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if document.artifact_type != ARTIFACT {
        return Err(format!("its type is {:?}, expected {ARTIFACT}", document.artifact_type));
    }
    if document.annotations.get(KEY).map(String::as_str) != Some(tag) {
        return Err("it was made for another tag".to_owned());
    }
    let steps = document.annotations.get(STEPS).map(String::as_str).unwrap_or("{}");
    let steps = serde_json::from_str(steps).map_err(|e| format!("its steps: {e}"))?;
    Ok(CacheRecord { created: document.annotations.get(CREATED).cloned().unwrap_or_default(), steps })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> CacheRecord {
        let step = CacheStep {
            entry: "0a".repeat(32),
            key: "0b".repeat(32),
            inputs: BTreeMap::from([("files".to_owned(), "0011aabb".to_owned())]),
        };
        CacheRecord {
            created: "2026-01-02T03:04:05Z".into(),
            steps: BTreeMap::from([("build/0".to_owned(), step)]),
        }
    }

    #[test]
    fn a_record_reads_back_under_its_own_tag_alone() {
        let written = document("t", &record()).to_string();
        assert_eq!(read("t", written.as_bytes()), Ok(record()));
        assert!(read("u", written.as_bytes()).is_err());
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let changes: [fn(&mut serde_json::Value); 4] = [
            |m| m["artifactType"] = "x".into(),
            |m| m["annotations"][STEPS] = "[".into(),
            |m| m["annotations"][STEPS] = "{\"a\":1}".into(),
            |m| m["annotations"] = json!({CREATED: "x"}),
        ];
        for change in changes {
            let mut written = document("t", &record());
            change(&mut written);
            assert!(read("t", written.to_string().as_bytes()).is_err(), "{written}");
        }
    }
}
