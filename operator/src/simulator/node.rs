//! Kubelets and what runs in the pods: scheduling, containers, the courier with its journal, its permit and its report.

use std::collections::BTreeMap;

use fastrand::Rng;
use kiln_contract::control::{PERMIT_ANNOTATION, Permit, STOP_ANNOTATION, Stop};
use kiln_contract::journal::{Event, Line, PlannedStep};
use kiln_contract::paths::{BUILD_CONTAINER, COURIER_CONTAINER, REQUEST_KEY};
use kiln_contract::report::{Outcome, Pushed, Report};
use kiln_contract::request::{BuildRequest, Content, Source};
use kiln_contract::{Failure, FailureClass, VERSION, reason};
use serde_json::{Value, json};

use crate::mutant;

use super::api::{Api, Key, Kind, is_changed, merge, time, uid};
use super::registry::Registry;

/// What happens to a pod that nobody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// The courier reports a fault of the infrastructure.
    Reported,
    /// The kubelet evicts the pod; nobody reports.
    Evicted,
    /// The scheduler takes its place for another; nobody reports, and the pod is gone.
    Preempted,
    /// All containers are killed; nobody reports.
    Killed,
    /// The whole build container was killed for its memory; the courier reports a lost builder.
    OutOfMemory,
    /// The node loses its network: nothing reaches it or comes from it, and what runs there runs on.
    NodeLost,
    /// No node has room for it.
    NoNode,
    /// Its image can't be pulled.
    NoImage,
    /// A step that does not end.
    Hangs,
}

/// How far a pod has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    New,
    Scheduled,
    Courier,
    Building,
    Step1,
    Step2,
    Pushing,
    Ready,
    Tagged,
    Succeeded,
    Ended,
}

/// Something for a pod to suffer, and when.
pub fn mishap(rng: &mut Rng) -> (Stage, Mishap) {
    use Mishap::{Evicted, Hangs, Killed, NoImage, NoNode, NodeLost, OutOfMemory, Preempted, Reported};
    const STAGES: [Stage; 6] =
        [Stage::Courier, Stage::Building, Stage::Step1, Stage::Pushing, Stage::Ready, Stage::Tagged];
    // Of all that can happen only this shows the fault.
    if mutant!(EndlessPermit) {
        return (Stage::Ready, NodeLost);
    }
    let mishap = *rng
        .choice(&[
            Evicted,
            Hangs,
            Killed,
            NoImage,
            NoNode,
            NodeLost,
            NodeLost,
            OutOfMemory,
            Preempted,
            Reported,
        ])
        .unwrap_or(&Killed);
    let stage = match mishap {
        NoNode => Stage::New,
        NoImage => Stage::Scheduled,
        Hangs => Stage::Step1,
        OutOfMemory => Stage::Building,
        // A node may be lost with a permit in the courier's hands.
        NodeLost | Evicted | Killed | Preempted => *rng.choice(&STAGES).unwrap_or(&Stage::Ready),
        Reported => *rng.choice(&STAGES[..4]).unwrap_or(&Stage::Courier),
    };
    (stage, mishap)
}

/// Seconds that a courier waits for a permit.
const PERMIT_WAIT: i64 = 600;
/// Seconds within which a try to move a tag has ended.
const TAG_SECONDS: i64 = 25;

/// A pod at work.
#[derive(Debug)]
pub struct Runner {
    pub key: Key,
    pub uid: String,
    pub stage: Stage,
    /// When it was made, by the API server.
    pub created: i64,
    /// What is to happen to it, and when.
    pub mishap: Option<(Stage, Mishap)>,
    /// What has happened to it.
    pub suffered: Option<Mishap>,
    /// Whether its node is cut off.
    pub lost: bool,
    /// Whether an admission webhook changed the pod.
    pub changed: bool,
    /// Seconds that its node's clock is ahead of the API server's.
    pub skew: i64,
    /// How it ended, as the kubelet says it.
    ended: Option<Value>,
    /// Since when it waits for leave to tag.
    ready: Option<i64>,
    /// Since when the registry is being asked to move the tag.
    tagging: Option<i64>,
    /// The pod as its kubelet last saw it.
    view: Value,
    request: Option<BuildRequest>,
    pub journal: Vec<Line>,
}

fn annotation<T: serde::de::DeserializeOwned>(pod: &Value, key: &str) -> Option<T> {
    serde_json::from_str(pod["metadata"]["annotations"][key].as_str()?).ok()
}

impl Runner {
    pub fn new(key: &Key, pod: &Value, mishap: Option<(Stage, Mishap)>, skew: i64, now: i64) -> Self {
        Self {
            key: key.clone(),
            uid: uid(pod),
            stage: Stage::New,
            created: now,
            mishap,
            suffered: None,
            lost: false,
            changed: is_changed(pod),
            skew,
            ended: None,
            ready: None,
            tagging: None,
            view: pod.clone(),
            request: None,
            journal: Vec::new(),
        }
    }

    /// Whether its containers may still do something.
    pub fn is_alive(&self) -> bool {
        self.stage < Stage::Ended
    }

    pub fn attempt(&self) -> String {
        self.request.as_ref().map(|r| r.attempt.clone()).unwrap_or_default()
    }

    /// The attempt that it was made for, whether it has read its request or not.
    pub fn made_for(&self) -> &str {
        self.view["metadata"]["annotations"]["kiln.build/attempt"].as_str().unwrap_or_default()
    }

    /// The Dockerfile that it builds.
    pub fn content(&self) -> String {
        match self.request.as_ref().map(|r| &r.source) {
            Some(Source::Files(files)) => files.first().map(|f| match &f.content {
                Content::Text(text) | Content::Base64(text) => text.clone(),
            }),
            _ => None,
        }
        .unwrap_or_default()
    }

    fn write(&mut self, now: i64, event: Event) {
        let at = time(now + self.skew).as_str().unwrap_or_default().to_owned();
        let seq = self.journal.len() as u64 + 1;
        self.journal.push(Line { v: VERSION, seq, at, event });
    }

    /// The journal as the kubelet serves it.
    pub fn log(&self) -> String {
        self.journal.iter().map(|l| serde_json::to_string(l).expect("JSON") + "\n").collect()
    }

    fn status(&self, api: &mut Api, change: impl FnOnce(&mut Value)) {
        if self.lost || api.get(&self.key).is_none_or(|p| uid(p) != self.uid) {
            return;
        }
        api.change(&self.key, |pod| change(&mut pod["status"]));
    }

    /// The pod is over: with that report, or without one.
    fn end(&mut self, api: &mut Api, report: Option<Outcome>, why: Option<(&str, &str)>) {
        let at = time(api.now + self.skew);
        let message = report.map(|outcome| {
            let report = Report { version: VERSION, attempt: self.attempt(), outcome };
            report.to_json()
        });
        let state = |reason: &str, message: Option<String>| json!({"terminated": {"exitCode": 1, "reason": reason, "finishedAt": at, "message": message}});
        let oom = self.suffered == Some(Mishap::OutOfMemory);
        let mut ended = json!({
            "phase": "Failed",
            "initContainerStatuses": [container(COURIER_CONTAINER, &state("Error", message))],
            "containerStatuses": [container(BUILD_CONTAINER, &state(if oom { "OOMKilled" } else { "Error" }, None))],
        });
        if let Some((word, words)) = why {
            ended["reason"] = json!(word);
            ended["message"] = json!(words);
        }
        self.ended = Some(ended);
        self.show_end(api);
        self.stage = Stage::Ended;
    }

    /// The kubelet says how the pod ended, unless its node is cut off.
    fn show_end(&self, api: &mut Api) {
        let Some(ended) = &self.ended else { return };
        self.status(api, |status| merge(status, ended));
    }

    /// The node is back.
    pub fn reconnect(&mut self, api: &mut Api) {
        self.lost = false;
        self.show_end(api);
        let deleted = api
            .get(&self.key)
            .is_some_and(|p| uid(p) == self.uid && !p["metadata"]["deletionTimestamp"].is_null());
        if deleted && !self.is_alive() {
            api.remove(&self.key);
        }
    }

    fn fail(&mut self, api: &mut Api, failure: Failure) {
        self.write(api.now, Event::Failed { failure: failure.clone() });
        self.end(api, Some(Outcome::Failed(failure)), None);
    }

    /// Goes a step further. What the pod's annotations say is known by then, unless its node is cut off.
    pub fn step(&mut self, api: &mut Api, registry: &mut Registry) {
        let stored = api.get(&self.key).filter(|p| uid(p) == self.uid).cloned();
        if !self.lost {
            match stored {
                Some(pod) => self.view = (*pod).clone(),
                // The kubelet sees that its pod is gone and kills it.
                None => {
                    self.stage = Stage::Ended;
                    return;
                }
            }
            if !self.view["metadata"]["deletionTimestamp"].is_null() {
                let stopped = Failure::new(FailureClass::Infrastructure, reason::BUILDER_LOST, "terminated");
                self.fail(api, stopped);
                api.remove(&self.key.clone());
                return;
            }
            if self.view["spec"]["activeDeadlineSeconds"] == 1 && self.stage < Stage::Succeeded {
                self.end(api, None, Some(("DeadlineExceeded", "simulated")));
                return;
            }
        }
        // A request that is under way is not called back by a stop or by the permit's end.
        if self.tagging.take().is_some_and(|since| api.now - since <= TAG_SECONDS) {
            registry.tag(api, self, &self.image().digest);
            self.stage = Stage::Tagged;
            return;
        }
        if self.stage >= Stage::Courier
            && self.stage < Stage::Tagged
            && let Some(stop) = annotation::<Stop>(&self.view, STOP_ANNOTATION)
            && stop.attempt == self.attempt()
        {
            let class = if stop.reason == reason::TIMED_OUT {
                FailureClass::Timeout
            } else {
                FailureClass::Cancelled
            };
            self.fail(api, Failure::new(class, &stop.reason, "the builder was told to stop"));
            return;
        }
        if let Some((at, mishap)) = self.mishap.filter(|(at, _)| *at == self.stage)
            && self.suffer(api, at, mishap)
        {
            return;
        }
        self.advance(api);
    }

    /// Whether the mishap keeps the pod from going on.
    fn suffer(&mut self, api: &mut Api, at: Stage, mishap: Mishap) -> bool {
        let lost = || Failure::new(FailureClass::Infrastructure, reason::BUILDER_LOST, "simulated");
        if (at, mishap) == (Stage::Ready, Mishap::NodeLost)
            && annotation::<Permit>(&self.view, PERMIT_ANNOTATION).is_none()
        {
            // It is lost with the permit in the courier's hands.
            return false;
        }
        self.suffered = Some(mishap);
        match mishap {
            Mishap::NodeLost => {
                self.lost = true;
                self.mishap = None;
            }
            Mishap::Hangs => return true,
            Mishap::NoNode => {
                let words = json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "simulated"}]);
                self.status(api, |s| s["conditions"] = words);
                return true;
            }
            Mishap::NoImage => {
                let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "simulated"}});
                let status = container(COURIER_CONTAINER, &waiting);
                self.status(api, |s| s["initContainerStatuses"] = json!([status]));
                return at == Stage::Scheduled;
            }
            Mishap::Reported | Mishap::OutOfMemory => self.fail(api, lost()),
            Mishap::Evicted => self.end(api, None, Some(("Evicted", "simulated"))),
            Mishap::Killed => self.end(api, None, None),
            Mishap::Preempted => {
                let disrupted =
                    json!({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"});
                self.status(api, |s| {
                    if let Some(all) = s["conditions"].as_array_mut() {
                        all.push(disrupted);
                    }
                });
                self.end(api, None, None);
                api.remove(&self.key.clone());
            }
        }
        true
    }

    fn advance(&mut self, api: &mut Api) {
        let now = api.now;
        let running = json!({"running": {"startedAt": time(now + self.skew)}});
        self.stage = match self.stage {
            Stage::New => {
                let at = time(now);
                let key = self.key.clone();
                api.change(&key, |pod| {
                    pod["spec"]["nodeName"] = json!("node");
                    pod["status"]["conditions"] =
                        json!([{"type": "PodScheduled", "status": "True", "lastTransitionTime": at}]);
                });
                Stage::Scheduled
            }
            Stage::Scheduled => {
                let request = (Kind::Map, self.key.1.clone(), self.key.2.clone());
                let Some(map) = api.get(&request) else { return };
                let text = map["data"][REQUEST_KEY].as_str().expect("a request");
                let request: BuildRequest = serde_json::from_str(text).expect("a request");
                let attempt = request.attempt.clone();
                self.request = Some(request);
                self.status(api, |s| {
                    s["phase"] = json!("Pending");
                    s["initContainerStatuses"] = json!([container(COURIER_CONTAINER, &running)]);
                });
                self.write(now, Event::CourierStarted { attempt });
                Stage::Courier
            }
            Stage::Courier => {
                self.status(api, |s| {
                    s["phase"] = json!("Running");
                    s["containerStatuses"] = json!([container(BUILD_CONTAINER, &running)]);
                });
                let step = |line| PlannedStep { stage: "0".into(), line, instruction: format!("RUN {line}") };
                self.write(now, Event::Planned { steps: vec![step(1), step(2)] });
                self.write(now, Event::StepStarted { step: 1 });
                Stage::Building
            }
            Stage::Building => {
                if self.content().contains("fail") {
                    let failure = Failure::new(FailureClass::User, reason::STEP_FAILED, "exit code 1");
                    self.fail(api, failure.in_step(1));
                    return;
                }
                self.write(now, Event::StepDone { step: 1, cached: false, cache_miss: None });
                self.write(now, Event::StepStarted { step: 2 });
                Stage::Step1
            }
            Stage::Step1 => {
                self.write(now, Event::StepDone { step: 2, cached: false, cache_miss: None });
                Stage::Step2
            }
            Stage::Step2 => {
                self.write(now, Event::Pushing);
                Stage::Pushing
            }
            Stage::Pushing => {
                self.write(now, Event::ReadyToTag { image: self.image() });
                Stage::Ready
            }
            Stage::Ready => {
                let permit = annotation::<Permit>(&self.view, PERMIT_ANNOTATION);
                let digest = self.image().digest;
                if !permit.is_some_and(|p| p.allows(&self.attempt(), &digest, now + self.skew)) {
                    // A heartbeat every 20 seconds, and the last before now.
                    self.write(now, Event::Heartbeat);
                    if now - *self.ready.get_or_insert(now) > PERMIT_WAIT && !self.lost {
                        let why = "no permit to tag";
                        self.fail(
                            api,
                            Failure::new(FailureClass::Infrastructure, reason::NOT_PERMITTED, why),
                        );
                    }
                    return;
                }
                self.tagging = Some(now);
                return;
            }
            Stage::Tagged => {
                self.write(now, Event::Succeeded { image: self.image() });
                Stage::Succeeded
            }
            Stage::Succeeded => {
                self.end(api, Some(Outcome::Succeeded(self.image())), None);
                return;
            }
            Stage::Ended => return,
        };
    }

    fn image(&self) -> Pushed {
        let reference = match self.request.as_ref().map(|r| &r.output) {
            Some(kiln_contract::request::Output::Registry { references, .. }) => references[0].clone(),
            _ => String::new(),
        };
        Pushed { reference, digest: Registry::digest(&self.content()), size: 1 }
    }
}

fn container(name: &str, state: &Value) -> Value {
    json!({"name": name, "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": state})
}

/// All pods at work, by UID.
pub type Runners = BTreeMap<String, Runner>;
