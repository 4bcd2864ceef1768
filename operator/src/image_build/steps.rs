//! `status.steps`, `status.progress` and `status.warnings`, from the journal. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kiln_api::ImageBuildStatus;
use kiln_api::v1alpha1::{LayerStatus, SourceStatus, StepState, StepStatus, WarningStatus, WarningsStatus};
use kiln_contract::journal::{
    BuildState, MAX_CACHE_MISS, MAX_INSTRUCTION, MAX_STEPS, MAX_WARNING, MAX_WARNINGS, StepPhase, Warning,
    Warnings,
};
use kiln_contract::text::{printable, truncate};

/// Shows what the journal knows; without steps in it, what was known stays.
pub fn show(status: &mut ImageBuildStatus, journal: &BuildState) {
    if let Some(isolation) = &journal.isolation {
        status.isolation = Some(truncate(isolation, 64));
    }
    if let Some(source) = &journal.source {
        status.source = Some(SourceStatus {
            revision: Some(truncate(&printable(&source.revision), 512)),
            digest: source.digest.as_ref().map(|digest| truncate(&printable(digest), 128)),
        });
    }
    if let Some(warnings) = &journal.warnings {
        status.warnings = Some(bounded(warnings));
    }
    if journal.steps.is_empty() {
        return;
    }
    status.progress = Some(format!("{}/{}", journal.done(), journal.steps.len()));
    status.steps = (1..)
        .zip(journal.steps.iter().take(MAX_STEPS))
        .map(|(index, step)| StepStatus {
            index,
            stage: truncate(&printable(&step.plan.stage), 128),
            line: i32::try_from(step.plan.line).unwrap_or(i32::MAX),
            instruction: truncate(&printable(&step.plan.instruction), MAX_INSTRUCTION),
            state: match step.phase {
                StepPhase::Pending => StepState::Pending,
                StepPhase::Running => StepState::Running,
                StepPhase::Cached => StepState::Cached,
                StepPhase::Done => StepState::Done,
                StepPhase::Failed => StepState::Failed,
                StepPhase::Skipped => StepState::Skipped,
                StepPhase::Unknown => StepState::Unknown,
            },
            started_at: time(step.started_at.as_deref()),
            finished_at: time(step.finished_at.as_deref()),
            exit_code: step.exit_code,
            cache_miss: step.cache_miss.as_ref().map(|why| truncate(&printable(why), MAX_CACHE_MISS)),
            layer: step.layer_digest.as_ref().map(|digest| LayerStatus {
                digest: truncate(digest, 128),
                size: step.layer_size.and_then(|s| i64::try_from(s).ok()).unwrap_or_default(),
            }),
        })
        .collect();
}

/// Bounded again: a journal comes from where commands of the Dockerfile run.
fn bounded(warnings: &Warnings) -> WarningsStatus {
    let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let item = |warning: &Warning| WarningStatus {
        rule: truncate(&printable(&warning.rule), 64),
        line: number(warning.line),
        message: truncate(&printable(&warning.message), MAX_WARNING),
    };
    WarningsStatus {
        count: number(warnings.count),
        items: warnings.items.iter().take(MAX_WARNINGS).map(item).collect(),
    }
}

/// Ends the steps of an attempt whose journal did not: nobody knows how a running one went.
pub fn close(status: &mut ImageBuildStatus, succeeded: bool) {
    for step in &mut status.steps {
        match step.state {
            StepState::Running => step.state = StepState::Unknown,
            StepState::Pending => {
                step.state = if succeeded { StepState::Unknown } else { StepState::Skipped }
            }
            _ => {}
        }
    }
}

/// The journal's time to the microsecond, as the API stores it; a garbled one is left out.
fn time(text: Option<&str>) -> Option<MicroTime> {
    let parsed: Timestamp = text?.parse().ok()?;
    Timestamp::from_microsecond(parsed.as_microsecond()).ok().map(MicroTime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_contract::journal::{Event, Line, PlannedStep};

    fn journal(events: Vec<Event>) -> BuildState {
        let mut state = BuildState::default();
        for (seq, event) in (1..).zip(events) {
            state.apply(&Line { v: 1, seq, at: format!("2026-01-01T00:00:0{seq}.1234567Z"), event });
        }
        state
    }

    fn plan(count: u32) -> Event {
        let step = |line| PlannedStep { stage: "0".into(), line, instruction: format!("RUN\u{1b} {line}") };
        Event::Planned { steps: (1..=count).map(step).collect() }
    }

    #[test]
    fn steps_with_times_layers_and_progress() {
        let mut status = ImageBuildStatus::default();
        show(
            &mut status,
            &journal(vec![
                plan(3),
                Event::StepStarted { step: 1 },
                Event::StepDone { step: 1, cached: false, cache_miss: None },
                Event::Layer { step: 1, digest: "sha256:1".into(), size: 5 },
                Event::StepStarted { step: 2 },
            ]),
        );
        assert_eq!(status.progress.as_deref(), Some("1/3"));
        let states: Vec<_> = status.steps.iter().map(|s| s.state).collect();
        assert_eq!(states, [StepState::Done, StepState::Running, StepState::Pending]);
        assert_eq!(status.steps[0].layer.as_ref().map(|l| l.size), Some(5));
        assert_eq!(status.steps[0].instruction, "RUN\u{fffd} 1");
        let json = serde_json::to_value(&status).expect("it serialises");
        assert_eq!(json["steps"][0]["startedAt"], "2026-01-01T00:00:02.123456Z");
        let back: ImageBuildStatus = serde_json::from_value(json).expect("it reads back");
        assert_eq!(back, status, "what is stored compares equal to what was computed");
        close(&mut status, false);
        let states: Vec<_> = status.steps.iter().map(|s| s.state).collect();
        assert_eq!(states, [StepState::Done, StepState::Unknown, StepState::Skipped]);
    }

    #[test]
    fn why_a_step_was_not_in_the_cache_is_shown_and_bounded() {
        let done = |step, why: &str| Event::StepDone { step, cached: false, cache_miss: Some(why.into()) };
        let mut status = ImageBuildStatus::default();
        let long = "\u{1b}x".repeat(200);
        show(&mut status, &journal(vec![plan(2), done(1, "the files changed"), done(2, &long)]));
        assert_eq!(status.steps[0].cache_miss.as_deref(), Some("the files changed"));
        let shown = status.steps[1].cache_miss.as_deref().expect("there is one");
        assert!(shown.len() <= MAX_CACHE_MISS && !shown.contains('\u{1b}'), "{shown}");
    }

    #[test]
    fn warnings_are_shown_and_stay_bounded() {
        let warning = |line| Warning { rule: "UndefinedVar".into(), line, message: "\u{1b}$X ".repeat(100) };
        let many = Warnings { count: 900, items: (1..=50).map(warning).collect() };
        let mut status = ImageBuildStatus::default();
        show(&mut status, &journal(vec![plan(1)]));
        assert_eq!(status.warnings, None);
        show(&mut status, &journal(vec![Event::Warnings(many)]));
        let shown = status.warnings.expect("there are some");
        assert_eq!((shown.count, shown.items.len()), (900, MAX_WARNINGS));
        assert_eq!((shown.items[0].rule.as_str(), shown.items[0].line), ("UndefinedVar", 1));
        assert!(shown.items[0].message.len() <= MAX_WARNING && !shown.items[0].message.contains('\u{1b}'));
    }

    #[test]
    fn the_status_stays_bounded() {
        let mut status = ImageBuildStatus::default();
        show(&mut status, &journal(vec![plan(400)]));
        assert_eq!(status.steps.len(), MAX_STEPS);
    }
}
