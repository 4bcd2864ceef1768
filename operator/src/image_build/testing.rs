//! Helpers of the tests of this module's parts.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kiln_api::ImageBuildStatus;
use kiln_api::v1alpha1::{HistoryEntry, PolicyStatus, RunResult, SourceStatus};
use kiln_contract::journal::{BuildState, Event, Line, PlannedStep};
use kiln_contract::report::{Outcome, Pushed, Report};
use kiln_contract::request::{Isolation, Source};
use kiln_contract::{Failure, FailureClass};

use crate::config::Config;
use crate::queue::{Place, Wait};

use super::conditions;
use super::decide::{Action, CreationFault, Decision, Observed, Slot, decide};
use super::kubelet::Warning;
use super::lifecycle::{Finish, finish_run};
use super::names;
use super::observe::{ContainerView, PodView, Terminated};
use super::pod::Blueprint;
use super::start::Patience;
use super::validate::{Build, Buildable, Desired};

/// Seconds after the epoch.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("a time")
}

/// So many builds are before it, itself included, of 20 that may run.
pub fn queued(position: i32) -> Slot {
    Slot::Queued(Place { position, wait: Wait::Total(20) })
}

/// A status whose only run ended so.
pub fn finished(result: RunResult) -> ImageBuildStatus {
    let mut status =
        ImageBuildStatus { run: Some(1), start_time: Some(Time(at(0))), ..ImageBuildStatus::default() };
    let failure = Failure::new(FailureClass::User, "StepFailed", "m");
    let finish = match result {
        RunResult::Succeeded => Finish::Succeeded(pushed()),
        RunResult::Failed => Finish::Failed(failure),
        RunResult::Cancelled => Finish::Cancelled(failure),
        RunResult::Suspended => Finish::Suspended,
        RunResult::Superseded => Finish::Superseded,
    };
    finish_run(&mut status, finish, "ns", at(0));
    assert_eq!(status.history.last().map(|h: &HistoryEntry| h.result), Some(result));
    status
}

/// What kstatus (cli-utils, generic.go) makes of an object of that generation.
pub fn kstatus(status: &ImageBuildStatus, generation: i64) -> &'static str {
    let is = |kind: &str, value: &str| conditions::find(status, kind).is_some_and(|c| c.status == value);
    if status.observed_generation != generation || is("Reconciling", "True") {
        "InProgress"
    } else if is("Stalled", "True") {
        "Failed"
    } else if is("Ready", "False") || is("Ready", "Unknown") {
        "InProgress"
    } else {
        "Current"
    }
}

pub fn pushed() -> Pushed {
    Pushed { reference: "r.x/a:1".into(), digest: "sha256:1".into(), size: 7 }
}

/// A desired state with that input.
pub fn desired(digest: &str) -> Desired {
    Desired {
        input_digest: digest.into(),
        source: Some(SourceStatus { revision: None, digest: Some("sha256:s".into()) }),
        isolation: Isolation::UserNamespace,
        output: Some("r.x/a:1".into()),
        policy: PolicyStatus { names: vec!["default".into()], digest: "sha256:p".into() },
        timeout_seconds: 3600,
        retries: 2,
        pod_ttl_seconds: 86_400,
        suspend: false,
        buildable: Buildable::Yes(Box::new(Build {
            source: Source::Files(vec![]),
            source_secret: None,
            context_dir: ".".into(),
            dockerfile: "Dockerfile".into(),
            target: None,
            args: BTreeMap::new(),
            secrets: vec![],
            ssh: vec![],
            labels: BTreeMap::new(),
            references: vec!["r.x/a:1".into()],
            compression: kiln_contract::request::Compression::default(),
            cache: None,
            cache_claim: None,
            registries: Default::default(),
            service_account: "default".into(),
            resources: Default::default(),
            entitlements: vec![],
            policy: Default::default(),
            priority_class: None,
        })),
    }
}

/// The blueprint of run 1, attempt 1 of `app`.
pub fn blueprint<'a>(
    desired: &'a Desired,
    build: &'a Build,
    owner: &'a OwnerReference,
    config: &'a Config,
) -> Blueprint<'a> {
    Blueprint {
        object: "app",
        namespace: "ns",
        owner,
        name: "app-1",
        attempt: "u-1-1",
        build,
        desired,
        secrets: &[],
        config,
    }
}

/// One object and its surroundings; `decide` writes its status back, as a reconcile does.
pub struct World {
    pub now: i64,
    pub generation: i64,
    pub cancel: Option<i64>,
    pub rebuild: Option<String>,
    pub desired: Desired,
    pub status: ImageBuildStatus,
    pub pods: BTreeMap<String, PodView>,
    pub journal: Option<BuildState>,
    pub warnings: Vec<Warning>,
    pub slot: Slot,
    pub creation: Option<CreationFault>,
    pub preflight: Option<Result<(), Failure>>,
    pub verified: Option<String>,
}

impl World {
    pub fn new() -> Self {
        Self {
            now: 1000,
            generation: 1,
            cancel: None,
            rebuild: None,
            desired: desired("v1:a"),
            status: ImageBuildStatus { observed_generation: -1, ..ImageBuildStatus::default() },
            pods: BTreeMap::new(),
            journal: None,
            warnings: Vec::new(),
            slot: Slot::Granted,
            creation: None,
            preflight: None,
            verified: None,
        }
    }

    /// Decides and stores the status. Deciding again on it must change nothing (no hot loop).
    pub fn decide(&mut self) -> Decision {
        let first = self.look();
        self.status = first.status.clone();
        assert_eq!(self.look().status.conditions, first.status.conditions, "the status is stable");
        first
    }

    /// Decides without storing.
    pub fn look(&self) -> Decision {
        decide(
            at(self.now),
            &Observed {
                name: "app",
                namespace: "ns",
                uid: "u",
                generation: self.generation,
                cancel: self.cancel,
                rebuild: self.rebuild.as_deref(),
                desired: &self.desired,
                status: &self.status,
                pods: &self.pods,
                journal: self.journal.as_ref(),
                warnings: &self.warnings,
                slot: self.slot.clone(),
                creation: self.creation.as_ref(),
                preflight: self.preflight.as_ref(),
                verified: self.verified.as_deref(),
                patience: Patience { scheduling: 3600, start: 300 },
            },
        )
    }

    /// The pod of the latest attempt as the API server has it after creation, found to be the one that was asked for.
    pub fn create_pod(&mut self) -> &mut PodView {
        let attempt = self.status.attempts.last().expect("an attempt");
        let id = names::attempt_id("u", self.status.run.expect("a run"), attempt.number);
        let pod = PodView {
            namespace: "ns".into(),
            name: attempt.pod_name.clone(),
            uid: format!("pod-{id}"),
            owner: Some("u".into()),
            attempt: Some(id),
            created: Some(at(self.now)),
            ..PodView::default()
        };
        let pod = self.pods.entry(pod.name.clone()).or_insert(pod);
        self.verified = Some(pod.uid.clone());
        pod
    }

    /// Begins a run and brings its pod to where both containers run and the pod is on record.
    pub fn run_pod(&mut self) {
        self.decide();
        let now = self.now;
        let pod = self.create_pod();
        pod.node = Some("n".into());
        pod.scheduled = Some(at(now));
        pod.courier.running = true;
        pod.build.running = true;
        self.decide();
    }

    pub fn pod(&mut self) -> &mut PodView {
        let name = self.status.attempts.last().expect("an attempt").pod_name.clone();
        self.pods.get_mut(&name).expect("its pod")
    }

    pub fn attempt_id(&self) -> String {
        let number = self.status.attempts.last().expect("an attempt").number;
        names::attempt_id("u", self.status.run.expect("a run"), number)
    }

    /// Ends the pod with that report.
    pub fn report(&mut self, outcome: Outcome) {
        let report = Report { version: kiln_contract::VERSION, attempt: self.attempt_id(), outcome };
        let ended = Terminated { exit_code: 0, reason: "Completed".into(), message: report.to_json() };
        let now = self.now;
        let pod = self.pod();
        pod.terminal = true;
        pod.ended = Some(at(now));
        pod.courier = ContainerView { terminated: Some(ended), ..ContainerView::default() };
        pod.build = ContainerView { terminated: Some(Terminated::default()), ..ContainerView::default() };
    }

    /// Status of `Ready` and its reason.
    pub fn ready(&self) -> String {
        let ready = conditions::find(&self.status, "Ready").expect("Ready");
        format!("{} {}", ready.status, ready.reason)
    }

    /// What `Ready` says.
    pub fn message(&self) -> String {
        conditions::find(&self.status, "Ready").expect("Ready").message.clone()
    }

    pub fn kstatus(&self) -> &'static str {
        kstatus(&self.status, self.generation)
    }
}

/// The names of actions, for tables.
pub fn kinds(decision: &Decision) -> Vec<&'static str> {
    let kind = |a: &Action| match a {
        Action::Preflight => "preflight",
        Action::CreatePod { .. } => "create",
        Action::Permit { .. } => "permit",
        Action::Stop { .. } => "stop",
        Action::Kill { .. } => "kill",
        Action::DeletePod { .. } => "delete",
    };
    decision.actions.iter().map(kind).collect()
}

/// A failed outcome.
pub fn failed(class: FailureClass, why: &str) -> Outcome {
    Outcome::Failed(Failure::new(class, why, "m"))
}

/// A journal of the world's latest attempt.
pub fn journal(world: &World, events: Vec<Event>) -> BuildState {
    let mut state = BuildState::default();
    let started = Event::CourierStarted { attempt: world.attempt_id() };
    for (seq, event) in (1..).zip([started].into_iter().chain(events)) {
        state.apply(&Line { v: 1, seq, at: "2026-01-01T00:00:00Z".into(), event });
    }
    state
}

/// Two steps.
pub fn plan() -> Event {
    let step = |line| PlannedStep { stage: "0".into(), line, instruction: format!("RUN {line}") };
    Event::Planned { steps: vec![step(1), step(2)] }
}

/// Holds a file of the repository against what it should be; writes it instead where `KILN_WRITE=yes` (`scripts/reference`).
pub fn generated(path: &str, text: &str) {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    if std::env::var_os("KILN_WRITE").is_some_and(|v| v == "yes") {
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        std::fs::write(&file, text).expect("written");
    }
    let there = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(there == text, "{path} is not what the code says; run scripts/reference and commit the result");
}
