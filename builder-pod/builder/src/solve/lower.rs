//! What a step stands on: trees that are there, or those that it can do with.

use kiln_contract::{Failure, FailureClass, reason};

use super::bases::layer_of;
use super::cache::decide::Need;
use super::cache::pull::entry_of;
use super::failure::Halt;
use super::step::Steps;
use crate::plan::Action;

impl Steps<'_> {
    /// The lower trees for an operation on `trees`.
    pub(super) fn lowers(&self, trees: &[String], action: &Action) -> Result<Vec<String>, Halt> {
        match Need::of(action) {
            Need::Nothing => Ok(Vec::new()),
            Need::Look | Need::Whole => self.whole(trees),
        }
    }

    /// The same trees, once all of them are there: whoever reads files asks here. What was not thought to be read is
    /// fetched now.
    pub(super) fn whole(&self, trees: &[String]) -> Result<Vec<String>, Halt> {
        for (place, tree) in trees.iter().enumerate() {
            if let Some((image, 0)) = layer_of(tree) {
                self.bases.trees(self.shared, image)?;
            }
            if let Some(at) = entry_of(tree)
                && let Some(hit) = self.known.hits.get(&at)
                && let Err(problem) = self.pulls.settle(self.shared, at, hit, &trees[..place])?
            {
                let step = self.plan.stages[at.0].ops[at.1].step;
                let message = format!("the cached result of step {step} can't be read: {problem}");
                return Err(Failure::new(FailureClass::Registry, reason::BASE_IMAGE_INVALID, message).into());
            }
        }
        Ok(trees.to_vec())
    }
}
