//! The Kiln API: what users write (`kiln.build/v1alpha1`), and the generated CustomResourceDefinition.
//!
//! Types, their schema and pure helpers only; no client, no IO. [`crd`] assembles what `crdgen` writes to disk.

pub mod crd;
pub mod duration;
pub mod reference;
pub mod v1alpha1;

pub use v1alpha1::{BuildPolicy, BuildPolicySpec, ImageBuild, ImageBuildSpec, ImageBuildStatus};

/// Annotation that asks for a further run of the same input: any value that differs from
/// `status.lastHandledRebuild`. Removing it does nothing.
pub const REBUILD_ANNOTATION: &str = "kiln.build/rebuild";
/// Annotation that cancels one run: its value is the run's number (`status.run`).
pub const CANCEL_ANNOTATION: &str = "kiln.build/cancel";
/// Annotation that puts the object's runs into a trace: a `traceparent` of W3C Trace Context.
pub const TRACEPARENT_ANNOTATION: &str = "kiln.build/traceparent";
