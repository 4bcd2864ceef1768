//! Events of events.k8s.io/v1, one per transition of the status: what to say is pure, the publisher says it.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kiln_api::v1alpha1::{AttemptStatus, HistoryEntry, PodRef, QueueStatus, RunResult, condition};
use kiln_api::{ImageBuildStatus, duration};
use kiln_contract::reason;
use kiln_contract::text::truncate;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use super::conditions::{self, reasons};
use crate::queue::words;

/// Bytes of a note at most: the API server refuses more.
const MAX_NOTE: usize = 1024;
/// Bytes of a reason at most: the API server refuses more.
const MAX_REASON: usize = 128;
/// For all events of one transition. An event is not worth more: status says the same.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// Whom events are said to come from.
const CONTROLLER: &str = "kiln.build/operator";
/// Bytes of the object's name that an event's name can hold: with a dot and 16 hex digits it has to stay within 253.
const MAX_NAME: usize = 236;

/// Something that happened to a build.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// Whether somebody may want to act.
    pub kind: EventType,
    /// Why, in one word; the conditions' reason where there is one.
    pub reason: String,
    /// What the operator did, in one word.
    pub action: &'static str,
    /// In words, at most 1 KiB.
    pub note: String,
    /// The pod that it is about.
    pub pod: Option<PodRef>,
}

impl Transition {
    fn new(kind: EventType, reason: &str, action: &'static str, note: &str) -> Self {
        // An empty reason is refused; a builder can be wrong about its own.
        let reason = if reason.is_empty() { reason::INTERNAL } else { reason };
        Self { kind, reason: truncate(reason, MAX_REASON), action, note: truncate(note, MAX_NOTE), pod: None }
    }

    fn about(mut self, attempt: &AttemptStatus) -> Self {
        self.pod = Some(PodRef { name: attempt.pod_name.clone(), uid: attempt.pod_uid.clone() });
        self
    }
}

/// What happened between two statuses of an object, in order.
pub fn transitions(before: &ImageBuildStatus, after: &ImageBuildStatus) -> Vec<Transition> {
    let started = |run: i64| {
        let note = format!("run {run} started");
        Transition::new(EventType::Normal, "RunStarted", "StartRun", &note)
    };
    let known = before.run.unwrap_or(0);
    let mut all: Vec<_> = begun_late(before, after).map(attempt_started).collect();
    for run in ended_runs(before, after) {
        if run.run > known {
            all.push(started(run.run));
        }
        // That a suspended run ended was said when it was told to.
        if run.result != RunResult::Suspended {
            all.push(ended(run, after));
        }
    }
    if let Some(run) = after.run.filter(|run| *run > known && after.completion_time.is_none()) {
        // Its pod is made once this is on record, or can't be.
        all.push(match begun_attempts(before, after).first() {
            Some(first) => {
                let note = format!("run {run} started; pod {} is to be made", first.pod_name);
                Transition::new(EventType::Normal, "RunStarted", "StartRun", &note).about(first)
            }
            None => started(run),
        });
    }
    all.extend(faults(before, after));
    all.extend(queued(before, after));
    if !is_suspended(before) && is_suspended(after) {
        let note = message(after, condition::READY, reasons::SUSPENDED).unwrap_or("spec.suspend is true");
        all.push(Transition::new(EventType::Normal, reasons::SUSPENDED, "Suspend", note));
    }
    all
}

/// The runs that ended between two statuses, in order.
pub fn ended_runs<'a>(before: &ImageBuildStatus, after: &'a ImageBuildStatus) -> &'a [HistoryEntry] {
    let last = before.history.last().map_or(0, |entry| entry.run);
    let new = after.history.partition_point(|entry| entry.run <= last);
    &after.history[new..]
}

/// The attempts of the latest run that began between two statuses, in order.
pub fn begun_attempts<'a>(before: &ImageBuildStatus, after: &'a ImageBuildStatus) -> &'a [AttemptStatus] {
    let known = if after.run == before.run { before.attempts.len() } else { 0 };
    after.attempts.get(known..).unwrap_or_default()
}

/// The attempts whose pods went on record between two statuses, but for the first one of a run that nothing kept waiting: that
/// there is one for it was said with the run's start, and most builds have no more to say.
fn begun_late<'a>(
    before: &'a ImageBuildStatus,
    after: &'a ImageBuildStatus,
) -> impl Iterator<Item = &'a AttemptStatus> {
    let same_run = before.run == after.run;
    let pairs = before.attempts.iter().zip(&after.attempts).filter(move |_| same_run);
    let made = pairs.filter(|(b, a)| b.pod_uid.is_none() && a.pod_uid.is_some()).map(|(_, attempt)| attempt);
    let went_smoothly = message(before, condition::READY, reasons::STARTING).is_some();
    made.filter(move |attempt| {
        let at_once = went_smoothly && Some(&attempt.started_at) == after.start_time.as_ref();
        attempt.number > 1 || !at_once
    })
}

fn ended(run: &HistoryEntry, after: &ImageBuildStatus) -> Transition {
    let number = run.run;
    let latest = after.run == Some(number);
    let took = run.completion_time.0.as_second().saturating_sub(run.start_time.0.as_second()).max(0);
    let took = duration::format(took.unsigned_abs());
    let transition = match run.result {
        RunResult::Succeeded => {
            let digest = run.digest.as_deref().unwrap_or_default();
            let image = after.image.as_ref().filter(|image| image.digest == digest);
            let image = image.map_or_else(|| digest.to_owned(), |i| format!("{}@{}", i.reference, i.digest));
            let note = format!("run {number} pushed {image} in {took}");
            Transition::new(EventType::Normal, &run.reason, "FinishRun", &note)
        }
        RunResult::Superseded => {
            let note = format!("run {number} was stopped: a newer one takes its place");
            Transition::new(EventType::Normal, reason::SUPERSEDED, "StopRun", &note)
        }
        RunResult::Suspended => Transition::new(
            EventType::Normal,
            reasons::SUSPENDED,
            "StopRun",
            &format!("run {number} was stopped"),
        ),
        RunResult::Cancelled => {
            let note = format!("run {number} was cancelled after {took}");
            Transition::new(EventType::Normal, reason::CANCELLED, "StopRun", &note)
        }
        RunResult::Failed => {
            let failure = after.failure.as_ref().filter(|_| latest);
            let place = failure.and_then(|f| Some(format!("{}:{}: ", f.file.as_ref()?, f.line?)));
            let message = failure.map_or(run.reason.as_str(), |f| f.message.as_str());
            let note = format!("run {number} failed after {took}: {}{message}", place.unwrap_or_default());
            Transition::new(EventType::Warning, &run.reason, "FinishRun", &note)
        }
    };
    match after.attempts.last().filter(|_| latest) {
        Some(attempt) => transition.about(attempt),
        None => transition,
    }
}

/// The attempts that ended while their run goes on.
fn faults(before: &ImageBuildStatus, after: &ImageBuildStatus) -> Vec<Transition> {
    if after.run != before.run {
        return Vec::new();
    }
    let over = usize::from(after.completion_time.is_some());
    let going_on = &after.attempts[..after.attempts.len().saturating_sub(over)];
    let open = before
        .attempts
        .iter()
        .zip(going_on)
        .filter(|(b, a)| b.finished_at.is_none() && a.finished_at.is_some());
    open.map(|(_, attempt)| {
        let note = format!(
            "attempt {} ended as {}: {}; another one follows",
            attempt.number,
            attempt.reason.as_deref().unwrap_or_default(),
            attempt.message.as_deref().unwrap_or_default()
        );
        Transition::new(EventType::Warning, reasons::RETRYING, "RetryRun", &note).about(attempt)
    })
    .collect()
}

fn attempt_started(attempt: &AttemptStatus) -> Transition {
    let note = format!("attempt {} started: pod {} was made", attempt.number, attempt.pod_name);
    Transition::new(EventType::Normal, "AttemptStarted", "CreatePod", &note).about(attempt)
}

fn queued(before: &ImageBuildStatus, after: &ImageBuildStatus) -> Option<Transition> {
    // Which of the limits it waits for may change with every build that ends.
    let quota = |queue: &QueueStatus| queue.reason == words::QUOTA;
    let queue = after.queue.as_ref()?;
    if before.run == after.run && before.queue.as_ref().map(quota) == Some(quota(queue)) {
        return None;
    }
    // Nobody has to act for a place to become free; for quota somebody may.
    let kind = if quota(queue) { EventType::Warning } else { EventType::Normal };
    let note = message(after, condition::READY, reasons::QUEUED).unwrap_or("waits for a place");
    Some(Transition::new(kind, reasons::QUEUED, "Queue", note))
}

fn is_suspended(status: &ImageBuildStatus) -> bool {
    message(status, condition::READY, reasons::SUSPENDED).is_some()
}

/// Message of a condition that has that reason.
fn message<'a>(status: &'a ImageBuildStatus, kind: &str, reason: &str) -> Option<&'a str> {
    conditions::find(status, kind).filter(|c| c.reason == reason).map(|c| c.message.as_str())
}

/// Publishes events.
#[derive(Clone)]
pub struct Publisher {
    client: kube::Client,
    reporter: Reporter,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("reporter", &self.reporter).finish_non_exhaustive()
    }
}

impl Publisher {
    /// Publishes in the name of that instance of the operator.
    pub fn new(client: kube::Client, instance: &str) -> Self {
        let instance = Some(truncate(instance, MAX_REASON));
        Self { client, reporter: Reporter { controller: CONTROLLER.to_owned(), instance } }
    }

    /// Publishes what happened to `build`; returns how many events were written. What can't be written is logged: an
    /// event never holds a build up.
    pub async fn publish(&self, build: &ObjectReference, transitions: &[Transition]) -> u64 {
        let mut written = 0;
        if build.name.as_ref().is_some_and(|name| name.len() > MAX_NAME) {
            tracing::debug!("the object's name is too long for events");
            return written;
        }
        let publishing = async {
            for transition in transitions {
                // A recorder that is kept makes a series, with the first one's note, of what differs in the note alone: two
                // failures in a row would read as the first one twice.
                let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
                match recorder.publish(&event(transition, build), build).await {
                    Ok(()) => written += 1,
                    Err(error) => {
                        tracing::warn!(%error, reason = transition.reason, "can't publish an event");
                    }
                }
            }
        };
        if tokio::time::timeout(PUBLISH_TIMEOUT, publishing).await.is_err() {
            tracing::warn!(
                events = transitions.len(),
                "can't publish events: no answer from the API server in time"
            );
        }
        written
    }
}

fn event(transition: &Transition, build: &ObjectReference) -> Event {
    let pod = |pod: &PodRef| ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: build.namespace.clone(),
        name: Some(pod.name.clone()),
        uid: pod.uid.clone(),
        ..ObjectReference::default()
    };
    Event {
        type_: transition.kind,
        reason: transition.reason.clone(),
        note: Some(transition.note.clone()),
        action: transition.action.to_owned(),
        secondary: transition.pod.as_ref().map(pod),
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
