//! What failed while a sandbox was made, in a form that can be sent between processes and explained.

use serde::{Deserialize, Serialize};

/// The part of the set-up that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Starting the launcher or the helper, or talking with it.
    Launch,
    /// `unshare` of the new namespaces.
    Unshare,
    /// Writing `uid_map` and `gid_map`.
    WriteMap,
    /// Becoming user 0 of the new namespace.
    BecomeRoot,
    /// The first mount call: making mounts private.
    MakePrivate,
    /// The small tmpfs that holds private copies of files.
    Stage,
    /// The overlay of the trees.
    Overlay,
    /// Finding or making a mount point in the image.
    MountPoint,
    /// `/proc`.
    Proc,
    /// Hiding and write-protecting parts of `/proc` and `/sys`.
    Mask,
    /// `/sys`.
    Sys,
    /// `/dev`.
    Dev,
    /// `/etc/resolv.conf` and `/etc/hosts`.
    Files,
    /// One of the step's own mounts.
    StepMount,
    /// The host name.
    Hostname,
    /// The loopback interface of a step without network.
    Loopback,
    /// `pivot_root` and leaving the old root.
    PivotRoot,
    /// The capability sets.
    Capabilities,
    /// The seccomp filter.
    Seccomp,
    /// Becoming the step's user.
    User,
    /// The file operations of the start-up probe.
    Exercise,
}

/// One failed operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what}{}", errno_text(*.errno))]
pub struct Fault {
    /// Where.
    pub stage: Stage,
    /// The operation, in words, with the path or number it was about.
    pub what: String,
    /// What the kernel answered.
    pub errno: Option<i32>,
}

fn errno_text(errno: Option<i32>) -> String {
    errno.map_or_else(String::new, |number| format!(": {}", std::io::Error::from_raw_os_error(number)))
}

impl Fault {
    /// A failure that no system call reported.
    pub fn new(stage: Stage, what: impl Into<String>) -> Self {
        Self { stage, what: what.into(), errno: None }
    }
}

/// Why a step's first process does not become the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The sandbox could not be made.
    Fault(Fault),
    /// What the Dockerfile asks for can't be, in words.
    Refused(String),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Turns the error of a system call into a [`Fault`].
pub trait At<T> {
    /// `what` is only made when the call failed.
    ///
    /// # Errors
    /// The call's own, with `stage` and words.
    fn at(self, stage: Stage, what: impl FnOnce() -> String) -> Result<T, Fault>;
}

impl<T> At<T> for rustix::io::Result<T> {
    fn at(self, stage: Stage, what: impl FnOnce() -> String) -> Result<T, Fault> {
        self.map_err(|errno| Fault { stage, what: what(), errno: Some(errno.raw_os_error()) })
    }
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, stage: Stage, what: impl FnOnce() -> String) -> Result<T, Fault> {
        self.map_err(|error| match error.raw_os_error() {
            Some(number) => Fault { stage, what: what(), errno: Some(number) },
            None => Fault { stage, what: format!("{}: {error}", what()), errno: None },
        })
    }
}
