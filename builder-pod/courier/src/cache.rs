//! The cache: entries of steps and records of builds, one small artifact each, in a repository of their own. What tag an entry has depends on the
//! scope as well, which is the request's: a builder can't ask for an entry of another namespace, nor make one.

use std::path::Path;
use std::sync::Arc;

use kiln_contract::Descriptor;
use kiln_contract::cache::{BuildRecord, CacheEntry, RecordedStep, is_key};
use kiln_contract::call::Stored;
use kiln_contract::failure::Failure;
use kiln_contract::request;
use kiln_registry::{Blob, Client, Error, Image, ImageName, Origin};
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

use crate::failure::{Purpose, internal, of_registry};
use crate::output::{blob_of, stored};

/// In front of what tags are made of: another layout of entries gets another word here.
const FORMAT: &str = "kiln cache entry 1";
/// The same of records.
const RECORD_FORMAT: &str = "kiln cache record 1";

/// The cache of one attempt.
#[derive(Debug)]
pub struct Cache {
    repository: String,
    scope: String,
    client: Client,
    /// Whether the repository has what all entries need.
    prepared: OnceCell<()>,
}

impl Cache {
    /// The cache that a request names. A registry that does not answer is given up on soon: a build does without.
    ///
    /// # Errors
    /// The repository's name is none.
    pub fn new(wished: &request::Cache, client: &Client) -> Result<Self, Failure> {
        let of = |e: Error| of_registry(&e, Purpose::Cache);
        let name = ImageName::parse(&wished.repository).map_err(of)?;
        let last = wished.repository.rsplit('/').next().unwrap_or_default();
        if last.contains([':', '@']) {
            let detail = "the cache's repository is named without a tag: entries have tags of their own";
            return Err(of(Error::Name { name: wished.repository.clone(), detail: detail.to_owned() }));
        }
        Ok(Self {
            repository: name.repository_name(),
            scope: wished.scope.clone(),
            client: client.impatient(),
            prepared: OnceCell::new(),
        })
    }

    fn name(&self, key: &str) -> Result<ImageName, Failure> {
        self.name_of(FORMAT, key)
    }

    fn name_of(&self, format: &str, key: &str) -> Result<ImageName, Failure> {
        if !is_key(key) {
            return Err(internal(format!("{key:.80?} is no key of a cache entry")));
        }
        let tag = tag(format, &self.scope, key);
        ImageName::parse(&format!("{}:{tag}", self.repository)).map_err(|e| of_registry(&e, Purpose::Cache))
    }

    /// The entry of a key, and the image that its layer can be read from.
    ///
    /// # Errors
    /// It can't be told, or what is there is no entry.
    pub async fn get(&self, key: &str) -> Result<Option<(Image, CacheEntry)>, Failure> {
        let of = |e: Error| of_registry(&e, Purpose::Cache);
        let name = self.name(key)?;
        let Some((digest, entry)) = self.client.read_entry(&name).await.map_err(of)? else {
            return Ok(None);
        };
        let layer = Descriptor {
            media_type: entry.layer.media_type.clone(),
            digest: entry.layer.digest.clone(),
            size: entry.layer.size,
        };
        let found = CacheEntry { layer, diff_id: entry.diff_id, created: entry.created };
        if let Some(detail) = found.objection() {
            return Err(of(Error::Invalid { what: format!("the cache entry {name}"), detail }));
        }
        let layers = vec![entry.layer];
        let image = Image { name, digest, media_type: String::new(), config: Vec::new(), layers };
        Ok(Some((image, found)))
    }

    /// Keeps an entry, its layer from `origin`.
    ///
    /// # Errors
    /// The entry is not sound, or as the registry answered.
    pub async fn put(&self, key: &str, entry: &CacheEntry, origin: &Origin) -> Result<Stored, Failure> {
        if let Some(problem) = entry.objection() {
            return Err(internal(format!("an entry for the cache is not sound: {problem}")));
        }
        let name = self.name(key)?;
        let layer: Blob = blob_of(&entry.layer);
        let entry = kiln_registry::CacheEntry {
            layer,
            diff_id: entry.diff_id.clone(),
            created: entry.created.clone(),
        };
        let of = |e: Error| of_registry(&e, Purpose::Cache);
        self.prepared.get_or_try_init(|| self.client.prepare_cache(&name)).await.map_err(of)?;
        self.client.write_entry(&name, &entry, origin).await.map(stored).map_err(of)
    }

    /// What a build of this name did last.
    ///
    /// # Errors
    /// It can't be told, or what is there is no record.
    pub async fn record(&self, name: &str) -> Result<Option<BuildRecord>, Failure> {
        let of = |e: Error| of_registry(&e, Purpose::Cache);
        let name = self.name_of(RECORD_FORMAT, name)?;
        let Some(found) = self.client.read_record(&name).await.map_err(of)? else { return Ok(None) };
        let step = |(word, step): (String, kiln_registry::CacheStep)| {
            (word, RecordedStep { key: step.key, inputs: step.inputs })
        };
        let record =
            BuildRecord { created: found.created, steps: found.steps.into_iter().map(step).collect() };
        match record.objection() {
            None => Ok(Some(record)),
            Some(detail) => Err(of(Error::Invalid { what: format!("the cache's record {name}"), detail })),
        }
    }

    /// Keeps what a build did, in place of what is there under its name.
    ///
    /// # Errors
    /// The record is not sound, or as the registry answered.
    pub async fn put_record(&self, name: &str, record: BuildRecord) -> Result<(), Failure> {
        if let Some(problem) = record.objection() {
            return Err(internal(format!("a record for the cache is not sound: {problem}")));
        }
        let name = self.name_of(RECORD_FORMAT, name)?;
        let step = |(word, RecordedStep { key, inputs }): (String, RecordedStep)| {
            (word, kiln_registry::CacheStep { entry: tag(FORMAT, &self.scope, &key), key, inputs })
        };
        let steps = record.steps.into_iter().map(step).collect();
        let record = kiln_registry::CacheRecord { created: record.created, steps };
        let of = |e: Error| of_registry(&e, Purpose::Cache);
        self.prepared.get_or_try_init(|| self.client.prepare_cache(&name)).await.map_err(of)?;
        self.client.write_record(&name, &record).await.map_err(of)
    }

    /// The client for the cache's registry.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

/// The tag of an entry or record: a digest over format, scope and key, each with its length in front.
fn tag(format: &str, scope: &str, key: &str) -> String {
    let mut sum = Sha256::new();
    for field in [format, scope, key] {
        sum.update((field.len() as u64).to_be_bytes());
        sum.update(field.as_bytes());
    }
    hex::encode(sum.finalize())
}

/// A blob of a layout as an origin.
pub(crate) fn file_origin(path: &Path) -> Result<Origin, Failure> {
    let file = std::fs::File::open(path).map_err(|e| internal(format!("{}: {e}", path.display())))?;
    Ok(Origin::File(Arc::new(file)))
}

#[cfg(test)]
mod tests {
    use kiln_registry::Options;

    use super::*;

    #[test]
    fn another_scope_has_other_tags() {
        let key = "0a".repeat(32);
        let of = |scope: &str, key: &str| tag(FORMAT, scope, key);
        let record = tag(RECORD_FORMAT, "team-a", &key);
        let other = "0b".repeat(32);
        let tags = [of("", &key), of("team-a", &key), of("team-b", &key), of("team-a", &other), record];
        let distinct: std::collections::BTreeSet<_> = tags.iter().collect();
        assert_eq!(distinct.len(), 5);
        assert!(tags.iter().all(|tag| is_key(tag)));
        // Every entry that was ever kept is lost when this changes.
        assert_eq!(of("team-a", &key), "0c3f3e2982742fa246ceba0bd6251dfae92b4d0416e3863ecd19e1f1b8a5d5ef");
    }

    #[test]
    fn a_repository_is_named_without_a_tag() {
        let client = Client::new(Options::default()).expect("a client");
        let new = |name: &str| {
            Cache::new(&request::Cache { repository: name.into(), scope: String::new() }, &client)
        };
        assert_eq!(new("r.x:5000/a/cache").expect("a cache").repository, "r.x:5000/a/cache");
        for bad in ["r.x/cache:latest", "r.x/Cache", "", "r.x/c@sha256:0"] {
            assert!(new(bad).is_err(), "{bad}");
        }
        assert!(new("r.x/c").expect("a cache").name("../x").is_err());
    }
}
