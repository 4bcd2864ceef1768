//! `kiln.build/v1alpha1`, one file per part of the object.

mod build_policy;
mod cache;
mod image_build;
mod output;
#[cfg(test)]
mod rules;
mod secret;
mod source;
mod status;

pub use build_policy::{
    BaseImagePolicy, BuildPolicy, BuildPolicySpec, CachePolicy, CacheScope, ConcurrencyPolicy, Entitlement,
    IsolationPolicy, OutputPolicy, ProxyPolicy, RegistryMirror, RegistryPolicy, ResourcePolicy,
    TimeoutPolicy,
};
pub use cache::{Cache, CacheMounts};
pub use image_build::{BuildArg, ImageBuild, ImageBuildSpec, Isolation, Resources};
pub use output::{Compression, Output};
pub use secret::{BuildSecret, SshKey};
pub use source::{
    ConfigMapSource, FluxKind, FluxSource, GitSource, HttpSource, InlineFile, InlineSource, MAX_INLINE_BYTES,
    OciSource, Source,
};
pub use status::{
    AttemptStatus, FailureClass, FailureStatus, HistoryEntry, ImageBuildStatus, ImageStatus, LayerStatus,
    PodRef, PolicyStatus, QueueStatus, RunResult, SourceStatus, StepState, StepStatus, WarningStatus,
    WarningsStatus,
};

/// The conditions of an ImageBuild (kstatus reads the first three; `kubectl wait` all).
pub mod condition {
    /// The image of the current spec is at its tag.
    pub const READY: &str = "Ready";
    /// Work is under way or will be without anybody acting.
    pub const RECONCILING: &str = "Reconciling";
    /// Somebody has to act before work goes on.
    pub const STALLED: &str = "Stalled";
    /// How the latest run ended; Unknown while it has not.
    pub const SUCCEEDED: &str = "Succeeded";
}
