//! Directory handles: a path in a tree is looked up by the kernel inside that tree, one component never through a link
//! that nobody meant to follow.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::TreeError;
use crate::engine::Owner;

/// Deepest directory that the walkers enter: they hold two descriptors a level, and 1024 is the usual limit of a process.
pub(super) const MAX_DEPTH: usize = 400;
/// Longest path: `PATH_MAX`, beyond which no other program could open it.
pub(super) const MAX_PATH: usize = 4096;
/// Most entries of one layer, context or step: each costs an inode, and the largest images known have under a million.
pub(super) const MAX_ENTRIES: u64 = 4_000_000;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Attributes that files have in a layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Meta {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub owner: Owner,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// `security.capability`, revision 2.
    pub capability: Option<Vec<u8>>,
}

impl Meta {
    /// What `stat` says; no capability.
    #[expect(clippy::unnecessary_cast, reason = "the C types differ between architectures")]
    pub fn of(stat: &Stat) -> Self {
        Self {
            mode: stat.st_mode & 0o7777,
            owner: Owner { uid: stat.st_uid, gid: stat.st_gid },
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
            capability: None,
        }
    }
}

/// The kind of a file.
pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether it is overlayfs's whiteout: a character device 0/0.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// `prefix/name`, or `name` where there is no prefix.
pub(super) fn join(prefix: &[u8], name: &[u8]) -> Vec<u8> {
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// The directory part and the last component of a clean relative path.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// The path as it reads from the root of a tree: no empty, `.` or `..` components, no leading slash. `..` stops at the
/// root, as Go's `filepath.Clean("/" + path)`.
pub(super) fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// Repeats what the kernel asks to repeat: openat2 gives EAGAIN when any rename or mount on the machine ran beside it.
fn again<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            done => return done,
        }
    }
}

/// Opens `path` below `root`; links in it are resolved with `root` as `/`.
pub(super) fn open_in(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    again(|| rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve))
}

/// Opens the directory `path` (clean) below `root`, through no link at all.
pub(super) fn open_plain(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    again(|| rustix::fs::openat2(root, path, DIRECTORY, Mode::empty(), resolve))
}

/// Opens the directory `name` of `dir`; empty: `dir` itself, for reading.
pub(super) fn open_dir(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let name: &[u8] = if name.is_empty() { b"." } else { name };
    rustix::fs::openat(dir, name, DIRECTORY, Mode::empty())
}

/// Opens the regular file `name` of `dir` for reading. The caller has looked that it is one; NONBLOCK all the same, so
/// that nothing can make this wait.
pub(super) fn open_file(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat(dir, name, flags, Mode::empty()).map(File::from)
}

/// Makes the regular file `name` in `dir`; nothing may be there.
pub(super) fn create_file(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600)).map(File::from)
}

/// What `name` in `dir` is, links not followed; empty: `dir` itself. `None` when there is nothing.
pub(super) fn look(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<Option<Stat>> {
    if name.is_empty() {
        return rustix::fs::fstat(dir).map(Some);
    }
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The names in a directory, sorted by their bytes.
pub(super) fn list(dir: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<Vec<u8>>, TreeError> {
    let failed = |e: Errno| TreeError::io("listing", path, e);
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
        if names.len() as u64 > MAX_ENTRIES {
            let path = String::from_utf8_lossy(path);
            return Err(TreeError::user(format!(
                "directory {path:?} has more than {MAX_ENTRIES} entries, the most that one may have"
            )));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A symbolic link's target.
pub(super) fn read_link(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<Vec<u8>> {
    rustix::fs::readlinkat(dir, name, Vec::new()).map(std::ffi::CString::into_bytes)
}

/// An extended attribute of an open file; `None` when it has none, or the file system knows none.
pub(super) fn attribute(file: impl AsFd, name: &str) -> rustix::io::Result<Option<Vec<u8>>> {
    // 256 bytes: the attributes that we read are a letter or a capability set (24 bytes).
    let mut value = [0u8; 256];
    match rustix::fs::fgetxattr(file, name, &mut value) {
        Ok(size) => Ok(Some(value[..size].to_vec())),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `security.capability` of an open file, as revision 2. Revision 3 has 4 bytes more, the root of the user namespace that
/// it counts in; a layer has no use for it (linux/capability.h).
pub(super) fn capability(file: impl AsFd) -> rustix::io::Result<Option<Vec<u8>>> {
    let value = match attribute(file, "security.capability") {
        // Another namespace's: it means nothing here.
        Err(Errno::OVERFLOW) => None,
        value => value?,
    };
    Ok(value.map(|mut value| {
        if value.len() == 24 && value[3] == 3 {
            value.truncate(20);
            value[3] = 2;
        }
        value
    }))
}

/// Access and modification time for the calls that set them.
pub(super) fn times(mtime: (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Gives an open file or directory its owner, capability, mode and times, in the order in which none undoes another.
pub(super) fn dress(file: impl AsFd, meta: &Meta) -> rustix::io::Result<()> {
    let file = file.as_fd();
    let Owner { uid, gid } = meta.owner;
    rustix::fs::fchown(file, Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)))?;
    if let Some(value) = &meta.capability {
        let flags = rustix::fs::XattrFlags::empty();
        match rustix::fs::fsetxattr(file, "security.capability", value, flags) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(meta.mode))?;
    rustix::fs::futimens(file, &times(meta.mtime))
}

/// The same for what can't be opened: a link (which has no mode) or a FIFO that was just made.
pub(super) fn dress_at(dir: impl AsFd, name: &[u8], meta: &Meta, link: bool) -> rustix::io::Result<()> {
    let (dir, nofollow) = (dir.as_fd(), AtFlags::SYMLINK_NOFOLLOW);
    let uid = rustix::fs::Uid::from_raw(meta.owner.uid);
    let gid = rustix::fs::Gid::from_raw(meta.owner.gid);
    rustix::fs::chownat(dir, name, Some(uid), Some(gid), nofollow)?;
    if !link {
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())?;
    }
    rustix::fs::utimensat(dir, name, &times(meta.mtime), nofollow)
}
