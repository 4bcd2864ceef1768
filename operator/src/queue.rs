//! Places for builds that run: bounded in all, fair between namespaces. Pure.
//!
//! The next place goes to the namespace that has the fewest, and within it to who has waited longest; a tenant who floods
//! the queue delays only itself.

use std::collections::{BTreeMap, HashMap};

use crate::image_build::decide::Slot;

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    /// Places in all; 0 for no limit.
    limit: usize,
    /// Namespace of each build that has a place, by UID.
    running: HashMap<String, String>,
    /// Who waits, by number in order of arrival.
    waiting: BTreeMap<u64, Waiter>,
    arrivals: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Waiter {
    uid: String,
    namespace: String,
    name: String,
}

/// A build that got a place while it waited: namespace and name.
pub type Woken = (String, String);

impl Queue {
    /// A queue with `limit` places, 0 for any number.
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// A build that runs already, found at start: it has its place whatever the limit.
    pub fn adopt(&mut self, uid: &str, namespace: &str) {
        self.running.insert(uid.to_owned(), namespace.to_owned());
    }

    /// Asks for a place.
    pub fn ask(&mut self, uid: &str, namespace: &str, name: &str) -> Slot {
        if self.running.contains_key(uid) {
            return Slot::Granted;
        }
        if !self.waiting.values().any(|w| w.uid == uid) {
            self.arrivals += 1;
            let waiter =
                Waiter { uid: uid.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() };
            self.waiting.insert(self.arrivals, waiter);
        }
        // What is free goes to whom it is due, who need not be the one that asks.
        self.grant();
        if self.running.contains_key(uid) {
            return Slot::Granted;
        }
        let place = self.order().iter().position(|n| self.waiting[n].uid == uid).unwrap_or_default() + 1;
        Slot::Queued(bucket(place))
    }

    /// Gives a place back, or stops waiting. Returns who has got a place by that.
    pub fn release(&mut self, uid: &str) -> Vec<Woken> {
        self.waiting.retain(|_, w| w.uid != uid);
        if self.running.remove(uid).is_none() {
            return Vec::new();
        }
        self.grant()
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn free(&self) -> bool {
        self.limit == 0 || self.running.len() < self.limit
    }

    fn grant(&mut self) -> Vec<Woken> {
        let mut woken = Vec::new();
        while self.free() {
            let Some(next) = self.order().first().copied().and_then(|n| self.waiting.remove(&n)) else {
                break;
            };
            self.running.insert(next.uid, next.namespace.clone());
            woken.push((next.namespace, next.name));
        }
        woken
    }

    /// Who waits, in the order in which places are due if none ended in between.
    fn order(&self) -> Vec<u64> {
        let mut having: HashMap<&str, usize> = HashMap::new();
        for namespace in self.running.values() {
            *having.entry(namespace).or_default() += 1;
        }
        // The n-th waiter of a namespace would be its (running + n)-th build.
        let mut due: Vec<(usize, u64)> = Vec::with_capacity(self.waiting.len());
        for (number, waiter) in &self.waiting {
            let count = having.entry(&waiter.namespace).or_default();
            due.push((*count, *number));
            *count += 1;
        }
        due.sort_unstable();
        due.into_iter().map(|(_, number)| number).collect()
    }
}

/// A place rounded up, so that a status is not written for every move.
fn bucket(place: usize) -> i32 {
    const BUCKETS: [i32; 12] = [5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 100_000];
    let place = i32::try_from(place).unwrap_or(i32::MAX);
    if place <= 5 { place } else { BUCKETS.into_iter().find(|b| place <= *b).unwrap_or(place) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_handed_on() {
        let mut queue = Queue::new(1);
        assert_eq!(queue.ask("1", "a", "x"), Slot::Granted);
        assert_eq!(queue.ask("1", "a", "x"), Slot::Granted, "asking again takes no second place");
        assert_eq!(queue.ask("2", "a", "y"), Slot::Queued(1));
        assert_eq!(queue.ask("3", "a", "z"), Slot::Queued(2));
        assert_eq!(queue.ask("2", "a", "y"), Slot::Queued(1));
        assert_eq!(queue.waiting(), 2);
        assert_eq!(queue.release("1"), [("a".to_owned(), "y".to_owned())]);
        assert_eq!(queue.ask("2", "a", "y"), Slot::Granted);
        assert!(queue.release("3").is_empty(), "who only waited frees nothing");
        assert!(queue.release("2").is_empty());
        assert_eq!(queue.waiting(), 0);
    }

    #[test]
    fn a_flood_delays_only_its_own_namespace() {
        let mut queue = Queue::new(2);
        for n in 0..50 {
            queue.ask(&format!("f{n}"), "flood", &n.to_string());
        }
        assert_eq!(queue.ask("s", "small", "s"), Slot::Queued(1));
        assert_eq!(queue.release("f0"), [("small".to_owned(), "s".to_owned())]);
        assert_eq!(queue.release("f1").len(), 1);
        assert_eq!(queue.ask("f40", "flood", "40"), Slot::Queued(50));
    }

    #[test]
    fn without_a_limit_nobody_waits_and_adopted_builds_may_be_too_many() {
        let mut queue = Queue::new(0);
        assert!((0..100).all(|n| queue.ask(&n.to_string(), "a", "x") == Slot::Granted));
        let mut queue = Queue::new(1);
        queue.adopt("1", "a");
        queue.adopt("2", "a");
        assert_eq!(queue.ask("3", "a", "x"), Slot::Queued(1));
        assert!(queue.release("1").is_empty());
        assert_eq!(queue.release("2").len(), 1);
    }
}
