//! Caches that outlast a build (`RUN --mount=type=cache`): a directory each, in a directory of theirs, with a lock, so that
//! at each moment one build has it.
//!
//! On a plain machine nobody but the builder may come near them, also no step by a path of the machine. So one is moved into
//! the workspace for a step and moved back afterwards, which takes one file system and rights over the steps' files. In a pod
//! the builder has no such rights and the directory is a volume; nobody else is in the pod, so one stays where it is, and a
//! link in the workspace leads there.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink,
};
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
    in_place: bool,
    /// The locks of those that are in the workspace, by name.
    held: Mutex<BTreeMap<String, File>>,
}

impl Caches {
    /// Caches below `dir`, which is made when absent. Those of other ids are apart: their files have other owners.
    ///
    /// # Errors
    /// Kind `User`: it can't be written, or is on another file system than the workspace and not to be used in place.
    pub fn new(dir: &Path, trees: &Path, ids: IdMap, in_place: bool) -> Result<Self, EngineError> {
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
        if in_place {
            let own = open_to_steps(dir, &own).map_err(|e| fault(e.to_string()))?;
            return Ok(Self { dir: own, trees: trees.to_owned(), in_place, held: Mutex::default() });
        }
        let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).map_err(|e| fault(e.to_string()));
        if device(&own)? != device(trees)? {
            return Err(fault(format!(
                "it is on another file system than the working directory {}; name both on one (--work-dir)",
                trees.display()
            )));
        }
        Ok(Self { dir: own, trees: trees.to_owned(), in_place, held: Mutex::default() })
    }

    /// Makes the cache `key` the new tree `tree`; `false` when there is none, or another build has it and `wait` is not set.
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
            .custom_flags(libc::O_NOFOLLOW)
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
        let (place, tree) = (self.dir.join(&name), self.trees.join(tree));
        // Where there is none yet, it is made through the link.
        let moved = match self.in_place {
            true => symlink(&place, tree).and_then(|()| place.symlink_metadata().map(drop)),
            false => std::fs::rename(place, tree),
        };
        let found = match moved {
            Ok(()) => true,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            Err(e) => return Err(fault("take", e)),
        };
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(name, lock);
        Ok(found)
    }

    /// Makes a tree the cache `key` again; `false`, and the tree stays, where another build has that cache.
    ///
    /// # Errors
    /// Kind `Internal`.
    pub fn keep(&self, key: &str, tree: &str) -> Result<bool, EngineError> {
        let name = name_of(key);
        let lock = self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
        if lock.is_none() {
            return Ok(false);
        }
        let tree = self.trees.join(tree);
        let moved = match self.in_place {
            true => std::fs::remove_file(tree),
            false => std::fs::rename(tree, self.dir.join(&name)),
        };
        match moved {
            Ok(()) => Ok(true),
            // The step never came so far as to make it.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(true),
            Err(e) => Err(internal(format!("cannot keep cache {name}: {e}"))),
        }
    }
}

/// Lets the helper, another user to the kernel, make caches in `own`; gives its path without links, as whoever has the volume,
/// too, may have put one there.
fn open_to_steps(dir: &Path, own: &Path) -> std::io::Result<PathBuf> {
    let open =
        |path: &Path, flags| File::options().read(true).custom_flags(libc::O_DIRECTORY | flags).open(path);
    open(own, libc::O_NOFOLLOW)?.set_permissions(std::fs::Permissions::from_mode(0o777))?;
    // A volume's root may be closed to all but its owner.
    let root = open(dir, 0)?;
    let mode = root.metadata()?.mode();
    if mode & 0o001 == 0 {
        root.set_permissions(std::fs::Permissions::from_mode(mode & 0o7777 | 0o001))?;
    }
    Ok(dir.canonicalize()?.join(own.file_name().unwrap_or_default()))
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
        let open = |trees: &Path| Caches::new(&dir.path().join("caches"), trees, ids, false).unwrap();
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
    fn in_place_a_link_leads_to_a_cache() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, theirs) = (dir.path().join("mine"), dir.path().join("theirs"));
        std::fs::create_dir(&mine).unwrap();
        std::fs::create_dir(&theirs).unwrap();
        let ids = IdMap { outer: 1, count: 65535 };
        let open = |trees: &Path| Caches::new(&dir.path().join("caches"), trees, ids, true).unwrap();
        let (one, two) = (open(&mine), open(&theirs));
        let stop = Stop::default();
        assert!(!one.take("a", "k1", false, &stop).unwrap(), "there is none");
        // As the helper does.
        std::fs::create_dir(std::fs::read_link(mine.join("k1")).unwrap()).unwrap();
        std::fs::write(mine.join("k1/f"), "kept").unwrap();
        assert!(!two.take("a", "k1", false, &stop).unwrap(), "somebody has it");
        assert!(theirs.join("k1").symlink_metadata().is_err(), "and no link leads there");
        assert!(!two.keep("a", "k1").unwrap());
        assert!(one.keep("a", "k1").unwrap());
        assert!(mine.join("k1").symlink_metadata().is_err());
        assert!(two.take("a", "k7", false, &stop).unwrap());
        assert_eq!(std::fs::read_to_string(theirs.join("k7/f")).unwrap(), "kept");
        assert!(two.keep("a", "k7").unwrap());
        // A step that was killed with its builder leaves what it has written.
        assert!(one.take("a", "k2", false, &stop).unwrap());
        drop(one);
        assert!(two.take("a", "k8", false, &stop).unwrap());
    }

    #[test]
    fn another_file_system_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ids = IdMap { outer: 1, count: 65535 };
        let error = Caches::new(dir.path(), Path::new("/proc"), ids, false).unwrap_err();
        assert!(error.message.contains("on another file system"), "{error}");
        let error = Caches::new(Path::new("/proc/self"), dir.path(), ids, true).unwrap_err();
        assert!(error.message.contains("/proc/self can't be used"), "{error}");
    }
}
