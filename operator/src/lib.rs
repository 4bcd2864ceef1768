//! Watches ImageBuilds, decides, creates builder pods, writes status.
//!
//! | module | does |
//! |---|---|
//! | [`image_build`] | the reconcile: dereference, validate, decide, status, apply |
//! | [`controller`] | wires watches to reconciles |
//! | [`pods`], [`journals`] | what is known of what runs |
//! | [`queue`], [`priorities`] | who may run; the queue is pure |
//! | [`policy`] | what BuildPolicies allow and give |
//! | [`lease`], [`clock`] | who leads, and what time it is |
//! | [`config`], [`args`] | settings |
//! | [`admin`], [`metrics`], [`run_phases`], [`telemetry`] | what others see of it |

pub mod admin;
pub mod args;
pub mod clock;
pub mod config;
pub mod controller;
mod dispatch;
pub mod image_build;
pub mod journals;
pub mod lease;
pub mod metrics;
pub mod pods;
pub mod policy;
pub mod priorities;
pub mod queue;
pub mod run_phases;
pub mod telemetry;
pub mod traces;
mod turns;

#[cfg(test)]
mod simulator;

/// Whether a fault that the simulator has to find is in force ([`simulator::mutants`]); never outside tests.
macro_rules! mutant {
    ($name:ident) => {{
        #[cfg(test)]
        let on = $crate::simulator::mutants::is_on($crate::simulator::mutants::Mutant::$name);
        #[cfg(not(test))]
        let on = false;
        on
    }};
}
pub(crate) use mutant;
