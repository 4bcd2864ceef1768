//! What goes wrong with the API server, and how often it is asked again. None of it ends a build.

use std::time::Duration;

/// Seconds for one API call. The client itself retries 429, 503 and 504 within it.
const API_TIMEOUT: Duration = Duration::from_secs(20);

/// A reconcile that could not be finished; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server refused or did not answer as expected.
    #[error("{call}: {source}")]
    Api {
        /// Which call.
        call: &'static str,
        /// Its answer.
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("{call}: no answer from the API server within {} seconds", API_TIMEOUT.as_secs())]
    Timeout {
        /// Which call.
        call: &'static str,
    },
    /// The object has changed since it was read.
    #[error("the object has changed since it was read; decided again with the new one")]
    Conflict,
    /// This instance is not the leader any more.
    #[error("the lease was lost; nothing is written")]
    NotLeader,
}

impl ReconcileError {
    /// A word for metrics.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Api { .. } => "api",
            Self::Timeout { .. } => "timeout",
            Self::Conflict => "conflict",
            Self::NotLeader => "not_leader",
        }
    }

    /// The API server's answer, where there was one.
    pub fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            _ => None,
        }
    }

    /// How long to wait after it has happened so many times in a row.
    pub fn backoff(&self, times: u32) -> Duration {
        match self {
            Self::Conflict => Duration::from_millis(50 << times.min(6)),
            Self::NotLeader => Duration::from_secs(5),
            _ => Duration::from_secs(1 << times.min(6)),
        }
    }
}

/// An API call with a timeout.
///
/// # Errors
/// The call failed, or took too long.
pub async fn timed<T>(
    call: &'static str,
    work: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ReconcileError> {
    match tokio::time::timeout(API_TIMEOUT, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(ReconcileError::Api { call, source: Box::new(source) }),
        Err(_) => Err(ReconcileError::Timeout { call }),
    }
}
