//! Pins the images that a build reads to manifests, all at once.

use kiln_contract::image::{ResolvedImage, is_sha256_digest};
use kiln_contract::{Failure, FailureClass, reason};

use super::failure::{Halt, internal};
use crate::courier::Courier;
use crate::plan::ImageUse;

/// Resolves every image; each reference once.
///
/// # Errors
/// The failure of the first image, in the order given, that can't be resolved; with its step and line.
pub fn resolve(
    images: &[ImageUse],
    dockerfile: &str,
    courier: &dyn Courier,
) -> Result<Vec<ResolvedImage>, Halt> {
    let results: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = images
            .iter()
            .map(|image| scope.spawn(|| courier.resolve(&image.reference, &image.platform)))
            .collect();
        asked.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    let mut out = Vec::with_capacity(images.len());
    for (image, result) in images.iter().zip(results) {
        let place = |failure: Failure| failure.at(dockerfile, image.line).in_step(image.step);
        let resolved = result
            .map_err(|_| Halt::from(internal("a thread that resolved an image panicked")))
            .and_then(|result| result.map_err(|error| Halt::from(error).map(place)))?;
        check(&resolved).map_err(|halt| halt.map(place))?;
        out.push(resolved);
    }
    Ok(out)
}

/// What comes from outside is checked here as well: the digests become names of files and places in registries.
fn check(image: &ResolvedImage) -> Result<(), Halt> {
    let bad =
        image.layers.iter().map(|layer| &layer.digest).chain([&image.digest]).find(|d| !is_sha256_digest(d));
    match bad {
        None => Ok(()),
        Some(digest) => Err(Failure::new(
            FailureClass::User,
            reason::BASE_IMAGE_INVALID,
            format!(
                "the base image {} names a blob {digest:?}; only sha256 digests are accepted",
                image.reference
            ),
        )
        .into()),
    }
}
