//! From errors of engine and courier to the failure that status, log and report show.

use kiln_contract::{Failure, FailureClass, reason};

use crate::courier::CourierError;
use crate::engine::{EngineError, EngineErrorKind, Stop};
use crate::plan::{Action, PlanError};

/// Why a build ends early.
#[derive(Debug)]
pub enum Halt {
    /// It failed.
    Failed(Box<Failure>),
    /// It was told to stop; [`Stop`] knows why.
    Stopped,
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

impl From<Box<Failure>> for Halt {
    fn from(failure: Box<Failure>) -> Self {
        Self::Failed(failure)
    }
}

impl From<CourierError> for Halt {
    fn from(error: CourierError) -> Self {
        match error {
            CourierError::Failed(failure) => Self::Failed(failure),
            CourierError::Stopped => Self::Stopped,
            lost @ CourierError::Lost { .. } => {
                Failure::new(FailureClass::Infrastructure, reason::BUILDER_LOST, lost.to_string()).into()
            }
            other @ CourierError::Unexpected { .. } => internal(other.to_string()).into(),
        }
    }
}

impl Halt {
    /// The same, with a change to the failure.
    #[must_use]
    pub fn map(self, change: impl FnOnce(Failure) -> Failure) -> Self {
        match self {
            Self::Failed(failure) => Self::Failed(Box::new(change(*failure))),
            Self::Stopped => Self::Stopped,
        }
    }

    /// The failure; that of `stop` when the build was stopped.
    pub fn into_failure(self, stop: &Stop) -> Failure {
        match self {
            Self::Failed(failure) => *failure,
            Self::Stopped => stopped(stop.reason().as_deref().unwrap_or(reason::INTERNAL)),
        }
    }
}

/// Something in Kiln itself went wrong.
pub fn internal(message: impl AsRef<str>) -> Failure {
    Failure::new(FailureClass::Infrastructure, reason::INTERNAL, message)
}

/// The failure of a build that was stopped for `why` (a word of [`reason`]).
pub fn stopped(why: &str) -> Failure {
    let (class, message) = match why {
        reason::CANCELLED => (FailureClass::Cancelled, "the build was cancelled"),
        reason::SUSPENDED => (FailureClass::Cancelled, "the build was suspended"),
        reason::SUPERSEDED => {
            (FailureClass::Cancelled, "a newer version of the object asks for another build")
        }
        reason::NOT_PERMITTED => (FailureClass::Cancelled, "the attempt is no longer the one that may tag"),
        reason::TIMED_OUT => {
            (FailureClass::Timeout, "the build took longer than its timeout; raise spec.timeout")
        }
        reason::BUILDER_LOST => (FailureClass::Infrastructure, "the courier is gone"),
        reason::POD_DELETED => {
            (FailureClass::Infrastructure, "the builder was told to end (SIGTERM) before the build was done")
        }
        reason::EVICTED => (FailureClass::Evicted, "the pod was evicted"),
        _ => (FailureClass::Infrastructure, "the build was stopped"),
    };
    Failure::new(class, why, message)
}

/// A failure of planning, in `file`.
pub fn of_plan(error: &PlanError, file: &str) -> Failure {
    let mut failure = Failure::new(FailureClass::User, error.reason, &error.message);
    failure.file = error.line.map(|_| file.to_owned());
    failure.line = error.line;
    failure.step = error.step;
    failure
}

/// A failure of the engine; `during` is the action where it happened, `None` for the handling of base images.
pub fn of_engine(error: &EngineError, during: Option<&Action>) -> Halt {
    let (class, reason) = match error.kind {
        EngineErrorKind::Stopped => return Halt::Stopped,
        EngineErrorKind::User => (
            FailureClass::User,
            match during {
                Some(Action::Copy { .. }) => reason::NOT_FOUND,
                _ => reason::STEP_FAILED,
            },
        ),
        EngineErrorKind::Image => (FailureClass::User, reason::BASE_IMAGE_INVALID),
        EngineErrorKind::Isolation => (FailureClass::Policy, reason::ISOLATION_UNAVAILABLE),
        // Who asks of an index does so again of the layer.
        EngineErrorKind::Content | EngineErrorKind::Space | EngineErrorKind::Internal => {
            (FailureClass::Infrastructure, reason::INTERNAL)
        }
    };
    Failure::new(class, reason, &error.message).into()
}
