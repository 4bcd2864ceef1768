//! Every reason that conditions and failures may have: what it means, who acts, what to do. `docs/reference/reasons.md` is
//! written from it. Pure.

use kiln_contract::FailureClass::{
    self, Cancelled, Evicted, Infrastructure, OutOfMemory, Policy, Registry, Source, Timeout, User,
};
use kiln_contract::{Failure, reason};

use super::conditions::reasons;
use super::{kubelet, lifecycle, start};

/// Who has to act before it goes on or ends otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// Nobody.
    Nobody,
    /// Who wrote the Dockerfile or the ImageBuild.
    Author,
    /// Who runs the cluster.
    Platform,
    /// Who runs the registry, or holds its credentials.
    Registry,
}

impl Actor {
    /// The word of the reference.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Author => "author",
            Self::Platform => "platform",
            Self::Registry => "registry",
        }
    }
}

/// One reason.
#[derive(Debug)]
pub struct Entry {
    /// The word.
    pub word: &'static str,
    /// The classes that a failure with this reason may have, the usual one first; none where it is no failure.
    pub classes: &'static [FailureClass],
    /// Who acts.
    pub actor: Actor,
    /// What it means.
    pub meaning: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

const fn state(word: &'static str, actor: Actor, meaning: &'static str, remedy: &'static str) -> Entry {
    Entry { word, classes: &[], actor, meaning, remedy }
}

const fn failure(
    word: &'static str,
    classes: &'static [FailureClass],
    actor: Actor,
    meaning: &'static str,
    remedy: &'static str,
) -> Entry {
    Entry { word, classes, actor, meaning, remedy }
}

/// Reasons of conditions while nothing has failed.
#[rustfmt::skip]
pub const STATES: &[Entry] = &[
    state(reasons::IMAGE_PUSHED, Actor::Nobody, "The tags name the image; `status.image` has its digest.", "Nothing."),
    state(reasons::QUEUED, Actor::Nobody, "The build waits for others to end, because so many run already in all (`status.queue.reason` is `Total`), in its namespace (`Namespace`) or in the namespaces of a BuildPolicy (`Policy`), or it waits for the namespace's ResourceQuota (`Quota`).", "Wait; where it is the quota, free some or have it raised."),
    state(reasons::STARTING, Actor::Nobody, "The builder pod is being made or its containers are starting.", "Wait."),
    state(reasons::UNSCHEDULABLE, Actor::Platform, "No node takes the builder pod; the message has the scheduler's words.", "Give the pod a node that fits: requests, node selector, taints; the build then goes on by itself."),
    state(reasons::WAITING_FOR_SECRET, Actor::Author, "A Secret that the object names, or the key in it, is not there yet.", "Make it with the command in the message; the build then goes on by itself."),
    state(reasons::WAITING_FOR_CLAIM, Actor::Author, "The PersistentVolumeClaim of `spec.cache.mounts` is not there yet.", "Make it; the build then goes on by itself."),
    state(reasons::FETCHING, Actor::Nobody, "The source is on its way.", "Wait."),
    state(reasons::BUILDING, Actor::Nobody, "Steps run; `status.steps` says which.", "Wait."),
    state(reasons::PUSHING, Actor::Nobody, "All steps are done and the layers are on their way.", "Wait."),
    state(reasons::TAGGING, Actor::Nobody, "The image is pushed by digest; its tags are about to move.", "Wait."),
    state(reasons::RETRYING, Actor::Nobody, "An attempt fell to a fault of the infrastructure; the next one is due soon. `status.attempts` has the fault.", "Wait."),
    state(reasons::STOPPING, Actor::Nobody, "A builder pod was told to stop and has not ended yet.", "Wait."),
    state(reasons::SUSPENDED, Actor::Author, "`spec.suspend` is true: nothing is to run.", "Set `spec.suspend` to false to build."),
    state(reasons::UNREADABLE, Actor::Author, "The stored object is none that this version of the operator can read.", "Correct the field that the message names, or upgrade operator and CRD together."),
];

/// Reasons that an attempt or a run ends with.
#[rustfmt::skip]
pub const FAILURES: &[Entry] = &[
    failure(reason::STEP_FAILED, &[User], Actor::Author, "The command of a RUN ended with another code than 0, or a step could not be carried out.", "Read `status.failure.logTail` or the log that the message names, and correct the Dockerfile."),
    failure(reason::DOCKERFILE_INVALID, &[User], Actor::Author, "The Dockerfile does not parse.", "Correct the line that the message names."),
    failure(reason::DOCKERFILE_NOT_FOUND, &[User], Actor::Author, "The Dockerfile is not in the context.", "Correct `spec.dockerfile` or `spec.contextDir`, or add the file."),
    failure(reason::NOT_SUPPORTED, &[User, Source, Policy], Actor::Author, "The Dockerfile or the spec asks for something that this version of Kiln does not implement or this installation does not allow.", "Do without it, or ask the platform for it where the message says that a setting forbids it."),
    failure(reason::NOT_FOUND, &[User], Actor::Author, "A file that COPY names, a stage or a target is not there.", "Correct the name, or the ignore file that leaves it out."),
    failure(reason::DOWNLOAD_FAILED, &[User, Registry], Actor::Author, "What an ADD downloads is not to be had, or is something else than its checksum says.", "Check the address and the checksum, and whether builder pods may reach it."),
    failure(reason::INVALID_SPEC, &[User, Source, Policy], Actor::Author, "The spec asks for something that can't be.", "Correct the field that the message names."),
    failure(reason::SOURCE_NOT_FOUND, &[Source, User], Actor::Author, "The ConfigMap, Flux object, service account, repository, revision or archive that is named is not there. As a condition: it is waited for.", "Make it, or correct the name."),
    failure(reason::SECRET_NOT_LISTED, &[Policy], Actor::Platform, "The service account does not list a Secret that the object names.", "Add it to the `secrets` of the service account, if this namespace's builds may use it."),
    failure(reason::SECRET_NOT_FOUND, &[Policy, Source], Actor::Author, "A Secret that the object names, or the key in it, did not come in time.", "Make it with the command in the message, then ask for a rebuild."),
    failure(reason::SOURCE_UNAUTHORIZED, &[Source], Actor::Author, "The source's server wants other credentials.", "Put the right ones into the Secret that the source names."),
    failure(reason::SOURCE_CHECKSUM_MISMATCH, &[Source], Actor::Author, "What was fetched is not what the checksum names.", "Correct the checksum, or find out who changed the archive."),
    failure(reason::SOURCE_TOO_LARGE, &[Source], Actor::Author, "The source has more bytes or files than are allowed.", "Make it smaller, or name a part of it."),
    failure(reason::SOURCE_UNAVAILABLE, &[Source], Actor::Platform, "The source's server did not answer, or not in time.", "Check that builder pods reach it, then ask for a rebuild."),
    failure(reason::SOURCE_INVALID, &[Source], Actor::Author, "The source breaks a rule: a path that leads outside, a broken archive, an unknown form.", "Correct what the message names."),
    failure(reason::BASE_IMAGE_NOT_FOUND, &[User], Actor::Author, "A base image, its tag or its platform is not in the registry.", "Correct the name in FROM or in COPY --from."),
    failure(reason::BASE_IMAGE_INVALID, &[User], Actor::Author, "A base image is there and breaks a rule: digest, diff ID, media type, a limit.", "Use another base image, or have this one pushed anew."),
    failure(reason::REGISTRY_UNAUTHORIZED, &[Registry], Actor::Registry, "A registry asked for credentials, or for others.", "List a Secret with a login for it in the service account's `imagePullSecrets`, or give the login the right to pull."),
    failure(reason::REGISTRY_UNAVAILABLE, &[Registry], Actor::Registry, "A registry did not answer, or answered with an error until the retries were used up.", "Ask for a rebuild once the registry is well."),
    failure(reason::PUSH_FAILED, &[Registry], Actor::Registry, "A registry refused the push.", "Give the login the right to push there; check quota and immutable tags."),
    failure(reason::PUSH_VERIFICATION_FAILED, &[Registry], Actor::Registry, "The registry acknowledged the push and then showed something else.", "Find out who else writes that tag, and whether the registry's storage is well."),
    failure(reason::POLICY_REFUSED, &[Policy], Actor::Author, "A BuildPolicy of the namespace, or a setting of the operator, forbids it; the message names policy and field. It is tried again by itself when they change.", "Do with what is allowed, or ask the platform team for more."),
    failure(reason::ISOLATION_UNAVAILABLE, &[Policy], Actor::Platform, "The node does not allow the isolation that was asked for.", "Allow user namespaces on the node, or build on others with `spec.nodeSelector`."),
    failure(reason::TIMED_OUT, &[Timeout], Actor::Author, "`spec.timeout` passed.", "Make the build faster, or raise `spec.timeout`."),
    failure(reason::CANCELLED, &[Cancelled], Actor::Author, "The annotation `kiln.build/cancel` named this run.", "To build again, edit the object or change the annotation `kiln.build/rebuild`."),
    failure(reason::SUSPENDED, &[Cancelled], Actor::Author, "`spec.suspend` was set while it ran.", "Set `spec.suspend` to false to build."),
    failure(reason::SUPERSEDED, &[Cancelled], Actor::Nobody, "The object was edited or a rebuild was asked for while it ran; a newer run takes its place.", "Nothing."),
    failure(reason::OUT_OF_MEMORY, &[OutOfMemory], Actor::Author, "A step or the builder ran into the memory limit.", "Raise `spec.resources.limits.memory`, or use less memory in the step that the message names."),
    failure(reason::EVICTED, &[Evicted], Actor::Platform, "The node evicted the pod, or the pod had to make room for another.", "Read the message for what ran short on the node; request as much as the build needs."),
    failure(reason::POD_DELETED, &[Infrastructure], Actor::Platform, "The builder pod was deleted before it had reported.", "Find out who deletes pods in this namespace. To stop a build, use the annotation `kiln.build/cancel`."),
    failure(reason::POD_NAME_CONFLICT, &[Policy], Actor::Platform, "A pod or ConfigMap of the name that the attempt needs belongs to somebody else.", "Delete or rename what the message names."),
    failure(reason::POD_MODIFIED, &[Policy, Infrastructure], Actor::Platform, "The pod that was made is not the one that was asked for. Where an operator that has ended made it, another version of Kiln may have: it is deleted and made again, and only where it does not go the attempt ends, with the class `Infrastructure`.", "Exempt builder pods from the admission webhook that changes them."),
    failure(reason::POD_REFUSED, &[Policy], Actor::Platform, "The API server refused the pod: admission, Pod Security. It is tried again by itself when a BuildPolicy or the namespace's Pod Security labels change.", "Read the message for who refused it, and allow builder pods in this namespace."),
    failure(reason::POD_START_FAILED, &[Infrastructure, Timeout], Actor::Platform, "A container of the pod could not be started: image pull, volume, runtime.", "Read the message for the kubelet's words."),
    failure(reason::UNSCHEDULABLE, &[Infrastructure], Actor::Platform, "For longer than the operator waits no node took the builder pod; the message has the scheduler's words.", "Give the pod a node that fits: requests, node selector, taints. Then ask for a rebuild."),
    failure(reason::BUILDER_LOST, &[Infrastructure], Actor::Platform, "Builder or courier ended without saying why, or the node is gone.", "See the state of the node and of the pod; retries are used up if the run ended with this."),
    failure(reason::NOT_PERMITTED, &[Infrastructure, Cancelled], Actor::Platform, "The operator gave the attempt no permit to move its tags.", "See whether the operator runs and reaches the API server."),
    failure(reason::INTERNAL, &[Infrastructure], Actor::Platform, "Something in Kiln or on the node went wrong: no space, a bug.", "Read the message; report it if it names no lack of the node."),
];

/// Whether a failure of that class with that reason is tried again.
fn is_retried(word: &str, class: FailureClass) -> bool {
    lifecycle::is_retryable(&Failure::new(class, word, ""))
}

/// `docs/reference/reasons.md`.
pub fn to_markdown() -> String {
    let mut text = String::from(
        "# Reasons\n\n\
         <!-- Written by scripts/reference from operator/src/image_build/catalog.rs; edit that. -->\n\n\
         Every word that the `reason` of a condition, of `status.failure`, of an attempt or of a history entry may be. *Who acts*: the\n\
         **author** of the Dockerfile and the ImageBuild, the **platform** team, whoever runs the **registry**, or nobody. What is\n\
         *retried* gets another attempt by itself, up to `spec.retries`.\n\n\
         ## Conditions while nothing has failed\n\n\
         | reason | meaning | who acts | what to do |\n|---|---|---|---|\n",
    );
    for entry in STATES {
        let (word, actor) = (entry.word, entry.actor.as_str());
        text.push_str(&format!("| `{word}` | {} | {actor} | {} |\n", entry.meaning, entry.remedy));
    }
    let kubelets: Vec<&str> = start::FAULTS.iter().chain(&kubelet::FAULTS).copied().collect();
    text.push_str(&format!(
        "\nWhile a pod does not start, the condition has the kubelet's own word (`{}`) and its message; after a while the run fails \
         with `{}`. While the source is not there, it has the reason of the failure that follows (`{}`).\n",
        kubelets.join("`, `"),
        reason::POD_START_FAILED,
        reason::SOURCE_NOT_FOUND
    ));
    text.push_str(
        "\n## Failures\n\n\
         `Ready`, `Succeeded` and `Stalled` have the reason of the failure that ended the run. An attempt that ended well has the\n\
         reason `Succeeded`.\n\n\
         | reason | class | retried | meaning | who acts | what to do |\n|---|---|---|---|---|---|\n",
    );
    for entry in FAILURES {
        let classes: Vec<String> = entry.classes.iter().map(|c| format!("{c:?}")).collect();
        let retried: Vec<String> = entry
            .classes
            .iter()
            .filter(|class| is_retried(entry.word, **class))
            .map(|class| format!("{class:?}"))
            .collect();
        let retried = match retried.len() {
            0 => "no".to_owned(),
            n if n == classes.len() => "yes".to_owned(),
            _ => format!("as {}", retried.join(", ")),
        };
        let (word, actor) = (entry.word, entry.actor.as_str());
        text.push_str(&format!(
            "| `{word}` | {} | {retried} | {} | {actor} | {} |\n",
            classes.join(", "),
            entry.meaning,
            entry.remedy
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::image_build::testing::generated;

    /// The values of the string constants in the module `name` of a source text.
    fn constants(text: &str, name: &str) -> BTreeSet<String> {
        let module = text.split_once(&format!("pub mod {name} {{")).expect("the module").1;
        let module = module.split_once("\n}").expect("its end").0;
        let words: Vec<&str> = module.lines().filter(|l| l.trim_start().starts_with("pub const")).collect();
        let value = |line: &&str| line.split('"').nth(1).expect("a string").to_owned();
        words.iter().map(value).collect()
    }

    fn words(entries: &[Entry]) -> BTreeSet<String> {
        let words: BTreeSet<String> = entries.iter().map(|e| e.word.to_owned()).collect();
        assert_eq!(words.len(), entries.len(), "no word twice");
        words
    }

    #[test]
    fn every_reason_is_there_and_no_other() {
        let states = constants(include_str!("conditions.rs"), "reasons");
        let failures = constants(include_str!("../../../builder-pod/contract/src/failure.rs"), "reason");
        assert!(states.len() > 10 && failures.len() > 30, "{} {}", states.len(), failures.len());
        assert_eq!(words(STATES), states);
        assert_eq!(words(FAILURES), failures);
    }

    #[test]
    fn every_entry_says_something() {
        for entry in STATES.iter().chain(FAILURES) {
            let tidy = |text: &str| text.ends_with('.') && !text.contains(['|', '\n']);
            assert!(tidy(entry.meaning) && tidy(entry.remedy), "{entry:?}");
        }
        assert!(FAILURES.iter().all(|e| !e.classes.is_empty()));
    }

    #[test]
    fn the_reference_is_what_the_table_says() {
        generated("docs/reference/reasons.md", &to_markdown());
    }
}
