//! What is done, given which results the cache has. Pure.
//!
//! Wanted are the layers of the final image. A result that is there is taken; one that is not has to be made, and whoever
//! makes it reads the files of what it stands on and copies from. What nobody wants is left alone.

use std::collections::BTreeSet;

use super::At;
use crate::plan::{Base, CopyFrom, Plan};

/// What is done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::solve) struct Work {
    /// Operations whose layer or files somebody wants: they have to be asked for.
    pub wanted: BTreeSet<At>,
    /// Operations that are carried out.
    pub run: BTreeSet<At>,
    /// Results that are unpacked.
    pub unpack: BTreeSet<At>,
    /// Stages whose base's files are needed.
    pub bases: BTreeSet<usize>,
    /// Stages all of whose files are needed.
    pub stages: BTreeSet<usize>,
    /// Images whose files are needed.
    pub images: BTreeSet<usize>,
}

/// Everything is carried out.
pub(in crate::solve) fn all(plan: &Plan) -> Work {
    let mut work = Work::default();
    for (stage, planned) in plan.stages.iter().enumerate() {
        work.run.extend((0..planned.ops.len()).map(|op| (stage, op)));
        if planned.files {
            work.bases.insert(stage);
            work.stages.insert(stage);
        }
    }
    work.images.extend((0..plan.images.len()).filter(|image| plan.images[*image].files));
    work
}

/// What is done when the cache has what `has` says.
pub(in crate::solve) fn decide(plan: &Plan, has: &dyn Fn(At) -> bool) -> Work {
    let mut work = Work::default();
    for (stage, planned) in plan.stages.iter().enumerate().filter(|(_, stage)| stage.publish) {
        for op in 0..planned.ops.len() {
            work.wanted.insert((stage, op));
            if !has((stage, op)) {
                run(plan, has, (stage, op), &mut work);
            }
        }
    }
    work
}

fn run(plan: &Plan, has: &dyn Fn(At) -> bool, at: At, work: &mut Work) {
    if !work.run.insert(at) {
        return;
    }
    let (stage, op) = at;
    files(plan, has, stage, op, work);
    for from in plan.stages[stage].ops[op].action.sources() {
        match from {
            CopyFrom::Stage(source) => whole(plan, has, source, work),
            CopyFrom::Image(image) => drop(work.images.insert(image)),
            CopyFrom::Context | CopyFrom::Named(_) => {}
        }
    }
}

/// The files of a stage before its operation `end`.
fn files(plan: &Plan, has: &dyn Fn(At) -> bool, stage: usize, end: usize, work: &mut Work) {
    if work.bases.insert(stage) {
        match plan.stages[stage].base {
            Base::Scratch => {}
            Base::Image(image) => drop(work.images.insert(image)),
            Base::Stage(parent) => whole(plan, has, parent, work),
        }
    }
    for op in 0..end {
        let at = (stage, op);
        work.wanted.insert(at);
        if has(at) {
            work.unpack.insert(at);
        } else {
            run(plan, has, at, work);
        }
    }
}

fn whole(plan: &Plan, has: &dyn Fn(At) -> bool, stage: usize, work: &mut Work) {
    if work.stages.insert(stage) {
        files(plan, has, stage, plan.stages[stage].ops.len(), work);
    }
}

/// Why the cache has no result of an operation, in a few words.
pub(in crate::solve) fn why_not(plan: &Plan, has: &dyn Fn(At) -> bool, (stage, op): At) -> &'static str {
    let mut before = (0..op).map(|op| (stage, op)).collect::<Vec<_>>();
    let mut base = plan.stages[stage].base;
    while let Base::Stage(parent) = base {
        before.extend((0..plan.stages[parent].ops.len()).map(|op| (parent, op)));
        base = plan.stages[parent].base;
    }
    if before.into_iter().any(|at| !has(at)) {
        return "a step before it was not in the cache";
    }
    let from = plan.stages[stage].ops[op].action.sources();
    let source = |from: &CopyFrom| match from {
        CopyFrom::Stage(source) => (0..plan.stages[*source].ops.len()).any(|op| !has((*source, op))),
        _ => false,
    };
    if from.iter().any(source) {
        return "a stage that it reads was not in the cache";
    }
    "the instruction, its variables or the files that it reads changed, or it was not built before"
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
