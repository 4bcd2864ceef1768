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
/// Bytes of what is said of a step that the cache had no result of.
pub const MAX_CACHE_MISS: usize = 120;
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
        /// Why the cache had no result of it, at most [`MAX_CACHE_MISS`] bytes; absent where it had one, where the step makes
        /// none, and without a cache. (A reader that does not know this field passes it over.)
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cache_miss: Option<String>,
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
        /// As in [`Event::StepDone`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cache_miss: Option<String>,
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
    /// Why the cache had no result of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_miss: Option<String>,
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
            Event::StepDone { step, cached, cache_miss } => self.with_step(*step, |s| {
                s.cache_miss.clone_from(cache_miss);
                s.phase = if *cached { StepPhase::Cached } else { StepPhase::Done };
                s.started_at.get_or_insert_with(|| line.at.clone());
                s.finished_at = Some(line.at.clone());
            }),
            Event::Layer { step, digest, size } => self.with_step(*step, |s| {
                s.layer_digest = Some(digest.clone());
                s.layer_size = Some(*size);
            }),
            Event::StepFailed { step, exit_code, cache_miss } => self.with_step(*step, |s| {
                s.cache_miss.clone_from(cache_miss);
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
            cache_miss: None,
            layer_digest: None,
            layer_size: None,
        }
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
