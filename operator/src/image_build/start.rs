//! Whether a pod has started, is on its way, or never will. Pure.

use jiff::Timestamp;
use kiln_contract::{Failure, FailureClass, reason};

use super::conditions::reasons;
use super::kubelet::Hindrance;
use super::observe::{ContainerView, PodView};

/// Waiting reasons of the kubelet that do not go away by waiting, as a rule.
pub(super) const FAULTS: [&str; 10] = [
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
        /// When patience ends; never while the source is fetched, which has a limit of its own.
        until: Option<Timestamp>,
    },
    /// It never will.
    Failed(Failure),
}

/// How long a pod may take, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Until there is a node for it.
    pub scheduling: i64,
    /// From there until its containers run, fetching the source not counted; and until a missing object is there.
    pub start: i64,
}

/// Looks at a pod that is not terminal. `hindrance` is what Events say of one without a sandbox.
pub fn start(pod: &PodView, now: Timestamp, patience: Patience, hindrance: Option<&Hindrance>) -> Start {
    if pod.node.is_none() && pod.scheduled.is_none() {
        return no_node(pod, now, patience.scheduling);
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
        Start::Failed(Failure::new(FailureClass::Infrastructure, reason::POD_START_FAILED, message))
    };
    let (reason, message) = waiting(pod, name, container);
    if reason == "InvalidImageName" {
        return failed(message);
    }
    let hindrance = hindrance.filter(|_| !pod.sandbox && !pod.courier.has_started());
    let (reason, message) = match hindrance {
        // The container's own words are newer than what was said of its volumes.
        Some(h) if reason == reasons::STARTING => (h.reason.clone(), h.message.clone()),
        _ => (reason, message),
    };
    let since = pod.scheduled.or(pod.created).unwrap_or(now).as_second();
    // Only how long the source took is known by the node's clock, not when; what comes after it starts with a grace anew.
    let grace = patience.start;
    let until = match pod.source_took {
        Some(took) => since.saturating_add(took).saturating_add(grace).saturating_add(grace),
        None => since.saturating_add(grace),
    };
    if now.as_second() >= until {
        let waited = now.as_second() - since;
        if reason == reasons::STARTING {
            // A kubelet that works on it has words for what keeps it.
            let message = format!("{message} within {waited} seconds, and its node does not say why");
            return Start::Failed(Failure::new(FailureClass::Infrastructure, reason::BUILDER_LOST, message));
        }
        let message = format!("{message} (for {waited} seconds)");
        return match hindrance.map(|h| h.failure) {
            Some((class, why)) if class != FailureClass::Infrastructure => {
                Start::Failed(Failure::new(class, why, message))
            }
            _ => failed(message),
        };
    }
    Start::Waiting { reason, message, until: Timestamp::from_second(until).ok() }
}

/// A pod without a node.
fn no_node(pod: &PodView, now: Timestamp, patience: i64) -> Start {
    let since = pod.created.unwrap_or(now).as_second();
    let until = since.saturating_add(patience);
    let claim = pod.unschedulable.as_deref().and_then(missing_claim);
    let (reason, message) = match (&pod.unschedulable, claim) {
        (Some(_), Some(claim)) => {
            let message = format!(
                "PersistentVolumeClaim {claim} (spec.cache.mounts.claimName) is not in namespace {}; create it, or name another one",
                pod.namespace
            );
            (reasons::WAITING_FOR_CLAIM, message)
        }
        (Some(words), None) => (reasons::UNSCHEDULABLE, words.clone()),
        (None, _) => (reasons::STARTING, format!("pod {} waits for a node", pod.name)),
    };
    if now.as_second() >= until && claim.is_some() {
        let message = format!("{message} (for {patience} seconds)");
        return Start::Failed(Failure::new(FailureClass::User, reason::INVALID_SPEC, message));
    }
    if now.as_second() >= until {
        let message = format!(
            "no node was found for the builder pod within {patience} seconds: {message}; lower spec.resources.requests, or see that a node has room for them"
        );
        return Start::Failed(Failure::new(FailureClass::Infrastructure, reason::UNSCHEDULABLE, message));
    }
    Start::Waiting { reason: reason.to_owned(), message, until: Timestamp::from_second(until).ok() }
}

/// The claim that is not there, in the scheduler's words.
fn missing_claim(words: &str) -> Option<&str> {
    let (name, rest) = words.split_once("persistentvolumeclaim \"")?.1.split_once('"')?;
    rest.starts_with(" not found").then_some(name)
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

    const PATIENCE: Patience = Patience { scheduling: 3600, start: 300 };

    fn pod(change: impl FnOnce(&mut PodView)) -> PodView {
        let mut pod = PodView { node: Some("n".into()), scheduled: Some(at(0)), ..PodView::default() };
        change(&mut pod);
        pod
    }

    fn word(pod: &PodView, now: i64) -> String {
        match start(pod, at(now), PATIENCE, None) {
            Start::Done => "done".into(),
            Start::Waiting { reason, until, .. } => format!("{reason} {}", until.is_some()),
            Start::Failed(failure) => failure.reason,
        }
    }

    #[test]
    fn a_missing_secret_is_named_while_there_is_time_and_after_it() {
        let hindrance = Hindrance {
            reason: reasons::WAITING_FOR_SECRET.into(),
            message: "Secret x".into(),
            failure: (FailureClass::Source, reason::SECRET_NOT_FOUND),
        };
        let look = |pod: &PodView, now| start(pod, at(now), PATIENCE, Some(&hindrance));
        let stuck = pod(|p| p.courier.waiting = Some(("PodInitializing".into(), "w".into())));
        let Start::Waiting { reason: why, message, until } = look(&stuck, 299) else { panic!("it waits") };
        assert_eq!((why.as_str(), message.as_str(), until), ("WaitingForSecret", "Secret x", Some(at(300))));
        let Start::Failed(failure) = look(&stuck, 300) else { panic!("it has failed") };
        assert_eq!((failure.class, failure.reason.as_str()), (FailureClass::Source, "SecretNotFound"));
        assert_eq!(failure.message, "Secret x (for 300 seconds)");
        // What was said before the volumes were there says nothing any more.
        let later = pod(|p| p.sandbox = true);
        assert!(matches!(look(&later, 1), Start::Waiting { reason, .. } if reason == "Starting"));
        assert!(matches!(look(&later, 300), Start::Failed(f) if f.reason == reason::BUILDER_LOST));
    }

    /// The words are those of the scheduler (its plugin VolumeBinding, 1.37).
    #[test]
    fn a_missing_claim_is_named_while_there_is_time_and_after_it() {
        let words = "0/1 nodes are available: persistentvolumeclaim \"caches\" not found. not found";
        let pod = PodView {
            namespace: "ns".into(),
            created: Some(at(0)),
            unschedulable: Some(words.into()),
            ..PodView::default()
        };
        let Start::Waiting { reason: why, message, until } = start(&pod, at(1), PATIENCE, None) else {
            panic!("it waits")
        };
        let expected = "PersistentVolumeClaim caches (spec.cache.mounts.claimName) is not in namespace ns; create it, or name another one";
        assert_eq!((why.as_str(), message.as_str(), until), ("WaitingForClaim", expected, Some(at(3600))));
        let Start::Failed(failure) = start(&pod, at(3600), PATIENCE, None) else { panic!("it has failed") };
        assert_eq!((failure.class, failure.reason.as_str()), (FailureClass::User, reason::INVALID_SPEC));
        assert_eq!(failure.message, format!("{expected} (for 3600 seconds)"));
        assert_eq!(missing_claim("pod has unbound immediate PersistentVolumeClaims"), None);
    }

    #[test]
    fn a_start_in_all_its_ways() {
        let stuck = |why: &str| {
            let why = why.to_owned();
            pod(move |p| p.courier.waiting = Some((why, "w".into())))
        };
        let no_node =
            PodView { created: Some(at(0)), unschedulable: Some("0/3 nodes".into()), ..PodView::default() };
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
                    p.source_took = Some(1000);
                }),
                1599,
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
            (no_node.clone(), 3599, "Unschedulable true"),
            (no_node, 3600, reason::UNSCHEDULABLE),
            (PodView::default(), 0, "Starting true"),
            (stuck("ContainerCreating"), 299, "Starting true"),
            // Its kubelet says nothing: another node may do better.
            (stuck("ContainerCreating"), 300, reason::BUILDER_LOST),
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
