//! Files of a git repository, as the courier checked them out, in a directory of ours.

use std::fs::File;
use std::io::Seek as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use kiln_contract::source::Git;
use rustix::fs::{CWD, Mode, OFlags};

use super::failure::{Halt, internal, of_engine};
use super::spool::spool_file;
use crate::courier::Courier;
use crate::tree;

/// A checkout; its files go with it.
#[derive(Debug)]
pub struct Checkout {
    root: OwnedFd,
    path: PathBuf,
    commit: String,
}

impl Checkout {
    /// Has `source` checked out into the new directory `name` of `spool`.
    ///
    /// # Errors
    /// The courier's, or there is no room.
    pub fn fetch(courier: &dyn Courier, source: &Git, spool: &Path, name: &str) -> Result<Self, Halt> {
        let mut tar = spool_file(spool, &format!("{name}.tar"))?;
        let commit = courier.fetch_git(source, tar.as_fd())?;
        let path = spool.join(name);
        let fault = |e: std::io::Error| internal(format!("making {}: {e}", path.display()));
        tar.rewind().map_err(fault)?;
        std::fs::create_dir(&path).map_err(fault)?;
        let opened = rustix::fs::openat(CWD, &path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let root = opened.map_err(|e| fault(e.into()))?;
        let checkout = Self { root, path, commit };
        tree::unpack_plain(checkout.root(), tar).map_err(|e| of_engine(&e.into(), None))?;
        Ok(checkout)
    }

    /// The commit that it is of.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// Its directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) else { return };
        // What stays goes with the workspace.
        if let (Ok(parent), Some(name)) = (File::open(parent), name.to_str()) {
            let _ = tree::remove(parent.as_fd(), name);
        }
    }
}
