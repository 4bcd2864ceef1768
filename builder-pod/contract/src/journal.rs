//! The journal: what happens in an attempt, one JSON event per line on the courier's stdout, and the pure fold that
//! turns it into the state that the object's status shows.

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::report::Pushed;
use crate::source::Fetched;

/// Bytes of a journal at most, so that the kubelet's log rotation (10 MiB) never cuts one. Past it only heartbeats,
/// checkpoints and terminal events are written.
pub const MAX_JOURNAL: usize = 1 << 20;
/// Bytes after which a checkpoint is written, so that a reader that lost the beginning still gets the whole state.
pub const CHECKPOINT_EVERY: usize = 64 << 10;
/// Seconds between heartbeats.
pub const HEARTBEAT_SECONDS: u64 = 20;
/// Steps that are shown one by one; a longer Dockerfile is refused (the status has to stay below 64 KiB). Folding takes no
/// more of them either, so that a line costs no more than its length, whatever was written before it.
pub const MAX_STEPS: usize = 200;
/// Bytes of an instruction's text in the journal.
pub const MAX_INSTRUCTION: usize = 160;
/// Warnings that are shown one by one: they are part of the status, and who has more than these fixes them first.
pub const MAX_WARNINGS: usize = 20;
/// Bytes of a warning's text in the journal.
pub const MAX_WARNING: usize = 200;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// [`crate::VERSION`].
    pub v: u32,
    /// 1 for the first line, one more for each.
    pub seq: u64,
    /// RFC 3339, UTC, microseconds.
    pub at: String,
    /// What happened.
    pub event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum Event {
    /// The courier is there.
    CourierStarted {
        /// [`crate::request::BuildRequest::attempt`].
        attempt: String,
    },
    /// The source is fetched.
    SourceFetched {
        /// What it turned out to be.
        source: Fetched,
    },
    /// The builder is there and has proved its sandbox.
    BuilderStarted {
        /// The isolation in force.
        isolation: String,
    },
    /// The Dockerfile parsed; these are its steps.
    Planned {
        /// In order of execution.
        steps: Vec<PlannedStep>,
    },
    /// What the Dockerfile's author should know, at most once; not written when there is nothing. (A reader that does not
    /// know this event reads on, with a gap that the next checkpoint closes.)
    Warnings(Warnings),
    /// A step began.
    #[serde(rename_all = "camelCase")]
    StepStarted {
        /// 1-based.
        step: u32,
    },
    /// A step ended well.
    #[serde(rename_all = "camelCase")]
    StepDone {
        /// 1-based.
        step: u32,
        /// Taken from a cache.
        cached: bool,
    },
    /// A step's layer is known (some time after the step: compression runs beside the next step).
    #[serde(rename_all = "camelCase")]
    Layer {
        /// 1-based.
        step: u32,
        /// Digest of the compressed layer.
        digest: String,
        /// Bytes, compressed.
        size: u64,
    },
    /// A step failed; the attempt's failure follows.
    #[serde(rename_all = "camelCase")]
    StepFailed {
        /// 1-based.
        step: u32,
        /// Exit code, where a command ran.
        exit_code: Option<i32>,
    },
    /// All steps are done; what is left is the push.
    Pushing,
    /// The manifest is in the registry under its digest; the courier waits for the permit.
    ReadyToTag {
        /// What is to be tagged.
        image: Pushed,
    },
    /// The tags name the image.
    Succeeded {
        /// What was tagged.
        image: Pushed,
    },
    /// The attempt failed.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// Nothing happened; the courier lives.
    Heartbeat,
    /// The whole state up to here.
    Checkpoint {
        /// As a reader of every line would have it.
        state: Box<BuildState>,
    },
}

/// A step of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedStep {
    /// Name or number of the stage.
    pub stage: String,
    /// 1-based line of the Dockerfile.
    pub line: u32,
    /// The instruction's text, at most [`MAX_INSTRUCTION`] bytes.
    pub instruction: String,
}

/// Warnings of one build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Warnings {
    /// How many there are in all.
    pub count: u32,
    /// The first [`MAX_WARNINGS`], by line.
    pub items: Vec<Warning>,
}

/// A finding in the Dockerfile that does not keep it from being built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Warning {
    /// BuildKit's name of the rule (`FromAsCasing`).
    pub rule: String,
    /// 1-based line of the Dockerfile.
    pub line: u32,
    /// What was found, at most [`MAX_WARNING`] bytes.
    pub message: String,
}

/// What a step is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepPhase {
    /// Not begun.
    Pending,
    /// Running.
    Running,
    /// Taken from a cache.
    Cached,
    /// Ended well.
    Done,
    /// Ended badly.
    Failed,
    /// The build ended before it began, or before it was done when another step failed.
    Skipped,
    /// The journal was lost; or a later release's word for something that this one does not know.
    #[serde(other)]
    Unknown,
}

/// A step as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepState {
    /// What it is.
    #[serde(flatten)]
    pub plan: PlannedStep,
    /// What it is doing.
    pub phase: StepPhase,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// Exit code of a failed command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Digest of its layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_digest: Option<String>,
    /// Bytes of its layer, compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_size: Option<u64>,
}

/// The state of an attempt, folded from its journal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildState {
    /// The last line that is in it.
    pub seq: u64,
    /// The attempt, once the first line was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<String>,
    /// The source, once it is fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Fetched>,
    /// The isolation in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
    /// The steps, in order.
    #[serde(default)]
    pub steps: Vec<StepState>,
    /// Warnings, once they are known and if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnings: Option<Warnings>,
    /// Whether the layers are done and the rest of the push runs.
    #[serde(default)]
    pub pushing: bool,
    /// What waits for the permit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_to_tag: Option<Pushed>,
    /// What was tagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succeeded: Option<Pushed>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Time of the last line, by the clock of the attempt's node.
    #[serde(skip)]
    pub at: String,
    /// Lines were lost and no checkpoint has made up for them yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gap: bool,
}

impl Line {
    /// Reads a line of the log; `None` for what is not a journal line of a version that this release reads (a runtime's
    /// message, say), and for an event that it does not know: its number is then missing, which is a gap that the next
    /// checkpoint closes. Fields that it does not know are passed over.
    pub fn parse(text: &str) -> Option<Self> {
        let line: Self = serde_json::from_str(text.trim_end()).ok()?;
        crate::reads(line.v).then_some(line)
    }
}

impl BuildState {
    /// Takes in one line. Lines that were taken in before change nothing, so a log may be read again from its start.
    pub fn apply(&mut self, line: &Line) {
        if line.seq <= self.seq {
            return;
        }
        if line.seq != self.seq + 1 {
            self.gap = true;
        }
        self.seq = line.seq;
        self.take(line);
        self.at.clone_from(&line.at);
    }

    fn take(&mut self, line: &Line) {
        match &line.event {
            Event::CourierStarted { attempt } => self.attempt = Some(attempt.clone()),
            Event::SourceFetched { source } => self.source = Some(source.clone()),
            Event::BuilderStarted { isolation } => self.isolation = Some(isolation.clone()),
            Event::Planned { steps } => {
                self.steps = steps.iter().take(MAX_STEPS).cloned().map(StepState::pending).collect();
            }
            Event::Warnings(warnings) => self.warnings = Some(warnings.clone()),
            Event::StepStarted { step } => self.with_step(*step, |s| {
                s.phase = StepPhase::Running;
                s.started_at = Some(line.at.clone());
            }),
            Event::StepDone { step, cached } => self.with_step(*step, |s| {
                s.phase = if *cached { StepPhase::Cached } else { StepPhase::Done };
                s.started_at.get_or_insert_with(|| line.at.clone());
                s.finished_at = Some(line.at.clone());
            }),
            Event::Layer { step, digest, size } => self.with_step(*step, |s| {
                s.layer_digest = Some(digest.clone());
                s.layer_size = Some(*size);
            }),
            Event::StepFailed { step, exit_code } => self.with_step(*step, |s| {
                s.phase = StepPhase::Failed;
                s.finished_at = Some(line.at.clone());
                s.exit_code = *exit_code;
            }),
            Event::Pushing => self.pushing = true,
            Event::ReadyToTag { image } => self.ready_to_tag = Some(image.clone()),
            Event::Succeeded { image } => self.succeeded = Some(image.clone()),
            Event::Failed { failure } => self.fail(failure.clone(), &line.at),
            Event::Heartbeat => {}
            Event::Checkpoint { state } => {
                *self = (**state).clone();
                self.steps.truncate(MAX_STEPS);
                self.seq = line.seq;
                self.gap = false;
            }
        }
    }

    /// Ends the attempt: steps that ran have failed, unless one failed by itself and the others were stopped for it; steps
    /// that did not begin are skipped.
    pub fn fail(&mut self, failure: Failure, at: &str) {
        let failed = self.steps.iter().any(|step| step.phase == StepPhase::Failed);
        for step in &mut self.steps {
            match step.phase {
                StepPhase::Running => {
                    step.phase = if failed { StepPhase::Skipped } else { StepPhase::Failed };
                    step.finished_at = Some(at.to_owned());
                }
                StepPhase::Pending => step.phase = StepPhase::Skipped,
                _ => {}
            }
        }
        self.failure = Some(failure);
    }

    /// 1-based numbers of the steps that run now.
    pub fn running(&self) -> Vec<u32> {
        (1u32..).zip(&self.steps).filter(|(_, s)| s.phase == StepPhase::Running).map(|(n, _)| n).collect()
    }

    /// How many steps are done or cached.
    pub fn done(&self) -> usize {
        self.steps.iter().filter(|s| matches!(s.phase, StepPhase::Done | StepPhase::Cached)).count()
    }

    fn with_step(&mut self, step: u32, change: impl FnOnce(&mut StepState)) {
        let index = (step as usize).wrapping_sub(1);
        match self.steps.get_mut(index) {
            Some(state) => change(state),
            None => self.gap = true,
        }
    }
}

/// Steps by number, in words: `step 3`, `steps 3 and 5`, `steps 1, 2 and 7`.
pub fn steps(numbers: &[u32]) -> String {
    let text = |numbers: &[u32]| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    match numbers {
        [] => "no step".to_owned(),
        [step] => format!("step {step}"),
        [before @ .., last] => format!("steps {} and {last}", text(before)),
    }
}

impl StepState {
    fn pending(plan: PlannedStep) -> Self {
        Self {
            plan,
            phase: StepPhase::Pending,
            started_at: None,
            finished_at: None,
            exit_code: None,
            layer_digest: None,
            layer_size: None,
        }
    }
}

#[cfg(test)]
mod tests {
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
            line(4, Event::StepDone { step: 1, cached: false }),
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
        lines.push(line(7, Event::StepFailed { step: 2, exit_code: Some(3) }));
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
        let one = [both.clone(), vec![line(8, Event::StepFailed { step: 3, exit_code: None }), failure(9)]];
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
}
