//! Placing the entries of an archive in a tree, with the rules that a layer and an ADDed archive share: parents are
//! resolved inside the tree, the last component is never followed, a directory over a directory merges, all else replaces.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, XattrFlags};
use rustix::io::Errno;

use super::TreeError;
use super::at::{self, Meta};
use super::index;
use super::remove::remove_all;
use super::tar_read::{Kind, TarEntry, TarReader, read_error};
use super::unpack::{mark_opaque, meta};
use super::walk::{Guide, Missing, Strict, walk};
use crate::engine::Owner;

/// Most bytes of paths that are held for later, so that a small archive can't take the machine's memory: a quarter of a
/// million directories with paths of 128 bytes.
pub(super) const MAX_HELD: usize = 32 << 20;

/// Where a layer and an ADDed archive differ.
pub(super) trait Rules {
    /// Who an entry belongs to.
    fn owner(&self, entry: &TarEntry) -> Result<Owner, TreeError>;
    /// A directory was made for an entry in it.
    fn parent_made(&mut self, path: &[u8]);
    /// `path` now is what its own entry says; `whole`: and what was below it is gone.
    fn replaced(&mut self, path: &[u8], whole: bool);
    /// A hardlink's target is not in the tree.
    fn link_nowhere(&mut self, path: &[u8], target: &[u8]) -> Result<(), TreeError>;
    /// Whether parents are made where a dangling link leads (a layer: the target may be in a layer below), or that is an
    /// error.
    fn through_dangling(&self) -> bool;
    /// Whether the entry of a hardlink gives the file its attributes, too.
    fn links_dress(&self) -> bool;
    /// Whether a file is one whose content is not known.
    fn is_placeholder(&self, _entry: &TarEntry) -> bool {
        false
    }
    /// An entry that is no directory has no name.
    fn nameless(&self) -> Result<(), TreeError>;
}

/// Puts entries into a tree.
pub(super) struct Placer<'a> {
    root: BorrowedFd<'a>,
    /// The directory that the last entry went to, by the path it was asked for: entries come in runs.
    last: Option<(Vec<u8>, OwnedFd, Vec<u8>)>,
    /// Modification times, set when nothing changes the directories any more.
    times: Times,
    /// 128 KiB: fewer system calls than io::copy's 8 KiB.
    buffer: Vec<u8>,
}

/// Times of directories by path.
#[derive(Default)]
struct Times {
    map: BTreeMap<Vec<u8>, (i64, u32)>,
    bytes: usize,
}

impl Times {
    fn set(&mut self, path: &[u8], time: (i64, u32)) -> Result<(), TreeError> {
        self.bytes += path.len();
        if self.bytes > MAX_HELD {
            return Err(TreeError::image(format!(
                "the paths of an archive's directories are more than {MAX_HELD} bytes, the most that is held"
            )));
        }
        self.map.insert(path.to_vec(), time);
        Ok(())
    }
}

/// A hardlink's target.
enum Target {
    /// A file of this directory.
    Here(OwnedFd, Vec<u8>),
    /// Not in this tree; its path as far as links in it could be followed.
    NotHere(Vec<u8>),
}

struct MakeParents<'r> {
    rules: &'r mut dyn Rules,
    times: &'r mut Times,
}

impl Guide for MakeParents<'_> {
    fn missing(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        how: Missing,
    ) -> Result<(), TreeError> {
        let failed = |e: Errno| TreeError::io("making directory", path, e);
        let mut hiding = false;
        if how.occupied {
            let stat = at::look(dir, name).map_err(failed)?;
            hiding = self.rules.through_dangling() && stat.is_some_and(|stat| at::is_whiteout(&stat));
            if !hiding {
                return Err(failed(Errno::NOTDIR));
            }
            rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::empty()).map_err(failed)?;
        }
        if how.by_link && !self.rules.through_dangling() {
            return Err(failed(Errno::NOENT));
        }
        rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)).map_err(failed)?;
        let made = at::open_dir(dir, name).map_err(failed)?;
        at::dress(&made, &Meta { mode: 0o755, ..Meta::default() }).map_err(failed)?;
        if hiding {
            mark_opaque(made.as_fd(), path)?;
        }
        self.times.set(path, (0, 0))?;
        self.rules.parent_made(path);
        Ok(())
    }
}

impl<'a> Placer<'a> {
    /// Into `root`.
    pub fn new(root: BorrowedFd<'a>) -> Self {
        Self { root, last: None, times: Times::default(), buffer: vec![0; 128 << 10] }
    }

    /// The directory `path` (clean), made where it is missing.
    pub fn directory(&mut self, path: &[u8], rules: &mut dyn Rules) -> Result<BorrowedFd<'_>, TreeError> {
        Ok(self.parent(path, rules)?.0)
    }

    /// Opens the directory `path`; also says its path without links.
    fn parent(&mut self, path: &[u8], rules: &mut dyn Rules) -> Result<(BorrowedFd<'_>, Vec<u8>), TreeError> {
        if self.last.as_ref().is_none_or(|(asked, ..)| asked != path) {
            self.last = None;
            let depth = path.split(|b| *b == b'/').count();
            if depth >= at::MAX_DEPTH {
                return Err(TreeError::image(format!(
                    "an archive entry is in {depth} directories; fewer than {} are allowed",
                    at::MAX_DEPTH
                )));
            }
            let mut guide = MakeParents { rules, times: &mut self.times };
            // A component after the last makes the walk end in a directory.
            let place = walk(self.root, &at::join(path, b"x"), false, &mut guide)?;
            let (resolved, _) = at::split(&place.path);
            let dir = at::open_dir(&place.dir, b"").map_err(|e| TreeError::io("opening", path, e))?;
            self.last = Some((path.to_vec(), dir, resolved.to_vec()));
        }
        match &self.last {
            Some((_, dir, resolved)) => Ok((dir.as_fd(), resolved.clone())),
            None => Err(TreeError::Internal { message: "a directory was opened and is not held".into() }),
        }
    }

    /// Puts one entry at `path` (clean); its content is read from `tar`.
    pub fn put(
        &mut self,
        path: &[u8],
        entry: &TarEntry,
        tar: &mut TarReader<impl Read>,
        rules: &mut dyn Rules,
    ) -> Result<(), TreeError> {
        if path.is_empty() {
            // The archive's own root: its attributes are not the image's (Docker, containerd).
            return if entry.kind == Kind::Directory { Ok(()) } else { rules.nameless() };
        }
        let owner = rules.owner(entry)?;
        let (parent, name) = at::split(path);
        let (dir, resolved) = self.parent(parent, rules)?;
        let dir = dir.try_clone_to_owned().map_err(|e| TreeError::io("opening", path, e))?;
        let full = at::join(&resolved, name);
        let failed = |e: Errno| match e {
            Errno::INVAL => TreeError::image(format!(
                "{:?} has an owner ({}:{}) that the build's user namespace does not have, or a bad attribute",
                String::from_utf8_lossy(&full),
                owner.uid,
                owner.gid
            )),
            e => TreeError::io("unpacking", &full, e),
        };
        let there = at::look(&dir, name).map_err(failed)?;
        let was_dir = there.as_ref().is_some_and(|stat| at::kind(stat) == FileType::Directory);
        let was_whiteout = there.as_ref().is_some_and(at::is_whiteout) && rules.through_dangling();
        let merge = was_dir && entry.kind == Kind::Directory;
        let target = match entry.kind {
            Kind::Hardlink => Some(self.link_target(&at::clean(&entry.link))?),
            _ => None,
        };
        if let Some(Target::Here(target_dir, target_name)) = &target {
            // A link to itself stays what it is.
            let same = at::look(target_dir, target_name).map_err(failed)?.zip(there.as_ref());
            if same.is_some_and(|(a, b)| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)) {
                return Ok(());
            }
        }
        if there.is_some() && !merge {
            if was_dir {
                self.last = None;
                self.times.map.remove(&full);
                remove_below(&mut self.times.map, &full);
            }
            remove_all(dir.as_fd(), name)?;
        }
        rules.replaced(&full, !merge);
        let meta = meta(entry, owner);
        match entry.kind {
            Kind::Directory => {
                if !merge {
                    rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o700)).map_err(failed)?;
                }
                let made = at::open_dir(&dir, name).map_err(failed)?;
                attributes(made.as_fd(), entry).map_err(failed)?;
                at::dress(&made, &meta).map_err(failed)?;
                if was_whiteout {
                    mark_opaque(made.as_fd(), &full)?;
                }
                self.times.set(&full, entry.mtime)?;
            }
            Kind::File => {
                let file = at::create_file(&dir, name).map_err(failed)?;
                self.content(tar, &file, &full)?;
                attributes(file.as_fd(), entry).map_err(failed)?;
                if rules.is_placeholder(entry) {
                    index::mark(&file).map_err(failed)?;
                }
                at::dress(&file, &meta).map_err(failed)?;
            }
            Kind::Symlink => {
                rustix::fs::symlinkat(entry.link.as_slice(), &dir, name).map_err(failed)?;
                at::dress_at(&dir, name, &meta, true).map_err(failed)?;
            }
            Kind::Fifo => {
                rustix::fs::mknodat(&dir, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                    .map_err(failed)?;
                at::dress_at(&dir, name, &meta, false).map_err(failed)?;
            }
            Kind::Hardlink => match target {
                Some(Target::Here(target_dir, target_name)) => {
                    let flags = rustix::fs::AtFlags::empty();
                    rustix::fs::linkat(target_dir, target_name.as_slice(), &dir, name, flags)
                        .map_err(failed)?;
                    if rules.links_dress() {
                        let linked = at::look(&dir, name).map_err(failed)?;
                        let link = linked.is_some_and(|stat| at::kind(&stat) == FileType::Symlink);
                        at::dress_at(&dir, name, &meta, link).map_err(failed)?;
                    }
                }
                Some(Target::NotHere(target)) => rules.link_nowhere(&full, &target)?,
                None => {}
            },
            Kind::Device => {}
        }
        Ok(())
    }

    /// Sets the times of the directories.
    pub fn finish(self) -> Result<(), TreeError> {
        for (path, mtime) in &self.times.map {
            match at::open_plain(self.root, path) {
                Ok(dir) => rustix::fs::futimens(&dir, &at::times(*mtime))
                    .map_err(|e| TreeError::io("setting the time of", path, e))?,
                // Something else took its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(TreeError::io("opening", path, error)),
            }
        }
        Ok(())
    }

    /// Where a hardlink's target (clean) is.
    fn link_target(&self, target: &[u8]) -> Result<Target, TreeError> {
        let place = match walk(self.root, target, false, &mut Strict) {
            Ok(place) => place,
            Err(error) if error.is(Errno::NOENT) || error.is(Errno::NOTDIR) => {
                return Ok(Target::NotHere(target.to_vec()));
            }
            Err(error) => return Err(error),
        };
        let stat = at::look(&place.dir, &place.name).map_err(|e| TreeError::io("looking at", target, e))?;
        match stat {
            Some(stat) if at::kind(&stat) == FileType::Directory => Err(TreeError::image(format!(
                "a hardlink's target {:?} is a directory",
                String::from_utf8_lossy(target)
            ))),
            Some(stat) if !at::is_whiteout(&stat) => Ok(Target::Here(place.dir, place.name)),
            _ => Ok(Target::NotHere(place.path)),
        }
    }

    fn content(
        &mut self,
        tar: &mut TarReader<impl Read>,
        mut file: &std::fs::File,
        path: &[u8],
    ) -> Result<(), TreeError> {
        loop {
            let got = match tar.read(&mut self.buffer) {
                Ok(0) => return Ok(()),
                Ok(got) => got,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(read_error(error)),
            };
            std::io::Write::write_all(&mut file, &self.buffer[..got])
                .map_err(|e| TreeError::io("writing", path, e))?;
        }
    }
}

/// Removes what is below `path`. The keys are in order, so that only those are looked at: this is asked for every entry.
pub(super) fn remove_below<V>(map: &mut BTreeMap<Vec<u8>, V>, path: &[u8]) {
    let from = [path, b"/"].concat();
    while let Some(key) = map.range(from.clone()..).next().map(|(key, _)| key.clone()) {
        if !key.starts_with(&from) {
            break;
        }
        map.remove(&key);
    }
}

/// `user.*` attributes, where the file system has them. Never `user.overlay.*`, which would speak to overlayfs, nor our own.
fn attributes(file: BorrowedFd<'_>, entry: &TarEntry) -> rustix::io::Result<()> {
    for (name, value) in &entry.xattrs {
        let ours = name.starts_with(b"user.overlay.") || index::is_mark(name);
        if !name.starts_with(b"user.") || ours || name.contains(&0) {
            continue;
        }
        match rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
