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
    // The first RUN is below the second. The first COPY is below the second, which only looks at it.
    assert_eq!((done.unpack, done.look), (set(&[(0, 0)]), set(&[(2, 0)])));
    assert_eq!((done.bases, done.stages), (set(&[0]), set(&[0])));
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
fn without_a_cache_all_steps_run_and_only_what_they_read_is_needed() {
    let done = |text: &str| {
        let planned = plan(text);
        let done = all(&planned);
        let ops: Vec<At> = (0..planned.stages.len())
            .flat_map(|stage| (0..planned.stages[stage].ops.len()).map(move |op| (stage, op)))
            .collect();
        assert_eq!(done.run, set(&ops), "{text}");
        let names = |images: &BTreeSet<usize>| -> Vec<String> {
            images.iter().map(|image| planned.images[*image].resolved.reference.clone()).collect()
        };
        (names(&done.images).join(" "), names(&done.look_images).join(" "))
    };
    for (text, read, looked) in [
        ("FROM a\nENV A=1\nCMD x\nUSER z\n", "", ""),
        ("FROM a\nRUN x\n", "a", ""),
        ("FROM a\nCOPY x y\n", "", "a"),
        ("FROM a\nCOPY <<E /x\nE\nADD https://x/y /y\nWORKDIR /z\n", "", "a"),
        // What may be an archive may link to files that are there.
        ("FROM a\nADD x y\n", "a", ""),
        ("FROM a\nADD --unpack=true https://x/y /y\n", "a", ""),
        ("FROM a\nADD --unpack=false x /y\n", "", "a"),
        ("FROM a\nCOPY --link x y\nADD --link x /y\n", "", ""),
        ("FROM a\nCOPY --link --from=b /x /y\n", "b", ""),
        ("FROM a\nCOPY --link x y\nRUN z\n", "a", ""),
        ("FROM a\nCOPY x y\nRUN z\n", "a", ""),
        ("FROM a AS s\nENV A=1\nFROM s\nCOPY x y\n", "", "a"),
        ("FROM a AS s\nCOPY x y\nFROM s\nRUN z\n", "a", ""),
        ("FROM a AS s\nCOPY x y\nFROM b\nCOPY --from=s /x /y\n", "a", "b"),
        ("FROM a\nRUN --mount=from=b,target=/x y\n", "a b", ""),
    ] {
        assert_eq!(done(text), (read.to_owned(), looked.to_owned()), "{text}");
    }
}

#[test]
fn a_linked_copy_needs_nothing_of_what_is_below() {
    let done = work("FROM alpine\nRUN one\nCOPY --link a /a\n", &[(0, 1)]);
    assert_eq!((done.run.len(), done.unpack.len(), done.look.len(), done.images.len()), (1, 0, 0, 0));
    let done = work("FROM alpine\nRUN one\nCOPY a /a\n", &[(0, 1)]);
    assert_eq!((done.look, done.look_images), (set(&[(0, 0)]), set(&[0])));
}
