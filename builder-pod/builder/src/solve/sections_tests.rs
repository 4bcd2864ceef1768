//! What is told of stages that are gone through at the same time.

use super::super::fakes::FakeLog;
use super::*;

/// Plays what stages tell, each at a second; gives the log, and what it says after the end of a failed build.
fn told(stages: usize, story: &[(u64, usize, Told)]) -> Vec<String> {
    let mut log = FakeLog::default();
    let sections = Sections::new(&mut log, stages);
    let start = sections.lock().heard;
    for (second, stage, what) in story {
        let now = start + Duration::from_secs(*second);
        let mut state = sections.lock();
        match what {
            Told::Step(number) => {
                state.take(*stage, Entry::Step { number: *number, total: 9, text: "x" }, now);
            }
            Told::Says(text) => state.take(*stage, Entry::Output { bytes: text.as_bytes() }, now),
            Told::Done => state.take(*stage, Entry::Done { id: "0123" }, now),
            Told::Fails => {
                state.take(*stage, Entry::CommandFailed { command: "c", code: 1 }, now);
                state.sections[*stage].failed = true;
            }
            Told::Ends => state.end(*stage, now),
        }
    }
    assert!(sections.lock().held <= MAX_HELD);
    sections.finish();
    log.0
}

enum Told {
    Step(u32),
    Says(&'static str),
    Done,
    Fails,
    Ends,
}
use Told::{Done, Ends, Fails, Says, Step};

#[test]
fn stages_are_told_of_one_after_another() {
    let log = told(
        3,
        &[
            (0, 1, Step(4)),
            (0, 1, Done),
            (0, 0, Step(1)),
            (0, 2, Step(7)),
            (1, 1, Step(5)),
            (1, 1, Says("five")),
            (1, 0, Says("one")),
            (1, 2, Done),
            (1, 2, Ends),
            (2, 0, Done),
            (2, 0, Ends),
            (2, 1, Says("more")),
            (2, 1, Done),
            (2, 1, Ends),
        ],
    );
    let expected = [
        "Step 1/9 : x",
        "one",
        "---> 4",
        "Step 4/9 : x",
        "---> 4",
        "Step 5/9 : x",
        "five",
        "more",
        "---> 4",
        "Step 7/9 : x",
        "---> 4",
    ];
    assert_eq!(log, expected);
}

#[test]
fn a_silent_step_makes_room_for_one_that_has_news() {
    let log = told(
        2,
        &[
            (0, 0, Step(1)),
            (0, 0, Says("one")),
            (1, 1, Step(2)),
            (4, 1, Says("early")),
            (5, 1, Says("two")),
            (6, 0, Says("held")),
            (9, 1, Says("three")),
            (13, 0, Says("still")),
            (14, 0, Says("late")),
            (15, 1, Done),
            (15, 1, Ends),
            (15, 0, Done),
            (15, 0, Ends),
        ],
    );
    let expected = [
        "Step 1/9 : x",
        "one",
        "Step 2/9 : x",
        "earlytwo",
        "three",
        "Resumed",
        "heldstilllate",
        "---> 4",
        "Resumed",
        "---> 4",
    ];
    assert_eq!(log, expected, "FakeLog shows what comes together as one");
}

#[test]
fn what_is_held_back_has_an_end() {
    let text: &'static str = Box::leak("x".repeat(MAX_HELD / 2 - 200).into_boxed_str());
    let fits = || {
        vec![(0, 0, Step(1)), (0, 1, Step(2)), (0, 1, Says(text)), (0, 1, Says(text)), (0, 0, Says("one"))]
    };
    let short = |story: Vec<_>| {
        let log = told(2, &story);
        log.iter().map(|line| line[..line.len().min(12)].to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(short(fits()), ["Step 1/9 : x", "one", "Step 2/9 : x", "xxxxxxxxxxxx"]);
    let mut more = fits();
    more.extend([(0, 1, Says(text)), (0, 0, Says("two")), (0, 1, Says("after"))]);
    let expected = ["Step 1/9 : x", "one", "Step 2/9 : x", "xxxxxxxxxxxx", "after", "Resumed", "two"];
    assert_eq!(short(more), expected);
}

#[test]
fn the_step_that_failed_is_told_of_last() {
    let story = [
        (0, 0, Step(1)),
        (0, 0, Says("one")),
        (0, 1, Step(2)),
        (0, 1, Says("two")),
        (0, 2, Step(3)),
        (0, 2, Done),
        (0, 1, Fails),
    ];
    let log = told(3, &story);
    assert_eq!(log, ["Step 1/9 : x", "one", "Stopped", "Step 2/9 : x", "two", "failed c 1"]);
    let mut story = story;
    story[6].1 = 0;
    let log = told(3, &story);
    assert_eq!(log, ["Step 1/9 : x", "one", "failed c 1", "Step 2/9 : x", "two", "Stopped"]);
    let alone = told(2, &[(0, 0, Step(1)), (0, 1, Step(2)), (0, 1, Done), (0, 0, Fails)]);
    assert_eq!(alone, ["Step 1/9 : x", "failed c 1"], "who did nothing has nothing to tell");
}
