//! 10,000 seeds without a violation, and a violation for each fault that is put in on purpose.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::mutants::{self, Mutant};
use super::world::World;

/// Steps of a rough time.
const STEPS: usize = 400;

/// Runs a seed. What happened, and the invariant that did not hold.
fn simulate(seed: u64) -> (Vec<String>, Result<(), String>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut world = World::new(seed);
        let verdict = world.run(STEPS).await;
        (world.trace, verdict)
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs seeds on all cores until one fails. The first that did, and why.
fn search(seeds: Range<u64>, mutant: Option<Mutant>) -> Option<(u64, String)> {
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut found: Vec<(u64, String)> = std::thread::scope(|scope| {
        let work = || {
            mutants::set(mutant);
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return None;
                }
                if let (_, Err(why)) = simulate(seed) {
                    next.store(seeds.end, Ordering::Relaxed);
                    return Some((seed, why));
                }
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().filter_map(|t| t.join().expect("no panic")).collect()
    });
    found.sort();
    found.into_iter().next()
}

#[test]
fn no_seed_breaks_an_invariant() {
    if let Some(seed) = number("SIMULATOR_SEED") {
        let (trace, verdict) = simulate(seed);
        trace.iter().for_each(|line| println!("{line}"));
        assert_eq!(verdict, Ok(()), "seed {seed}");
        return;
    }
    let seeds = number("SIMULATOR_SEEDS").unwrap_or(200);
    let first = number("SIMULATOR_FIRST").unwrap_or(0);
    let began = Instant::now();
    if let Some((seed, why)) = search(first..first + seeds, None) {
        panic!("seed {seed}: {why}\nsee what happened in it: SEED={seed} scripts/simulate");
    }
    println!("{seeds} seeds without a violation, in {} s", began.elapsed().as_secs());
}

#[test]
fn a_seed_makes_the_same_happen_again() {
    for seed in 0..5 {
        assert_eq!(simulate(seed), simulate(seed), "seed {seed}");
    }
}

#[test]
fn every_mutant_is_caught() {
    if std::env::var_os("SIMULATOR_MUTANTS").is_none() {
        println!("not run: takes minutes without optimisation; scripts/simulate does it");
        return;
    }
    let missed: Vec<Mutant> = mutants::ALL
        .into_iter()
        .filter(|mutant| {
            let found = search(0..5000, Some(*mutant));
            if let Some((seed, why)) = &found {
                println!("{mutant:?} is caught by seed {seed}: {why}");
            }
            found.is_none()
        })
        .collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
