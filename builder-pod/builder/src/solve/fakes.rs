//! An engine, a courier and a log that note what is asked of them, for tests.

mod engine;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use kiln_contract::cache::{BuildRecord, CacheEntry};
use kiln_contract::call::Stored;
use kiln_contract::image::ResolvedImage;
use kiln_contract::source::Git;
use kiln_contract::{Descriptor, FailureClass, reason};
use serde_json::{Value, json};

use super::*;
use crate::courier::{Cached, CourierError, Fetched, Growing};
use crate::engine::{CACHE_MOUNT, EngineErrorKind, LAYER_INDEX, Secret};

pub(crate) use engine::FakeEngine;

pub(crate) fn id(text: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(text.as_bytes())))
}

/// What was asked, in order, from all sides.
#[derive(Default)]
pub(crate) struct Notes(Mutex<Vec<String>>);

impl Notes {
    pub fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    pub fn add(&self, note: String) {
        self.0.lock().unwrap().push(note);
    }

    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// Those that start with one of `words`, in order.
    pub fn of(&self, words: &[&str]) -> Vec<String> {
        self.all().into_iter().filter(|n| words.iter().any(|w| n.starts_with(w))).collect()
    }
}

/// Images of which every layer's bytes are its name; a call can be made to fail.
#[derive(Default)]
pub(crate) struct FakeCourier {
    pub notes: Notes,
    pub fail: Mutex<BTreeMap<&'static str, Failure>>,
    pub secrets: BTreeMap<&'static str, String>,
    /// The diff IDs in the configs are wrong.
    pub wrong: bool,
    pub committed: Mutex<Option<(Value, Vec<Descriptor>)>>,
    /// The cache, by key.
    pub entries: Mutex<BTreeMap<String, CacheEntry>>,
    /// What builds did, by name.
    pub records: Mutex<BTreeMap<String, BuildRecord>>,
    /// Why steps were not in the cache.
    pub missed: Mutex<BTreeMap<u32, String>>,
    /// What is in the blobs that were put, by digest.
    pub blobs: Mutex<BTreeMap<String, String>>,
    /// Blobs may be told of while they grow.
    pub takes_growing: bool,
    /// How they did.
    pub grown: Arc<Mutex<Vec<u64>>>,
}

impl FakeCourier {
    fn note(&self, word: &'static str, rest: &str) -> Result<(), CourierError> {
        self.notes.add(format!("{word} {rest}"));
        let fail = self.fail.lock().unwrap().get(word).cloned();
        fail.map_or(Ok(()), |failure| Err(CourierError::Failed(Box::new(failure))))
    }
}

/// Any bytes as a text, a character for each.
fn text_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn bytes_of(text: &str) -> Vec<u8> {
    text.chars().filter_map(|c| u8::try_from(c).ok()).collect()
}

/// The bytes of a layer of an image.
fn bytes(reference: &str, layer: usize) -> String {
    format!("{reference}:{layer}")
}

impl Courier for FakeCourier {
    fn resolve(&self, reference: &str, platform: &str) -> Result<ResolvedImage, CourierError> {
        self.note("resolve", &format!("{reference} {platform}"))?;
        let diff_ids: Vec<_> = (0..2).map(|n| id(&bytes(reference, n))).collect();
        let diff_ids = if self.wrong { vec![id("x"), id("y")] } else { diff_ids };
        let layer = |n| Descriptor {
            media_type: "application/vnd.docker.image.rootfs.diff.tar.gzip".into(),
            digest: id(&format!("blob {}", bytes(reference, n))),
            size: 1,
        };
        Ok(ResolvedImage {
            reference: reference.into(),
            pinned: reference.into(),
            digest: id(reference),
            media_type: "m".into(),
            config: json!({"os": "linux", "architecture": "amd64", "config": {},
                           "rootfs": {"type": "layers", "diff_ids": diff_ids}})
            .to_string(),
            layers: vec![layer(0), layer(1)],
        })
    }

    fn read_blob(&self, image: &str, blob: &Descriptor, into: OwnedFd) -> Result<(), CourierError> {
        if let Some(text) = self.blobs.lock().unwrap().get(&blob.digest) {
            self.note("read_blob", text)?;
            let _ = std::fs::File::from(into).write_all(&bytes_of(text));
            return Ok(());
        }
        let layer = (0..2).find(|n| blob.digest == id(&format!("blob {}", bytes(image, *n)))).unwrap();
        self.note("read_blob", &bytes(image, layer))?;
        // A reader that went away is the engine's fault, which it reports.
        let _ = std::fs::File::from(into).write_all(bytes(image, layer).as_bytes());
        Ok(())
    }

    fn fetch(
        &self,
        url: &str,
        checksum: Option<&str>,
        file: BorrowedFd<'_>,
    ) -> Result<Fetched, CourierError> {
        self.note("fetch", &format!("{url} {checksum:?}"))?;
        rustix::io::write(file, url.as_bytes()).unwrap();
        Ok(Fetched { size: url.len() as u64, digest: id(url), modified: Some(7) })
    }

    fn fetch_git(&self, source: &Git, _file: BorrowedFd<'_>) -> Result<String, CourierError> {
        self.note("fetch_git", &source.url)?;
        Ok("0".repeat(40))
    }

    fn put_blob(&self, blob: &Descriptor, file: BorrowedFd<'_>) -> Result<Stored, CourierError> {
        let mut text = vec![0; usize::try_from(blob.size).unwrap()];
        rustix::io::pread(file, &mut text[..], 0).unwrap();
        let text = String::from_utf8(text).unwrap();
        self.note("put_blob", &text)?;
        self.blobs.lock().unwrap().insert(blob.digest.clone(), text);
        Ok(Stored::Uploaded)
    }

    fn begin_blob(&self, _file: BorrowedFd<'_>) -> Result<Box<dyn Growing>, CourierError> {
        self.note("begin_blob", "")?;
        if !self.takes_growing {
            return Err(CourierError::Failed(Box::new(registry_failure())));
        }
        Ok(Box::new(FakeGrowing(self.grown.clone())))
    }

    fn cache_get(&self, key: &str) -> Result<Option<Cached>, CourierError> {
        self.note("cache_get", key)?;
        let entry = self.entries.lock().unwrap().get(key).cloned();
        Ok(entry.map(|entry| Cached { image: format!("cache@{}", &key[..12]), entry }))
    }

    fn cache_put(
        &self,
        key: &str,
        entry: &CacheEntry,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<Stored, CourierError> {
        let word = match entry.layer.media_type.as_str() {
            LAYER_INDEX => "keep_index",
            CACHE_MOUNT => "keep_mount",
            _ => "cache_put",
        };
        self.note(word, if file.is_some() { "file" } else { "output" })?;
        if let Some(file) = file {
            let mut text = vec![0; usize::try_from(entry.layer.size).unwrap()];
            rustix::io::pread(file, &mut text[..], 0).unwrap();
            self.blobs.lock().unwrap().insert(entry.layer.digest.clone(), text_of(&text));
        }
        assert!(self.blobs.lock().unwrap().contains_key(&entry.layer.digest));
        self.entries.lock().unwrap().insert(key.to_owned(), entry.clone());
        Ok(Stored::Mounted)
    }

    fn record_get(&self, name: &str) -> Result<Option<BuildRecord>, CourierError> {
        self.note("record_get", "")?;
        Ok(self.records.lock().unwrap().get(name).cloned())
    }

    fn record_put(&self, name: &str, record: &BuildRecord) -> Result<(), CourierError> {
        self.note("record_put", "")?;
        assert_eq!(record.objection(), None);
        self.records.lock().unwrap().insert(name.to_owned(), record.clone());
        Ok(())
    }

    fn put_base_blob(&self, image: &str, _blob: &Descriptor) -> Result<Stored, CourierError> {
        self.note("put_base_blob", image)?;
        Ok(Stored::Mounted)
    }

    fn secret(&self, id: &str) -> Result<Option<Secret>, CourierError> {
        self.note("secret", id)?;
        Ok(self.secrets.get(id).map(|value| Secret(value.as_bytes().to_vec())))
    }

    fn find_agent(&self, id: &str) -> Result<bool, CourierError> {
        self.note("find_agent", id)?;
        Ok(id == "default")
    }

    fn serve_agent(&self, id: &str, connection: OwnedFd) -> Result<(), CourierError> {
        let mut stream = std::os::unix::net::UnixStream::from(connection);
        stream.write_all(format!("agent {id}").as_bytes()).unwrap();
        self.note("serve_agent", id)
    }

    fn commit(&self, config: &str, layers: &[Descriptor]) -> Result<Committed, CourierError> {
        self.note("commit", "")?;
        *self.committed.lock().unwrap() = Some((serde_json::from_str(config).unwrap(), layers.to_vec()));
        Ok(Committed { digest: id("manifest"), references: vec!["host/x:1".into()] })
    }

    fn event(&self, event: Event) -> Result<(), CourierError> {
        let text = match event {
            Event::StepStarted { step } => format!("started {step}"),
            Event::StepDone { step, cached, cache_miss } => {
                if let Some(why) = cache_miss {
                    self.missed.lock().unwrap().insert(step, why);
                }
                format!("{} {step}", if cached { "cached" } else { "done" })
            }
            Event::StepFailed { step, exit_code, .. } => format!("failed {step} {exit_code:?}"),
            Event::Layer { step, .. } => format!("layer {step}"),
            other => format!("{other:?}"),
        };
        self.note("event", &text)
    }

    fn fail(&self, failure: &Failure) -> Result<(), CourierError> {
        self.note("fail", &failure.reason)
    }
}

/// Notes how it grows.
struct FakeGrowing(Arc<Mutex<Vec<u64>>>);

impl Growing for FakeGrowing {
    fn grown(&mut self, bytes: u64) -> Result<(), CourierError> {
        self.0.lock().unwrap().push(bytes);
        Ok(())
    }

    fn put(self: Box<Self>, _blob: &Descriptor) -> Result<Stored, CourierError> {
        Ok(Stored::Uploaded)
    }
}

/// Sends the sources' names; `missing` is not there.
pub(crate) struct FakeContext;

impl Context for FakeContext {
    fn send(&self, _name: Option<&str>, what: &Selection, out: OwnedFd) -> Result<(), EngineError> {
        std::fs::File::from(out).write_all(what.sources.join(",").as_bytes()).unwrap();
        if what.sources.iter().any(|source| source == "missing") {
            return Err(EngineError {
                kind: EngineErrorKind::User,
                message: "missing is not in the build context".into(),
            });
        }
        Ok(())
    }

    fn digest(&self, name: Option<&str>, what: &Selection) -> Result<String, EngineError> {
        if what.sources.iter().any(|source| source == "missing") {
            let message = "missing is not in the build context".into();
            return Err(EngineError { kind: EngineErrorKind::User, message });
        }
        Ok(format!("{name:?} {}", what.sources.join(",")))
    }
}

/// Stores the tar as it is.
pub(crate) struct FakePack;

impl Pack for FakePack {
    fn pack(&self, tar: &mut PipeReader, out: &mut dyn Write) -> Result<Blob, String> {
        let mut text = String::new();
        tar.read_to_string(&mut text).map_err(|e| e.to_string())?;
        out.write_all(text.as_bytes()).map_err(|e| e.to_string())?;
        Ok(Blob {
            diff_id: id(&text),
            digest: id(&format!("blob {text}")),
            size: text.len() as u64,
            tar_size: text.len() as u64,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip",
        })
    }
}

/// Notes what a person would be told.
#[derive(Default)]
pub(crate) struct FakeLog(pub Vec<String>);

impl Log for FakeLog {
    fn entry(&mut self, entry: Entry<'_>) {
        self.0.push(match entry {
            Entry::Step { number, total, text } => format!("Step {number}/{total} : {text}"),
            Entry::Running { .. } => "running".into(),
            Entry::Output { bytes } => String::from_utf8_lossy(bytes).trim_end().to_owned(),
            Entry::Cached => "cached".into(),
            Entry::NotCached { why } => format!("not cached: {why}"),
            Entry::Note { text } => format!("note: {text}"),
            Entry::Warning { text } => format!("warning: {text}"),
            Entry::Done { id } => format!("---> {}", id.len()),
            Entry::CommandFailed { command, code } => format!("failed {command} {code}"),
            Entry::Tagged { reference } => format!("tagged {reference}"),
            other => format!("{other:?}").split(' ').next().unwrap_or_default().to_owned(),
        });
    }
}

pub(crate) fn registry_failure() -> Failure {
    Failure::new(FailureClass::Registry, reason::REGISTRY_UNAVAILABLE, "registry.example does not answer")
}
