//! An artifact as Flux and ORAS push them, or an image whose file system is the source. The courier reads the registry.

use std::fs::File;

use kiln_contract::image::Artifact;
use kiln_contract::source::{Fetched, Oci};

use crate::Places;
use crate::archive::{self, place::Placer};
use crate::courier::Courier;
use crate::error::Fault;
use crate::limits::{Budget, MAX_DOWNLOAD};

/// Fetches the artifact.
///
/// # Errors
/// It can't be had, or breaks a rule.
pub fn fetch(source: &Oci, platform: &str, places: &Places, courier: &Courier) -> Result<Fetched, Fault> {
    println!("Fetching {}", source.image);
    let artifact = courier.resolve(&source.image, platform)?;
    let total = artifact.layers.iter().try_fold(0u64, |sum, layer| sum.checked_add(layer.blob.size));
    if total.is_none_or(|total| total > MAX_DOWNLOAD) {
        let text =
            format!("the layers of {} have more than {} GiB together", source.image, MAX_DOWNLOAD >> 30);
        return Err(Fault::too_large(text));
    }
    if artifact.layers.is_empty() {
        return Err(Fault::invalid(format!("{} has no layers; expected files", source.image)));
    }
    let mut budget = Budget::default();
    for number in 0..artifact.layers.len() {
        layer(&artifact, number, places, courier, &mut budget)?;
    }
    println!("Fetched {}", artifact.digest);
    Ok(Fetched { revision: artifact.digest.clone(), digest: Some(artifact.digest) })
}

fn layer(
    artifact: &Artifact,
    number: usize,
    places: &Places,
    courier: &Courier,
    budget: &mut Budget,
) -> Result<(), Fault> {
    let layer = &artifact.layers[number];
    let path = places.work.join(format!("layer-{number}"));
    let failed = |e: std::io::Error| Fault::internal(format!("writing {}: {e}", path.display()));
    courier.read_blob(&artifact.pinned, &layer.blob, &File::create(&path).map_err(failed)?)?;
    let file = File::open(&path).map_err(failed)?;
    match &layer.title {
        _ if artifact.is_image => archive::unpack_layer(file, &places.tree, budget)?,
        Some(title) if !layer.unpack => {
            let mut placer = Placer::new(&places.tree, budget)?;
            placer.file(title.as_bytes(), 0o644, (0, 0), &mut { file })?;
            placer.finish()?;
        }
        _ => archive::unpack(file, &places.tree, budget)?,
    }
    std::fs::remove_file(&path).map_err(failed)
}
