//! The mounts that a step asks for itself (`RUN --mount`), laid over its root.
//!
//! They are made in the step's own mount namespace by the step's first process, from trees, memory and sockets that it
//! reaches by descriptors; so nothing of them is left when the step ends, but for what it wrote into a tree that takes
//! changes. Parents come before what is mounted below them, as BuildKit sorts them.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::fault::{At as _, Fault, Stage, Stop};
use super::inroot::{Kind, Place, ensure};
use super::mounts::{bind, link_of, make_read_only, mount, top_of};
use super::root::{open_directory, top_first, writable};
use super::{EMPTY_TREE, MOUNT_POINT};
use crate::engine::{Mount, MountSource, Owner, Secret};
use crate::helper::work_of;

/// Where files in memory are before they are bound.
const FILES: &str = "files";
/// Beside the bytes of a file its page is filled up, and it has an inode.
const FILE_OVERHEAD: usize = 8 << 10;

/// Mounts all of them below `root`. The working directory is the trees directory, and the old root is in sight.
///
/// # Errors
/// [`Stop::Refused`] where the Dockerfile is at fault: a source that is not there, a target that can't be.
pub fn all(mounts: &[Mount], root: &OwnedFd, stubs: &mut Vec<String>) -> Result<(), Stop> {
    let mut sources = Sources { overlays: Vec::new(), files: None, bytes: bytes(mounts) };
    let mut sorted: Vec<&Mount> = mounts.iter().collect();
    sorted.sort_by(|a, b| a.target.cmp(&b.target));
    for mount in sorted {
        one(mount, root, stubs, &mut sources)?;
    }
    Ok(())
}

/// Room that files in memory take.
fn bytes(mounts: &[Mount]) -> usize {
    let sizes = mounts.iter().map(|mount| match &mount.source {
        MountSource::File { bytes, .. } => bytes.0.len() + FILE_OVERHEAD,
        _ => 0,
    });
    sizes.sum()
}

fn one(wished: &Mount, root: &OwnedFd, stubs: &mut Vec<String>, sources: &mut Sources) -> Result<(), Stop> {
    let target = &wished.target;
    let stage = Stage::StepMount;
    if let MountSource::Memory { size } = &wished.source {
        let place = place(root, target, Kind::Directory, stubs)?;
        // As runc: the mode of what it covers. Without a size the kernel allows half of the memory.
        let below = rustix::fs::statat(&place.target, c"", AtFlags::EMPTY_PATH)
            .at(stage, || format!("cannot look at {target}"))?;
        let mode = below.st_mode & 0o7777;
        let options =
            if *size == 0 { format!("mode={mode:o}") } else { format!("mode={mode:o},size={size}") };
        mount(stage, "tmpfs", link_of(&place.target), MountFlags::NOSUID, &options)?;
        return finish(wished, &place);
    }
    let source = match &wished.source {
        MountSource::Trees { lowers, upper, path, name } => {
            let trees = sources.trees(lowers, upper.as_ref())?;
            inside(&trees, path).map_err(|errno| {
                refused(target, &format!("{path:?} of {name} can't be mounted: {}", words(errno)))
            })?
        }
        MountSource::File { bytes, mode, owner } => sources.file(bytes, *mode, *owner, target)?,
        MountSource::Socket { name } => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, name, flags, Mode::empty())
                .at(stage, || format!("cannot find the socket {name}"))?
        }
        MountSource::Memory { .. } => return Ok(()),
    };
    let stat = rustix::fs::statat(&source, c"", AtFlags::EMPTY_PATH)
        .at(stage, || format!("cannot look at what is to be mounted at {target}"))?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Directory,
        _ => Kind::File,
    };
    let place = place(root, target, kind, stubs)?;
    bind(stage, &link_of(&source), &place.target, false)?;
    finish(wished, &place)
}

fn finish(wished: &Mount, place: &Place) -> Result<(), Stop> {
    if wished.read_only {
        make_read_only(Stage::StepMount, top_of(Stage::StepMount, place)?)?;
    }
    Ok(())
}

/// Finds or makes the place to mount on.
fn place(root: &OwnedFd, target: &str, kind: Kind, stubs: &mut Vec<String>) -> Result<Place, Stop> {
    ensure(root, target.trim_start_matches('/'), kind, stubs).map_err(|fault| {
        let errno = Errno::from_raw_os_error(fault.errno.unwrap_or(0));
        match errno {
            Errno::NOTDIR => refused(target, "something that is no directory is in the way"),
            Errno::ISDIR => refused(target, "a file can't be mounted on a directory"),
            Errno::ROFS => refused(
                target,
                "it is not there and can't be made, because it is below a read-only mount; make it in what is mounted there, or add rw to that mount",
            ),
            Errno::LOOP | Errno::BUSY | Errno::NAMETOOLONG | Errno::NOENT | Errno::ACCESS | Errno::PERM => {
                refused(target, &words(errno))
            }
            _ => fault.into(),
        }
    })
}

fn refused(target: &str, why: &str) -> Stop {
    Stop::Refused(format!("cannot mount at {target}: {why}"))
}

fn words(errno: Errno) -> String {
    super::command::words(errno.raw_os_error())
}

/// A path within trees, links followed as a process with this root would.
fn inside(trees: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    let path = path.trim_start_matches('/');
    let path = if path.is_empty() { "." } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(trees, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // Some rename or mount on the machine ran beside it.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// A tree by itself. A cache that is used in place is a link to it: this one link is ours, and any other on the way may be of
/// somebody who has the volume, too.
fn alone(tree: &str) -> rustix::io::Result<OwnedFd> {
    let Ok(place) = rustix::fs::readlinkat(CWD, tree, Vec::new()) else { return open_directory(tree) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    loop {
        match rustix::fs::openat2(CWD, &place, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// What mounts are made from.
struct Sources {
    /// Trees that are overlaid already: a tree that takes changes must not be in two overlays.
    overlays: Vec<(Vec<String>, Option<String>, OwnedFd)>,
    /// The file system for files in memory, and how many there are.
    files: Option<(OwnedFd, usize)>,
    bytes: usize,
}

impl Sources {
    fn trees(&mut self, lowers: &[String], upper: Option<&String>) -> Result<OwnedFd, Fault> {
        let stage = Stage::StepMount;
        if lowers.is_empty() {
            let tree = upper.map_or(EMPTY_TREE, String::as_str);
            return alone(tree).at(stage, || format!("cannot open tree {tree}"));
        }
        let known = self.overlays.iter().find(|(l, u, _)| l == lowers && u.as_ref() == upper);
        if let Some((.., root)) = known {
            return root.try_clone().at(stage, || "cannot share an overlay".to_owned());
        }
        let point = format!("{MOUNT_POINT}/m{}", self.overlays.len());
        rustix::fs::mkdir(&point, Mode::from_raw_mode(0o755))
            .at(stage, || "cannot make a directory".to_owned())?;
        let options = match upper {
            Some(upper) => format!("{},userxattr,volatile", writable(lowers, upper, &work_of(upper))),
            // Two lowers at least; and one alone would show its whiteouts.
            None => format!("lowerdir={}:{EMPTY_TREE},userxattr", top_first(lowers)),
        };
        mount(stage, "overlay", point.as_str(), MountFlags::empty(), &options)?;
        let root = open_directory(&point).at(stage, || "cannot open an overlay".to_owned())?;
        let again = root.try_clone().at(stage, || "cannot share an overlay".to_owned())?;
        self.overlays.push((lowers.to_vec(), upper.cloned(), root));
        Ok(again)
    }

    fn file(&mut self, bytes: &Secret, mode: u32, owner: Owner, target: &str) -> Result<OwnedFd, Stop> {
        let stage = Stage::StepMount;
        let (directory, count) = match &mut self.files {
            Some(files) => files,
            None => self.files.insert((memory(self.bytes)?, 0)),
        };
        let name = count.to_string();
        *count += 1;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let made = rustix::fs::openat(directory.as_fd(), &name, flags, Mode::from_raw_mode(0o600))
            .at(stage, || "cannot make a file in memory".to_owned())?;
        let mut left = bytes.0.as_slice();
        while !left.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::write(&made, left))
                .at(stage, || "cannot write a file in memory".to_owned())?;
            left = &left[written..];
        }
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        rustix::fs::fchown(&made, Some(uid), Some(gid)).map_err(|errno| {
            let id = format!("user {} and group {}", owner.uid, owner.gid);
            refused(target, &format!("a file can't be given to {id}: {}", words(errno)))
        })?;
        rustix::fs::fchmod(&made, Mode::from_raw_mode(mode & 0o7777))
            .at(stage, || "cannot set a file's mode".to_owned())?;
        drop(made);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(directory.as_fd(), &name, flags, Mode::empty());
        Ok(opened.at(stage, || "cannot open a file in memory".to_owned())?)
    }
}

/// A file system in memory with room for so many bytes. Bound files keep its flags.
fn memory(bytes: usize) -> Result<OwnedFd, Fault> {
    let stage = Stage::StepMount;
    let point = format!("{MOUNT_POINT}/{FILES}");
    rustix::fs::mkdir(&point, Mode::from_raw_mode(0o700))
        .at(stage, || "cannot make a directory".to_owned())?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(stage, "tmpfs", point.as_str(), flags, &format!("mode=700,size={}", bytes + FILE_OVERHEAD))?;
    open_directory(&point).at(stage, || "cannot open a file system in memory".to_owned())
}
