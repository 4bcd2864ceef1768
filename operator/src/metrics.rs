//! Metrics in the OpenMetrics text format. Labels are words of fixed sets, never names of objects or namespaces.

use std::time::Duration;

use jiff::Timestamp;
use kiln_api::ImageBuildStatus;
use kiln_api::v1alpha1::{FailureClass, RunResult, condition};
use kiln_contract::reason;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::image_build::catalog;
use crate::image_build::conditions::{self, reasons};
use crate::image_build::error::ReconcileError;
use crate::image_build::events::{begun_attempts, ended_runs};
use crate::queue::words;
use crate::run_phases::{RunPhase, cached_steps, run_phases};
use crate::turns::Kind;

/// Content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// From a step that was cached to the longest builds that are usual; what takes longer is in `+Inf`.
const RUN_SECONDS: [f64; 14] =
    [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0];
/// From a reconcile that writes nothing to the timeout of an API call.
const RECONCILE_SECONDS: [f64; 12] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0];

/// How a run can end.
const RESULTS: [RunResult; 5] = [
    RunResult::Succeeded,
    RunResult::Failed,
    RunResult::Cancelled,
    RunResult::Suspended,
    RunResult::Superseded,
];
/// The classes of runs that failed.
const CLASSES: [FailureClass; 8] = [
    FailureClass::User,
    FailureClass::Source,
    FailureClass::Registry,
    FailureClass::Policy,
    FailureClass::Infrastructure,
    FailureClass::OutOfMemory,
    FailureClass::Evicted,
    FailureClass::Timeout,
];
/// The class of runs that ended without a failure.
const NO_CLASS: &str = "None";

/// Names and values of labels.
type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Where an ImageBuild stands, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildPhase {
    /// It starts, waits for its source, or is tried again.
    Pending,
    /// It waits for a place or for quota.
    Queued,
    /// Its steps run, or its image is pushed.
    Building,
    /// `spec.suspend` holds it.
    Suspended,
    /// Its tags name its image.
    Succeeded,
    /// Its latest run ended badly or was cancelled.
    Failed,
}

impl BuildPhase {
    const ALL: [Self; 6] =
        [Self::Pending, Self::Queued, Self::Building, Self::Suspended, Self::Succeeded, Self::Failed];

    /// What the conditions say.
    pub fn of(status: &ImageBuildStatus) -> Self {
        let ready = conditions::find(status, condition::READY);
        match ready.map(|c| (c.status.as_str(), c.reason.as_str())) {
            Some(("True", _)) => Self::Succeeded,
            Some((_, reasons::SUSPENDED)) => Self::Suspended,
            Some(("False", _)) => Self::Failed,
            Some((_, reasons::QUEUED)) => Self::Queued,
            Some((_, reasons::BUILDING | reasons::PUSHING | reasons::TAGGING)) => Self::Building,
            _ => Self::Pending,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Queued => "queued",
            Self::Building => "building",
            Self::Suspended => "suspended",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// What a run that has not ended waits for, as a label: the words of `status.queue.reason` and of conditions.
const WAITS: [&str; 9] = [
    words::TOTAL,
    words::NAMESPACE,
    words::POLICY,
    words::QUOTA,
    reasons::UNSCHEDULABLE,
    reasons::WAITING_FOR_SECRET,
    reasons::WAITING_FOR_CLAIM,
    reason::SOURCE_NOT_FOUND,
    reasons::RETRYING,
];

/// What a build waits for, if it does.
fn wait_of(status: &ImageBuildStatus) -> Option<&'static str> {
    let ready = conditions::find(status, condition::READY).filter(|c| c.status == "Unknown")?;
    let word = match (ready.reason.as_str(), &status.queue) {
        (reasons::QUEUED, Some(queue)) => &queue.reason,
        _ => &ready.reason,
    };
    WAITS.into_iter().find(|wait| wait == word)
}

/// What is written to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// The status of an ImageBuild.
    Status,
    /// A builder pod, made or deleted.
    Pod,
    /// A request, made or deleted.
    ConfigMap,
    /// Permit, stop or deadline of a pod.
    Annotation,
    /// An event.
    Event,
}

impl Write {
    const ALL: [Self; 5] = [Self::Status, Self::Pod, Self::ConfigMap, Self::Annotation, Self::Event];

    fn word(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Pod => "pod",
            Self::ConfigMap => "configmap",
            Self::Annotation => "annotation",
            Self::Event => "event",
        }
    }
}

/// All metrics of the operator.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    builds: Family<Labels<1>, Gauge>,
    waiting: Family<Labels<1>, Gauge>,
    reconciles: Family<Labels<1>, Counter>,
    reconcile_errors: Family<Labels<1>, Counter>,
    reconcile_duration: Histogram,
    reconcile_wait: Family<Labels<1>, Histogram, fn() -> Histogram>,
    runs: Family<Labels<2>, Counter>,
    failures: Family<Labels<1>, Counter>,
    run_duration: Family<Labels<1>, Histogram, fn() -> Histogram>,
    phase_duration: Family<Labels<1>, Histogram, fn() -> Histogram>,
    steps: Family<Labels<1>, Counter>,
    oldest: Family<Labels<1>, Gauge>,
    attempts: Family<Labels<1>, Counter>,
    queue: Gauge,
    followers: Gauge,
    writes: Family<Labels<1>, Counter>,
    leader: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let run_histogram: fn() -> Histogram = || Histogram::new(RUN_SECONDS);
        let mut metrics = Self {
            registry: Registry::with_prefix("kiln"),
            builds: Family::default(),
            waiting: Family::default(),
            reconciles: Family::default(),
            reconcile_errors: Family::default(),
            reconcile_duration: Histogram::new(RECONCILE_SECONDS),
            reconcile_wait: Family::new_with_constructor(|| Histogram::new(RECONCILE_SECONDS)),
            runs: Family::default(),
            failures: Family::default(),
            run_duration: Family::new_with_constructor(run_histogram),
            phase_duration: Family::new_with_constructor(run_histogram),
            steps: Family::default(),
            oldest: Family::default(),
            attempts: Family::default(),
            queue: Gauge::default(),
            followers: Gauge::default(),
            writes: Family::default(),
            leader: Gauge::default(),
        };
        metrics.register();
        // Series that are there from the start: the first increase of one that appears later is not seen as one.
        metrics.show_builds(Timestamp::UNIX_EPOCH, std::iter::empty());
        for write in Write::ALL {
            drop(metrics.writes.get_or_create(&[("kind", write.word())]));
        }
        for result in ["ok", "error"] {
            drop(metrics.reconciles.get_or_create(&[("result", result)]));
        }
        for result in RESULTS {
            drop(metrics.run_duration.get_or_create(&[("result", word(result))]));
        }
        drop(metrics.runs.get_or_create(&[("result", word(RunResult::Succeeded)), ("class", NO_CLASS)]));
        for failed in CLASSES {
            drop(
                metrics.runs.get_or_create(&[("result", word(RunResult::Failed)), ("class", class(failed))]),
            );
        }
        for entry in catalog::FAILURES {
            drop(metrics.failures.get_or_create(&[("reason", entry.word)]));
        }
        for phase in RunPhase::ALL {
            drop(metrics.phase_duration.get_or_create(&[("phase", phase.word())]));
        }
        for result in ["cached", "executed"] {
            drop(metrics.steps.get_or_create(&[("result", result)]));
        }
        for kind in [Kind::First, Kind::Other] {
            drop(metrics.reconcile_wait.get_or_create(&[("kind", turn(kind))]));
        }
        for kind in ["first", "retry"] {
            drop(metrics.attempts.get_or_create(&[("kind", kind)]));
        }
        metrics
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        let seconds = || Unit::Seconds;
        r.register("build", "The operator", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        r.register("builds", "ImageBuilds, by where they stand", self.builds.clone());
        r.register(
            "builds_waiting",
            "Runs that wait, by what for: a place, quota, a node, an object that is not there, the next attempt",
            self.waiting.clone(),
        );
        r.register("reconciles", "Reconciles, by result", self.reconciles.clone());
        r.register(
            "reconcile_errors",
            "Reconciles that failed, by class of error",
            self.reconcile_errors.clone(),
        );
        r.register_with_unit(
            "reconcile_duration",
            "How long a reconcile took",
            seconds(),
            self.reconcile_duration.clone(),
        );
        r.register_with_unit(
            "reconcile_wait",
            "How long an object waited for its turn to be reconciled: builds that want to begin, and all others",
            seconds(),
            self.reconcile_wait.clone(),
        );
        r.register("runs", "Runs that ended, by result and by class of failure", self.runs.clone());
        r.register("run_failures", "Runs that failed, by reason", self.failures.clone());
        r.register_with_unit(
            "run_duration",
            "From the start of a run to its end, waiting included",
            seconds(),
            self.run_duration.clone(),
        );
        r.register_with_unit(
            "run_phase_duration",
            "Phases of runs that ended: queue, start of the pod, build, push",
            seconds(),
            self.phase_duration.clone(),
        );
        r.register("steps", "Steps of runs that ended: taken from a cache, or executed", self.steps.clone());
        r.register_with_unit(
            "oldest_run",
            "Age of the oldest run that has not ended, by where its ImageBuild stands",
            seconds(),
            self.oldest.clone(),
        );
        r.register("attempts", "Attempts begun: the first of a run, or a retry", self.attempts.clone());
        r.register("queue_depth", "Builds that wait for a place", self.queue.clone());
        r.register("journal_followers", "Journals that are being followed", self.followers.clone());
        r.register("api_writes", "Writes to the API server, by what was written", self.writes.clone());
        r.register("leader", "1 while this instance leads", self.leader.clone());
    }

    /// A reconcile has ended.
    pub fn reconciled(&self, result: Result<(), &ReconcileError>, took: Duration) {
        let word = if result.is_ok() { "ok" } else { "error" };
        self.reconciles.get_or_create(&[("result", word)]).inc();
        self.reconcile_duration.observe(took.as_secs_f64());
        if let Err(error) = result {
            self.reconcile_errors.get_or_create(&[("class", error.class())]).inc();
        }
    }

    /// An object has got its turn to be reconciled, after so long.
    pub fn waited(&self, kind: Kind, time: Duration) {
        self.reconcile_wait.get_or_create(&[("kind", turn(kind))]).observe(time.as_secs_f64());
    }

    /// A status was stored in place of another: counts the runs that ended and the attempts that began with it.
    pub fn stored(&self, before: &ImageBuildStatus, after: &ImageBuildStatus) {
        for run in ended_runs(before, after) {
            let failure = after.failure.as_ref().filter(|_| after.run == Some(run.run));
            let class = match (run.result, failure) {
                (RunResult::Failed | RunResult::Cancelled, Some(failure)) => class(failure.class),
                (RunResult::Failed, None) => "Unknown",
                _ => NO_CLASS,
            };
            self.runs.get_or_create(&[("result", word(run.result)), ("class", class)]).inc();
            if run.result == RunResult::Failed {
                // The words of a newer courier are not known here.
                let known =
                    failure.and_then(|f| catalog::FAILURES.iter().find(|entry| entry.word == f.reason));
                let reason = known.map_or("Unknown", |entry| entry.word);
                self.failures.get_or_create(&[("reason", reason)]).inc();
            }
            let took = run.completion_time.0.as_second().saturating_sub(run.start_time.0.as_second()).max(0);
            let took = Duration::from_secs(took.unsigned_abs()).as_secs_f64();
            self.run_duration.get_or_create(&[("result", word(run.result))]).observe(took);
            if after.run == Some(run.run) {
                self.ended(after);
            }
        }
        for attempt in begun_attempts(before, after) {
            let kind = if attempt.number == 1 { "first" } else { "retry" };
            self.attempts.get_or_create(&[("kind", kind)]).inc();
        }
    }

    /// What the status of a run that has ended tells of its phases and steps.
    fn ended(&self, status: &ImageBuildStatus) {
        for (phase, seconds) in run_phases(status) {
            self.phase_duration.get_or_create(&[("phase", phase.word())]).observe(seconds);
        }
        let (cached, executed) = cached_steps(status);
        self.steps.get_or_create(&[("result", "cached")]).inc_by(cached);
        self.steps.get_or_create(&[("result", "executed")]).inc_by(executed);
    }

    /// These are all ImageBuilds, now.
    pub fn show_builds<'a>(&self, now: Timestamp, all: impl IntoIterator<Item = &'a ImageBuildStatus>) {
        let mut counts = [0; BuildPhase::ALL.len()];
        let mut oldest = [0; BuildPhase::ALL.len()];
        let mut waiting = WAITS.map(|wait| (wait, 0));
        for status in all {
            let phase = BuildPhase::of(status) as usize;
            counts[phase] += 1;
            if let Some(entry) = wait_of(status).and_then(|w| waiting.iter_mut().find(|(word, _)| *word == w))
            {
                entry.1 += 1;
            }
            if let (Some(start), None) = (&status.start_time, &status.completion_time) {
                oldest[phase] = oldest[phase].max(now.as_second() - start.0.as_second());
            }
        }
        for (phase, count) in BuildPhase::ALL.into_iter().zip(counts) {
            self.builds.get_or_create(&[("phase", phase.word())]).set(count);
        }
        for (wait, count) in waiting {
            self.waiting.get_or_create(&[("reason", wait)]).set(count);
        }
        for phase in [BuildPhase::Pending, BuildPhase::Queued, BuildPhase::Building] {
            self.oldest.get_or_create(&[("phase", phase.word())]).set(oldest[phase as usize]);
        }
    }

    /// Something was written to the API server.
    pub fn wrote(&self, what: Write) {
        self.wrote_many(what, 1);
    }

    /// Something was written so many times.
    pub fn wrote_many(&self, what: Write, times: u64) {
        self.writes.get_or_create(&[("kind", what.word())]).inc_by(times);
    }

    /// So many builds wait for a place.
    pub fn set_queue_depth(&self, waiting: usize) {
        self.queue.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// So many journals are followed.
    pub fn set_followers(&self, followers: usize) {
        self.followers.set(i64::try_from(followers).unwrap_or(i64::MAX));
    }

    /// Whether this instance leads.
    pub fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// The OpenMetrics text.
    ///
    /// # Errors
    /// None in practice: writing to a string does not fail.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Whose turn, as a label.
fn turn(kind: Kind) -> &'static str {
    match kind {
        Kind::First => "first",
        Kind::Other => "other",
    }
}

/// The result as `status.history` spells it.
fn word(result: RunResult) -> &'static str {
    match result {
        RunResult::Succeeded => "Succeeded",
        RunResult::Failed => "Failed",
        RunResult::Cancelled => "Cancelled",
        RunResult::Suspended => "Suspended",
        RunResult::Superseded => "Superseded",
    }
}

/// The class as `status.failure` spells it.
fn class(class: FailureClass) -> &'static str {
    match class {
        FailureClass::User => "User",
        FailureClass::Source => "Source",
        FailureClass::Registry => "Registry",
        FailureClass::Policy => "Policy",
        FailureClass::Infrastructure => "Infrastructure",
        FailureClass::OutOfMemory => "OutOfMemory",
        FailureClass::Evicted => "Evicted",
        FailureClass::Timeout => "Timeout",
        FailureClass::Cancelled => "Cancelled",
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
