//! The part of the decision that is about the attempt that runs: its pod, its journal, its permit, its end. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kiln_api::v1alpha1::{AttemptStatus, QueueStatus};
use kiln_contract::control::{PERMIT_SECONDS, Permit, Stop};
use kiln_contract::journal::{BuildState, steps};
use kiln_contract::report::Outcome;
use kiln_contract::{Failure, FailureClass, reason};

use super::conditions::{Phase, reasons};
use super::decide::{Action, CreationFaultKind, Decider, Interruption, being_made};
use super::lifecycle::{self, Finish};
use super::observe::PodView;
use super::outcome::outcome;
use super::start::{Start, start};
use super::validate::Buildable;
use super::{kubelet, names, steps};
use crate::mutant;
use crate::queue::words;

/// Seconds after an order to stop before the kubelet is told to end the pod.
const STOP_GRACE: i64 = 45;
/// Seconds after an order to stop before a pod that is still there counts as lost: [`STOP_GRACE`], the pod's grace period
/// of 60 seconds, and some for a slow kubelet.
const LOST_AFTER: i64 = 150;
/// Seconds beyond the timeout after which an attempt that neither builder nor kubelet ended is ended from here.
const OVERDUE: i64 = super::pod::DEADLINE_MARGIN + 120;
/// Seconds between tries to make a pod where quota or a missing object stands in the way.
const TRY_AGAIN: i64 = 10;
/// Seconds that a permit must still be good for, or it is renewed: with a heartbeat every 20 seconds there is always one in
/// force.
const RENEW_BEFORE: i64 = 25;

/// The attempt has ended, so.
#[derive(Debug)]
pub(super) struct Ended(pub(super) Outcome);

impl Decider<'_> {
    /// Takes the attempt a step further, or finds that it has ended.
    pub(super) fn advance_attempt(&mut self) -> Result<Phase, Ended> {
        let Some(attempt) = self.s.attempts.last().cloned() else {
            return Ok(Phase::Finished);
        };
        let id = names::attempt_id(self.o.uid, self.s.run.unwrap_or_default(), attempt.number);
        let journal = self.o.journal.filter(|j| j.attempt.as_ref().is_none_or(|a| *a == id));
        if let Some(journal) = journal {
            steps::show(&mut self.s, journal);
        }
        let pushed = journal.and_then(|j| j.ready_to_tag.clone());
        if let (true, Some(image)) = (mutant!(PushedIsTagged), pushed) {
            return Err(Ended(Outcome::Succeeded(image)));
        }
        // One that only the watch shows may be another than was asked for: it counts once it was looked at.
        let known = attempt.pod_uid.as_deref().or(self.o.verified);
        let unchecked = attempt.pod_uid.is_none() && mutant!(UncheckedPod);
        let pod = self.o.pods.get(&attempt.pod_name);
        let pod = pod.filter(|p| known == Some(p.uid.as_str()) || unchecked);
        let Some(pod) = pod else {
            return match attempt.pod_uid {
                Some(_) if mutant!(PodMadeTwice) => self.make_pod(&attempt),
                Some(_) if mutant!(GoneIsSuccess) => Err(Ended(Outcome::Succeeded(gone_is_success()))),
                Some(_) => Err(Ended(outcome(&id, None, journal))),
                None => self.make_pod(&attempt),
            };
        };
        if attempt.pod_uid.is_none() {
            if let Some(attempt) = self.s.attempts.last_mut() {
                attempt.pod_uid = Some(pod.uid.clone());
            }
            if let Some(named) = &mut self.s.pod_ref {
                named.uid = Some(pod.uid.clone());
            }
        }
        self.s.queue = None;
        let stopping_for = attempt.stop_requested_at.as_ref().map(|t| self.now.as_second() - t.0.as_second());
        let given_up = stopping_for.is_some_and(|s| s > LOST_AFTER) && !pod.may_tag(self.now);
        // The registry has agreed that the tags are moved; the pod's end, seconds later, would say the same.
        let tagged =
            journal.is_some_and(|j| j.succeeded.is_some() && !j.gap && j.attempt.as_ref() == Some(&id));
        if pod.terminal || pod.is_lost(self.now) || given_up || tagged {
            return Err(Ended(outcome(&id, Some(pod), journal)));
        }
        if let Some(after) = pod.lost_after() {
            self.look_again((after + 1 - self.now.as_second()).clamp(1, 120));
        }
        if let Some(why) = self.stop_reason(pod) {
            return Ok(self.stop(pod, id, &why));
        }
        let build = match &self.o.desired.buildable {
            Buildable::Yes(build) => Some(&**build),
            _ => None,
        };
        let hindrance = kubelet::hindrance(self.o.warnings, build, pod);
        match start(pod, self.now, self.o.patience, hindrance.as_ref()) {
            Start::Failed(failure) => return Err(Ended(Outcome::Failed(failure))),
            Start::Waiting { reason, message, until } => {
                if let Some(until) = until {
                    self.look_again(until.as_second() - self.now.as_second());
                }
                if let Some(wait) = kubelet::due(pod, self.now.as_second()) {
                    self.look_again(if wait > 0 { wait } else { kubelet::LOOK_EVERY });
                }
                return Ok(Phase::active(&reason, message));
            }
            Start::Done => {}
        }
        self.permit(pod, id, journal);
        let created = pod.created.unwrap_or(self.now).as_second();
        self.look_again(
            (created + self.o.desired.timeout_seconds + OVERDUE - self.now.as_second()).clamp(1, 600),
        );
        Ok(running(pod, journal))
    }

    /// Tries to make the pod, unless it was tried a moment ago.
    fn make_pod(&mut self, attempt: &AttemptStatus) -> Result<Phase, Ended> {
        if let Some(interruption) = self.interruption() {
            // It may have been made all the same; then it is stopped as one that nobody wants.
            let failure = Failure::new(
                FailureClass::Cancelled,
                interruption.reason(),
                "stopped before its pod was made",
            );
            return Err(Ended(Outcome::Failed(failure)));
        }
        let create = Action::CreatePod { attempt: attempt.number };
        let started = attempt.started_at.0.as_second();
        let Some(fault) = self.o.creation else {
            self.actions.push(create);
            return Ok(Phase::active(reasons::STARTING, being_made(&attempt.pod_name)));
        };
        let left = fault.at.as_second() + TRY_AGAIN - self.now.as_second();
        let phase = match &fault.kind {
            CreationFaultKind::Terminal(failure) => return Err(Ended(Outcome::Failed(failure.clone()))),
            CreationFaultKind::Missing(failure)
                if self.now.as_second() >= started + self.o.patience.start =>
            {
                return Err(Ended(Outcome::Failed(failure.clone())));
            }
            CreationFaultKind::Missing(failure) => Phase::active(&failure.reason, failure.message.clone()),
            CreationFaultKind::Quota(words) => {
                self.s.queue = Some(QueueStatus { position: 0, reason: words::QUOTA.to_owned() });
                Phase::active(reasons::QUEUED, words.clone())
            }
        };
        if left <= 0 {
            self.actions.push(create);
        }
        self.look_again(left.max(1));
        Ok(phase)
    }

    /// Why the pod is to stop, if it is. What was said once stays said.
    fn stop_reason(&self, pod: &PodView) -> Option<String> {
        if let Some(said) = self.s.attempts.last().and_then(|a| a.stop_reason.clone()) {
            return Some(said);
        }
        if let Some(interruption) = self.interruption().filter(|_| !mutant!(PermitUnwanted)) {
            return Some(interruption.reason().to_owned());
        }
        let created = pod.created.unwrap_or(self.now).as_second();
        let overdue = self.now.as_second() > created + self.o.desired.timeout_seconds + OVERDUE;
        overdue.then(|| reason::TIMED_OUT.to_owned())
    }

    /// Stops the pod: asks, and after a while has the kubelet end it. It is not deleted, so that its log stays; only a pod
    /// that has no node, where there is nobody to end it and no log, is.
    fn stop(&mut self, pod: &PodView, attempt: String, why: &str) -> Phase {
        let now = self.now;
        let requested = match self.s.attempts.last_mut() {
            Some(attempt) => {
                attempt.stop_reason = Some(why.to_owned());
                attempt.stop_requested_at.get_or_insert(Time(now)).0.as_second()
            }
            None => now.as_second(),
        };
        if pod.node.is_none() || mutant!(DeleteToStop) {
            if pod.deletion.is_none() {
                self.actions.push(Action::DeletePod { pod: Box::new(pod.clone()) });
            }
        } else if pod.stop.as_ref().is_none_or(|s| s.attempt != attempt) {
            let stop = Stop { attempt, reason: why.to_owned() };
            self.actions.push(Action::Stop { pod: pod.name.clone(), stop });
        }
        let left = requested + STOP_GRACE - now.as_second();
        if left <= 0 && pod.node.is_some() && pod.active_deadline != Some(1) {
            self.actions.push(Action::Kill { pod: pod.name.clone() });
        }
        let lost = requested + LOST_AFTER + 1 - now.as_second();
        self.look_again(if left > 0 { left } else { lost.clamp(1, 30) });
        if why == reason::SUSPENDED {
            Phase::Suspended { stopping: true }
        } else {
            Phase::active(reasons::STOPPING, format!("pod {} was told to stop: {why}", pod.name))
        }
    }

    /// Lets the attempt move its tags, once its image is pushed and its pod is on record.
    fn permit(&mut self, pod: &PodView, attempt: String, journal: Option<&BuildState>) {
        let on_record = self.o.status.attempts.last().is_some_and(|a| a.pod_uid.as_ref() == Some(&pod.uid));
        let Some(journal) = journal.filter(|j| on_record && j.succeeded.is_none() && j.failure.is_none())
        else {
            return;
        };
        let Some(image) = &journal.ready_to_tag else { return };
        let now = self.now.as_second();
        let held = pod.permit.as_ref().filter(|p| p.attempt == attempt && p.digest == image.digest);
        let until = held.and(pod.permit_until).unwrap_or(0);
        // By the clock of its node no earlier than now: the line was written before it was read.
        let asked = journal.at.parse::<Timestamp>().unwrap_or(self.now).as_second();
        if until < now + RENEW_BEFORE {
            let seconds = if mutant!(EndlessPermit) { 3600 } else { PERMIT_SECONDS };
            let permit = Permit { attempt, digest: image.digest.clone(), expires: asked + seconds };
            self.actions.push(Action::Permit { pod: pod.name.clone(), permit, until: now + PERMIT_SECONDS });
        }
        self.look_again(PERMIT_SECONDS - RENEW_BEFORE);
    }

    /// Records the attempt's end, and with it the run's, unless another attempt is due.
    pub(super) fn conclude(&mut self, outcome: Outcome) {
        let failure = match outcome {
            Outcome::Succeeded(image) => {
                steps::close(&mut self.s, true);
                return self.finish(Finish::Succeeded(image));
            }
            Outcome::Failed(failure) => failure,
        };
        steps::close(&mut self.s, false);
        let stopped = self.s.attempts.last().and_then(|a| a.stop_reason.clone());
        let stopped = stopped.or_else(|| self.interruption().map(|i| i.reason().to_owned()));
        // A step that failed on its own before the order reached it: that is what the author wants to know.
        let own_end = !matches!(failure.class, FailureClass::Cancelled) && !lifecycle::is_retryable(&failure);
        match stopped.as_deref() {
            Some(reason::SUPERSEDED) => self.interrupt(Interruption::Superseded),
            Some(reason::SUSPENDED) => self.interrupt(Interruption::Suspended),
            Some(reason::CANCELLED) if !own_end || failure.class == FailureClass::Timeout => {
                self.interrupt(Interruption::Cancelled);
            }
            Some(reason::TIMED_OUT) if !own_end => self.finish(Finish::Failed(Failure {
                class: FailureClass::Timeout,
                reason: reason::TIMED_OUT.to_owned(),
                message: format!("the attempt did not end within {} seconds", self.o.desired.timeout_seconds),
                ..failure
            })),
            _ if self.may_retry(&failure) => {
                lifecycle::end_attempt(&mut self.s, Some(&failure), self.now);
            }
            _ => self.finish(Finish::Failed(failure)),
        }
    }
}

/// What [`mutant!`] `GoneIsSuccess` makes up.
fn gone_is_success() -> kiln_contract::report::Pushed {
    kiln_contract::report::Pushed { reference: String::new(), digest: "sha256:0".to_owned(), size: 0 }
}

/// Where an attempt stands whose containers run.
fn running(pod: &PodView, journal: Option<&BuildState>) -> Phase {
    let Some(journal) = journal.filter(|j| !j.steps.is_empty()) else {
        return Phase::active(reasons::BUILDING, format!("pod {} runs", pod.name));
    };
    if journal.ready_to_tag.is_some() {
        return Phase::active(reasons::TAGGING, "the image is pushed; its tags are being moved");
    }
    if journal.pushing {
        return Phase::active(reasons::PUSHING, "all steps are done; the image is being pushed");
    }
    let total = journal.steps.len();
    let running = journal.running();
    let text = |number: u32| journal.steps.get(number as usize - 1).map(|step| &step.plan.instruction);
    let words = match running[..] {
        [] => format!("{} of {total} steps are done", journal.done()),
        [number] => format!("step {number}/{total}: {}", text(number).map_or("", String::as_str)),
        _ => format!("{} of {total} run", steps(&running)),
    };
    Phase::active(reasons::BUILDING, words)
}
