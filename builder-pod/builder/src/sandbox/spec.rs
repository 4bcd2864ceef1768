//! What the builder tells a launcher, and what comes back. JSON, one message a line.

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::idmap::IdMap;
use super::settings::Settings;
use crate::engine::{InlineFile, Mount, User};

/// A step for the launcher. The launcher's working directory is the trees directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Ids of the step.
    pub map: IdMap,
    /// Trees from the bottom up.
    pub lowers: Vec<String>,
    /// Tree that takes the changes.
    pub upper: String,
    /// Overlay's work directory.
    pub work: String,
    /// What to run.
    pub task: Task,
    /// See [`crate::engine::Step::script`].
    pub script: Option<InlineFile>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute.
    pub cwd: String,
    /// Who runs it.
    pub user: User,
    /// The pod's network, or none.
    pub network: bool,
    /// What all steps are told alike.
    pub settings: Settings,
    /// What lies over the root.
    pub mounts: Vec<Mount>,
    /// Which `/proc` the step gets.
    pub proc: ProcChoice,
}

/// What runs in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// A command of the image.
    Command(Vec<String>),
    /// The file operations of the start-up probe.
    Probe,
}

/// Which `/proc` to mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcChoice {
    /// A fresh one if the kernel lets us, else the pod's.
    Try,
    /// Settled by the probe.
    Settled(ProcKind),
}

/// Which `/proc` a step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcKind {
    /// Its own: only the step's processes are in it.
    Fresh,
    /// The pod's, bound (the pod's `/proc` is masked, so the kernel allows no fresh one): the processes of the pod are
    /// listed, but cannot be signalled or looked into.
    Bound,
}

/// From launcher and step to the builder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The sandbox stands; the command comes next.
    Ready {
        /// See [`crate::engine::Exit::stubs`].
        stubs: Vec<String>,
        /// Which `/proc` it got.
        proc: ProcKind,
    },
    /// The sandbox could not be made.
    Failed(Fault),
    /// The command could not be started, by fault of the Dockerfile.
    Refused(String),
    /// The command ended, and every other process of the step with it.
    Ended {
        /// Its exit code, or 128 + the signal.
        code: i32,
        /// The signal that ended it.
        signal: Option<i32>,
    },
}

/// Longest message: arguments and environment of one process fit in 2 MiB by the kernel's own limit (`ARG_MAX` with the
/// usual stack size is 2 MiB), and JSON at most sextuples a byte; a step's secrets are limited to
/// [`crate::solve::MAX_SECRETS`].
pub const MAX_MESSAGE: usize = 16 << 20;
