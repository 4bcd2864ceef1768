//! Writing a copy into a tree: BuildKit's destination rules (tonistiigi/fsutil copy, conformance cases `copy-*`).
//!
//! - The destination's links are followed in the tree, missing parents are made 0755 (`--chmod`'s permission bits if it
//!   is a number) and belong to `--chown`, else to root.
//! - A file goes into a destination that is a directory or ends in `/`, else it takes its name.
//! - A directory's contents go into the destination, whose own attributes stay; directories inside that exist take the
//!   attributes of the source's.
//! - A file replaces whatever is no directory; nothing replaces a directory by a file or the other way round.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::TreeError;
use super::archive;
use super::at::{self, Meta};
use super::events::{Content, Event, Sink, Why};
use super::index::check_replaced;
use super::walk::{Guide, Missing, walk};
use crate::chmod::Chmod;
use crate::engine::{Copied, Destination, Owner};

/// Writes events into a tree.
pub(super) struct Applier<'a> {
    root: BorrowedFd<'a>,
    to: &'a Destination,
    /// The name of a single file of which it is not known yet whether it is an archive.
    undecided: Option<Vec<u8>>,
    /// Where the single file of a source goes: directory, name, path.
    file: Option<(OwnedFd, Vec<u8>, Vec<u8>)>,
    /// The directories that we are in; the first is the destination itself.
    levels: Vec<Level>,
    /// Files with further names: their directory below the first level, and their name there.
    links: HashMap<u64, (Vec<u8>, Vec<u8>)>,
    /// What was done so far.
    pub copied: Copied,
}

struct Level {
    dir: OwnedFd,
    /// From the tree's root, for messages; from the first level.
    path: Vec<u8>,
    inner: Vec<u8>,
    /// Set when the directory is left; of the destination itself only the time is.
    dress: Option<Meta>,
    time: Option<(i64, u32)>,
}

/// Makes missing directories.
pub(super) struct MakeParents {
    pub owner: Owner,
    pub mode: u32,
}

impl Guide for MakeParents {
    fn missing(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        how: Missing,
    ) -> Result<(), TreeError> {
        if how.occupied {
            return Err(TreeError::user(format!(
                "{:?} is needed as a directory and is a file",
                String::from_utf8_lossy(path)
            )));
        }
        self.make(dir, name).map_err(|e| unmapped(e, self.owner, "making directory", path))
    }
}

impl MakeParents {
    /// Makes one directory.
    pub fn make(&self, dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
        rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o700))?;
        let made = at::open_dir(dir, name)?;
        let Owner { uid, gid } = self.owner;
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        rustix::fs::fchown(&made, Some(uid), Some(gid))?;
        rustix::fs::fchmod(&made, Mode::from_raw_mode(self.mode & 0o777))
    }
}

/// The kernel's answer to an owner that the user namespace does not have.
fn unmapped(error: Errno, owner: Owner, doing: &'static str, path: &[u8]) -> TreeError {
    if error == Errno::INVAL && (owner.uid > 65534 || owner.gid > 65534) {
        let Owner { uid, gid } = owner;
        let path = String::from_utf8_lossy(path);
        return TreeError::user(format!(
            "{path:?} can't belong to {uid}:{gid}: ids beyond 65534 do not exist in the build's user namespace"
        ));
    }
    TreeError::io(doing, path, error)
}

/// A destination, cleaned, and whether it must be a directory.
pub(super) fn destination(path: &str) -> (Vec<u8>, bool) {
    let last = path.rsplit('/').next().unwrap_or_default();
    (at::clean(path.as_bytes()), matches!(last, "" | "."))
}

impl<'a> Applier<'a> {
    /// Writes to `to` in `root`.
    pub fn new(root: BorrowedFd<'a>, to: &'a Destination) -> Self {
        Self {
            root,
            to,
            undecided: None,
            file: None,
            levels: Vec::new(),
            links: HashMap::new(),
            copied: Copied::default(),
        }
    }

    fn parents(&self) -> MakeParents {
        MakeParents {
            owner: self.to.owner.unwrap_or_default(),
            // BuildKit gives parents a mode only where it is a number; changes are for what is copied.
            mode: match self.to.mode {
                Some(Chmod::Octal(mode)) => mode,
                Some(Chmod::Symbolic(_)) | None => 0o755,
            },
        }
    }

    fn source(&mut self, name: &[u8], directory: Option<&Meta>) -> Result<(), TreeError> {
        self.file = None;
        self.levels.clear();
        self.links.clear();
        self.undecided = None;
        if self.to.unpack && directory.is_none() {
            self.undecided = Some(name.to_vec());
            return Ok(());
        }
        self.prepare(name, directory)
    }

    /// Makes ready where a source goes.
    fn prepare(&mut self, name: &[u8], directory: Option<&Meta>) -> Result<(), TreeError> {
        let (mut path, is_dir) = destination(&self.to.path);
        let make = self.parents();
        let mut guide = self.parents();
        let place = walk(self.root, &path, true, &mut guide).map_err(TreeError::of_user)?;
        let (mut dir, mut entry) = (place.dir, place.name);
        let failed = |e: Errno| TreeError::io("looking at", &place.path, e);
        let mut there = at::look(&dir, &entry).map_err(failed)?;
        if there.is_none() && (is_dir || directory.is_some()) {
            make.make(dir.as_fd(), &entry).map_err(|e| unmapped(e, make.owner, "making directory", &path))?;
            there = at::look(&dir, &entry).map_err(failed)?;
        }
        let there_dir = there.as_ref().is_some_and(|stat| at::kind(stat) == FileType::Directory);
        if !there_dir && (directory.is_some() || is_dir) {
            return Err(not_a_directory(&path));
        }
        if there_dir {
            let open = |e: Errno| TreeError::io("opening", &place.path, e);
            dir = at::open_dir(&dir, &entry).map_err(open)?;
            entry = Vec::new();
        }
        match directory {
            Some(meta) => {
                self.levels.push(Level { dir, path, inner: Vec::new(), dress: None, time: Some(meta.mtime) });
            }
            None => {
                if entry.is_empty() {
                    entry = name.to_vec();
                    path = at::join(&path, name);
                }
                self.file = Some((dir, entry, path));
            }
        }
        Ok(())
    }

    /// Where `name` goes: its directory, its name, its path.
    fn place(&self, name: &[u8]) -> Result<(BorrowedFd<'_>, Vec<u8>, Vec<u8>), TreeError> {
        match (self.levels.last(), &self.file) {
            (Some(level), _) if !name.is_empty() => {
                Ok((level.dir.as_fd(), name.to_vec(), at::join(&level.path, name)))
            }
            (None, Some((dir, entry, path))) if name.is_empty() => {
                Ok((dir.as_fd(), entry.clone(), path.clone()))
            }
            _ => Err(TreeError::Internal { message: "a file came outside of its source".to_owned() }),
        }
    }

    /// Frees a name for a file.
    fn clear(dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(), TreeError> {
        match at::look(dir, name).map_err(|e| TreeError::io("looking at", path, e))? {
            None => Ok(()),
            Some(stat) if at::kind(&stat) == FileType::Directory => Err(TreeError::user(format!(
                "cannot replace the directory {:?} with a file: remove it first, or copy to another name",
                show(path)
            ))),
            Some(_) => rustix::fs::unlinkat(dir, name, AtFlags::empty())
                .map_err(|e| TreeError::io("replacing", path, e)),
        }
    }

    /// Attributes in the image of what has `meta` at its source.
    fn wanted(&self, meta: &Meta, directory: bool) -> Meta {
        let mode = self.to.mode.as_ref().map_or(meta.mode, |chmod| chmod.apply(meta.mode, directory));
        Meta { owner: self.to.owner.unwrap_or(meta.owner), mode: mode & 0o7777, ..meta.clone() }
    }

    fn directory(&mut self, name: &[u8], meta: &Meta, why: Why) -> Result<(), TreeError> {
        let (dir, name, path) = self.place(name)?;
        let failed = |e: Errno| TreeError::io("making directory", &path, e);
        let dress = match at::look(dir, &name).map_err(failed)? {
            None => {
                rustix::fs::mkdirat(dir, name.as_slice(), Mode::from_raw_mode(0o700)).map_err(failed)?;
                self.wanted(meta, true)
            }
            Some(stat) if at::kind(&stat) != FileType::Directory => return Err(not_a_directory(&path)),
            Some(stat) => match why {
                Why::Chosen => self.wanted(meta, true),
                // Only the mode, as BuildKit does; the rest is as it was found.
                Why::Parent => Meta { mode: meta.mode, ..Meta::of(&stat) },
            },
        };
        let dir = at::open_dir(dir, &name).map_err(failed)?;
        let inner = self.levels.last().map(|level| at::join(&level.inner, &name)).unwrap_or_default();
        self.levels.push(Level { dir, path, inner, dress: Some(dress), time: None });
        Ok(())
    }

    fn leave(&mut self) -> Result<(), TreeError> {
        let Some(level) = self.levels.pop() else {
            return Err(TreeError::Internal { message: "a directory ended that was not begun".to_owned() });
        };
        if let Some(meta) = &level.dress {
            at::dress(&level.dir, meta)
                .map_err(|e| unmapped(e, meta.owner, "setting attributes of", &level.path))?;
        }
        if let Some(time) = level.time {
            rustix::fs::futimens(&level.dir, &at::times(time))
                .map_err(|e| TreeError::io("setting the time of", &level.path, e))?;
        }
        Ok(())
    }

    fn file(
        &mut self,
        name: &[u8],
        meta: &Meta,
        size: u64,
        link: Option<u64>,
        content: Content<'_>,
    ) -> Result<(), TreeError> {
        let mut content = content;
        if let Some(undecided) = self.undecided.take() {
            let mut held: Box<dyn Read + '_> = match content {
                Content::File(file) => Box::new(file.take(size)),
                Content::Stream(stream) => Box::new(stream.take(size)),
                Content::None => Box::new(io::empty()),
            };
            let start = archive::start(&mut held)?;
            if archive::is_archive(&start) {
                let whole = io::Cursor::new(start).chain(held);
                // Whatever may be in it.
                self.copied.links = true;
                return archive::unpack_into(self.root, self.to, whole);
            }
            self.prepare(&undecided, None)?;
            let mut whole = io::Cursor::new(start).chain(held);
            return self.regular(name, meta, size, link, Content::Stream(&mut whole));
        }
        if let Content::Stream(stream) = &mut content {
            let mut stream = stream.take(size);
            return self.regular(name, meta, size, link, Content::Stream(&mut stream));
        }
        self.regular(name, meta, size, link, content)
    }

    fn regular(
        &mut self,
        name: &[u8],
        meta: &Meta,
        size: u64,
        link: Option<u64>,
        content: Content<'_>,
    ) -> Result<(), TreeError> {
        let wanted = self.wanted(meta, false);
        let (dir, name, path) = self.place(name)?;
        check_replaced(dir, &name, wanted.mtime, &path)?;
        Self::clear(dir, &name, &path)?;
        let mut file =
            at::create_file(dir, &name).map_err(|e| TreeError::io("making", &path, e).of_user())?;
        let streamed = matches!(content, Content::Stream(_));
        let written = match content {
            // The kernel copies between two files by itself where the file system can.
            Content::File(from) => io::copy(&mut Read::take(from, size), &mut file),
            Content::Stream(stream) => copy_stream(stream, &mut file),
            Content::None => Ok(0),
        };
        let written = written.map_err(|e| TreeError::io("writing", &path, e))?;
        if written != size {
            let path = show(&path);
            if streamed {
                // Whoever sends it knows why.
                return Err(TreeError::Internal {
                    message: format!("{path:?} ended after {written} of {size} bytes"),
                });
            }
            return Err(TreeError::user(format!(
                "{path:?} had {size} bytes and then {written}: a source changed while it was copied"
            )));
        }
        at::dress(&file, &wanted).map_err(|e| unmapped(e, wanted.owner, "setting attributes of", &path))?;
        if let (Some(link), Some(level)) = (link, self.levels.last()) {
            let inner = level.inner.clone();
            self.links.insert(link, (inner, name));
        }
        Ok(())
    }

    fn hardlink(&mut self, name: &[u8], link: u64) -> Result<(), TreeError> {
        let (dir, name, path) = self.place(name)?;
        let (Some((inner, first)), Some(top)) = (self.links.get(&link), self.levels.first()) else {
            return Err(TreeError::Internal {
                message: format!("{:?} links to a file that was not sent", show(&path)),
            });
        };
        let failed = |e: Errno| TreeError::io("linking", &path, e).of_user();
        let from = at::open_plain(top.dir.as_fd(), inner).map_err(failed)?;
        if let Some(stat) = at::look(&from, first).map_err(failed)? {
            check_replaced(dir, &name, Meta::of(&stat).mtime, &path)?;
        }
        Self::clear(dir, &name, &path)?;
        rustix::fs::linkat(&from, first.as_slice(), dir, name.as_slice(), AtFlags::empty()).map_err(failed)
    }

    fn special(&mut self, name: &[u8], meta: &Meta, target: Option<&[u8]>) -> Result<(), TreeError> {
        if let Some(undecided) = self.undecided.take() {
            self.prepare(&undecided, None)?;
        }
        let wanted = self.wanted(meta, false);
        let (dir, name, path) = self.place(name)?;
        Self::clear(dir, &name, &path)?;
        let failed = |e: Errno| unmapped(e, wanted.owner, "making", &path);
        let mode = Mode::from_raw_mode(0o600);
        match target {
            Some(target) => rustix::fs::symlinkat(target, dir, name.as_slice()),
            None => rustix::fs::mknodat(dir, name.as_slice(), FileType::Fifo, mode, 0),
        }
        .and_then(|()| at::dress_at(dir, &name, &wanted, target.is_some()))
        .map_err(failed)?;
        self.copied.links |= target.is_some();
        Ok(())
    }
}

impl Sink for Applier<'_> {
    fn event(&mut self, event: &Event, content: Content<'_>) -> Result<(), TreeError> {
        match event {
            Event::Source { name, directory } => self.source(name, directory.as_ref()),
            Event::Directory { name, meta, why } => self.directory(name, meta, *why),
            Event::Leave => self.leave(),
            Event::File { name, meta, size, link } => self.file(name, meta, *size, *link, content),
            Event::Hardlink { name, link } => self.hardlink(name, *link),
            Event::Symlink { name, meta, target } => self.special(name, meta, Some(target)),
            Event::Fifo { name, meta } => self.special(name, meta, None),
            Event::End => Ok(()),
        }
    }
}

fn show(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

fn not_a_directory(path: &[u8]) -> TreeError {
    TreeError::user(format!(
        "cannot copy to {:?}: a directory is needed there and it is a file or a link",
        show(path)
    ))
}

/// 128 KiB at a time: fewer system calls than io::copy's 8 KiB.
fn copy_stream(from: &mut dyn Read, to: &mut File) -> io::Result<u64> {
    let mut from = io::BufReader::with_capacity(128 << 10, from);
    io::copy(&mut from, to)
}
