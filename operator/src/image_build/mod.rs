//! The reconcile of ImageBuilds: dereference, validate, decide, apply, status.

pub mod apply;
mod attempt;
#[cfg(test)]
mod attempt_tests;
pub mod catalog;
pub mod conditions;
pub mod context;
pub mod decide;
#[cfg(test)]
mod decide_tests;
pub mod dereference;
pub mod deviation;
pub mod digest;
pub mod error;
pub mod events;
pub mod flux;
pub mod kubelet;
pub mod lifecycle;
pub mod names;
pub mod observe;
pub mod outcome;
mod pace;
pub mod pod;
pub mod pod_events;
mod pod_git;
mod pod_source;
pub mod preflight;
pub mod reconcile;
pub mod remote;
pub mod start;
#[cfg(test)]
mod status_rows;
pub mod steps;
mod store;
#[cfg(test)]
pub(crate) mod testing;
pub mod validate;
