//! What is said of steps that the cache has no result of: builds over a fake courier, one after another.

use kiln_contract::{Failure, FailureClass, reason};

use super::*;
use crate::solve::fakes::registry_failure;
use crate::solve::tests::Rig;

const TEXT: &str = "FROM tools AS build\nCOPY src /src\nRUN make\nFROM alpine\nARG V=1\nRUN setup\nWORKDIR /w\n\
    COPY --from=build /out /out\nCOPY --chmod=600 a /a\nCMD x\n";

/// Builds the text and then another, which may find the cache changed; what is said of its steps.
fn after(first: &str, second: &str, change: &dyn Fn(&Rig)) -> BTreeMap<u32, String> {
    let mut rig = Rig::with_cache();
    rig.build(first).expect("an image");
    let mut rig = rig.again();
    change(&rig);
    rig.build(second).expect("an image");
    let missed = rig.courier.missed.lock().expect("a lock").clone();
    // The log says the same of all steps that come to be made.
    let said = rig.log.0.iter().filter(|line| line.starts_with("not cached: ")).count();
    assert_eq!(said, missed.len(), "{:#?}", rig.log.0);
    missed
}

/// What is said when `old` in the text becomes `new`.
fn changed(old: &str, new: &str) -> Vec<(u32, String)> {
    assert!(TEXT.contains(old));
    after(TEXT, &TEXT.replace(old, new), &|_| ()).into_iter().collect()
}

fn said(step: u32, words: &str) -> (u32, String) {
    (step, words.to_owned())
}

#[test]
fn the_first_build_knows_of_none_before() {
    let mut rig = Rig::with_cache();
    rig.build("FROM alpine\nRUN one\nRUN two\n").expect("an image");
    let missed = rig.courier.missed.lock().expect("a lock").clone();
    assert_eq!(missed[&2], "no build before this one is known");
    assert_eq!(missed[&3], "step 2, which it stands on, was not in the cache");
    assert_eq!(rig.courier.notes.of(&["record"]), ["record_get ", "record_put "], "each once");
}

#[test]
fn nothing_is_asked_where_all_is_there() {
    let mut rig = Rig::with_cache();
    rig.build(TEXT).expect("an image");
    let mut rig = rig.again();
    rig.build(TEXT).expect("an image");
    assert_eq!(rig.courier.notes.of(&["record"]), ["record_put "]);
    assert!(rig.courier.missed.lock().expect("a lock").is_empty());
}

#[test]
fn what_changed_is_named() {
    let below = |step, of| said(step, &format!("what it stands on changed: step {of}"));
    assert_eq!(changed("chmod=600 a", "chmod=600 b"), [said(9, "the instruction changed")]);
    assert_eq!(changed("chmod=600", "chmod=640"), [said(9, "its owner, mode or other flags changed")]);
    assert_eq!(
        changed("WORKDIR /w", "WORKDIR /v"),
        [said(7, "the instruction changed"), below(8, 7), below(9, 7)]
    );
    assert_eq!(
        changed("ARG V=1", "ARG V=2"),
        [said(6, "its variables changed"), below(7, 6), below(8, 6), below(9, 6)]
    );
    assert_eq!(
        changed("FROM alpine", "FROM debian"),
        [said(6, "the base image changed"), below(7, 6), below(8, 6), below(9, 6)]
    );
    assert_eq!(
        changed("RUN setup", "USER u\nRUN setup more"),
        [
            said(7, "the instruction and its user, directory, network or limits changed"),
            below(8, 7),
            below(9, 7),
            below(10, 7)
        ]
    );
    // Of another stage the step is named that made the difference.
    let stage = changed("RUN make", "RUN make all");
    assert_eq!(
        stage,
        [said(3, "the instruction changed"), said(8, "what it reads of step 3 changed"), below(9, 8)]
    );
    // What comes in between moves what follows.
    let more = changed("RUN setup\n", "RUN setup\nRUN again\n");
    assert_eq!(more[..2], [said(7, "the instruction changed"), below(8, 7)]);
}

#[test]
fn a_step_that_was_not_there_before_is_new() {
    let missed = after("FROM alpine\nRUN one\n", "FROM alpine\nRUN one\nRUN two\n", &|_| ());
    assert_eq!(missed, BTreeMap::from([said(3, "the last build had no such step")]));
}

#[test]
fn what_is_gone_and_what_is_not_usable_are_told_apart() {
    let clear = |rig: &Rig| rig.courier.entries.lock().expect("a lock").clear();
    let text = "FROM alpine\nRUN one\nRUN two\n";
    let missed = after(text, text, &clear);
    assert_eq!(
        missed,
        BTreeMap::from([
            said(2, "it is gone from the cache"),
            said(3, "step 2, which it stands on, was not in the cache")
        ])
    );
    let unusable = |rig: &Rig| {
        let gone = Failure::new(FailureClass::User, reason::BASE_IMAGE_INVALID, "there is no such blob");
        rig.courier.fail.lock().expect("a lock").insert("put_base_blob", gone);
    };
    let missed = after("FROM scratch\nCOPY a /a\n", "FROM scratch\nCOPY a /a\n", &unusable);
    assert_eq!(missed, BTreeMap::from([said(2, "what the cache has of it is not usable")]));
}

#[test]
fn a_cache_that_does_not_answer_is_said_to() {
    let mut rig = Rig::with_cache();
    rig.courier.fail.lock().expect("a lock").insert("cache_get", registry_failure());
    rig.build("FROM alpine\nRUN one\n").expect("an image");
    assert_eq!(rig.courier.missed.lock().expect("a lock")[&2], "the cache does not answer");
}

#[test]
fn without_the_record_the_reason_is_vague_and_the_build_goes_on() {
    let fail = |rig: &Rig| {
        rig.courier.fail.lock().expect("a lock").insert("record_get", registry_failure());
    };
    let missed = after("FROM alpine\nRUN one\n", "FROM alpine\nRUN two\n", &fail);
    assert!(missed[&2].starts_with("the instruction, its variables or the files"), "{missed:?}");
    assert!(missed[&2].len() <= MAX_CACHE_MISS, "{missed:?}");
}

#[test]
fn without_a_cache_nothing_is_said() {
    let mut rig = Rig::default();
    rig.build(TEXT).expect("an image");
    assert!(rig.courier.missed.lock().expect("a lock").is_empty());
    assert!(rig.courier.notes.of(&["record"]).is_empty());
}
