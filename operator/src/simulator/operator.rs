//! An operator process: the real reconcile with the real memory, and in place of kube's runtime the watches, the work
//! queue and the timers, which the scheduler moves on one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use kiln_api::ImageBuild;
use kube::core::DeserializeGuard;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::config::Config;
use crate::image_build::context::Context;
use crate::image_build::error::ReconcileError;
use crate::image_build::events::Publisher;
use crate::image_build::observe::PodView;
use crate::image_build::reconcile::{Object, reconcile_once, retry_after};
use crate::journals::Wake;
use crate::lease::Leadership;
use crate::metrics::Metrics;

use super::api::{Api, Change, Key, Kind, uid};
use super::gate::Gate;

type Reconciled = Result<Option<std::time::Duration>, ReconcileError>;

/// An operator.
pub struct Operator {
    pub number: usize,
    ctx: Arc<Context>,
    wakes: mpsc::UnboundedReceiver<Wake>,
    local: Arc<AtomicI64>,
    skew: i64,
    pub leadership: Leadership,
    /// How much of the history each watch has shown: of builds and of pods.
    seen: [usize; 2],
    store: BTreeMap<Key, Arc<Value>>,
    due: BTreeSet<Key>,
    timers: BTreeMap<Key, i64>,
    running: BTreeMap<Key, JoinHandle<Reconciled>>,
    pub reconciles: usize,
}

impl Drop for Operator {
    /// It is killed: nothing that it was about to do is done.
    fn drop(&mut self) {
        self.running.values().for_each(JoinHandle::abort);
    }
}

fn pod(value: &Value) -> PodView {
    PodView::of(&serde_json::from_value(value.clone()).expect("a pod"))
}

fn build(value: &Value) -> ImageBuild {
    serde_json::from_value(value.clone()).expect("an ImageBuild")
}

impl Operator {
    /// Starts one whose first lists show what there was after `seen` changes.
    pub fn start(number: usize, gate: &Gate, api: &Api, config: Config, skew: i64, seen: usize) -> Self {
        let local = Arc::new(AtomicI64::new(api.now + skew));
        let clock = Clock::simulated(local.clone());
        // It has read the lease by now.
        clock.observe(&gate.date());
        let client = gate.client(number, &clock);
        let leadership = Leadership::simulated(client.clone());
        let (wake, wakes) = mpsc::unbounded_channel();
        let events = Publisher::new(client.clone(), "simulated");
        let metrics = Arc::new(Metrics::new());
        let ctx = Arc::new(Context::new(client, clock, config, leadership.clone(), metrics, events, wake));
        for namespace in super::user::NAMESPACES {
            ctx.policies.show_namespace(namespace, BTreeMap::new());
        }
        let mut this = Self {
            number,
            ctx,
            wakes,
            local,
            skew,
            leadership,
            seen: [seen; 2],
            store: BTreeMap::new(),
            due: BTreeSet::new(),
            timers: BTreeMap::new(),
            running: BTreeMap::new(),
            reconciles: 0,
        };
        this.list_pods(api, seen);
        this.list_builds(api, seen);
        this
    }

    pub fn set_time(&self, now: i64) {
        self.local.store(now + self.skew, Ordering::Relaxed);
        self.leadership.simulate_renewal();
    }

    /// A list of all pods, as the watch makes one when it is broken.
    pub fn list_pods(&mut self, api: &Api, seen: usize) {
        self.ctx.pods.list_begins(&None);
        for value in api.at(Kind::Pod, seen).values() {
            self.show_pod(value);
        }
        for (namespace, name) in self.ctx.pods.list_ends(&None) {
            self.due.insert((Kind::Build, namespace, name));
        }
        self.seen[1] = seen;
    }

    /// A list of all ImageBuilds.
    pub fn list_builds(&mut self, api: &Api, seen: usize) {
        self.store = api.at(Kind::Build, seen);
        for value in self.store.values() {
            self.ctx.meet(&build(value));
        }
        let uids = self.store.values().map(|b| uid(b)).collect();
        self.ctx.retain(&None, &uids);
        self.due.extend(self.store.keys().cloned());
        self.seen[0] = seen;
    }

    fn show_pod(&mut self, value: &Value) {
        let view = pod(value);
        if let Some(name) = &view.owner_name {
            self.due.insert((Kind::Build, view.namespace.clone(), name.clone()));
        }
        self.ctx.pods.show(&None, view);
    }

    /// Whether a watch has something to show.
    pub fn is_behind(&self, api: &Api) -> [bool; 2] {
        [0, 1].map(|which| {
            let kind = [Kind::Build, Kind::Pod][which];
            api.history[self.seen[which]..].iter().any(|c| c.key.0 == kind)
        })
    }

    /// Shows the next change of that watch. `again` leaves it to be shown once more; `skip` has it lost.
    pub fn show(&mut self, api: &Api, which: usize, again: bool, skip: bool) {
        let kind = [Kind::Build, Kind::Pod][which];
        let news = &api.history[self.seen[which]..];
        let Some(at) = news.iter().position(|c| c.key.0 == kind) else { return };
        let change = news[at].clone();
        if !again {
            self.seen[which] += at + 1;
        }
        if !skip {
            self.take_in(&change);
        }
    }

    fn take_in(&mut self, change: &Change) {
        match (change.key.0, &change.now) {
            (Kind::Pod, Some(now)) => self.show_pod(now),
            (Kind::Pod, None) => {
                let Some(last) = &change.before else { return };
                let view = pod(last);
                if let Some(name) = &view.owner_name {
                    self.due.insert((Kind::Build, view.namespace.clone(), name.clone()));
                }
                self.ctx.pods.gone(&view);
            }
            (_, Some(now)) => {
                self.ctx.note(&build(now));
                self.store.insert(change.key.clone(), now.clone());
                self.due.insert(change.key.clone());
            }
            (_, None) => {
                if let Some(last) = &change.before {
                    self.ctx.forget(&uid(last));
                }
                self.store.remove(&change.key);
            }
        }
    }

    /// Takes in what woke objects and which reconciles ended, and which timers are over.
    pub async fn look_around(&mut self, now: i64) {
        while let Ok((namespace, name)) = self.wakes.try_recv() {
            self.due.insert((Kind::Build, namespace, name));
        }
        let ended: Vec<Key> =
            self.running.iter().filter(|(_, task)| task.is_finished()).map(|(k, _)| k.clone()).collect();
        for key in ended {
            let Some(task) = self.running.remove(&key) else { continue };
            let result = match task.await {
                Ok(result) => result,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            };
            let again = match result {
                Ok(again) => again,
                Err(error) => self.store.get(&key).map(|value| {
                    let object: Object = DeserializeGuard(Ok(build(value)));
                    retry_after(&object, &error, &self.ctx)
                }),
            };
            match again {
                Some(wait) => {
                    let seconds = wait.as_millis().div_ceil(1000);
                    self.timers.insert(key, now + i64::try_from(seconds).expect("not for ever"));
                }
                None => {
                    self.timers.remove(&key);
                }
            }
        }
        let over: Vec<Key> =
            self.timers.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in over {
            self.timers.remove(&key);
            self.due.insert(key);
        }
    }

    /// Objects that are to be reconciled and are not being.
    pub fn ready(&self) -> Vec<Key> {
        self.due.iter().filter(|key| !self.running.contains_key(*key)).cloned().collect()
    }

    /// Begins to reconcile an object.
    pub fn begin(&mut self, key: &Key) {
        self.due.remove(key);
        let Some(value) = self.store.get(key) else { return };
        let object: Object = DeserializeGuard(Ok(build(value)));
        let ctx = self.ctx.clone();
        self.reconciles += 1;
        let task = tokio::spawn(async move { reconcile_once(&object, &ctx).await });
        self.running.insert(key.clone(), task);
    }

    pub fn is_busy(&self) -> bool {
        !self.running.is_empty()
    }

    /// When each object is looked at again.
    pub fn timers(&self) -> impl Iterator<Item = (&Key, &i64)> {
        self.timers.iter()
    }

    /// When the next timer is over.
    pub fn next_timer(&self) -> Option<i64> {
        self.timers.values().min().copied()
    }
}
