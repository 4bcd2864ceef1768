//! Which stages are gone through now: so many at a time, the earliest of the plan first, each as soon as what it reads is
//! there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::arrivals::TICK;
use super::failure::Halt;
use super::shared::Shared;

/// What a stage left.
#[derive(Debug, Clone, Default)]
pub(super) struct Left {
    /// What its trees are called, from the bottom up; they need not be there (`Steps::whole`).
    pub trees: Vec<String>,
    /// Names the stage's state: a sum over its base and its instructions so far.
    pub id: String,
    /// Whether all that was done with files so far was taken from the cache; `None` before the first of it.
    pub cached: Option<bool>,
}

/// The stages of a plan. Who has a turn waits for nothing but its own work: it gives the turn away before, so that turns
/// never wait for one another.
#[derive(Debug)]
pub(super) struct Stages {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Turns that nobody has.
    free: usize,
    /// Stages that wait for a turn.
    waiting: BTreeSet<usize>,
    /// What each stage left that was gone through.
    left: BTreeMap<usize, Left>,
}

impl Stages {
    /// Of `count` stages, `at_a_time` have a turn. All of them wait for one from now on, so that the first ones get it,
    /// whoever asks first.
    pub fn new(count: usize, at_a_time: usize) -> Self {
        let state = State { free: at_a_time.max(1), waiting: (0..count).collect(), left: BTreeMap::new() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `found` has something to say.
    fn wait<T>(
        &self,
        shared: &Shared<'_>,
        mut found: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, Halt> {
        let mut state = self.lock();
        loop {
            shared.check()?;
            if let Some(found) = found(&mut state) {
                drop(state);
                self.changed.notify_all();
                return Ok(found);
            }
            state = self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for a turn.
    pub fn turn(&self, shared: &Shared<'_>, stage: usize) -> Result<(), Halt> {
        self.lock().waiting.insert(stage);
        self.wait(shared, |state| {
            if state.free == 0 || state.waiting.first() != Some(&stage) {
                return None;
            }
            state.waiting.remove(&stage);
            state.free -= 1;
            Some(())
        })
    }

    /// Gives a turn away.
    pub fn give_turn(&self) {
        self.lock().free += 1;
        self.changed.notify_all();
    }

    /// Whether all of `stages` were gone through.
    pub fn are_done(&self, stages: &BTreeSet<usize>) -> bool {
        let state = self.lock();
        stages.iter().all(|stage| state.left.contains_key(stage))
    }

    /// Waits until all of `stages` were gone through.
    pub fn wait_for(&self, shared: &Shared<'_>, stages: &BTreeSet<usize>) -> Result<(), Halt> {
        self.wait(shared, |state| stages.iter().all(|stage| state.left.contains_key(stage)).then_some(()))
    }

    /// What a stage left; nothing where it was not gone through.
    pub fn left(&self, stage: usize) -> Left {
        self.lock().left.get(&stage).cloned().unwrap_or_default()
    }

    /// A stage was gone through.
    pub fn leave(&self, stage: usize, left: Left) {
        self.lock().left.insert(stage, left);
        self.changed.notify_all();
    }
}
