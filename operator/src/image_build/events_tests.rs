//! Tests of the events: whole ways of a build, each decision's events in order.

use kiln_contract::report::Outcome;
use kiln_contract::{Failure, FailureClass};

use super::*;
use crate::image_build::decide::{CreationFault, CreationFaultKind, Slot};
use crate::image_build::testing::{World, at, pushed, queued};
use crate::queue::{Place, Wait};

/// Decides, and says what the events are. Deciding again says nothing.
fn decide(world: &mut World) -> Vec<Transition> {
    let before = world.status.clone();
    world.decide();
    let events = transitions(&before, &world.status);
    assert_eq!(transitions(&world.status, &world.status), [], "nothing happened twice");
    for event in &events {
        assert!(event.note.len() <= MAX_NOTE && !event.note.is_empty() && !event.reason.is_empty());
    }
    events
}

fn reasons_of(events: &[Transition]) -> Vec<&str> {
    events.iter().map(|e| e.reason.as_str()).collect()
}

fn fault() -> Outcome {
    Outcome::Failed(Failure::new(FailureClass::Infrastructure, reason::BUILDER_LOST, "the builder is gone"))
}

#[test]
fn a_build_that_succeeds() {
    let mut world = World::new();
    let events = decide(&mut world);
    assert_eq!(reasons_of(&events), ["RunStarted"]);
    let pod = world.status.attempts[0].pod_name.clone();
    assert_eq!(events[0].note, format!("run 1 started; pod {pod} is to be made"));
    assert_eq!(events[0].pod.as_ref().map(|p| p.name.as_str()), Some(pod.as_str()));
    let before = world.status.clone();
    world.run_pod();
    assert!(world.status.attempts[0].pod_uid.is_some());
    assert_eq!(
        transitions(&before, &world.status),
        [],
        "neither a pod that is made at once nor steps are events"
    );
    world.now += 90;
    world.report(Outcome::Succeeded(pushed()));
    let events = decide(&mut world);
    assert_eq!(reasons_of(&events), ["ImagePushed"]);
    assert_eq!(events[0].kind, EventType::Normal);
    assert_eq!(events[0].note, "run 1 pushed r.x/a:1@sha256:1 in 1m30s");
}

#[test]
fn a_failure_names_the_line() {
    let mut world = World::new();
    world.run_pod();
    let failure = Failure::new(FailureClass::User, reason::STEP_FAILED, "x".repeat(1024)).at("Dockerfile", 3);
    world.report(Outcome::Failed(failure));
    let events = decide(&mut world);
    assert_eq!(reasons_of(&events), ["StepFailed"]);
    assert_eq!((events[0].kind, events[0].action), (EventType::Warning, "FinishRun"));
    assert!(events[0].note.starts_with("run 1 failed after 0s: Dockerfile:3: xxx"), "{}", events[0].note);
    assert_eq!(events[0].pod.as_ref().and_then(|p| p.uid.as_deref()), Some("pod-u-1-1"));
}

#[test]
fn an_infrastructure_fault_is_retried_and_its_last_one_fails() {
    let mut world = World::new();
    world.desired.retries = 1;
    world.run_pod();
    world.report(fault());
    let events = decide(&mut world);
    assert_eq!(reasons_of(&events), ["Retrying"]);
    assert_eq!(events[0].kind, EventType::Warning);
    let note = &events[0].note;
    assert!(
        note.starts_with("attempt 1 ended as BuilderLost: the builder is gone") && note.ends_with("follows")
    );
    world.now += 60;
    assert_eq!(decide(&mut world), [], "its pod is not made yet");
    world.create_pod();
    let events = decide(&mut world);
    assert_eq!(reasons_of(&events), ["AttemptStarted"]);
    let pod = &world.status.attempts[1].pod_name;
    assert_eq!(events[0].note, format!("attempt 2 started: pod {pod} was made"));
    assert_eq!(events[0].pod.as_ref().and_then(|p| p.uid.as_deref()), Some("pod-u-1-2"));
    world.run_pod();
    world.report(fault());
    assert_eq!(reasons_of(&decide(&mut world)), ["BuilderLost"]);
}

#[test]
fn a_queue_is_said_once_and_quota_is_a_warning() {
    let mut world = World::new();
    world.slot = queued(5);
    let events = decide(&mut world);
    assert_eq!(reasons_of(&events), ["RunStarted", "Queued"]);
    assert!(events[1].note.contains("number 5"), "{}", events[1].note);
    world.slot = queued(4);
    assert_eq!(decide(&mut world), []);
    world.slot = Slot::Queued(Place { position: 1, wait: Wait::Namespace(1) });
    assert_eq!(decide(&mut world), [], "what it waits for may change with every build that ends");
    world.now += 30;
    world.slot = Slot::Granted;
    assert_eq!(decide(&mut world), [], "its pod is not made yet");
    let kind = CreationFaultKind::Quota("exceeded quota: pods".into());
    world.creation = Some(CreationFault { at: at(world.now), kind });
    let events = decide(&mut world);
    assert_eq!(reasons_of(&events), ["Queued"]);
    assert_eq!((events[0].kind, events[0].note.as_str()), (EventType::Warning, "exceeded quota: pods"));
    world.creation = None;
    world.create_pod();
    assert_eq!(reasons_of(&decide(&mut world)), ["AttemptStarted"]);
}

#[test]
fn an_attempt_is_said_to_have_started_once_its_pod_is_there() {
    let started = |world: &mut World| {
        world.create_pod();
        reasons_of(&decide(world)).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    // At once; after a place in the queue; after something that the pod needs and that was missing.
    let mut world = World::new();
    decide(&mut world);
    assert_eq!(started(&mut world), [""; 0]);

    let mut world = World::new();
    world.slot = queued(1);
    decide(&mut world);
    world.now += 1;
    world.slot = Slot::Granted;
    assert_eq!(decide(&mut world), []);
    assert_eq!(started(&mut world), ["AttemptStarted"]);

    let mut world = World::new();
    decide(&mut world);
    let missing = Failure::new(FailureClass::Source, reason::SOURCE_NOT_FOUND, "no such service account");
    let kind = CreationFaultKind::Missing(missing);
    world.creation = Some(CreationFault { at: at(world.now), kind });
    assert_eq!(decide(&mut world), []);
    world.creation = None;
    assert_eq!(started(&mut world), ["AttemptStarted"]);

    // One that was refused never started.
    let mut world = World::new();
    decide(&mut world);
    let refused = Failure::new(FailureClass::Policy, reason::POD_REFUSED, "violates PodSecurity");
    world.creation = Some(CreationFault { at: at(world.now), kind: CreationFaultKind::Terminal(refused) });
    assert_eq!(reasons_of(&decide(&mut world)), ["PodRefused"]);

    // Made, run and ended while no operator was there.
    let mut world = World::new();
    world.slot = queued(1);
    decide(&mut world);
    world.now += 1;
    world.slot = Slot::Granted;
    decide(&mut world);
    world.create_pod();
    world.report(Outcome::Succeeded(pushed()));
    assert_eq!(reasons_of(&decide(&mut world)), ["AttemptStarted", "ImagePushed"]);
}

#[test]
fn runs_that_are_stopped() {
    let cancelled = Outcome::Failed(Failure::new(FailureClass::Cancelled, reason::CANCELLED, "stopped"));
    let mut world = World::new();
    world.run_pod();
    world.cancel = Some(1);
    assert_eq!(decide(&mut world), [], "it is only asked to stop");
    world.now += 7;
    world.report(cancelled.clone());
    let events = decide(&mut world);
    assert_eq!(reasons_of(&events), ["Cancelled"]);
    assert_eq!(
        (events[0].kind, events[0].note.as_str()),
        (EventType::Normal, "run 1 was cancelled after 7s")
    );

    let mut world = World::new();
    world.run_pod();
    world.desired.suspend = true;
    let events = decide(&mut world);
    assert_eq!(reasons_of(&events), ["Suspended"]);
    assert!(events[0].note.contains("is being stopped"));
    world.report(cancelled.clone());
    assert_eq!(decide(&mut world), [], "that was said");
    world.desired.suspend = false;
    assert_eq!(reasons_of(&decide(&mut world)), ["RunStarted"]);

    let mut world = World::new();
    world.run_pod();
    world.desired.input_digest = "v1:b".into();
    assert_eq!(decide(&mut world), []);
    world.report(cancelled);
    let events = decide(&mut world);
    assert_eq!(reasons_of(&events), ["Superseded", "RunStarted"]);
    assert!(events[1].note.starts_with("run 2 started; pod "), "{}", events[1].note);
}

#[test]
fn a_run_that_ends_as_it_begins_and_a_full_history() {
    use crate::image_build::validate::Buildable;
    let mut world = World::new();
    for run in 1..9 {
        world.desired.input_digest = format!("v1:{run}");
        let failure = Failure::new(FailureClass::User, reason::DOCKERFILE_INVALID, "no").at("Dockerfile", 1);
        world.desired.buildable = Buildable::No(failure);
        let events = decide(&mut world);
        assert_eq!(reasons_of(&events), ["RunStarted", "DockerfileInvalid"], "run {run}");
        assert_eq!(events[1].note, format!("run {run} failed after 0s: Dockerfile:1: no"));
        assert_eq!(events[1].pod, None);
    }
}

#[test]
fn an_event_names_its_pod_in_the_build_s_namespace() {
    let build =
        ObjectReference { namespace: Some("ns".into()), name: Some("app".into()), ..Default::default() };
    let mut world = World::new();
    let all = decide(&mut world);
    let events: Vec<_> = all.iter().map(|t| event(t, &build)).collect();
    assert_eq!(events.len(), 1, "a run that nothing keeps waiting begins with one event");
    let pod = events[0].secondary.as_ref().expect("a pod");
    assert_eq!((pod.kind.as_deref(), pod.namespace.as_deref(), &pod.uid), (Some("Pod"), Some("ns"), &None));
    assert_eq!(Transition::new(EventType::Normal, "", "A", "").reason, reason::INTERNAL);
    assert!(Transition::new(EventType::Normal, &"R".repeat(200), "A", "").reason.len() <= MAX_REASON);
}
