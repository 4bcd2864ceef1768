//! The scheduler: one step after another, chosen by the seed, of everything that may happen next.

use std::time::Duration;

use fastrand::Rng;
use serde_json::Value;

use crate::config::Config;
use crate::image_build::names;
use crate::mutant;

use super::api::{Actor, Api, Key, Kind, fault, owner, refused, time, uid};
use super::gate::{Gate, Pending, Reply};
use super::invariants::{Invariants, Scene, Verdict};
use super::node::{self, Runner, Runners};
use super::operator::Operator;
use super::registry::Registry;
use super::user;

/// Seconds until the control plane gives up a node that is silent.
const NODE_GONE: i64 = 300;
/// The simulated world begins at this time.
pub const BEGIN: i64 = 1_800_000_000;

/// How rough it is. Drawn from the seed.
#[derive(Debug, Default)]
pub struct Weather {
    /// Of a thousand requests, how many meet with a fault.
    pub faults: u32,
    /// Of a hundred pods, how many meet with a mishap.
    pub mishaps: u32,
    /// How often an operator is killed, another started, or a watch breaks.
    pub chaos: u32,
    /// Whether two operators may lead at once.
    pub two_leaders: bool,
    /// Seconds by which clocks may be wrong.
    pub skew: i64,
    /// How often users do something.
    pub users: u32,
    /// Of a hundred pods, how many an admission webhook changes.
    pub webhook: u32,
}

impl Weather {
    fn draw(rng: &mut Rng) -> Self {
        Self {
            faults: *rng.choice(&[0, 20, 80, 200]).unwrap_or(&0),
            mishaps: *rng.choice(&[0, 10, 35]).unwrap_or(&0),
            chaos: *rng.choice(&[0, 2, 6]).unwrap_or(&0),
            two_leaders: rng.u32(0..3) == 0,
            skew: *rng.choice(&[0, 0, 5, 600]).unwrap_or(&0),
            users: rng.u32(0..8),
            webhook: *rng.choice(&[0, 0, 0, 25]).unwrap_or(&0),
        }
    }
}

/// Everything there is.
pub struct World {
    pub rng: Rng,
    pub weather: Weather,
    pub api: Api,
    pub gate: Gate,
    pub registry: Registry,
    pub runners: Runners,
    pub operators: Vec<Operator>,
    started: usize,
    /// Requests whose answer never comes; they may yet be carried out.
    pub hung: Vec<Pending>,
    /// Since when nodes are silent, by pod.
    pub silent: Vec<(String, i64)>,
    pub quota_used_up: bool,
    /// Pod Security lets no builder pod in.
    pub forbidden: bool,
    pub invariants: Invariants,
    /// What has happened, for who reads why.
    pub trace: Vec<String>,
    seen_pods: usize,
    limit: usize,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let weather = Weather::draw(&mut rng);
        let limit = *rng.choice(&[0, 1, 2]).unwrap_or(&0);
        let mut world = Self {
            rng,
            weather,
            api: Api::new(BEGIN),
            gate: Gate::default(),
            registry: Registry::default(),
            runners: Runners::new(),
            operators: Vec::new(),
            started: 0,
            hung: Vec::new(),
            silent: Vec::new(),
            quota_used_up: false,
            forbidden: false,
            invariants: Invariants::default(),
            trace: Vec::new(),
            seen_pods: 0,
            limit,
        };
        user::furnish(&mut world);
        world
    }

    pub fn say(&mut self, what: impl FnOnce() -> String) {
        self.trace.push(format!("{:>6} {}", self.api.now - BEGIN, what()));
    }

    fn config(&self) -> Config {
        let mut config = Config::parse("builderImage: b").expect("it is good");
        config.max_concurrent_builds = self.limit;
        config
    }

    fn scene(&mut self) -> (Scene<'_>, &mut Invariants) {
        let scene = Scene { api: &self.api, registry: &self.registry, runners: &self.runners };
        (scene, &mut self.invariants)
    }

    pub fn check(&mut self) -> Verdict {
        let (scene, invariants) = self.scene();
        invariants.check(scene)
    }

    fn skew(&mut self) -> i64 {
        let skew = self.weather.skew;
        self.rng.i64(-skew..=skew)
    }

    pub fn start_operator(&mut self) {
        // A list may be served from a cache that lags.
        let all = self.api.history.len();
        let lag = if self.rng.bool() { 0 } else { self.rng.usize(0..=all.min(8)) };
        let skew = self.skew();
        self.started += 1;
        self.gate.set_now(self.api.now, self.api.history.len());
        let number = self.started;
        self.say(|| format!("operator {number} starts, its lists lag by {lag} changes"));
        let config = self.config();
        self.operators.push(Operator::start(number, &self.gate, &self.api, config, skew, all - lag));
    }

    /// Lets everything come to where it waits for the scheduler.
    pub async fn settle(&mut self) {
        self.gate.set_now(self.api.now, self.api.history.len());
        for operator in &self.operators {
            operator.set_time(self.api.now);
        }
        for _ in 0..12 {
            tokio::task::yield_now().await;
            self.serve_logs();
        }
        for operator in &mut self.operators {
            operator.look_around(self.api.now).await;
        }
        self.notice_pods();
    }

    /// Logs and Events come and go at once, now and then with a fault.
    fn serve_logs(&mut self) {
        let is_aside = |p: &Pending| p.call.path.ends_with("/log") || p.call.path.contains("events.k8s.io");
        while let Some(pending) = self.gate.take_if(is_aside) {
            let reply = if self.rng.u32(0..1000) < self.weather.faults {
                Reply::Answer(fault(500))
            } else if pending.call.path.ends_with("/log") {
                self.log(&pending)
            } else {
                Reply::Answer(self.api.handle(&pending.call))
            };
            // Who asked may have been killed.
            let _ = pending.reply.send(reply);
        }
    }

    fn log(&mut self, pending: &Pending) -> Reply {
        let parts: Vec<&str> = pending.call.path.split('/').collect();
        let key = (Kind::Pod, parts[4].to_owned(), parts[6].to_owned());
        let uid = self.api.get(&key).map(|p| uid(p)).unwrap_or_default();
        match self.runners.get(&uid) {
            Some(runner) if runner.lost => Reply::Answer(fault(500)),
            Some(runner) => {
                let mut log = runner.log();
                if self.rng.u32(0..1000) < self.weather.faults {
                    // The stream ends early, in mid-line.
                    log.truncate(self.rng.usize(0..=log.len()));
                }
                Reply::Text(log)
            }
            None => Reply::Answer(fault(404)),
        }
    }

    /// A pod that is there gets a kubelet, and perhaps a mishap.
    fn notice_pods(&mut self) {
        while self.seen_pods < self.api.history.len() {
            let change = self.api.history[self.seen_pods].clone();
            self.seen_pods += 1;
            let (Kind::Pod, Some(pod), None) = (change.key.0, &change.now, &change.before) else { continue };
            if owner(pod).is_none() {
                continue;
            }
            let mishap = (self.rng.u32(0..100) < self.weather.mishaps).then(|| node::mishap(&mut self.rng));
            let skew = self.skew();
            self.say(|| format!("pod {} is there; to suffer: {mishap:?}", change.key.2));
            let runner = Runner::new(&change.key, pod, mishap, skew, self.api.now);
            self.runners.insert(uid(pod), runner);
        }
    }

    /// One thing happens.
    pub async fn step(&mut self) -> Verdict {
        self.settle().await;
        self.check()?;
        let choice = self.rng.u32(0..100);
        match choice {
            0..30 => {
                let waiting = self.gate.len();
                if waiting > 0 {
                    let at = self.rng.usize(0..waiting);
                    let pending = self.gate.take(at);
                    self.serve(pending);
                }
            }
            30..48 => self.begin(),
            48..66 => self.show(),
            66..86 => self.work(),
            86..94 => {
                let seconds = self.rng.i64(1..=5);
                self.pass(seconds).await;
            }
            94 => {
                let seconds = self.rng.i64(10..=400);
                self.pass(seconds).await;
            }
            95..98 => {
                if self.rng.u32(0..8) < self.weather.users {
                    user::act(self);
                }
            }
            _ => {
                if self.rng.u32(0..8) < self.weather.chaos {
                    self.chaos();
                }
            }
        }
        self.check()
    }

    /// A request is answered, well or not.
    pub fn serve(&mut self, pending: Pending) {
        let roll = self.rng.u32(0..1000);
        let limit = self.weather.faults;
        let is_new_pod = pending.call.method == "POST" && pending.call.path.ends_with("/pods");
        if is_new_pod && (self.quota_used_up || self.forbidden) {
            let message = if self.quota_used_up {
                "pods \"x\" is forbidden: exceeded quota: q"
            } else {
                self.invariants.refused.insert(owner(&pending.call.body).unwrap_or_default());
                "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": simulated"
            };
            let _ = pending.reply.send(Reply::Answer(refused(403, "Forbidden", message)));
        } else if roll >= limit {
            self.carry_out(pending);
        } else {
            let kind = self.rng.u32(0..5);
            self.say(|| format!("fault {kind} for {} {}", pending.call.method, pending.call.path));
            match kind {
                0 | 1 => {
                    let code = *self.rng.choice(&[429, 500, 503, 504]).unwrap_or(&500);
                    let _ = pending.reply.send(Reply::Answer(fault(code)));
                }
                2 => {
                    let _ = pending.reply.send(Reply::Broken);
                }
                // It is carried out, and nobody hears of it.
                3 => {
                    let answer = self.handle(&pending);
                    drop(answer);
                    let _ = pending.reply.send(Reply::Broken);
                }
                _ => self.hung.push(pending),
            }
        }
    }

    pub fn handle(&mut self, pending: &Pending) -> super::api::Answer {
        self.api.actor = Actor::Operator(pending.from);
        self.api.sent = pending.sent;
        let (method, path) = (&pending.call.method, &pending.call.path);
        let parts: Vec<&str> = path.split('/').collect();
        if method == "GET" && path.contains("/imagebuilds/") {
            let key = (Kind::Build, parts[5].to_owned(), parts[7].to_owned());
            let at = self.api.history.len();
            self.invariants.looked(pending.from, &key, at);
        }
        let mut call = pending.call.clone();
        if method == "POST" && path.ends_with("/pods") && self.rng.u32(0..100) < self.weather.webhook {
            self.say(|| "an admission webhook changes the pod".to_owned());
            super::api::inject(&mut call.body);
        }
        let answer = self.api.handle(&call);
        if method != "GET" {
            let (from, code) = (pending.from, answer.0);
            let what = pending.call.body["metadata"]["annotations"].to_string();
            let reason = &pending.call.body["status"]["conditions"][0]["reason"];
            let (method, path) = (method.clone(), path.clone());
            let line = format!("operator {from}: {method} {path} -> {code} {reason} {what}");
            self.say(|| line);
        }
        answer
    }

    pub fn carry_out(&mut self, pending: Pending) {
        let answer = self.handle(&pending);
        let _ = pending.reply.send(Reply::Answer(answer));
    }

    fn begin(&mut self) {
        let n = self.operators.len();
        if n == 0 {
            return;
        }
        let which = self.rng.usize(0..n);
        let operator = &mut self.operators[which];
        let ready = operator.ready();
        if let Some(key) = self.rng.choice(&ready) {
            operator.begin(key);
        }
    }

    fn show(&mut self) {
        let n = self.operators.len();
        if n == 0 {
            return;
        }
        let operator = self.rng.usize(0..n);
        let which = self.rng.usize(0..2);
        // Shown twice, now and then.
        let again = self.weather.chaos > 0 && self.rng.u32(0..20) == 0;
        self.operators[operator].show(&self.api, which, again, false);
    }

    fn work(&mut self) {
        let alive: Vec<String> =
            self.runners.values().filter(|r| r.is_alive()).map(|r| r.uid.clone()).collect();
        let Some(uid) = self.rng.choice(&alive) else { return };
        self.work_on(&uid.clone());
    }

    pub fn work_on(&mut self, uid: &str) {
        self.api.actor = Actor::Cluster;
        let Some(runner) = self.runners.get_mut(uid) else { return };
        // A process that is held up for minutes: only so the fault shows, and it is rare.
        if mutant!(EndlessPermit) && runner.lost && self.rng.u32(0..100) > 0 {
            return;
        }
        let (before, was_lost) = (runner.stage, runner.lost);
        runner.step(&mut self.api, &mut self.registry);
        let (stage, lost, name) = (runner.stage, runner.lost, runner.key.2.clone());
        if lost && !was_lost {
            self.silent.push((uid.to_owned(), self.api.now));
        }
        if stage != before {
            self.say(|| format!("pod {name}: {stage:?}{}", if lost { " (cut off)" } else { "" }));
        }
    }

    /// Time passes, for everybody.
    pub async fn pass(&mut self, seconds: i64) {
        self.api.now += seconds;
        self.gate.set_now(self.api.now, self.api.history.len());
        for operator in &self.operators {
            operator.set_time(self.api.now);
        }
        tokio::time::advance(Duration::from_secs(seconds.unsigned_abs())).await;
        for operator in &self.operators {
            operator.set_time(self.api.now);
        }
        // The control plane gives up nodes that are silent, and takes their pods off them.
        self.api.actor = Actor::Cluster;
        let (now, by) = (self.api.now, time(self.api.now + 60));
        for (uid, since) in &self.silent {
            let Some(runner) = self.runners.get(uid).filter(|_| now - since >= NODE_GONE) else { continue };
            let by = by.clone();
            self.api.change(&runner.key, |pod| {
                if pod["metadata"]["uid"] == *uid && pod["metadata"]["deletionTimestamp"].is_null() {
                    pod["metadata"]["deletionTimestamp"] = by;
                }
            });
        }
        self.api.collect();
    }

    /// Something breaks.
    fn chaos(&mut self) {
        match self.rng.u32(0..6) {
            0 | 1 => {
                let n = self.operators.len();
                if n > 0 {
                    let which = self.rng.usize(0..n);
                    let number = self.operators[which].number;
                    self.say(|| format!("operator {number} is killed"));
                    self.operators.remove(which);
                }
                if self.operators.is_empty() {
                    self.start_operator();
                }
            }
            2 => {
                let most = if self.weather.two_leaders { 2 } else { 1 };
                if self.operators.len() < most {
                    self.start_operator();
                }
            }
            3 => {
                let Some(operator) = self.operators.first_mut() else { return };
                // The watch breaks; what it would have shown is lost, and a list takes its place.
                let all = self.api.history.len();
                let lag = if self.rng.bool() { 0 } else { self.rng.usize(0..=all.min(8)) };
                if self.rng.bool() {
                    operator.list_pods(&self.api, all - lag);
                } else {
                    operator.list_builds(&self.api, all - lag);
                }
                self.say(|| format!("a watch breaks; the list lags by {lag}"));
            }
            4 => {
                let what =
                    if self.rng.u32(0..3) == 0 { &mut self.forbidden } else { &mut self.quota_used_up };
                *what = !*what;
                let (forbidden, used_up) = (self.forbidden, self.quota_used_up);
                self.say(|| format!("pods are forbidden: {forbidden}; quota used up: {used_up}"));
            }
            _ => {
                // A request that nobody waits for any more arrives.
                if !self.hung.is_empty() {
                    let which = self.rng.usize(0..self.hung.len());
                    let pending = self.hung.remove(which);
                    self.say(|| "a late request arrives".to_owned());
                    self.carry_out(pending);
                }
            }
        }
    }

    /// Runs a rough time, then a calm one in which everything has to come to its end.
    ///
    /// # Errors
    /// An invariant did not hold.
    pub async fn run(&mut self, steps: usize) -> Verdict {
        self.start_operator();
        for _ in 0..steps {
            self.step().await?;
        }
        self.calm().await
    }

    /// Name of the pod that the object's next attempt will have.
    pub fn next_pod(build: &Value) -> String {
        let run = build["status"]["run"].as_i64().unwrap_or(0) + 1;
        names::pod_name(build["metadata"]["name"].as_str().unwrap_or_default(), &uid(build), run, 1)
    }

    pub fn key(build: &Value) -> Key {
        let text = |field: &str| build["metadata"][field].as_str().unwrap_or_default().to_owned();
        (Kind::Build, text("namespace"), text("name"))
    }
}
