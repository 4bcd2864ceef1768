//! What all threads of a build share: the two halves of the outside world, the first failure, and when to stop.

use std::sync::atomic::{AtomicU64, Ordering};
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
    stopped_in: Mutex<Option<Place>>,
    names: AtomicU64,
}

/// Where a build was stopped.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub dockerfile: String,
    pub line: u32,
    pub step: u32,
}

impl<'a> Shared<'a> {
    pub fn new(engine: &'a dyn Engine, courier: &'a dyn Courier, stop: &'a Stop) -> Self {
        Self {
            engine,
            courier,
            stop,
            first: Mutex::default(),
            stopped_in: Mutex::default(),
            names: AtomicU64::new(0),
        }
    }

    /// A word that begins with `kind` and that nobody else has.
    pub fn name(&self, kind: &str) -> String {
        format!("{kind}{}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    /// Notes why the build ends, unless that is known already, and makes everything else stop: what fails from then on
    /// fails because of it.
    pub fn halt(&self, halt: Halt) {
        if let Halt::Failed(failure) = halt {
            self.fail(&failure, || {});
        }
    }

    /// The same for a step: does `tell` where the build ends by this failure, before everything else stops; says whether it
    /// does.
    pub fn fail(&self, failure: &Failure, tell: impl FnOnce()) -> bool {
        {
            let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
            if first.is_some() || self.stop.is_stopped() {
                return false;
            }
            *first = Some(failure.clone());
        }
        tell();
        self.stop.stop(&failure.reason);
        true
    }

    /// Notes a step that the order to stop came upon. Of several the first in the plan is named.
    pub fn stopped_in(&self, place: Place) {
        let mut known = self.stopped_in.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|known| place.step < known.step) {
            *known = Some(place);
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
        first.unwrap_or_else(|| {
            let failure = Halt::Stopped.into_failure(self.stop);
            match self.stopped_in.lock().unwrap_or_else(PoisonError::into_inner).take() {
                Some(place) => failure.at(&place.dockerfile, place.line).in_step(place.step),
                None => failure,
            }
        })
    }
}
