//! Which steps run and whose files are needed.

use crate::solve::tests::plan;

use super::*;

const STAGES: &str = "FROM alpine AS build\nRUN one\nRUN two\nFROM tools AS other\nRUN three\n\
    FROM alpine\nCOPY a /a\nCOPY --from=build /x /x\nCOPY --from=other /y /y\n";

fn work(text: &str, missing: &[At]) -> Work {
    decide(&plan(text), &|at| !missing.contains(&at))
}

fn set<T: Ord + Copy>(items: &[T]) -> BTreeSet<T> {
    items.iter().copied().collect()
}

#[test]
fn with_all_there_nothing_is_done() {
    let work = work(STAGES, &[]);
    assert_eq!(work.wanted, set(&[(2, 0), (2, 1), (2, 2)]), "other stages are not even asked for");
    assert_eq!(work, Work { wanted: work.wanted.clone(), ..Work::default() });
}

#[test]
fn a_stage_is_built_when_its_consumer_is() {
    let missing = [(2, 1), (0, 1)];
    let done = work(STAGES, &missing);
    assert_eq!(done.run, set(&[(2, 1), (0, 1)]));
    // The first COPY is below the second, the first RUN below the second; the last COPY nobody reads.
    assert_eq!(done.unpack, set(&[(2, 0), (0, 0)]));
    assert_eq!((done.bases, done.stages), (set(&[0, 2]), set(&[0])));
    assert_eq!(done.images, set(&[0]), "the image of the stage that is not built is not downloaded");
    assert!(!done.wanted.contains(&(1, 0)));
}

#[test]
fn only_what_is_below_is_unpacked() {
    let done = work("FROM alpine\nRUN one\nRUN two\nRUN three\n", &[(0, 1)]);
    assert_eq!((done.run, done.unpack), (set(&[(0, 1)]), set(&[(0, 0)])));
}

#[test]
fn a_base_stage_is_part_of_the_image() {
    let text = "FROM alpine AS base\nRUN one\nFROM base\nRUN --mount=from=tools,target=/t two\n";
    assert_eq!(work(text, &[]).wanted, set(&[(0, 0), (1, 0)]));
    let done = work(text, &[(1, 0)]);
    assert_eq!((done.run, done.unpack), (set(&[(1, 0)]), set(&[(0, 0)])));
    assert_eq!((done.images, done.stages), (set(&[0, 1]), set(&[0])));
}

#[test]
fn without_a_cache_all_that_was_planned_is_done() {
    let text = "FROM alpine AS base\nENV A=1\nFROM scratch AS x\nCOPY a b\nFROM base\nCOPY --from=x / /\n";
    let planned = plan(text);
    let done = all(&planned);
    assert_eq!(done.run, decide(&planned, &|_| false).run);
    assert_eq!(done.images, decide(&planned, &|_| false).images);
}

#[test]
fn a_miss_says_what_it_follows_from() {
    let planned = plan(STAGES);
    let why = |missing: &[At], at| why_not(&planned, &|at| !missing.contains(&at), at);
    assert!(why(&[(0, 0)], (0, 0)).starts_with("the instruction"));
    assert!(why(&[(0, 0), (0, 1)], (0, 1)).starts_with("a step before it"));
    assert!(why(&[(0, 1), (2, 1)], (2, 1)).starts_with("a stage that it reads"));
}
