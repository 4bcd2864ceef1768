//! How long the phases of a run took, read from its final status. Pure.

use jiff::Timestamp;
use kiln_api::ImageBuildStatus;
use kiln_api::v1alpha1::StepState;

/// A part of a run, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunPhase {
    /// From the run's start to its first attempt.
    Queue,
    /// From the last attempt to its first step: node, images, source.
    Start,
    /// From the first step to the end of the last.
    Build,
    /// From there to the tag.
    Push,
}

impl RunPhase {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Queue, Self::Start, Self::Build, Self::Push];

    /// The label's value.
    pub fn word(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Start => "start",
            Self::Build => "build",
            Self::Push => "push",
        }
    }
}

/// The phases that the run came to, in seconds. Clocks of nodes differ from the API server's: nothing is less than 0.
pub fn run_phases(status: &ImageBuildStatus) -> Vec<(RunPhase, f64)> {
    let begun = status.start_time.as_ref().map(|t| t.0);
    let first = status.attempts.first().map(|a| a.started_at.0);
    let last = status.attempts.last().map(|a| a.started_at.0);
    let steps = status.steps.iter().filter_map(|s| s.started_at.as_ref()).map(|t| t.0).min();
    let done = status.steps.iter().filter_map(|s| s.finished_at.as_ref()).map(|t| t.0).max();
    // One that failed after its steps may have pushed nothing.
    let tagged = status.completion_time.as_ref().map(|t| t.0).filter(|_| status.failure.is_none());
    let phase = |phase, from: Option<Timestamp>, to: Option<Timestamp>| {
        let seconds = to?.duration_since(from?).as_secs_f64();
        Some((phase, seconds.max(0.0)))
    };
    [
        phase(RunPhase::Queue, begun, first),
        phase(RunPhase::Start, last, steps),
        phase(RunPhase::Build, steps, done),
        phase(RunPhase::Push, done, tagged),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// How many steps came from a cache, and how many were executed.
pub fn cached_steps(status: &ImageBuildStatus) -> (u64, u64) {
    let count =
        |states: &[StepState]| status.steps.iter().filter(|s| states.contains(&s.state)).count() as u64;
    (count(&[StepState::Cached]), count(&[StepState::Done, StepState::Failed]))
}
