//! How lines of a journal fold into the state of an attempt.

use super::*;
use crate::failure::{FailureClass, reason};

fn line(seq: u64, event: Event) -> Line {
    Line { v: 1, seq, at: format!("2026-01-01T00:00:{seq:02}Z"), event }
}

fn plan() -> Event {
    let step = |line, text: &str| PlannedStep { stage: "0".into(), line, instruction: text.into() };
    Event::Planned { steps: vec![step(1, "FROM a"), step(2, "RUN b"), step(3, "RUN c")] }
}

fn fold(lines: &[Line]) -> BuildState {
    let mut state = BuildState::default();
    lines.iter().for_each(|l| state.apply(l));
    state
}

fn story() -> Vec<Line> {
    vec![
        line(1, Event::CourierStarted { attempt: "u-1-1".into() }),
        line(2, plan()),
        line(3, Event::StepStarted { step: 1 }),
        line(4, Event::StepDone { step: 1, cached: false, cache_miss: None }),
        line(5, Event::StepStarted { step: 2 }),
        line(6, Event::Layer { step: 2, digest: "sha256:1".into(), size: 7 }),
    ]
}

#[test]
fn reading_again_from_the_start_changes_nothing() {
    let once = fold(&story());
    let twice = fold(&[story(), story()].concat());
    assert_eq!(once, twice);
    assert_eq!(once.running(), [2]);
    assert_eq!(once.done(), 1);
    assert!(!once.gap);
}

#[test]
fn a_failure_ends_what_ran_and_skips_the_rest() {
    let mut lines = story();
    lines.push(line(7, Event::StepFailed { step: 2, exit_code: Some(3), cache_miss: None }));
    lines.push(line(
        8,
        Event::Failed { failure: Failure::new(FailureClass::User, reason::STEP_FAILED, "no") },
    ));
    let state = fold(&lines);
    let phases: Vec<_> = state.steps.iter().map(|s| s.phase).collect();
    assert_eq!(phases, [StepPhase::Done, StepPhase::Failed, StepPhase::Skipped]);
    assert_eq!(state.steps[1].exit_code, Some(3));
}

#[test]
fn steps_that_are_stopped_for_another_ones_failure_did_not_fail() {
    let failure = |seq| {
        line(seq, Event::Failed { failure: Failure::new(FailureClass::User, reason::STEP_FAILED, "no") })
    };
    let both = [story(), vec![line(7, Event::StepStarted { step: 3 })]].concat();
    let phases = |lines: &[Line]| fold(lines).steps.iter().map(|s| s.phase).collect::<Vec<_>>();
    let one = [
        both.clone(),
        vec![line(8, Event::StepFailed { step: 3, exit_code: None, cache_miss: None }), failure(9)],
    ];
    assert_eq!(phases(&one.concat()), [StepPhase::Done, StepPhase::Skipped, StepPhase::Failed]);
    let ended = [both, vec![failure(8)]].concat();
    assert_eq!(phases(&ended), [StepPhase::Done, StepPhase::Failed, StepPhase::Failed]);
    let words = [vec![], vec![4], vec![4, 7], vec![1, 4, 7]].map(|numbers| steps(&numbers));
    assert_eq!(words, ["no step", "step 4", "steps 4 and 7", "steps 1, 4 and 7"]);
}

#[test]
fn a_checkpoint_makes_up_for_lost_lines() {
    let whole = fold(&story());
    let checkpoint = line(7, Event::Checkpoint { state: Box::new(whole.clone()) });
    let mut late = fold(&story()[4..]);
    assert!(late.gap);
    late.apply(&checkpoint);
    assert!(!late.gap);
    assert_eq!(late.steps, whole.steps);
}

#[test]
fn an_event_of_a_later_release_is_passed_over() {
    let text = r#"{"v":1,"seq":3,"at":"","event":{"type":"fromTheFuture","count":1,"items":[]}}"#;
    assert_eq!(Line::parse(text), None);
    let without: Vec<Line> = story().into_iter().filter(|l| l.seq != 3).collect();
    let mut state = fold(&without);
    assert_eq!((state.running(), state.done(), state.gap), (vec![2], 1, true));
    // Checkpoints may say more than their reader knows.
    let checkpoint = line(7, Event::Checkpoint { state: Box::new(fold(&story())) });
    let mut text = serde_json::to_value(checkpoint).expect("it serialises");
    text["event"]["state"]["future"] = "x".into();
    state.apply(&Line::parse(&text.to_string()).expect("a line"));
    assert!(!state.gap);
}

#[test]
fn warnings_are_part_of_the_state() {
    let warning = Warning { rule: "FromAsCasing".into(), line: 1, message: "m".into() };
    let warnings = Warnings { count: 3, items: vec![warning] };
    let l = line(1, Event::Warnings(warnings.clone()));
    let text = serde_json::to_value(&l).expect("it serialises");
    let expected = serde_json::json!({"type": "warnings", "count": 3,
        "items": [{"rule": "FromAsCasing", "line": 1, "message": "m"}]});
    assert_eq!(text["event"], expected);
    assert_eq!(fold(&[Line::parse(&text.to_string()).expect("a line")]).warnings, Some(warnings));
}

#[test]
fn lines_read_back_and_noise_is_none() {
    for l in story() {
        let text = serde_json::to_string(&l).expect("it serialises");
        assert_eq!(Line::parse(&text), Some(l));
    }
    assert_eq!(Line::parse("thread 'main' panicked"), None);
    assert_eq!(Line::parse(r#"{"v":2,"seq":1,"at":"","event":{"type":"heartbeat"}}"#), None);
}
