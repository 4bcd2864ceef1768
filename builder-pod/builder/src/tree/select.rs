//! Which files a COPY or ADD takes: sources as written -> paths in their tree.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::at;
use super::pattern::{Patterns, has_wildcards, match_component};
use super::walk::{Guide, Missing, Strict, walk};
use super::{Ignored, TreeError};
use crate::engine::Selection;

/// Says what a `.dockerignore` says; see [`super::write_context`].
pub(super) type Ignore<'a> = &'a dyn Fn(&str, bool) -> Ignored;

/// One source that was found.
#[derive(Debug)]
pub(super) struct Source {
    /// Its name where the instruction (or a pattern) has it: what it is called in a destination directory.
    pub name: Vec<u8>,
    /// The directory that it is in, links resolved, and its name there; no name: the directory itself.
    pub dir: OwnedFd,
    pub entry: Vec<u8>,
    /// Its path without links.
    pub path: Vec<u8>,
    /// `--parents`: what to take of it.
    pub include: Option<Patterns>,
}

/// Looks as if ignored files were not there.
pub(super) struct Seen<'a> {
    pub ignore: Option<Ignore<'a>>,
}

impl Seen<'_> {
    /// What is said of a path; one that is no text can't be named in a `.dockerignore`.
    pub fn ask(&self, path: &[u8], is_dir: bool) -> Ignored {
        match (self.ignore, std::str::from_utf8(path)) {
            (Some(ignore), Ok(path)) if !path.is_empty() => ignore(path, is_dir),
            _ => Ignored::No,
        }
    }
}

impl Guide for Seen<'_> {
    fn missing(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        how: Missing,
    ) -> Result<(), TreeError> {
        Strict.missing(dir, name, path, how)
    }

    fn visible(&mut self, path: &[u8], kind: FileType) -> bool {
        match self.ask(path, kind == FileType::Directory) {
            Ignored::No => true,
            Ignored::YesButLookInside => kind == FileType::Directory,
            Ignored::Yes => false,
        }
    }
}

/// Finds every source, in the order in which they are written and, for a pattern, of their names.
///
/// # Errors
/// `missing(source)` for one that is not there; a pattern may match nothing.
pub(super) fn select(
    root: BorrowedFd<'_>,
    what: &Selection,
    ignore: Option<Ignore<'_>>,
    missing: &dyn Fn(&str) -> TreeError,
) -> Result<Vec<Source>, TreeError> {
    let mut found = Vec::new();
    for written in &what.sources {
        let gone = |error: TreeError| {
            let about = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::NAMETOOLONG];
            if about.into_iter().any(|errno| error.is(errno)) { missing(written) } else { error }
        };
        if !what.parents {
            let source = at::clean(written.as_bytes());
            expand(root, &source, ignore, &mut found).map_err(gone)?;
            continue;
        }
        // `a/./b`: below `a`, with the parents of `b` from there on.
        let (base, pattern) = written.split_once("/./").unwrap_or(("", written));
        let pattern = at::clean(pattern.as_bytes());
        if !has_wildcards(base.as_bytes()) && !has_wildcards(&pattern) {
            let required = at::join(&at::clean(base.as_bytes()), &pattern);
            literal(root, &required, ignore).map_err(gone)?;
        }
        let first = found.len();
        expand(root, &at::clean(base.as_bytes()), ignore, &mut found).map_err(gone)?;
        for source in &mut found[first..] {
            let pattern = String::from_utf8_lossy(&pattern).into_owned();
            let patterns = Patterns::new(&[pattern])?;
            // The root itself: all of it.
            source.include = (!patterns.is_empty()).then_some(patterns);
        }
    }
    Ok(found)
}

/// Resolves a path that must be there.
fn literal(root: BorrowedFd<'_>, path: &[u8], ignore: Option<Ignore<'_>>) -> Result<Source, TreeError> {
    let mut seen = Seen { ignore };
    let place = walk(root, path, true, &mut seen)?;
    let source = Source {
        name: at::split(path).1.to_vec(),
        dir: place.dir,
        entry: place.name,
        path: place.path,
        include: None,
    };
    let gone = |e: Errno| TreeError::io("opening", path, e);
    match at::look(&source.dir, &source.entry).map_err(gone)? {
        Some(stat) if seen.visible(&source.path, at::kind(&stat)) => {}
        _ => return Err(gone(Errno::NOENT)),
    }
    // A directory of which nothing is left is not there.
    let excepted = seen.ask(&source.path, true) == Ignored::YesButLookInside;
    if source.entry.is_empty() && excepted {
        let dir = at::open_dir(&source.dir, b"").map_err(gone)?;
        if !any_visible(dir.as_fd(), &source.path, &seen)? {
            return Err(gone(Errno::NOENT));
        }
    }
    Ok(source)
}

fn below(path: &[u8], inner: &[u8]) -> Vec<u8> {
    if inner.is_empty() { path.to_vec() } else { at::join(path, inner) }
}

/// Whether something in a directory is not ignored.
fn any_visible(dir: BorrowedFd<'_>, path: &[u8], seen: &Seen<'_>) -> Result<bool, TreeError> {
    let mut inside = vec![Vec::new()];
    while let Some(inner) = inside.pop() {
        let here = at::open_plain(dir, &inner).map_err(|e| TreeError::io("opening", path, e))?;
        for name in at::list(here.as_fd(), path)? {
            let full = at::join(&below(path, &inner), &name);
            let failed = |e: Errno| TreeError::io("looking at", &full, e);
            let Some(stat) = at::look(&here, &name).map_err(failed)? else { continue };
            let is_dir = at::kind(&stat) == FileType::Directory;
            match seen.ask(&full, is_dir) {
                Ignored::No => return Ok(true),
                // What is deeper than the copy goes is not there for it.
                Ignored::YesButLookInside if is_dir && full.len() < at::MAX_PATH => {
                    inside.push(at::join(&inner, &name));
                }
                _ => {}
            }
        }
    }
    Ok(false)
}

/// Finds what `source` (clean) stands for: itself, or what its patterns match. Links are followed up to the first pattern
/// and at the end, not where patterns choose.
fn expand(
    root: BorrowedFd<'_>,
    source: &[u8],
    ignore: Option<Ignore<'_>>,
    found: &mut Vec<Source>,
) -> Result<(), TreeError> {
    let parts: Vec<&[u8]> = source.split(|b| *b == b'/').filter(|part| !part.is_empty()).collect();
    let Some(first) = parts.iter().position(|part| has_wildcards(part)) else {
        found.push(literal(root, source, ignore)?);
        return Ok(());
    };
    if parts.len() > at::MAX_DEPTH {
        return Err(TreeError::user(format!(
            "a source of {} directories; at most {} are followed",
            parts.len(),
            at::MAX_DEPTH
        )));
    }
    let base = walk(root, &parts[..first].join(&b'/'), true, &mut Seen { ignore })?;
    if !base.name.is_empty() {
        return Err(TreeError::io("opening", source, Errno::NOENT));
    }
    let base_dir = at::open_dir(&base.dir, b"").map_err(|e| TreeError::io("opening", &base.path, e))?;
    let mut paths = Vec::new();
    matches(base_dir.as_fd(), &base.path, &parts[first..], &mut Seen { ignore }, &mut paths)?;
    for path in paths {
        found.push(literal(root, &path, ignore)?);
    }
    Ok(())
}

fn matches(
    dir: BorrowedFd<'_>,
    path: &[u8],
    parts: &[&[u8]],
    seen: &mut Seen<'_>,
    paths: &mut Vec<Vec<u8>>,
) -> Result<(), TreeError> {
    let Some((pattern, rest)) = parts.split_first() else { return Ok(()) };
    for name in at::list(dir, path)? {
        if !match_component(pattern, &name) {
            continue;
        }
        let full = at::join(path, &name);
        let failed = |e: Errno| TreeError::io("looking at", &full, e);
        let Some(stat) = at::look(dir, &name).map_err(failed)? else { continue };
        if !seen.visible(&full, at::kind(&stat)) {
            continue;
        }
        if rest.is_empty() {
            let excepted = seen.ask(&full, true) == Ignored::YesButLookInside;
            if at::kind(&stat) == FileType::Directory && excepted {
                let below = at::open_dir(dir, &name).map_err(failed)?;
                if !any_visible(below.as_fd(), &full, seen)? {
                    continue;
                }
            }
            paths.push(full);
        } else if at::kind(&stat) == FileType::Directory {
            let below = at::open_dir(dir, &name).map_err(failed)?;
            matches(below.as_fd(), &full, rest, seen, paths)?;
        }
    }
    Ok(())
}
