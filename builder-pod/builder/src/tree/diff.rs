//! From the upper directory of an overlay to an OCI layer.
//!
//! The rules are those of BuildKit's overlay differ and containerd's archive writer: what equals the lower layer is left
//! out (a directory that was only copied up, a file moved away and back), parents come before what is in them, a
//! whiteout before its siblings, a directory that replaced another one is written as explicit whiteouts of what is gone.
//! The kernel marks any new directory as opaque, so the mark counts only over a directory that exists below.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::TreeError;
use super::at::{self, Meta};
use super::index::{IndexWriter, is_kept};
use super::tar_write::{Body, TarWriter};
use super::unpack::OPAQUE;
use crate::engine::Diff;

/// Writes what `upper` changes over `lower` as an OCI layer, an uncompressed tar, into `out`. `lower` is the merged view
/// of what is below (`None`: nothing); `stubs` are left out while they are as empty as they were made. With `epoch`,
/// times after it become it. The layer's index goes to `index`.
///
/// # Errors
/// [`TreeError::Space`] when `out` is full, [`TreeError::User`] for a tree beyond the limits, else [`TreeError::Io`].
pub fn diff(
    upper: BorrowedFd<'_>,
    lower: Option<BorrowedFd<'_>>,
    stubs: &[String],
    epoch: Option<i64>,
    out: File,
    index: Option<File>,
) -> Result<Diff, TreeError> {
    let root = |dir| at::open_dir(dir, b"").map_err(|e| TreeError::io("opening", "/", e));
    let (upper, lower) = (root(upper)?, lower.map(root).transpose()?);
    let mut differ = Differ {
        // 256 KiB: headers and small files gather, and a pipe's reader wakes less often.
        tar: TarWriter::new(BufWriter::with_capacity(256 << 10, out)),
        index: index.map(IndexWriter::new),
        stubs: stubs.iter().map(|path| at::clean(path.as_bytes())).collect(),
        epoch,
        exact: false,
        links: HashMap::new(),
        parents: Vec::new(),
        seen: 0,
    };
    differ.walk(upper, lower)?;
    if let Some(index) = differ.index {
        index.finish()?;
    }
    let (entries, bytes) = differ.tar.finish()?;
    Ok(Diff { entries, bytes })
}

/// Writes all of `tree` as it is, its root's attributes first, as an uncompressed tar into `out`: no layer, so that times
/// keep their fractions, and a name that looks like a whiteout is one like others. Sockets and devices are left out.
///
/// # Errors
/// As [`diff`].
pub fn archive_tree(tree: BorrowedFd<'_>, out: File) -> Result<Diff, TreeError> {
    let failed = |e| TreeError::io("opening", "/", e);
    let root = at::open_dir(tree, b"").map_err(failed)?;
    let stat = rustix::fs::fstat(&root).map_err(failed)?;
    let mut differ = Differ {
        tar: TarWriter::new(BufWriter::with_capacity(256 << 10, out)),
        index: None,
        stubs: BTreeSet::new(),
        epoch: None,
        exact: true,
        links: HashMap::new(),
        parents: Vec::new(),
        seen: 0,
    };
    differ.entry(b".", &Meta::of(&stat), Body::Directory)?;
    differ.walk(root, None)?;
    let (entries, bytes) = differ.tar.finish()?;
    Ok(Diff { entries, bytes })
}

struct Differ {
    tar: TarWriter<BufWriter<File>>,
    /// The layer's index is written beside it.
    index: Option<IndexWriter>,
    stubs: BTreeSet<Vec<u8>>,
    epoch: Option<i64>,
    /// Times keep their fractions.
    exact: bool,
    /// Files with several names: device and inode -> the path that has the content.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Directories that we are in and that are not written yet.
    parents: Vec<(Vec<u8>, Meta)>,
    seen: u64,
}

/// A directory that we are in. The stack of them is on the heap: a step may nest directories as deep as it likes.
struct Level {
    upper: OwnedFd,
    lower: Option<OwnedFd>,
    path: Vec<u8>,
    /// Nothing of `lower` shows through here.
    opaque: bool,
    /// What is still to be looked at: name, path, what it is.
    left: std::vec::IntoIter<(Vec<u8>, Vec<u8>, Stat)>,
    /// How many directories waited, this one among them.
    waiting: usize,
}

impl Differ {
    fn walk(&mut self, upper: OwnedFd, lower: Option<OwnedFd>) -> Result<(), TreeError> {
        let mut levels = vec![self.enter(upper, lower, Vec::new(), false)?];
        while let Some(level) = levels.last_mut() {
            let depth_below = levels_deep(&level.path) + 1;
            let Some((name, full, stat)) = level.left.next() else {
                // Still waiting: nothing in it was written, and it is as it was.
                if self.parents.len() == level.waiting {
                    self.parents.pop();
                }
                levels.pop();
                continue;
            };
            let below = Self::below(level.lower.as_ref(), &name, &full)?;
            if at::kind(&stat) != FileType::Directory {
                self.file(level, &name, &full, &stat, below.as_ref())?;
                continue;
            }
            if depth_below > at::MAX_DEPTH {
                return Err(too_much());
            }
            let next = self.subdirectory(level, &name, full, &stat, below)?;
            levels.push(next);
        }
        Ok(())
    }

    /// Writes the whiteouts of a directory; the rest of it is left for later.
    fn enter(
        &mut self,
        upper: OwnedFd,
        lower: Option<OwnedFd>,
        path: Vec<u8>,
        opaque: bool,
    ) -> Result<Level, TreeError> {
        let mut names = at::list(upper.as_fd(), &path)?;
        self.seen += names.len() as u64;
        if self.seen > at::MAX_ENTRIES {
            return Err(too_much());
        }
        let mut kept = Vec::with_capacity(names.len());
        let mut gone = BTreeSet::new();
        for name in names.drain(..) {
            let full = at::join(&path, &name);
            let failed = |e: Errno| TreeError::io("looking at", &full, e);
            let Some(stat) = at::look(&upper, &name).map_err(failed)? else { continue };
            // A socket lives only while a process listens; what it replaced is gone all the same.
            if at::is_whiteout(&stat) || at::kind(&stat) == FileType::Socket {
                gone.insert(name);
            } else {
                kept.push((name, full, stat));
            }
        }
        if opaque && let Some(lower) = &lower {
            let here: BTreeSet<&Vec<u8>> = kept.iter().map(|(name, ..)| name).collect();
            let below = at::list(lower.as_fd(), &path)?;
            gone.extend(below.into_iter().filter(|name| !here.contains(name)));
        }
        for name in gone {
            if Self::below(lower.as_ref(), &name, &path)?.is_some() {
                let whiteout = at::join(&path, &[b".wh.", name.as_slice()].concat());
                self.parents()?;
                self.entry(&whiteout, &Meta { mode: 0, ..Meta::default() }, Body::File(0))?;
            }
        }
        Ok(Level { upper, lower, path, opaque, left: kept.into_iter(), waiting: self.parents.len() })
    }

    /// What is below `name`, unless it is a whiteout there (`lower` may be one layer's own tree).
    fn below(lower: Option<&OwnedFd>, name: &[u8], path: &[u8]) -> Result<Option<Stat>, TreeError> {
        let Some(lower) = lower else { return Ok(None) };
        let stat = at::look(lower, name).map_err(|e| TreeError::io("looking below at", path, e))?;
        Ok(stat.filter(|stat| !at::is_whiteout(stat)))
    }

    fn subdirectory(
        &mut self,
        level: &Level,
        name: &[u8],
        full: Vec<u8>,
        stat: &Stat,
        below: Option<Stat>,
    ) -> Result<Level, TreeError> {
        let failed = |e: Errno| TreeError::io("opening", &full, e);
        let dir = at::open_dir(&level.upper, name).map_err(failed)?;
        for mark in ["user.overlay.redirect", "user.overlay.metacopy"] {
            if at::attribute(&dir, mark).map_err(failed)?.is_some() {
                let path = String::from_utf8_lossy(&full);
                let message = format!("{path:?} has {mark}: the view must be mounted without it");
                return Err(TreeError::Internal { message });
            }
        }
        let opaque =
            level.opaque || at::attribute(&dir, OPAQUE).map_err(failed)?.is_some_and(|value| value == b"y");
        let was_dir = below.filter(|below| at::kind(below) == FileType::Directory);
        let beneath = match (&was_dir, &level.lower) {
            (Some(_), Some(lower)) => Some(at::open_dir(lower, name).map_err(failed)?),
            _ => None,
        };
        let changed = was_dir.as_ref().is_none_or(|below| !same_attributes(stat, below));
        let stub = was_dir.is_none() && self.stubs.contains(&full);
        self.parents.push((full.clone(), self.meta(stat)));
        let waiting = self.parents.len();
        if changed && !stub {
            self.parents()?;
        }
        Ok(Level { waiting, ..self.enter(dir, beneath, full, opaque)? })
    }

    fn file(
        &mut self,
        level: &Level,
        name: &[u8],
        full: &[u8],
        stat: &Stat,
        below: Option<&Stat>,
    ) -> Result<(), TreeError> {
        let failed = |e: Errno| TreeError::io("reading", full, e);
        let (upper, lower) = (&level.upper, level.lower.as_ref());
        let kind = at::kind(stat);
        if below.is_none() && kind == FileType::RegularFile && stat.st_size == 0 && self.stubs.contains(full)
        {
            return Ok(());
        }
        let file = match kind {
            FileType::RegularFile => Some(at::open_file(upper, name).map_err(failed)?),
            FileType::Symlink | FileType::Fifo => None,
            // A device can't be made in a user namespace; what is there is no part of an image.
            _ => return Ok(()),
        };
        let mut meta = self.meta(stat);
        if let Some(file) = &file {
            meta.capability = at::capability(file).map_err(failed)?;
        }
        if let (Some(below), Some(lower)) = (below, lower)
            && same_file(upper, lower, name, stat, below, meta.capability.as_ref()).map_err(failed)?
        {
            return Ok(());
        }
        self.parents()?;
        let several = (stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino));
        if let Some(first) = several.and_then(|inode| self.links.get(&inode)) {
            let first = first.clone();
            return self.entry(full, &meta, Body::Hardlink(&first));
        }
        match (kind, file) {
            (FileType::RegularFile, Some(file)) => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                self.regular(full, &meta, size, &file)?;
            }
            (FileType::Symlink, _) => {
                let target = at::read_link(upper, name).map_err(failed)?;
                self.entry(full, &meta, Body::Symlink(&target))?;
            }
            _ => self.entry(full, &meta, Body::Fifo)?,
        }
        if let Some(inode) = several {
            self.links.insert(inode, full.to_vec());
        }
        Ok(())
    }

    fn entry(&mut self, path: &[u8], meta: &Meta, body: Body<'_>) -> Result<(), TreeError> {
        if let Some(index) = &mut self.index {
            index.entry(path, meta, body)?;
        }
        self.tar.entry(path, meta, body)
    }

    fn regular(&mut self, path: &[u8], meta: &Meta, size: u64, file: &File) -> Result<(), TreeError> {
        if let Some(index) = self.index.as_mut().filter(|_| is_kept(path, size)) {
            let mut content = Vec::new();
            let read = file.take(size).read_to_end(&mut content);
            read.map_err(|e| TreeError::io("reading", path, e))?;
            index.with_content(path, meta, &content)?;
            self.tar.entry(path, meta, Body::File(size))?;
            return self.tar.content(path, size, content.as_slice());
        }
        self.entry(path, meta, Body::File(size))?;
        self.tar.file(path, size, file)
    }

    /// Writes the directories that wait.
    fn parents(&mut self) -> Result<(), TreeError> {
        for (path, meta) in std::mem::take(&mut self.parents) {
            self.entry(&path, &meta, Body::Directory)?;
        }
        Ok(())
    }

    fn meta(&self, stat: &Stat) -> Meta {
        let mut meta = Meta::of(stat);
        if self.exact {
            return meta;
        }
        meta.mtime.1 = 0;
        if let Some(epoch) = self.epoch {
            meta.mtime.0 = meta.mtime.0.min(epoch);
        }
        meta
    }
}

fn levels_deep(path: &[u8]) -> usize {
    if path.is_empty() { 0 } else { path.split(|b| *b == b'/').count() }
}

fn too_much() -> TreeError {
    TreeError::user(format!(
        "the step's changes are more than {} files or {} directories deep, the most that a layer may have",
        at::MAX_ENTRIES,
        at::MAX_DEPTH
    ))
}

fn same_attributes(a: &Stat, b: &Stat) -> bool {
    (a.st_mode, a.st_uid, a.st_gid, a.st_rdev) == (b.st_mode, b.st_uid, b.st_gid, b.st_rdev)
}

/// Whether a file was copied up and not changed. Layers have whole seconds, so equal times without a fraction prove
/// nothing, and the content decides.
fn same_file(
    upper: &OwnedFd,
    lower: &OwnedFd,
    name: &[u8],
    a: &Stat,
    b: &Stat,
    capability: Option<&Vec<u8>>,
) -> rustix::io::Result<bool> {
    if !same_attributes(a, b)
        || (a.st_size, a.st_mtime, a.st_mtime_nsec) != (b.st_size, b.st_mtime, b.st_mtime_nsec)
    {
        return Ok(false);
    }
    match at::kind(a) {
        FileType::RegularFile => {
            let below = at::open_file(lower, name)?;
            if at::capability(&below)?.as_ref() != capability {
                return Ok(false);
            }
            if a.st_mtime_nsec != 0 || a.st_size == 0 {
                return Ok(true);
            }
            same_content(at::open_file(upper, name)?, below)
        }
        FileType::Symlink => Ok(at::read_link(upper, name)? == at::read_link(lower, name)?),
        _ => Ok(true),
    }
}

fn same_content(a: File, b: File) -> rustix::io::Result<bool> {
    // 64 KiB of each: both are in the page cache or near it.
    let (mut a, mut b) = (BufReader::with_capacity(1 << 16, a), BufReader::with_capacity(1 << 16, b));
    let (mut x, mut y) = ([0u8; 4096], [0u8; 4096]);
    loop {
        let io = |e: std::io::Error| Errno::from_io_error(&e).unwrap_or(Errno::IO);
        let got = a.read(&mut x).map_err(io)?;
        if got == 0 {
            return Ok(b.read(&mut y).map_err(io)? == 0);
        }
        match b.read_exact(&mut y[..got]) {
            Ok(()) if x[..got] == y[..got] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(io(error)),
        }
    }
}
