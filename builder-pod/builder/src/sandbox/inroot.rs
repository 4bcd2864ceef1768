//! Finds and makes mount points inside an image without ever leaving it.
//!
//! Images may hold symbolic links anywhere, also where `/dev`, `/proc` or `/etc/resolv.conf` should be. The walk opens one
//! name at a time, never follows a link in the kernel, and resolves links itself as a process with this root would: an
//! absolute link starts at the image's root, and `..` does not go above it.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::fault::{At as _, Fault, Stage};

/// As many links as the kernel follows in one path.
const MAX_LINKS: usize = 40;

/// What a mount point has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To mount a file system or bind a directory on.
    Directory,
    /// To bind a file on.
    File,
}

/// A place in the image, held by descriptors.
#[derive(Debug)]
pub struct Place {
    /// The directory that holds it.
    pub parent: OwnedFd,
    /// Its name there.
    pub name: OsString,
    /// It itself (`O_PATH`), as it was before anything was mounted on it.
    pub target: OwnedFd,
}

/// Finds `path` in the image at `root`, making what is missing (directories 0755, files 0644), and notes what was made in
/// `stubs`, parents first, as paths relative to the root.
///
/// # Errors
/// [`Stage::MountPoint`]: something of another kind is in the way.
pub fn ensure(root: impl AsFd, path: &str, kind: Kind, stubs: &mut Vec<String>) -> Result<Place, Fault> {
    walk(root, path, kind, stubs)
        .at(Stage::MountPoint, || format!("cannot use /{path} of the image as a mount point"))
}

fn walk(root: impl AsFd, path: &str, kind: Kind, stubs: &mut Vec<String>) -> rustix::io::Result<Place> {
    let mut links = 0;
    let mut ahead: VecDeque<OsString> = split(path.as_bytes()).collect();
    // Where we are: each directory below the root with its name.
    let mut below: Vec<(OsString, OwnedFd)> = Vec::new();
    let root = rustix::io::fcntl_dupfd_cloexec(root, 3)?;
    while let Some(name) = ahead.pop_front() {
        if name == OsStr::new("..") {
            below.pop();
            continue;
        }
        let here = below.last().map_or(root.as_fd(), |(_, directory)| directory.as_fd());
        let last = ahead.is_empty();
        let found = match rustix::fs::openat(
            here,
            &name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Ok(found) => found,
            Err(Errno::NOENT) => {
                if last && kind == Kind::File {
                    let flags =
                        OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    drop(rustix::fs::openat(here, &name, flags, Mode::from_raw_mode(0o644))?);
                } else {
                    rustix::fs::mkdirat(here, &name, Mode::from_raw_mode(0o755))?;
                }
                stubs.push(relative(&below, &name));
                rustix::fs::openat(
                    here,
                    &name,
                    OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )?
            }
            Err(error) => return Err(error),
        };
        let stat = rustix::fs::statat(&found, c"", AtFlags::EMPTY_PATH)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = rustix::fs::readlinkat(&found, c"", Vec::new())?.into_bytes();
                if target.first() == Some(&b'/') {
                    below.clear();
                }
                for part in split(&target).collect::<Vec<_>>().into_iter().rev() {
                    ahead.push_front(part);
                }
            }
            FileType::Directory if last && kind == Kind::Directory => {
                return Ok(Place { parent: rustix::io::fcntl_dupfd_cloexec(here, 3)?, name, target: found });
            }
            FileType::Directory => below.push((name, found)),
            _ if last && kind == Kind::File => {
                return Ok(Place { parent: rustix::io::fcntl_dupfd_cloexec(here, 3)?, name, target: found });
            }
            _ => return Err(Errno::NOTDIR),
        }
    }
    // The path led to the root, or to a directory where a file is wanted.
    Err(if kind == Kind::File { Errno::ISDIR } else { Errno::BUSY })
}

fn split(path: &[u8]) -> impl Iterator<Item = OsString> + '_ {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(|part| OsString::from_vec(part.to_vec()))
}

fn relative(below: &[(OsString, OwnedFd)], name: &OsStr) -> String {
    let parts = below.iter().map(|(name, _)| name.as_os_str()).chain([name]);
    parts.map(OsStr::to_string_lossy).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn found(root: &std::path::Path, path: &str, kind: Kind) -> Result<(String, Vec<String>), i32> {
        let mut stubs = Vec::new();
        let directory = fs::File::open(root).unwrap();
        let place = ensure(&directory, path, kind, &mut stubs).map_err(|fault| fault.errno.unwrap())?;
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&place.target));
        let full = fs::read_link(link).unwrap();
        assert_eq!(full.file_name(), Some(place.name.as_os_str()));
        Ok((full.strip_prefix(root.canonicalize().unwrap()).unwrap().display().to_string(), stubs))
    }

    #[test]
    fn missing_places_are_made_and_noted() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(
            found(root, "etc/resolv.conf", Kind::File),
            Ok(("etc/resolv.conf".into(), vec!["etc".into(), "etc/resolv.conf".into()]))
        );
        assert_eq!(found(root, "etc/resolv.conf", Kind::File), Ok(("etc/resolv.conf".into(), vec![])));
        assert_eq!(found(root, "proc", Kind::Directory), Ok(("proc".into(), vec!["proc".into()])));
        assert_eq!(found(root, "etc", Kind::File), Err(libc::EISDIR));
    }

    #[test]
    fn links_stay_inside_the_image() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        fs::create_dir(root.join("etc")).unwrap();
        symlink("../../../../../run/stub.conf", root.join("etc/resolv.conf")).unwrap();
        assert_eq!(
            found(root, "etc/resolv.conf", Kind::File),
            Ok(("run/stub.conf".into(), vec!["run".into(), "run/stub.conf".into()]))
        );
        symlink("/tmp", root.join("dev")).unwrap();
        assert_eq!(found(root, "dev", Kind::Directory), Ok(("tmp".into(), vec!["tmp".into()])));
        symlink("/proc/self/root/etc", root.join("sys")).unwrap();
        let (place, stubs) = found(root, "sys", Kind::Directory).unwrap();
        assert_eq!(place, "proc/self/root/etc");
        assert_eq!(stubs, ["proc", "proc/self", "proc/self/root", "proc/self/root/etc"]);
    }

    #[test]
    fn what_is_no_place_to_mount_on_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        symlink("b", root.join("a")).unwrap();
        symlink("a", root.join("b")).unwrap();
        assert_eq!(found(root, "a", Kind::Directory), Err(libc::ELOOP));
        symlink("/", root.join("proc")).unwrap();
        assert_eq!(found(root, "proc", Kind::Directory), Err(libc::EBUSY));
        fs::write(root.join("file"), "").unwrap();
        assert_eq!(found(root, "file", Kind::Directory), Err(libc::ENOTDIR));
        assert_eq!(found(root, "file/x", Kind::File), Err(libc::ENOTDIR));
    }
}
