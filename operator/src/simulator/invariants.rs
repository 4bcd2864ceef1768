//! What must hold whatever happens (research/ops.md 2.5), looked at after every change that is stored.

use std::collections::{BTreeMap, BTreeSet};

use kiln_api::ImageBuildStatus;
use kiln_api::v1alpha1::{AttemptStatus, FailureClass, HistoryEntry, RunResult, condition};
use kiln_contract::control::{PERMIT_ANNOTATION, STOP_ANNOTATION};
use kiln_contract::reason;
use serde_json::Value;

use crate::image_build::conditions::find;
use crate::image_build::lifecycle::HISTORY;

use super::api::{Actor, Api, Change, Key, Kind, is_changed, is_terminal, owner, uid};
use super::node::{Mishap, Runner, Runners, Stage};
use super::registry::Registry;

/// Bytes of a status at most (design section 3).
const MAX_STATUS: usize = 64 << 10;
/// Seconds of a build's timeout, and that a pod may take to start, in the simulated objects.
pub const TIMEOUT: i64 = 3600;
pub const GRACE: i64 = 300;
/// Seconds that a pod may be without a node.
const UNSCHEDULABLE: i64 = 3600;
/// Attempts of a run: the first, and two retries.
const ATTEMPTS: usize = 3;
/// Seconds after an order to stop that a pod gets before it is given up.
const STOPPED: i64 = 150;

/// What users have done to an object, by its UID.
#[derive(Debug, Default)]
pub struct Wishes {
    /// Runs that were cancelled.
    pub cancelled: BTreeSet<i64>,
    /// How often something was done that may begin a run.
    pub triggers: usize,
    /// Whether pods were deleted, or made in its pods' place.
    pub meddled: bool,
}

/// The invariants, and what they remember.
#[derive(Debug, Default)]
pub struct Invariants {
    checked: usize,
    tags: usize,
    pub wishes: BTreeMap<String, Wishes>,
    /// Pods that were made, by name: their UIDs.
    made: BTreeMap<(String, String), BTreeSet<String>>,
    /// UIDs of pods that a status has named.
    on_record: BTreeSet<String>,
    /// UIDs of ImageBuilds with a pod that Pod Security did not let in.
    pub refused: BTreeSet<String>,
    /// How long the history was whenever an operator looked at an object.
    looks: BTreeMap<(usize, Key), Vec<usize>>,
}

/// Everything that an invariant looks at.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    pub api: &'a Api,
    pub registry: &'a Registry,
    pub runners: &'a Runners,
}

pub type Verdict = Result<(), String>;

fn status(build: &Value) -> ImageBuildStatus {
    serde_json::from_value(build["status"].clone()).expect("a status")
}

/// The Dockerfile that an object asks for.
pub fn content(build: &Value) -> &str {
    build["spec"]["source"]["inline"]["files"][0]["content"].as_str().unwrap_or_default()
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// Run and attempt of an attempt's name.
fn numbers(attempt: &str) -> (i64, i64) {
    let mut parts = attempt.rsplit('-').map(|n| n.parse().unwrap_or_default());
    let attempt = parts.next().unwrap_or_default();
    (parts.next().unwrap_or_default(), attempt)
}

impl Invariants {
    /// An operator has looked at an object.
    pub fn looked(&mut self, operator: usize, key: &Key, at: usize) {
        self.looks.entry((operator, key.clone())).or_default().push(at);
    }

    pub fn wishes(&mut self, uid: String) -> &mut Wishes {
        self.wishes.entry(uid).or_default()
    }

    /// Looks at what was changed since the last look.
    pub fn check(&mut self, scene: Scene<'_>) -> Verdict {
        while let Some(change) = scene.api.history.get(self.checked) {
            let index = self.checked;
            self.checked += 1;
            if let Actor::Operator(operator) = change.by {
                match change.key.0 {
                    Kind::Build => self.status_written(scene, change)?,
                    Kind::Pod => self.pod_written(scene, change, index, operator)?,
                    _ => {}
                }
            }
        }
        while let Some(moved) = scene.registry.moves.get(self.tags) {
            self.tags += 1;
            tag_moved(scene, &moved.attempt, &moved.owner)?;
        }
        Ok(())
    }

    fn status_written(&mut self, scene: Scene<'_>, change: &Change) -> Verdict {
        let (Some(before), Some(now)) = (&change.before, &change.now) else {
            return Err("an operator created or deleted an ImageBuild".into());
        };
        ensure(before["spec"] == now["spec"], || "an operator changed a spec".into())?;
        let (old, new) = (status(before), status(now));
        let size = now["status"].to_string().len();
        ensure(size <= MAX_STATUS, || format!("a status of {size} bytes"))?;
        self.on_record.extend(new.attempts.iter().filter_map(|a| a.pod_uid.clone()));
        let mut pods = new.attempts.iter().filter_map(|a| scene.runners.get(a.pod_uid.as_ref()?));
        ensure(pods.all(|p| !p.changed), || "a pod that admission changed came on record".into())?;
        runs_go_on(&old, &new)?;
        new.attempts.iter().try_for_each(|attempt| is_told_as_it_was(scene, attempt))?;
        row(&new)?;
        let known = old.history.last().map_or(0, |h| h.run);
        for ended in new.history.iter().filter(|h| h.run > known) {
            if ended.result == RunResult::Succeeded {
                really_tagged(scene, &uid(now), ended)?;
            }
            if new.run == Some(ended.run) {
                self.failed_for_a_reason(scene, &uid(now), &new)?;
            }
        }
        let triggers = self.wishes.get(&uid(now)).map_or(0, |w| w.triggers);
        let runs = usize::try_from(new.run.unwrap_or_default()).unwrap_or_default();
        ensure(runs <= 1 + triggers, || format!("run {runs} after {triggers} triggers"))?;
        ensure(new.attempts.len() <= ATTEMPTS, || format!("{} attempts in a run", new.attempts.len()))?;
        let again = new.attempts.iter().rev().skip(1).all(|a| a.class != Some(FailureClass::User));
        ensure(again, || "what its author got wrong was tried again".into())?;
        let ready = find(&new, condition::READY).is_some_and(|c| c.status == "True");
        // What the status is of: the object as it was at that generation.
        let mut at = scene.api.history.iter().filter(|c| c.key == change.key).filter_map(|c| c.now.as_ref());
        let spec = at.rfind(|b| b["metadata"]["generation"] == new.observed_generation && uid(b) == uid(now));
        if let (true, Some(spec)) = (ready, spec) {
            let digest = new.image.as_ref().map(|i| i.digest.clone()).unwrap_or_default();
            let expected = Registry::digest(content(spec));
            ensure(digest == expected, || "Ready=True for a generation whose image was not built".into())?;
        }
        Ok(())
    }

    /// A run that did not succeed has a cause that is no fault of the API server's or the operator's.
    fn failed_for_a_reason(&self, scene: Scene<'_>, uid: &str, new: &ImageBuildStatus) -> Verdict {
        let Some(failure) = &new.failure else { return Ok(()) };
        let run = new.run.unwrap_or_default();
        let of_run = || scene.runners.values().filter(|r| r.attempt().starts_with(&format!("{uid}-{run}-")));
        let meddled = self.wishes.get(uid).is_some_and(|w| w.meddled);
        let mishaps = of_run().filter(|r| r.suffered.is_some()).count();
        let last = new.attempts.last();
        let pod = last.and_then(|a| a.pod_uid.as_ref()).and_then(|uid| scene.runners.get(uid));
        let age = pod.map_or(0, |p| scene.api.now - p.created);
        let holds = match failure.class {
            FailureClass::User => of_run().any(|r| r.content().contains("fail")),
            FailureClass::Cancelled => self.wishes.get(uid).is_some_and(|w| w.cancelled.contains(&run)),
            FailureClass::OutOfMemory => of_run().any(|r| r.suffered == Some(Mishap::OutOfMemory)),
            // A Date has whole seconds.
            FailureClass::Timeout => age >= TIMEOUT - 5,
            _ if failure.reason == reason::POD_START_FAILED => age >= GRACE - 5,
            _ if failure.reason == reason::POD_NAME_CONFLICT => meddled,
            _ if failure.reason == reason::POD_REFUSED => self.refused.contains(uid),
            _ if failure.reason == reason::POD_MODIFIED => {
                let run = format!("{uid}-{run}-");
                scene.runners.values().any(|r| r.changed && r.made_for().starts_with(&run))
            }
            _ if failure.reason == reason::UNSCHEDULABLE => {
                age >= UNSCHEDULABLE - 5 && pod.is_some_and(|p| p.suffered == Some(Mishap::NoNode))
            }
            // Its node was slow, or it met with something, each time.
            _ => new.attempts.len() == ATTEMPTS && (mishaps >= 1 || meddled || age >= GRACE - 5),
        };
        ensure(holds, || {
            format!(
                "run {run} failed as {:?} {} for no reason: {}",
                failure.class, failure.reason, failure.message
            )
        })
    }

    fn pod_written(&mut self, scene: Scene<'_>, change: &Change, index: usize, operator: usize) -> Verdict {
        let name = &change.key.2;
        let Some(now) = &change.now else {
            let Some(pod) = &change.before else { return Ok(()) };
            left_over(scene, pod, index)?;
            return deleted(scene, pod, change.at);
        };
        let owner = owner(now).ok_or_else(|| format!("an operator touched pod {name} of somebody else"))?;
        let Some(before) = &change.before else {
            let made = self.made.entry((change.key.1.clone(), name.clone())).or_default();
            // One of that name may have gone unseen, with its object or by somebody's hand: then it was never on record.
            let works = |r: &Runner| r.is_alive() && (r.stage > Stage::New || r.lost);
            let alive = made.iter().any(|uid| scene.runners.get(uid).is_some_and(works));
            let build = scene.api.all(Kind::Build).find(|(_, b)| uid(b) == owner);
            let mut earlier = scene.api.history[..change.sent].iter();
            let of = |b: &Value| uid(b) == owner;
            let then = earlier.rfind(|c| c.key.0 == Kind::Build && c.now.as_deref().is_some_and(of));
            let then = then.and_then(|c| c.now.as_ref()).map(|b| status(b).attempts).unwrap_or_default();
            let on_record = then.iter().any(|a| a.pod_name == *name && a.pod_uid.is_some());
            ensure(!alive && !on_record, || format!("pod {name} was made twice"))?;
            made.insert(uid(now));
            // A request of a dead operator may arrive long after its attempt has ended: such a pod is stopped when it is seen,
            // and gets no permit.
            let attempt = now["metadata"]["annotations"]["kiln.build/attempt"].as_str().unwrap_or_default();
            let current = build.is_some_and(|(_, b)| {
                let last = b["status"]["attempts"].as_array().and_then(|all| all.last());
                let number = last.and_then(|a| a["number"].as_i64()).unwrap_or_default();
                (b["status"]["run"].as_i64().unwrap_or_default(), number) == numbers(attempt)
            });
            return if current { self.alone(scene, &owner, &uid(now), index) } else { Ok(()) };
        };
        if now["metadata"]["deletionTimestamp"] != before["metadata"]["deletionTimestamp"] {
            left_over(scene, before, index)?;
            deleted(scene, before, change.at)?;
        }
        let told = |pod: &Value| {
            (
                pod["metadata"]["annotations"][STOP_ANNOTATION].clone(),
                pod["spec"]["activeDeadlineSeconds"].clone(),
            )
        };
        if told(now) != told(before) {
            left_over(scene, before, index)?;
        }
        let permit = &now["metadata"]["annotations"][PERMIT_ANNOTATION];
        if *permit != before["metadata"]["annotations"][PERMIT_ANNOTATION] {
            ensure(!is_changed(now), || format!("a permit for pod {name}, which admission changed"))?;
            return self.permitted(scene, now, &owner, (index, change.sent), operator);
        }
        Ok(())
    }

    /// Leave to tag is for an attempt that was wanted when the operator looked last before it asked.
    fn permitted(
        &self,
        scene: Scene<'_>,
        pod: &Value,
        owner: &str,
        (index, sent): (usize, usize),
        operator: usize,
    ) -> Verdict {
        let Some(runner) = scene.runners.get(&uid(pod)) else { return Ok(()) };
        let of = |c: &&Change| {
            c.key.0 == Kind::Build && [&c.now, &c.before].into_iter().flatten().any(|b| uid(b) == owner)
        };
        let states: Vec<(usize, &Change)> =
            (0..).zip(&scene.api.history[..index]).filter(|(_, c)| of(c)).collect();
        let (run, _) = numbers(&runner.attempt());
        let cancelled = run.to_string();
        let wanted = |change: &Change| {
            change.now.as_ref().is_some_and(|build| {
                content(build) == runner.content()
                    && build["spec"]["suspend"] != true
                    && build["metadata"]["annotations"]["kiln.build/cancel"] != cancelled.as_str()
                    && build["status"]["run"] == run
            })
        };
        // Since when it is not wanted any more.
        let unwanted = states.iter().rev().take_while(|(_, c)| !wanted(c)).last();
        let Some((since, change)) = unwanted else { return Ok(()) };
        // A request that was under way when it was edited or cancelled can't be called back.
        let looks = self.looks.get(&(operator, change.key.clone()));
        let look = looks.and_then(|all| all.iter().rfind(|look| **look <= sent));
        ensure(look.is_some_and(|look| look <= since), || {
            format!("a permit for {}, which was not wanted any more", runner.attempt())
        })
    }

    /// A new pod has no neighbour of the same object that still works, unless it was told to stop and did not. One whose
    /// making nobody heard of does not count: it gets no permit, and is stopped when it is seen.
    fn alone(&self, scene: Scene<'_>, owner_uid: &str, new: &str, index: usize) -> Verdict {
        for runner in scene
            .runners
            .values()
            .filter(|r| r.is_alive() && r.uid != new && !r.lost && self.on_record.contains(&r.uid))
        {
            let Some(pod) = scene.api.get(&runner.key).filter(|p| uid(p) == runner.uid) else { continue };
            if owner(pod).as_deref() != Some(owner_uid) || is_terminal(pod) || runner.stage >= Stage::Tagged {
                continue;
            }
            let told = |c: &&Change| {
                c.now.as_ref().is_some_and(|p| {
                    uid(p) == runner.uid
                        && (p["metadata"]["annotations"][STOP_ANNOTATION].is_string()
                            || !p["metadata"]["deletionTimestamp"].is_null())
                })
            };
            let since = scene.api.history[..index].iter().find(told).map(|c| c.at);
            let patience = since.is_some_and(|at| scene.api.now - at >= STOPPED - 30);
            ensure(patience, || format!("a pod was made while {} was at work", runner.key.2))?;
        }
        Ok(())
    }
}

/// What the kubelet or the scheduler did to a pod is said of an attempt only where they did it.
fn is_told_as_it_was(scene: Scene<'_>, attempt: &AttemptStatus) -> Verdict {
    let Some(pod) = attempt.pod_uid.as_ref().and_then(|uid| scene.runners.get(uid)) else { return Ok(()) };
    let possible: &[Mishap] = match attempt.class {
        Some(FailureClass::Evicted) => &[Mishap::Evicted, Mishap::Preempted],
        Some(FailureClass::OutOfMemory) => &[Mishap::OutOfMemory],
        _ => return Ok(()),
    };
    ensure(pod.suffered.is_some_and(|mishap| possible.contains(&mishap)), || {
        format!("an attempt ended as {:?} whose pod suffered {:?}", attempt.class, pod.suffered)
    })
}

/// Runs are numbered, and what has ended stays as it ended.
fn runs_go_on(old: &ImageBuildStatus, new: &ImageBuildStatus) -> Verdict {
    ensure(new.run >= old.run, || format!("run {:?} after run {:?}", new.run, old.run))?;
    let same = new.run == old.run;
    ensure(!(same && old.completion_time.is_some()) || new.completion_time == old.completion_time, || {
        "a run that had ended has another end".into()
    })?;
    let kept = |h: &HistoryEntry| {
        new.history.first().is_some_and(|first| first.run > h.run) || new.history.contains(h)
    };
    ensure(old.history.iter().all(kept), || "history was rewritten".into())?;
    ensure(!same || new.attempts.len() >= old.attempts.len(), || "an attempt was forgotten".into())
}

/// The conditions are one of the contract's rows (research/ops.md 1.1).
fn row(new: &ImageBuildStatus) -> Verdict {
    const ROWS: [[&str; 4]; 5] = [
        ["True", "False", "Unknown", "Unknown"],
        ["False", "False", "True", "True"],
        ["False", "True", "False", "False"],
        ["False", "False", "False", "Unknown"],
        ["True", "False", "False", "Unknown"],
    ];
    let kinds = [condition::RECONCILING, condition::STALLED, condition::READY, condition::SUCCEEDED];
    let row = kinds.map(|kind| find(new, kind).map_or("", |c| c.status.as_str()));
    ensure(ROWS.contains(&row), || format!("conditions that the contract does not have: {row:?}"))?;
    let ended = row[1] == "True" || row[2] == "True";
    ensure(!ended || new.completion_time.is_some(), || "an end without completionTime".into())
}

/// What the history calls a success is in the registry, tagged by that run.
fn really_tagged(scene: Scene<'_>, uid: &str, ended: &HistoryEntry) -> Verdict {
    let attempts = format!("{uid}-{}-", ended.run);
    let mut moves = scene.registry.moves.iter();
    let there = moves.any(|m| m.attempt.starts_with(&attempts) && Some(&m.digest) == ended.digest.as_ref());
    ensure(there, || format!("run {} succeeded and its tag was never moved", ended.run))
}

/// A pod is stopped or deleted only when its attempt has ended or is to end, by what was stored before that change; or when it
/// is not to run at all.
fn left_over(scene: Scene<'_>, pod: &Value, index: usize) -> Verdict {
    let (name, owner) = (&pod["metadata"]["name"], owner(pod).unwrap_or_default());
    let mut earlier = scene.api.history[..index].iter();
    let last = earlier.rfind(|c| c.key.0 == Kind::Build && c.now.as_ref().is_some_and(|b| uid(b) == owner));
    let Some(build) = last.and_then(|c| c.now.as_ref()).filter(|_| !is_changed(pod)) else { return Ok(()) };
    let attempts = status(build).attempts;
    let current = attempts.last().filter(|a| *name == *a.pod_name && a.finished_at.is_none());
    ensure(current.is_none_or(|a| a.stop_reason.is_some()), || {
        format!("pod {name} was stopped, and its attempt is under way")
    })
}

/// A pod is deleted only when nobody needs its log any more, or when it is not to run at all.
fn deleted(scene: Scene<'_>, pod: &Value, at: i64) -> Verdict {
    if !pod["spec"]["nodeName"].is_string() || is_changed(pod) {
        return Ok(());
    }
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let owner = owner(pod).unwrap_or_default();
    ensure(is_terminal(pod), || format!("pod {name} was deleted while it ran"))?;
    let attempt = pod["metadata"]["annotations"]["kiln.build/attempt"].as_str().unwrap_or_default();
    let latest = scene.api.all(Kind::Build).find(|(_, b)| uid(b) == owner);
    let latest = latest.and_then(|(_, b)| b["status"]["run"].as_i64()).unwrap_or(i64::MAX);
    let old = numbers(attempt).0 <= latest - i64::try_from(HISTORY).unwrap_or(0);
    let created: jiff::Timestamp =
        pod["metadata"]["creationTimestamp"].as_str().and_then(|t| t.parse().ok()).unwrap_or_default();
    let kept = at - created.as_second() >= 86_400;
    ensure(old || kept, || format!("pod {name} was deleted before its time"))
}

/// A tag is moved by nobody who has a successor or whose run has ended.
fn tag_moved(scene: Scene<'_>, attempt: &str, owner_uid: &str) -> Verdict {
    let mine = numbers(attempt);
    for runner in scene.runners.values().filter(|r| r.attempt().starts_with(&format!("{owner_uid}-"))) {
        let other = numbers(&runner.attempt());
        ensure(other <= mine, || format!("{attempt} moved its tag after {} had begun", runner.attempt()))?;
    }
    let Some((_, build)) = scene.api.all(Kind::Build).find(|(_, b)| uid(b) == owner_uid) else {
        return Ok(());
    };
    let status = status(build);
    let current = status.run == Some(mine.0) && status.completion_time.is_none();
    let on_record =
        status.attempts.last().is_some_and(|a| i64::from(a.number) == mine.1 && a.finished_at.is_none());
    ensure(current && on_record, || format!("{attempt} moved its tag after its end was on record"))
}
