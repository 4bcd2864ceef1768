//! Caches that outlast a build (`RUN --mount=type=cache` on a plain machine): directories beside the workspace, on its file
//! system. One is moved into the workspace for a step and moved back afterwards, so at each moment one build has it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::engine::{EngineError, EngineErrorKind, Stop};
use crate::sandbox::idmap::IdMap;

/// How often a cache that another build has is asked for.
const TICK: Duration = Duration::from_millis(100);

/// A directory of caches.
#[derive(Debug)]
pub struct Caches {
    dir: PathBuf,
    trees: PathBuf,
    /// The locks of those that are in the workspace, by name.
    held: Mutex<BTreeMap<String, File>>,
}

impl Caches {
    /// Caches below `dir`, which is made when absent. Those of other ids are apart: their files have other owners.
    ///
    /// # Errors
    /// Kind `User`: it is on another file system than the workspace, or can't be written.
    pub fn new(dir: &Path, trees: &Path, ids: IdMap) -> Result<Self, EngineError> {
        let fault = |why: String| EngineError {
            kind: EngineErrorKind::User,
            message: format!("the cache directory {} can't be used: {why}", dir.display()),
        };
        let own = dir.join(format!("{}-{}", ids.outer, ids.count));
        // Nobody else on the machine may come near what steps leave there.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&own)
            .map_err(|e| fault(e.to_string()))?;
        let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).map_err(|e| fault(e.to_string()));
        if device(&own)? != device(trees)? {
            return Err(fault(format!(
                "it is on another file system than the working directory {}; name both on one (--work-dir)",
                trees.display()
            )));
        }
        Ok(Self { dir: own, trees: trees.to_owned(), held: Mutex::default() })
    }

    /// Moves the cache `key` into the workspace as the new tree `tree`; `false` when there is none, or another build has it
    /// and `wait` is not set.
    ///
    /// # Errors
    /// Kind `Stopped` when the build is to stop while it waits; `Internal`.
    pub fn take(&self, key: &str, tree: &str, wait: bool, stop: &Stop) -> Result<bool, EngineError> {
        let name = name_of(key);
        let fault = |what: &str, e: std::io::Error| internal(format!("cannot {what} cache {name}: {e}"));
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.dir.join(format!("{name}.lock")))
            .map_err(|e| fault("lock", e))?;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK | Errno::INTR) if stop.is_stopped() => {
                    let message = "the build was told to stop while it waited for a cache".to_owned();
                    return Err(EngineError { kind: EngineErrorKind::Stopped, message });
                }
                Err(Errno::WOULDBLOCK) if !wait => return Ok(false),
                Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(TICK),
                Err(e) => return Err(fault("lock", e.into())),
            }
        }
        let found = match std::fs::rename(self.dir.join(&name), self.trees.join(tree)) {
            Ok(()) => true,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            Err(e) => return Err(fault("take", e)),
        };
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(name, lock);
        Ok(found)
    }

    /// Moves a tree back as the cache `key`; `false`, and the tree stays, where another build has that cache.
    ///
    /// # Errors
    /// Kind `Internal`.
    pub fn keep(&self, key: &str, tree: &str) -> Result<bool, EngineError> {
        let name = name_of(key);
        let lock = self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
        if lock.is_none() {
            return Ok(false);
        }
        match std::fs::rename(self.trees.join(tree), self.dir.join(&name)) {
            Ok(()) => Ok(true),
            // The step never came so far as to make it.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(true),
            Err(e) => Err(internal(format!("cannot keep cache {name}: {e}"))),
        }
    }
}

fn name_of(key: &str) -> String {
    hex::encode(Sha256::digest(key.as_bytes()))
}

fn internal(message: String) -> EngineError {
    EngineError { kind: EngineErrorKind::Internal, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_build_at_a_time_has_a_cache() {
        let dir = tempfile::tempdir().unwrap();
        let trees = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (mine, theirs) = (trees("mine"), trees("theirs"));
        let ids = IdMap { outer: 1, count: 65535 };
        let open = |trees: &Path| Caches::new(&dir.path().join("caches"), trees, ids).unwrap();
        let (one, two) = (open(&mine), open(&theirs));
        let stop = Stop::default();
        assert!(!one.take("a", "k1", false, &stop).unwrap(), "there is none");
        std::fs::create_dir(mine.join("k1")).unwrap();
        std::fs::write(mine.join("k1/f"), "kept").unwrap();
        assert!(!two.take("a", "k1", false, &stop).unwrap(), "somebody has it");
        assert!(!two.keep("a", "k1").unwrap(), "so another one is not kept");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| two.take("a", "k2", true, &stop));
            std::thread::sleep(2 * TICK);
            assert!(!waiting.is_finished());
            assert!(one.keep("a", "k1").unwrap());
            assert!(waiting.join().unwrap().unwrap());
        });
        assert_eq!(std::fs::read_to_string(theirs.join("k2/f")).unwrap(), "kept");
        assert!(!one.take("b", "k1", false, &stop).unwrap());
        assert!(one.keep("b", "k1").unwrap(), "also when the step made nothing");
        stop.stop("Cancelled");
        assert_eq!(one.take("a", "k3", true, &stop).unwrap_err().kind, EngineErrorKind::Stopped);
    }

    #[test]
    fn another_file_system_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ids = IdMap { outer: 1, count: 65535 };
        let error = Caches::new(dir.path(), Path::new("/proc"), ids).unwrap_err();
        assert!(error.message.contains("on another file system"), "{error}");
    }
}
