//! Every row of the status contract as the operator stores it, for the health checks that are tested in `e2e/health`. Each
//! comes from [`decide`](super::decide::decide), and is held against the file that the checks read.

use kiln_api::ImageBuildStatus;
use kiln_contract::journal::Event;
use kiln_contract::report::{Outcome, Pushed};
use kiln_contract::{Failure, FailureClass, reason};
use serde_json::{Value, json};

use super::conditions::{self, Phase};
use super::decide::{CreationFault, CreationFaultKind};
use super::testing::{World, at, generated, journal, plan, queued};

/// Where Argo CD's form wants them.
const FOLDER: &str = "docs/gitops/argocd/kiln.build/ImageBuild/testdata";

fn image() -> Pushed {
    let digest = format!("sha256:{}", "1f".repeat(32));
    Pushed { reference: "registry.example.com/team/app:1".into(), digest, size: 2048 }
}

/// The object in that world, as the API server has it.
fn object(world: &World) -> Value {
    let status = serde_json::to_value(&world.status).expect("a status");
    let mut object = json!({
        "apiVersion": "kiln.build/v1alpha1",
        "kind": "ImageBuild",
        "metadata": {"name": "app", "namespace": "ns", "uid": "u", "generation": world.generation},
        "spec": {
            "source": {"inline": {"files": [{"path": "Dockerfile", "content": "FROM alpine\nRUN true\n"}]}},
            "output": {"image": image().reference},
        },
        "status": status,
    });
    if world.desired.suspend {
        object["spec"]["suspend"] = json!(true);
    }
    object
}

fn row(name: &str, object: &Value) {
    let text = serde_saphyr::to_string(object).expect("YAML");
    generated(&format!("{FOLDER}/{name}.yaml"), &format!("# Written by scripts/reference.\n{text}"));
}

/// A run whose pod runs its second step.
fn at_work() -> World {
    let mut world = World::new();
    world.run_pod();
    world.journal = Some(journal(&world, vec![plan(), Event::StepStarted { step: 1 }]));
    world.decide();
    world
}

fn succeeded() -> World {
    let mut world = at_work();
    world.now += 60;
    world.report(Outcome::Succeeded(image()));
    world.decide();
    world
}

#[test]
fn never_seen() {
    let world = World::new();
    // All that the CRD's default gives it.
    let mut object = object(&world);
    object["status"] = json!({"observedGeneration": -1});
    row("never-seen", &object);
}

#[test]
fn queued_and_quota() {
    let mut world = World::new();
    world.slot = queued(3);
    world.decide();
    assert_eq!(world.ready(), "Unknown Queued");
    row("queued", &object(&world));

    let mut world = World::new();
    world.decide();
    let words = "pods \"app-1\" is forbidden: exceeded quota: builds, requested: pods=1, used: pods=5, limited: pods=5";
    world.creation = Some(CreationFault { at: at(world.now), kind: CreationFaultKind::Quota(words.into()) });
    world.decide();
    assert_eq!(world.ready(), "Unknown Queued");
    assert_eq!(world.status.queue.as_ref().map(|q| q.reason.as_str()), Some("Quota"));
    row("quota", &object(&world));
}

#[test]
fn running() {
    let world = at_work();
    assert_eq!(world.ready(), "Unknown Building");
    row("running", &object(&world));
}

#[test]
fn retrying() {
    let mut world = at_work();
    let lost =
        Failure::new(FailureClass::Infrastructure, reason::BUILDER_LOST, "the builder ended with signal 9");
    world.report(Outcome::Failed(lost));
    world.decide();
    assert_eq!(world.ready(), "Unknown Retrying");
    row("retrying", &object(&world));
}

#[test]
fn ended() {
    let world = succeeded();
    assert_eq!(world.ready(), "True ImagePushed");
    row("succeeded", &object(&world));

    let mut world = at_work();
    let failure = Failure::new(FailureClass::User, reason::STEP_FAILED, "RUN true ended with exit code 1");
    world.report(Outcome::Failed(failure.at("Dockerfile", 2).in_step(1)));
    world.decide();
    assert_eq!(world.ready(), "False StepFailed");
    row("failed", &object(&world));

    let mut world = at_work();
    world.cancel = Some(1);
    world.decide();
    assert_eq!(world.ready(), "Unknown Stopping");
    row("stopping", &object(&world));
    world.report(Outcome::Failed(Failure::new(FailureClass::Cancelled, reason::CANCELLED, "m")));
    world.decide();
    assert_eq!(world.ready(), "False Cancelled");
    row("cancelled", &object(&world));
}

#[test]
fn edited() {
    // The status is the one of the generation before: nobody has looked yet.
    let mut world = succeeded();
    world.generation += 1;
    row("edited", &object(&world));
}

#[test]
fn suspended() {
    let mut world = at_work();
    world.generation += 1;
    world.desired.suspend = true;
    world.decide();
    assert_eq!(world.ready(), "False Suspended");
    row("suspended-stopping", &object(&world));
    world.report(Outcome::Failed(Failure::new(FailureClass::Cancelled, reason::SUSPENDED, "m")));
    world.decide();
    assert_eq!(world.ready(), "False Suspended");
    row("suspended", &object(&world));

    // Nothing is held back: what the spec asks for is there.
    let mut world = succeeded();
    world.generation += 1;
    world.desired.suspend = true;
    world.decide();
    assert_eq!(world.ready(), "True ImagePushed");
    row("suspended-done", &object(&world));
}

#[test]
fn deleted() {
    let mut object = object(&succeeded());
    object["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:20:00Z");
    object["metadata"]["finalizers"] = json!(["foregroundDeletion"]);
    row("deleted", &object);
}

#[test]
fn unreadable() {
    let mut world = World::new();
    world.status = ImageBuildStatus::default();
    let message =
        "this operator can't read the object: unknown variant `Sideways`; correct it or upgrade Kiln";
    conditions::set(&mut world.status, &Phase::Unreadable { message: message.into() }, 1, at(world.now));
    let mut object = object(&world);
    object["spec"]["onChange"] = json!("Sideways");
    // The operator writes these two fields of such an object.
    object["status"] = json!({"observedGeneration": 1, "conditions": object["status"]["conditions"].clone()});
    row("unreadable", &object);
}
