//! Properties of what travels between operator, courier and builder: a journal folds to one state however often and from
//! wherever it is read, a report fits, and no text panics.

use kiln_contract::VERSION;
use kiln_contract::call::{Call, Reply};
use kiln_contract::control::{Permit, Stop};
use kiln_contract::failure::{Failure, FailureClass};
use kiln_contract::journal::{BuildState, Event, Line, MAX_STEPS, PlannedStep};
use kiln_contract::report::{MAX_REPORT, Outcome, Pushed, Report};
use kiln_contract::request::{BuildRequest, MAX_ATTEMPT};
use proptest::prelude::*;
use proptest::sample::Index;

fn pushed() -> impl Strategy<Value = Pushed> {
    (".{0,40}", ".{0,80}", any::<u64>()).prop_map(|(reference, digest, size)| Pushed {
        reference,
        digest,
        size,
    })
}

/// As the courier makes one, and as somebody may write one.
fn failure() -> impl Strategy<Value = Failure> {
    // Short of anything, or long of what takes room in JSON.
    let long = (prop::sample::select(vec!["x", "\0", "\u{1f}", "\"", "\\", "\n", "😀", "ü\n"]), 0usize..3000);
    let text = prop_oneof![".{0,20}", long.prop_map(|(piece, times)| piece.repeat(times))];
    let fields = (text.clone(), text.clone(), prop::option::of(text.clone()), prop::option::of(text));
    (fields, any::<(Option<u32>, Option<u32>, Option<i32>)>(), any::<bool>()).prop_map(
        |((reason, message, file, log_tail), (line, step, exit_code), bounded)| {
            let failure = Failure {
                file,
                line,
                step,
                exit_code,
                ..Failure::new(FailureClass::User, &reason, &message)
            };
            match log_tail {
                Some(tail) if bounded => failure.with_log_tail(&tail),
                log_tail => Failure { message, log_tail, ..failure },
            }
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let step = 0u32..6;
    let plan = ("[a-z0-9]{1,3}", any::<u32>(), ".{0,20}")
        .prop_map(|(stage, line, instruction)| PlannedStep { stage, line, instruction });
    prop_oneof![
        "[a-z0-9-]{0,9}".prop_map(|attempt| Event::CourierStarted { attempt }),
        "[A-Za-z]{0,9}".prop_map(|isolation| Event::BuilderStarted { isolation }),
        prop::collection::vec(plan, 0..6).prop_map(|steps| Event::Planned { steps }),
        step.clone().prop_map(|step| Event::StepStarted { step }),
        (step.clone(), any::<bool>(), prop::option::of(".{0,9}"))
            .prop_map(|(step, cached, cache_miss)| Event::StepDone { step, cached, cache_miss }),
        (step.clone(), ".{0,9}", any::<u64>()).prop_map(|(step, digest, size)| Event::Layer {
            step,
            digest,
            size
        }),
        (step, any::<Option<i32>>(), prop::option::of(".{0,9}"))
            .prop_map(|(step, exit_code, cache_miss)| Event::StepFailed { step, exit_code, cache_miss }),
        Just(Event::Pushing),
        pushed().prop_map(|image| Event::ReadyToTag { image }),
        pushed().prop_map(|image| Event::Succeeded { image }),
        failure().prop_map(|failure| Event::Failed { failure }),
        Just(Event::Heartbeat),
    ]
}

/// A journal as the courier writes one: numbered from 1.
fn journal() -> impl Strategy<Value = Vec<Line>> {
    prop::collection::vec(event(), 1..30).prop_map(|events| {
        let line = |(seq, event)| Line { v: VERSION, seq, at: format!("t{seq}"), event };
        (1u64..).zip(events).map(line).collect()
    })
}

fn fold<'a>(lines: impl IntoIterator<Item = &'a Line>) -> BuildState {
    let mut state = BuildState::default();
    lines.into_iter().for_each(|line| state.apply(line));
    state
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("it serialises")
}

/// Steps named that no plan has are a gap of their own, whatever is lost.
fn but_gap(state: BuildState) -> BuildState {
    BuildState { gap: false, ..state }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_journal_read_in_pieces_and_again_folds_to_one_state(
        lines in journal(),
        reads in prop::collection::vec((any::<Index>(), any::<Index>()), 0..6),
    ) {
        let once = fold(&lines);
        // Each read begins at the start, as a log does, and ends anywhere; the last comes to the end.
        let mut state = BuildState::default();
        for (to, _) in &reads {
            lines[..to.index(lines.len() + 1)].iter().for_each(|line| state.apply(line));
        }
        lines.iter().for_each(|line| state.apply(line));
        prop_assert_eq!(&state, &once);
        // Afterwards any lines in any order change nothing.
        for (a, b) in &reads {
            state.apply(a.get(&lines));
            state.apply(b.get(&lines));
        }
        prop_assert_eq!(&state, &once);
        // The time of the last line is its reader's own.
        let read = serde_json::from_str::<BuildState>(&json(&once)).expect("it reads back");
        prop_assert_eq!(BuildState { at: once.at.clone(), ..read }, once);
    }

    #[test]
    fn a_checkpoint_makes_up_for_whatever_was_lost(lines in journal(), lost in any::<u64>(), at: Index, after in event()) {
        // A checkpoint anywhere, and lines lost anywhere before it.
        let at = at.index(lines.len() + 1);
        let mut whole = lines[..at].to_vec();
        let checkpoint = Event::Checkpoint { state: Box::new(fold(&whole)) };
        for event in [checkpoint, after].into_iter().chain(lines[at..].iter().map(|l| l.event.clone())) {
            let seq = whole.len() as u64 + 1;
            whole.push(Line { v: VERSION, seq, at: format!("t{seq}"), event });
        }
        let torn: Vec<&Line> = whole.iter().filter(|l| l.seq > at as u64 || lost >> (l.seq % 64) & 1 == 0).collect();
        prop_assert_eq!(but_gap(fold(torn)), but_gap(fold(&whole)));
        // And the checkpoint itself says that nothing is missing.
        prop_assert!(!fold(&whole[..=at]).gap);
    }

    #[test]
    fn what_is_lost_is_known_to_be(lines in journal(), at: Index) {
        let at = at.index(lines.len());
        let torn: Vec<&Line> = lines.iter().filter(|l| l.seq != at as u64 + 1).collect();
        prop_assert!(at + 1 == lines.len() || fold(torn).gap);
    }

    #[test]
    fn lines_read_back(lines in journal()) {
        for line in lines {
            prop_assert_eq!(Line::parse(&json(&line)), Some(line));
        }
    }

    #[test]
    fn lines_of_any_number_fold(events in prop::collection::vec((any::<u64>(), event()), 0..20)) {
        let mut last = 0;
        let mut state = BuildState::default();
        for (seq, event) in events {
            let seq = if seq % 5 == 0 { u64::MAX - seq % 7 } else { seq % 40 };
            state.apply(&Line { v: VERSION, seq, at: String::new(), event });
            prop_assert!(state.seq >= last);
            last = state.seq;
        }
        state.running();
        prop_assert!(state.done() <= state.steps.len());
    }

    #[test]
    fn a_report_always_fits_and_reads_back(
        attempt in "[a-z0-9./:_-]{0,128}",
        outcome in prop_oneof![
            3 => failure().prop_map(Outcome::Failed),
            1 => ("[a-z0-9./:@-]{0,720}", any::<u64>()).prop_map(|(reference, size)| {
                Outcome::Succeeded(Pushed { reference, digest: format!("sha256:{}", "a".repeat(64)), size })
            }),
        ],
    ) {
        let report = Report { version: VERSION, attempt: attempt.clone(), outcome };
        let text = report.to_json();
        prop_assert!(text.len() <= MAX_REPORT, "{} bytes", text.len());
        let back = Report::parse(&text, &attempt).expect("it reads back");
        match (&report.outcome, &back.outcome) {
            (Outcome::Failed(was), Outcome::Failed(is)) => {
                prop_assert_eq!((was.class, was.line, was.step, was.exit_code), (is.class, is.line, is.step, is.exit_code));
                prop_assert!(was.reason.len() > 48 || was.reason == is.reason);
                prop_assert!(json(&report).len() > MAX_REPORT || was == is);
            }
            (was, is) => prop_assert_eq!(was, is),
        }
    }

    #[test]
    fn any_text_is_something_or_nothing(text in "\\PC*|[{}\\[\\]\":,a-z0-9]*") {
        let _ = (Line::parse(&text), Report::parse(&text, "a"), BuildRequest::parse(text.as_bytes()));
        let _ = (serde_json::from_str::<Call>(&text), serde_json::from_str::<Reply>(&text));
        let _ = (serde_json::from_str::<Permit>(&text), serde_json::from_str::<Stop>(&text));
    }
}

#[test]
fn a_line_costs_no_more_than_its_length() {
    let step = PlannedStep { stage: String::new(), line: 1, instruction: String::new() };
    let mut state = BuildState::default();
    let mut seq = 0;
    let mut take = |event| {
        seq += 1;
        state.apply(&Line { v: VERSION, seq, at: String::new(), event });
        assert!(state.steps.len() <= MAX_STEPS);
    };
    take(Event::Planned { steps: vec![step; 20_000] });
    let long = BuildState { steps: vec![], ..BuildState::default() };
    take(Event::Checkpoint { state: Box::new(long) });
    // Brackets in any number are refused and not followed.
    for text in [
        "[".repeat(1 << 20),
        "{\"v\":".repeat(200_000),
        "{\"event\":{\"type\":\"checkpoint\",\"state\":".repeat(20_000),
    ] {
        assert_eq!(Line::parse(&text), None);
    }
}

#[test]
fn an_attempt_that_would_burst_the_report_is_refused() {
    let request = |attempt: &str| {
        BuildRequest::parse(
            serde_json::json!({"version": VERSION, "attempt": attempt, "source": {"directory": "/x"}, "contextDir": "",
                "dockerfile": "Dockerfile", "platform": "linux/amd64", "isolation": "UserNamespace", "timeoutSeconds": 1,
                "output": {"ociLayout": {"path": "/x", "references": []}}})
            .to_string()
            .as_bytes(),
        )
    };
    request("0f3a-1-1").expect("it is an attempt");
    for bad in ["a".repeat(MAX_ATTEMPT + 1), "a\0".into(), "a b".into(), "\"".into()] {
        let error = request(&bad).expect_err("it is refused");
        assert!(error.contains("attempt"), "{error}");
    }
}
