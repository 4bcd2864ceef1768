//! Entries on their way out. Nothing waits for them: they are sent beside the steps, at the lowest priority, and what is
//! left when the image is ready is sent then. One that can't be kept is counted, and no build fails for it.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, PoisonError};

use kiln_contract::Descriptor;
use kiln_contract::cache::{BuildRecord, CacheEntry};
use kiln_contract::request::Compression;

use super::{MAX_INDEX, index_key};
use crate::courier::CourierError;
use crate::engine::{LAYER_INDEX, View};
use crate::layer::Blob;
use crate::solve::Clock;
use crate::solve::failure::{Halt, internal};
use crate::solve::publish::{Publisher, descriptor};
use crate::solve::shared::Shared;

/// How much lower the priority is than a step's (`nice`): the least that there is.
const NICE: i32 = 19;

/// What names an entry and what it says beside its layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::solve) struct Label {
    /// The step's key.
    pub key: String,
    /// When the step ended.
    pub created: String,
}

/// Something to keep.
pub(in crate::solve) enum Save {
    /// The output has the layer.
    Stored {
        /// Its name.
        label: Label,
        /// The entry.
        entry: CacheEntry,
    },
    /// The layer of a stage that is not part of the image: it is made for the cache alone.
    Made {
        /// Its name.
        label: Label,
        /// What the step left.
        view: View,
        /// See `Exit::stubs`.
        stubs: Vec<String>,
    },
    /// The index of a layer.
    Index {
        /// The layer's.
        diff_id: String,
        /// The index, as the engine wrote it.
        index: File,
    },
    /// What the build did.
    Record {
        /// The build's name.
        name: String,
        /// All of it.
        record: BuildRecord,
    },
}

/// What became of them.
#[derive(Debug, Default)]
pub(in crate::solve) struct Outcome {
    kept: usize,
    lost: usize,
    /// The first thing that went wrong.
    why: Option<String>,
    /// The registry does not answer, or does not let us in.
    out: bool,
}

impl Outcome {
    /// What a person should know of it.
    pub fn warning(&self) -> Option<String> {
        let why = self.why.as_deref()?;
        if self.lost == 0 {
            return Some(format!(
                "not all that makes the next build quicker could be kept in the cache: {why}"
            ));
        }
        let all = self.kept + self.lost;
        Some(format!("{} of {all} results could not be kept in the cache: {why}", self.lost))
    }
}

/// Keeps what comes until nothing more can come, or the build is told to stop.
pub(in crate::solve) fn keep_all(
    todo: Receiver<Save>,
    publisher: &Publisher<'_>,
    shared: &Shared<'_>,
    clock: Clock<'_>,
    outcome: &Mutex<Outcome>,
) {
    // The thread's own priority; where the system refuses, it is merely less polite.
    let _ = rustix::process::setpriority_process(None, NICE);
    for save in todo {
        // What is left of a build that failed is taken and dropped.
        if shared.check().is_err() {
            continue;
        }
        // What can't be kept of them makes no build do a step again.
        let counts = usize::from(matches!(save, Save::Stored { .. } | Save::Made { .. }));
        let out = outcome.lock().unwrap_or_else(PoisonError::into_inner).out;
        let kept = if out { Ok(false) } else { keep(save, publisher, shared, clock).map(|()| true) };
        let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
        match kept {
            Ok(true) => outcome.kept += counts,
            Ok(false) => outcome.lost += counts,
            Err(Halt::Stopped) => {}
            Err(Halt::Failed(failure)) => {
                outcome.lost += counts;
                outcome.out |= super::is_out(&failure);
                outcome.why.get_or_insert(failure.message);
            }
        }
    }
}

fn compress(index: &File, out: &mut File) -> Result<Blob, Halt> {
    use std::io::Seek as _;
    let mut index = index;
    index.rewind().map_err(|e| internal(format!("reading an index: {e}")))?;
    // One thread beside this one: nobody waits.
    let packed = crate::layer::compress(index, out, Compression::Zstd, 1);
    Ok(packed.map_err(|e| internal(format!("compressing an index: {e}")))?)
}

fn keep(save: Save, publisher: &Publisher<'_>, shared: &Shared<'_>, clock: Clock<'_>) -> Result<(), Halt> {
    let put = |key: &str, entry: &CacheEntry, file| -> Result<(), CourierError> {
        shared.courier.cache_put(key, entry, file).map(drop)
    };
    match save {
        Save::Stored { label, entry } => Ok(put(&label.key, &entry, None)?),
        Save::Made { label, view, stubs } => {
            let (blob, file) = publisher.make_aside(shared, &view, &stubs)?;
            let entry =
                CacheEntry { layer: descriptor(&blob), diff_id: blob.diff_id, created: label.created };
            Ok(put(&label.key, &entry, Some(file.as_fd()))?)
        }
        Save::Index { diff_id, index } => {
            let key = index_key(&diff_id);
            if shared.courier.cache_get(&key)?.is_some() {
                return Ok(());
            }
            let mut packed = publisher.new_file()?;
            let blob = compress(&index, &mut packed)?;
            if blob.size > MAX_INDEX {
                return Ok(());
            }
            let layer = Descriptor { media_type: LAYER_INDEX.to_owned(), ..descriptor(&blob) };
            Ok(put(&key, &CacheEntry { layer, diff_id, created: clock() }, Some(packed.as_fd()))?)
        }
        Save::Record { name, record } => Ok(shared.courier.record_put(&name, &record)?),
    }
}
