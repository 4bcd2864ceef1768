//! The queue: single cases, and what must hold whatever is asked and released in whatever order.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

fn claim<'a>(uid: &'a str, namespace: &'a str) -> Claim<'a> {
    Claim { uid, namespace, name: uid, priority: 0, since: 0 }
}

/// Asks; nobody else gets a place by that.
fn ask(queue: &mut Queue, claim: &Claim<'_>) -> Slot {
    let (slot, woken) = queue.ask(claim);
    assert_eq!(woken, [], "nobody may have waited who could run");
    slot
}

fn queued(position: i32, wait: Wait) -> Slot {
    Slot::Queued(Place { position, wait })
}

fn woken(namespace: &str, name: &str) -> Woken {
    (namespace.to_owned(), name.to_owned())
}

fn limits(own: Option<usize>, groups: &[(&str, usize)]) -> Limits {
    Limits { own, groups: groups.iter().map(|(name, limit)| ((*name).to_owned(), *limit)).collect() }
}

#[test]
fn places_are_bounded_and_handed_on() {
    let mut queue = Queue::new(1, 0);
    assert_eq!(ask(&mut queue, &claim("1", "a")), Slot::Granted);
    assert_eq!(ask(&mut queue, &claim("1", "a")), Slot::Granted, "asking again takes no second place");
    assert_eq!(ask(&mut queue, &claim("2", "a")), queued(1, Wait::Total(1)));
    assert_eq!(ask(&mut queue, &claim("3", "a")), queued(2, Wait::Total(1)));
    assert_eq!(ask(&mut queue, &claim("2", "a")), queued(1, Wait::Total(1)));
    assert_eq!(queue.waiting(), 2);
    assert_eq!(queue.release("1"), [woken("a", "2")]);
    assert_eq!(ask(&mut queue, &claim("2", "a")), Slot::Granted);
    assert!(queue.release("3").is_empty(), "who only waited frees nothing");
    assert!(queue.release("2").is_empty());
    assert_eq!(queue.waiting(), 0);
    assert!(queue.shares.is_empty() && queue.ring.is_empty(), "nothing is kept of it: {queue:?}");
}

#[test]
fn a_flood_delays_only_its_own_namespace() {
    let mut queue = Queue::new(2, 0);
    for n in 0..50 {
        ask(&mut queue, &claim(&format!("f{n}"), "flood"));
    }
    assert_eq!(ask(&mut queue, &claim("s", "small")), queued(1, Wait::Total(2)));
    assert_eq!(queue.release("f0"), [woken("small", "s")]);
    assert_eq!(queue.release("f1").len(), 1);
    assert_eq!(ask(&mut queue, &claim("f40", "flood")), queued(50, Wait::Total(2)));
}

#[test]
fn with_one_place_namespaces_take_turns() {
    let mut queue = Queue::new(1, 0);
    for n in 0..9 {
        ask(&mut queue, &claim(&format!("f{n}"), "flood"));
    }
    ask(&mut queue, &claim("s0", "small"));
    ask(&mut queue, &claim("s1", "small"));
    let mut order = vec!["f0".to_owned()];
    for _ in 0..5 {
        let next = queue.release(order.last().expect("one runs"));
        order.extend(next.into_iter().map(|(_, name)| name));
    }
    // The flood came first and gets what comes first, and no more.
    assert_eq!(order, ["f0", "f1", "s0", "f2", "s1", "f3"]);
}

#[test]
fn without_a_limit_nobody_waits_and_adopted_builds_may_be_too_many() {
    let mut queue = Queue::new(0, 0);
    assert!((0..100).all(|n| ask(&mut queue, &claim(&n.to_string(), "a")) == Slot::Granted));
    let mut queue = Queue::new(1, 0);
    queue.adopt("1", "a");
    queue.adopt("2", "a");
    queue.adopt("2", "a");
    assert_eq!(ask(&mut queue, &claim("3", "a")), queued(1, Wait::Total(1)));
    assert!(queue.release("1").is_empty());
    assert_eq!(queue.release("2").len(), 1);
}

#[test]
fn a_namespace_has_the_strictest_limit_and_is_told_which_one_it_waits_for() {
    let mut queue = Queue::new(4, 2);
    assert!((0..2).all(|n| ask(&mut queue, &claim(&format!("a{n}"), "a")) == Slot::Granted));
    assert_eq!(ask(&mut queue, &claim("a2", "a")), queued(1, Wait::Namespace(2)));
    assert!(queue.set_limits("b", limits(Some(1), &[])).is_empty());
    assert_eq!(ask(&mut queue, &claim("b0", "b")), Slot::Granted);
    assert_eq!(ask(&mut queue, &claim("b1", "b")), queued(1, Wait::Namespace(1)));
    // A policy is no way around the limit that holds for each.
    assert_eq!(queue.set_limits("b", limits(Some(9), &[])), [woken("b", "b1")]);
    assert_eq!(ask(&mut queue, &claim("b2", "b")), queued(1, Wait::Namespace(2)));
    assert_eq!(ask(&mut queue, &claim("c0", "c")), queued(1, Wait::Total(4)), "a and b may have no more");
    assert_eq!(queue.release("a0"), [woken("c", "c0")], "c has the fewest");
    assert_eq!(queue.release("b0"), [woken("a", "a2")], "b has as many, and its turn is later");
}

#[test]
fn a_policy_limits_its_namespaces_together() {
    let mut queue = Queue::new(10, 0);
    for namespace in ["a", "b"] {
        queue.set_limits(namespace, limits(None, &[("ci", 2)]));
    }
    assert_eq!(ask(&mut queue, &claim("a0", "a")), Slot::Granted);
    assert_eq!(ask(&mut queue, &claim("a1", "a")), Slot::Granted);
    let full = Wait::Policy("ci".to_owned(), 2);
    assert_eq!(ask(&mut queue, &claim("a2", "a")), queued(1, full.clone()));
    assert_eq!(ask(&mut queue, &claim("b0", "b")), queued(1, full.clone()), "b has none yet");
    assert_eq!(ask(&mut queue, &claim("a2", "a")), queued(2, full));
    assert_eq!(ask(&mut queue, &claim("c0", "c")), Slot::Granted, "others go on");
    assert_eq!(queue.release("a0"), [woken("b", "b0")]);
    // Raised for one namespace, it is raised.
    assert_eq!(queue.set_limits("b", limits(None, &[("ci", 3)])), [woken("a", "a2")]);
    // Said anew by the other, whose limit it was before, it is lowered again.
    assert_eq!(queue.set_limits("a", limits(None, &[("ci", 2)])), []);
    assert_eq!(ask(&mut queue, &claim("a3", "a")), queued(1, Wait::Policy("ci".to_owned(), 2)));
    for namespace in ["a", "b"] {
        queue.set_limits(namespace, Limits::default());
    }
    assert!(queue.groups.is_empty());
}

#[test]
fn who_needs_two_policies_is_not_passed_over_by_those_who_need_one() {
    let mut queue = Queue::new(0, 0);
    queue.set_limits("one", limits(None, &[("p", 1)]));
    queue.set_limits("two", limits(None, &[("q", 1)]));
    queue.set_limits("both", limits(None, &[("p", 1), ("q", 1)]));
    for n in 0..9 {
        ask(&mut queue, &claim(&format!("p{n}"), "one"));
        ask(&mut queue, &claim(&format!("q{n}"), "two"));
        if n == 1 {
            ask(&mut queue, &claim("b", "both"));
        }
    }
    assert_eq!(queue.release("p0"), [woken("one", "p1")], "one has waited longer");
    assert_eq!(queue.release("p1"), [], "it is kept for who needs it beside the other");
    assert_eq!(ask(&mut queue, &claim("p2", "one")), queued(2, Wait::Policy("p".to_owned(), 1)));
    assert_eq!(queue.release("q0"), [woken("two", "q1")], "two has waited longer");
    assert_eq!(queue.release("q1"), [woken("both", "b")]);
    assert_eq!(queue.release("b"), [woken("one", "p2"), woken("two", "q2")]);
}

#[test]
fn who_waited_before_a_restart_waits_in_the_same_order() {
    let mut queue = Queue::new(2, 0);
    queue.adopt("r", "a");
    for (uid, since) in [("late", 30), ("early", 10)] {
        queue.expect(&Claim { since, ..claim(uid, "a") });
    }
    // The first to ask is not the first who is due.
    let late = Claim { since: 30, ..claim("late", "a") };
    assert_eq!(queue.ask(&late), (queued(1, Wait::Total(2)), vec![woken("a", "early")]));
    assert_eq!(ask(&mut queue, &Claim { since: 10, ..claim("early", "a") }), Slot::Granted);
}

#[test]
fn positions_are_rounded_up_and_count_who_waits_for_the_same() {
    assert_eq!([1, 5, 6, 11, 51, 9_999].map(bucket), [1, 5, 10, 20, 100, 10_000]);
    let mut queue = Queue::new(1, 0);
    queue.adopt("r", "r");
    for (namespace, builds) in [("a", 4), ("b", 2)] {
        for n in 0..builds {
            ask(&mut queue, &claim(&format!("{namespace}{n}"), namespace));
        }
    }
    // a0 b0 a1 b1 a2 a3
    let mut place = |uid: &str, namespace: &str| match ask(&mut queue, &claim(uid, namespace)) {
        Slot::Queued(place) => place.position,
        other => panic!("{uid}: {other:?}"),
    };
    assert_eq!([place("a0", "a"), place("b0", "b"), place("a1", "a"), place("b1", "b")], [1, 2, 3, 4]);
    assert_eq!([place("a2", "a"), place("a3", "a")], [5, 10]);
}

/// Namespaces of the properties; what each is limited to.
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

#[derive(Debug, Clone)]
enum Op {
    Ask {
        namespace: usize,
        priority: i32,
    },
    /// One that runs, by its place in order of grants.
    Release(prop::sample::Index),
    /// One that waits.
    Leave(prop::sample::Index),
    Limit {
        namespace: usize,
        limits: Limits,
    },
}

fn any_limits() -> impl Strategy<Value = Limits> {
    (prop::option::of(1usize..4), prop::option::of(1usize..5)).prop_map(|(own, group)| {
        // One group each: what is free then is never kept for anybody.
        let groups = group.map(|limit| (["even", "odd"][limit % 2].to_owned(), limit));
        Limits { own, groups: groups.into_iter().collect() }
    })
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..NAMES.len(), -1..2i32).prop_map(|(namespace, priority)| Op::Ask { namespace, priority }),
        4 => any::<prop::sample::Index>().prop_map(Op::Release),
        1 => any::<prop::sample::Index>().prop_map(Op::Leave),
        1 => (0..NAMES.len(), any_limits()).prop_map(|(namespace, limits)| Op::Limit { namespace, limits }),
    ]
}

/// What is known of the queue from outside.
#[derive(Debug, Default)]
struct Seen {
    running: VecDeque<(String, String)>,
    /// UID, namespace, priority.
    waiting: Vec<(String, String, i32)>,
    limits: HashMap<String, Limits>,
    groups: HashMap<String, usize>,
}

impl Seen {
    fn grant(&mut self, namespace: &str, uid: &str) {
        let at = self.waiting.iter().position(|w| w.0 == uid).expect("who is woken has waited");
        let (_, of, priority) = self.waiting.remove(at);
        assert_eq!(of, namespace);
        let overtaken = self.waiting.iter().filter(|w| w.1 == namespace && w.2 > priority).count();
        assert_eq!(overtaken, 0, "{uid} overtook a higher priority in {namespace}");
        self.running.push_back((uid.to_owned(), namespace.to_owned()));
    }

    fn count(&self, of: impl Fn(&str) -> bool) -> usize {
        self.running.iter().filter(|(_, namespace)| of(namespace)).count()
    }

    /// Each limit that holds for the namespace, and how much of it is used.
    fn used(&self, namespace: &str, total: usize, each: usize) -> Vec<(usize, usize)> {
        let limits = self.limits.get(namespace).cloned().unwrap_or_default();
        let mut all = vec![(self.running.len(), total), (self.count(|n| n == namespace), each)];
        all.extend(limits.own.map(|own| (self.count(|n| n == namespace), own)));
        for (name, _) in &limits.groups {
            let member =
                |n: &str| self.limits.get(n).is_some_and(|l| l.groups.iter().any(|(g, _)| g == name));
            all.push((self.count(member), self.groups[name]));
        }
        all.retain(|(_, limit)| *limit > 0);
        all
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// No grant goes over a limit, no higher priority of the namespace is overtaken, and nobody waits who may run.
    #[test]
    fn limits_hold_and_nothing_is_left_free(
        total in 0usize..6, each in 0usize..4, ops in prop::collection::vec(any_op(), 1..80),
    ) {
        let mut queue = Queue::new(total, each);
        let mut seen = Seen::default();
        for (number, op) in ops.into_iter().enumerate() {
            let mut granted = match op {
                Op::Ask { namespace, priority } => {
                    let (uid, namespace) = (number.to_string(), NAMES[namespace]);
                    let slot = ask(&mut queue, &Claim { priority, ..claim(&uid, namespace) });
                    seen.waiting.push((uid.clone(), namespace.to_owned(), priority));
                    if slot == Slot::Granted { vec![woken(namespace, &uid)] } else { Vec::new() }
                }
                Op::Release(which) if !seen.running.is_empty() => {
                    let at = which.index(seen.running.len());
                    let (uid, _) = seen.running.remove(at).expect("it is there");
                    queue.release(&uid)
                }
                Op::Leave(which) if !seen.waiting.is_empty() => {
                    let (uid, ..) = seen.waiting.remove(which.index(seen.waiting.len()));
                    queue.release(&uid)
                }
                Op::Limit { namespace, limits } => {
                    seen.limits.insert(NAMES[namespace].to_owned(), limits.clone());
                    seen.groups.extend(limits.groups.iter().cloned());
                    queue.set_limits(NAMES[namespace], limits)
                }
                Op::Release(_) | Op::Leave(_) => Vec::new(),
            };
            for (namespace, uid) in granted.drain(..) {
                seen.grant(&namespace, &uid);
                for (used, limit) in seen.used(&namespace, total, each) {
                    prop_assert!(used <= limit, "{used} of {limit} after a grant to {namespace}");
                }
            }
            prop_assert_eq!(queue.waiting(), seen.waiting.len());
            for (uid, namespace, priority) in &seen.waiting {
                let all = seen.used(namespace, total, each);
                prop_assert!(all.iter().any(|(used, limit)| used >= limit), "{uid} of {namespace} waits for nothing");
                let slot = ask(&mut queue, &Claim { priority: *priority, ..claim(uid, namespace) });
                let Slot::Queued(place) = slot else { panic!("asking again gave {uid} a place") };
                prop_assert!(place.position >= 1);
            }
        }
    }

    /// Namespaces that always have something waiting have equally many places, whoever ends when; and get equally many
    /// where builds take equally long.
    #[test]
    fn backlogged_namespaces_share_equally(
        total in 1usize..9, count in 2usize..5, releases in prop::collection::vec(any::<prop::sample::Index>(), 1..150),
        in_order: bool,
    ) {
        let mut queue = Queue::new(total, 0);
        for n in 0..total {
            queue.adopt(&format!("old{n}"), "old");
        }
        for (namespace, name) in NAMES.iter().enumerate().take(count) {
            // Unequal floods; the first namespace's is the largest and comes first.
            for n in 0..(240 - 20 * namespace) {
                ask(&mut queue, &claim(&format!("{name}{n}"), name));
            }
        }
        let mut running = VecDeque::new();
        let mut grants: HashMap<String, usize> = HashMap::new();
        let mut take = |running: &mut VecDeque<(String, String)>, next: Vec<Woken>| {
            for (namespace, uid) in next {
                *grants.entry(namespace.clone()).or_default() += 1;
                running.push_back((namespace, uid));
            }
            grants.clone()
        };
        for n in 0..total {
            let next = queue.release(&format!("old{n}"));
            take(&mut running, next);
        }
        let spread = |of: &dyn Fn(&str) -> usize| {
            let all: Vec<usize> = NAMES.iter().take(count).map(|n| of(n)).collect();
            all.iter().max().expect("some") - all.iter().min().expect("some")
        };
        for which in releases {
            let at = if in_order { 0 } else { which.index(running.len()) };
            let (_, uid) = running.remove(at).expect("it runs");
            let next = queue.release(&uid);
            prop_assert_eq!(next.len(), 1);
            let grants = take(&mut running, next);
            let places = |name: &str| running.iter().filter(|(n, _)| n == name).count();
            prop_assert!(spread(&places) <= 1, "{running:?}");
            if in_order {
                prop_assert!(spread(&|name| grants.get(name).copied().unwrap_or_default()) <= 1, "{grants:?}");
            }
        }
    }

    /// Who is first in its namespace gets a place after a bounded number of releases, whatever the others do: floods, new
    /// namespaces without end, higher priorities elsewhere, and policies that overlap.
    #[test]
    fn nobody_starves(
        total in 1usize..6, limits in prop::collection::vec((1usize..3, 1usize..4, 1usize..4), 5),
        victim in 0..NAMES.len(), noise in prop::collection::vec((0..NAMES.len(), any::<prop::sample::Index>()), 400),
    ) {
        let mut queue = Queue::new(total, 0);
        let (p, q) = (limits[0].1, limits[0].2);
        for (at, name) in NAMES.iter().enumerate() {
            // One in P, one in Q, the others in both.
            let groups: &[(&str, usize)] = match at {
                0 => &[("P", p)],
                1 => &[("Q", q)],
                _ => &[("P", p), ("Q", q)],
            };
            let groups = groups.iter().map(|(name, limit)| ((*name).to_owned(), *limit)).collect();
            queue.set_limits(name, Limits { own: Some(limits[at].0), groups });
        }
        let mut running = VecDeque::new();
        for number in 0..40 {
            let (uid, namespace) = (format!("w{number}"), NAMES[number % NAMES.len()]);
            if ask(&mut queue, &claim(&uid, namespace)) == Slot::Granted {
                running.push_back(uid);
            }
        }
        let wanted = Claim { priority: 1, ..claim("victim", NAMES[victim]) };
        let mut granted = ask(&mut queue, &wanted) == Slot::Granted;
        let mut needed = 0;
        for (round, (namespace, which)) in noise.into_iter().enumerate() {
            if granted {
                break;
            }
            needed = round + 1;
            for (uid, namespace) in [(format!("n{round}"), NAMES[namespace]), (format!("x{round}"), &*format!("new{round}"))] {
                if ask(&mut queue, &Claim { priority: i32::from(namespace != NAMES[victim]) * 9, ..claim(&uid, namespace) }) == Slot::Granted {
                    running.push_back(uid);
                }
            }
            // Everybody ends at some time, in no particular order.
            let at = if round % 4 == 0 { 0 } else { which.index(running.len()) };
            let Some(uid) = running.remove(at) else { break };
            for (_, uid) in queue.release(&uid) {
                granted |= uid == "victim";
                running.push_back(uid);
            }
        }
        prop_assert!(granted, "not after {needed} releases");
    }
}
