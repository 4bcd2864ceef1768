//! Whether a pod has started, is on its way, or never will. Pure.

use jiff::Timestamp;
use kiln_contract::{Failure, FailureClass, reason};

use super::conditions::reasons;
use super::observe::{ContainerView, PodView};

/// Waiting reasons of the kubelet that do not go away by waiting, as a rule.
const FAULTS: [&str; 10] = [
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImageInspectError",
    "ImagePullBackOff",
    "PostStartHookError",
    "RegistryUnavailable",
    "RunContainerError",
    "SignatureValidationFailed",
];

/// How far a pod's start has come.
#[derive(Debug, Clone, PartialEq)]
pub enum Start {
    /// Courier and builder run.
    Done,
    /// Not yet: why, in one word and in the cluster's words, and when it will be given up.
    Waiting {
        /// One word.
        reason: String,
        /// The cluster's words.
        message: String,
        /// When patience ends; never for a pod without a node.
        until: Option<Timestamp>,
    },
    /// It never will.
    Failed(Failure),
}

/// Looks at a pod that is not terminal. `grace` is how many seconds it may take from having a node.
pub fn start(pod: &PodView, now: Timestamp, grace: i64) -> Start {
    if pod.node.is_none() && pod.scheduled.is_none() {
        let (reason, message) = match &pod.unschedulable {
            Some(words) => (reasons::UNSCHEDULABLE, words.clone()),
            None => (reasons::STARTING, format!("pod {} waits for a node", pod.name)),
        };
        return Start::Waiting { reason: reason.to_owned(), message, until: None };
    }
    if pod.source.running {
        let message = format!("pod {} fetches the source", pod.name);
        return Start::Waiting { reason: reasons::FETCHING.to_owned(), message, until: None };
    }
    let optional = [("source", &pod.source), ("git", &pod.git)];
    let optional = optional.into_iter().filter(|(_, c)| **c != ContainerView::default());
    let mut containers =
        [("courier", &pod.courier)].into_iter().chain(optional).chain([("build", &pod.build)]);
    let Some((name, container)) = containers.find(|(_, c)| !c.has_started()) else {
        return Start::Done;
    };
    let failed = |message: String| {
        let hint = format!("; see: kubectl -n {} describe pod {}", pod.namespace, pod.name);
        Start::Failed(Failure::new(FailureClass::Infrastructure, reason::POD_START_FAILED, message + &hint))
    };
    let (reason, message) = waiting(pod, name, container);
    if reason == "InvalidImageName" {
        return failed(message);
    }
    let since = pod.source_ended.or(pod.scheduled).or(pod.created).unwrap_or(now);
    let until = since.as_second().saturating_add(grace);
    if now.as_second() >= until {
        return failed(format!("{message} (for {grace} seconds)"));
    }
    Start::Waiting { reason, message, until: Timestamp::from_second(until).ok() }
}

fn waiting(pod: &PodView, name: &str, container: &ContainerView) -> (String, String) {
    match &container.waiting {
        Some((why, words)) if FAULTS.contains(&why.as_str()) || why == "InvalidImageName" => {
            (why.clone(), format!("container {name} of pod {} does not start: {why}: {words}", pod.name))
        }
        _ => (reasons::STARTING.to_owned(), format!("container {name} of pod {} has not started", pod.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image_build::testing::at;

    fn pod(change: impl FnOnce(&mut PodView)) -> PodView {
        let mut pod = PodView { node: Some("n".into()), scheduled: Some(at(0)), ..PodView::default() };
        change(&mut pod);
        pod
    }

    fn word(pod: &PodView, now: i64) -> String {
        match start(pod, at(now), 300) {
            Start::Done => "done".into(),
            Start::Waiting { reason, until, .. } => format!("{reason} {}", until.is_some()),
            Start::Failed(failure) => failure.reason,
        }
    }

    #[test]
    fn a_start_in_all_its_ways() {
        let stuck = |why: &str| {
            let why = why.to_owned();
            pod(move |p| p.courier.waiting = Some((why, "w".into())))
        };
        let no_node = PodView { unschedulable: Some("0/3 nodes".into()), ..PodView::default() };
        let cases = [
            (pod(|p| (p.courier.running, p.build.running) = (true, true)), 999, "done"),
            (pod(|p| (p.courier.running, p.source.running) = (true, true)), 9999, "Fetching false"),
            (
                pod(|p| {
                    p.courier.running = true;
                    p.source.waiting = Some(("ImagePullBackOff".into(), "w".into()));
                }),
                300,
                reason::POD_START_FAILED,
            ),
            (
                pod(|p| {
                    p.courier.running = true;
                    p.source.terminated = Some(Default::default());
                    p.source_ended = Some(at(1000));
                }),
                1299,
                "Starting true",
            ),
            (
                pod(|p| {
                    p.courier.running = true;
                    p.git.waiting = Some(("ImagePullBackOff".into(), "w".into()));
                }),
                1,
                "ImagePullBackOff true",
            ),
            (no_node, 9999, "Unschedulable false"),
            (PodView::default(), 0, "Starting false"),
            (stuck("ContainerCreating"), 299, "Starting true"),
            (stuck("ContainerCreating"), 300, reason::POD_START_FAILED),
            (stuck("ImagePullBackOff"), 299, "ImagePullBackOff true"),
            (stuck("ImagePullBackOff"), 300, reason::POD_START_FAILED),
            (stuck("InvalidImageName"), 0, reason::POD_START_FAILED),
            (
                pod(|p| {
                    p.courier.running = true;
                    p.build.waiting = Some(("CreateContainerError".into(), "seccomp".into()));
                }),
                1,
                "CreateContainerError true",
            ),
        ];
        for (pod, now, expected) in cases {
            assert_eq!(word(&pod, now), expected, "{pod:?}");
        }
    }
}
