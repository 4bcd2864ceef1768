//! What is done, given which results the cache has. Pure.
//!
//! Wanted are the layers of the final image. A result that is there is taken; one that is not has to be made, and whoever
//! makes it reads the files of what it stands on and copies from, or only looks at them: whether a destination is there,
//! as what and whose. What nobody wants is left alone.

use std::collections::{BTreeMap, BTreeSet};

use super::At;
use crate::plan::{Action, Base, CopyFrom, Item, Plan};

/// What is done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::solve) struct Work {
    /// Operations whose layer or files somebody wants: they have to be asked for.
    pub wanted: BTreeSet<At>,
    /// Operations that are carried out.
    pub run: BTreeSet<At>,
    /// Results that are unpacked.
    pub unpack: BTreeSet<At>,
    /// Results that somebody only looks at.
    pub look: BTreeSet<At>,
    /// Stages whose base's files are needed.
    pub bases: BTreeSet<usize>,
    /// Stages all of whose files are needed, or looked at.
    pub stages: BTreeSet<usize>,
    /// Images whose files are needed.
    pub images: BTreeSet<usize>,
    /// Images that somebody only looks at.
    pub look_images: BTreeSet<usize>,
}

/// How much of what is below it an operation needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::solve) enum Need {
    /// Nothing.
    Nothing,
    /// What there is, but no content.
    Look,
    /// The files.
    Whole,
}

impl Need {
    /// That of an operation.
    pub fn of(action: &Action) -> Self {
        match action {
            Action::Copy { link: true, .. } => Self::Nothing,
            // An archive may have links to files that are there.
            Action::Copy { items, unpack, .. } if items.iter().any(|item| may_unpack(item, *unpack)) => {
                Self::Whole
            }
            Action::Copy { .. } | Action::Workdir { .. } => Self::Look,
            Action::Run { .. } => Self::Whole,
        }
    }
}

fn may_unpack(item: &Item, unpack: Option<bool>) -> bool {
    match item {
        Item::Files(_) => unpack.unwrap_or(true),
        Item::Url { .. } => unpack.unwrap_or(false),
        Item::Inline(_) | Item::Git { .. } => false,
    }
}

/// What is done without a cache.
pub(in crate::solve) fn all(plan: &Plan) -> Work {
    decide(plan, &|_| false)
}

/// What is done when the cache has what `has` says.
pub(in crate::solve) fn decide(plan: &Plan, has: &dyn Fn(At) -> bool) -> Work {
    let mut decider =
        Decider { plan, has, work: Work::default(), bases: BTreeMap::new(), stages: BTreeMap::new() };
    for (stage, planned) in plan.stages.iter().enumerate().filter(|(_, stage)| stage.publish) {
        for op in 0..planned.ops.len() {
            decider.work.wanted.insert((stage, op));
            if !has((stage, op)) {
                decider.run((stage, op));
            }
        }
    }
    let mut work = decider.work;
    let bases = decider.bases.into_iter().filter(|(_, need)| *need == Need::Whole);
    work.bases = bases.map(|(stage, _)| stage).collect();
    work.look = work.look.difference(&work.unpack).copied().collect();
    work.look_images = work.look_images.difference(&work.images).copied().collect();
    work
}

struct Decider<'a> {
    plan: &'a Plan,
    has: &'a dyn Fn(At) -> bool,
    work: Work,
    /// What was gone through, and for what: the bases of stages, and stages as a whole.
    bases: BTreeMap<usize, Need>,
    stages: BTreeMap<usize, Need>,
}

impl Decider<'_> {
    fn run(&mut self, at: At) {
        if !self.work.run.insert(at) {
            return;
        }
        let (stage, op) = at;
        let action = &self.plan.stages[stage].ops[op].action;
        self.files(stage, op, Need::of(action));
        for from in action.sources() {
            match from {
                CopyFrom::Stage(source) => self.whole(source, Need::Whole),
                CopyFrom::Image(image) => drop(self.work.images.insert(image)),
                CopyFrom::Context | CopyFrom::Named(_) => {}
            }
        }
    }

    /// The files of a stage before its operation `end`.
    fn files(&mut self, stage: usize, end: usize, need: Need) {
        if need == Need::Nothing {
            return;
        }
        if first(&mut self.bases, stage, need) {
            match self.plan.stages[stage].base {
                Base::Scratch => {}
                Base::Image(image) if need == Need::Whole => drop(self.work.images.insert(image)),
                Base::Image(image) => drop(self.work.look_images.insert(image)),
                Base::Stage(parent) => self.whole(parent, need),
            }
        }
        for op in 0..end {
            let at = (stage, op);
            self.work.wanted.insert(at);
            match need {
                _ if !(self.has)(at) => self.run(at),
                Need::Whole => drop(self.work.unpack.insert(at)),
                Need::Look | Need::Nothing => drop(self.work.look.insert(at)),
            }
        }
    }

    fn whole(&mut self, stage: usize, need: Need) {
        if first(&mut self.stages, stage, need) {
            self.work.stages.insert(stage);
            self.files(stage, self.plan.stages[stage].ops.len(), need);
        }
    }
}

/// Notes a need; whether as much was not noted before.
fn first(noted: &mut BTreeMap<usize, Need>, stage: usize, need: Need) -> bool {
    let known = noted.entry(stage).or_insert(Need::Nothing);
    let more = need > *known;
    *known = need.max(*known);
    more
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
