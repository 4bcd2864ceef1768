//! The file trees of layers and views: unpack a layer, take a difference, copy files in, look users up. Everything goes
//! through directory handles, and a path in a tree is resolved inside that tree by the kernel.

mod error;

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::engine::{Destination, Diff, Owner, Selection, Unpacked, User};

pub use error::TreeError;

/// What a `.dockerignore` says of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// Part of the context.
    No,
    /// Left out, with all that is below it.
    Yes,
    /// Left out itself, but something below it may be part of the context.
    YesButLookInside,
}

fn unfinished<T>(what: &str) -> Result<T, TreeError> {
    Err(TreeError::Internal { message: format!("{what} is not written yet") })
}

/// Unpacks a compressed layer into the empty directory `dest`.
///
/// # Errors
/// [`TreeError::Image`] when the layer breaks a rule or a limit.
pub fn unpack(_blob: File, _media_type: &str, _dest: BorrowedFd<'_>) -> Result<Unpacked, TreeError> {
    unfinished("unpack")
}

/// Puts right what unpacking each layer alone could not (see [`crate::engine::Engine::settle`]). From the bottom up.
///
/// # Errors
/// [`TreeError::Image`] for a hardlink to nowhere.
pub fn settle(_layers: &[(OwnedFd, Unpacked)]) -> Result<(), TreeError> {
    unfinished("settle")
}

/// Writes what `upper` changes over `lower` as an OCI layer, an uncompressed tar, into `out`. `lower` is the merged view
/// of what is below (`None`: nothing); `stubs` are left out while they are as empty as they were made.
///
/// # Errors
/// [`TreeError::Space`] when `out` is full, else [`TreeError::Io`].
pub fn diff(
    _upper: BorrowedFd<'_>,
    _lower: Option<BorrowedFd<'_>>,
    _stubs: &[String],
    _epoch: Option<i64>,
    _out: File,
) -> Result<Diff, TreeError> {
    unfinished("diff")
}

/// Copies the entries of a stream that [`write_context`] wrote into `root`.
///
/// # Errors
/// [`TreeError::User`] when the destination does not fit the sources.
pub fn copy_stream(_root: BorrowedFd<'_>, _to: &Destination, _entries: File) -> Result<(), TreeError> {
    unfinished("copy_stream")
}

/// Copies files of `from_root` into `root`.
///
/// # Errors
/// [`TreeError::User`] for a missing source or an unfit destination.
pub fn copy_tree(
    _root: BorrowedFd<'_>,
    _to: &Destination,
    _from_root: BorrowedFd<'_>,
    _what: &Selection,
) -> Result<(), TreeError> {
    unfinished("copy_tree")
}

/// Writes the selected files of a build context as a stream for [`copy_stream`]. `ignore` is asked with the path
/// relative to the context and whether it is a directory.
///
/// # Errors
/// [`TreeError::User`] for a missing source.
pub fn write_context(
    _context: BorrowedFd<'_>,
    _what: &Selection,
    _ignore: &dyn Fn(&str, bool) -> Ignored,
    _out: File,
) -> Result<(), TreeError> {
    unfinished("write_context")
}

/// Makes a directory and its missing parents (0755, `owner`) in `root`; an existing one is left as it is.
///
/// # Errors
/// [`TreeError::User`] when something that is no directory is in the way.
pub fn make_directory(_root: BorrowedFd<'_>, _path: &str, _owner: Owner) -> Result<(), TreeError> {
    unfinished("make_directory")
}

/// Looks a USER up in the image's passwd and group files.
///
/// # Errors
/// [`TreeError::User`] for a name that is not there or a number out of range.
pub fn user(_root: BorrowedFd<'_>, _user: &str) -> Result<User, TreeError> {
    unfinished("user")
}

/// Looks a `--chown` up in the image's passwd and group files.
///
/// # Errors
/// [`TreeError::User`] for a number out of range.
pub fn owner(_root: BorrowedFd<'_>, _chown: &str) -> Result<Owner, TreeError> {
    unfinished("owner")
}

/// Removes the tree `name` of the directory `trees`; one that is not there is fine.
///
/// # Errors
/// [`TreeError::Io`].
pub fn remove(_trees: BorrowedFd<'_>, _name: &str) -> Result<(), TreeError> {
    unfinished("remove")
}
