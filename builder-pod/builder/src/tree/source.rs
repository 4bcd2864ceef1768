//! Walking the sources of a COPY or ADD: directory handles in, events out.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::at::{self, Meta};
use super::events::{Content, Event, Sink, Why};
use super::pattern::{Matched, Patterns};
use super::select::{Ignore, Seen, Source};
use super::{Ignored, TreeError};
use crate::engine::Owner;

/// Tells the files of sources to a sink.
pub(super) struct Walker<'a> {
    sink: &'a mut dyn Sink,
    excludes: &'a Patterns,
    seen: Seen<'a>,
    /// Whose all files are; `None`: whose they are.
    owner: Option<Owner>,
    entries: u64,
    /// Of the source that is walked.
    links: HashMap<(u64, u64), u64>,
    include: Option<&'a Patterns>,
    /// Directories that we are in and that were not told yet.
    waiting: Vec<(Vec<u8>, Meta, Why)>,
}

/// A directory that we are in. The stack of them is on the heap: a context may nest directories as deep as it likes.
struct Level {
    dir: OwnedFd,
    /// From the tree's root; from the source.
    path: Vec<u8>,
    inner: Vec<u8>,
    included: Matched,
    excluded: Matched,
    left: std::vec::IntoIter<Vec<u8>>,
    /// How many directories waited, this one among them.
    waiting: usize,
}

impl<'a> Walker<'a> {
    /// A walker that tells to `sink`.
    pub fn new(
        sink: &'a mut dyn Sink,
        excludes: &'a Patterns,
        ignore: Option<Ignore<'a>>,
        owner: Option<Owner>,
    ) -> Self {
        Self {
            sink,
            excludes,
            seen: Seen { ignore },
            owner,
            entries: 0,
            links: HashMap::new(),
            include: None,
            waiting: Vec::new(),
        }
    }

    /// Tells of one source and all that is in it.
    pub fn source(&mut self, source: &'a Source) -> Result<(), TreeError> {
        self.links.clear();
        self.include = source.include.as_ref();
        let failed = |e: Errno| TreeError::io("reading", &source.path, e);
        let stat =
            at::look(&source.dir, &source.entry).and_then(|stat| stat.ok_or(Errno::NOENT)).map_err(failed)?;
        let name = source.name.clone();
        if at::kind(&stat) != FileType::Directory {
            self.tell(&Event::Source { name, directory: None })?;
            return self.file(source.dir.as_fd(), &source.entry, b"", &source.path, &stat);
        }
        self.tell(&Event::Source { name, directory: Some(self.meta(&stat)) })?;
        let dir = at::open_dir(&source.dir, &source.entry).map_err(failed)?;
        let names = self.list(&dir, &source.path)?;
        let mut levels = vec![Level {
            dir,
            path: source.path.clone(),
            inner: Vec::new(),
            included: Matched::default(),
            excluded: Matched::default(),
            left: names,
            // Never: the source itself was told.
            waiting: usize::MAX,
        }];
        while let Some(level) = levels.last_mut() {
            if let Some(name) = level.left.next() {
                let Some(next) = self.child(level, name)? else { continue };
                levels.push(next);
                if levels.len() > at::MAX_DEPTH {
                    return Err(TreeError::user(format!(
                        "{:?} has directories more than {} deep, the most that a copy follows",
                        String::from_utf8_lossy(&source.path),
                        at::MAX_DEPTH
                    )));
                }
                continue;
            }
            if self.waiting.len() == level.waiting {
                self.waiting.pop();
            } else {
                self.tell(&Event::Leave)?;
            }
            levels.pop();
        }
        Ok(())
    }

    fn list(&mut self, dir: &OwnedFd, path: &[u8]) -> Result<std::vec::IntoIter<Vec<u8>>, TreeError> {
        let names = at::list(dir.as_fd(), path)?;
        self.entries += names.len() as u64;
        if self.entries > at::MAX_ENTRIES {
            let most = at::MAX_ENTRIES;
            return Err(TreeError::user(format!(
                "a copy looks at more than {most} files, the most that one may: leave some out"
            )));
        }
        Ok(names.into_iter())
    }

    /// Tells of one name in a directory; the directory that it is, if it is to be entered.
    fn child(&mut self, level: &Level, name: Vec<u8>) -> Result<Option<Level>, TreeError> {
        let path = at::join(&level.path, &name);
        let inner = at::join(&level.inner, &name);
        let failed = |e: Errno| TreeError::io("reading", &path, e);
        let Some(stat) = at::look(&level.dir, &name).map_err(failed)? else { return Ok(None) };
        let is_dir = at::kind(&stat) == FileType::Directory;
        let ignored = self.seen.ask(&path, is_dir);
        if ignored == Ignored::Yes || (ignored == Ignored::YesButLookInside && !is_dir) {
            return Ok(None);
        }
        let (mut take, included) = match self.include {
            Some(include) => include.matches(&inner, &level.included),
            None => (true, Matched::default()),
        };
        let (exclude, excluded) = self.excludes.matches(&inner, &level.excluded);
        take &= !exclude;
        if !is_dir {
            if take {
                self.file(level.dir.as_fd(), &name, &name, &path, &stat)?;
            }
            return Ok(None);
        }
        let inside = if exclude {
            self.excludes.takes_back()
        } else {
            self.include.is_some_and(|include| include.may_match_below(&inner))
        };
        if !take && !inside {
            return Ok(None);
        }
        let dir = at::open_dir(&level.dir, &name).map_err(failed)?;
        let why = if take { Why::Chosen } else { Why::Parent };
        self.waiting.push((name, self.meta(&stat), why));
        let waiting = self.waiting.len();
        if take && ignored == Ignored::No {
            self.flush()?;
        }
        let left = self.list(&dir, &path)?;
        Ok(Some(Level { dir, path, inner, included, excluded, left, waiting }))
    }

    /// Tells of what is no directory: `entry` in `dir`, called `name` in the copy.
    fn file(
        &mut self,
        dir: BorrowedFd<'_>,
        entry: &[u8],
        name: &[u8],
        path: &[u8],
        stat: &Stat,
    ) -> Result<(), TreeError> {
        let failed = |e: Errno| TreeError::io("reading", path, e);
        let mut meta = self.meta(stat);
        let name = name.to_vec();
        match at::kind(stat) {
            FileType::RegularFile => {
                self.flush()?;
                let mut link = None;
                if stat.st_nlink > 1 {
                    let next = self.links.len() as u64;
                    match self.links.entry((stat.st_dev, stat.st_ino)) {
                        std::collections::hash_map::Entry::Occupied(known) => {
                            let link = *known.get();
                            return self.tell(&Event::Hardlink { name, link });
                        }
                        std::collections::hash_map::Entry::Vacant(new) => link = Some(*new.insert(next)),
                    }
                }
                let mut file = at::open_file(dir, entry).map_err(failed)?;
                // The kernel takes the capability of a file that gets another owner, and so BuildKit's contexts have none.
                if self.owner.is_none() {
                    meta.capability = at::capability(&file).map_err(failed)?;
                }
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                self.sink.event(&Event::File { name, meta, size, link }, Content::File(&mut file))
            }
            FileType::Symlink => {
                self.flush()?;
                let target = at::read_link(dir, entry).map_err(failed)?;
                self.tell(&Event::Symlink { name, meta, target })
            }
            FileType::Fifo => {
                self.flush()?;
                self.tell(&Event::Fifo { name, meta })
            }
            // Sockets and devices are no part of an image that anyone can build without privileges.
            _ => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), TreeError> {
        for (name, meta, why) in std::mem::take(&mut self.waiting) {
            self.tell(&Event::Directory { name, meta, why })?;
        }
        Ok(())
    }

    fn tell(&mut self, event: &Event) -> Result<(), TreeError> {
        self.sink.event(event, Content::None)
    }

    fn meta(&self, stat: &Stat) -> Meta {
        let meta = Meta::of(stat);
        Meta { owner: self.owner.unwrap_or(meta.owner), ..meta }
    }
}
