//! The builder pods, played: kwok gives them nodes and has their containers run; from there this writes their journals, waits
//! for their permits and ends them with their reports. It also sees when each pod appears.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kiln_contract::control::{PERMIT_ANNOTATION, Permit, STOP_ANNOTATION, Stop};
use kiln_contract::journal::{Event, HEARTBEAT_SECONDS};
use kiln_contract::paths::{BUILD_CONTAINER, COURIER_CONTAINER};
use kiln_contract::report::Outcome;
use kiln_contract::{Failure, FailureClass};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;

use crate::story::{self, Story};

/// Selects what the operator made.
pub const SELECTOR: &str = "app.kubernetes.io/managed-by=kiln,app.kubernetes.io/component=builder";
/// How long a courier waits for its permit.
const PERMIT_PATIENCE: Duration = Duration::from_secs(600);

/// Namespace and name.
pub type Key = (String, String);

/// All pods.
pub struct Fleet {
    client: Client,
    takes: Mutex<Duration>,
    pods: Mutex<HashMap<Key, Arc<Played>>>,
    seen: Mutex<Seen>,
}

/// What was seen of the pods.
#[derive(Debug, Default)]
pub struct Seen {
    /// When the first pod of an ImageBuild appeared.
    pub first: HashMap<Key, Instant>,
    /// UIDs of the pods of each attempt.
    pub attempts: HashMap<String, HashSet<String>>,
    /// When each ended that has ended, by ImageBuild.
    pub ended: HashMap<Key, Instant>,
    /// Pods that could not be ended.
    pub faults: Vec<String>,
}

/// A pod.
#[derive(Debug)]
pub struct Played {
    attempt: String,
    /// Lines of the log, and whether there will be more.
    journal: watch::Sender<(Vec<String>, bool)>,
    orders: watch::Sender<Orders>,
    started: Mutex<bool>,
}

#[derive(Debug, Clone, Default)]
struct Orders {
    permit: Option<Permit>,
    stop: Option<Stop>,
    gone: bool,
}

impl Played {
    /// The log: its lines so far, and whether it has ended; changes are told.
    pub fn log(&self) -> watch::Receiver<(Vec<String>, bool)> {
        self.journal.subscribe()
    }

    fn write(&self, event: Event) {
        self.journal.send_modify(|(lines, _)| {
            let seq = lines.len() as u64 + 1;
            lines.push(story::line(seq, jiff::Timestamp::now(), event));
        });
    }
}

impl Fleet {
    /// Pods whose builds take that long.
    pub fn new(client: Client, takes: Duration) -> Arc<Self> {
        Arc::new(Self { client, takes: Mutex::new(takes), pods: Mutex::default(), seen: Mutex::default() })
    }

    /// Has builds that begin from now on take that long.
    pub fn set_takes(&self, takes: Duration) {
        *self.takes.lock().unwrap_or_else(PoisonError::into_inner) = takes;
    }

    /// What was seen so far.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod that is there or was.
    pub fn pod(&self, key: &Key) -> Option<Arc<Played>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Plays until the watch ends for good, which it does not.
    ///
    /// # Errors
    /// None: a watch that breaks is taken up again.
    pub async fn play(self: Arc<Self>) -> Result<()> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let events = watcher(pods, watcher::Config::default().labels(SELECTOR)).default_backoff();
        let mut events = std::pin::pin!(events);
        loop {
            match events.try_next().await {
                Ok(Some(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))) => self.show(&pod),
                Ok(Some(watcher::Event::Delete(pod))) => {
                    if let Some(played) = self.pod(&key(&pod)) {
                        played.orders.send_modify(|orders| orders.gone = true);
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(error) => eprintln!("the watch of pods was interrupted: {error}"),
            }
        }
    }

    fn show(self: &Arc<Self>, pod: &Pod) {
        let Some(attempt) = pod.annotations().get("kiln.build/attempt").cloned() else { return };
        let Some(owner) = pod.owner_references().first().map(|o| o.name.clone()) else { return };
        let build = (pod.namespace().unwrap_or_default(), owner);
        {
            let mut seen = self.seen();
            seen.first.entry(build.clone()).or_insert_with(Instant::now);
            seen.attempts.entry(attempt.clone()).or_default().insert(pod.uid().unwrap_or_default());
        }
        let played = {
            let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = || {
                Arc::new(Played {
                    attempt,
                    journal: watch::Sender::new((Vec::new(), false)),
                    orders: watch::Sender::default(),
                    started: Mutex::new(false),
                })
            };
            pods.entry(key(pod)).or_insert_with(fresh).clone()
        };
        fn read<T: serde::de::DeserializeOwned>(pod: &Pod, key: &str) -> Option<T> {
            serde_json::from_str(pod.annotations().get(key)?).ok()
        }
        let (permit, stop) = (read::<Permit>(pod, PERMIT_ANNOTATION), read::<Stop>(pod, STOP_ANNOTATION));
        played.orders.send_if_modified(|orders| {
            let news = orders.permit != permit || orders.stop != stop;
            (orders.permit, orders.stop) = (permit, stop);
            news
        });
        let running = pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
        let mut started = played.started.lock().unwrap_or_else(PoisonError::into_inner);
        if running && !std::mem::replace(&mut *started, true) {
            drop(started);
            tokio::spawn(self.clone().build(key(pod), build, played));
        }
    }

    /// What happens in one pod.
    async fn build(self: Arc<Self>, pod: Key, build: Key, played: Arc<Played>) {
        let reference = format!("registry.example.com/{}/{}:1", build.0, build.1);
        let takes = *self.takes.lock().unwrap_or_else(PoisonError::into_inner);
        let story = Story::of(&played.attempt, &reference, takes);
        let mut orders = played.orders.subscribe();
        for (before, event) in story.until_permit() {
            if !before.is_zero() {
                // A step takes its time unless it is told to stop.
                let stopped = orders.wait_for(|o| o.stop.is_some() || o.gone);
                if tokio::time::timeout(before, stopped).await.is_ok() {
                    return self.stop(&pod, &build, &played, &story).await;
                }
            }
            played.write(event);
        }
        let asked = Instant::now();
        loop {
            let allowed = |o: &Orders| {
                let now = jiff::Timestamp::now().as_second();
                o.permit.as_ref().is_some_and(|p| p.allows(&story.attempt, &story.image.digest, now))
            };
            let answered = orders.wait_for(|o| o.stop.is_some() || o.gone || allowed(o));
            let answer = tokio::time::timeout(Duration::from_secs(HEARTBEAT_SECONDS), answered).await;
            let wanted = answer.map(|o| o.is_ok_and(|o| o.stop.is_none() && !o.gone));
            match wanted {
                Ok(true) => break,
                Err(_) if asked.elapsed() < PERMIT_PATIENCE => played.write(Event::Heartbeat),
                Ok(false) | Err(_) => return self.stop(&pod, &build, &played, &story).await,
            }
        }
        played.write(Event::Succeeded { image: story.image.clone() });
        self.end(&pod, &build, &played, story.report(Outcome::Succeeded(story.image.clone())), true).await;
    }

    async fn stop(&self, pod: &Key, build: &Key, played: &Played, story: &Story) {
        let orders = played.orders.borrow().clone();
        if orders.gone {
            played.journal.send_modify(|(_, ended)| *ended = true);
            return;
        }
        let (class, reason) = match orders.stop {
            Some(stop) => (FailureClass::Cancelled, stop.reason),
            None => (FailureClass::Infrastructure, "NoPermit".to_owned()),
        };
        let failure = Failure::new(class, &reason, "the played build was stopped");
        played.write(Event::Failed { failure: failure.clone() });
        self.end(pod, build, played, story.report(Outcome::Failed(failure)), false).await;
    }

    /// The containers end, as the kubelet says it.
    async fn end(&self, pod: &Key, build: &Key, played: &Played, report: String, well: bool) {
        played.journal.send_modify(|(_, ended)| *ended = true);
        let at = jiff::Timestamp::now();
        let container = |name: &str, message: Option<&str>| {
            json!({
                "name": name, "image": "played", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {
                    "exitCode": i32::from(!well), "reason": if well { "Completed" } else { "Error" },
                    "startedAt": format!("{at:.0}"), "finishedAt": format!("{at:.0}"), "message": message,
                }},
            })
        };
        let status = json!({"status": {
            "phase": if well { "Succeeded" } else { "Failed" },
            "initContainerStatuses": [container(COURIER_CONTAINER, Some(&report))],
            "containerStatuses": [container(BUILD_CONTAINER, None)],
        }});
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.0);
        let mut wait = Duration::from_millis(200);
        for _ in 0..6 {
            match pods.patch_status(&pod.1, &PatchParams::default(), &Patch::Merge(&status)).await {
                Ok(_) => {
                    self.seen().ended.insert(build.clone(), Instant::now());
                    return;
                }
                Err(kube::Error::Api(status)) if status.code == 404 => return,
                Err(_) => tokio::time::sleep(wait).await,
            }
            wait *= 2;
        }
        self.seen().faults.push(format!("pod {}/{} could not be ended", pod.0, pod.1));
    }
}

fn key(pod: &Pod) -> Key {
    (pod.namespace().unwrap_or_default(), pod.name_any())
}
