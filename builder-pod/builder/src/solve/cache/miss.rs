//! Why the cache has no result of a step. Which steps follow from others that are missing is known from the plan; of the rest
//! the record of the last build of this name says what it had there. The record is asked for in the background, once: no
//! step waits for it, and one that comes too late is missing in the log only.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kiln_contract::cache::{BuildRecord, RecordedStep};
use kiln_contract::journal::{MAX_CACHE_MISS, MAX_STEPS};
use kiln_contract::text::truncate;

use super::At;
use super::inputs::{Group, Inputs};
use super::key::Keys;
use super::lookup::Found;
use crate::plan::{Action, Base, CopyFrom, Plan};
use crate::solve::shared::Shared;

/// How long the first lines of the log may wait for the record, from when it was asked for: one request of some milliseconds.
/// A test waits for as long as it takes.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 60_000 } else { 100 });
/// Bytes of a stage's name in a step's word.
const MAX_STAGE: usize = 100;

/// What is known of an operation without the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// What was in the cache is no result of it.
    Unusable,
    /// It stands on what this operation makes, which was missing, too.
    After(At),
    /// What it depends on could not be told.
    Untold,
    /// The record knows.
    Asked,
}

/// The record, as far as it is known.
#[derive(Debug, Default)]
enum Last {
    #[default]
    OnItsWay,
    Known(Option<BuildRecord>),
    /// It can't be had.
    Lost,
}

/// What is missing, and why.
pub(in crate::solve) struct Misses<'a> {
    plan: &'a Plan,
    /// The cache does not answer.
    out: bool,
    kinds: Mutex<BTreeMap<At, Kind>>,
    /// Keys and inputs of all that may be asked.
    own: BTreeMap<At, RecordedStep>,
    last: Mutex<(Last, Instant)>,
    came: Condvar,
}

impl<'a> Misses<'a> {
    /// For a build without a cache: nothing is missing.
    pub fn none(plan: &'a Plan) -> Self {
        Self::with(plan, false, BTreeMap::new(), BTreeMap::new())
    }

    /// Those that a look-up came to.
    pub fn new(plan: &'a Plan, keys: &Keys, found: &Found) -> Self {
        let run = &found.work.run;
        let mut kinds = BTreeMap::new();
        let mut own = BTreeMap::new();
        for at in run.iter().copied() {
            let kind = if found.unusable.contains(&at) {
                Kind::Unusable
            } else if let Some(root) = below(plan, at).into_iter().find(|below| run.contains(below)) {
                Kind::After(root)
            } else if let (Some(key), Some(inputs)) = (keys.of(at), keys.inputs(at)) {
                own.insert(at, RecordedStep { key: key.to_owned(), inputs: inputs.clone() });
                Kind::Asked
            } else {
                Kind::Untold
            };
            kinds.insert(at, kind);
        }
        Self::with(plan, !found.answers, kinds, own)
    }

    fn with(plan: &'a Plan, out: bool, kinds: BTreeMap<At, Kind>, own: BTreeMap<At, RecordedStep>) -> Self {
        let last = Mutex::new((Last::default(), Instant::now()));
        Self { plan, out, kinds: Mutex::new(kinds), own, last, came: Condvar::new() }
    }

    /// Whether the record is of use.
    pub fn asks(&self) -> bool {
        !self.out && !self.own.is_empty()
    }

    /// Asks for the record of a build's name.
    pub fn ask(&self, shared: &Shared<'_>, name: &str) {
        let last = match shared.courier.record_get(name) {
            Ok(record) => Last::Known(record),
            Err(_) => Last::Lost,
        };
        self.last.lock().unwrap_or_else(PoisonError::into_inner).0 = last;
        self.came.notify_all();
    }

    /// An entry turned out to be none.
    pub fn lost(&self, at: At) {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner).insert(at, Kind::Unusable);
    }

    /// Why there is no result of an operation that is made, for the log: the record may be waited for a little.
    pub fn why(&self, at: At) -> String {
        if self.asks() {
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let left = PATIENCE.saturating_sub(last.1.elapsed());
            let waits = |last: &mut (Last, Instant)| matches!(last.0, Last::OnItsWay);
            drop(self.came.wait_timeout_while(last, left, waits));
        }
        self.now(at)
    }

    /// The same, as far as it is known now.
    pub fn now(&self, at: At) -> String {
        truncate(&self.text(at).0, MAX_CACHE_MISS)
    }

    /// In words, and whether it is known that something changed.
    fn text(&self, at: At) -> (String, bool) {
        if self.out {
            return ("the cache does not answer".to_owned(), false);
        }
        let kind = self.kinds.lock().unwrap_or_else(PoisonError::into_inner).get(&at).copied();
        let step = |(stage, op): At| self.plan.stages[stage].ops[op].step;
        match kind {
            Some(Kind::Unusable) => ("what the cache has of it is not usable".to_owned(), false),
            Some(Kind::Untold) => ("what it depends on could not be told before it ran".to_owned(), false),
            Some(Kind::After(root)) if self.text(root).1 => {
                (format!("what it stands on changed: step {}", step(root)), true)
            }
            Some(Kind::After(root)) => {
                (format!("step {}, which it stands on, was not in the cache", step(root)), false)
            }
            Some(Kind::Asked) => self.told(at),
            None => ("it is needed to make a step whose cached result is not usable".to_owned(), false),
        }
    }

    /// What the record says.
    fn told(&self, at: At) -> (String, bool) {
        let read = self.read(at);
        let vague = match read {
            Some(root) => {
                let step = self.plan.stages[root.0].ops[root.1].step;
                format!("step {step}, whose result it reads, was not in the cache")
            }
            None => "the instruction, its variables or the files that it reads changed, or it was not built before"
                .to_owned(),
        };
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (Last::Known(record), Some(own)) = (&last.0, self.own.get(&at)) else { return (vague, false) };
        let Some(record) = record else { return ("no build before this one is known".to_owned(), false) };
        match record.steps.get(&word(self.plan, at)) {
            None => ("the last build had no such step".to_owned(), true),
            Some(then) if then.key == own.key => ("it is gone from the cache".to_owned(), false),
            Some(then) => (self.changes(at, read, &own.inputs, &then.inputs), true),
        }
    }

    /// What is other than it was.
    fn changes(&self, at: At, read: Option<At>, now: &Inputs, then: &Inputs) -> String {
        let changed = |group: &Group| now.get(group.word()) != then.get(group.word());
        let kind = |inputs: &Inputs| -> Vec<String> {
            inputs.keys().filter(|word| *word != Group::Below.word()).cloned().collect()
        };
        let mut groups: Vec<Group> = Group::ALL.into_iter().filter(changed).collect();
        if kind(now) != kind(then) {
            // Of another instruction all the rest is other, too.
            groups.retain(|group| matches!(group, Group::Below | Group::Instruction));
        } else if groups.contains(&Group::Instruction) {
            // Another path has other files.
            groups.retain(|group| *group != Group::Files);
        }
        let words: Vec<String> = groups.into_iter().map(|group| self.words(at, read, group)).collect();
        match &words[..] {
            [] => "what it depends on changed".to_owned(),
            [one] => format!("{one} changed"),
            [first @ .., last] => format!("{} and {last} changed", first.join(", ")),
        }
    }

    fn words(&self, (stage, op): At, read: Option<At>, group: Group) -> String {
        let stage = &self.plan.stages[stage];
        let action = &stage.ops[op].action;
        match group {
            Group::Below if op == 0 && matches!(stage.base, Base::Image(_)) => "the base image".to_owned(),
            Group::Below => "what it stands on".to_owned(),
            Group::Instruction => "the instruction".to_owned(),
            Group::Environment => "its variables".to_owned(),
            Group::Files | Group::Mounts if read.is_some() => {
                let step = read.map_or(0, |(stage, op)| self.plan.stages[stage].ops[op].step);
                format!("what it reads of step {step}")
            }
            Group::Files => match action {
                Action::Copy { from: CopyFrom::Image(_), .. } => "the image that it copies from".to_owned(),
                Action::Copy { from: CopyFrom::Stage(_), .. } => "the stage that it copies from".to_owned(),
                _ => "the files".to_owned(),
            },
            Group::Mounts => "its mounts, or what they show,".to_owned(),
            Group::Settings => match action {
                Action::Run { .. } => "its user, directory, network or limits".to_owned(),
                _ => "its owner, mode or other flags".to_owned(),
            },
        }
    }

    /// The first of what an operation reads of other stages that is missing, too.
    fn read(&self, (stage, op): At) -> Option<At> {
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let sources = self.plan.stages[stage].ops[op].action.sources();
        let ops = sources.into_iter().filter_map(CopyFrom::stage).flat_map(|stage| all(self.plan, stage));
        // What is only made again is what it was.
        ops.into_iter().find(|at| kinds.get(at).is_some_and(|kind| *kind != Kind::Unusable))
    }
}

/// What is below an operation, from the bottom up; nothing below what is the same on whatever it lies.
fn below(plan: &Plan, (stage, op): At) -> Vec<At> {
    if matches!(plan.stages[stage].ops[op].action, Action::Copy { link: true, .. }) {
        return Vec::new();
    }
    let mut ops = all(plan, stage);
    ops.retain(|at| *at != (stage, op) && (at.0 != stage || at.1 < op));
    ops
}

/// All that a stage is made of, from the bottom up.
fn all(plan: &Plan, stage: usize) -> Vec<At> {
    let mut stages = vec![stage];
    while let Some(Base::Stage(parent)) = stages.last().map(|stage| plan.stages[*stage].base) {
        stages.push(parent);
    }
    let ops = stages
        .into_iter()
        .rev()
        .flat_map(|stage| (0..plan.stages[stage].ops.len()).map(move |op| (stage, op)));
    ops.collect()
}

/// What names an operation from build to build: its stage, and its place among those there that make a layer.
fn word(plan: &Plan, (stage, op): At) -> String {
    format!("{}/{op}", truncate(&plan.stages[stage].name, MAX_STAGE))
}

/// What a build did, for the next one.
pub(in crate::solve) fn record(plan: &Plan, keys: &Keys, created: String) -> BuildRecord {
    let ops =
        (0..plan.stages.len()).flat_map(|stage| (0..plan.stages[stage].ops.len()).map(move |op| (stage, op)));
    let step = |at| {
        let (key, inputs) = (keys.of(at)?.to_owned(), keys.inputs(at)?.clone());
        Some((word(plan, at), RecordedStep { key, inputs }))
    };
    BuildRecord { created, steps: ops.take(MAX_STEPS).filter_map(step).collect() }
}

#[cfg(test)]
#[path = "miss_tests.rs"]
mod tests;
