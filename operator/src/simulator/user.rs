//! What people and their tools do: create, edit, cancel, rebuild, suspend, delete, and get in the way.

use serde_json::{Value, json};

use super::api::{Actor, Kind, uid};
use super::invariants::{Verdict, content};
use super::registry::Registry;
use super::world::World;

/// A Dockerfile; some of them fail.
fn dockerfile(number: u32) -> String {
    let word = if number % 5 == 4 { "fail" } else { "fine" };
    format!("FROM scratch\nLABEL number=\"{number}\" word=\"{word}\"\n")
}

/// The namespaces.
pub const NAMESPACES: [&str; 2] = ["a", "b"];

/// The namespaces, their service accounts, and the first ImageBuilds.
pub fn furnish(world: &mut World) {
    for namespace in NAMESPACES {
        world.api.create((Kind::Account, namespace.into(), "default".into()), json!({"metadata": {}}));
    }
    let builds = world.rng.usize(1..=3);
    for n in 0..builds {
        let namespace = if world.rng.bool() { "a" } else { "b" };
        create(world, namespace, &format!("build{n}"));
    }
}

fn create(world: &mut World, namespace: &str, name: &str) {
    let text = dockerfile(world.rng.u32(0..5));
    apply(world, namespace, name, &text);
}

/// Applies an ImageBuild with that Dockerfile.
pub fn apply(world: &mut World, namespace: &str, name: &str, text: &str) {
    let object = json!({
        "apiVersion": "kiln.build/v1alpha1", "kind": "ImageBuild", "metadata": {},
        "spec": {
            "source": {"inline": {"files": [{"path": "Dockerfile", "content": text}]}},
            "output": {"image": format!("r.example/{namespace}/{name}:1")},
        },
    });
    world.api.create((Kind::Build, namespace.into(), name.into()), object);
}

/// Somebody does something.
pub fn act(world: &mut World) {
    world.api.actor = Actor::User;
    let all: Vec<Value> = world.api.all(Kind::Build).map(|(_, b)| (**b).clone()).collect();
    let Some(build) = world.rng.choice(&all).cloned() else {
        create(world, "a", "build0");
        return;
    };
    let key = World::key(&build);
    let run = build["status"]["run"].as_i64().unwrap_or(0);
    let choice = world.rng.u32(0..12);
    world.say(|| format!("user does {choice} with {}", key.2));
    let wishes = world.invariants.wishes(uid(&build));
    match choice {
        0..3 => {
            wishes.triggers += 1;
            let text = dockerfile(world.rng.u32(0..10));
            world.api.change(&key, |b| b["spec"]["source"]["inline"]["files"][0]["content"] = json!(text));
        }
        3 | 4 => {
            let number = if world.rng.u32(0..4) == 0 { run + 1 } else { run };
            world.invariants.wishes(uid(&build)).cancelled.insert(number);
            annotate(world, &build, "kiln.build/cancel", Some(&number.to_string()));
        }
        5 => {
            wishes.triggers += 1;
            let value = world.rng.u32(0..1000).to_string();
            annotate(world, &build, "kiln.build/rebuild", Some(&value));
        }
        6 | 7 => {
            let suspended = build["spec"]["suspend"] == true;
            wishes.triggers += usize::from(suspended);
            world.api.change(&key, |b| b["spec"]["suspend"] = json!(!suspended));
        }
        8 => {
            world.api.delete(&key);
            world.api.collect();
            if world.rng.bool() {
                create(world, &key.1, &key.2);
            }
        }
        9 => annotate(world, &build, "kiln.build/cancel", None),
        10 => {
            wishes.meddled = true;
            let pods: Vec<_> = world.api.all(Kind::Pod).map(|(key, _)| key.clone()).collect();
            if let Some(pod) = world.rng.choice(&pods).cloned() {
                let owner = world.api.get(&pod).and_then(|p| super::api::owner(p)).unwrap_or_default();
                world.invariants.wishes(owner).meddled = true;
                world.api.delete(&pod);
            }
        }
        _ => {
            wishes.meddled = true;
            let name = World::next_pod(&build);
            let labels =
                json!({"app.kubernetes.io/managed-by": "kiln", "app.kubernetes.io/component": "builder"});
            let pod = json!({"metadata": {"labels": labels}, "spec": {"nodeName": "node"}});
            world.api.create((Kind::Pod, key.1, name), pod);
        }
    }
}

fn annotate(world: &mut World, build: &Value, name: &str, value: Option<&str>) {
    world.api.change(&World::key(build), |b| match value {
        Some(value) => b["metadata"]["annotations"][name] = json!(value),
        None => {
            if let Some(all) = b["metadata"]["annotations"].as_object_mut() {
                all.remove(name);
            }
        }
    });
}

/// What was put in the operator's way is taken away.
pub fn tidy(world: &mut World) {
    world.api.actor = Actor::User;
    let foreign: Vec<_> = world
        .api
        .all(Kind::Pod)
        .filter(|(_, p)| super::api::owner(p).is_none())
        .map(|(k, _)| k.clone())
        .collect();
    foreign.iter().for_each(|key| world.api.remove(key));
    world.api.collect();
}

/// In the end every object says what it was asked to say, and the tag names what the newest successful run built.
pub fn satisfied(world: &World) -> Verdict {
    for (key, build) in world.api.all(Kind::Build) {
        let name = &key.2;
        let status = &build["status"];
        let condition = |kind: &str| {
            let all = status["conditions"].as_array().into_iter().flatten();
            all.clone()
                .find(|c| c["type"] == kind)
                .and_then(|c| c["status"].as_str())
                .unwrap_or("")
                .to_owned()
        };
        let is = |kind: &str, value: &str| condition(kind) == value;
        if status["observedGeneration"] != build["metadata"]["generation"] {
            return Err(format!("{name}: the newest generation was not observed"));
        }
        let suspended = build["spec"]["suspend"] == true;
        if suspended && is("Reconciling", "True") {
            return Err(format!("{name} is suspended and still at work"));
        }
        if !suspended && !is("Ready", "True") && !is("Stalled", "True") {
            return Err(format!("{name} came to no end: {}", status["conditions"]));
        }
        if is("Ready", "True") {
            let digest = Registry::digest(content(build));
            if status["image"]["digest"] != digest {
                return Err(format!("{name} is Ready with another image than it asks for"));
            }
            let last = world.registry.moves.iter().rfind(|m| m.owner == uid(build));
            if last.is_none_or(|m| m.digest != digest) {
                return Err(format!("{name} is Ready and its tag names another image"));
            }
        }
        // What failed for its author's fault fails with this Dockerfile, or was cancelled.
        if is("Stalled", "True") && status["failure"]["class"] == "User" && !content(build).contains("fail") {
            return Err(format!("{name} shows the failure of another Dockerfile"));
        }
    }
    Ok(())
}
