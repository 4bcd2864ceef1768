//! The four conditions, from where the build stands. kstatus, Flux, Argo CD and `kubectl wait` read them; the table is
//! research/ops.md 1.1.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kiln_api::ImageBuildStatus;
use kiln_api::v1alpha1::{RunResult, condition};
use kiln_contract::text::truncate;

use crate::mutant;

/// Reasons of conditions that are not failures.
pub mod reasons {
    /// The tags name the image.
    pub const IMAGE_PUSHED: &str = "ImagePushed";
    /// It waits for a place or for quota.
    pub const QUEUED: &str = "Queued";
    /// The pod is being made or is starting.
    pub const STARTING: &str = "Starting";
    /// There is no node for the pod.
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    /// A Secret that the pod mounts is not there.
    pub const WAITING_FOR_SECRET: &str = "WaitingForSecret";
    /// The PersistentVolumeClaim that the pod mounts is not there.
    pub const WAITING_FOR_CLAIM: &str = "WaitingForClaim";
    /// The source is on its way.
    pub const FETCHING: &str = "Fetching";
    /// Steps run.
    pub const BUILDING: &str = "Building";
    /// The layers are on their way.
    pub const PUSHING: &str = "Pushing";
    /// The tags are about to move.
    pub const TAGGING: &str = "Tagging";
    /// The next attempt is due soon.
    pub const RETRYING: &str = "Retrying";
    /// The pod was told to stop.
    pub const STOPPING: &str = "Stopping";
    /// Nothing is to run.
    pub const SUSPENDED: &str = "Suspended";
    /// The stored object can't be read by this operator.
    pub const UNREADABLE: &str = "UnreadableObject";
}

/// Bytes of a condition's message at most.
const MAX_MESSAGE: usize = 1024;

/// Where the build stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Work goes on, or will without anybody acting.
    Active {
        /// One word.
        reason: String,
        /// More.
        message: String,
    },
    /// `spec.suspend` keeps it from going on.
    Suspended {
        /// Whether a pod is still to end.
        stopping: bool,
    },
    /// The latest run has ended; how, the status says.
    Finished,
    /// The stored object can't be read.
    Unreadable {
        /// Why.
        message: String,
    },
}

impl Phase {
    /// An active phase.
    pub fn active(reason: &str, message: impl Into<String>) -> Self {
        Self::Active { reason: reason.to_owned(), message: message.into() }
    }
}

/// A condition to be: type, status, reason, message.
type Wanted<'a> = [(&'static str, &'static str, &'a str, &'a str); 4];

/// Sets the conditions. Their `lastTransitionTime` moves only with their status.
pub fn set(status: &mut ImageBuildStatus, phase: &Phase, generation: i64, now: Timestamp) {
    use condition::{READY, RECONCILING, STALLED, SUCCEEDED};
    let (reason, message) = match phase {
        Phase::Active { reason, message } => (reason.clone(), message.clone()),
        Phase::Suspended { stopping: true } => (
            reasons::SUSPENDED.to_owned(),
            "spec.suspend is true; the builder pod is being stopped".to_owned(),
        ),
        Phase::Suspended { stopping: false } => {
            (reasons::SUSPENDED.to_owned(), "spec.suspend is true; set it to false to build".to_owned())
        }
        Phase::Finished => finished(status),
        Phase::Unreadable { message } => (reasons::UNREADABLE.to_owned(), message.clone()),
    };
    let (r, m) = (reason.as_str(), message.as_str());
    let result = status.history.last().map(|h| h.result);
    let wanted: Wanted<'_> = match (phase, result) {
        (Phase::Active { .. }, _) => [
            (READY, if mutant!(ReadyTooEarly) && status.image.is_some() { "True" } else { "Unknown" }, r, m),
            (RECONCILING, "True", r, m),
            (STALLED, "False", r, m),
            (SUCCEEDED, "Unknown", r, m),
        ],
        (Phase::Suspended { stopping }, _) => [
            (READY, "False", r, m),
            (RECONCILING, if *stopping { "True" } else { "False" }, r, m),
            (STALLED, "False", r, m),
            (SUCCEEDED, "Unknown", r, m),
        ],
        (Phase::Finished, Some(RunResult::Succeeded)) => [
            (READY, "True", r, m),
            (RECONCILING, "False", r, ""),
            (STALLED, "False", r, ""),
            (SUCCEEDED, "True", r, m),
        ],
        (Phase::Finished | Phase::Unreadable { .. }, _) => [
            (READY, "False", r, m),
            (RECONCILING, "False", r, ""),
            (STALLED, "True", r, m),
            (SUCCEEDED, "False", r, m),
        ],
    };
    status.observed_generation = generation;
    status.conditions = wanted
        .into_iter()
        .map(|(kind, value, reason, message)| {
            let before = status.conditions.iter().find(|c| c.type_ == kind && c.status == value);
            let before = before.filter(|_| !mutant!(RestlessStatus));
            Condition {
                type_: kind.to_owned(),
                status: value.to_owned(),
                reason: reason.to_owned(),
                message: truncate(message, MAX_MESSAGE),
                observed_generation: Some(generation),
                last_transition_time: before.map_or(Time(now), |c| c.last_transition_time.clone()),
            }
        })
        .collect();
}

/// Reason and message of the latest run's end.
fn finished(status: &ImageBuildStatus) -> (String, String) {
    if let Some(failure) = &status.failure {
        let place = match (&failure.file, failure.line) {
            (Some(file), Some(line)) => format!("{file}:{line}: "),
            _ => String::new(),
        };
        return (failure.reason.clone(), format!("{place}{}", failure.message));
    }
    let took = status.duration.as_deref().map(|d| format!(" in {d}")).unwrap_or_default();
    let image = status.image.as_ref().map(|i| format!("{}@{}", i.reference, i.digest)).unwrap_or_default();
    (reasons::IMAGE_PUSHED.to_owned(), format!("pushed {image}{took}"))
}

/// A condition's status, reason and when it became so.
pub fn find<'a>(status: &'a ImageBuildStatus, kind: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|c| c.type_ == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image_build::testing::{at, finished as ended, kstatus};

    fn show(phase: &Phase, result: Option<RunResult>) -> (String, &'static str) {
        let mut status = result.map(ended).unwrap_or_default();
        set(&mut status, phase, 3, at(0));
        let all: Vec<_> = status.conditions.iter().map(|c| format!("{}={}", c.type_, c.status)).collect();
        assert!(status.conditions.iter().all(|c| !c.reason.is_empty() && c.observed_generation == Some(3)));
        (all.join(" "), kstatus(&status, 3))
    }

    #[test]
    fn the_status_contract() {
        let active = Phase::active(reasons::BUILDING, "m");
        let cases = [
            (active, None, "Ready=Unknown Reconciling=True Stalled=False Succeeded=Unknown", "InProgress"),
            (
                Phase::Finished,
                Some(RunResult::Succeeded),
                "Ready=True Reconciling=False Stalled=False Succeeded=True",
                "Current",
            ),
            (
                Phase::Finished,
                Some(RunResult::Failed),
                "Ready=False Reconciling=False Stalled=True Succeeded=False",
                "Failed",
            ),
            (
                Phase::Finished,
                Some(RunResult::Cancelled),
                "Ready=False Reconciling=False Stalled=True Succeeded=False",
                "Failed",
            ),
            (
                Phase::Suspended { stopping: false },
                Some(RunResult::Suspended),
                "Ready=False Reconciling=False Stalled=False Succeeded=Unknown",
                "InProgress",
            ),
        ];
        for (phase, result, conditions, kstatus) in cases {
            assert_eq!(show(&phase, result), (conditions.to_owned(), kstatus), "{phase:?} {result:?}");
        }
        let fresh = ImageBuildStatus { observed_generation: -1, ..ImageBuildStatus::default() };
        assert_eq!(kstatus(&fresh, 1), "InProgress");
    }

    #[test]
    fn a_transition_time_moves_only_with_the_status() {
        let mut status = ImageBuildStatus::default();
        set(&mut status, &Phase::active(reasons::QUEUED, "1"), 1, at(0));
        set(&mut status, &Phase::active(reasons::BUILDING, "2"), 1, at(5));
        assert!(status.conditions.iter().all(|c| c.last_transition_time.0 == at(0)));
        set(&mut status, &Phase::Suspended { stopping: false }, 1, at(9));
        let moved: Vec<_> = status.conditions.iter().filter(|c| c.last_transition_time.0 == at(9)).collect();
        assert_eq!(moved.iter().map(|c| c.type_.as_str()).collect::<Vec<_>>(), ["Ready", "Reconciling"]);
    }
}
