//! Calls to the courier: what the build may ask of the one process that holds credentials. [`Courier`] is the seam that
//! `solve` speaks to; [`Client`] is the real one, over the courier's Unix socket.

mod client;
mod frame;

use std::os::fd::{BorrowedFd, OwnedFd};

use kiln_contract::cache::{BuildRecord, CacheEntry};
use kiln_contract::call::Stored;
use kiln_contract::image::ResolvedImage;
use kiln_contract::journal::Event;
use kiln_contract::source::Git;
use kiln_contract::{Descriptor, Failure};

use crate::engine::Secret;

pub use client::{Client, SOCKET_WAIT};

/// What the courier says after a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Digest of the manifest.
    pub digest: String,
    /// The references that name it now.
    pub references: Vec<String>,
}

/// What was downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes.
    pub size: u64,
    /// `sha256:…` of them.
    pub digest: String,
    /// When the server says that it was changed, in Unix seconds.
    pub modified: Option<i64>,
}

/// An entry of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// Names it in [`Courier::read_blob`] and [`Courier::put_base_blob`].
    pub image: String,
    /// What it says.
    pub entry: CacheEntry,
}

/// Why a call brought no answer of the wished kind.
#[derive(Debug, thiserror::Error)]
pub enum CourierError {
    /// The courier did what it could and says why it did not work.
    #[error("{0}")]
    Failed(Box<Failure>),
    /// There is no talking with the courier any more.
    #[error("the courier is lost ({during}): {source}")]
    Lost {
        /// What was being done.
        during: &'static str,
        /// What the socket said.
        source: std::io::Error,
    },
    /// The courier answered with something that the call has no use for: builder and courier are not of one release.
    #[error("the courier answered {call} with {found}; builder and courier image must be of one release")]
    Unexpected {
        /// What was asked.
        call: &'static str,
        /// What came.
        found: String,
    },
    /// The build was told to stop while it waited.
    #[error("the build was told to stop")]
    Stopped,
}

/// A blob that goes to the output while it is written. One that is dropped is not needed any more.
pub trait Growing: Send {
    /// So many bytes of the file are there.
    ///
    /// # Errors
    /// The courier is lost.
    fn grown(&mut self, bytes: u64) -> Result<(), CourierError>;

    /// The file is whole, and is this blob.
    ///
    /// # Errors
    /// As [`Courier::put_blob`].
    fn put(self: Box<Self>, blob: &Descriptor) -> Result<Stored, CourierError>;
}

/// The calls of `kiln_contract::call`. They may be made from several threads.
pub trait Courier: Send + Sync {
    /// Pins a reference to the manifest of one platform.
    ///
    /// # Errors
    /// The registry has no such image, or does not answer.
    fn resolve(&self, reference: &str, platform: &str) -> Result<ResolvedImage, CourierError>;

    /// Has a blob of a resolved image written into `into` (a pipe's write end), to its end.
    ///
    /// # Errors
    /// The blob is short, wrong or not to be had.
    fn read_blob(&self, image: &str, blob: &Descriptor, into: OwnedFd) -> Result<(), CourierError>;

    /// Has a URL downloaded into `file` (regular, writable), which must have the digest `checksum` if there is one.
    ///
    /// # Errors
    /// It is not there, not to be had, or something else.
    fn fetch(&self, url: &str, checksum: Option<&str>, file: BorrowedFd<'_>)
    -> Result<Fetched, CourierError>;

    /// Has a git repository checked out and its files written as a tar into `file` (regular, writable); its commit.
    ///
    /// # Errors
    /// As [`Courier::fetch`].
    fn fetch_git(&self, source: &Git, file: BorrowedFd<'_>) -> Result<String, CourierError>;

    /// Gives a blob to the output; `file` is readable and seekable.
    ///
    /// # Errors
    /// The output does not take it.
    fn put_blob(&self, blob: &Descriptor, file: BorrowedFd<'_>) -> Result<Stored, CourierError>;

    /// Gives a blob to the output that is still being written; `file` is readable and seekable, and grows at its end.
    ///
    /// # Errors
    /// The courier is lost.
    fn begin_blob(&self, file: BorrowedFd<'_>) -> Result<Box<dyn Growing>, CourierError>;

    /// Gives a blob of a resolved image to the output.
    ///
    /// # Errors
    /// As [`Courier::put_blob`].
    fn put_base_blob(&self, image: &str, blob: &Descriptor) -> Result<Stored, CourierError>;

    /// The entry of the cache under `key`, if there is one.
    ///
    /// # Errors
    /// It can't be told, or what is there is no entry.
    fn cache_get(&self, key: &str) -> Result<Option<Cached>, CourierError>;

    /// Keeps an entry in the cache; `file` (readable, seekable) has its layer, which the output need not have then.
    ///
    /// # Errors
    /// The cache does not take it.
    fn cache_put(
        &self,
        key: &str,
        entry: &CacheEntry,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<Stored, CourierError>;

    /// What a build of this name did last, if the cache knows.
    ///
    /// # Errors
    /// It can't be told, or what is there is no record.
    fn record_get(&self, name: &str) -> Result<Option<BuildRecord>, CourierError>;

    /// Keeps what this build did in the cache.
    ///
    /// # Errors
    /// The cache does not take it.
    fn record_put(&self, name: &str, record: &BuildRecord) -> Result<(), CourierError>;

    /// A secret for a step; `None` when the build was given none of this name.
    ///
    /// # Errors
    /// It can't be read.
    fn secret(&self, id: &str) -> Result<Option<Secret>, CourierError>;

    /// Whether the build was given an ssh agent of this name.
    ///
    /// # Errors
    /// Its keys can't be read.
    fn find_agent(&self, id: &str) -> Result<bool, CourierError>;

    /// Has an ssh agent serve a connection of a step, until that ends.
    ///
    /// # Errors
    /// As [`Courier::find_agent`]; too many connections.
    fn serve_agent(&self, id: &str, connection: OwnedFd) -> Result<(), CourierError>;

    /// Has the manifest composed, pushed and tagged.
    ///
    /// # Errors
    /// The push was refused, or nobody gave leave to tag.
    fn commit(&self, config: &str, layers: &[Descriptor]) -> Result<Committed, CourierError>;

    /// Says that something happened.
    ///
    /// # Errors
    /// The courier is lost.
    fn event(&self, event: Event) -> Result<(), CourierError>;

    /// Says that the build failed; waits a bounded time, also when the build was told to stop.
    ///
    /// # Errors
    /// The courier is lost.
    fn fail(&self, failure: &Failure) -> Result<(), CourierError>;
}
