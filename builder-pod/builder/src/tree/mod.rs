//! The file trees of layers and views: unpack a layer, take a difference, copy files in, look users up. Everything goes
//! through directory handles, and a path in a tree is resolved inside that tree.
//!
//! | module | does |
//! |---|---|
//! | `at`, `walk`, `remove` | directory handles: look, open, resolve, remove |
//! | `decompress`, `tar_read`, `place`, `unpack`, `settle` | layer blob -> tree |
//! | `index`, `skeleton` | layer -> its index -> the part of it that somebody looks at |
//! | `diff`, `tar_write` | overlay's upper directory -> layer tar |
//! | `pattern`, `select`, `source` | which files a COPY takes -> events |
//! | `events`, `stream` | events, and their way over a pipe |
//! | `apply`, `archive`, `copy` | events -> tree |
//! | `users` | passwd and group files |

mod apply;
mod archive;
mod at;
mod copy;
mod decompress;
mod diff;
mod error;
mod events;
mod index;
mod pattern;
mod place;
mod remove;
mod select;
mod settle;
mod skeleton;
mod source;
mod stream;
mod tar_read;
mod tar_write;
#[cfg(test)]
mod tests;
mod unpack;
mod users;
mod walk;

use std::os::fd::BorrowedFd;

pub use copy::{
    copy_stream, copy_tree, digest_context, make_directory, unpack_plain, write_context, write_file,
    write_inline,
};
pub use diff::{archive_tree, diff};
pub use error::TreeError;
pub use index::index;
pub use settle::settle;
pub use skeleton::{Links, Look, Part, links, part, write_part};
pub use unpack::unpack;
pub use users::{owner, user};

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

/// Removes from an upper tree the mount points that were made in it, as far as they are as empty as they were made: what
/// stands on this tree is not to see them. `stubs` are paths from the root, parents first.
///
/// # Errors
/// [`TreeError::Io`].
pub fn remove_stubs(upper: BorrowedFd<'_>, stubs: &[String]) -> Result<(), TreeError> {
    stubs.iter().rev().try_for_each(|stub| remove::remove_empty(upper, &at::clean(stub.as_bytes())))
}

/// Removes the tree `name` of the directory `trees`; one that is not there is fine.
///
/// # Errors
/// [`TreeError::Internal`] for a name that is no single component, else [`TreeError::Io`].
pub fn remove(trees: BorrowedFd<'_>, name: &str) -> Result<(), TreeError> {
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        return Err(TreeError::Internal { message: format!("{name:?} is no name of a tree") });
    }
    let trees = at::open_dir(trees, b"").map_err(|e| TreeError::io("opening", name, e))?;
    remove::remove_all(std::os::fd::AsFd::as_fd(&trees), name.as_bytes())
}

/// What [`survey`] found in an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[doc(hidden)]
pub struct Survey {
    /// Entries.
    pub entries: u64,
    /// Bytes, decompressed.
    pub bytes: u64,
    /// Bytes of the longest name or target.
    pub longest_path: usize,
}

/// Reads an archive to its end and writes nothing: what the fuzzer reaches of the readers.
///
/// # Errors
/// As [`unpack`], and past `limit` bytes.
#[doc(hidden)]
pub fn survey(archive: impl std::io::Read, limit: u64) -> Result<Survey, TreeError> {
    archive::survey(archive, limit)
}
