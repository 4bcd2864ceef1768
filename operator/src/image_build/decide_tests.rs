//! Tables for the decision: every row of the status contract, and every way a run can go.

use kiln_api::v1alpha1::{FailureClass as Class, QueueStatus, RunResult, StepState};
use kiln_contract::control::{Permit, Stop};
use kiln_contract::journal::{BuildState, Event};
use kiln_contract::report::Outcome;
use kiln_contract::{Failure, FailureClass, reason};

use super::conditions;
use super::decide::{Action, CreationFault, CreationFaultKind, Slot};
use super::kubelet::Warning;
use super::testing::{World, at, desired, failed, journal, kinds, plan, pushed, queued};
use super::validate::Buildable;

#[test]
fn a_build_from_apply_to_ready() {
    let mut w = World::new();
    let first = w.decide();
    assert_eq!(first.actions, [Action::CreatePod { attempt: 1 }]);
    assert_eq!((w.ready().as_str(), w.kstatus(), w.status.run), ("Unknown Starting", "InProgress", Some(1)));
    assert!(w.status.completion_time.is_none() && w.status.start_time.is_some());
    w.run_pod();
    assert_eq!(w.status.pod_ref.as_ref().and_then(|p| p.uid.as_deref()), Some("pod-u-1-1"));
    w.journal = Some(journal(&w, vec![plan(), Event::StepStarted { step: 1 }]));
    assert!(kinds(&w.decide()).is_empty());
    assert_eq!((w.ready().as_str(), w.status.progress.as_deref()), ("Unknown Building", Some("0/2")));
    assert!(w.message().contains("step 1/2: RUN 1"), "{}", w.message());
    let both = [1, 2].map(|step| Event::StepStarted { step });
    w.journal = Some(journal(&w, [vec![plan()], both.to_vec()].concat()));
    assert!(kinds(&w.decide()).is_empty());
    assert!(w.message().contains("steps 1 and 2 of 2 run"), "{}", w.message());
    let done = |step| Event::StepDone { step, cached: false, cache_miss: None };
    w.journal = Some(journal(
        &w,
        vec![plan(), done(1), done(2), Event::Pushing, Event::ReadyToTag { image: pushed() }],
    ));
    let decision = w.decide();
    // By the clock of its node, which is years away from the operator's.
    let expires = "2026-01-01T00:01:00Z".parse::<jiff::Timestamp>().expect("a time").as_second();
    let permit = Permit { attempt: "u-1-1".into(), digest: "sha256:1".into(), expires };
    let pod = w.pod().name.clone();
    assert_eq!(decision.actions, [Action::Permit { pod, permit: permit.clone(), until: 1060 }]);
    assert_eq!((w.ready().as_str(), w.status.progress.as_deref()), ("Unknown Tagging", Some("2/2")));
    (w.pod().permit, w.pod().permit_until) = (Some(permit), Some(1060));
    assert!(kinds(&w.decide()).is_empty(), "one permit at a time");
    w.now += 56;
    assert_eq!(kinds(&w.decide()), ["permit"], "renewed before it expires unused");
    w.report(Outcome::Succeeded(pushed()));
    assert!(kinds(&w.decide()).is_empty());
    assert_eq!((w.ready().as_str(), w.kstatus()), ("True ImagePushed", "Current"));
    assert_eq!(w.status.image.as_ref().map(|i| i.digest.as_str()), Some("sha256:1"));
    assert_eq!((w.status.duration.as_deref(), w.status.history.len()), (Some("56s"), 1));
    assert!(w.status.completion_time.is_some() && w.status.failure.is_none());
}

#[test]
fn the_same_input_builds_once_and_another_one_again() {
    let mut w = World::new();
    w.run_pod();
    w.report(Outcome::Succeeded(pushed()));
    w.decide();
    w.generation = 2; // a change that is no input
    assert!(kinds(&w.decide()).is_empty());
    assert_eq!((w.status.run, w.kstatus()), (Some(1), "Current"));
    for (input, run) in [("v1:b", 2), ("v1:a", 3)] {
        w.desired = desired(input);
        assert_eq!(kinds(&w.decide()), ["create"]);
        assert_eq!((w.status.run, w.ready().as_str()), (Some(run), "Unknown Starting"));
        assert!(w.status.completion_time.is_none());
        w.run_pod();
        w.report(Outcome::Succeeded(pushed()));
        w.decide();
    }
    assert_eq!(w.pods.len(), 3, "each run has a pod of its own");
}

#[test]
fn a_rebuild_is_handled_once() {
    let mut w = World::new();
    w.rebuild = Some("1".into());
    w.run_pod();
    assert_eq!(w.status.last_handled_rebuild.as_deref(), Some("1"));
    w.report(Outcome::Succeeded(pushed()));
    w.decide();
    assert_eq!(w.status.run, Some(1));
    w.rebuild = Some("2".into());
    w.decide();
    assert_eq!((w.status.run, w.status.last_handled_rebuild.as_deref()), (Some(2), Some("2")));
    w.run_pod();
    w.report(Outcome::Succeeded(pushed()));
    w.rebuild = None;
    w.decide();
    assert_eq!(w.status.run, Some(2), "removing it does nothing");
}

#[test]
fn a_failed_step_is_terminal_until_an_edit() {
    let mut w = World::new();
    w.run_pod();
    let mut failure =
        Failure::new(FailureClass::User, reason::STEP_FAILED, "code 3").at("Dockerfile", 2).in_step(2);
    failure.exit_code = Some(3);
    w.report(Outcome::Failed(failure));
    w.decide();
    assert_eq!((w.ready().as_str(), w.kstatus()), ("False StepFailed", "Failed"));
    let status = w.status.failure.clone().expect("a failure");
    assert_eq!(
        (status.line, status.step, status.exit_code, status.retryable),
        (Some(2), Some(2), Some(3), false)
    );
    assert!(status.message.contains("kubectl -n ns logs app-"), "{}", status.message);
    assert!(w.status.completion_time.is_some());
    w.desired = desired("v1:b");
    w.decide();
    assert!(w.status.failure.is_none() && w.status.completion_time.is_none());
}

#[test]
fn cancel_ends_one_run_and_no_other() {
    let mut w = World::new();
    w.cancel = Some(2);
    w.run_pod();
    assert_eq!(w.ready(), "Unknown Building");
    w.cancel = Some(1);
    let stop = Stop { attempt: "u-1-1".into(), reason: reason::CANCELLED.into() };
    let pod = w.pod().name.clone();
    assert_eq!(w.decide().actions, [Action::Stop { pod, stop: stop.clone() }]);
    w.pod().stop = Some(stop);
    w.now += 44;
    assert!(kinds(&w.decide()).is_empty());
    w.now += 1;
    assert_eq!(kinds(&w.decide()), ["kill"]);
    w.pod().active_deadline = Some(1);
    assert!(kinds(&w.decide()).is_empty());
    w.pod().terminal = true;
    w.pod().reason = Some(("DeadlineExceeded".into(), String::new()));
    w.decide();
    assert_eq!((w.ready().as_str(), w.kstatus()), ("False Cancelled", "Failed"));
    assert!(w.status.failure.as_ref().is_some_and(|f| f.class == Class::Cancelled));
    w.decide();
    assert_eq!(w.status.run, Some(1), "it stays cancelled");
    w.rebuild = Some("x".into());
    w.decide();
    assert_eq!((w.status.run, w.ready().as_str()), (Some(2), "Unknown Starting"));
}

#[test]
fn a_cancel_between_push_and_permit_gives_none_and_one_that_comes_too_late_is_told() {
    let mut w = World::new();
    w.run_pod();
    w.journal = Some(journal(&w, vec![plan(), Event::ReadyToTag { image: pushed() }]));
    w.cancel = Some(1);
    assert_eq!(kinds(&w.decide()), ["stop"]);
    // The report says what is in the registry; that the order came too late changes nothing about it.
    w.report(Outcome::Succeeded(pushed()));
    w.decide();
    assert_eq!(w.ready(), "True ImagePushed");
}

#[test]
fn suspend_stops_and_resume_builds() {
    let mut w = World::new();
    w.run_pod();
    w.desired.suspend = true;
    assert_eq!(kinds(&w.decide()), ["stop"]);
    assert_eq!((w.ready().as_str(), w.kstatus()), ("False Suspended", "InProgress"));
    w.report(failed(FailureClass::Cancelled, reason::SUSPENDED));
    w.decide();
    assert_eq!((w.ready().as_str(), w.kstatus()), ("False Suspended", "InProgress"));
    assert_eq!(w.status.history.last().map(|h| h.result), Some(RunResult::Suspended));
    assert!(w.status.failure.is_none());
    w.desired.suspend = false;
    assert_eq!(kinds(&w.decide()), ["create"]);
    assert_eq!(w.status.run, Some(2));
    // What is finished stays as it is.
    w.run_pod();
    w.report(Outcome::Succeeded(pushed()));
    w.decide();
    w.desired.suspend = true;
    w.generation += 1;
    w.decide();
    assert_eq!((w.ready().as_str(), w.kstatus()), ("True ImagePushed", "Current"));
    // An edit while suspended waits, and does not look built.
    w.desired = desired("v1:b");
    w.desired.suspend = true;
    assert!(kinds(&w.decide()).is_empty());
    assert_eq!(w.ready(), "False Suspended");
    // A new object that is suspended starts nothing.
    let mut new = World::new();
    new.desired.suspend = true;
    assert!(kinds(&new.decide()).is_empty());
    assert_eq!((new.status.run, new.ready().as_str()), (None, "False Suspended"));
}

#[test]
fn an_edit_stops_what_runs_and_the_next_run_waits_for_its_pod() {
    let mut w = World::new();
    w.run_pod();
    w.desired = desired("v1:b");
    assert_eq!(kinds(&w.decide()), ["stop"]);
    assert_eq!((w.status.run, w.ready().as_str()), (Some(1), "Unknown Stopping"));
    w.report(failed(FailureClass::Cancelled, reason::SUPERSEDED));
    assert_eq!(w.decide().actions, [Action::CreatePod { attempt: 1 }]);
    assert_eq!(
        (w.status.run, w.status.history.last().map(|h| h.result)),
        (Some(2), Some(RunResult::Superseded))
    );
}

#[test]
fn an_invalid_dockerfile_ends_without_a_pod_and_one_that_is_right_builds() {
    let mut w = World::new();
    let failure = Failure::new(FailureClass::User, reason::DOCKERFILE_INVALID, "no").at("Dockerfile", 2);
    w.desired.buildable = Buildable::No(failure);
    assert!(kinds(&w.decide()).is_empty());
    assert_eq!(
        (w.ready().as_str(), w.kstatus(), w.status.run),
        ("False DockerfileInvalid", "Failed", Some(1))
    );
    assert!(w.status.completion_time.is_some() && w.status.attempts.is_empty());
    assert_eq!(w.status.failure.as_ref().and_then(|f| f.line), Some(2));
    w.desired = desired("v1:b");
    assert_eq!(kinds(&w.decide()), ["create"]);
}

#[test]
fn a_missing_source_is_waited_for_then_named_then_found() {
    let mut w = World::new();
    let missing =
        Buildable::NotYet(Failure::new(FailureClass::Source, reason::SOURCE_NOT_FOUND, "ConfigMap x"));
    w.desired = desired("v1:missing");
    w.desired.buildable = missing.clone();
    w.decide();
    assert_eq!(
        (w.ready().as_str(), w.kstatus(), w.status.run),
        ("Unknown SourceNotFound", "InProgress", None)
    );
    w.now += 299;
    w.decide();
    assert_eq!(w.status.run, None);
    w.now += 1;
    w.decide();
    assert_eq!((w.ready().as_str(), w.kstatus(), w.status.run), ("False SourceNotFound", "Failed", Some(1)));
    w.desired = desired("v1:a");
    w.run_pod();
    assert_eq!(w.status.run, Some(2));
    // Taken away while the build runs, and after it: nothing happens.
    w.desired = desired("v1:missing");
    w.desired.buildable = missing;
    assert!(kinds(&w.decide()).is_empty());
    w.report(Outcome::Succeeded(pushed()));
    w.decide();
    w.now += 1000;
    assert!(kinds(&w.decide()).is_empty());
    assert_eq!(w.ready(), "True ImagePushed");
}

#[test]
fn the_wait_for_a_source_is_not_shortened_by_what_was_reconciled_before_it() {
    let missing = |name: &str| {
        let failure = Failure::new(FailureClass::Source, reason::SOURCE_NOT_FOUND, name);
        let mut desired = desired(&format!("v1:{name}"));
        desired.buildable = Buildable::NotYet(failure);
        desired
    };
    let mut w = World::new();
    w.run_pod();
    // The build runs for an hour; `Reconciling` is True all the while, and stays so when the next run has to wait.
    w.now += 3600;
    w.report(failed(FailureClass::Infrastructure, reason::BUILDER_LOST));
    w.decide();
    w.now += 3000;
    w.slot = queued(5);
    (w.generation, w.desired) = (2, desired("v1:b"));
    w.decide();
    (w.generation, w.desired) = (3, missing("x"));
    w.decide();
    w.decide();
    let since = w.now;
    assert_eq!((w.ready().as_str(), w.kstatus()), ("Unknown SourceNotFound", "InProgress"));
    assert_eq!(w.status.source_missing_since.as_ref().map(|t| t.0), Some(at(since)));
    w.now = since + 299;
    w.decide();
    assert_eq!(w.ready(), "Unknown SourceNotFound");
    // Another name, another wait.
    (w.generation, w.desired) = (4, missing("y"));
    w.decide();
    w.now += 299;
    w.decide();
    assert_eq!(w.ready(), "Unknown SourceNotFound");
    w.now += 1;
    w.decide();
    assert_eq!((w.ready().as_str(), w.kstatus()), ("False SourceNotFound", "Failed"));
    assert_eq!(w.status.source_missing_since, None);
}

#[test]
fn a_missing_secret_is_named_and_waited_for_as_long_as_the_start_may_take() {
    let begin = || {
        let mut w = World::new();
        w.decide();
        let now = w.now;
        let pod = w.create_pod();
        (pod.node, pod.scheduled) = (Some("n".into()), Some(at(now)));
        assert_eq!(w.decide().again.map(|d| d.as_secs()), Some(10));
        assert_eq!(w.ready(), "Unknown Starting");
        let note = "MountVolume.SetUp failed for volume \"secrets\" : secret \"npm\" not found";
        w.warnings = vec![Warning { reason: "FailedMount".into(), note: note.into() }];
        w.now += 10;
        assert_eq!(w.decide().again.map(|d| d.as_secs()), Some(10));
        assert_eq!((w.ready().as_str(), w.kstatus()), ("Unknown WaitingForSecret", "InProgress"));
        w
    };
    let mut w = begin();
    w.now += 289;
    w.decide();
    assert_eq!(w.ready(), "Unknown WaitingForSecret");
    w.now += 1;
    assert_eq!(kinds(&w.decide()), Vec::<&str>::new());
    assert_eq!((w.ready().as_str(), w.kstatus()), ("False SecretNotFound", "Failed"));
    assert_eq!(w.status.attempts.len(), 1, "the Secret is not looked for a second time");
    assert_eq!(kinds(&w.decide()), ["stop", "kill"], "the pod would start when the Secret appears");
    // It appears in time.
    let mut w = begin();
    w.pod().sandbox = true;
    w.decide();
    assert_eq!(w.ready(), "Unknown Starting");
    (w.pod().courier.running, w.pod().build.running) = (true, true);
    w.decide();
    assert_eq!(w.ready(), "Unknown Building");
}

#[test]
fn a_full_house_queues_and_quota_too() {
    let mut w = World::new();
    w.slot = Slot::Unknown;
    assert!(w.look().ask_for_slot);
    w.slot = queued(5);
    assert_eq!(kinds(&w.decide()), ["preflight"]);
    assert_eq!((w.ready().as_str(), w.kstatus()), ("Unknown Queued", "InProgress"));
    assert_eq!(w.status.queue, Some(QueueStatus { position: 5, reason: "Total".to_owned() }));
    assert_eq!(
        conditions::find(&w.status, "Reconciling").map(|c| c.message.as_str()),
        Some("waits for a place: the cluster runs at most 20 builds at a time; number 5 in the queue")
    );
    assert_eq!((w.status.run, w.status.attempts.len()), (Some(1), 0));
    w.slot = Slot::Granted;
    assert_eq!(kinds(&w.decide()), ["create"]);
    assert!(w.status.queue.is_none());
    w.creation =
        Some(CreationFault { at: at(w.now), kind: CreationFaultKind::Quota("exceeded quota: q".into()) });
    assert!(kinds(&w.decide()).is_empty());
    assert_eq!(
        (w.ready().as_str(), w.status.queue.as_ref().map(|q| q.reason.as_str())),
        ("Unknown Queued", Some("Quota"))
    );
    w.now += 3600;
    assert_eq!(kinds(&w.decide()), ["create"], "tried again for as long as it takes");
}

#[test]
fn a_refused_pod_is_terminal_and_a_missing_account_is_waited_for() {
    let fault = |at_: i64, kind| Some(CreationFault { at: at(at_), kind });
    let mut w = World::new();
    w.decide();
    let refused = Failure::new(FailureClass::Policy, reason::POD_REFUSED, "violates PodSecurity");
    w.creation = fault(w.now, CreationFaultKind::Terminal(refused));
    w.decide();
    assert_eq!((w.ready().as_str(), w.kstatus()), ("False PodRefused", "Failed"));
    let mut w = World::new();
    w.decide();
    let missing = Failure::new(FailureClass::Source, reason::SOURCE_NOT_FOUND, "ServiceAccount x");
    w.creation = fault(w.now, CreationFaultKind::Missing(missing));
    assert!(kinds(&w.decide()).is_empty());
    assert_eq!(w.ready(), "Unknown SourceNotFound");
    w.now += 10;
    assert_eq!(kinds(&w.decide()), ["create"]);
    w.now += 290;
    w.decide();
    assert_eq!(w.ready(), "False SourceNotFound");
}

#[test]
fn after_a_restart_without_journal_steps_are_unknown_and_the_report_decides() {
    let mut w = World::new();
    w.run_pod();
    w.journal = Some(journal(&w, vec![plan(), Event::StepStarted { step: 1 }]));
    w.decide();
    w.journal = None;
    w.report(Outcome::Succeeded(pushed()));
    w.decide();
    assert_eq!(w.ready(), "True ImagePushed");
    assert!(w.status.steps.iter().all(|s| s.state == StepState::Unknown));
}

#[test]
fn a_crash_before_the_pod_makes_it_and_a_foreign_journal_is_not_taken() {
    let mut w = World::new();
    let first = w.decide();
    // Nothing of it was done: the same is decided again, for the same attempt.
    assert_eq!(w.look().actions, first.actions);
    assert_eq!(w.status.attempts.len(), 1);
    w.run_pod();
    w.journal = Some(BuildState {
        attempt: Some("other-1-1".into()),
        succeeded: Some(pushed()),
        ..BuildState::default()
    });
    w.pod().terminal = true;
    w.decide();
    assert_eq!(w.status.attempts[0].reason.as_deref(), Some(reason::BUILDER_LOST));
}

#[test]
fn a_refusal_is_looked_at_again_when_the_rules_change() {
    let refused = |text: &str| Failure::new(FailureClass::Policy, reason::POLICY_REFUSED, text);
    let rules = |world: &mut World, digest: &str| world.desired.policy.digest = digest.into();
    let allowed = desired("v1:a").buildable;
    let mut world = World::new();
    world.desired.buildable = Buildable::No(refused("no"));
    world.decide();
    assert_eq!((world.ready().as_str(), world.status.run), ("False PolicyRefused", Some(1)));
    assert_eq!(world.status.policy.as_ref().map(|p| p.digest.as_str()), Some("sha256:p"));
    // The same rules, later; and other rules that say the same.
    world.now += 60;
    world.decide();
    rules(&mut world, "sha256:q");
    world.decide();
    assert_eq!(world.status.run, Some(1), "nothing new is to be told");
    // It is refused for something else.
    world.desired.buildable = Buildable::No(refused("no, for another reason"));
    world.decide();
    assert_eq!((world.status.run, world.kstatus()), (Some(2), "Failed"));
    // Other rules allow it.
    world.desired.buildable = allowed.clone();
    assert!(
        world.decide().actions.is_empty(),
        "the rules are those that refused it: a courier's refusal stays"
    );
    rules(&mut world, "sha256:r");
    assert_eq!(kinds(&world.decide()), ["create"]);
    assert_eq!((world.status.run, world.kstatus()), (Some(3), "InProgress"));
    // Another failure, and success, do not depend on rules.
    for outcome in [failed(FailureClass::User, reason::STEP_FAILED), Outcome::Succeeded(pushed())] {
        let mut world = World::new();
        world.run_pod();
        world.report(outcome);
        world.decide();
        rules(&mut world, "sha256:q");
        world.decide();
        assert_eq!(world.status.run, Some(1));
    }
}

#[test]
fn what_waits_for_a_place_learns_at_once_that_its_pod_would_be_refused() {
    let mut world = World::new();
    world.slot = queued(7);
    assert_eq!(kinds(&world.decide()), ["preflight"]);
    world.preflight = Some(Ok(()));
    assert!(world.decide().actions.is_empty(), "it is asked once");
    assert_eq!(world.ready(), "Unknown Queued");
    let refusal = Failure::new(FailureClass::Policy, reason::POD_REFUSED, "Pod Security");
    world.preflight = Some(Err(refusal));
    assert!(world.decide().actions.is_empty());
    assert_eq!((world.ready().as_str(), world.kstatus()), ("False PodRefused", "Failed"));
    assert!(world.status.queue.is_none() && world.status.attempts.is_empty());
    // What was said of one run says nothing of a later attempt's place.
    let mut retried = World::new();
    retried.run_pod();
    retried.report(failed(FailureClass::Infrastructure, reason::BUILDER_LOST));
    retried.decide();
    retried.now += 60;
    retried.slot = queued(1);
    assert!(kinds(&retried.decide()).is_empty());
}
