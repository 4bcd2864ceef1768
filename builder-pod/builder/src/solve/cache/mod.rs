//! Results of steps of earlier builds. What a step depends on is its key; an entry under the key stands for its layer. Keys
//! follow from inputs alone, never from what a step made, so that all are known before anything runs.
//!
//! | module | does |
//! |---|---|
//! | `key` | plan -> keys; pure |
//! | `facts` | what keys need of files and downloads |
//! | `decide` | which steps run and whose files are needed, given what the cache has; pure |
//! | `lookup` | asks for entries, and puts their layers into the output |
//! | `pull` | layers of entries on their way in, where a step that runs reads them |
//! | `save` | entries on their way out |

use kiln_contract::{Failure, reason};

pub(super) mod decide;
pub(super) mod facts;
pub(super) mod key;
pub(super) mod lookup;
pub(super) mod pull;
pub(super) mod save;

/// Whether the registry does not answer, or does not let us in: it is not asked any more then.
fn is_out(failure: &Failure) -> bool {
    [reason::REGISTRY_UNAVAILABLE, reason::REGISTRY_UNAUTHORIZED].contains(&failure.reason.as_str())
}

/// An operation: the place of its stage in the plan, and its own place in the stage.
pub(super) type At = (usize, usize);
