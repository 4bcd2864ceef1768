//! What all threads of a build share: the two halves of the outside world, the first failure, and when to stop.

use std::sync::{Mutex, PoisonError};

use kiln_contract::Failure;

use super::failure::Halt;
use crate::courier::Courier;
use crate::engine::{Engine, Stop};

/// Shared by all threads of a build.
pub(super) struct Shared<'a> {
    pub engine: &'a dyn Engine,
    pub courier: &'a dyn Courier,
    pub stop: &'a Stop,
    first: Mutex<Option<Failure>>,
}

impl<'a> Shared<'a> {
    pub fn new(engine: &'a dyn Engine, courier: &'a dyn Courier, stop: &'a Stop) -> Self {
        Self { engine, courier, stop, first: Mutex::new(None) }
    }

    /// Notes why the build ends, unless that is known already, and makes everything else stop: what fails from then on
    /// fails because of it.
    pub fn halt(&self, halt: Halt) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if let Halt::Failed(failure) = halt
            && first.is_none()
            && !self.stop.is_stopped()
        {
            self.stop.stop(&failure.reason);
            *first = Some(*failure);
        }
    }

    /// Whether to go on.
    pub fn check(&self) -> Result<(), Halt> {
        if self.stop.is_stopped() { Err(Halt::Stopped) } else { Ok(()) }
    }

    /// The failure that ended the build: the first that was noted, else `halt`.
    pub fn failure(&self, halt: Halt) -> Failure {
        self.halt(halt);
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.unwrap_or_else(|| Halt::Stopped.into_failure(self.stop))
    }
}
