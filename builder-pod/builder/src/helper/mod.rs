//! The process in a sibling user namespace that owns the layer trees, and the engine that uses it.
//!
//! Files of steps belong to ids that the builder cannot touch, so everything that reads or writes them runs in one
//! persistent process (`__kiln-helper`) in a user namespace of its own with the same ids as the steps' namespaces. It is a
//! sibling: a step cannot look into it, though both have the same user 0.

mod caches;
mod client;
mod local;
mod server;
mod view;
mod wire;

use std::process::ExitCode;

pub use local::{LocalEngine, Options};
pub(crate) use view::work_of;

/// First argument of the program when it is started as the helper.
pub(crate) const HELPER_WORD: &str = "__kiln-helper";

/// Runs the part of the sandbox that this process was started as, if it was. Every program that uses [`LocalEngine`]
/// calls this first in its main, before it starts a thread.
pub fn dispatch_reexec() -> Option<ExitCode> {
    let word = std::env::args_os().nth(1)?;
    if word == crate::sandbox::STEP_WORD {
        Some(crate::sandbox::launch::main())
    } else if word == HELPER_WORD {
        Some(server::main())
    } else {
        None
    }
}
