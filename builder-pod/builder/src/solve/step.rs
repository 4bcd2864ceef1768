//! The steps, one after another, stage by stage.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::mpsc::SyncSender;

use kiln_contract::journal::Event;
use sha2::{Digest, Sha256};

use super::bases::Bases;
use super::cache::At;
use super::cache::decide;
use super::cache::pull::{self, Pulls};
use super::cache::save::{Label, Save};
use super::failure::{Halt, of_engine};
use super::lazy::Lazy;
use super::log::{Entry, Log};
use super::mount::Mounted;
use super::publish::{Job, Layer, Publisher};
use super::shared::{Place, Shared};
use super::{Known, Wishes, World, agent, short};
use crate::courier::Cached;
use crate::engine::Step as Command;
use crate::engine::{EngineError, View};
use crate::plan::{Action, Base, Op, Plan};

/// Runs the steps of a plan.
pub(super) struct Steps<'a> {
    pub(super) plan: &'a Plan,
    pub(super) wishes: Wishes<'a>,
    pub(super) world: World<'a>,
    pub(super) shared: &'a Shared<'a>,
    pub(super) bases: &'a Bases<'a>,
    pub(super) early: &'a super::cache::facts::Early,
    pub(super) pulls: &'a Pulls,
    pub(super) lazy: &'a Lazy<'a>,
    /// Trees made by COPY and WORKDIR without a symbolic link in them.
    pub(super) plain: Mutex<BTreeSet<String>>,
    publisher: &'a Publisher<'a>,
    pub(super) known: Known,
    /// What each stage that was gone through left.
    stages: BTreeMap<usize, Left>,
    pub(super) mounted: Mounted,
    /// When each step ended.
    pub ended: BTreeMap<u32, String>,
    uppers: usize,
}

/// What a stage left.
#[derive(Debug, Clone, Default)]
pub(super) struct Left {
    /// What its trees are called, from the bottom up; which of them are there see [`Steps::lowers`].
    pub trees: Vec<String>,
    /// Names the stage's state: a sum over its base and its instructions so far.
    id: String,
    /// Whether all that was done with files so far was taken from the cache; `None` before the first of it.
    cached: Option<bool>,
}

/// What steps are carried out with, beside plan and world.
#[derive(Clone, Copy)]
pub(super) struct Tools<'a> {
    pub shared: &'a Shared<'a>,
    pub bases: &'a Bases<'a>,
    pub early: &'a super::cache::facts::Early,
    pub pulls: &'a Pulls,
    pub lazy: &'a Lazy<'a>,
    pub publisher: &'a Publisher<'a>,
}

impl<'a> Steps<'a> {
    pub fn new(plan: &'a Plan, wishes: Wishes<'a>, world: World<'a>, tools: Tools<'a>, known: Known) -> Self {
        let Tools { shared, bases, early, pulls, lazy, publisher } = tools;
        Self {
            plan,
            wishes,
            world,
            shared,
            bases,
            early,
            pulls,
            lazy,
            plain: Mutex::default(),
            publisher,
            known,
            stages: BTreeMap::new(),
            mounted: Mounted::default(),
            ended: BTreeMap::new(),
            uppers: 0,
        }
    }

    /// Goes through all of them; layers of the final image that have to be made go to `jobs`.
    pub fn run(&mut self, jobs: &SyncSender<Job>, log: &mut dyn Log) -> Result<(), Halt> {
        let plan = self.plan;
        let first = plan.stages.first().map_or(1, |stage| *stage.steps.start());
        for number in 1..first {
            self.step(number, log, |steps, log| {
                let id = digest(&["", &steps.plan.steps[number as usize - 1].text]);
                log.entry(Entry::Done { id: short(&id) });
                Ok(false)
            })?;
        }
        for stage in 0..plan.stages.len() {
            self.stage(stage, jobs, log)?;
        }
        Ok(())
    }

    fn stage(&mut self, place: usize, jobs: &SyncSender<Job>, log: &mut dyn Log) -> Result<(), Halt> {
        let stage = &self.plan.stages[place];
        let mut left = Left::default();
        for number in stage.steps.clone() {
            self.step(number, log, |steps, log| {
                let is_start = number == *stage.steps.start();
                if is_start {
                    left = steps.start(place)?;
                    log.entry(Entry::Done { id: short(&left.id) });
                }
                let mut cached = !is_start && left.cached == Some(true);
                let mut worked = false;
                for at in 0..stage.ops.len() {
                    if stage.ops[at].step == number {
                        let taken = steps.op((place, at), &mut left, jobs, log)?;
                        cached = taken && (cached || !worked);
                        worked = true;
                        left.cached = Some(taken && left.cached != Some(false));
                    }
                }
                if cached {
                    log.entry(Entry::Cached);
                }
                if !is_start {
                    left.id = digest(&[&left.id, &steps.plan.steps[number as usize - 1].text]);
                    log.entry(Entry::Done { id: short(&left.id) });
                }
                Ok(cached)
            })?;
        }
        self.stages.insert(place, left);
        Ok(())
    }

    /// What a stage left; nothing where it was not gone through.
    pub(super) fn left(&self, stage: usize) -> Left {
        self.stages.get(&stage).cloned().unwrap_or_default()
    }

    /// What every step has in common: events, log, and the place of a failure. `work` says whether the cache had it.
    fn step(
        &mut self,
        number: u32,
        log: &mut dyn Log,
        work: impl FnOnce(&mut Self, &mut dyn Log) -> Result<bool, Halt>,
    ) -> Result<(), Halt> {
        let step = &self.plan.steps[number as usize - 1];
        let total = u32::try_from(self.plan.steps.len()).unwrap_or(u32::MAX);
        self.shared.check()?;
        self.shared.courier.event(Event::StepStarted { step: number })?;
        log.entry(Entry::Step { number, total, text: &step.text });
        match work(self, log) {
            Ok(cached) => {
                self.ended.entry(number).or_insert_with(|| (self.world.clock)());
                Ok(self.shared.courier.event(Event::StepDone { step: number, cached })?)
            }
            Err(Halt::Stopped) => {
                let dockerfile = self.wishes.dockerfile.to_owned();
                self.shared.stopped_in(Place { dockerfile, line: step.line, step: number });
                Err(Halt::Stopped)
            }
            Err(Halt::Failed(failure)) => {
                let failure = failure.at(self.wishes.dockerfile, step.line).in_step(number);
                let exit_code = failure.exit_code;
                // The failure itself follows, and says all of it again: a courier that is lost is noticed there.
                let _ = self.shared.courier.event(Event::StepFailed { step: number, exit_code });
                Err(failure.into())
            }
        }
    }

    /// What a stage starts from. Files that nobody reads are not waited for.
    fn start(&self, place: usize) -> Result<Left, Halt> {
        let wanted = self.known.work.bases.contains(&place);
        Ok(match self.plan.stages[place].base {
            Base::Scratch => Left { id: digest(&["scratch"]), ..Left::default() },
            Base::Stage(parent) => self.left(parent),
            Base::Image(image) => {
                // A base that does not come is the fault of its FROM.
                let trees =
                    if wanted { self.bases.trees(self.shared, image)? } else { self.bases.names(image) };
                for tree in &trees {
                    if self.lazy.has(tree) && !wanted {
                        let _ = self.lazy.wait(self.shared, tree)?;
                    }
                }
                Left { trees, id: self.plan.images[image].resolved.digest.clone(), cached: None }
            }
        })
    }

    /// Takes an operation's result, or makes it; says whether it was taken.
    fn op(
        &mut self,
        at: At,
        left: &mut Left,
        jobs: &SyncSender<Job>,
        log: &mut dyn Log,
    ) -> Result<bool, Halt> {
        let plan = self.plan;
        let op = &plan.stages[at.0].ops[at.1];
        if let Some(hit) = self.known.hits.get(&at).cloned() {
            let mut unpack = self.known.work.unpack.contains(&at);
            if self.known.work.look.contains(&at) {
                // Without its looks it has to come itself, which says what is wrong.
                unpack |=
                    !self.lazy.has(&pull::tree(at)) || self.lazy.wait(self.shared, &pull::tree(at))?.is_err();
            }
            match if unpack { self.unpack(at, &hit, left)? } else { Ok(()) } {
                Ok(()) => {
                    left.trees.push(pull::tree(at));
                    return self.take(at, op, hit).map(|()| true);
                }
                Err(problem) => {
                    let text = format!("the cached result of step {} is not usable: {problem}", op.step);
                    log.entry(Entry::Warning { text: &text });
                    self.do_without(at, jobs, log)?;
                }
            }
        } else if !self.known.work.run.contains(&at) {
            // What would read it was in the cache.
            return Ok(true);
        }
        if self.known.keys.is_some() {
            let why = decide::why_not(plan, &|at| self.known.hits.contains_key(&at), at);
            log.entry(Entry::NotCached { why });
        }
        self.make(at, op, left, jobs, log)?;
        Ok(false)
    }

    /// Takes an entry of the cache; its layer is in the output already where the image needs it.
    fn take(&mut self, at: At, op: &Op, hit: Cached) -> Result<(), Halt> {
        let (digest, size) = (hit.entry.layer.digest.clone(), hit.entry.layer.size);
        self.shared.courier.event(Event::Layer { step: op.step, digest, size })?;
        self.ended.insert(op.step, hit.entry.created);
        if self.plan.stages[at.0].publish {
            let layer = Layer { blob: hit.entry.layer, diff_id: hit.entry.diff_id };
            self.publisher.has(self.index(at), layer);
        }
        Ok(())
    }

    /// Unpacks the layer of an entry onto what is there. The inner error says what is wrong with it.
    fn unpack(&self, at: At, hit: &Cached, left: &Left) -> Result<Result<(), String>, Halt> {
        let below = self.whole(&left.trees)?;
        self.pulls.settle(self.shared, at, hit, &below)
    }

    /// An entry turned out to be none: what is needed to make its result has to be there.
    fn do_without(&mut self, at: At, jobs: &SyncSender<Job>, log: &mut dyn Log) -> Result<(), Halt> {
        self.known.hits.remove(&at);
        let before = std::mem::take(&mut self.known.work);
        self.known.work = decide::decide(self.plan, &|at| self.known.hits.contains_key(&at));
        let missing: Vec<usize> = self.known.work.stages.difference(&before.stages).copied().collect();
        for stage in missing.into_iter().filter(|stage| *stage < at.0) {
            self.stage(stage, jobs, log)?;
        }
        Ok(())
    }

    /// Place of an operation's layer among those that the build adds.
    fn index(&self, (stage, op): At) -> usize {
        let before = self.plan.stages[..stage].iter().filter(|stage| stage.publish);
        before.map(|stage| stage.ops.len()).sum::<usize>() + op
    }

    /// A name for the tree of an operation.
    pub(super) fn upper(&mut self) -> String {
        self.uppers += 1;
        format!("s{}", self.uppers)
    }

    /// Carries an operation out.
    fn make(
        &mut self,
        at: At,
        op: &Op,
        left: &mut Left,
        jobs: &SyncSender<Job>,
        log: &mut dyn Log,
    ) -> Result<(), Halt> {
        let mut stubs = Vec::new();
        let view =
            if let Action::Run { argv, script, env, proxies: _, cwd, user, network, mounts } = &op.action {
                let view = View { lowers: self.whole(&left.trees)?, upper: self.upper() };
                let engine = |error: EngineError| of_engine(&error, Some(&op.action));
                let user = self.shared.engine.user(&view.lowers, user).map_err(engine)?;
                let mut env = env.clone();
                if !user.home.is_empty() && !env.iter().any(|pair| pair.starts_with("HOME=")) {
                    env.push(format!("HOME={}", user.home));
                }
                let mut command = Command {
                    view: view.clone(),
                    argv: argv.clone(),
                    script: script.clone(),
                    env,
                    cwd: cwd.clone(),
                    user,
                    network: *network,
                    mounts: Vec::new(),
                };
                stubs = self.with_mounts(mounts, |steps, prepared| {
                    prepared.set(&mut command.env);
                    command.mounts.clone_from(&prepared.mounts);
                    let run = || steps.command(&command, log);
                    let ended = agent::with(&prepared.agents, steps.shared.courier, run)?;
                    ended.map(|exit| exit.stubs).map_err(|fault| fault.into_halt(&op.action))
                })?;
                view
            } else {
                self.place(&left.trees, &op.action)?
            };
        left.trees.push(view.upper.clone());
        let created = (self.world.clock)();
        self.ended.insert(op.step, created.clone());
        let key = self.known.keys.as_ref().and_then(|keys| keys.of(at));
        let label = key.map(|key| Label { key: key.to_owned(), created });
        if self.plan.stages[at.0].publish {
            let job = Job { step: op.step, index: self.index(at), view, stubs, label };
            // Nobody takes jobs after a failure in the background, which is noted already.
            jobs.send(job).map_err(|_| Halt::Stopped)?;
        } else if let Some(label) = label {
            self.publisher.save(Save::Made { label, view, stubs });
        }
        Ok(())
    }
}

/// sha256 over fields, each with its length in front.
pub(super) fn digest(fields: &[&str]) -> String {
    let mut sum = Sha256::new();
    for field in fields {
        sum.update((field.len() as u64).to_be_bytes());
        sum.update(field.as_bytes());
    }
    hex::encode(sum.finalize())
}
