//! Places for builds that run: bounded in all, by policy and by namespace, and fair between namespaces. Pure.
//!
//! The next place goes to the namespace that has the fewest of those that may have one more; among equals they take turns. So
//! a tenant who floods the queue delays only itself. Within a namespace priority decides, then who has waited longest: no
//! priority overtakes another namespace.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use crate::image_build::decide::Slot;

/// The queue.
///
/// Between calls nobody waits who may have a place. So only what frees one, or adds a namespace to those that wait, has to
/// look for who is next.
#[derive(Debug, Default)]
pub struct Queue {
    /// Places in all; 0 for no limit.
    total: usize,
    /// Places of each namespace; 0 for no limit.
    per_namespace: usize,
    /// Namespace of each build that has a place, by UID.
    running: HashMap<String, String>,
    /// Namespace and rank of each build that waits, by UID.
    waiting: HashMap<String, (String, Rank)>,
    /// Namespaces of which builds run or wait, or that have limits of their own.
    shares: HashMap<String, Share>,
    /// Policies that limit several namespaces together.
    groups: HashMap<String, Group>,
    /// Namespaces of which builds wait, as they are due: by places that they have, then by turn.
    ring: BTreeSet<(usize, u64, String)>,
    /// Numbers given out: of arrivals and turns.
    numbers: u64,
}

/// Order within a namespace: priority, then since when it waits, then arrival.
type Rank = (Reverse<i32>, i64, u64);

/// A namespace's part.
#[derive(Debug, Default)]
struct Share {
    /// Places that it has.
    running: usize,
    /// Who waits.
    waiting: BTreeMap<Rank, Waiter>,
    /// When its turn is among namespaces that have as many places.
    turn: u64,
    limits: Limits,
}

#[derive(Debug)]
struct Waiter {
    uid: String,
    name: String,
}

/// Namespaces that a policy limits together.
#[derive(Debug, Default)]
struct Group {
    limit: usize,
    running: usize,
    members: usize,
}

/// What a namespace is limited to, besides what holds for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Builds of the namespace at a time.
    pub own: Option<usize>,
    /// Policies with a total over all namespaces that they select: name and limit.
    pub groups: Vec<(String, usize)>,
}

/// A build that asks for a place.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// The object's UID.
    pub uid: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Higher ones come first within the namespace.
    pub priority: i32,
    /// Since when it waits, in seconds: what waited before a restart of the operator keeps its order.
    pub since: i64,
}

/// Where a build waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// So many are before it, itself included, rounded up. Only builds that wait for the same count.
    pub position: i32,
    /// What it waits for.
    pub wait: Wait,
}

/// The words that `status.queue.reason` may be.
pub mod words {
    /// So many builds run in all.
    pub const TOTAL: &str = "Total";
    /// So many run in the namespace.
    pub const NAMESPACE: &str = "Namespace";
    /// So many run in the namespaces of a BuildPolicy.
    pub const POLICY: &str = "Policy";
    /// The namespace's ResourceQuota is used up; this is no place in the queue.
    pub const QUOTA: &str = "Quota";
}

/// The limit that is reached, the narrowest one; with the number of builds that it allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// In all.
    Total(usize),
    /// Of its namespace.
    Namespace(usize),
    /// Of the namespaces that the named policy selects.
    Policy(String, usize),
}

impl Place {
    /// Seconds until its status is to say anew where it stands. Who gets a place is woken.
    pub fn look_again(&self) -> i64 {
        match self.position {
            ..=20 => 10,
            21..=100 => 30,
            101..=1000 => 60,
            _ => 120,
        }
    }
}

impl Wait {
    /// The word for `status.queue.reason`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Total(_) => words::TOTAL,
            Self::Namespace(_) => words::NAMESPACE,
            Self::Policy(..) => words::POLICY,
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = |n: usize| format!("{n} build{}", if n == 1 { "" } else { "s" });
        match self {
            Self::Total(n) => write!(f, "the cluster runs at most {} at a time", limit(*n)),
            Self::Namespace(n) => write!(f, "this namespace runs at most {} at a time", limit(*n)),
            Self::Policy(name, n) => {
                write!(f, "the namespaces of BuildPolicy {name} run at most {} at a time", limit(*n))
            }
        }
    }
}

/// A build that got a place while it waited: namespace and name.
pub type Woken = (String, String);

impl Queue {
    /// A queue with so many places, in all and for each namespace; 0 for any number.
    pub fn new(total: usize, per_namespace: usize) -> Self {
        Self { total, per_namespace, ..Self::default() }
    }

    /// Limits a namespace anew. Of a policy the limit that was given last holds. Returns who has got a place by that.
    pub fn set_limits(&mut self, namespace: &str, mut limits: Limits) -> Vec<Woken> {
        // The strictest, should one be there twice.
        limits.groups.sort();
        limits.groups.dedup_by(|next, first| next.0 == first.0);
        let share = self.shares.entry(namespace.to_owned()).or_default();
        // Another namespace may have given its policy another limit since.
        let holds = |(name, limit): &(String, usize)| {
            self.groups.get(name).is_some_and(|group| group.limit == *limit)
        };
        if share.limits == limits && limits.groups.iter().all(holds) {
            self.tidy(namespace);
            return Vec::new();
        }
        let running = share.running;
        let before = std::mem::replace(&mut share.limits, limits.clone());
        for (name, limit) in limits.groups {
            let group = self.groups.entry(name).or_default();
            group.limit = limit;
            group.running += running;
            group.members += 1;
        }
        for (name, _) in before.groups {
            let Some(group) = self.groups.get_mut(&name) else { continue };
            group.running -= running;
            group.members -= 1;
            if group.members == 0 {
                self.groups.remove(&name);
            }
        }
        self.tidy(namespace);
        self.grant()
    }

    /// A build that runs already, found at start: it has its place whatever the limits.
    pub fn adopt(&mut self, uid: &str, namespace: &str) {
        if self.running.contains_key(uid) {
            return;
        }
        self.leave(uid);
        self.running.insert(uid.to_owned(), namespace.to_owned());
        self.change(namespace, |share, _| share.running += 1);
    }

    /// A build that waits already, found at start: it gets a place only when all are found.
    pub fn expect(&mut self, claim: &Claim<'_>) {
        if !self.running.contains_key(claim.uid) {
            self.enter(claim);
        }
    }

    /// Asks for a place. Also returns who else has got one, which is due only after [`Self::expect`].
    pub fn ask(&mut self, claim: &Claim<'_>) -> (Slot, Vec<Woken>) {
        if self.running.contains_key(claim.uid) {
            return (Slot::Granted, Vec::new());
        }
        self.enter(claim);
        let mut woken = self.grant();
        woken
            .retain(|(namespace, name)| (namespace.as_str(), name.as_str()) != (claim.namespace, claim.name));
        let slot = match self.waiting.get(claim.uid) {
            Some((namespace, rank)) => Slot::Queued(self.place(namespace, *rank)),
            None => Slot::Granted,
        };
        (slot, woken)
    }

    /// Gives a place back, or stops waiting. Returns who has got a place by that.
    pub fn release(&mut self, uid: &str) -> Vec<Woken> {
        if let Some(namespace) = self.running.remove(uid) {
            self.change(&namespace, |share, _| share.running -= 1);
        } else if !self.leave(uid) {
            return Vec::new();
        }
        self.grant()
    }

    /// How many have a place.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Has the build wait, where it has arrived before and with the same priority.
    fn enter(&mut self, claim: &Claim<'_>) {
        let arrival = match self.waiting.get(claim.uid) {
            Some((_, (Reverse(priority), since, _)))
                if (*priority, *since) == (claim.priority, claim.since) =>
            {
                return;
            }
            Some((_, (_, _, arrival))) => *arrival,
            None => {
                self.numbers += 1;
                self.numbers
            }
        };
        self.leave(claim.uid);
        let rank = (Reverse(claim.priority), claim.since, arrival);
        self.waiting.insert(claim.uid.to_owned(), (claim.namespace.to_owned(), rank));
        let waiter = Waiter { uid: claim.uid.to_owned(), name: claim.name.to_owned() };
        self.change(claim.namespace, |share, turn| {
            if share.waiting.is_empty() {
                // Behind those that wait already.
                share.turn = turn;
            }
            share.waiting.insert(rank, waiter);
        });
    }

    /// Has the build wait no longer; whether it did.
    fn leave(&mut self, uid: &str) -> bool {
        let Some((namespace, rank)) = self.waiting.remove(uid) else { return false };
        self.change(&namespace, |share, _| share.waiting.remove(&rank));
        true
    }

    /// Changes a namespace's part, and with it what is counted of it elsewhere. `change` gets the last turn of all.
    fn change<T>(&mut self, namespace: &str, change: impl FnOnce(&mut Share, u64) -> T) -> T {
        self.numbers += 1;
        let share = self.shares.entry(namespace.to_owned()).or_default();
        let (running, turn) = (share.running, share.turn);
        let changed = change(share, self.numbers);
        if share.running != running {
            for (name, _) in &share.limits.groups {
                if let Some(group) = self.groups.get_mut(name) {
                    group.running = group.running + share.running - running;
                }
            }
        }
        let waits = !share.waiting.is_empty();
        let now = (share.running, share.turn, namespace.to_owned());
        let before = (running, turn, namespace.to_owned());
        if now != before || !waits {
            self.ring.remove(&before);
        }
        if waits {
            self.ring.insert(now);
        }
        self.tidy(namespace);
        changed
    }

    /// Forgets a namespace of which there is nothing to know.
    fn tidy(&mut self, namespace: &str) {
        let idle = |share: &Share| {
            share.running == 0 && share.waiting.is_empty() && share.limits == Limits::default()
        };
        if self.shares.get(namespace).is_some_and(idle) {
            self.shares.remove(namespace);
        }
    }

    /// Gives away what is free.
    fn grant(&mut self) -> Vec<Woken> {
        let mut woken = Vec::new();
        while self.total == 0 || self.running.len() < self.total {
            let Some(namespace) = self.next() else { break };
            let first = self.change(&namespace, |share, turn| {
                let (_, first) = share.waiting.pop_first()?;
                share.running += 1;
                share.turn = turn;
                Some(first)
            });
            let Some(first) = first else { break };
            self.waiting.remove(&first.uid);
            self.running.insert(first.uid, namespace.clone());
            woken.push((namespace, first.name));
        }
        woken
    }

    /// The namespace that gets the next place, if any may have one.
    fn next(&self) -> Option<String> {
        // A namespace that several policies limit needs a place of each at the same time. What it waits for first is kept for
        // it meanwhile, or others that need only one of them would take that for ever.
        let mut kept: HashMap<&str, usize> = HashMap::new();
        for (_, _, namespace) in &self.ring {
            let Some(share) = self.shares.get(namespace).filter(|share| self.own_is_free(share)) else {
                continue;
            };
            let groups = || share.limits.groups.iter().filter_map(|(n, _)| self.groups.get_key_value(n));
            let free = |(name, group): &(&String, &Group)| {
                group.running + kept.get(name.as_str()).unwrap_or(&0) < group.limit
            };
            if groups().all(|g| free(&g)) {
                return Some(namespace.clone());
            }
            let keep: Vec<&String> = groups().filter(free).map(|(name, _)| name).collect();
            for name in keep {
                *kept.entry(name).or_default() += 1;
            }
        }
        None
    }

    fn own_limit(&self, share: &Share) -> Option<usize> {
        let general = Some(self.per_namespace).filter(|n| *n > 0);
        share.limits.own.into_iter().chain(general).min()
    }

    fn own_is_free(&self, share: &Share) -> bool {
        self.own_limit(share).is_none_or(|limit| share.running < limit)
    }

    /// What keeps the namespace from one more place.
    fn hindrance(&self, share: &Share) -> Wait {
        if let Some(limit) = self.own_limit(share).filter(|limit| share.running >= *limit) {
            return Wait::Namespace(limit);
        }
        let groups = || share.limits.groups.iter().filter_map(|(n, _)| self.groups.get_key_value(n));
        let full = groups().find(|(_, group)| group.running >= group.limit);
        let total = self.total > 0 && self.running.len() >= self.total;
        // None is full where one is kept for a namespace that needs more than that one.
        match full.or_else(|| groups().next().filter(|_| !total)) {
            Some((name, group)) => Wait::Policy(name.clone(), group.limit),
            None => Wait::Total(self.total),
        }
    }

    /// Where the build of that rank waits: how many places would have to become free, if none that is taken then ended before.
    fn place(&self, namespace: &str, rank: Rank) -> Place {
        let Some(share) = self.shares.get(namespace) else {
            return Place { position: 1, wait: Wait::Total(self.total) };
        };
        let wait = self.hindrance(share);
        let index = share.waiting.range(..rank).count();
        let rivals = self.ring.iter().filter(|(_, _, other)| other != namespace);
        let ahead: usize = rivals
            .filter_map(|(_, _, other)| self.shares.get(other))
            .filter(|other| match &wait {
                Wait::Total(_) => true,
                Wait::Namespace(_) => false,
                Wait::Policy(name, _) => other.limits.groups.iter().any(|(n, _)| n == name),
            })
            .map(|other| {
                // It would be the namespace's (running + index)-th; so would theirs.
                let level = share.running + index;
                let room = self.own_limit(other).map_or(usize::MAX, |l| l.saturating_sub(other.running));
                let theirs = other.waiting.len().min(room);
                let before = level.saturating_sub(other.running);
                let tied = level >= other.running && before < theirs;
                let first = tied && (before, other.turn) < (index, share.turn);
                before.min(theirs) + usize::from(first)
            })
            .sum();
        Place { position: bucket(index + ahead + 1), wait }
    }
}

/// A place rounded up, so that a status is not written for every move.
fn bucket(place: usize) -> i32 {
    const BUCKETS: [i32; 12] = [5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 100_000];
    let place = i32::try_from(place).unwrap_or(i32::MAX);
    if place <= 5 { place } else { BUCKETS.into_iter().find(|b| place <= *b).unwrap_or(place) }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
