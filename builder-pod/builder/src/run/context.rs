//! The build context as `solve` asks for it: selected files, without those that the ignore file leaves out.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kiln_dockerfile::IgnoreFile;
use kiln_dockerfile::ignore::Matched;

use super::Root;
use crate::engine::{EngineError, EngineErrorKind, Selection};
use crate::solve::{Checkout, Context};
use crate::tree::{Ignored, digest_context, write_context};

/// The build context and the named ones that are directories.
#[derive(Debug)]
pub(super) struct LocalContexts {
    main: Directory,
    named: BTreeMap<String, Directory>,
}

/// A directory and its ignore file.
#[derive(Debug)]
pub(super) struct Directory {
    pub root: Place,
    pub ignore: IgnoreFile,
}

/// Where a directory is.
#[derive(Debug)]
pub(super) enum Place {
    Opened(Root),
    /// Its files go in the end.
    CheckedOut(Checkout),
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Opened(root) => root.as_fd(),
            Self::CheckedOut(checkout) => checkout.root(),
        }
    }
}

impl LocalContexts {
    pub fn new(main: Directory, named: BTreeMap<String, Directory>) -> Self {
        Self { main, named }
    }

    fn directory(&self, name: Option<&str>) -> Result<&Directory, EngineError> {
        let Some(name) = name else { return Ok(&self.main) };
        self.named.get(name).ok_or_else(|| EngineError {
            kind: EngineErrorKind::Internal,
            message: format!("the context {name} was not opened"),
        })
    }
}

impl Context for LocalContexts {
    fn send(&self, name: Option<&str>, what: &Selection, out: OwnedFd) -> Result<(), EngineError> {
        let directory = self.directory(name)?;
        let verdicts = Verdicts { ignore: &directory.ignore, above: RefCell::new(Vec::new()) };
        let ignored = |path: &str, is_dir: bool| verdicts.of(path, is_dir);
        Ok(write_context(directory.root.as_fd(), what, &ignored, File::from(out))?)
    }

    fn digest(&self, name: Option<&str>, what: &Selection) -> Result<String, EngineError> {
        let directory = self.directory(name)?;
        let verdicts = Verdicts { ignore: &directory.ignore, above: RefCell::new(Vec::new()) };
        let ignored = |path: &str, is_dir: bool| verdicts.of(path, is_dir);
        Ok(digest_context(directory.root.as_fd(), what, &ignored)?)
    }
}

/// Verdicts of the ignore file. What it said of a directory is needed for all that is below it, so the directories above
/// the last path are remembered: a walk asks for one after the other.
struct Verdicts<'a> {
    ignore: &'a IgnoreFile,
    /// (path, what matched), from the root down; each is the parent of the next.
    above: RefCell<Vec<(String, Matched)>>,
}

impl Verdicts<'_> {
    fn of(&self, path: &str, is_dir: bool) -> Ignored {
        if path.is_empty() || path == "." {
            return Ignored::No;
        }
        let mut above = self.above.borrow_mut();
        let is_above = |dir: &str| path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'));
        while above.last().is_some_and(|(dir, _)| !is_above(dir)) {
            above.pop();
        }
        let known = above.last().map_or(0, |(dir, _)| dir.len() + 1);
        for (at, _) in path[known..].match_indices('/') {
            let dir = &path[..known + at];
            let matched = self.step(dir, &above).1;
            above.push((dir.to_owned(), matched));
        }
        match self.step(path, &above).0 {
            false => Ignored::No,
            true if is_dir && self.ignore.may_include_below(path) => Ignored::YesButLookInside,
            true => Ignored::Yes,
        }
    }

    fn step(&self, path: &str, above: &[(String, Matched)]) -> (bool, Matched) {
        let root = Matched::default();
        self.ignore.walk(path, above.last().map_or(&root, |(_, matched)| matched))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_follow_the_walk_in_any_order() {
        let ignore = IgnoreFile::parse("a\n!a/keep\n*.log\n").unwrap();
        let verdicts = Verdicts { ignore: &ignore, above: RefCell::new(Vec::new()) };
        for (path, is_dir, expected) in [
            (".", true, Ignored::No),
            ("a", true, Ignored::YesButLookInside),
            ("a/x", true, Ignored::Yes),
            ("a/keep", true, Ignored::No),
            ("a/keep/deep/file", false, Ignored::No),
            ("b/c", false, Ignored::No),
            ("x.log", false, Ignored::Yes),
            ("a/x/y", false, Ignored::Yes),
        ] {
            assert_eq!(verdicts.of(path, is_dir), expected, "{path}");
        }
    }
}
