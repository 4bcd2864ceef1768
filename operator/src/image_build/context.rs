//! What reconciles share: the API, what is known of pods and journals, the queue, and what this process remembers of each
//! object until the watch shows it.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_api::{ImageBuild, ImageBuildStatus};
use kiln_contract::Failure;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::config::Config;
use crate::journals::{Journals, Wake};
use crate::lease::Leadership;
use crate::metrics::Metrics;
use crate::pods::{Pods, Scope};
use crate::policy::Policies;
use crate::priorities::Priorities;
use crate::queue::{Claim, Limits, Place, Queue, Wait};
use crate::traces::Traces;

use super::decide::{CreationFault, Slot};
use super::events::Publisher;
use super::kubelet::Warning;
use super::pace::{self, Load};
use super::preflight::LetIn;

/// What reconciles share.
pub struct Context {
    /// The API.
    pub client: kube::Client,
    /// Its time.
    pub clock: Clock,
    /// The cluster's settings.
    pub config: Config,
    /// Whether this process still leads.
    pub leadership: Leadership,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Sends traces of runs that ended.
    pub traces: Traces,
    /// Writes Events.
    pub events: Publisher,
    /// The builder pods.
    pub pods: Pods,
    /// The BuildPolicies.
    pub policies: Policies,
    /// Where pods were let in a moment ago.
    pub let_in: LetIn,
    /// The journals of what runs.
    pub journals: Journals,
    /// The values of PriorityClasses.
    pub priorities: Priorities,
    queue: Mutex<Queue>,
    memory: Mutex<HashMap<String, Memory>>,
    write_millis: AtomicUsize,
    listed_events: Mutex<Option<Instant>>,
    wake: mpsc::UnboundedSender<Wake>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("pods", &self.pods)
            .field("journals", &self.journals)
            .finish_non_exhaustive()
    }
}

/// What is remembered of an object, by UID.
#[derive(Debug, Default)]
struct Memory {
    namespace: String,
    name: String,
    /// The object as the last write of its status left it, and its resourceVersion.
    written: Option<(u64, Arc<ImageBuild>)>,
    /// When its status was last written, in seconds.
    written_at: Option<i64>,
    /// How the last try to make an attempt's pod failed; the attempt.
    creation: Option<(String, CreationFault)>,
    /// What was said of a run's pod before it was made; the run.
    preflight: Option<(i64, Result<(), Failure>)>,
    /// UID of the pod that was made last, once it was found to be the one that was asked for.
    verified: Option<String>,
    /// The warnings about a pod that doesn't start, by its UID, and when they were read.
    warnings: Option<(String, Instant, Vec<Warning>)>,
    /// The ConfigMap ([`config_map_key`]) or Flux object ([`super::flux::key`]) that it builds from.
    source: Option<String>,
    /// Whether its latest run was refused, by a policy or in admission.
    refused: bool,
    /// Reconciles that failed in a row.
    failures: u32,
}

/// The name under which [`Context::built_from`] knows a ConfigMap.
pub fn config_map_key(name: &str) -> String {
    format!("ConfigMap/{name}")
}

impl Context {
    /// A context that knows nothing yet. `wake` makes the controller look at an object.
    pub fn new(
        client: kube::Client,
        clock: Clock,
        config: Config,
        leadership: Leadership,
        metrics: Arc<Metrics>,
        events: Publisher,
        wake: mpsc::UnboundedSender<Wake>,
    ) -> Self {
        let (total, each) = (config.max_concurrent_builds, config.max_concurrent_builds_per_namespace);
        let queue = Mutex::new(Queue::new(total, each));
        let journals = Journals::new(client.clone(), wake.clone());
        Self {
            client,
            clock,
            config,
            leadership,
            metrics,
            traces: Traces::default(),
            events,
            pods: Pods::default(),
            policies: Policies::default(),
            let_in: LetIn::default(),
            journals,
            priorities: Priorities::default(),
            queue,
            memory: Mutex::default(),
            write_millis: AtomicUsize::default(),
            listed_events: Mutex::default(),
            wake,
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> MutexGuard<'_, HashMap<String, Memory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses what is remembered of an object that the watch shows; of one that is gone nothing is remembered any more.
    fn with<T: Default>(&self, uid: &str, use_it: impl FnOnce(&mut Memory) -> T) -> T {
        self.memory().get_mut(uid).map(use_it).unwrap_or_default()
    }

    /// Has the controller look at an object.
    pub fn wake(&self, wake: Wake) {
        // It is gone only when the process ends.
        let _ = self.wake.send(wake);
    }

    /// Takes note of an object that a list shows. One that runs already has its place, and one that waits its turn.
    pub fn meet(&self, build: &ImageBuild) {
        self.note(build);
        let (Some(uid), Some(namespace)) = (&build.metadata.uid, &build.metadata.namespace) else { return };
        let Some(status) = &build.status else { return };
        if runs(status) {
            self.queue().adopt(uid, namespace);
        } else if waits(status) {
            let name = build.metadata.name.as_deref().unwrap_or_default();
            let priority = self.priorities.of(build.spec.priority_class_name.as_deref());
            let claim = Claim { uid, namespace, name, priority, since: waits_since(status) };
            self.queue().expect(&claim);
        }
    }

    /// Takes note of an object that the watch shows.
    pub fn note(&self, build: &ImageBuild) {
        let (Some(uid), Some(namespace)) = (&build.metadata.uid, &build.metadata.namespace) else { return };
        let mut memory = self.memory();
        let memory = memory.entry(uid.clone()).or_default();
        memory.namespace.clone_from(namespace);
        memory.name = build.metadata.name.clone().unwrap_or_default();
        let source = &build.spec.source;
        let map = source.config_map.as_ref().map(|c| config_map_key(&c.name));
        memory.source = map.or_else(|| source.flux.as_ref().map(|f| super::flux::key(f.kind, &f.name)));
        let failure = build.status.as_ref().and_then(|status| status.failure.as_ref());
        memory.refused = failure.is_some_and(|f| super::decide::is_refusal(&f.reason));
    }

    /// Forgets an object that is gone, and gives its place to the next.
    pub fn forget(&self, uid: &str) {
        self.memory().remove(uid);
        self.journals.forget(uid);
        self.release(uid);
    }

    /// Forgets all objects of the scope but these.
    pub fn retain(&self, scope: &Scope, uids: &BTreeSet<String>) {
        let gone: Vec<String> = {
            let memory = self.memory();
            let in_scope = |m: &Memory| scope.as_ref().is_none_or(|s| *s == m.namespace);
            memory
                .iter()
                .filter(|(uid, m)| in_scope(m) && !uids.contains(*uid))
                .map(|(uid, _)| uid.clone())
                .collect()
        };
        gone.iter().for_each(|uid| self.forget(uid));
    }

    /// The objects that build from a ConfigMap or Flux object, by its key.
    pub fn built_from(&self, namespace: &str, key: &str) -> Vec<Wake> {
        let memory = self.memory();
        let those = memory.values().filter(|m| m.namespace == namespace && m.source.as_deref() == Some(key));
        those.map(|m| (m.namespace.clone(), m.name.clone())).collect()
    }

    /// Has the controller look at the objects that were refused, of a namespace or of all.
    pub fn wake_refused(&self, namespace: Option<&str>) {
        let those: Vec<Wake> = {
            let memory = self.memory();
            let in_it = |m: &&Memory| m.refused && namespace.is_none_or(|n| n == m.namespace);
            memory.values().filter(in_it).map(|m| (m.namespace.clone(), m.name.clone())).collect()
        };
        those.into_iter().for_each(|wake| self.wake(wake));
    }

    /// The object as the last write of its status left it, where the watch has not shown that yet. All of it: a list that
    /// lags behind must not set an old spec beside a new status.
    pub fn written(&self, uid: &str, resource_version: &str) -> Option<Arc<ImageBuild>> {
        let shown: u64 = resource_version.parse().ok()?;
        self.with(uid, |memory| {
            if memory.written.as_ref().is_some_and(|(version, _)| *version <= shown) {
                memory.written = None;
            }
            memory.written.as_ref().map(|(_, build)| build.clone())
        })
    }

    /// Remembers an object whose status was written.
    pub fn wrote(&self, uid: &str, mut build: ImageBuild) {
        // A third of the object, and of no use here.
        build.metadata.managed_fields = None;
        let version = build.metadata.resource_version.as_ref().and_then(|v| v.parse().ok());
        let now = self.clock.now().as_second();
        self.with(uid, |memory| {
            memory.written = version.map(|v| (v, Arc::new(build)));
            memory.written_at = Some(now);
        });
    }

    /// Seconds until a status is to be written ([`pace::wait`]).
    pub fn pace(&self, uid: &str, before: &ImageBuildStatus, after: &ImageBuildStatus) -> i64 {
        let now = self.clock.now().as_second();
        let since = self.with(uid, |memory| memory.written_at).map(|at| now - at);
        let load =
            Load { running: self.queue().running(), write_millis: self.write_millis.load(Ordering::Relaxed) };
        pace::wait(before, after, since, load)
    }

    /// Remembers how long a write of a status took, the last eight or so counting.
    pub fn write_took(&self, took: Duration) {
        let millis = usize::try_from(took.as_millis()).unwrap_or(usize::MAX);
        // Two at once may lose one of them: it is an estimate.
        let before = self.write_millis.load(Ordering::Relaxed);
        self.write_millis.store(before - before / 8 + millis / 8, Ordering::Relaxed);
    }

    /// How the last try to make that attempt's pod failed.
    pub fn creation(&self, uid: &str, attempt: &str) -> Option<CreationFault> {
        self.with(uid, |memory| memory.creation.clone())
            .filter(|(of, _)| of == attempt)
            .map(|(_, fault)| fault)
    }

    /// Remembers how it failed.
    pub fn failed_to_make(&self, uid: &str, attempt: &str, fault: CreationFault) {
        self.with(uid, |memory| memory.creation = Some((attempt.to_owned(), fault)));
    }

    /// Remembers that the pod of that UID is there and the one that was asked for.
    pub fn made(&self, uid: &str, pod: String) {
        self.with(uid, |memory| (memory.creation, memory.verified) = (None, Some(pod)));
    }

    /// UID of the pod that was made last and is the one that was asked for.
    pub fn verified(&self, uid: &str) -> Option<String> {
        self.with(uid, |memory| memory.verified.clone())
    }

    /// What was said of that run's pod before it was made.
    pub fn preflight(&self, uid: &str, run: i64) -> Option<Result<(), Failure>> {
        self.with(uid, |memory| memory.preflight.clone()).filter(|(of, _)| *of == run).map(|(_, said)| said)
    }

    /// Remembers what was said.
    pub fn preflighted(&self, uid: &str, run: i64, said: Result<(), Failure>) {
        self.with(uid, |memory| memory.preflight = Some((run, said)));
    }

    /// The warnings about that pod, where they were read less than `age` ago.
    pub fn warnings(&self, uid: &str, pod: &str, age: Duration) -> Option<Vec<Warning>> {
        self.with(uid, |memory| memory.warnings.clone())
            .filter(|(of, read, _)| of == pod && read.elapsed() < age)
            .map(|(_, _, warnings)| warnings)
    }

    /// Whether the last list of Events, of whichever pod, was at least `apart` ago. The next one counts from now then.
    pub fn may_list_events(&self, apart: Duration) -> bool {
        let mut last = self.listed_events.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|at| at.elapsed() >= apart);
        if due {
            *last = Some(Instant::now());
        }
        due
    }

    /// Remembers the warnings about a pod, read now.
    pub fn warned(&self, uid: &str, pod: &str, warnings: Vec<Warning>) {
        self.with(uid, |memory| memory.warnings = Some((pod.to_owned(), Instant::now(), warnings)));
    }

    /// Counts a reconcile that failed (how many have in a row) or went well.
    pub fn count(&self, uid: &str, failed: bool) -> u32 {
        self.with(uid, |memory| {
            memory.failures = if failed { memory.failures.saturating_add(1) } else { 0 };
            memory.failures
        })
    }

    /// Asks for a place among the builds that run. An object that is gone gets none: it would never give it back.
    pub fn ask(&self, claim: &Claim<'_>) -> Slot {
        // Held until the answer is there, so that it is not forgotten in between.
        let known = self.memory();
        if !known.contains_key(claim.uid) {
            return Slot::Queued(Place { position: 1, wait: Wait::Total(self.config.max_concurrent_builds) });
        }
        let mut queue = self.queue();
        let (slot, woken) = queue.ask(claim);
        self.metrics.set_queue_depth(queue.waiting());
        drop(queue);
        woken.into_iter().for_each(|wake| self.wake(wake));
        slot
    }

    /// Limits the builds of a namespace anew; whoever gets a place by that is woken.
    pub fn limit(&self, namespace: &str, limits: Limits) {
        let mut queue = self.queue();
        let woken = queue.set_limits(namespace, limits);
        self.metrics.set_queue_depth(queue.waiting());
        drop(queue);
        woken.into_iter().for_each(|wake| self.wake(wake));
    }

    /// Gives a place back; whoever gets it is woken.
    pub fn release(&self, uid: &str) {
        let mut queue = self.queue();
        let woken = queue.release(uid);
        self.metrics.set_queue_depth(queue.waiting());
        drop(queue);
        woken.into_iter().for_each(|wake| self.wake(wake));
    }
}

/// Whether the build waits for a place in the queue.
pub fn waits(status: &ImageBuildStatus) -> bool {
    status.completion_time.is_none() && status.queue.as_ref().is_some_and(|q| q.position > 0)
}

/// Since when the run waits for its places: a further attempt of it is not the last in the queue.
pub fn waits_since(status: &ImageBuildStatus) -> i64 {
    status.start_time.as_ref().map_or(i64::MAX, |t| t.0.as_second())
}

/// Whether an attempt is under way.
pub fn runs(status: &ImageBuildStatus) -> bool {
    status.completion_time.is_none() && status.attempts.last().is_some_and(|a| a.finished_at.is_none())
}
