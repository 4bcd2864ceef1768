//! Dockerfile and request -> reachable stages, numbered steps -> with the base images' configs -> a [`Plan`]. Pure.
//!
//! First comes the [`Outline`]: which stages are needed, in which order, their numbered steps, the images to resolve; what
//! is not implemented is refused there by name. [`Outline::plan`] then expands every instruction against the environment
//! before it. Rules: BuildKit `dockerfile2llb`, and the conformance data where that is silent.

mod copy;
mod env;
mod evaluate;
mod graph;
mod heredoc;
mod lint;
mod mounts;
mod outline;
mod ports;
mod state;
mod stopsignal;
mod support;
mod target;
mod texts;
mod types;

/// The build argument that names the host that steps see themselves as.
pub const HOSTNAME_ARG: &str = "BUILDKIT_SANDBOX_HOSTNAME";

pub use copy::git_context;
pub use env::Env;
pub use lint::{Lint, check, findings, findings_before};
pub use mounts::{Cache, Mount};
pub use outline::{ImageUse, Outline, Target, Triggers};
pub use target::normalize as normalize_platform;
pub use types::{Action, Base, BaseImage, CopyFrom, Item, Op, Plan, PlanError, Stage, Step};

#[cfg(test)]
mod tests;
