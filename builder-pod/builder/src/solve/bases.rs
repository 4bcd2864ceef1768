//! Base images on their way in: every layer is downloaded and unpacked into a tree of its own, several at a time, in the
//! order in which stages need them.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::Duration;

use kiln_contract::{Failure, FailureClass, reason};

use super::failure::{Halt, internal, of_engine};
use super::shared::Shared;
use crate::courier::CourierError;
use crate::engine::Unpacked;
use crate::plan::BaseImage;

/// Layers on their way at a time: the work is decompression, and two cores are usual.
const AT_A_TIME: usize = 4;
/// How often a wait looks whether the build was stopped.
const TICK: Duration = Duration::from_millis(50);

/// The base images of a build.
pub(super) struct Bases<'a> {
    images: &'a [BaseImage],
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    todo: VecDeque<(usize, usize)>,
    images: Vec<Image>,
}

#[derive(Default)]
struct Image {
    layers: Vec<Option<Unpacked>>,
    settled: bool,
}

impl<'a> Bases<'a> {
    pub fn new(images: &'a [BaseImage]) -> Self {
        let mut todo = VecDeque::new();
        for (i, image) in images.iter().enumerate().filter(|(_, image)| image.files) {
            todo.extend((0..image.resolved.layers.len()).map(|layer| (i, layer)));
        }
        let states = images
            .iter()
            .map(|image| Image { layers: vec![None; image.resolved.layers.len()], settled: false })
            .collect();
        Self { images, state: Mutex::new(State { todo, images: states }), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the downloads.
    pub fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        shared: &'scope Shared<'scope>,
    ) -> Result<(), Halt> {
        let threads = AT_A_TIME.min(self.lock().todo.len());
        for _ in 0..threads {
            std::thread::Builder::new()
                .name("base".into())
                .spawn_scoped(scope, || self.work(shared))
                .map_err(|e| internal(format!("starting a thread: {e}")))?;
        }
        Ok(())
    }

    fn work(&self, shared: &Shared<'_>) {
        loop {
            let Some((image, layer)) = self.lock().todo.pop_front() else { return };
            let result = shared.check().and_then(|()| fetch(shared, &self.images[image], image, layer));
            match result {
                Ok(unpacked) => self.lock().images[image].layers[layer] = Some(unpacked),
                Err(halt) => {
                    shared.halt(halt);
                    self.changed.notify_all();
                    return;
                }
            }
            self.changed.notify_all();
        }
    }

    /// Waits until an image is all there; its trees from the bottom up.
    pub fn trees(&self, shared: &Shared<'_>, image: usize) -> Result<Vec<String>, Halt> {
        let mut state = self.lock();
        while state.images[image].layers.iter().any(Option::is_none) {
            shared.check()?;
            state = self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
        let layers: Vec<(String, Unpacked)> = state.images[image]
            .layers
            .iter()
            .enumerate()
            .filter_map(|(layer, unpacked)| Some((tree(image, layer), unpacked.clone()?)))
            .collect();
        if !state.images[image].settled {
            shared.engine.settle(&layers).map_err(|e| of_engine(&e, None))?;
            state.images[image].settled = true;
        }
        Ok(layers.into_iter().map(|(tree, _)| tree).collect())
    }
}

fn tree(image: usize, layer: usize) -> String {
    format!("b{image}-{layer}")
}

/// Downloads and unpacks one layer, and checks that it is the one that the config means.
fn fetch(shared: &Shared<'_>, image: &BaseImage, number: usize, layer: usize) -> Result<Unpacked, Halt> {
    let blob = &image.resolved.layers[layer];
    let (read, write) = std::io::pipe().map_err(|e| internal(format!("making a pipe: {e}")))?;
    let (sent, unpacked) = std::thread::scope(|s| {
        let sending = s.spawn(|| shared.courier.read_blob(&image.resolved.pinned, blob, write.into()));
        let unpacked = shared.engine.unpack(&tree(number, layer), &blob.media_type, read.into());
        (sending.join(), unpacked)
    });
    let sent = sent.map_err(|_| internal("a thread that read a layer panicked"))?;
    match (sent, unpacked) {
        (Ok(()), Ok(unpacked)) => check(image, layer, unpacked),
        (Err(error), Ok(_)) => Err(error.into()),
        // When one side fails the other one does, too. A fault of the registry cuts the stream short; any other failure
        // of the courier is rather that nobody reads any more.
        (Err(CourierError::Failed(failure)), Err(_)) if failure.class == FailureClass::Registry => {
            Err(Halt::Failed(failure))
        }
        (Err(error @ (CourierError::Lost { .. } | CourierError::Stopped)), Err(_)) => Err(error.into()),
        (_, Err(error)) => {
            let named = format!("layer {} of {}", blob.digest, image.resolved.reference);
            Err(of_engine(&error, None)
                .map(|f| Failure::new(f.class, &f.reason, format!("{named}: {}", f.message))))
        }
    }
}

fn check(image: &BaseImage, layer: usize, unpacked: Unpacked) -> Result<Unpacked, Halt> {
    let expected = image.diff_ids.get(layer).map_or("", String::as_str);
    if unpacked.diff_id == expected {
        return Ok(unpacked);
    }
    let message = format!(
        "the base image {} does not hold together: layer {} (blob {}) is {} when unpacked, and its config says {expected}",
        image.resolved.reference, layer, image.resolved.layers[layer].digest, unpacked.diff_id,
    );
    Err(Failure::new(FailureClass::User, reason::BASE_IMAGE_INVALID, message).into())
}
