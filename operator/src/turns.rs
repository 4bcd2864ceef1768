//! Whose turn it is to be reconciled. Pure.
//!
//! Builds that want to begin have turns of their own, beside the news of those that run; each kind is served in the order in which
//! it was asked for, each object at most once at a time, and what is asked for meanwhile once more afterwards.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// What an object wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To begin: somebody waits for its pod.
    First,
    /// To be looked at for any other reason.
    Other,
}

/// Reconciles of builds that want to begin, at the same time. Each is a few API calls; the rest of its time it waits.
const FIRST: usize = 48;
/// Reconciles of all others, at the same time.
const OTHERS: usize = 16;
/// Of those where more than [`USUAL`] builds want to begin, which means that the API server is busy.
const OTHERS_MEANWHILE: usize = 8;
/// So many that want to begin at the same time are usual.
const USUAL: usize = 8;

/// Where an object stands.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// In the queue of that kind.
    waits: Option<Kind>,
    /// It is being reconciled, in a turn of that kind.
    runs: Option<Kind>,
}

/// Objects that wait for their turn, and those that have it.
#[derive(Debug)]
pub struct Turns<K> {
    places: HashMap<K, Place>,
    first: VecDeque<K>,
    others: VecDeque<K>,
    running: [usize; 2],
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { places: HashMap::new(), first: VecDeque::new(), others: VecDeque::new(), running: [0; 2] }
    }
}

impl<K: Clone + Eq + Hash> Turns<K> {
    /// An object is to be reconciled.
    pub fn want(&mut self, key: K, kind: Kind) {
        let place = self.places.entry(key.clone()).or_default();
        // One that waits with the others and may begin now has an entry in both queues; the older one counts no more.
        if place.waits == Some(kind) || place.waits == Some(Kind::First) {
            return;
        }
        place.waits = Some(kind);
        self.queue(kind).push_back(key);
    }

    fn queue(&mut self, kind: Kind) -> &mut VecDeque<K> {
        match kind {
            Kind::First => &mut self.first,
            Kind::Other => &mut self.others,
        }
    }

    /// The next one whose turn it is, and as what; it has to be given back with [`Turns::done`].
    pub fn next(&mut self) -> Option<(K, Kind)> {
        [Kind::First, Kind::Other].into_iter().find_map(|kind| Some((self.next_of(kind)?, kind)))
    }

    fn limit(&self, kind: Kind) -> usize {
        match kind {
            Kind::First => FIRST,
            Kind::Other if self.running[Kind::First as usize] > USUAL => OTHERS_MEANWHILE,
            Kind::Other => OTHERS,
        }
    }

    fn next_of(&mut self, kind: Kind) -> Option<K> {
        if self.running[kind as usize] >= self.limit(kind) {
            return None;
        }
        while let Some(key) = self.queue(kind).pop_front() {
            let Some(place) = self.places.get_mut(&key) else { continue };
            // Else it waits in the other queue, or has had this turn.
            if place.waits != Some(kind) {
                continue;
            }
            // Never two at once: its end puts it into the queue again.
            if place.runs.is_some() {
                continue;
            }
            *place = Place { waits: None, runs: Some(kind) };
            self.running[kind as usize] += 1;
            return Some(key);
        }
        None
    }

    /// A reconcile has ended.
    pub fn done(&mut self, key: &K) {
        let Some(place) = self.places.get_mut(key) else { return };
        if let Some(kind) = place.runs.take() {
            self.running[kind as usize] -= 1;
        }
        match place.waits {
            None => {
                self.places.remove(key);
            }
            // Its entry was passed over, or still is to come; the first of the two counts.
            Some(kind) => self.queue(kind).push_back(key.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn all(turns: &mut Turns<u32>) -> Vec<u32> {
        std::iter::from_fn(|| turns.next()).map(|(key, _)| key).collect()
    }

    #[test]
    fn who_wants_to_begin_does_not_wait_for_the_others_and_they_never_wait_altogether() {
        let mut turns = Turns::default();
        (0..100).for_each(|key| turns.want(key, Kind::Other));
        assert_eq!(all(&mut turns), (0..16).collect::<Vec<_>>());
        (100..200).for_each(|key| turns.want(key, Kind::First));
        assert_eq!(all(&mut turns), (100..148).collect::<Vec<_>>());
        (0..16).for_each(|key| turns.done(&key));
        assert_eq!(all(&mut turns), (16..24).collect::<Vec<_>>(), "fewer at a time, meanwhile");
        turns.done(&100);
        assert_eq!(all(&mut turns), [148]);
    }

    #[test]
    fn an_object_has_one_turn_at_a_time_and_another_one_for_what_came_meanwhile() {
        let mut turns = Turns::default();
        turns.want(1, Kind::Other);
        turns.want(1, Kind::Other);
        assert_eq!(all(&mut turns), [1]);
        turns.want(1, Kind::Other);
        turns.want(1, Kind::First);
        assert_eq!((all(&mut turns), turns.running), (vec![], [0, 1]));
        turns.done(&1);
        assert_eq!(all(&mut turns), [1], "once for both");
        turns.done(&1);
        assert_eq!((all(&mut turns), turns.places.len(), turns.running), (vec![], 0, [0, 0]));
    }

    #[test]
    fn one_that_waits_with_the_others_and_may_begin_now_goes_before_them() {
        let mut turns = Turns::default();
        (0..40).for_each(|key| turns.want(key, Kind::Other));
        assert_eq!(all(&mut turns).len(), 16);
        turns.want(39, Kind::First);
        turns.want(39, Kind::Other);
        assert_eq!(all(&mut turns), [39]);
        turns.done(&39);
        (0..16).for_each(|key| turns.done(&key));
        let mut rest = all(&mut turns);
        rest.iter().for_each(|key| turns.done(key));
        rest.extend(all(&mut turns));
        assert_eq!(rest, (16..39).collect::<Vec<_>>());
    }

    proptest! {
        /// Whatever happens: nobody has two turns, no wish is lost, and nothing is kept of those that want nothing.
        #[test]
        fn no_wish_is_lost(happenings in proptest::collection::vec((0u32..20, 0u8..3), 0..300)) {
            let mut turns = Turns::default();
            let (mut running, mut wished) = (BTreeSet::new(), BTreeSet::new());
            for (key, what) in happenings {
                match what {
                    0 => { turns.want(key, Kind::First); wished.insert(key); }
                    1 => { turns.want(key, Kind::Other); wished.insert(key); }
                    _ => if running.remove(&key) { turns.done(&key); },
                }
                while let Some((next, _)) = turns.next() {
                    prop_assert!(running.insert(next) && wished.remove(&next));
                }
            }
            while let Some(key) = running.pop_first() {
                turns.done(&key);
                while let Some((next, _)) = turns.next() {
                    prop_assert!(running.insert(next) && wished.remove(&next));
                }
            }
            prop_assert!(wished.is_empty() && turns.places.is_empty());
        }
    }
}
