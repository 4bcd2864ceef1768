//! The last look at a checkout: `.git` goes unless it is wanted, every file can be read by the builder (another user), times
//! are the commit's, and all is counted.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::error::Fault;
use crate::limits::{Budget, MAX_DEPTH};

/// The mode that a file of a source gets: its owner's rights to read and to execute are everybody's, as in a git checkout, and
/// nothing else counts. The build is another user than the fetch, and no source says whose its files are.
pub fn mode_of(mode: u32) -> u32 {
    let executable = if mode & 0o100 == 0 { 0 } else { 0o111 };
    0o644 | executable
}

/// Both times of a file, from seconds and nanoseconds.
pub fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// A file through its directory's descriptor: no component of the path is looked up again.
pub fn path_in(dir: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    path.push(std::ffi::OsStr::from_bytes(name));
    path
}

/// Tidies `tree`: its files get that time, and `.git` goes unless it is to be kept.
///
/// # Errors
/// [`crate::error::Kind::TooLarge`]; a fault of the file system.
pub fn tidy(tree: &Path, seconds: i64, keep_git: bool) -> Result<(), Fault> {
    let root = rustix::fs::openat(CWD, tree, DIRECTORY, Mode::empty())
        .map_err(|e| Fault::internal(format!("opening {}: {e}", tree.display())))?;
    directory(root.as_fd(), &Wanted { seconds, keep_git }, 0, &mut Budget::default())
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

struct Wanted {
    seconds: i64,
    keep_git: bool,
}

fn directory(dir: BorrowedFd<'_>, wanted: &Wanted, depth: usize, budget: &mut Budget) -> Result<(), Fault> {
    if depth > MAX_DEPTH {
        return Err(Fault::invalid(format!("the source has directories deeper than {MAX_DEPTH}")));
    }
    let failed = |e: Errno| Fault::internal(format!("looking through the checkout: {e}"));
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    for name in names {
        if name.to_bytes() == b".git" {
            // Only git's own: a tree that holds such a name is refused by git (core.protectHFS, core.protectNTFS).
            if !wanted.keep_git {
                remove(dir, &name)?;
            }
            continue;
        }
        budget.file()?;
        let stat = rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let below: OwnedFd =
                    rustix::fs::openat(dir, &name, DIRECTORY, Mode::empty()).map_err(failed)?;
                directory(below.as_fd(), wanted, depth + 1, budget)?;
            }
            FileType::RegularFile => {
                budget.bytes(stat.st_size.unsigned_abs())?;
                let mode = Mode::from_raw_mode(mode_of(stat.st_mode));
                rustix::fs::chmodat(dir, &name, mode, AtFlags::empty()).map_err(failed)?;
            }
            FileType::Symlink => {}
            _ => {
                return Err(Fault::invalid(
                    "the source has a file that is neither regular, directory nor link",
                ));
            }
        }
        rustix::fs::utimensat(dir, &name, &times((wanted.seconds, 0)), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed)?;
    }
    rustix::fs::fchmod(dir, Mode::from_raw_mode(0o755)).map_err(failed)?;
    rustix::fs::futimens(dir, &times((wanted.seconds, 0))).map_err(failed)
}

fn remove(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<(), Fault> {
    let failed = |e: String| Fault::internal(format!("removing .git: {e}"));
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {
            let path = path_in(dir, name.to_bytes());
            std::fs::remove_dir_all(path).map_err(|e| failed(e.to_string()))
        }
        Err(e) => Err(failed(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn git_goes_and_all_can_be_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("sub/.git/x")).expect("made");
        std::fs::write(path(".git"), "gitdir: x").expect("written");
        std::fs::write(path("sub/run"), "x").expect("written");
        std::fs::set_permissions(path("sub/run"), std::fs::Permissions::from_mode(0o4700)).expect("set");
        std::os::unix::fs::symlink("/nowhere", path("link")).expect("linked");
        tidy(dir.path(), 1000, false).expect("tidied");
        assert!(!path(".git").exists() && !path("sub/.git").exists());
        let run = std::fs::metadata(path("sub/run")).expect("there");
        assert_eq!((run.mode() & 0o7777, run.mtime()), (0o755, 1000));
        let link = std::fs::symlink_metadata(path("link")).expect("there");
        assert_eq!((link.mtime(), std::fs::metadata(path("sub")).expect("there").mtime()), (1000, 1000));
        assert_eq!((mode_of(0o600), mode_of(0o750), mode_of(0o100_666)), (0o644, 0o755, 0o644));
    }
}
