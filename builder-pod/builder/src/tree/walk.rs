//! Following a path whose end, or whose middle, may not be there yet: component by component, each opened without
//! following it, links resolved with the tree's root as `/`.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::TreeError;
use super::at;

/// Most links followed for one path: the kernel's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// Most components followed for one path, those of links among them: the deepest directory, and as much again on the way.
/// Forty links of a thousand `x/..` each would make every entry of a small archive cost tens of thousands of system calls.
const MAX_COMPONENTS: usize = 2 * at::MAX_DEPTH + 224;

/// Where a path leads.
#[derive(Debug)]
pub(super) struct Place {
    /// The directory it is in, or it is.
    pub dir: OwnedFd,
    /// Its name there; empty: `dir` itself is meant.
    pub name: Vec<u8>,
    /// Path from the root without links, `name` included.
    pub path: Vec<u8>,
}

/// How a directory is missing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Missing {
    /// Something else is there.
    pub occupied: bool,
    /// A link's target asked for it, not the path itself.
    pub by_link: bool,
}

/// What a walk asks its caller.
pub(super) trait Guide {
    /// `name` in `dir` (`path` from the root) is needed as a directory and is not one. Make it, or say why not.
    fn missing(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        how: Missing,
    ) -> Result<(), TreeError>;

    /// Whether `path` may be seen at all.
    fn visible(&mut self, _path: &[u8], _kind: FileType) -> bool {
        true
    }
}

/// A guide that makes nothing.
#[derive(Debug)]
pub(super) struct Strict;

impl Guide for Strict {
    fn missing(&mut self, _: BorrowedFd<'_>, _: &[u8], path: &[u8], how: Missing) -> Result<(), TreeError> {
        Err(TreeError::io("opening", path, if how.occupied { Errno::NOTDIR } else { Errno::NOENT }))
    }
}

/// Follows `path` from `root`. A link at the end is followed when `follow_last`; the end itself need not be there.
pub(super) fn walk(
    root: BorrowedFd<'_>,
    path: &[u8],
    follow_last: bool,
    guide: &mut dyn Guide,
) -> Result<Place, TreeError> {
    let open = |dir: BorrowedFd<'_>, name: &[u8]| {
        rustix::fs::openat(
            dir,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
    };
    let failed = |e: Errno| TreeError::io("following", path, e);
    let start = || root.try_clone_to_owned().map_err(|e| TreeError::io("following", path, e));
    let mut rest: VecDeque<Vec<u8>> = parts(path).collect();
    let mut done: Vec<Vec<u8>> = Vec::new();
    let mut here = start()?;
    let mut links = 0;
    let mut components = 0;
    // How many components at the front of `rest` come from links.
    let mut from_links = 0usize;
    while let Some(part) = rest.pop_front() {
        components += 1;
        if components > MAX_COMPONENTS {
            return Err(failed(Errno::LOOP));
        }
        let by_link = from_links > 0;
        from_links = from_links.saturating_sub(1);
        if part == b".." {
            done.pop();
            here = at::open_plain(root, &done.join(&b'/')).map_err(failed)?;
            continue;
        }
        let last = rest.is_empty();
        let full = at::join(&done.join(&b'/'), &part);
        if full.len() > at::MAX_PATH {
            return Err(failed(Errno::NAMETOOLONG));
        }
        if last && !follow_last {
            return Ok(Place { dir: here, name: part, path: full });
        }
        let found = match open(here.as_fd(), &part) {
            Ok(found) => {
                let kind = at::kind(&rustix::fs::fstat(&found).map_err(failed)?);
                guide.visible(&full, kind).then_some((found, kind))
            }
            Err(Errno::NOENT) => None,
            Err(error) => return Err(failed(error)),
        };
        match found {
            Some((found, FileType::Directory)) => {
                here = found;
                done.push(part);
            }
            Some((found, FileType::Symlink)) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(failed(Errno::LOOP));
                }
                let target = at::read_link(&found, b"").map_err(failed)?;
                if target.first() == Some(&b'/') {
                    done.clear();
                    here = start()?;
                }
                for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                    rest.push_front(part);
                    from_links += 1;
                }
            }
            _ if last => return Ok(Place { dir: here, name: part, path: full }),
            other => {
                guide.missing(here.as_fd(), &part, &full, Missing { occupied: other.is_some(), by_link })?;
                here = at::open_dir(&here, &part).map_err(failed)?;
                done.push(part);
            }
        }
    }
    Ok(Place { dir: here, name: Vec::new(), path: done.join(&b'/') })
}

fn parts(path: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").map(<[u8]>::to_vec)
}
