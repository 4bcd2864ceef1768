//! What the kubelet's Events say of a pod that doesn't start, above all which Secret is not there. Pure.
//!
//! The operator has no verb on Secrets, so that a missing one shows in the kubelet's words only. They are no API: where they
//! change, the pod still waits and fails as before, with the kubelet's words in place of ours.

use std::collections::BTreeSet;

use kiln_contract::request::Source;
use kiln_contract::{FailureClass, reason};

use super::conditions::reasons;
use super::observe::PodView;
use super::validate::{Build, Given};

/// Seconds that a pod with a node may take before its Events are read: most have a sandbox by then.
const PATIENCE: i64 = 10;
/// Seconds between two looks at the Events of one pod.
pub const LOOK_EVERY: i64 = 10;
/// Reasons of Events that say why a pod gets no sandbox or volume.
pub(super) const FAULTS: [&str; 5] =
    ["FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodSandBox", "NetworkNotReady"];
/// Secrets that a message names at most.
const MAX_NAMED: usize = 3;

/// A warning about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// One word.
    pub reason: String,
    /// The kubelet's words.
    pub note: String,
}

/// What keeps a pod from starting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hindrance {
    /// Reason of the conditions while it may still go away.
    pub reason: String,
    /// What is wrong, and what to do.
    pub message: String,
    /// Class and reason of the failure when it didn't.
    pub failure: (FailureClass, &'static str),
}

/// In how many seconds the Events of a pod are to be read, if they are: it has a node, and nothing of it has started.
pub fn due(pod: &PodView, now: i64) -> Option<i64> {
    let begins = pod.scheduled.or(pod.created)?.as_second();
    let stuck = pod.node.is_some()
        && !pod.sandbox
        && !pod.courier.has_started()
        && !pod.terminal
        && pod.deletion.is_none();
    stuck.then(|| (begins + PATIENCE - now).max(0))
}

/// What the warnings (the newest first) say; `build` tells which field names a Secret.
pub fn hindrance(warnings: &[Warning], build: Option<&Build>, pod: &PodView) -> Option<Hindrance> {
    let words = || warnings.iter().filter(|w| FAULTS.contains(&w.reason.as_str()));
    let missing: BTreeSet<&str> = words().flat_map(|w| missing_secrets(&w.note)).collect();
    if !missing.is_empty() {
        return Some(no_secret(&missing, build, pod));
    }
    if let Some(found) = words().find_map(|w| missing_key(&w.note, build, pod)) {
        return Some(found);
    }
    let newest = words().next()?;
    let note: Vec<&str> = newest.note.split_whitespace().collect();
    Some(Hindrance {
        reason: newest.reason.clone(),
        message: format!("pod {} does not start: {}: {}", pod.name, newest.reason, note.join(" ")),
        failure: (FailureClass::Infrastructure, reason::POD_START_FAILED),
    })
}

/// The names in `secret "x" not found`.
fn missing_secrets(note: &str) -> impl Iterator<Item = &str> {
    note.split("secret \"").skip(1).filter_map(|rest| {
        let (name, rest) = rest.split_once('"')?;
        rest.starts_with(" not found").then_some(name)
    })
}

fn no_secret(names: &BTreeSet<&str>, build: Option<&Build>, pod: &PodView) -> Hindrance {
    let (namespace, mut class) = (&pod.namespace, FailureClass::Policy);
    let mut parts: Vec<String> = Vec::new();
    for name in names.iter().take(MAX_NAMED) {
        let uses = build.map(|b| uses(b, name)).unwrap_or_default();
        if uses.of_source {
            class = FailureClass::Source;
        }
        parts.push(format!(
            "Secret {name}{} is not in namespace {namespace}; create it: kubectl -n {namespace} create secret generic {name}{}",
            uses.fields(),
            uses.data
        ));
    }
    if names.len() > MAX_NAMED {
        parts.push(format!("and {} more", names.len() - MAX_NAMED));
    }
    Hindrance {
        reason: reasons::WAITING_FOR_SECRET.to_owned(),
        message: parts.join("; "),
        failure: (class, reason::SECRET_NOT_FOUND),
    }
}

/// The Secrets of which one lacks the key that the kubelet names: it does not say which.
fn missing_key(note: &str, build: Option<&Build>, pod: &PodView) -> Option<Hindrance> {
    let (before, key) = note.split_once("references non-existent secret key: ")?;
    let key = key.trim_end_matches(']').split([',', ' ']).next().unwrap_or(key);
    let volume = before.split('"').nth(1).unwrap_or_default();
    let build = build?;
    let list = if volume == "ssh" { ("spec.ssh", &build.ssh) } else { ("spec.secrets", &build.secrets) };
    let named: Vec<String> = (0..)
        .zip(list.1)
        .filter(|(_, given)| given.key == key)
        .map(|(n, given): (usize, _)| format!("{} ({}[{n}])", given.secret, list.0))
        .collect();
    let first = list.1.iter().find(|given| given.key == key)?;
    let (namespace, secret) = (&pod.namespace, &first.secret);
    Some(Hindrance {
        reason: reasons::WAITING_FOR_SECRET.to_owned(),
        message: format!(
            "Secret {} of namespace {namespace} has no key {key}; add it: kubectl -n {namespace} patch secret {secret} -p '{{\"stringData\":{{\"{key}\":\"VALUE\"}}}}'",
            named.join(" or ")
        ),
        failure: (FailureClass::Policy, reason::SECRET_NOT_FOUND),
    })
}

/// What a Secret is for.
#[derive(Default)]
struct Uses {
    fields: Vec<String>,
    of_source: bool,
    /// Arguments of `kubectl create secret generic`.
    data: String,
}

impl Uses {
    fn fields(&self) -> String {
        if self.fields.is_empty() { String::new() } else { format!(" ({})", self.fields.join(", ")) }
    }
}

fn uses(build: &Build, secret: &str) -> Uses {
    let mut uses = Uses::default();
    if build.source_secret.as_deref() == Some(secret) {
        let (field, data) = match &build.source {
            Source::Git(git) if !git.url.starts_with("https://") => {
                ("git", " --from-file=identity=FILE --from-file=known_hosts=FILE")
            }
            Source::Git(_) => ("git", " --from-literal=username=USER --from-literal=password=PASSWORD"),
            _ => ("http", " --from-literal=username=USER --from-literal=password=PASSWORD"),
        };
        uses.of_source = true;
        uses.fields.push(format!("spec.source.{field}.secretName"));
        uses.data.push_str(data);
    }
    let mut keys = BTreeSet::new();
    let mut step = |field: &str, list: &[Given]| {
        for (n, given) in list.iter().enumerate().filter(|(_, given)| given.secret == secret) {
            uses.fields.push(format!("{field}[{n}].secretName"));
            if keys.insert(given.key.clone()) {
                uses.data.push_str(&format!(" --from-file={}=FILE", given.key));
            }
        }
    };
    step("spec.secrets", &build.secrets);
    step("spec.ssh", &build.ssh);
    uses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image_build::testing::{at, desired};
    use crate::image_build::validate::Buildable;
    use kiln_contract::source::Git;

    fn build() -> Build {
        let Buildable::Yes(mut build) = desired("v1:a").buildable else { panic!("not buildable") };
        let given =
            |secret: &str, key: &str| Given { id: key.into(), secret: secret.into(), key: key.into() };
        let git = r#"{"url": "https://git.example.com/a", "depth": 1}"#;
        build.source = Source::Git(serde_json::from_str::<Git>(git).expect("a git source"));
        build.source_secret = Some("git".into());
        build.secrets = vec![given("there", "a"), given("npm", "token")];
        build.ssh = vec![given("npm", "key")];
        *build
    }

    fn say(reason: &str, note: &str) -> Option<Hindrance> {
        let pod = PodView { namespace: "ns".into(), name: "p".into(), ..PodView::default() };
        hindrance(&[Warning { reason: reason.into(), note: note.into() }], Some(&build()), &pod)
    }

    /// The notes are what a kubelet of 1.37 said.
    #[test]
    fn the_kubelets_words() {
        let set_up =
            |volume: &str, rest: &str| format!("MountVolume.SetUp failed for volume {volume:?} : {rest}");
        let (source, policy) = (FailureClass::Source, FailureClass::Policy);
        let infrastructure = FailureClass::Infrastructure;
        let cases = [
            (
                set_up("source-auth", r#"secret "git" not found"#),
                "WaitingForSecret",
                "Secret git (spec.source.git.secretName) is not in namespace ns; create it: kubectl -n ns create secret generic git --from-literal=username=USER --from-literal=password=PASSWORD",
                source,
            ),
            (
                set_up("secrets", r#"[secret "npm" not found, secret "other" not found]"#),
                "WaitingForSecret",
                "Secret npm (spec.secrets[1].secretName, spec.ssh[0].secretName) is not in namespace ns; create it: kubectl -n ns create secret generic npm --from-file=token=FILE --from-file=key=FILE; Secret other is not in namespace ns; create it: kubectl -n ns create secret generic other",
                policy,
            ),
            (
                set_up("secrets", "references non-existent secret key: token"),
                "WaitingForSecret",
                r#"Secret npm (spec.secrets[1]) of namespace ns has no key token; add it: kubectl -n ns patch secret npm -p '{"stringData":{"token":"VALUE"}}'"#,
                policy,
            ),
            (
                set_up("request", r#"configmap "nope" not found"#),
                "FailedMount",
                r#"pod p does not start: FailedMount: MountVolume.SetUp failed for volume "request" : configmap "nope" not found"#,
                infrastructure,
            ),
            (
                set_up(
                    "cache",
                    "mount failed: exit status 32\nMounting command: mount\n  unknown filesystem type 'nfs'.\n",
                ),
                "FailedMount",
                r#"pod p does not start: FailedMount: MountVolume.SetUp failed for volume "cache" : mount failed: exit status 32 Mounting command: mount unknown filesystem type 'nfs'."#,
                infrastructure,
            ),
            (
                set_up(
                    "cache",
                    "kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver name none.example.com not found in the list of registered CSI drivers",
                ),
                "FailedMount",
                r#"pod p does not start: FailedMount: MountVolume.SetUp failed for volume "cache" : kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver name none.example.com not found in the list of registered CSI drivers"#,
                infrastructure,
            ),
        ];
        for (note, reason, message, class) in cases {
            let found = say("FailedMount", &note).expect(&note);
            assert_eq!(
                (found.reason.as_str(), found.message.as_str(), found.failure.0),
                (reason, message, class)
            );
        }
        assert_eq!(say("Unhealthy", r#"secret "git" not found"#), None);
    }

    #[test]
    fn events_are_read_of_a_pod_that_has_a_node_and_nothing_else() {
        let pod = PodView { node: Some("n".into()), scheduled: Some(at(100)), ..PodView::default() };
        let with = |change: fn(&mut PodView)| {
            let mut pod = pod.clone();
            change(&mut pod);
            due(&pod, 200)
        };
        assert_eq!((due(&pod, 100), due(&pod, 103), due(&pod, 110)), (Some(10), Some(7), Some(0)));
        assert_eq!(with(|_| {}), Some(0));
        let never: [fn(&mut PodView); 5] = [
            |p| p.node = None,
            |p| p.sandbox = true,
            |p| p.courier.running = true,
            |p| p.terminal = true,
            |p| p.deletion = Some(at(1)),
        ];
        assert!(never.into_iter().all(|change| with(change).is_none()));
    }
}
