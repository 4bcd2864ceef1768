//! What a step does with files: its result is taken from the cache, or made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kiln_contract::cache::BuildRecord;
use kiln_contract::journal::Event;
use sha2::{Digest, Sha256};

use super::bases::Bases;
use super::cache::At;
use super::cache::decide::{self, Work};
use super::cache::key::Keys;
use super::cache::lookup::Hits;
use super::cache::miss::{self, Misses};
use super::cache::mounts::Mounts;
use super::cache::pull::{self, Pulls};
use super::cache::save::{Label, Save};
use super::failure::{Halt, of_engine};
use super::lazy::Lazy;
use super::log::{Entry, Log as _};
use super::mount::Mounted;
use super::publish::{Job, Layer, Publisher};
use super::shared::Shared;
use super::stage::Lane;
use super::stages::{Left, Stages};
use super::{Known, Wishes, World, agent};
use crate::courier::Cached;
use crate::engine::Step as Command;
use crate::engine::{EngineError, View};
use crate::plan::{Action, Op, Plan};

/// Runs the steps of a plan; what the threads of its stages share.
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
    keys: Option<Keys>,
    pub(super) misses: Misses<'a>,
    found: Mutex<Found>,
    pub(super) stages: Stages,
    pub(super) mounted: Mounted,
    /// When each step ended.
    ended: Mutex<BTreeMap<u32, String>>,
    /// Steps whose command runs.
    running: Mutex<BTreeSet<u32>>,
    /// Upper trees that were made.
    uppers: Mutex<BTreeSet<String>>,
    /// Whoever goes through stages again; one does at a time.
    pub(super) again: Mutex<()>,
}

/// What the cache has, and what is done.
struct Found {
    hits: Hits,
    work: Work,
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

/// What is done about an operation.
pub(super) enum Task {
    /// The result is taken; it is unpacked first where somebody reads it, and its index is waited for where somebody only
    /// looks at it.
    Take {
        hit: Cached,
        unpack: bool,
        look: bool,
    },
    /// Nobody wants it.
    Leave,
    Make,
}

impl<'a> Steps<'a> {
    pub fn new(
        plan: &'a Plan,
        wishes: Wishes<'a>,
        world: World<'a>,
        tools: Tools<'a>,
        known: Known<'a>,
    ) -> Self {
        let Tools { shared, bases, early, pulls, lazy, publisher } = tools;
        // A directory that outlasts builds goes before a registry.
        let by_registry = known.keys.is_some() && !world.engine.keeps_caches();
        let platform = plan.stages.last().map(|stage| stage.image.platform()).unwrap_or_default();
        let saved = by_registry.then(|| Mounts::new(platform));
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
            keys: known.keys,
            misses: known.misses,
            found: Mutex::new(Found { hits: known.hits, work: known.work }),
            stages: Stages::new(plan.stages.len(), world.at_a_time),
            mounted: Mounted::new(saved),
            ended: Mutex::default(),
            running: Mutex::default(),
            uppers: Mutex::default(),
            again: Mutex::default(),
        }
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When each step ended, so far.
    pub fn ended(&self) -> MutexGuard<'_, BTreeMap<u32, String>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn running(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the files of a stage's base are read.
    pub(super) fn reads_base(&self, stage: usize) -> bool {
        self.found().work.bases.contains(&stage)
    }

    /// What the cache has of an operation.
    pub(super) fn hit(&self, at: At) -> Option<Cached> {
        self.found().hits.get(&at).cloned()
    }

    pub(super) fn task(&self, at: At) -> Task {
        let found = self.found();
        match found.hits.get(&at) {
            Some(hit) => Task::Take {
                hit: hit.clone(),
                unpack: found.work.unpack.contains(&at),
                look: found.work.look.contains(&at),
            },
            // What would read it was in the cache.
            None if !found.work.run.contains(&at) => Task::Leave,
            None => Task::Make,
        }
    }

    /// Takes an operation's result, or makes it; says whether it was taken.
    pub(super) fn op(&self, at: At, left: &mut Left, lane: &mut Lane<'_, '_>) -> Result<bool, Halt> {
        let plan = self.plan;
        let op = &plan.stages[at.0].ops[at.1];
        match self.task(at) {
            Task::Take { hit, unpack, look } => {
                let tree = pull::tree(at);
                // Without its looks it has to come itself, which says what is wrong.
                let unpack = unpack || (look && !self.can_look(&tree, lane)?);
                match if unpack { self.unpack(at, &hit, left)? } else { Ok(()) } {
                    Ok(()) => {
                        left.trees.push(tree);
                        return self.take_result(at, op, hit).map(|()| true);
                    }
                    Err(problem) => {
                        let text = format!("the cached result of step {} is not usable: {problem}", op.step);
                        lane.log.entry(Entry::Warning { text: &text });
                        self.misses.lost(at);
                        self.do_without(at, lane)?;
                    }
                }
            }
            Task::Leave => return Ok(true),
            Task::Make => {}
        }
        if self.keys.is_some() {
            lane.log.entry(Entry::NotCached { why: &self.misses.why(at) });
        }
        self.make(at, op, left, lane)?;
        Ok(false)
    }

    /// Why the cache had no result of a step; `None` where it had one, and for a step that makes none.
    pub(super) fn cache_miss(&self, number: u32) -> Option<String> {
        self.wishes.cache?;
        let made = {
            let run = &self.found().work.run;
            run.iter().copied().find(|(stage, op)| self.plan.stages[*stage].ops[*op].step == number)
        };
        Some(self.misses.now(made?))
    }

    /// What was done, for the next build; `None` without a cache.
    pub fn record(&self) -> Option<BuildRecord> {
        Some(miss::record(self.plan, self.keys.as_ref()?, (self.world.clock)()))
    }

    /// An entry turned out to be none: gives the stages that have to be gone through now, in order.
    pub(super) fn lose(&self, at: At) -> Vec<usize> {
        let mut found = self.found();
        let Found { hits, work } = &mut *found;
        hits.remove(&at);
        let before = std::mem::take(work);
        *work = decide::decide(self.plan, &|at| hits.contains_key(&at));
        work.stages.difference(&before.stages).copied().filter(|stage| *stage < at.0).collect()
    }

    /// A name for the upper tree of an operation: the same in each build, unless it is made a second time.
    pub(super) fn upper(&self, at: At) -> String {
        let before = self.plan.stages[..at.0].iter().map(|stage| stage.ops.len()).sum::<usize>();
        let first = format!("s{}", before + at.1 + 1);
        let mut uppers = self.uppers.lock().unwrap_or_else(PoisonError::into_inner);
        let more = (2..).map(|count: u32| format!("{first}-{count}"));
        let free = std::iter::once(first.clone()).chain(more).find(|name| !uppers.contains(name));
        let name = free.unwrap_or(first);
        uppers.insert(name.clone());
        name
    }

    /// Takes an entry of the cache; its layer is in the output already where the image needs it.
    fn take_result(&self, at: At, op: &Op, hit: Cached) -> Result<(), Halt> {
        let (digest, size) = (hit.entry.layer.digest.clone(), hit.entry.layer.size);
        self.shared.courier.event(Event::Layer { step: op.step, digest, size })?;
        self.ended().insert(op.step, hit.entry.created);
        if self.plan.stages[at.0].publish {
            let layer = Layer { blob: hit.entry.layer, diff_id: hit.entry.diff_id };
            self.publisher.has(self.index(at), layer);
        }
        Ok(())
    }

    /// Waits for the index of a layer; whether there is one.
    fn can_look(&self, tree: &str, lane: &mut Lane<'_, '_>) -> Result<bool, Halt> {
        Ok(self.lazy.has(tree) && self.pause(lane, || self.lazy.wait(self.shared, tree))?.is_ok())
    }

    /// Unpacks the layer of an entry onto what is there. The inner error says what is wrong with it.
    fn unpack(&self, at: At, hit: &Cached, left: &Left) -> Result<Result<(), String>, Halt> {
        let below = self.whole(&left.trees)?;
        self.pulls.settle(self.shared, at, hit, &below)
    }

    /// Place of an operation's layer among those that the build adds.
    fn index(&self, (stage, op): At) -> usize {
        let before = self.plan.stages[..stage].iter().filter(|stage| stage.publish);
        before.map(|stage| stage.ops.len()).sum::<usize>() + op
    }

    /// Carries an operation out.
    fn make(&self, at: At, op: &Op, left: &mut Left, lane: &mut Lane<'_, '_>) -> Result<(), Halt> {
        let mut stubs = Vec::new();
        let view =
            if let Action::Run { argv, script, env, proxies: _, cwd, user, network, mounts } = &op.action {
                let view = View { lowers: self.whole(&left.trees)?, upper: self.upper(at) };
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
                stubs = self.with_mounts(mounts, lane, |lane, prepared| {
                    prepared.set(&mut command.env);
                    command.mounts.clone_from(&prepared.mounts);
                    let run = || self.command(op.step, &command, &mut lane.log);
                    let ended = agent::with(&prepared.agents, self.shared.courier, run)?;
                    ended.map(|exit| exit.stubs).map_err(|fault| fault.into_halt(&op.action))
                })?;
                view
            } else {
                self.place(at, &left.trees, &op.action)?
            };
        left.trees.push(view.upper.clone());
        let created = (self.world.clock)();
        self.ended().insert(op.step, created.clone());
        let key = self.keys.as_ref().and_then(|keys| keys.of(at));
        let label = key.map(|key| Label { key: key.to_owned(), created });
        if self.plan.stages[at.0].publish {
            let job = Job { step: op.step, index: self.index(at), view, stubs, label };
            // Nobody takes jobs after a failure in the background, which is noted already.
            lane.jobs.send(job).map_err(|_| Halt::Stopped)?;
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
