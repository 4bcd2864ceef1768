//! The seam between deciding what a build does and doing it. `solve` speaks to an [`Engine`]; the real one is the helper
//! process plus the step sandbox, tests use a fake.
//!
//! A *tree* is a directory below the workspace's `trees/`, named by a short word (`b0`, `s12`): short, because overlayfs
//! takes all lower names in one page of mount options. A *view* is an overlay of trees. Trees are owned by the step's
//! ids; only the helper and the step itself ever write them.

mod mount;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::chmod::Chmod;
pub use mount::{Mount, MountSource, Secret};

/// An overlay of trees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// From the bottom up. May be empty (`FROM scratch`).
    pub lowers: Vec<String>,
    /// Where changes go.
    pub upper: String,
}

/// Media type of the index of a layer: a tar of its entries without what is in the files. It unpacks as the layer does,
/// with placeholders for the files.
pub const LAYER_INDEX: &str = "application/vnd.kiln.layer.index.v1.tar+zstd";

/// Media type of what a cache mount holds: a tar of all of it as it is ([`Engine::archive`]). It unpacks without the rules of
/// layers.
pub const CACHE_MOUNT: &str = "application/vnd.kiln.cache.mount.v1.tar+zstd";

/// What a copy did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// Symbolic links were made.
    pub links: bool,
}

/// A layer that has been unpacked into a tree of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// sha256 of the uncompressed tar.
    pub diff_id: String,
    /// Bytes of the uncompressed tar.
    pub size: u64,
    /// Directories that the layer did not carry and that were made for its entries; they take their attributes from the
    /// layers below (see [`Engine::settle`]).
    pub implied: Vec<String>,
    /// Hardlinks whose target is in a layer below: (path, target).
    pub links: Vec<(String, String)>,
}

/// Numeric ids inside the step's user namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Who a step runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User and primary group.
    pub owner: Owner,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory (`HOME` when the image sets none).
    pub home: String,
}

/// The files that a COPY or ADD takes, before it is known where they go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Sources as written in the instruction, expanded: Go `filepath.Match` patterns, relative to the source's root.
    pub sources: Vec<String>,
    /// `--exclude` patterns.
    pub excludes: Vec<String>,
    /// `--parents`.
    pub parents: bool,
}

/// A file whose content is in the Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InlineFile {
    /// A single component.
    pub name: String,
    /// Its text.
    pub data: String,
}

/// Where a COPY or ADD puts its files, and as what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// Absolute path in the image; a trailing `/` means a directory.
    pub path: String,
    /// How many sources the instruction names (several need a directory).
    pub sources: usize,
    /// Owner of every file and made parent; `None` keeps the source's (COPY --from) or 0:0 (context).
    pub owner: Option<Owner>,
    /// `--chmod`.
    pub mode: Option<Chmod>,
    /// Unpack archives (ADD of a local archive).
    pub unpack: bool,
    /// `--link`: into a tree of its own, as if nothing were there yet; what is below does not matter.
    pub link: bool,
}

/// A command to run on a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What it sees as its root; [`View::upper`] is fresh.
    pub view: View,
    /// The command and its arguments.
    pub argv: Vec<String>,
    /// A script below `/dev/pipes`, for the time of the step: a here-document that names its interpreter.
    pub script: Option<InlineFile>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute.
    pub cwd: String,
    /// Who runs it.
    pub user: User,
    /// Whether it has the pod's network or none but its own loopback.
    pub network: bool,
    /// What it sees besides its root. A tree that takes changes over others is nobody else's at that time; one that lies over
    /// nothing may be another step's, too (a cache that is shared).
    pub mounts: Vec<Mount>,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128+N for signal N.
    pub code: i32,
    /// The kernel killed a process of the step for lack of memory.
    pub out_of_memory: bool,
    /// Mount points that had to be made in the view (`etc/resolv.conf`, `dev`…): not part of the step's changes as long
    /// as they are as empty as they were made. Those are gone from the view again when this is returned.
    pub stubs: Vec<String>,
}

/// What a diff found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// Entries in the tar, whiteouts among them.
    pub entries: u64,
    /// Bytes of the tar.
    pub bytes: u64,
}

/// What went wrong in the engine, with whose fault it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    /// Whose fault it is.
    pub kind: EngineErrorKind,
    /// What was expected, what was found, what to do.
    pub message: String,
}

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineErrorKind {
    /// The Dockerfile or the context: a missing source, a user that is not there, a bad destination.
    User,
    /// The base image breaks a rule or a limit.
    Image,
    /// A file's content is needed of which only an index is there: the layer itself has to be.
    Content,
    /// The workspace is full or a limit of the builder was hit.
    Space,
    /// The node does not allow the sandbox.
    Isolation,
    /// The build was told to stop.
    Stopped,
    /// Everything else: ours.
    Internal,
}

/// Takes a step's output as it comes; called from one thread.
pub trait Output: Send {
    /// Bytes that the command wrote to stdout or stderr, in the order they were read.
    fn write(&mut self, bytes: &[u8]);
}

/// Says that the build is to stop, and why; shared by everything that waits.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<StopState>);

#[derive(Debug, Default)]
struct StopState {
    set: AtomicBool,
    reason: Mutex<Option<String>>,
}

impl Stop {
    /// Asks to stop; the first reason (a word of `kiln_contract::reason`) stays.
    pub fn stop(&self, reason: &str) {
        if let Ok(mut slot) = self.0.reason.lock() {
            slot.get_or_insert_with(|| reason.to_owned());
        }
        self.0.set.store(true, Ordering::Release);
    }

    /// Whether to stop.
    pub fn is_stopped(&self) -> bool {
        self.0.set.load(Ordering::Acquire)
    }

    /// Why, once stopped.
    pub fn reason(&self) -> Option<String> {
        self.0.reason.lock().ok().and_then(|slot| slot.clone())
    }
}

/// Does what a build needs done with files and processes. Calls may be made from several threads.
pub trait Engine: Send + Sync {
    /// Unpacks a compressed layer, an index of one, or what a cache mount holds, read from `blob` (a pipe or a file) to its end, into the new tree
    /// `tree`; its index goes to `index` (a file), uncompressed.
    ///
    /// # Errors
    /// Kind `Image` for a layer that breaks a rule or a limit.
    fn unpack(
        &self,
        tree: &str,
        media_type: &str,
        blob: OwnedFd,
        index: Option<OwnedFd>,
    ) -> Result<Unpacked, EngineError>;

    /// Reads a layer as [`Engine::unpack`] does and writes only its index.
    ///
    /// # Errors
    /// As [`Engine::unpack`].
    fn index(&self, media_type: &str, blob: OwnedFd, index: OwnedFd) -> Result<Unpacked, EngineError>;

    /// Puts right what unpacking each layer alone could not: implied parents take the attributes of the layers below,
    /// hardlinks into layers below are made. `layers` from the bottom up.
    ///
    /// # Errors
    /// Kind `Image` for a hardlink to nowhere.
    fn settle(&self, layers: &[(String, Unpacked)]) -> Result<(), EngineError>;

    /// Copies the entries of a stream (`tree::stream`) into the view.
    ///
    /// # Errors
    /// Kind `User` when the destination does not fit the sources; kind `Content` when a file may be replaced by itself and
    /// only a placeholder is there.
    fn copy_stream(&self, view: &View, to: &Destination, entries: OwnedFd) -> Result<Copied, EngineError>;

    /// Copies files of one image (`from`, trees from the bottom up) into the view.
    ///
    /// # Errors
    /// Kind `User` for a missing source or an unfit destination; `Content` as [`Engine::copy_stream`].
    fn copy_tree(
        &self,
        view: &View,
        to: &Destination,
        from: &[String],
        what: &Selection,
    ) -> Result<Copied, EngineError>;

    /// Makes a directory and its missing parents (0755, `owner`) in the view; an existing one is left as it is.
    ///
    /// # Errors
    /// Kind `User` when something that is no directory is in the way.
    fn make_directory(&self, view: &View, path: &str, owner: Owner) -> Result<(), EngineError>;

    /// Makes the empty tree `tree` with these attributes of its root; one that is there is left as it is.
    ///
    /// # Errors
    /// Kind `Space` or `Internal`.
    fn make_tree(&self, tree: &str, mode: u32, owner: Owner) -> Result<(), EngineError>;

    /// Whether caches outlast the build ([`Engine::take_cache`]).
    fn keeps_caches(&self) -> bool;

    /// Makes the cache `key`, as an earlier step or build left it, the new tree `tree`; nobody else has it until
    /// [`Engine::keep_cache`]. `false`, and no tree, when there is none, when caches end with the build, or when another
    /// build has it and `wait` is not set.
    ///
    /// # Errors
    /// Kind `Stopped` when `stop` was set; `Internal`.
    fn take_cache(&self, key: &str, tree: &str, wait: bool, stop: &Stop) -> Result<bool, EngineError>;

    /// Makes a tree the cache `key` again. `false`, and the tree stays, when caches end with the build, or when another
    /// build has the cache.
    ///
    /// # Errors
    /// Kind `Internal`.
    fn keep_cache(&self, key: &str, tree: &str) -> Result<bool, EngineError>;

    /// Listens at the new socket `name` (named like a tree, and removed like one) which a step can mount and `owner` owns.
    ///
    /// # Errors
    /// Kind `User` for an owner that steps can't have, else `Space` or `Internal`.
    fn listen(&self, name: &str, mode: u32, owner: Owner) -> Result<UnixListener, EngineError>;

    /// Looks a USER (`name`, `uid`, `name:group`, `uid:gid`…) up in the image's passwd and group files.
    ///
    /// # Errors
    /// Kind `User` for a name that is not there.
    fn user(&self, lowers: &[String], user: &str) -> Result<User, EngineError>;

    /// Looks a `--chown` up (a number alone is user and group, a name brings its primary group).
    ///
    /// # Errors
    /// Kind `User` for a name that is not there; `Content` where only an index says that there is a file of users.
    fn owner(&self, lowers: &[String], chown: &str) -> Result<Owner, EngineError>;

    /// Runs a command; its output goes to `output`. Every process of the step is gone when this returns.
    ///
    /// # Errors
    /// Kind `User` when the command can't be started (not found, not executable); `Stopped` when `stop` was set.
    fn run(&self, step: &Step, output: &mut dyn Output, stop: &Stop) -> Result<Exit, EngineError>;

    /// Writes the view's changes against its lowers as an OCI layer (uncompressed tar) into `out` (a pipe's write end).
    /// `stubs` are [`Exit::stubs`]. With `epoch` (Unix seconds) later mtimes are set to it. The layer's index goes to
    /// `index` (a file), uncompressed.
    ///
    /// # Errors
    /// Kind `Internal` or `Space`.
    fn diff(
        &self,
        view: &View,
        stubs: &[String],
        epoch: Option<i64>,
        out: OwnedFd,
        index: Option<OwnedFd>,
    ) -> Result<Diff, EngineError>;

    /// Writes all of a tree as it is as an uncompressed tar into `out` (a pipe's write end): the same bytes for the same
    /// files. It is unpacked as [`CACHE_MOUNT`].
    ///
    /// # Errors
    /// As [`Engine::diff`].
    fn archive(&self, tree: &str, out: OwnedFd) -> Result<Diff, EngineError>;

    /// Removes trees that nothing needs any more.
    ///
    /// # Errors
    /// Kind `Internal`.
    fn remove(&self, trees: &[String]) -> Result<(), EngineError>;
}
