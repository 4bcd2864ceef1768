//! Overlays of trees, mounted in the helper's own mount namespace.
//!
//! A view is mounted, opened and unmounted again at once: the open descriptor keeps it alive, and closing it is all the
//! cleaning up there is. The working directory is the trees directory, so that names stay short.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::engine::{EngineError, EngineErrorKind, Owner, View};
use crate::sandbox::fault::{At as _, Fault, Stage};
use crate::sandbox::root::{self, top_first};
use crate::sandbox::{EMPTY_TREE, MOUNT_POINT, facts, mounts, probe};

/// Longest name of a tree; short names are what lets 127 layers fit in one page of mount options.
const MAX_NAME: usize = 32;

/// One mount point for all, so one at a time between mounting and opening.
static MOUNTING: Mutex<()> = Mutex::new(());

/// Name of the work directory of an upper tree.
pub fn work_of(upper: &str) -> String {
    format!("w-{upper}")
}

/// Refuses a name that is no plain word: names become mount options and paths.
///
/// # Errors
/// Kind `Internal`.
pub fn check<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<(), EngineError> {
    for name in names {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) || is_ours(name) {
            return Err(EngineError {
                kind: EngineErrorKind::Internal,
                message: format!("{name:?} is no name for a tree"),
            });
        }
    }
    Ok(())
}

/// What the engine itself keeps in the trees directory.
pub fn is_ours(name: &str) -> bool {
    name == MOUNT_POINT || name == EMPTY_TREE
}

/// Makes the upper tree, with its top lower's attributes, and a fresh work directory (one that a volatile overlay has used
/// can't be used again).
///
/// # Errors
/// Kind `Space` or `Internal`.
pub fn prepare(trees: &OwnedFd, view: &View) -> Result<(), EngineError> {
    check(view.lowers.iter().chain([&view.upper]))?;
    match rustix::fs::mkdir(&view.upper, Mode::from_raw_mode(0o755)) {
        Ok(()) => like_lower(view)
            .at(Stage::Overlay, || format!("cannot set the attributes of tree {}", view.upper)),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).at(Stage::Overlay, || format!("cannot make tree {}", view.upper)),
    }
    .map_err(|fault| explain(&fault))?;
    let work = work_of(&view.upper);
    if Path::new(&work).exists() {
        use std::os::fd::AsFd as _;
        crate::tree::remove(trees.as_fd(), &work)?;
    }
    rustix::fs::mkdir(&work, Mode::from_raw_mode(0o700))
        .at(Stage::Overlay, || format!("cannot make the work directory {work}"))
        .map_err(|fault| explain(&fault))
}

/// Makes an empty tree, unless it is there; where a link has its name, at the place that this leads to.
///
/// # Errors
/// Kind `User` for an owner that steps can't have, else `Space` or `Internal`.
pub fn make(tree: &str, mode: u32, owner: Owner) -> Result<(), EngineError> {
    check([&tree.to_owned()])?;
    // A cache that is used in place: the builder has made the link.
    let place = rustix::fs::readlinkat(CWD, tree, Vec::new());
    let place = place.map_or_else(|_| tree.as_bytes().to_vec(), std::ffi::CString::into_bytes);
    let place = place.as_slice();
    // Nobody sees it before it is complete, so that one that is there is a whole one.
    match rustix::fs::mkdir(place, Mode::from_raw_mode(0o700)) {
        Err(Errno::EXIST) => return Ok(()),
        result => result.at(Stage::Overlay, || format!("cannot make tree {tree}")),
    }
    .map_err(|fault| explain(&fault))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let set = rustix::fs::openat(CWD, place, flags, Mode::empty()).and_then(|made| {
        rustix::fs::fchown(&made, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
        rustix::fs::fchmod(&made, Mode::from_raw_mode(mode & 0o7777))
    });
    match set {
        Ok(()) => Ok(()),
        Err(errno) => {
            let _ = rustix::fs::unlinkat(CWD, place, AtFlags::REMOVEDIR);
            let message =
                format!("cannot give a directory to user {} and group {}: {errno}", owner.uid, owner.gid);
            let kind = if errno == Errno::INVAL { EngineErrorKind::User } else { EngineErrorKind::Internal };
            Err(EngineError { kind, message })
        }
    }
}

/// The root directory of an overlay has the upper's attributes, so a fresh upper gets those of the layer below.
fn like_lower(view: &View) -> rustix::io::Result<()> {
    let Some(lower) = view.lowers.last() else { return Ok(()) };
    let stat = rustix::fs::stat(lower)?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(CWD, &view.upper, Some(uid), Some(gid), AtFlags::empty())?;
    rustix::fs::chmodat(CWD, &view.upper, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())
}

/// Opens a view for changes.
///
/// # Errors
/// Kind `Space`, `Isolation` or `Internal`.
pub fn writable(trees: &OwnedFd, view: &View) -> Result<OwnedFd, EngineError> {
    prepare(trees, view)?;
    let trees = root::writable(&view.lowers, &view.upper, &work_of(&view.upper));
    overlay(&format!("{trees},userxattr,volatile"))
}

/// Opens a view for a COPY. With `link` it is the upper tree alone, as the directory that it is: what is below need not
/// be there, and no mark of an overlay (every new directory in one is opaque) hides it later.
///
/// # Errors
/// As [`writable`].
pub fn for_copy(trees: &OwnedFd, view: &View, link: bool) -> Result<OwnedFd, EngineError> {
    if !link {
        return writable(trees, view);
    }
    make(&view.upper, 0o755, Owner::default())?;
    directory(&view.upper)
}

/// Opens what several trees look like together. An overlay also for a single one: it hides whiteouts.
///
/// # Errors
/// Kind `Isolation` or `Internal`.
pub fn readable(lowers: &[String]) -> Result<OwnedFd, EngineError> {
    check(lowers)?;
    if lowers.is_empty() {
        return directory(EMPTY_TREE);
    }
    overlay(&format!("lowerdir={}:{EMPTY_TREE},userxattr", top_first(lowers)))
}

/// Opens a tree itself.
///
/// # Errors
/// Kind `Internal`.
pub fn directory(tree: &str) -> Result<OwnedFd, EngineError> {
    open(tree).map_err(|fault| explain(&fault))
}

fn open(path: &str) -> Result<OwnedFd, Fault> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .at(Stage::Overlay, || format!("cannot open tree {path}"))
}

fn overlay(options: &str) -> Result<OwnedFd, EngineError> {
    let _one = MOUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    mounts::mount(Stage::Overlay, "overlay", MOUNT_POINT, MountFlags::NODEV | MountFlags::NOSUID, options)
        .and_then(|()| {
            let opened = open(MOUNT_POINT);
            rustix::mount::unmount(MOUNT_POINT, UnmountFlags::DETACH)
                .at(Stage::Overlay, || "cannot unmount an overlay".to_owned())?;
            opened
        })
        .map_err(|fault| explain(&fault))
}

fn explain(fault: &Fault) -> EngineError {
    probe::explain(fault, &facts::gather(Path::new(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_words_name_trees() {
        for good in ["b0", "s12", "probe-l"] {
            assert!(check([&good.to_owned()]).is_ok(), "{good}");
        }
        for bad in ["", "..", "a/b", "a:b", "a,b", "a b", "mnt", "empty", &"x".repeat(33)] {
            assert!(check([&bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
