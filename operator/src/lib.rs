//! Watches ImageBuilds, decides, creates builder pods, writes status.
//!
//! | module | does |
//! |---|---|
//! | [`image_build`] | the reconcile: dereference, validate, decide, status, apply |
//! | [`controller`] | wires watches to reconciles |
//! | [`pods`], [`journals`] | what is known of what runs |
//! | [`queue`] | who may run; pure |
//! | [`lease`] | who leads |
//! | [`config`], [`args`] | settings |
//! | [`admin`], [`metrics`], [`telemetry`] | what others see of it |

pub mod admin;
pub mod args;
pub mod config;
pub mod controller;
pub mod image_build;
pub mod journals;
pub mod lease;
pub mod metrics;
pub mod pods;
pub mod queue;
pub mod telemetry;
