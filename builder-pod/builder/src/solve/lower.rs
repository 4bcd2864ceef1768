//! What a step stands on: trees that are there, or those that it can do with.

use std::sync::PoisonError;

use kiln_contract::{Failure, FailureClass, reason};

use super::bases::layer_of;
use super::cache::At;
use super::cache::decide::Need;
use super::cache::pull::entry_of;
use super::copy::{CopyFault, check_owner};
use super::failure::{Halt, of_engine};
use super::step::Steps;
use crate::engine::{Copied, Destination, EngineErrorKind, Owner, View};
use crate::plan::{Action, Item};

impl Steps<'_> {
    /// Carries out a COPY, an ADD or a WORKDIR on `trees`; what it left. Where only the looks of a layer are there and
    /// what is in it turns out to count, it is done again on the layer itself.
    pub(super) fn place(&self, at: At, trees: &[String], action: &Action) -> Result<View, Halt> {
        let lowers = match Need::of(action) {
            Need::Nothing => Vec::new(),
            Need::Look => self.looked_at(trees)?,
            Need::Whole => self.whole(trees)?,
        };
        let view = View { lowers, upper: self.upper(at) };
        self.plain.lock().unwrap_or_else(PoisonError::into_inner).insert(view.upper.clone());
        match self.put(&view, action) {
            Ok(()) => Ok(view),
            Err(CopyFault::Engine(error)) if error.kind == EngineErrorKind::Content => {
                let unfit = std::slice::from_ref(&view.upper);
                self.shared.engine.remove(unfit).map_err(|e| of_engine(&e, None))?;
                let view = View { lowers: self.whole(trees)?, upper: self.upper(at) };
                self.plain.lock().unwrap_or_else(PoisonError::into_inner).insert(view.upper.clone());
                self.put(&view, action).map_err(|fault| fault.into_halt(action))?;
                Ok(view)
            }
            Err(fault) => Err(fault.into_halt(action)),
        }
    }

    fn put(&self, view: &View, action: &Action) -> Result<(), CopyFault> {
        match action {
            Action::Run { .. } => {}
            Action::Workdir { path, user } => {
                let owner = match user {
                    Some(user) => self.shared.engine.owner(&view.lowers, user)?,
                    None => Owner::default(),
                };
                self.shared.engine.make_directory(view, path, owner)?;
            }
            Action::Copy { from, items, dest, chown, mode, unpack, link } => {
                let owner = match chown {
                    Some(chown) => {
                        check_owner(&view.lowers, chown)?;
                        Some(self.shared.engine.owner(&view.lowers, chown)?)
                    }
                    None => None,
                };
                let mut to = Destination {
                    path: dest.clone(),
                    sources: items.len(),
                    owner,
                    mode: mode.clone(),
                    unpack: false,
                    link: *link,
                };
                for item in items {
                    to.unpack = match item {
                        Item::Files(_) => unpack.unwrap_or(true),
                        Item::Url { .. } => unpack.unwrap_or(false),
                        Item::Inline(_) | Item::Git { .. } => false,
                    };
                    self.item(view, &to, *from, item)?;
                }
            }
        }
        Ok(())
    }

    /// Trees that look like `trees` to who reads no content.
    fn looked_at(&self, trees: &[String]) -> Result<Vec<String>, Halt> {
        let (lazy, there): (Vec<String>, Vec<String>) =
            trees.iter().cloned().partition(|tree| self.lazy.has(tree));
        if lazy.is_empty() {
            return self.whole(trees);
        }
        self.whole(&there)?;
        let known = {
            let plain = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
            there.iter().all(|tree| plain.contains(tree))
        };
        match self.lazy.trees(self.shared, trees, known)? {
            Some(trees) => Ok(trees),
            None => self.whole(trees),
        }
    }

    /// Notes what a copy made in the tree `upper`.
    pub(super) fn made_links(&self, upper: &str, copied: Copied) {
        if copied.links {
            self.plain.lock().unwrap_or_else(PoisonError::into_inner).remove(upper);
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
                && let Some(hit) = self.hit(at)
                && let Err(problem) = self.pulls.settle(self.shared, at, &hit, &trees[..place])?
            {
                let step = self.plan.stages[at.0].ops[at.1].step;
                let message = format!("the cached result of step {step} can't be read: {problem}");
                return Err(Failure::new(FailureClass::Registry, reason::BASE_IMAGE_INVALID, message).into());
            }
        }
        Ok(trees.to_vec())
    }
}
