//! What a run's and an attempt's beginning and end do to the status. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kiln_api::v1alpha1::{
    AttemptStatus, FailureClass as Class, FailureStatus, HistoryEntry, ImageStatus, PodRef, RunResult,
};
use kiln_api::{ImageBuildStatus, duration};
use kiln_contract::report::Pushed;
use kiln_contract::text::truncate;
use kiln_contract::{Failure, FailureClass, reason};

use super::conditions::reasons;
use super::validate::{Desired, platform};
use crate::mutant;

/// Runs that `status.history` keeps (design section 3, historyLimit).
pub const HISTORY: usize = 5;
/// Reason of an attempt that ended well.
pub const SUCCEEDED: &str = "Succeeded";
/// Bytes of an attempt's message.
const MAX_ATTEMPT_MESSAGE: usize = 256;
/// Bytes of `status.failure.message`, the hint included.
const MAX_FAILURE_MESSAGE: usize = 1536;

/// Begins the next run.
pub fn begin_run(status: &mut ImageBuildStatus, desired: &Desired, rebuild: Option<&str>, now: Timestamp) {
    status.run = Some(status.run.unwrap_or(0) + 1);
    status.start_time = Some(Time(now));
    status.completion_time = None;
    status.duration = None;
    status.progress = None;
    status.steps.clear();
    status.warnings = None;
    status.failure = None;
    status.pod_ref = None;
    status.attempts.clear();
    status.queue = None;
    status.input_digest = Some(desired.input_digest.clone());
    status.source = desired.source.clone();
    status.isolation = Some(desired.isolation.as_str().to_owned());
    status.output = desired.output.clone();
    status.policy = Some(desired.policy.clone());
    if let Some(value) = rebuild {
        status.last_handled_rebuild = Some(value.to_owned());
    }
}

/// Begins the next attempt of the run, in a pod of that name.
pub fn begin_attempt(status: &mut ImageBuildStatus, pod_name: String, now: Timestamp) {
    let number = status.attempts.last().map_or(1, |a| a.number + 1);
    status.progress = None;
    status.steps.clear();
    status.warnings = None;
    status.queue = None;
    status.pod_ref = Some(PodRef { name: pod_name.clone(), uid: None });
    status.attempts.push(AttemptStatus {
        number,
        pod_name,
        pod_uid: None,
        started_at: Time(now),
        finished_at: None,
        stop_requested_at: None,
        stop_reason: None,
        reason: None,
        class: None,
        message: None,
    });
}

/// Ends the attempt that runs, if one does.
pub fn end_attempt(status: &mut ImageBuildStatus, failure: Option<&Failure>, now: Timestamp) {
    if let Some(attempt) = status.attempts.last_mut().filter(|a| a.finished_at.is_none()) {
        attempt.finished_at = Some(Time(now));
        attempt.reason = Some(failure.map_or(SUCCEEDED, |f| f.reason.as_str()).to_owned());
        attempt.class = failure.map(|f| class(f.class));
        attempt.message = failure.map(|f| truncate(&f.to_string(), MAX_ATTEMPT_MESSAGE));
    }
}

/// How a run ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The tags name this image.
    Succeeded(Pushed),
    /// It failed.
    Failed(Failure),
    /// Somebody cancelled it.
    Cancelled(Failure),
    /// The object was suspended.
    Suspended,
    /// Another run takes its place.
    Superseded,
}

/// Ends the run and its attempt. `namespace` is for the command that the failure names.
pub fn finish_run(status: &mut ImageBuildStatus, finish: Finish, namespace: &str, now: Timestamp) {
    let stopped = |reason, message: &str| Failure::new(FailureClass::Cancelled, reason, message);
    let (result, why, digest, failure) = match finish {
        Finish::Succeeded(image) => {
            let digest = image.digest.clone();
            status.image = Some(ImageStatus {
                reference: image.reference,
                digest: image.digest,
                size: i64::try_from(image.size).unwrap_or(i64::MAX),
                platforms: vec![platform()],
            });
            end_attempt(status, None, now);
            (RunResult::Succeeded, reasons::IMAGE_PUSHED.to_owned(), Some(digest), None)
        }
        Finish::Failed(failure) => (RunResult::Failed, failure.reason.clone(), None, Some(failure)),
        Finish::Cancelled(failure) => (RunResult::Cancelled, failure.reason.clone(), None, Some(failure)),
        Finish::Suspended => {
            end_attempt(
                status,
                Some(&stopped(reason::SUSPENDED, "stopped because spec.suspend was set")),
                now,
            );
            (RunResult::Suspended, reason::SUSPENDED.to_owned(), None, None)
        }
        Finish::Superseded => {
            end_attempt(
                status,
                Some(&stopped(reason::SUPERSEDED, "stopped because a newer run took its place")),
                now,
            );
            (RunResult::Superseded, reason::SUPERSEDED.to_owned(), None, None)
        }
    };
    if let Some(failure) = failure {
        end_attempt(status, Some(&failure), now);
        status.failure = Some(failure_status(&failure, namespace, status.pod_ref.as_ref()));
    }
    let started = status.start_time.clone().unwrap_or(Time(now));
    // Never negative, whatever the clocks of two operators say.
    let took = now.as_second().saturating_sub(started.0.as_second()).max(0).unsigned_abs();
    status.duration = Some(duration::format(took));
    status.completion_time = Some(Time(now));
    status.queue = None;
    status.history.push(HistoryEntry {
        run: status.run.unwrap_or_default(),
        result,
        reason: why,
        digest,
        attempts: i32::try_from(status.attempts.len()).unwrap_or(i32::MAX),
        start_time: started,
        completion_time: Time(now),
    });
    let surplus = status.history.len().saturating_sub(HISTORY);
    status.history.drain(..surplus);
}

/// The failure as the status has it, with the command to try next.
fn failure_status(failure: &Failure, namespace: &str, pod: Option<&PodRef>) -> FailureStatus {
    let pod = pod.filter(|p| p.uid.is_some());
    let hint = pod.and_then(|pod| match failure.class {
        FailureClass::User | FailureClass::OutOfMemory | FailureClass::Timeout => {
            Some(format!("; see: kubectl -n {namespace} logs {} -c build", pod.name))
        }
        FailureClass::Source if failure.log_tail.is_some() => {
            Some(format!("; see: kubectl -n {namespace} logs {} -c source", pod.name))
        }
        FailureClass::Infrastructure | FailureClass::Policy if failure.reason != reason::POD_DELETED => {
            Some(format!("; see: kubectl -n {namespace} describe pod {}", pod.name))
        }
        _ => None,
    });
    let number = |n: Option<u32>| n.and_then(|n| i32::try_from(n).ok());
    FailureStatus {
        class: class(failure.class),
        reason: failure.reason.clone(),
        message: truncate(&format!("{}{}", failure.message, hint.unwrap_or_default()), MAX_FAILURE_MESSAGE),
        file: failure.file.clone(),
        line: number(failure.line),
        step: number(failure.step),
        exit_code: failure.exit_code,
        log_tail: failure.log_tail.clone(),
        retryable: is_retryable(failure),
    }
}

/// Whether another attempt may end otherwise without anybody acting. What keeps a pod from starting stays as it is.
pub fn is_retryable(failure: &Failure) -> bool {
    const TERMINAL: [&str; 4] =
        [reason::POD_START_FAILED, reason::UNSCHEDULABLE, reason::POD_REFUSED, reason::POD_NAME_CONFLICT];
    if mutant!(RetryEverything) {
        return true;
    }
    failure.class.is_retryable() && !TERMINAL.contains(&failure.reason.as_str())
}

/// The contract's class as the API has it.
fn class(class: FailureClass) -> Class {
    match class {
        FailureClass::User => Class::User,
        FailureClass::Source => Class::Source,
        FailureClass::Registry => Class::Registry,
        FailureClass::Policy => Class::Policy,
        FailureClass::Infrastructure => Class::Infrastructure,
        FailureClass::OutOfMemory => Class::OutOfMemory,
        FailureClass::Evicted => Class::Evicted,
        FailureClass::Timeout => Class::Timeout,
        FailureClass::Cancelled => Class::Cancelled,
    }
}
