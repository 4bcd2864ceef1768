//! Results of steps of earlier builds. What a step depends on is its key; an entry under the key stands for its layer. Keys
//! follow from inputs alone, never from what a step made, so that all are known before anything runs.
//!
//! | module | does |
//! |---|---|
//! | `key` | plan -> keys; pure |
//! | `inputs` | plan -> what each step depends on, in groups; pure |
//! | `facts` | what keys need of files and downloads |
//! | `decide` | which steps run and whose files are needed, given what the cache has; pure |
//! | `lookup` | asks for entries, and puts their layers into the output |
//! | `miss` | says why there was none: what the last build did is held against this one |
//! | `pull` | layers of entries on their way in, where a step that runs reads them |
//! | `save` | entries and indexes on their way out |
//! | `mounts` | what caches of steps hold, from one build to the next |

use kiln_contract::{Failure, reason};
use sha2::{Digest as _, Sha256};

pub(super) mod decide;
pub(super) mod facts;
pub(super) mod inputs;
pub(super) mod key;
pub(super) mod lookup;
pub(super) mod miss;
pub(super) mod mounts;
pub(super) mod pull;
pub(super) mod save;

/// Whether the registry does not answer, or does not let us in: it is not asked any more then.
pub(super) fn is_out(failure: &Failure) -> bool {
    [reason::REGISTRY_UNAVAILABLE, reason::REGISTRY_UNAUTHORIZED].contains(&failure.reason.as_str())
}

/// Bytes of a layer's index, compressed, at most: a million entries.
pub(super) const MAX_INDEX: u64 = 16 << 20;

/// What names the index of a layer; another format gets another number.
pub(super) fn index_key(diff_id: &str) -> String {
    let mut sum = Sha256::new();
    for field in ["kiln layer index 1", diff_id] {
        sum.update((field.len() as u64).to_be_bytes());
        sum.update(field.as_bytes());
    }
    hex::encode(sum.finalize())
}

/// An operation: the place of its stage in the plan, and its own place in the stage.
pub(super) type At = (usize, usize);
