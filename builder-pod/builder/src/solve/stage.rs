//! Stages gone through, each in a thread of its own: step by step, and what every step has in common.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::mpsc::SyncSender;

use kiln_contract::journal::Event;

use super::cache::At;
use super::failure::{Halt, internal};
use super::log::{Entry, Log as _};
use super::publish::{Job, spawn};
use super::sections::{Sections, StageLog};
use super::shared::{Place, Shared};
use super::short;
use super::stages::Left;
use super::step::{Steps, Task, digest};
use crate::plan::{Base, CopyFrom};

/// What the thread of a stage has for itself.
pub(super) struct Lane<'s, 'a> {
    /// The stage whose turn it has.
    place: usize,
    /// It goes through stages again that others went through.
    again: bool,
    /// Where layers of the final image go that have to be made.
    pub jobs: &'s SyncSender<Job>,
    pub log: StageLog<'s, 'a>,
}

/// Nobody may wait for a thread that is gone.
struct Alarm<'a>(&'a Shared<'a>);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.halt(internal("the thread of a stage panicked").into());
        }
    }
}

impl Steps<'_> {
    /// Goes through all stages; layers of the final image that have to be made go to `jobs`.
    pub fn run(&self, jobs: &SyncSender<Job>, sections: &Sections<'_>) -> Result<(), Halt> {
        let lane = |place| Lane { place, again: false, jobs, log: sections.of(place) };
        let first = self.plan.stages.first().map_or(1, |stage| *stage.steps.start());
        for number in 1..first {
            self.step(number, &mut lane(0), |lane| {
                let id = digest(&["", &self.plan.steps[number as usize - 1].text]);
                lane.log.entry(Entry::Done { id: short(&id) });
                Ok(false)
            })?;
        }
        std::thread::scope(|scope| {
            for place in 1..self.plan.stages.len() {
                if let Err(halt) = spawn(scope, "stage", move || self.thread(lane(place))) {
                    return self.shared.halt(halt);
                }
            }
            self.thread(lane(0));
        });
        self.shared.check()
    }

    /// Goes through a stage when it is its turn.
    fn thread(&self, mut lane: Lane<'_, '_>) {
        let _alarm = Alarm(self.shared);
        let place = lane.place;
        let turn = self.stages.turn(self.shared, place);
        match turn.and_then(|()| self.stage(place, &mut lane)) {
            Ok(()) => {
                self.stages.give_turn();
                lane.log.end();
            }
            Err(halt) => self.shared.halt(halt),
        }
    }

    /// Does something that may wait for others, without the turn.
    pub(super) fn pause<T>(
        &self,
        lane: &mut Lane<'_, '_>,
        wait: impl FnOnce() -> Result<T, Halt>,
    ) -> Result<T, Halt> {
        self.stages.give_turn();
        let found = wait()?;
        self.stages.turn(self.shared, lane.place)?;
        Ok(found)
    }

    /// Waits until stages were gone through.
    fn wait_for(&self, stages: &BTreeSet<usize>, lane: &mut Lane<'_, '_>) -> Result<(), Halt> {
        if self.stages.are_done(stages) {
            return Ok(());
        }
        self.pause(lane, || self.stages.wait_for(self.shared, stages))
    }

    fn stage(&self, place: usize, lane: &mut Lane<'_, '_>) -> Result<(), Halt> {
        let stage = &self.plan.stages[place];
        let mut left = Left::default();
        for number in stage.steps.clone() {
            self.wait_for(&self.needs(place, number), lane)?;
            self.step(number, lane, |lane| {
                let is_start = number == *stage.steps.start();
                if is_start {
                    left = self.start(place, lane)?;
                    lane.log.entry(Entry::Done { id: short(&left.id) });
                }
                let mut cached = !is_start && left.cached == Some(true);
                let mut worked = false;
                for at in 0..stage.ops.len() {
                    if stage.ops[at].step == number {
                        let taken = self.op((place, at), &mut left, lane)?;
                        cached = taken && (cached || !worked);
                        worked = true;
                        left.cached = Some(taken && left.cached != Some(false));
                    }
                }
                if cached {
                    lane.log.entry(Entry::Cached);
                }
                if !is_start {
                    left.id = digest(&[&left.id, &self.plan.steps[number as usize - 1].text]);
                    lane.log.entry(Entry::Done { id: short(&left.id) });
                }
                Ok(cached)
            })?;
        }
        self.stages.leave(place, left);
        Ok(())
    }

    /// Stages that a step reads.
    fn needs(&self, place: usize, number: u32) -> BTreeSet<usize> {
        let stage = &self.plan.stages[place];
        let mut needs = BTreeSet::new();
        if let (true, Base::Stage(parent)) = (number == *stage.steps.start(), stage.base) {
            needs.insert(parent);
        }
        for (op, planned) in stage.ops.iter().enumerate().filter(|(_, op)| op.step == number) {
            if matches!(self.task((place, op)), Task::Make) {
                needs.extend(planned.action.sources().into_iter().filter_map(CopyFrom::stage));
            }
        }
        needs
    }

    /// What every step has in common: events, log, and the place of a failure. `work` says whether the cache had it.
    fn step<'s, 'a>(
        &self,
        number: u32,
        lane: &mut Lane<'s, 'a>,
        work: impl FnOnce(&mut Lane<'s, 'a>) -> Result<bool, Halt>,
    ) -> Result<(), Halt> {
        let step = &self.plan.steps[number as usize - 1];
        let total = u32::try_from(self.plan.steps.len()).unwrap_or(u32::MAX);
        self.shared.check()?;
        self.shared.courier.event(Event::StepStarted { step: number })?;
        lane.log.entry(Entry::Step { number, total, text: &step.text });
        let failure = match work(lane) {
            Ok(cached) => {
                self.ended().entry(number).or_insert_with(|| (self.world.clock)());
                let cache_miss = self.cache_miss(number);
                return Ok(self.shared.courier.event(Event::StepDone {
                    step: number,
                    cached,
                    cache_miss,
                })?);
            }
            Err(Halt::Stopped) => None,
            Err(Halt::Failed(failure)) => Some(failure.at(self.wishes.dockerfile, step.line).in_step(number)),
        };
        let ends = failure.is_some_and(|failure| {
            let (exit_code, cache_miss) = (failure.exit_code, self.cache_miss(number));
            self.shared.fail(&failure, || {
                lane.log.fail();
                // The failure itself follows, and says all of it again: a courier that is lost is noticed there.
                let _ = self.shared.courier.event(Event::StepFailed { step: number, exit_code, cache_miss });
            })
        });
        if !ends {
            // What fails after another failure, or an order to stop, fails because of it.
            let dockerfile = self.wishes.dockerfile.to_owned();
            self.shared.stopped_in(Place { dockerfile, line: step.line, step: number });
        }
        Err(Halt::Stopped)
    }

    /// What a stage starts from. Files that nobody reads are not waited for.
    fn start(&self, place: usize, lane: &mut Lane<'_, '_>) -> Result<Left, Halt> {
        Ok(match self.plan.stages[place].base {
            Base::Scratch => Left { id: digest(&["scratch"]), ..Left::default() },
            Base::Stage(parent) => self.stages.left(parent),
            Base::Image(image) => {
                // A base that does not come is the fault of its FROM.
                let trees = self.bases.names(image);
                let wait = || -> Result<(), Halt> {
                    if self.reads_base(place) {
                        return self.bases.trees(self.shared, image).map(drop);
                    }
                    for tree in trees.iter().filter(|tree| self.lazy.has(tree)) {
                        // One that can't be told from an index is fetched by whoever looks at it.
                        let _ = self.lazy.wait(self.shared, tree)?;
                    }
                    Ok(())
                };
                if !self.bases.is_there(image) {
                    self.pause(lane, wait)?;
                }
                Left { trees, id: self.plan.images[image].resolved.digest.clone(), cached: None }
            }
        })
    }

    /// An entry of the cache turned out to be none: what is needed to make its result has to be there.
    pub(super) fn do_without(&self, at: At, lane: &mut Lane<'_, '_>) -> Result<(), Halt> {
        // Whatever is gone through again below was gone through once.
        self.wait_for(&self.below(at.0), lane)?;
        let alone = if lane.again {
            None
        } else {
            Some(self.pause(lane, || Ok(self.again.lock().unwrap_or_else(PoisonError::into_inner)))?)
        };
        let outer = std::mem::replace(&mut lane.again, true);
        for stage in self.lose(at) {
            self.stage(stage, lane)?;
        }
        lane.again = outer;
        drop(alone);
        Ok(())
    }

    /// All stages that a stage needs, directly or through others.
    fn below(&self, stage: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut todo = vec![stage];
        while let Some(stage) = todo.pop() {
            let planned = &self.plan.stages[stage];
            let from = planned.ops.iter().flat_map(|op| op.action.sources()).filter_map(CopyFrom::stage);
            let base = match planned.base {
                Base::Stage(parent) => Some(parent),
                Base::Scratch | Base::Image(_) => None,
            };
            todo.extend(from.chain(base).filter(|stage| found.insert(*stage)));
        }
        found
    }
}
