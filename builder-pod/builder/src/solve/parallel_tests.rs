//! Stages at the same time, over a fake engine and a fake courier.

use std::time::Duration;

use super::*;

const TWO: &str = "FROM alpine AS a\nRUN one\nFROM alpine AS b\nRUN two\nFROM scratch\nCOPY --from=a /x /\nCOPY --from=b /y /\n";
/// Long enough for whatever comes to come.
const LONG: Duration = Duration::from_secs(20);
/// Long enough for who would come if nothing kept it.
const SHORT: Duration = Duration::from_millis(200);

fn rig(at_a_time: usize, meets: &[&'static str], patience: Duration) -> Rig {
    let mut rig = Rig { at_a_time, ..Rig::default() };
    rig.engine.meets = (meets.to_vec(), patience);
    rig.args.insert("SOURCE_DATE_EPOCH".into(), "0".into());
    rig
}

fn met(rig: &Rig) -> Vec<String> {
    let mut notes = rig.engine.notes.of(&["met", "alone"]);
    notes.sort();
    notes
}

#[test]
fn stages_that_do_not_need_one_another_run_at_the_same_time_and_change_nothing() {
    let mut together = rig(2, &["one", "two"], LONG);
    together.build(TWO).unwrap();
    assert_eq!(met(&together), ["met one", "met two"]);
    let mut apart = rig(1, &["one", "two"], SHORT);
    apart.build(TWO).unwrap();
    assert_eq!(met(&apart), ["alone one", "alone two"]);
    let committed = |rig: &Rig| rig.courier.committed.lock().unwrap().clone().unwrap();
    assert_eq!(committed(&together), committed(&apart));
    assert_eq!(together.log.0, apart.log.0);
    for rig in [together, apart] {
        // What is copied is there, and whole.
        let copies = rig.engine.notes.of(&["copy_tree"]);
        assert_eq!(copies, ["copy_tree s3 b0-0,b0-1,s1 /x -> /", "copy_tree s4 b0-0,b0-1,s2 /y -> /"]);
        assert_eq!(rig.engine.notes.of(&["settle"]).len(), 1);
    }
}

#[test]
fn a_stage_runs_until_it_needs_another_one() {
    let text =
        "FROM alpine AS a\nRUN one\nFROM a AS b\nRUN three\nFROM alpine\nRUN two\nCOPY --from=b /x /\n";
    let mut rig = rig(2, &["one", "two"], LONG);
    rig.build(text).unwrap();
    assert_eq!(met(&rig), ["met one", "met two"]);
    assert!(rig.engine.notes.all().contains(&"run b0-0,b0-1,s1+s2 three".to_owned()));
    assert_eq!(rig.engine.notes.of(&["copy_tree"]), ["copy_tree s4 b0-0,b0-1,s1,s2 /x -> /"]);
    let started = rig.courier.notes.of(&["event started", "event done"]);
    let at = |event: &str| started.iter().position(|note| *note == format!("event {event}")).unwrap();
    assert!(at("done 2") < at("started 3") && at("done 4") < at("started 7"), "{started:?}");
}

#[test]
fn a_failure_stops_the_others_and_is_the_only_one() {
    for (fails, waits, step, line) in [("one", "two", 2, 2), ("two", "one", 4, 4)] {
        let mut rig = rig(2, &["one", "two"], LONG);
        rig.engine.codes.insert(fails.into(), 3);
        rig.engine.waits = vec![waits];
        let failure = rig.build(TWO).unwrap_err();
        assert_eq!((failure.step, failure.line, failure.exit_code), (Some(step), Some(line), Some(3)));
        assert_eq!(failure.reason, reason::STEP_FAILED);
        assert_eq!(rig.courier.notes.of(&["event failed"]), [format!("event failed {step} Some(3)")]);
        assert_eq!(rig.courier.notes.of(&["event started 6", "commit"]), Vec::<String>::new());
        let log = rig.log.0.join("|");
        assert!(log.contains("Stopped") && log.contains(&format!("output of {waits}")), "{log}");
        assert_eq!(log.ends_with(&format!("failed /bin/sh -c {fails} 3")), fails == "two", "{log}");
    }
    let mut rig = rig(2, &["one", "two"], LONG);
    rig.engine.codes = [("one".to_owned(), 1), ("two".to_owned(), 2)].into();
    let failure = rig.build(TWO).unwrap_err();
    let failed = rig.courier.notes.of(&["event failed"]);
    let step = failure.step.unwrap();
    assert_eq!(failed, [format!("event failed {step} Some({})", failure.exit_code.unwrap())]);
}

#[test]
fn an_order_to_stop_ends_all_and_names_the_first_step() {
    let mut rig = rig(2, &["one", "two"], LONG);
    rig.engine.waits = vec!["one", "two"];
    rig.engine.cancels = true;
    let failure = rig.build(TWO).unwrap_err();
    assert_eq!((failure.class, failure.reason.as_str()), (FailureClass::Cancelled, reason::CANCELLED));
    assert_eq!((failure.step, failure.line), (Some(2), Some(2)));
    assert_eq!(rig.courier.notes.of(&["event failed", "commit"]), Vec::<String>::new());
    assert!(!rig.log.0.contains(&"Stopped".to_owned()), "nothing failed: {:?}", rig.log.0);
}

#[test]
fn who_ran_out_of_memory_is_told_with_those_beside_it() {
    let mut rig = rig(2, &["one", "two"], LONG);
    rig.engine.codes.insert("two".into(), 137);
    rig.engine.waits = vec!["one"];
    rig.engine.out_of_memory = true;
    let failure = rig.build(TWO).unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.step), (reason::OUT_OF_MEMORY, Some(4)));
    assert!(failure.message.contains("memory ran out, while step 2 ran beside it"), "{failure}");
}

#[test]
fn caches_are_shared_as_the_steps_want_it() {
    let text = |sharing: &str, more: &str| {
        let mount = format!("--mount=type=cache,target=/c,sharing={sharing}{more}");
        format!(
            "FROM alpine AS a\nRUN {mount} one\nFROM alpine AS b\nRUN {mount} two\nFROM scratch\nCOPY --from=a /x /\nCOPY --from=b /y /\n"
        )
    };
    let trees = |rig: &Rig| {
        let mounts = rig.engine.notes.of(&["mount /c"]);
        let tree =
            |note: &String| note.split("upper: ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        mounts.iter().map(tree).collect::<std::collections::BTreeSet<_>>().len()
    };
    for (sharing, more, patience, word, count) in [
        ("shared", "", LONG, "met", 1),
        ("private", "", LONG, "met", 2),
        ("locked", "", SHORT, "alone", 1),
        // An upper tree can't be part of two overlays.
        ("shared", ",from=tools", SHORT, "alone", 1),
    ] {
        for keeps_caches in [false, true] {
            let mut rig = rig(2, &["one", "two"], patience);
            rig.engine.keeps_caches = keeps_caches;
            rig.build(&text(sharing, more)).unwrap();
            assert_eq!(met(&rig), [format!("{word} one"), format!("{word} two")], "{sharing}{more}");
            // A cache that was given away in between is another tree.
            if word == "met" || !keeps_caches {
                assert_eq!(trees(&rig), count, "{sharing}{more}");
            }
            let lasting = keeps_caches && more.is_empty();
            let kept = rig.engine.notes.of(&["keep_cache"]).len();
            let expected = usize::from(lasting) * if word == "met" { 1 } else { 2 };
            assert_eq!(kept, expected, "{sharing}{more}");
        }
    }
}

#[test]
fn secrets_of_steps_at_the_same_time_have_one_bound() {
    let text = "FROM alpine AS a\nRUN --mount=type=secret,id=x one\nFROM alpine AS b\nRUN --mount=type=secret,id=x two\n\
                FROM scratch\nCOPY --from=a /x /\nCOPY --from=b /y /\n";
    for (bytes, patience, word) in [(MAX_SECRETS / 2, LONG, "met"), (MAX_SECRETS - 9, SHORT, "alone")] {
        let mut rig = rig(2, &["one", "two"], patience);
        rig.courier.secrets = [("x", "x".repeat(bytes))].into();
        rig.build(text).unwrap();
        assert_eq!(met(&rig), [format!("{word} one"), format!("{word} two")], "{bytes}");
    }
}

#[test]
fn a_cache_whose_entries_do_not_hold_is_made_up_for_at_the_same_time() {
    let text = "FROM alpine AS a\nRUN one\nFROM tools AS b\nCOPY --from=a /a /\nRUN two\nFROM tools AS c\nCOPY --from=a /a /c\nRUN three\n\
                FROM scratch\nCOPY --from=b /x /\nCOPY --from=c /y /\nCOPY d /d\n";
    let build = |rig: &mut Rig, text: &str| {
        rig.cache = true;
        rig.at_a_time = 4;
        rig.build(text).unwrap();
    };
    let mut first = Rig::default();
    build(&mut first, text);
    for text_of_blob in first.courier.blobs.lock().unwrap().values_mut() {
        text_of_blob.push('!');
    }
    first.courier.notes.clear();
    let mut second = Rig { courier: first.courier, ..Rig::default() };
    build(&mut second, &text.replace("RUN two", "RUN other").replace("RUN three", "RUN others"));
    // The layers of both COPYs are asked for, and none of them holds; what they copy is made once, and then it is there.
    let runs = second.engine.notes.of(&["run"]);
    let ran = |word: &str| runs.iter().filter(|note| note.ends_with(&format!(" {word}"))).count();
    assert_eq!((ran("one"), ran("other"), ran("others")), (1, 1, 1), "{runs:?}");
    let copies = second.engine.notes.of(&["copy_tree"]);
    assert_eq!(copies.len(), 4, "{copies:?}");
    assert_eq!(copies.iter().filter(|note| note.contains(" b0-0,b0-1,s1 /a")).count(), 2, "{copies:?}");
    let warns = |line: &&String| line.starts_with("warning: ") && line.contains("is not usable");
    let warnings = second.log.0.iter().filter(warns).count();
    assert!((2..=3).contains(&warnings), "{:#?}", second.log.0);
}
