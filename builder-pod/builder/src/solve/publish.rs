//! Layers on their way out, while the next step runs: difference -> tar -> compressed file -> output. And the base's
//! layers, which the output needs as well.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;

use kiln_contract::Descriptor;
use kiln_contract::cache::CacheEntry;
use kiln_contract::journal::Event;

use super::Pack;
use super::cache::save::{Label, Save};
use super::failure::{Halt, internal, of_engine};
use super::shared::Shared;
use super::spool::{Spool, spool_file};
use crate::courier::Growing;
use crate::engine::View;
use crate::layer::Blob;

/// Steps whose difference may wait to be taken: more would only hold more of the disk.
const WAITING: usize = 2;
/// Layers that are sent at a time when they are whole; each takes a connection to the registry. A large one that waits for its
/// turn here has begun its way already.
const SENDERS: usize = 2;
/// Bytes between who writes and who reads a layer: a block of the compressor, and what a user without privileges may have.
const PIPE: usize = 1 << 20;
/// How much lower the priority of compression is than that of the step that runs beside it (`nice`).
const NICE: i32 = 10;

/// A step whose layer is to be made.
pub(super) struct Job {
    /// Number of the step.
    pub step: u32,
    /// Place of the layer among those of the build.
    pub index: usize,
    /// What the step left.
    pub view: View,
    /// See `Exit::stubs`.
    pub stubs: Vec<String>,
    /// What it is kept as in the cache.
    pub label: Option<Label>,
}

/// A layer of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    /// As manifests name it.
    pub blob: Descriptor,
    /// `sha256:…` of its tar.
    pub diff_id: String,
}

struct Packed {
    step: u32,
    index: usize,
    blob: Blob,
    file: File,
    /// Where it is on its way already.
    growing: Option<Box<dyn Growing>>,
    label: Option<Label>,
}

/// What the threads share.
pub(super) struct Publisher<'a> {
    spool: &'a Path,
    epoch: Option<i64>,
    pack: &'a dyn Pack,
    layers: Mutex<BTreeMap<usize, Layer>>,
    /// Where entries for the cache go.
    saves: Mutex<Option<Sender<Save>>>,
    bases: Mutex<VecDeque<(&'a str, &'a Descriptor)>>,
    packed: Mutex<Option<Receiver<Packed>>>,
    names: AtomicU64,
}

/// A pipe for a layer.
pub(super) fn wide_pipe() -> Result<(PipeReader, PipeWriter), Halt> {
    let (read, write) = std::io::pipe().map_err(|e| internal(format!("making a pipe: {e}")))?;
    // Where the user has no more room for pipes, the two take turns more often.
    let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE);
    Ok((read, write))
}

impl<'a> Publisher<'a> {
    /// `bases` are the layers of the final image's base, with the pinned name of their image; `saves` takes what is for the
    /// cache.
    pub fn new(
        spool: &'a Path,
        epoch: Option<i64>,
        pack: &'a dyn Pack,
        bases: VecDeque<(&'a str, &'a Descriptor)>,
        saves: Option<Sender<Save>>,
    ) -> Self {
        Self {
            spool,
            epoch,
            pack,
            layers: Mutex::default(),
            saves: Mutex::new(saves),
            bases: Mutex::new(bases),
            packed: Mutex::new(None),
            names: AtomicU64::new(0),
        }
    }

    /// Starts the threads. They end when the returned sender is dropped and all work is done, or at the first failure.
    pub fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        shared: &'scope Shared<'scope>,
    ) -> Result<SyncSender<Job>, Halt> {
        let (jobs, todo) = sync_channel(WAITING);
        let (packed, ready) = sync_channel(WAITING);
        *self.packed.lock().unwrap_or_else(PoisonError::into_inner) = Some(ready);
        spawn(scope, "layer", move || self.pack_all(shared, &todo, &packed))?;
        for _ in 0..SENDERS {
            spawn(scope, "send", move || self.send_all(shared))?;
        }
        for _ in 0..SENDERS {
            spawn(scope, "base-send", move || self.send_bases(shared))?;
        }
        Ok(jobs)
    }

    /// The layers, from the bottom up. All threads have ended.
    pub fn layers(&self) -> Vec<Layer> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Notes a layer that the output has.
    pub fn has(&self, index: usize, layer: Layer) {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).insert(index, layer);
    }

    /// Hands something to whoever keeps it in the cache.
    pub fn save(&self, save: Save) {
        if let Some(saves) = &*self.saves.lock().unwrap_or_else(PoisonError::into_inner) {
            // Nobody takes it: then nobody keeps it.
            let _ = saves.send(save);
        }
    }

    /// There is nothing more to keep.
    pub fn all_saved(&self) {
        self.saves.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn pack_all(&self, shared: &Shared<'_>, todo: &Receiver<Job>, packed: &SyncSender<Packed>) {
        // The thread's own priority; where the system refuses, it is merely less polite.
        let _ = rustix::process::setpriority_process(None, NICE);
        for job in todo {
            let step = job.step;
            match shared.check().and_then(|()| self.pack(shared, job)) {
                Ok(layer) => {
                    if packed.send(layer).is_err() {
                        return;
                    }
                }
                Err(halt) => return shared.halt(halt.map(|f| f.in_step(step))),
            }
        }
    }

    fn pack(&self, shared: &Shared<'_>, job: Job) -> Result<Packed, Halt> {
        let file = self.new_file()?;
        let mut spool = Spool::new(&file, Some(shared.courier));
        let blob = self.make(shared, &job.view, &job.stubs, &mut spool)?;
        let growing = spool.growing();
        Ok(Packed { step: job.step, index: job.index, blob, file, growing, label: job.label })
    }

    /// The layer of what a step left that is not for the output, as a file without a name.
    pub fn make_aside(
        &self,
        shared: &Shared<'_>,
        view: &View,
        stubs: &[String],
    ) -> Result<(Blob, File), Halt> {
        let file = self.new_file()?;
        let blob = self.make(shared, view, stubs, &mut Spool::new(&file, None))?;
        Ok((blob, file))
    }

    fn make(
        &self,
        shared: &Shared<'_>,
        view: &View,
        stubs: &[String],
        spool: &mut Spool<'_>,
    ) -> Result<Blob, Halt> {
        let (index, copy) = self.new_index()?.unzip();
        let (mut read, write) = wide_pipe()?;
        let (diffed, blob) = std::thread::scope(|s| {
            let diffing = s.spawn(|| shared.engine.diff(view, stubs, self.epoch, write.into(), copy));
            let blob = self.pack.pack(&mut read, spool);
            // A writer that nobody reads any more must not wait for ever.
            drop(read);
            (diffing.join(), blob)
        });
        let diffed = diffed.map_err(|_| internal("a thread that took a step's difference panicked"))?;
        match (diffed, blob) {
            (_, Err(problem)) => Err(internal(format!("making a layer: {problem}")).into()),
            (Err(error), Ok(_)) => Err(of_engine(&error, None)),
            (Ok(_), Ok(blob)) => {
                if let Some(index) = index {
                    self.save(Save::Index { diff_id: blob.diff_id.clone(), index });
                }
                Ok(blob)
            }
        }
    }

    /// A file without a name.
    pub fn new_file(&self) -> Result<File, Halt> {
        spool_file(self.spool, &format!("layer{}", self.names.fetch_add(1, Ordering::Relaxed)))
    }

    /// A file for an index that somebody will keep, and a descriptor for who writes it; none where nobody keeps any.
    pub fn new_index(&self) -> Result<Option<(File, OwnedFd)>, Halt> {
        if self.saves.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Ok(None);
        }
        let index = self.new_file()?;
        let out = index.try_clone().map_err(|e| internal(format!("sharing an index: {e}")))?;
        Ok(Some((index, out.into())))
    }

    fn send_all(&self, shared: &Shared<'_>) {
        loop {
            let next = {
                let packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
                packed.as_ref().and_then(|ready| ready.recv().ok())
            };
            let Some(layer) = next else { return };
            let step = layer.step;
            // After a failure the rest is taken and dropped, so that nobody waits for room.
            if let Err(halt) = shared.check().and_then(|()| self.send(shared, layer)) {
                shared.halt(halt.map(|f| f.in_step(step)));
            }
        }
    }

    fn send(&self, shared: &Shared<'_>, layer: Packed) -> Result<(), Halt> {
        let blob = descriptor(&layer.blob);
        match layer.growing {
            Some(growing) => growing.put(&blob)?,
            None => shared.courier.put_blob(&blob, layer.file.as_fd())?,
        };
        let (digest, size) = (blob.digest.clone(), blob.size);
        shared.courier.event(Event::Layer { step: layer.step, digest, size })?;
        let diff_id = layer.blob.diff_id;
        self.has(layer.index, Layer { blob: blob.clone(), diff_id: diff_id.clone() });
        if let Some(label) = layer.label {
            let entry = CacheEntry { layer: blob, diff_id, created: label.created.clone() };
            self.save(Save::Stored { label, entry });
        }
        Ok(())
    }

    fn send_bases(&self, shared: &Shared<'_>) {
        loop {
            let next = self.bases.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some((image, blob)) = next else { return };
            let sent = shared.check().and_then(|()| Ok(shared.courier.put_base_blob(image, blob)?));
            if let Err(halt) = sent {
                return shared.halt(halt);
            }
        }
    }
}

/// The layer as manifests name it.
pub(super) fn descriptor(blob: &Blob) -> Descriptor {
    Descriptor { media_type: blob.media_type.to_owned(), digest: blob.digest.clone(), size: blob.size }
}

pub(super) fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() + Send + 'scope,
) -> Result<(), Halt> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn_scoped(scope, work)
        .map(drop)
        .map_err(|e| internal(format!("starting a thread: {e}")).into())
}
