//! What caches of steps (`RUN --mount=type=cache`) hold, from one build to the next where no directory outlasts them: it is
//! taken from the registry when a step first wants the cache, and put there when the image is ready. It is an entry like a
//! step's, with a tar of all files instead of a layer. Nothing that goes wrong here ends a build.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, PipeReader, Write};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kiln_contract::cache::CacheEntry;
use kiln_contract::request::Compression;
use kiln_contract::{Descriptor, Failure, FailureClass, reason};
use sha2::{Digest as _, Sha256};

use crate::engine::{CACHE_MOUNT, Diff};
use crate::layer::{Blob, LayerError, compress};
use crate::plan::Cache;
use crate::solve::Clock;
use crate::solve::bases::{Wanted, fetch};
use crate::solve::failure::{Halt, internal, of_engine};
use crate::solve::log::{Entry, Log};
use crate::solve::publish::{Publisher, descriptor, wide_pipe};
use crate::solve::shared::Shared;

/// Bytes of what one cache holds at most, compressed: a package manager's cache of a large project has some hundred MiB, and
/// a build waits for all of it.
const MAX_SIZE: u64 = 2 << 30;
/// How long saving may take, of all caches of a build: the pod is there all the while.
const MAX_TIME: Duration = Duration::from_secs(300);
/// How much lower the priority is than a step's (`nice`): the least that there is.
const NICE: i32 = 19;

/// The caches of a build, as the registry has them.
#[derive(Debug)]
pub(in crate::solve) struct Mounts {
    platform: String,
    /// Diff IDs of what was taken.
    taken: Mutex<BTreeMap<Cache, String>>,
    /// The registry does not answer, or does not let us in: it is not asked any more.
    out: AtomicBool,
}

/// What the registry has of a cache.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::solve) enum Saved {
    /// Nothing.
    Nothing,
    /// It is in the tree now; bytes of it, compressed.
    Taken(u64),
    /// Something that is of no use, and why; the tree is not there.
    Unusable(String),
}

/// A cache that may be saved: what its steps have left is in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::solve) struct Left {
    pub cache: Cache,
    pub tree: String,
}

/// What became of one.
enum Outcome {
    /// Nothing to save: it is as it was taken, or empty.
    Unchanged,
    Saved(u64),
    TooLarge,
    /// Another build's is there, or the registry keeps the one it had.
    Others,
}

impl Mounts {
    /// For an image of this platform: what is in such a cache is often made for one.
    pub fn new(platform: String) -> Self {
        Self { platform, taken: Mutex::default(), out: AtomicBool::new(false) }
    }

    /// What names an entry; another format gets another number.
    fn key(&self, cache: &Cache) -> String {
        let mut sum = Sha256::new();
        for field in ["kiln cache mount 1", &self.platform, &cache.key()] {
            sum.update((field.len() as u64).to_be_bytes());
            sum.update(field.as_bytes());
        }
        hex::encode(sum.finalize())
    }

    /// Makes what an earlier build has left in a cache the new tree `tree`.
    ///
    /// # Errors
    /// The build is to stop, or what is of no use can't be removed.
    pub fn restore(&self, shared: &Shared<'_>, cache: &Cache, tree: &str) -> Result<Saved, Halt> {
        if self.out.load(Ordering::Relaxed) {
            return Ok(Saved::Nothing);
        }
        let failure = match self.read(shared, cache, tree) {
            Ok(Some(entry)) => {
                self.taken
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(cache.clone(), entry.diff_id);
                return Ok(Saved::Taken(entry.layer.size));
            }
            Ok(None) => return Ok(Saved::Nothing),
            Err(Halt::Stopped) => return Err(Halt::Stopped),
            Err(Halt::Failed(failure)) => failure,
        };
        shared.check()?;
        // A part of it may be there.
        shared.engine.remove(&[tree.to_owned()]).map_err(|e| of_engine(&e, None))?;
        if super::is_out(&failure) {
            self.out.store(true, Ordering::Relaxed);
        }
        Ok(Saved::Unusable(failure.message))
    }

    fn read(&self, shared: &Shared<'_>, cache: &Cache, tree: &str) -> Result<Option<CacheEntry>, Halt> {
        let Some(found) = shared.courier.cache_get(&self.key(cache))? else { return Ok(None) };
        let (image, entry) = (found.image, found.entry);
        let Descriptor { media_type, size, .. } = &entry.layer;
        let problem = entry.objection().or_else(|| match media_type == CACHE_MOUNT {
            true if *size > MAX_SIZE => {
                Some(format!("{size} bytes, and at most {MAX_SIZE} are taken from a registry"))
            }
            true => None,
            false => Some(format!("media type {media_type:?}, expected {CACHE_MOUNT}")),
        });
        if let Some(problem) = problem {
            let message = format!("the cache entry {image}: {problem}");
            return Err(Failure::new(FailureClass::User, reason::BASE_IMAGE_INVALID, message).into());
        }
        let named = format!("the cache entry {image}");
        let wanted = Wanted { image: &image, named: &named, blob: &entry.layer, diff_id: &entry.diff_id };
        fetch(shared, &wanted, |blob| shared.engine.unpack(tree, CACHE_MOUNT, blob, None))?;
        Ok(Some(entry))
    }

    /// Saves those that are not as they were taken. The image is ready: nobody waits, and the thread that calls gets the
    /// lowest priority for good.
    pub fn save_all(
        &self,
        left: &[Left],
        publisher: &Publisher<'_>,
        shared: &Shared<'_>,
        clock: Clock<'_>,
        log: &mut dyn Log,
    ) {
        if left.is_empty() || self.out.load(Ordering::Relaxed) {
            return;
        }
        // Where the system refuses, it is merely less polite.
        let _ = rustix::process::setpriority_process(None, NICE);
        let names: Vec<_> = left.iter().map(|left| left.cache.name()).collect();
        let names = names.join(", ");
        log.entry(Entry::Note { text: &format!("The image is ready. Cache mounts are looked at: {names}") });
        let late = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (done, waiting) = channel::<()>();
            let late = &late;
            // Without a thread there is no limit but the build's own.
            let _ = std::thread::Builder::new().name("save-limit".into()).spawn_scoped(scope, move || {
                if waiting.recv_timeout(MAX_TIME) == Err(RecvTimeoutError::Timeout) {
                    late.store(true, Ordering::Relaxed);
                    shared.stop.stop(reason::TIMED_OUT);
                }
            });
            for left in left {
                let id = left.cache.name();
                let why = match self.save(left, publisher, shared, clock) {
                    Ok(Outcome::Unchanged) => continue,
                    Ok(Outcome::Saved(size)) => {
                        let text = format!("Cache mount {id}: {} saved", amount(size));
                        log.entry(Entry::Note { text: &text });
                        continue;
                    }
                    Ok(Outcome::TooLarge) => {
                        format!("it has more than the {} that are saved, compressed", amount(MAX_SIZE))
                    }
                    Ok(Outcome::Others) => {
                        "another build has saved one, or the registry does not let a tag move".to_owned()
                    }
                    Err(Halt::Stopped) if late.load(Ordering::Relaxed) => {
                        format!("saving took longer than {} s, the most that it may take", MAX_TIME.as_secs())
                    }
                    Err(Halt::Stopped) => "the builder was told to stop".to_owned(),
                    Err(Halt::Failed(failure)) => {
                        if super::is_out(&failure) {
                            self.out.store(true, Ordering::Relaxed);
                        }
                        failure.message
                    }
                };
                log.entry(Entry::Warning { text: &format!("the cache mount {id} was not saved: {why}") });
                // What comes after would meet the same.
                if self.out.load(Ordering::Relaxed) || shared.check().is_err() {
                    break;
                }
            }
            drop(done);
        });
    }

    fn save(
        &self,
        left: &Left,
        publisher: &Publisher<'_>,
        shared: &Shared<'_>,
        clock: Clock<'_>,
    ) -> Result<Outcome, Halt> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner).get(&left.cache).cloned();
        if let Some(taken) = &taken {
            let mut nowhere = Limited { out: io::sink(), left: u64::MAX, shared };
            let (blob, _) =
                pack(shared, &left.tree, |tar| compress(tar, &mut nowhere, Compression::Uncompressed, 1))?;
            if blob.diff_id == *taken {
                return Ok(Outcome::Unchanged);
            }
        }
        let file: File = publisher.new_file()?;
        let mut out = Limited { out: &file, left: MAX_SIZE, shared };
        // One thread beside this one: nobody waits.
        let packed = pack(shared, &left.tree, |tar| compress(tar, &mut out, Compression::Zstd, 1));
        let (full, stopped) = (out.left == 0, shared.check());
        let (blob, found) = match packed {
            Err(_) if full => return Ok(Outcome::TooLarge),
            Err(Halt::Failed(_)) if stopped.is_err() => return Err(Halt::Stopped),
            packed => packed?,
        };
        // The root alone.
        if taken.is_none() && found.entries <= 1 {
            return Ok(Outcome::Unchanged);
        }
        let layer = Descriptor { media_type: CACHE_MOUNT.to_owned(), ..descriptor(&blob) };
        let entry = CacheEntry { layer, diff_id: blob.diff_id, created: clock() };
        let key = self.key(&left.cache);
        shared.courier.cache_put(&key, &entry, Some(file.as_fd()))?;
        let there = shared.courier.cache_get(&key)?;
        let ours = there.is_some_and(|there| there.entry.layer.digest == entry.layer.digest);
        Ok(if ours { Outcome::Saved(entry.layer.size) } else { Outcome::Others })
    }
}

/// Has a tree written as a tar, and `take` read it.
fn pack(
    shared: &Shared<'_>,
    tree: &str,
    take: impl FnOnce(&mut PipeReader) -> Result<Blob, LayerError>,
) -> Result<(Blob, Diff), Halt> {
    let (mut read, write) = wide_pipe()?;
    let (written, blob) = std::thread::scope(|scope| {
        let writing = scope.spawn(|| shared.engine.archive(tree, write.into()));
        let blob = take(&mut read);
        // A writer that nobody reads any more must not wait for ever.
        drop(read);
        (writing.join(), blob)
    });
    let written = written.map_err(|_| internal("a thread that wrote a cache mount panicked"))?;
    match (written, blob) {
        (_, Err(problem)) => Err(internal(problem.to_string()).into()),
        (Err(error), Ok(_)) => Err(of_engine(&error, None)),
        (Ok(written), Ok(blob)) => Ok((blob, written)),
    }
}

/// Takes so many bytes and no more, and none when the builder is to stop.
struct Limited<'a, W> {
    out: W,
    /// 0 also when more was to come.
    left: u64,
    shared: &'a Shared<'a>,
}

impl<W: Write> Write for Limited<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.shared.check().is_err() {
            return Err(io::Error::other("the builder was told to stop"));
        }
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        if bytes.len() >= left {
            self.left = 0;
            return Err(io::Error::other("more than may be saved"));
        }
        let written = self.out.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Bytes for people.
pub(in crate::solve) fn amount(bytes: u64) -> String {
    match bytes {
        0..0x2800 => format!("{bytes} bytes"),
        0x2800..0xa0_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Stop;
    use crate::solve::fakes::{FakeCourier, FakeEngine};

    #[test]
    fn no_more_is_taken_than_may_be_and_nothing_when_the_builder_is_to_stop() {
        let (engine, courier, stop) = (FakeEngine::default(), FakeCourier::default(), Stop::default());
        let shared = Shared::new(&engine, &courier, &stop);
        let mut out = Limited { out: Vec::new(), left: 5, shared: &shared };
        assert_eq!(out.write(b"abcd").unwrap(), 4);
        assert_eq!((out.out.as_slice(), out.left), (b"abcd".as_slice(), 1));
        out.write(b"e").unwrap_err();
        assert_eq!((out.out.len(), out.left), (4, 0), "the limit was met, and nothing is written beyond it");
        let mut out = Limited { out: Vec::new(), left: 5, shared: &shared };
        stop.stop(reason::CANCELLED);
        out.write(b"a").unwrap_err();
        assert_eq!(out.left, 5);
    }

    #[test]
    fn what_names_a_cache_keeps_caches_apart() {
        let mounts = |platform: &str| Mounts::new(platform.to_owned());
        let cache = |id: &str, root| Cache { id: id.to_owned(), from: None, root };
        let amd64 = mounts("linux/amd64");
        let keys = [
            amd64.key(&cache("/c", None)),
            amd64.key(&cache("/d", None)),
            amd64.key(&cache("/c", Some((0o755, 0, 0)))),
            amd64.key(&cache("/c", Some((0o755, 7, 0)))),
            amd64.key(&cache("755 0:0 /c", None)),
            mounts("linux/arm64").key(&cache("/c", None)),
        ];
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        // What builds have saved is lost when this changes.
        assert_eq!(keys[0], "8ccc9e14ffd842af7e04c45f93440408329d2c4d155f61cb3b4c06cb4bcbfc1f");
    }

    #[test]
    fn amounts_are_for_people() {
        assert_eq!(amount(10_239), "10239 bytes");
        assert_eq!(amount(10_240), "10 KiB");
        assert_eq!(amount(MAX_SIZE), "2048 MiB");
    }
}
