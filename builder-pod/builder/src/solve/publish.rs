//! Layers on their way out, while the next step runs: difference -> tar -> compressed file -> output. And the base's
//! layers, which the output needs as well.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;

use kiln_contract::Descriptor;
use kiln_contract::journal::Event;

use super::Pack;
use super::failure::{Halt, internal, of_engine};
use super::shared::Shared;
use crate::engine::View;
use crate::layer::Blob;

/// Steps whose difference may wait to be taken: more would only hold more of the disk.
const WAITING: usize = 2;
/// Layers that are sent at a time; each takes a connection to the registry.
const SENDERS: usize = 2;
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
}

struct Packed {
    step: u32,
    index: usize,
    blob: Blob,
    file: File,
}

/// What the threads share.
pub(super) struct Publisher<'a> {
    spool: &'a Path,
    epoch: Option<i64>,
    pack: &'a dyn Pack,
    layers: Mutex<Vec<(usize, Blob)>>,
    bases: Mutex<VecDeque<(&'a str, &'a Descriptor)>>,
    packed: Mutex<Option<Receiver<Packed>>>,
    names: AtomicU64,
}

impl<'a> Publisher<'a> {
    /// `bases` are the layers of the final image's base, with the pinned name of their image.
    pub fn new(
        spool: &'a Path,
        epoch: Option<i64>,
        pack: &'a dyn Pack,
        bases: VecDeque<(&'a str, &'a Descriptor)>,
    ) -> Self {
        Self {
            spool,
            epoch,
            pack,
            layers: Mutex::new(Vec::new()),
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
    pub fn layers(&self) -> Vec<Blob> {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        layers.sort_by_key(|(index, _)| *index);
        layers.into_iter().map(|(_, blob)| blob).collect()
    }

    fn pack_all(&self, shared: &Shared<'_>, todo: &Receiver<Job>, packed: &SyncSender<Packed>) {
        // The thread's own priority; where the system refuses, it is merely less polite.
        let _ = rustix::process::setpriority_process(None, NICE);
        for job in todo {
            match shared.check().and_then(|()| self.pack(shared, &job)) {
                Ok(layer) => {
                    if packed.send(layer).is_err() {
                        return;
                    }
                }
                Err(halt) => return shared.halt(halt.map(|f| f.in_step(job.step))),
            }
        }
    }

    fn pack(&self, shared: &Shared<'_>, job: &Job) -> Result<Packed, Halt> {
        let name = format!("layer{}", self.names.fetch_add(1, Ordering::Relaxed));
        let mut file = spool_file(self.spool, &name)?;
        let (mut read, write) = std::io::pipe().map_err(|e| internal(format!("making a pipe: {e}")))?;
        let (diffed, blob) = std::thread::scope(|s| {
            let diffing = s.spawn(|| shared.engine.diff(&job.view, &job.stubs, self.epoch, write.into()));
            let blob = self.pack.pack(&mut read, &mut file);
            // A writer that nobody reads any more must not wait for ever.
            drop(read);
            (diffing.join(), blob)
        });
        let diffed = diffed.map_err(|_| internal("a thread that took a step's difference panicked"))?;
        let blob = match (diffed, blob) {
            (_, Err(problem)) => return Err(internal(format!("making a layer: {problem}")).into()),
            (Err(error), Ok(_)) => return Err(of_engine(&error, None)),
            (Ok(_), Ok(blob)) => blob,
        };
        Ok(Packed { step: job.step, index: job.index, blob, file })
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
        shared.courier.put_blob(&blob, layer.file.as_fd())?;
        shared.courier.event(Event::Layer { step: layer.step, digest: blob.digest, size: blob.size })?;
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).push((layer.index, layer.blob));
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

/// A file that goes when its last descriptor does: its name, which nobody else has at that time, is taken away at once.
pub(super) fn spool_file(spool: &Path, name: &str) -> Result<File, Halt> {
    let path = spool.join(name);
    let open = File::options().read(true).write(true).create_new(true).open(&path);
    let file = open.and_then(|file| std::fs::remove_file(&path).map(|()| file));
    file.map_err(|e| internal(format!("making {}: {e}", path.display())).into())
}

/// The layer as manifests name it.
pub(super) fn descriptor(blob: &Blob) -> Descriptor {
    Descriptor { media_type: blob.media_type.to_owned(), digest: blob.digest.clone(), size: blob.size }
}

fn spawn<'scope>(
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
