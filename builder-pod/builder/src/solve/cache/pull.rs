//! Layers of entries on their way in: each is downloaded and unpacked into a tree of its own, as a base's layer is, and
//! checked against the entry. One that does not hold is as good as not there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;

use super::At;
use super::lookup::Hits;
use crate::courier::Cached;
use crate::engine::Unpacked;
use crate::solve::arrivals::Arrivals;
use crate::solve::bases::{Wanted, fetch};
use crate::solve::failure::Halt;
use crate::solve::shared::Shared;

/// Layers on their way at a time.
const AT_A_TIME: usize = 2;

/// The layers of a build.
pub(in crate::solve) struct Pulls {
    /// Those that are sure to be read.
    wanted: BTreeMap<At, Cached>,
    /// The trees, or what is wrong with them.
    layers: Arrivals<At, Result<Unpacked, String>>,
    /// Those that were put on what is below them. Held by who does that: one at a time, for what two stages stand on is settled
    /// once.
    settled: Mutex<BTreeSet<At>>,
}

impl Pulls {
    /// Those of `wanted` that are among `hits`, in the order of the plan.
    pub fn new<'a>(hits: &Hits, wanted: impl IntoIterator<Item = &'a At>) -> Self {
        let wanted: BTreeMap<At, Cached> =
            wanted.into_iter().filter_map(|at| Some((*at, hits.get(at)?.clone()))).collect();
        let layers = Arrivals::new(wanted.keys().copied());
        Self { wanted, layers, settled: Mutex::default() }
    }

    /// Starts the downloads.
    pub fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        shared: &'scope Shared<'scope>,
    ) -> Result<(), Halt> {
        let get = |at: &At| Some(pull(shared, *at, self.wanted.get(at)?));
        self.layers.start(scope, shared, ("cached", AT_A_TIME), get)
    }

    /// Has a layer unpacked onto `below`, trees that are whole. The inner error says what is wrong with the entry.
    pub fn settle(
        &self,
        shared: &Shared<'_>,
        at: At,
        hit: &Cached,
        below: &[String],
    ) -> Result<Result<(), String>, Halt> {
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if settled.contains(&at) {
            return Ok(Ok(()));
        }
        let unpacked = match self.layers.take(shared, &at, || pull(shared, at, hit))? {
            Ok(unpacked) => unpacked,
            Err(problem) => return Ok(Err(problem)),
        };
        // What is below has been settled before.
        let below = below.iter().map(|tree| (tree.clone(), Unpacked::default()));
        let layers: Vec<_> = below.chain([(tree(at), unpacked)]).collect();
        if let Err(error) = shared.engine.settle(&layers) {
            return Ok(Err(error.message));
        }
        settled.insert(at);
        Ok(Ok(()))
    }
}

/// Fetches a layer and unpacks it; else says what is wrong with the entry.
fn pull(shared: &Shared<'_>, at: At, hit: &Cached) -> Result<Unpacked, String> {
    let named = format!("the cache entry {}", hit.image);
    let wanted =
        Wanted { image: &hit.image, named: &named, blob: &hit.entry.layer, diff_id: &hit.entry.diff_id };
    let (tree, media_type) = (tree(at), &hit.entry.layer.media_type);
    let unpack = |blob| shared.engine.unpack(&tree, media_type, blob, None);
    let unpacked = fetch(shared, &wanted, unpack);
    unpacked.map_err(|halt| match halt {
        Halt::Failed(failure) => failure.message,
        Halt::Stopped => "the build was told to stop".to_owned(),
    })
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
