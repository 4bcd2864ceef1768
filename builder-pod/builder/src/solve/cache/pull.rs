//! Layers of entries on their way in: each is downloaded and unpacked into a tree of its own, as a base's layer is, and
//! checked against the entry. One that does not hold is as good as not there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use super::At;
use super::lookup::Hits;
use crate::courier::Cached;
use crate::engine::Unpacked;
use crate::solve::bases::{TICK, Wanted, fetch};
use crate::solve::failure::Halt;
use crate::solve::publish::spawn;
use crate::solve::shared::Shared;

/// Layers on their way at a time.
const AT_A_TIME: usize = 2;

/// The layers of a build.
pub(in crate::solve) struct Pulls {
    state: Mutex<State>,
    changed: Condvar,
    /// Held by who puts a layer on what is below it.
    settling: Mutex<()>,
}

#[derive(Default)]
struct State {
    todo: VecDeque<(At, Cached)>,
    /// `None` while it is on its way; then the tree, or what is wrong.
    known: BTreeMap<At, Option<Result<Unpacked, String>>>,
    /// Those that were put on what is below them.
    settled: BTreeSet<At>,
}

impl Pulls {
    /// Those of `wanted` that are among `hits`, in the order of the plan.
    pub fn new<'a>(hits: &Hits, wanted: impl IntoIterator<Item = &'a At>) -> Self {
        let todo = wanted.into_iter().filter_map(|at| Some((*at, hits.get(at)?.clone()))).collect();
        let state = State { todo, ..State::default() };
        Self { state: Mutex::new(state), changed: Condvar::new(), settling: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the downloads.
    pub fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        shared: &'scope Shared<'scope>,
    ) -> Result<(), Halt> {
        let threads = AT_A_TIME.min(self.lock().todo.len());
        for _ in 0..threads {
            spawn(scope, "cached", || self.work(shared))?;
        }
        Ok(())
    }

    fn work(&self, shared: &Shared<'_>) {
        while shared.check().is_ok() {
            let Some((at, hit)) = self.next() else { return };
            self.pull(shared, at, &hit);
        }
    }

    fn next(&self) -> Option<(At, Cached)> {
        let mut state = self.lock();
        loop {
            let (at, hit) = state.todo.pop_front()?;
            if let std::collections::btree_map::Entry::Vacant(entry) = state.known.entry(at) {
                entry.insert(None);
                return Some((at, hit));
            }
        }
    }

    fn pull(&self, shared: &Shared<'_>, at: At, hit: &Cached) {
        let named = format!("the cache entry {}", hit.image);
        let wanted =
            Wanted { image: &hit.image, named: &named, blob: &hit.entry.layer, diff_id: &hit.entry.diff_id };
        let (tree, media_type) = (tree(at), &hit.entry.layer.media_type);
        let unpack = |blob| shared.engine.unpack(&tree, media_type, blob, None);
        let result = fetch(shared, &wanted, unpack).map_err(|halt| match halt {
            Halt::Failed(failure) => failure.message,
            Halt::Stopped => "the build was told to stop".to_owned(),
        });
        self.lock().known.insert(at, Some(result));
        self.changed.notify_all();
    }

    /// Has a layer unpacked onto `below`, trees that are whole. The inner error says what is wrong with the entry.
    pub fn settle(
        &self,
        shared: &Shared<'_>,
        at: At,
        hit: &Cached,
        below: &[String],
    ) -> Result<Result<(), String>, Halt> {
        // One at a time: what two stages stand on is settled once.
        let _alone = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        if self.lock().settled.contains(&at) {
            return Ok(Ok(()));
        }
        let unpacked = match self.take(shared, at, hit)? {
            Ok(unpacked) => unpacked,
            Err(problem) => return Ok(Err(problem)),
        };
        // What is below has been settled before.
        let below = below.iter().map(|tree| (tree.clone(), Unpacked::default()));
        let layers: Vec<_> = below.chain([(tree(at), unpacked)]).collect();
        if let Err(error) = shared.engine.settle(&layers) {
            return Ok(Err(error.message));
        }
        self.lock().settled.insert(at);
        Ok(Ok(()))
    }

    /// Waits for a layer; fetches it itself where nobody has begun. The inner error says what is wrong with the entry.
    fn take(&self, shared: &Shared<'_>, at: At, hit: &Cached) -> Result<Result<Unpacked, String>, Halt> {
        let mut state = self.lock();
        if let std::collections::btree_map::Entry::Vacant(entry) = state.known.entry(at) {
            entry.insert(None);
            drop(state);
            self.pull(shared, at, hit);
            state = self.lock();
        }
        loop {
            shared.check()?;
            if let Some(Some(result)) = state.known.get(&at) {
                return Ok(result.clone());
            }
            state = self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What an entry's tree is called; it need not be there.
pub(in crate::solve) fn tree((stage, op): At) -> String {
    format!("c{stage}-{op}")
}

/// The operation whose entry a tree is of.
pub(in crate::solve) fn entry_of(tree: &str) -> Option<At> {
    let (stage, op) = tree.strip_prefix('c')?.split_once('-')?;
    Some((stage.parse().ok()?, op.parse().ok()?))
}
