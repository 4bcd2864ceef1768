//! Secrets of the steps that run: how much of them is in memory at a time, and what may never appear in the log.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use kiln_contract::call::MAX_SECRET;

use super::MAX_SECRETS;
use super::arrivals::TICK;
use super::failure::Halt;
use super::redact::Needle;
use super::shared::Shared;
use crate::engine::Secret;

/// The secrets of a build.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes that steps have.
    held: usize,
    /// A step is taking its secrets. One at a time does, so that no two wait for what the other has.
    taking: bool,
    /// Every secret that a step got.
    needles: Vec<Arc<Needle>>,
}

impl State {
    /// Whether another secret may be taken by a step that has taken `mine` bytes so far.
    fn room(&self, mine: usize) -> bool {
        self.held == 0 || self.held + mine + MAX_SECRET <= MAX_SECRETS
    }
}

impl Secrets {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, shared: &Shared<'_>, mut until: impl FnMut(&mut State) -> bool) -> Result<(), Halt> {
        let mut state = self.lock();
        while !until(&mut state) {
            shared.check()?;
            state = self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Whether no other step takes its secrets; from then on this one does, until [`Secrets::taken`].
    pub fn try_begin(&self) -> bool {
        !std::mem::replace(&mut self.lock().taking, true)
    }

    /// Waits for it.
    pub fn begin(&self, shared: &Shared<'_>) -> Result<(), Halt> {
        self.wait(shared, |state| !std::mem::replace(&mut state.taking, true))
    }

    /// Whether there is room for another secret beside `mine` bytes.
    pub fn has_room(&self, mine: usize) -> bool {
        self.lock().room(mine)
    }

    /// Waits for it.
    pub fn wait_for_room(&self, shared: &Shared<'_>, mine: usize) -> Result<(), Halt> {
        self.wait(shared, |state| state.room(mine))
    }

    /// A step has all its secrets.
    pub fn taken(&self, bytes: usize) {
        let mut state = self.lock();
        state.held += bytes;
        state.taking = false;
        drop(state);
        self.changed.notify_all();
    }

    /// A step has ended.
    pub fn give_back(&self, bytes: usize) {
        let mut state = self.lock();
        state.held = state.held.saturating_sub(bytes);
        drop(state);
        self.changed.notify_all();
    }

    /// From now on it is looked for.
    pub fn hide(&self, secret: &Secret) {
        let Some(needle) = Needle::new(secret) else { return };
        let mut state = self.lock();
        if !state.needles.iter().any(|known| known.is(&needle)) {
            state.needles.push(Arc::new(needle));
        }
    }

    /// What is looked for, but the first `known`.
    pub fn needles(&self, known: usize) -> Vec<Arc<Needle>> {
        self.lock().needles.get(known..).unwrap_or_default().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_together_no_more_than_one_may() {
        let secrets = Secrets::default();
        assert!(secrets.has_room(MAX_SECRETS), "alone a step is told so by name");
        secrets.taken(MAX_SECRETS - 2 * MAX_SECRET);
        assert!(secrets.has_room(MAX_SECRET) && !secrets.has_room(MAX_SECRET + 1));
        secrets.taken(MAX_SECRET + 1);
        assert!(!secrets.has_room(0));
        secrets.give_back(MAX_SECRETS - 2 * MAX_SECRET);
        assert!(secrets.has_room(0));
    }
}
