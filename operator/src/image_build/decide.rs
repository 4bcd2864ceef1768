//! The decision: what is done next, and what the status says then. Pure: `(now, observed) -> decision`.
//!
//! The status is written before anything is done, with the object's resourceVersion: a pod is made only for an attempt
//! that is on record, so two leaders, a crash or a stale cache can't make two.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kiln_api::ImageBuildStatus;
use kiln_api::v1alpha1::{QueueStatus, RunResult, condition};
use kiln_contract::control::{Permit, Stop};
use kiln_contract::journal::BuildState;
use kiln_contract::{Failure, FailureClass, reason};

use super::attempt::Ended;
use super::conditions::{self, Phase, reasons};
use super::kubelet::Warning;
use super::lifecycle::{self, Finish};
use super::names;
use super::observe::PodView;
use super::start::Patience;
use super::validate::{Buildable, Desired};
use crate::mutant;
use crate::queue::Place;

/// Seconds before the next attempt after the first, and after every further infrastructure fault.
const BACKOFF: [i64; 2] = [10, 30];
/// Seconds before the next attempt when the last one may hold a permit that nobody can see any more (its pod is gone).
const PERMIT_BACKOFF: i64 = kiln_contract::control::PERMIT_SECONDS + 30;

/// All that the decision looks at.
#[derive(Debug)]
pub struct Observed<'a> {
    /// The object's name, namespace and UID.
    pub name: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its UID.
    pub uid: &'a str,
    /// `metadata.generation`.
    pub generation: i64,
    /// The run that the annotation `kiln.build/cancel` names.
    pub cancel: Option<i64>,
    /// The annotation `kiln.build/rebuild`.
    pub rebuild: Option<&'a str>,
    /// What it asks for.
    pub desired: &'a Desired,
    /// Its status as stored.
    pub status: &'a ImageBuildStatus,
    /// All pods that it controls, by name.
    pub pods: &'a BTreeMap<String, PodView>,
    /// The journal of the attempt that runs.
    pub journal: Option<&'a BuildState>,
    /// What Events say of the attempt's pod, where it doesn't start; the newest first.
    pub warnings: &'a [Warning],
    /// Whether there is a place for another attempt.
    pub slot: Slot,
    /// How the last try to make the attempt's pod failed.
    pub creation: Option<&'a CreationFault>,
    /// What the API server said of the run's pod before it was made; nothing when it was not asked.
    pub preflight: Option<&'a Result<(), Failure>>,
    /// UID of the pod that was made last, once it was found to be the one that was asked for.
    pub verified: Option<&'a str>,
    /// How long a pod may take.
    pub patience: Patience,
}

/// Whether there is a place among the builds that run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// Nobody has asked: the decision says [`Decision::ask_for_slot`] when it needs to know.
    Unknown,
    /// Yes, and it is taken.
    Granted,
    /// No; it waits there.
    Queued(Place),
}

/// The attempt's pod could not be made.
#[derive(Debug, Clone, PartialEq)]
pub struct CreationFault {
    /// When it was tried.
    pub at: Timestamp,
    /// What kind of fault.
    pub kind: CreationFaultKind,
}

/// What kind of fault.
#[derive(Debug, Clone, PartialEq)]
pub enum CreationFaultKind {
    /// It will not go away by trying again.
    Terminal(Failure),
    /// The namespace's quota is used up: the API server's words.
    Quota(String),
    /// Something that the pod names does not exist (yet), or a pod that is to go is still there.
    Missing(Failure),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Ask whether the run's pod would be taken, while it waits for a place.
    Preflight,
    /// Make request and pod of the attempt that the status names last.
    CreatePod {
        /// Its number.
        attempt: i32,
    },
    /// Let the attempt move its tags.
    Permit {
        /// The pod.
        pod: String,
        /// What to hand it.
        permit: Permit,
        /// When that is void at the latest, by the API server's clock.
        until: i64,
    },
    /// Tell the attempt to stop.
    Stop {
        /// The pod.
        pod: String,
        /// What to hand it.
        stop: Stop,
    },
    /// Let the kubelet end the pod.
    Kill {
        /// The pod.
        pod: String,
    },
    /// Delete a pod that is terminal and old, or that never had a node; and its request.
    DeletePod {
        /// The pod, as it was seen.
        pod: Box<PodView>,
    },
}

/// The decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The status to be.
    pub status: ImageBuildStatus,
    /// What is to be done once the status is stored, in this order.
    pub actions: Vec<Action>,
    /// When to look again, where no event will say so.
    pub again: Option<Duration>,
    /// Nothing of this counts: ask for a slot and decide again.
    pub ask_for_slot: bool,
}

/// A decision in the making.
#[derive(Debug)]
pub(super) struct Decider<'a> {
    pub(super) now: Timestamp,
    pub(super) o: &'a Observed<'a>,
    pub(super) s: ImageBuildStatus,
    pub(super) actions: Vec<Action>,
    pub(super) again: Option<i64>,
    pub(super) ask_for_slot: bool,
}

/// Why a run is to end early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interruption {
    Cancelled,
    Suspended,
    Superseded,
}

impl Interruption {
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Cancelled => reason::CANCELLED,
            Self::Suspended => reason::SUSPENDED,
            Self::Superseded => reason::SUPERSEDED,
        }
    }
}

/// Decides.
pub fn decide(now: Timestamp, observed: &Observed<'_>) -> Decision {
    // Stored times have whole seconds; computed ones must compare equal to them.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let mut d = Decider {
        now,
        o: observed,
        s: observed.status.clone(),
        actions: Vec::new(),
        again: None,
        ask_for_slot: false,
    };
    d.s.source_missing_since = None;
    d.clean_up();
    let phase = d.advance();
    conditions::set(&mut d.s, &phase, observed.generation, now);
    let again = d.again.map(|seconds| Duration::from_secs(seconds.max(1).unsigned_abs()));
    Decision { status: d.s, actions: d.actions, again, ask_for_slot: d.ask_for_slot }
}

impl Decider<'_> {
    /// Goes on until the status says where things stand. A run may end and the next begin and end (with an invalid
    /// Dockerfile, say) within one decision; more than that never happens.
    fn advance(&mut self) -> Phase {
        for _ in 0..4 {
            let goes_on = self.s.completion_time.is_none() || mutant!(EndedRunDecidedAgain);
            let phase = if self.s.run.is_some() && goes_on { self.advance_run() } else { self.next_run() };
            if let Some(phase) = phase {
                return phase;
            }
        }
        Phase::Finished
    }

    /// Begins a run (`None`), or says why there is none to begin.
    fn next_run(&mut self) -> Option<Phase> {
        let desired = self.o.desired;
        let suspended = self.s.history.last().is_some_and(|h| h.result == RunResult::Suspended);
        let rebuild = self.rebuild_wanted();
        let changed = self.s.input_digest.as_ref() != Some(&desired.input_digest) && !mutant!(EditIgnored);
        let fresh = self.s.run.is_none();
        let refused = self.refused_otherwise();
        let missing = match &desired.buildable {
            Buildable::NotYet(failure) => Some(failure),
            _ => None,
        };
        // A source that goes away after its image was built takes nothing from the image.
        let edited = self.s.observed_generation != self.o.generation;
        let waited = conditions::find(&self.s, condition::RECONCILING)
            .filter(|c| c.status == "True" && missing.is_some_and(|failure| c.reason == failure.reason));
        let gone = missing.is_some() && !edited && waited.is_none() && !rebuild && !suspended && !fresh;
        if gone || !(fresh || changed || rebuild || suspended || refused) {
            return Some(Phase::Finished);
        }
        if desired.suspend {
            return Some(Phase::Suspended { stopping: false });
        }
        if let Some(failure) = missing {
            // Not the condition's time: `Reconciling` may have been True for something else before. An object that was
            // edited may name another source.
            let since = self.o.status.source_missing_since.as_ref().filter(|_| waited.is_some() && !edited);
            let since = since.map_or(self.now, |t| t.0);
            let left = since.as_second() + self.o.patience.start - self.now.as_second();
            if left > 0 {
                self.look_again(left);
                self.s.source_missing_since = Some(Time(since));
                return Some(Phase::active(&failure.reason, failure.message.clone()));
            }
        }
        lifecycle::begin_run(&mut self.s, desired, self.o.rebuild, self.now);
        None
    }

    /// Whether the latest run was refused, and policies or Pod Security say something else by now: it is tried again. A refusal
    /// that would be the same word for word stays as it is.
    fn refused_otherwise(&self) -> bool {
        let Some(failure) = self.s.failure.as_ref().filter(|f| is_refusal(&f.reason)) else { return false };
        let other = self.s.policy.as_ref().is_some_and(|p| p.digest != self.o.desired.policy.digest);
        let same = |f: &Failure| f.reason == failure.reason && f.message == failure.message;
        other && !matches!(&self.o.desired.buildable, Buildable::No(f) if same(f))
    }

    /// Takes the run a step further: says where it stands, or ends it (`None`).
    fn advance_run(&mut self) -> Option<Phase> {
        if self.s.attempts.last().is_some_and(|a| a.finished_at.is_none()) {
            return match self.advance_attempt() {
                Ok(phase) => Some(phase),
                Err(Ended(outcome)) => {
                    self.conclude(outcome);
                    None
                }
            };
        }
        if let Some(interruption) = self.interruption() {
            self.interrupt(interruption);
            return None;
        }
        match &self.o.desired.buildable {
            Buildable::Yes(_) => {}
            Buildable::No(failure) | Buildable::NotYet(failure) => {
                self.finish(Finish::Failed(failure.clone()));
                return None;
            }
        }
        if let (Some(Err(failure)), true) = (self.o.preflight, self.s.attempts.is_empty()) {
            self.finish(Finish::Failed(failure.clone()));
            return None;
        }
        Some(self.next_attempt())
    }

    /// Begins the next attempt, or says what it waits for.
    fn next_attempt(&mut self) -> Phase {
        if let Some(last) = self.s.attempts.last() {
            let ended = last.finished_at.as_ref().map_or(self.now, |t| t.0);
            let backoff = BACKOFF[usize::from(self.s.attempts.len() > 1)];
            let hidden_permit = self.o.journal.is_some_and(|j| j.ready_to_tag.is_some())
                && !self.o.pods.contains_key(&last.pod_name);
            let wait = if hidden_permit { backoff.max(PERMIT_BACKOFF) } else { backoff };
            let left = ended.as_second() + wait - self.now.as_second();
            if left > 0 {
                let message = format!(
                    "attempt {} ended as {}: {}; the next one follows {wait} seconds after it",
                    last.number,
                    last.reason.as_deref().unwrap_or_default(),
                    last.message.as_deref().unwrap_or_default()
                );
                if !mutant!(ForgetToLookAgain) {
                    self.look_again(left);
                }
                return Phase::active(reasons::RETRYING, message);
            }
        }
        let at_work = self.o.pods.values().find(|p| !p.terminal && !p.is_lost(self.now));
        if let Some(pod) = at_work.filter(|_| !mutant!(IgnoreLivePods)) {
            let message = format!("waits for pod {} of an earlier attempt to end", pod.name);
            self.look_again(30);
            return Phase::active(reasons::STOPPING, message);
        }
        match &self.o.slot {
            Slot::Unknown => {
                self.ask_for_slot = true;
                Phase::active(reasons::QUEUED, "")
            }
            Slot::Queued(place) => {
                self.s.queue =
                    Some(QueueStatus { position: place.position, reason: place.wait.word().to_owned() });
                self.look_again(place.look_again());
                if self.o.preflight.is_none() && self.s.attempts.is_empty() {
                    self.actions.push(Action::Preflight);
                }
                Phase::active(
                    reasons::QUEUED,
                    format!("waits for a place: {}; number {} in the queue", place.wait, place.position),
                )
            }
            Slot::Granted => {
                let number = self.s.attempts.last().map_or(1, |a| a.number + 1);
                let run = self.s.run.unwrap_or_default();
                let name = names::pod_name(self.o.name, self.o.uid, run, number);
                let message = being_made(&name);
                lifecycle::begin_attempt(&mut self.s, name, self.now);
                self.actions.push(Action::CreatePod { attempt: number });
                Phase::active(reasons::STARTING, message)
            }
        }
    }

    /// Why the run is to end early, if it is.
    pub(super) fn interruption(&self) -> Option<Interruption> {
        let run = self.s.run;
        let live = self.s.attempts.last().is_some_and(|a| a.finished_at.is_none() && a.pod_uid.is_some());
        // While the source is missing nobody knows whether the input changed; what runs goes on.
        let unknown = live && matches!(self.o.desired.buildable, Buildable::NotYet(_));
        if self.o.cancel.is_some() && self.o.cancel == run {
            Some(Interruption::Cancelled)
        } else if self.o.desired.suspend {
            Some(Interruption::Suspended)
        } else if self.rebuild_wanted()
            || (!unknown && self.s.input_digest.as_ref() != Some(&self.o.desired.input_digest))
        {
            Some(Interruption::Superseded)
        } else {
            None
        }
    }

    fn rebuild_wanted(&self) -> bool {
        self.o.rebuild.is_some() && self.o.rebuild != self.s.last_handled_rebuild.as_deref()
    }

    /// Ends the run for that reason.
    pub(super) fn interrupt(&mut self, interruption: Interruption) {
        let run = self.s.run.unwrap_or_default();
        self.finish(match interruption {
            Interruption::Cancelled => Finish::Cancelled(Failure::new(
                FailureClass::Cancelled,
                reason::CANCELLED,
                format!("run {run} was cancelled by the annotation kiln.build/cancel; to build again, edit the object or change the annotation kiln.build/rebuild"),
            )),
            Interruption::Suspended => Finish::Suspended,
            Interruption::Superseded => Finish::Superseded,
        });
    }

    pub(super) fn finish(&mut self, finish: Finish) {
        lifecycle::finish_run(&mut self.s, finish, self.o.namespace, self.now);
    }

    /// Whether another attempt is due after `failure`, which is not recorded yet.
    pub(super) fn may_retry(&self, failure: &Failure) -> bool {
        let left = self.s.attempts.len() <= self.o.desired.retries || mutant!(RetryForever);
        lifecycle::is_retryable(failure) && left
    }

    /// Deletes what is kept no longer, and stops what should not run: pods of attempts that are decided.
    fn clean_up(&mut self) {
        let current = self.s.attempts.last().filter(|a| a.finished_at.is_none()).map(|a| a.pod_name.clone());
        let oldest = self.s.run.map_or(0, |run| run - i64::try_from(lifecycle::HISTORY).unwrap_or(0));
        for pod in self.o.pods.values().filter(|p| current.as_ref() != Some(&p.name) && p.deletion.is_none())
        {
            if pod.terminal {
                let ended = pod.ended.or(pod.created).unwrap_or(self.now);
                let left = ended.as_second() + self.o.desired.pod_ttl_seconds - self.now.as_second();
                if left <= 0 || run_of(pod, self.o.uid).is_some_and(|run| run <= oldest) {
                    self.actions.push(Action::DeletePod { pod: Box::new(pod.clone()) });
                } else {
                    self.look_again(left);
                }
            } else if self.ends_by_itself(pod) {
                self.look_again(30);
            } else if pod.node.is_none() {
                self.actions.push(Action::DeletePod { pod: Box::new(pod.clone()) });
            } else {
                if pod.stop.is_none() {
                    let stop = Stop {
                        attempt: pod.attempt.clone().unwrap_or_default(),
                        reason: reason::SUPERSEDED.to_owned(),
                    };
                    self.actions.push(Action::Stop { pod: pod.name.clone(), stop });
                }
                if pod.active_deadline != Some(1) {
                    self.actions.push(Action::Kill { pod: pod.name.clone() });
                }
            }
        }
    }

    /// Whether it is the pod of an attempt that has tagged its image: it ends within seconds, and gets a minute for it.
    fn ends_by_itself(&self, pod: &PodView) -> bool {
        const PATIENCE: i64 = 60;
        self.s.attempts.last().is_some_and(|a| {
            a.pod_name == pod.name
                && a.reason.as_deref() == Some(lifecycle::SUCCEEDED)
                && a.finished_at.as_ref().is_some_and(|t| self.now.as_second() - t.0.as_second() <= PATIENCE)
        })
    }

    /// Looks again in so many seconds at the latest.
    pub(super) fn look_again(&mut self, seconds: i64) {
        self.again = Some(self.again.map_or(seconds, |s| s.min(seconds)));
    }
}

/// Whether a failure with that reason is a refusal that ends when the platform changes its rules.
pub(super) fn is_refusal(why: &str) -> bool {
    matches!(why, reason::POLICY_REFUSED | reason::POD_REFUSED)
}

/// What is said while there is no pod yet.
pub(super) fn being_made(pod: &str) -> String {
    format!("pod {pod} is being made")
}

/// The run that a pod is of.
fn run_of(pod: &PodView, uid: &str) -> Option<i64> {
    let rest = pod.attempt.as_deref()?.strip_prefix(uid)?.strip_prefix('-')?;
    rest.split_once('-')?.0.parse().ok()
}
