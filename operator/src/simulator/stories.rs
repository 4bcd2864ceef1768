//! What happens once in thousands of seeds, told step by step: nothing here is left to chance.

use serde_json::{Value, json};

use super::api::{Kind, is_changed, uid};
use super::gate::Pending;
use super::mutants::{self, Mutant};
use super::user;
use super::world::{Weather, World};

/// A world in which nothing goes wrong by itself, with one ImageBuild and one operator.
fn world() -> World {
    let mut world = World::new(0);
    world.weather = Weather::default();
    let others: Vec<_> = world.api.all(Kind::Build).map(|(key, _)| key.clone()).collect();
    others.iter().for_each(|key| world.api.remove(key));
    user::apply(&mut world, "a", "app", "FROM scratch\n");
    world.start_operator();
    world
}

fn is_new_pod(pending: &Pending) -> bool {
    pending.call.method == "POST" && pending.call.path.ends_with("/pods")
}

impl World {
    /// Lets everything go on until that request waits to be carried out.
    async fn until(&mut self, wanted: impl Fn(&Pending) -> bool) -> Pending {
        for _ in 0..1000 {
            self.settle().await;
            self.check().expect("the invariants hold");
            if let Some(pending) = self.gate.take_if(&wanted) {
                return pending;
            }
            self.go_on();
        }
        panic!("the request never came:\n{}", self.trace.join("\n"));
    }

    /// Carries out a request, or lets operators see and do what is due.
    fn go_on(&mut self) {
        if self.gate.len() > 0 {
            let pending = self.gate.take(0);
            return self.serve(pending);
        }
        for at in 0..self.operators.len() {
            for which in 0..2 {
                self.operators[at].show(&self.api, which, false, false);
            }
            for key in self.operators[at].ready() {
                self.operators[at].begin(&key);
            }
        }
    }

    /// The only ImageBuild's status.
    fn status(&self) -> Value {
        self.api.all(Kind::Build).next().expect("an ImageBuild").1["status"].clone()
    }

    /// Reasons of its attempts.
    fn attempts(&self) -> Vec<String> {
        let status = self.status();
        let attempts = status["attempts"].as_array().into_iter().flatten();
        attempts.map(|a| a["reason"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// The operator's pod is made, and changed on its way if so; it is killed before it hears of it, and another starts.
    async fn die_over_a_pod(&mut self, changed: bool) {
        let pending = self.until(is_new_pod).await;
        self.weather.webhook = if changed { 100 } else { 0 };
        drop(self.handle(&pending));
        self.weather.webhook = 0;
        self.operators.clear();
        drop(pending);
        self.start_operator();
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_a_dead_operator_is_taken_over_where_quota_lets_no_other_be_made() {
    let mut world = world();
    world.die_over_a_pod(false).await;
    world.quota_used_up = true;
    for _ in 0..200 {
        world.settle().await;
        world.go_on();
        world.pass(1).await;
    }
    assert!(world.status()["attempts"][0]["podUID"].is_string(), "{}", world.trace.join("\n"));
    assert_eq!(world.calm().await, Ok(()));
    assert_eq!(world.attempts(), ["Succeeded"]);
}

#[tokio::test(start_paused = true)]
async fn a_changed_pod_of_a_dead_operator_is_deleted_and_made_again() {
    let mut world = world();
    world.die_over_a_pod(true).await;
    assert_eq!(world.calm().await, Ok(()));
    assert_eq!(world.attempts(), ["Succeeded"]);
    assert!(world.api.all(Kind::Pod).all(|(_, pod)| !is_changed(pod)), "it is deleted");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_only_the_watch_has_shown_does_not_come_on_record() {
    mutants::set(Some(Mutant::UncheckedPod));
    let mut world = world();
    world.die_over_a_pod(true).await;
    let verdict = world.calm().await;
    mutants::set(None);
    assert_eq!(verdict, Err("a pod that admission changed came on record".to_owned()));
}

/// Found by seed 3803: run 2 ended as `TimedOut`, because its pod was told to end at once by an operator that knew run 1 only.
#[tokio::test(start_paused = true)]
async fn an_operator_whose_list_is_old_stops_no_pod_of_a_run_that_began_since() {
    let mut world = world();
    assert_eq!(world.calm().await, Ok(()));
    let before = world.api.history.len();
    let (key, build) = world.api.all(Kind::Build).next().map(|(k, b)| (k.clone(), uid(b))).expect("there");
    world.invariants.wishes(build).triggers += 1;
    world.api.change(&key, |b| {
        b["spec"]["source"]["inline"]["files"][0]["content"] = json!("FROM scratch\nLABEL edited=yes\n");
    });
    let pending = world.until(is_new_pod).await;
    world.carry_out(pending);
    world.settle().await;
    let pod = world.runners.values().find(|r| r.is_alive()).expect("a pod").uid.clone();
    world.work_on(&pod);

    world.operators.clear();
    world.start_operator();
    let all = world.api.history.len();
    let late = &mut world.operators[0];
    late.list_pods(&world.api, all);
    late.list_builds(&world.api, before);
    late.begin(&key);
    for _ in 0..20 {
        world.settle().await;
        assert_eq!(world.check(), Ok(()));
        if world.gate.len() > 0 {
            let pending = world.gate.take(0);
            world.carry_out(pending);
        }
    }
    assert_eq!(world.calm().await, Ok(()));
    assert_eq!((world.status()["run"].as_i64(), world.attempts()), (Some(2), vec!["Succeeded".to_owned()]));
}
