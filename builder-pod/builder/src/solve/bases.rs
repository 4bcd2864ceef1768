//! Base images on their way in: every layer is downloaded and unpacked into a tree of its own, several at a time, in the
//! order in which stages need them.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;

use kiln_contract::{Descriptor, Failure, FailureClass, reason};

use super::arrivals::Arrivals;
use super::cache::save::Save;
use super::failure::{Halt, internal, of_engine};
use super::publish::{Publisher, wide_pipe};
use super::shared::Shared;
use crate::courier::CourierError;
use crate::engine::{EngineError, Unpacked};
use crate::plan::BaseImage;

/// Layers on their way at a time: the work is decompression, and two cores are usual.
const AT_A_TIME: usize = 4;

/// The base images of a build.
pub(super) struct Bases<'a> {
    images: &'a [BaseImage],
    /// Who keeps indexes.
    keep: Option<&'a Publisher<'a>>,
    /// Layers, by image and place.
    layers: Arrivals<(usize, usize), Unpacked>,
    /// Images whose layers are on their way.
    wanted: Mutex<BTreeSet<usize>>,
    /// Those that are all there.
    settled: Mutex<BTreeSet<usize>>,
}

impl<'a> Bases<'a> {
    /// `wanted` are the images whose files are sure to be read; what their layers have is kept by `keep`.
    pub fn new(images: &'a [BaseImage], wanted: &BTreeSet<usize>, keep: Option<&'a Publisher<'a>>) -> Self {
        let layers = wanted.iter().flat_map(|image| layers_of(images, *image));
        Self {
            images,
            keep,
            layers: Arrivals::new(layers),
            wanted: Mutex::new(wanted.clone()),
            settled: Mutex::default(),
        }
    }

    /// Starts the downloads.
    pub fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        shared: &'scope Shared<'scope>,
    ) -> Result<(), Halt> {
        self.layers.start(scope, shared, ("base", AT_A_TIME), |layer| self.get(shared, *layer))
    }

    fn get(&self, shared: &Shared<'_>, (image, layer): (usize, usize)) -> Option<Unpacked> {
        self.fetch(shared, image, layer).map_err(|halt| shared.halt(halt)).ok()
    }

    /// What the trees of an image are called, from the bottom up; they need not be there.
    pub fn names(&self, image: usize) -> Vec<String> {
        layers_of(self.images, image).map(|(image, layer)| tree(image, layer)).collect()
    }

    /// Whether nothing of an image is waited for.
    pub fn is_there(&self, image: usize) -> bool {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner).contains(&image)
    }

    /// Waits until an image is all there; its trees from the bottom up.
    pub fn trees(&self, shared: &Shared<'_>, image: usize) -> Result<Vec<String>, Halt> {
        let unforeseen = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).insert(image);
        if unforeseen {
            self.layers.add(shared, layers_of(self.images, image), |layer| self.get(shared, *layer));
        }
        let mut layers = Vec::new();
        for (image, layer) in layers_of(self.images, image) {
            layers.push((tree(image, layer), self.layers.wait(shared, &(image, layer))?));
        }
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if !settled.contains(&image) {
            shared.engine.settle(&layers).map_err(|e| of_engine(&e, None))?;
            settled.insert(image);
        }
        Ok(layers.into_iter().map(|(tree, _)| tree).collect())
    }
}

impl Bases<'_> {
    fn fetch(&self, shared: &Shared<'_>, image: usize, layer: usize) -> Result<Unpacked, Halt> {
        let BaseImage { resolved, diff_ids, .. } = &self.images[image];
        let named = format!("the base image {}", resolved.reference);
        let wanted = Wanted {
            image: &resolved.pinned,
            named: &named,
            blob: &resolved.layers[layer],
            diff_id: diff_ids.get(layer).map_or("", String::as_str),
        };
        let (tree, media_type) = (tree(image, layer), &wanted.blob.media_type);
        let (index, copy) = self.keep.map(Publisher::new_index).transpose()?.flatten().unzip();
        let unpacked = fetch(shared, &wanted, |blob| shared.engine.unpack(&tree, media_type, blob, copy))?;
        if let (Some(publisher), Some(index)) = (self.keep, index) {
            publisher.save(Save::Index { diff_id: unpacked.diff_id.clone(), index });
        }
        Ok(unpacked)
    }
}

/// The layers of an image, from the bottom up.
fn layers_of(images: &[BaseImage], image: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
    (0..images[image].resolved.layers.len()).map(move |layer| (image, layer))
}

/// What a layer's tree is called; it need not be there.
pub(super) fn tree(image: usize, layer: usize) -> String {
    format!("b{image}-{layer}")
}

/// The image, and the place in it, of a layer's tree.
pub(super) fn layer_of(tree: &str) -> Option<(usize, usize)> {
    let (image, layer) = tree.strip_prefix('b')?.split_once('-')?;
    Some((image.parse().ok()?, layer.parse().ok()?))
}

/// A layer that is to be read.
pub(super) struct Wanted<'a> {
    /// Pinned name of its image.
    pub image: &'a str,
    /// What people call that.
    pub named: &'a str,
    pub blob: &'a Descriptor,
    /// What it has to be when unpacked.
    pub diff_id: &'a str,
}

/// Downloads one layer for `take`, which unpacks it, and checks that it is the one that is meant.
pub(super) fn fetch(
    shared: &Shared<'_>,
    wanted: &Wanted<'_>,
    take: impl FnOnce(OwnedFd) -> Result<Unpacked, EngineError>,
) -> Result<Unpacked, Halt> {
    let Wanted { image, named, blob, diff_id } = wanted;
    let (read, write) = wide_pipe()?;
    let (sent, unpacked) = std::thread::scope(|s| {
        let sending = s.spawn(|| shared.courier.read_blob(image, blob, write.into()));
        let unpacked = take(read.into());
        (sending.join(), unpacked)
    });
    let sent = sent.map_err(|_| internal("a thread that read a layer panicked"))?;
    match (sent, unpacked) {
        (Ok(()), Ok(unpacked)) if unpacked.diff_id == *diff_id => Ok(unpacked),
        (Ok(()), Ok(unpacked)) => {
            let message = format!(
                "{named} does not hold together: the layer {} is {} when unpacked, and {diff_id} is expected",
                blob.digest, unpacked.diff_id,
            );
            Err(Failure::new(FailureClass::User, reason::BASE_IMAGE_INVALID, message).into())
        }
        (Err(error), Ok(_)) => Err(error.into()),
        // When one side fails the other one does, too. A fault of the registry cuts the stream short; any other failure
        // of the courier is rather that nobody reads any more.
        (Err(CourierError::Failed(failure)), Err(_)) if failure.class == FailureClass::Registry => {
            Err(Halt::Failed(failure))
        }
        (Err(error @ (CourierError::Lost { .. } | CourierError::Stopped)), Err(_)) => Err(error.into()),
        (_, Err(error)) => {
            let named = format!("layer {} of {named}", blob.digest);
            Err(of_engine(&error, None)
                .map(|f| Failure::new(f.class, &f.reason, format!("{named}: {}", f.message))))
        }
    }
}
