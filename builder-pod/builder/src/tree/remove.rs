//! Removing a tree however deep it is, with one descriptor and no recursion: a step may leave directories nested deeper
//! than any path can name.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::TreeError;
use super::at;

/// Removes `name` from `dir` with all that is in it; nothing there is fine. Nobody else may change the tree meanwhile.
pub(super) fn remove_all(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), TreeError> {
    let failed = |e: Errno| TreeError::io("removing", name, e);
    let is_dir = match at::look(dir, name).map_err(failed)? {
        None => return Ok(()),
        Some(stat) => at::kind(&stat) == FileType::Directory,
    };
    if !is_dir {
        return rustix::fs::unlinkat(dir, name, AtFlags::empty()).map_err(failed);
    }
    // A level: the name of the directory that we are in, and its subdirectories still to be removed.
    let mut here = at::open_dir(dir, name).map_err(failed)?;
    let mut levels = vec![(name.to_vec(), empty_of_files(here.as_fd())?)];
    while let Some((_, subdirs)) = levels.last_mut() {
        if let Some(child) = subdirs.pop() {
            here = at::open_dir(&here, &child).map_err(failed)?;
            levels.push((child, empty_of_files(here.as_fd())?));
            continue;
        }
        let Some((done, _)) = levels.pop() else { break };
        if levels.is_empty() {
            return rustix::fs::unlinkat(dir, done.as_slice(), AtFlags::REMOVEDIR).map_err(failed);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        here = rustix::fs::openat(&here, "..", flags, Mode::empty()).map_err(failed)?;
        rustix::fs::unlinkat(&here, done.as_slice(), AtFlags::REMOVEDIR).map_err(failed)?;
    }
    Ok(())
}

/// Removes the empty file or directory `path` (clean) of `root`; anything else, or nothing, is left.
pub(super) fn remove_empty(root: BorrowedFd<'_>, path: &[u8]) -> Result<(), TreeError> {
    let failed = |e: Errno| TreeError::io("removing", path, e);
    let (above, name) = at::split(path);
    let dir = match at::open_plain(root, above) {
        // The step has put something else there, or the place was in another mount.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        opened => opened.map_err(failed)?,
    };
    let Some(stat) = at::look(&dir, name).map_err(failed)? else { return Ok(()) };
    let flags = match at::kind(&stat) {
        FileType::Directory => AtFlags::REMOVEDIR,
        FileType::RegularFile if stat.st_size == 0 => AtFlags::empty(),
        _ => return Ok(()),
    };
    match rustix::fs::unlinkat(&dir, name, flags) {
        Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Removes everything but directories and says which directories are left.
fn empty_of_files(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, TreeError> {
    let mut left = Vec::new();
    for name in at::list(dir, b".")? {
        match rustix::fs::unlinkat(dir, name.as_slice(), AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                match rustix::fs::unlinkat(dir, name.as_slice(), AtFlags::REMOVEDIR) {
                    Ok(()) => {}
                    Err(Errno::NOTEMPTY | Errno::EXIST) => left.push(name),
                    Err(error) => return Err(TreeError::io("removing", &name, error)),
                }
            }
            Err(error) => return Err(TreeError::io("removing", &name, error)),
        }
    }
    Ok(left)
}
