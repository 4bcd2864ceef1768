//! One process per step: namespaces, mounts, capabilities and seccomp.
//!
//! | process | user namespace | does |
//! |---|---|---|
//! | builder | the pod's | [`spawn`]: starts a launcher per step, reads its output |
//! | launcher (`__kiln-step`) | the pod's | [`launch`]: makes the step's namespaces, writes the id maps, waits |
//! | maker | the step's, for microseconds | [`launch`]: unshares, forks the step's first process, ends |
//! | the step, process 1 of its own process ids | the step's | [`init`]: mounts, drops rights, executes the command |
//!
//! No process of ours is left in the step's user namespace when the command runs, and the launcher holds nothing that
//! a step could want. What a step may not do is decided by [`caps`] and [`seccomp`], what it sees by [`root`].

pub mod attach;
pub mod caps;
pub mod command;
pub mod device;
pub mod facts;
pub mod fault;
mod fileids;
pub mod idmap;
pub mod init;
pub mod inroot;
pub mod launch;
pub mod mounts;
pub mod oom;
pub mod outer;
pub mod probe;
pub mod process;
pub mod root;
pub mod seccomp;
pub mod seccomp_list;
pub mod settings;
pub mod socket;
pub mod spawn;
pub mod spec;
pub mod stdio;

/// First argument of the program when it is started as a step's launcher.
pub const STEP_WORD: &str = "__kiln-step";

/// What `hostname` says in a step; the name that BuildKit's steps see.
pub const HOSTNAME: &str = "buildkitsandbox";

/// Empty directory in the trees directory on which each process mounts, in its own mount namespace.
pub const MOUNT_POINT: &str = "mnt";

/// Empty tree: overlayfs wants at least one lower, `FROM scratch` has none.
pub const EMPTY_TREE: &str = "empty";
