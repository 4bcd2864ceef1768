//! What is fetched in the background, each once: a queue, threads that work it off, and waiting for what has come.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::Duration;

use super::failure::Halt;
use super::publish::spawn;
use super::shared::Shared;

/// How often a wait looks whether the build was stopped.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// Values by key.
pub(super) struct Arrivals<K, V> {
    state: Mutex<State<K, V>>,
    changed: Condvar,
}

struct State<K, V> {
    todo: VecDeque<K>,
    /// `None` while it is on its way.
    known: BTreeMap<K, Option<V>>,
}

impl<K: Ord + Clone + Send, V: Clone + Send> Arrivals<K, V> {
    /// These wait for [`Self::start`], in order.
    pub fn new(todo: impl IntoIterator<Item = K>) -> Self {
        let state = State { todo: todo.into_iter().collect(), known: BTreeMap::new() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<K, V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts threads that get what waits, so many at a time.
    pub fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        shared: &'scope Shared<'scope>,
        (name, at_a_time): (&str, usize),
        get: impl Fn(&K) -> Option<V> + Copy + Send + 'scope,
    ) -> Result<(), Halt> {
        let threads = at_a_time.min(self.lock().todo.len());
        for _ in 0..threads {
            spawn(scope, name, move || self.work(shared, get))?;
        }
        Ok(())
    }

    /// Gets these, too, and returns when nothing waits any more.
    pub fn add(&self, shared: &Shared<'_>, keys: impl IntoIterator<Item = K>, get: impl Fn(&K) -> Option<V>) {
        self.lock().todo.extend(keys);
        self.work(shared, get);
    }

    /// Works the queue off. Where `get` yields nothing the build ends.
    fn work(&self, shared: &Shared<'_>, get: impl Fn(&K) -> Option<V>) {
        while shared.check().is_ok() {
            let Some(key) = self.next() else { return };
            let value = get(&key);
            if let Some(value) = value {
                self.lock().known.insert(key, Some(value));
            }
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Option<K> {
        let mut state = self.lock();
        loop {
            let key = state.todo.pop_front()?;
            if let Entry::Vacant(entry) = state.known.entry(key.clone()) {
                entry.insert(None);
                return Some(key);
            }
        }
    }

    /// Waits for one that was asked for.
    pub fn wait(&self, shared: &Shared<'_>, key: &K) -> Result<V, Halt> {
        let mut state = self.lock();
        loop {
            shared.check()?;
            if let Some(Some(value)) = state.known.get(key) {
                return Ok(value.clone());
            }
            state = self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for one; gets it here where nobody has begun.
    pub fn take(&self, shared: &Shared<'_>, key: &K, get: impl FnOnce() -> V) -> Result<V, Halt> {
        let mine = match self.lock().known.entry(key.clone()) {
            Entry::Vacant(entry) => entry.insert(None).is_none(),
            Entry::Occupied(_) => false,
        };
        if mine {
            let value = get();
            self.lock().known.insert(key.clone(), Some(value));
            self.changed.notify_all();
        }
        self.wait(shared, key)
    }
}
