//! A pod as the decision needs it: a few hundred bytes instead of the whole object, so that thousands fit in memory.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodStatus};
use kiln_contract::control::{PERMIT_ANNOTATION, PERMIT_UNTIL_ANNOTATION, Permit, STOP_ANNOTATION, Stop};
use kiln_contract::paths::{BUILD_CONTAINER, COURIER_CONTAINER, GIT_CONTAINER, SOURCE_CONTAINER};
use kiln_contract::text::truncate;

use super::names::ATTEMPT_ANNOTATION;

/// Bytes of a message of kubelet or scheduler that are kept: the API server itself allows 32 KiB.
const MAX_WORDS: usize = 512;
/// Bytes of a termination message: the kubelet keeps 4 KiB at most.
const MAX_TERMINATION: usize = 4096;

/// What is known of a pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its resourceVersion when it was read.
    pub resource_version: String,
    /// UID of the ImageBuild that controls it.
    pub owner: Option<String>,
    /// Name of that ImageBuild.
    pub owner_name: Option<String>,
    /// Annotation `kiln.build/attempt`.
    pub attempt: Option<String>,
    /// `status.phase` is Succeeded or Failed: no container runs, none will.
    pub terminal: bool,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// When its last container ended.
    pub ended: Option<Timestamp>,
    /// When a node was found for it.
    pub scheduled: Option<Timestamp>,
    /// Its node.
    pub node: Option<String>,
    /// By when it was to be gone, once it is being deleted.
    pub deletion: Option<Timestamp>,
    /// `status.reason` (Evicted, DeadlineExceeded, ...) and `status.message`.
    pub reason: Option<(String, String)>,
    /// Why it is being disrupted (condition DisruptionTarget): reason and message.
    pub disruption: Option<(String, String)>,
    /// Whether it has a sandbox; its volumes are mounted before that.
    pub sandbox: bool,
    /// The scheduler's words, while there is no node for it.
    pub unschedulable: Option<String>,
    /// The courier.
    pub courier: ContainerView,
    /// The container `source`; empty where there is none.
    pub source: ContainerView,
    /// Seconds that `source` ran, once it has ended.
    pub source_took: Option<i64>,
    /// The container `git`; empty where there is none.
    pub git: ContainerView,
    /// The builder.
    pub build: ContainerView,
    /// The permit it carries.
    pub permit: Option<Permit>,
    /// When that permit is void at the latest, by the API server's clock.
    pub permit_until: Option<i64>,
    /// The order to stop it carries.
    pub stop: Option<Stop>,
    /// `spec.activeDeadlineSeconds`.
    pub active_deadline: Option<i64>,
}

/// What is known of a container.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerView {
    /// Why it waits to start: reason and message.
    pub waiting: Option<(String, String)>,
    /// Whether it runs.
    pub running: bool,
    /// How it ended.
    pub terminated: Option<Terminated>,
    /// How it ended before it was started again.
    pub last: Option<Terminated>,
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Terminated {
    /// Its exit code.
    pub exit_code: i32,
    /// The kubelet's word (Completed, Error, OOMKilled).
    pub reason: String,
    /// Its termination message.
    pub message: String,
}

impl ContainerView {
    /// Whether it runs or has run.
    pub fn has_started(&self) -> bool {
        self.running || self.terminated.is_some() || self.last.is_some()
    }
}

impl PodView {
    /// Reads a pod.
    pub fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let annotation = |key: &str| meta.annotations.as_ref().and_then(|a| a.get(key)).cloned();
        let spec = pod.spec.as_ref();
        let empty = PodStatus::default();
        let status = pod.status.as_ref().unwrap_or(&empty);
        let owner = meta.owner_references.iter().flatten().find(|o| {
            o.kind == "ImageBuild" && o.api_version.starts_with("kiln.build/") && o.controller == Some(true)
        });
        let condition = |kind: &str, value: &str| {
            status.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == value)
        };
        let words = |reason: &Option<String>, message: &Option<String>| {
            (reason.clone().unwrap_or_default(), truncate(message.as_deref().unwrap_or_default(), MAX_WORDS))
        };
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            owner: owner.map(|o| o.uid.clone()),
            owner_name: owner.map(|o| o.name.clone()),
            attempt: annotation(ATTEMPT_ANNOTATION),
            terminal: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            created: meta.creation_timestamp.as_ref().map(|t| t.0),
            ended: ended(status),
            scheduled: condition("PodScheduled", "True")
                .and_then(|c| c.last_transition_time.as_ref())
                .map(|t| t.0),
            node: spec.and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty()),
            deletion: meta.deletion_timestamp.as_ref().map(|t| t.0),
            reason: status.reason.is_some().then(|| words(&status.reason, &status.message)),
            disruption: condition("DisruptionTarget", "True").map(|c| words(&c.reason, &c.message)),
            sandbox: condition("PodReadyToStartContainers", "True").is_some(),
            unschedulable: condition("PodScheduled", "False").map(|c| words(&c.reason, &c.message).1),
            courier: container(status.init_container_statuses.as_deref(), COURIER_CONTAINER),
            source: container(status.init_container_statuses.as_deref(), SOURCE_CONTAINER),
            source_took: source_took(status),
            git: container(status.init_container_statuses.as_deref(), GIT_CONTAINER),
            build: container(status.container_statuses.as_deref(), BUILD_CONTAINER),
            permit: annotation(PERMIT_ANNOTATION).and_then(|text| serde_json::from_str(&text).ok()),
            permit_until: annotation(PERMIT_UNTIL_ANNOTATION).and_then(|text| text.parse().ok()),
            stop: annotation(STOP_ANNOTATION).and_then(|text| serde_json::from_str(&text).ok()),
            active_deadline: spec.and_then(|s| s.active_deadline_seconds),
        }
    }

    /// Whether a permit in its hands may still move a tag at `now`, a request under way included.
    pub fn may_tag(&self, now: Timestamp) -> bool {
        /// Seconds past a permit's end after which no tag moves any more (`kiln_registry`, `TAG_SECONDS`, and some for how
        /// exactly the API server's time is known).
        const MARGIN: i64 = 30;
        self.permit_until.is_some_and(|until| now.as_second() <= until + MARGIN)
    }

    /// Whether its node is gone: it was to be deleted a minute ago and is still there, and can't tag any more.
    pub fn is_lost(&self, now: Timestamp) -> bool {
        self.lost_after().is_some_and(|after| now.as_second() > after) && !self.may_tag(now)
    }

    /// After when it counts as lost, if it is being deleted and has no permit. No event will tell.
    pub fn lost_after(&self) -> Option<i64> {
        /// Seconds after the end of the grace period.
        const OVERDUE: i64 = 60;
        self.deletion.map(|by| by.as_second() + OVERDUE)
    }
}

fn source_took(status: &PodStatus) -> Option<i64> {
    let source = status.init_container_statuses.iter().flatten().find(|c| c.name == SOURCE_CONTAINER)?;
    let ended = source.state.as_ref()?.terminated.as_ref()?;
    let (from, to) = (ended.started_at.as_ref()?.0, ended.finished_at.as_ref()?.0);
    Some((to.as_second() - from.as_second()).max(0))
}

fn ended(status: &PodStatus) -> Option<Timestamp> {
    let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    containers.filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()).map(|t| t.0).max()
}

fn container(list: Option<&[ContainerStatus]>, name: &str) -> ContainerView {
    let Some(status) = list.unwrap_or_default().iter().find(|c| c.name == name) else {
        return ContainerView::default();
    };
    let ended = |state: Option<&ContainerState>| {
        let t = state?.terminated.as_ref()?;
        Some(Terminated {
            exit_code: t.exit_code,
            reason: t.reason.clone().unwrap_or_default(),
            message: truncate(t.message.as_deref().unwrap_or_default(), MAX_TERMINATION),
        })
    };
    ContainerView {
        waiting: status.state.as_ref().and_then(|s| s.waiting.as_ref()).map(|w| {
            let message = truncate(w.message.as_deref().unwrap_or_default(), MAX_WORDS);
            (w.reason.clone().unwrap_or_default(), message)
        }),
        running: status.state.as_ref().is_some_and(|s| s.running.is_some()),
        terminated: ended(status.state.as_ref()),
        last: ended(status.last_state.as_ref()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn view(value: serde_json::Value) -> PodView {
        PodView::of(&serde_json::from_value(value).expect("a pod"))
    }

    #[test]
    fn reads_owner_controls_and_containers() {
        let pod = view(json!({
            "metadata": {"name": "p", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {"kiln.build/permit": r#"{"attempt":"a","digest":"d","expires":7}"#, "kiln.build/permit-until": "100",
                    "kiln.build/stop": "garbage", "kiln.build/attempt": "a"},
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "ImageBuild", "name": "fake", "uid": "9", "controller": true},
                    {"apiVersion": "kiln.build/v1alpha1", "kind": "ImageBuild", "name": "b", "uid": "1", "controller": true}]},
            "spec": {"containers": [], "nodeName": "n", "activeDeadlineSeconds": 7},
            "status": {"phase": "Running",
                "initContainerStatuses": [{"name": "courier", "image": "", "imageID": "", "ready": true, "restartCount": 1,
                    "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 3, "message": "m"}}}],
                "containerStatuses": [{"name": "build", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}]}
        }));
        assert_eq!((pod.owner.as_deref(), pod.owner_name.as_deref()), (Some("1"), Some("b")));
        assert_eq!((pod.terminal, pod.stop.is_none(), pod.active_deadline), (false, true, Some(7)));
        assert_eq!(pod.courier.last.as_ref().map(|t| t.exit_code), Some(3));
        assert!(pod.courier.running && !pod.build.has_started());
        assert_eq!(pod.build.waiting, Some(("ImagePullBackOff".into(), "no".into())));
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        assert!(pod.may_tag(at(130)) && !pod.may_tag(at(131)));
    }

    #[test]
    fn a_pod_is_lost_a_minute_after_its_grace_and_never_with_a_live_permit() {
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        let mut pod = PodView { deletion: Some(at(1000)), ..PodView::default() };
        assert!(!pod.is_lost(at(1060)) && pod.is_lost(at(1061)));
        pod.permit_until = Some(1050);
        assert!(!pod.is_lost(at(1061)) && pod.is_lost(at(1081)));
    }
}
