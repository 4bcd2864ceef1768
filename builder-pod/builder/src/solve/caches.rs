//! Who has which cache of `RUN --mount=type=cache`, among the steps of a build. What the ways of sharing mean: BuildKit's
//! `solver/llbsolver/mounts`.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use kiln_dockerfile::instruction::Sharing;

use super::arrivals::TICK;
use super::cache::mounts::Left;
use super::failure::Halt;
use super::shared::Shared;
use crate::plan::Cache;

/// The caches of a build.
#[derive(Debug, Default)]
pub(super) struct Caches {
    copies: Mutex<BTreeMap<Cache, Vec<Instance>>>,
    changed: Condvar,
}

/// One tree of a cache: there are several when steps that don't share it run at the same time.
#[derive(Debug)]
struct Instance {
    tree: String,
    /// It may outlast the build; one of each cache at a time.
    lasting: bool,
    /// Steps that have it.
    users: usize,
    /// Nobody else may have it at the same time.
    alone: bool,
    /// Its tree is there.
    made: bool,
}

/// A copy that a step has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub cache: Cache,
    pub tree: String,
    /// See [`Instance::lasting`].
    pub lasting: bool,
    /// Whoever has it has to make its tree first, and then to say so.
    pub make: bool,
}

/// How a step wants a cache. Two overlays can't have one upper tree, so what lies over files is never shared.
pub(super) fn way(cache: &Cache, sharing: Sharing) -> Sharing {
    match sharing {
        Sharing::Shared if cache.from.is_some() => Sharing::Locked,
        sharing => sharing,
    }
}

impl Caches {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Cache, Vec<Instance>>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a cache; `None` where another step has to end first. `name` gives a new tree's name.
    pub fn take(&self, cache: &Cache, sharing: Sharing, name: &dyn Fn() -> String) -> Option<Held> {
        take(self.lock().entry(cache.clone()).or_default(), cache, sharing, name)
    }

    /// Waits for a cache.
    pub fn wait(
        &self,
        shared: &Shared<'_>,
        cache: &Cache,
        sharing: Sharing,
        name: &dyn Fn() -> String,
    ) -> Result<Held, Halt> {
        let mut copies = self.lock();
        loop {
            shared.check()?;
            if let Some(held) = take(copies.entry(cache.clone()).or_default(), cache, sharing, name) {
                return Ok(held);
            }
            copies = self.changed.wait_timeout(copies, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The tree of a copy is there.
    pub fn made(&self, held: &Held) {
        if let Some(copy) = find(&mut self.lock(), held) {
            copy.made = true;
        }
        self.changed.notify_all();
    }

    /// Those that may outlast the build, with their trees, as the steps that had them left them.
    pub fn left(&self) -> Vec<Left> {
        let copies = self.lock();
        let lasting = |cache: &Cache, all: &[Instance]| {
            let copy = all.iter().find(|copy| copy.lasting && copy.made)?;
            Some(Left { cache: cache.clone(), tree: copy.tree.clone() })
        };
        copies.iter().filter_map(|(cache, all)| lasting(cache, all)).collect()
    }

    /// A step has ended. `keep` gives a copy that nobody has any more to whoever keeps it beyond the build, and says whether
    /// that took it; until it returns nobody else can take one.
    pub fn give_back(&self, held: &Held, keep: impl FnOnce() -> Result<bool, Halt>) -> Result<(), Halt> {
        let mut copies = self.lock();
        let mut kept = Ok(false);
        if let Some(copy) = find(&mut copies, held) {
            copy.users -= 1;
            if copy.users == 0 {
                copy.alone = false;
                if copy.lasting {
                    kept = keep();
                }
            }
        }
        if matches!(kept, Ok(true))
            && let Some(all) = copies.get_mut(&held.cache)
        {
            all.retain(|copy| copy.tree != held.tree);
        }
        drop(copies);
        self.changed.notify_all();
        kept.map(drop)
    }
}

fn find<'a>(copies: &'a mut BTreeMap<Cache, Vec<Instance>>, held: &Held) -> Option<&'a mut Instance> {
    copies.get_mut(&held.cache)?.iter_mut().find(|copy| copy.tree == held.tree)
}

fn take(
    copies: &mut Vec<Instance>,
    cache: &Cache,
    sharing: Sharing,
    name: &dyn Fn() -> String,
) -> Option<Held> {
    let alone = sharing != Sharing::Shared;
    let lasting = copies.iter().position(|copy| copy.lasting);
    let join = |copy: &Instance| copy.users == 0 || !alone && !copy.alone;
    let found = match (sharing, lasting) {
        // The copy that outlasts the build goes before others.
        (_, Some(at)) if join(&copies[at]) => Some(at),
        (Sharing::Locked, Some(_)) => return None,
        (_, Some(_)) => copies.iter().position(join),
        (_, None) => None,
    };
    let Some(copy) = found.map(|at| &mut copies[at]) else {
        let tree = name();
        let lasting = lasting.is_none();
        copies.push(Instance { tree: tree.clone(), lasting, users: 1, alone, made: false });
        return Some(Held { cache: cache.clone(), tree, lasting, make: true });
    };
    if !copy.made && copy.users > 0 {
        return None;
    }
    copy.users += 1;
    copy.alone = alone;
    Some(Held { cache: cache.clone(), tree: copy.tree.clone(), lasting: copy.lasting, make: !copy.made })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn cache(id: &str) -> Cache {
        Cache { id: id.to_owned(), from: None, root: None }
    }

    #[test]
    fn each_way_of_sharing_has_its_copies() {
        let caches = Caches::default();
        let count = AtomicU32::new(0);
        let name = || format!("k{}", count.fetch_add(1, Ordering::Relaxed));
        let take = |sharing| {
            let held = caches.take(&cache("c"), sharing, &name)?;
            if held.make {
                caches.made(&held);
            }
            Some(held)
        };
        let back = |held: &Held| caches.give_back(held, || Ok(false)).unwrap();
        let one = take(Sharing::Shared).unwrap();
        let two = take(Sharing::Shared).unwrap();
        assert_eq!((one.tree.as_str(), two.tree.as_str()), ("k0", "k0"), "shared");
        assert!(take(Sharing::Locked).is_none(), "locked waits for those who share");
        let own = take(Sharing::Private).unwrap();
        assert_eq!((own.tree.as_str(), own.lasting), ("k1", false), "private has its own");
        back(&one);
        assert!(take(Sharing::Locked).is_none());
        back(&two);
        let locked = take(Sharing::Locked).unwrap();
        assert_eq!((locked.tree.as_str(), locked.make), ("k0", false));
        assert!(take(Sharing::Locked).is_none(), "locked waits for locked");
        assert_eq!(take(Sharing::Shared).unwrap().tree, "k2", "others do not");
        back(&own);
        assert_eq!(take(Sharing::Private).unwrap().tree, "k1", "a free copy is used again");
        assert!(caches.take(&cache("d"), Sharing::Locked, &name).is_some(), "caches are apart");
    }

    #[test]
    fn who_shares_waits_until_the_tree_is_made_and_nobody_waits_for_who_is_alone() {
        let caches = Caches::default();
        let name = || "k".to_owned();
        let first = caches.take(&cache("c"), Sharing::Shared, &name).unwrap();
        assert!(first.make && caches.take(&cache("c"), Sharing::Shared, &name).is_none());
        caches.made(&first);
        assert!(!caches.take(&cache("c"), Sharing::Shared, &name).unwrap().make);
        let locked = caches.take(&cache("d"), Sharing::Locked, &name).unwrap();
        assert!(locked.make, "which may take long");
        let other = caches.take(&cache("d"), Sharing::Shared, &|| "other".to_owned()).unwrap();
        assert_eq!((other.tree.as_str(), other.lasting), ("other", false));
    }

    #[test]
    fn what_outlasts_the_build_is_given_away_by_its_last_user() {
        let caches = Caches::default();
        let name = || "k".to_owned();
        let one = caches.take(&cache("c"), Sharing::Shared, &name).unwrap();
        caches.made(&one);
        let two = caches.take(&cache("c"), Sharing::Shared, &name).unwrap();
        let own = caches.take(&cache("c"), Sharing::Private, &|| "own".to_owned()).unwrap();
        caches.made(&own);
        caches.give_back(&one, || panic!("somebody has it")).unwrap();
        caches.give_back(&own, || panic!("it does not outlast the build")).unwrap();
        caches.give_back(&two, || Ok(true)).unwrap();
        let again = caches.take(&cache("c"), Sharing::Private, &name).unwrap();
        assert!(again.make && again.lasting, "it is asked for again before a copy of the build is used");
    }
}
