//! What the builder, and before it the source's fetcher, asks of the courier, over a Unix socket.
//!
//! One call per connection: the builder connects, sends one frame, reads one frame. A frame is a length (u32, big
//! endian, at most [`MAX_FRAME`]) and that many bytes of JSON. A call that moves a blob carries one file descriptor
//! with its first byte (`SCM_RIGHTS`). The exception is [`Call::Attach`]: its connection stays open for as long as the
//! builder lives; the courier sends [`Reply::Stop`] on it, and takes its end for the builder's death. [`Call::Watch`] stays
//! open, too; its end means nothing. [`Call::BeginBlob`] is followed by more calls before it is answered.

use serde::{Deserialize, Serialize};

use crate::cache::{BuildRecord, CacheEntry};
use crate::failure::Failure;
use crate::image::{Artifact, Descriptor, ResolvedImage};
use crate::journal::Event;
use crate::policy::Network;
use crate::source::Git;

/// Bytes of a frame at most: an image config (4 MiB at most) in JSON quotes.
pub const MAX_FRAME: u32 = 16 << 20;
/// Bytes of a download at most: tool chains and model files reach several GiB, and a layer much beyond 10 GiB is refused
/// by registries.
pub const MAX_FETCH: u64 = 10 << 30;

/// Bytes of a secret at most; BuildKit's limit.
pub const MAX_SECRET: usize = 500 << 10;

/// What the builder asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "call")]
pub enum Call {
    /// The builder is there. Answered with [`Reply::Done`]; then the connection stays open (see the module).
    Attach {
        /// [`crate::VERSION`].
        version: u32,
    },
    /// Pin a reference to the manifest of one platform. Answered with [`Reply::Resolved`].
    Resolve {
        /// As the Dockerfile has it (`alpine`, `host/repo:tag`, `name@sha256:…`).
        reference: String,
        /// `os/arch[/variant]`.
        platform: String,
    },
    /// Answered with [`Reply::Stop`] when the attempt is no longer wanted, and not before.
    Watch,
    /// Pin a reference to an artifact, or to the image of one platform, that is the build's source. Answered with
    /// [`Reply::Artifact`].
    ResolveArtifact {
        /// As the object has it.
        reference: String,
        /// `os/arch[/variant]`, for an image of several platforms.
        platform: String,
    },
    /// Write a blob of a resolved image, as stored (compressed), into the descriptor that comes along (a pipe's write
    /// end). The courier closes it at the end; a short or wrong blob is an error reply. Answered with [`Reply::Done`].
    ReadBlob {
        /// [`ResolvedImage::pinned`] or [`Artifact::pinned`].
        image: String,
        /// The blob.
        blob: Descriptor,
    },
    /// Download what an ADD names into the descriptor that comes along: a regular file, which is written from its start.
    /// No credentials go with it. Answered with [`Reply::Fetched`].
    Fetch {
        /// `http://…` or `https://…`.
        url: String,
        /// `sha256:…` that the bytes must have; other bytes are an error reply.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        checksum: Option<String>,
    },
    /// Check a git repository out and write its files as a tar into the descriptor that comes along: a regular file,
    /// written from its start. No credentials go with it. In a pod the courier hands the call on to the container `git`,
    /// over a socket of their own. Answered with [`Reply::CheckedOut`].
    FetchGit {
        /// What of which repository.
        source: Git,
        /// How its server is reached: the courier's word, which hands the call on; the builder's counts for nothing.
        #[serde(default, skip_serializing_if = "Network::is_empty")]
        network: Network,
    },
    /// The output needs this blob. The descriptor that comes along is a readable, seekable file with its bytes; the
    /// courier reads it with `pread`, as often as it has to. Answered with [`Reply::Stored`].
    PutBlob {
        /// The blob.
        blob: Descriptor,
    },
    /// The output will need a blob that is still being written: the descriptor that comes along is a readable, seekable file
    /// that grows at its end. On the same connection follow any number of [`Call::Grown`], and then [`Call::PutBlob`] without a
    /// descriptor, which is answered as ever. A connection that ends before that: nobody needs the blob.
    BeginBlob,
    /// After [`Call::BeginBlob`]: so much of the file is there. Not answered.
    Grown {
        /// Bytes from its start on, which do not change any more.
        bytes: u64,
    },
    /// The output needs this blob of a resolved image: mounted, copied from registry to registry, or there already.
    /// Answered with [`Reply::Stored`].
    PutBaseBlob {
        /// [`ResolvedImage::pinned`].
        image: String,
        /// The blob.
        blob: Descriptor,
    },
    /// Whether the cache has an entry. Answered with [`Reply::Cached`] or [`Reply::Absent`]; a failure says that it can't be
    /// told, or that what is there is no entry, and is no reason for a build to fail.
    CacheGet {
        /// What names the step's result: 64 lower-case hex digits (`cache::is_key`). The courier adds the scope.
        key: String,
    },
    /// Keep an entry. The descriptor that may come along is a readable, seekable file with the layer's bytes; it is needed
    /// where the output has not got the layer. Answered with [`Reply::Stored`]: how the layer came to be in the cache.
    CachePut {
        /// As in [`Call::CacheGet`].
        key: String,
        /// The entry.
        entry: CacheEntry,
    },
    /// What a build of this name did last. Answered with [`Reply::Recorded`] or [`Reply::Absent`]; a failure is no reason
    /// for a build to fail.
    RecordGet {
        /// Names the build: 64 lower-case hex digits (`cache::is_key`). The courier adds the scope.
        name: String,
    },
    /// Keep what this build did, in place of what is there under its name. Answered with [`Reply::Done`].
    RecordPut {
        /// As in [`Call::RecordGet`].
        name: String,
        /// What it did.
        record: BuildRecord,
    },
    /// A step mounts this secret: the courier writes its bytes, at most [`MAX_SECRET`], into the descriptor that comes along
    /// (a pipe's write end) and closes it. Answered with [`Reply::Done`], or [`Reply::Absent`] when the build was given
    /// none of this name.
    Secret {
        /// Its name in the request.
        id: String,
    },
    /// Whether the build was given an ssh agent of this name. Answered with [`Reply::Done`] or [`Reply::Absent`].
    FindAgent {
        /// Its name in the request.
        id: String,
    },
    /// A process of a step has connected to the agent's socket: the descriptor that comes along is that connection (a
    /// stream socket), on which the courier speaks the ssh agent's protocol until it ends; it lists keys and signs, and
    /// does nothing else. Answered at once, with [`Reply::Done`] or [`Reply::Absent`].
    ServeAgent {
        /// Its name in the request.
        id: String,
    },
    /// All is there: compose the manifest, push it by digest, get the permit, move the tags, verify, report.
    /// Answered with [`Reply::Committed`].
    Commit {
        /// The image config: exact bytes, JSON.
        config: String,
        /// Layers from the bottom up; each was put before.
        layers: Vec<Descriptor>,
    },
    /// Something happened. Answered with [`Reply::Done`] once it is in the journal.
    Event {
        /// What.
        event: Event,
    },
    /// The build failed: write it into journal and report. Answered with [`Reply::Done`] when the report is written.
    Fail {
        /// Why.
        failure: Failure,
    },
}

/// What the courier answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "reply")]
pub enum Reply {
    /// Done, nothing to say.
    Done,
    /// What was asked for was not given to this build.
    Absent,
    /// See [`Call::Resolve`].
    Resolved {
        /// The pinned image.
        image: ResolvedImage,
    },
    /// See [`Call::ResolveArtifact`].
    Artifact {
        /// The pinned artifact.
        artifact: Artifact,
    },
    /// See [`Call::Fetch`].
    Fetched {
        /// Bytes.
        size: u64,
        /// `sha256:…` of them.
        digest: String,
        /// When the server says that it was changed, in Unix seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        modified: Option<i64>,
    },
    /// See [`Call::FetchGit`].
    CheckedOut {
        /// The commit: 40 or 64 hexadecimal digits.
        commit: String,
    },
    /// See [`Call::PutBlob`].
    Stored {
        /// How it came to be there.
        how: Stored,
    },
    /// See [`Call::CacheGet`].
    Cached {
        /// Names the entry in [`Call::ReadBlob`] and [`Call::PutBaseBlob`], as a resolved image's pinned name does.
        image: String,
        /// What it says.
        entry: CacheEntry,
    },
    /// See [`Call::RecordGet`].
    Recorded {
        /// The record.
        record: BuildRecord,
    },
    /// See [`Call::Commit`].
    Committed {
        /// Digest of the manifest.
        digest: String,
        /// The references that now name it.
        references: Vec<String>,
    },
    /// It did not work; for the reasons of registries and policy.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// On an attached connection: the attempt is no longer wanted; kill the step and call [`Call::Fail`].
    Stop {
        /// A word of [`crate::reason`].
        reason: String,
    },
}

/// How a blob came to be in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stored {
    /// It was there.
    Present,
    /// Mounted from another repository of the registry.
    Mounted,
    /// Sent.
    Uploaded,
}
