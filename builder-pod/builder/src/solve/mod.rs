//! Carries out a plan over the engine and the courier: base images come in and layers go out in the background, steps run
//! one after another.

mod agent;
mod bases;
mod checkout;
pub mod failure;
pub mod log;
mod mount;
mod publish;
mod redact;
mod resolve;
mod shared;
mod step;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::PipeReader;
use std::os::fd::OwnedFd;
use std::path::Path;

use kiln_contract::Failure;
use kiln_contract::journal::Event;
use sha2::{Digest, Sha256};

use crate::courier::{Committed, Courier};
use crate::engine::{Engine, EngineError, Selection, Stop};
use crate::layer::Blob;
use crate::plan::{Base, Plan};
use bases::Bases;
use failure::{Halt, internal};
use log::{Entry, Log};
use publish::Publisher;
use shared::Shared;
use step::Steps;

pub use checkout::Checkout;
pub use resolve::resolve;

/// Bytes of all secrets that one step mounts, together: they are in memory, several times while the step starts.
pub const MAX_SECRETS: usize = 4 << 20;

/// The build context.
pub trait Context: Sync {
    /// Writes the selected files as a stream for [`Engine::copy_stream`] into `out`: of the build context, or of the named
    /// one.
    ///
    /// # Errors
    /// Kind `User` for a missing source.
    fn send(&self, name: Option<&str>, what: &Selection, out: OwnedFd) -> Result<(), EngineError>;
}

/// Makes blobs of tars.
pub trait Pack: Sync {
    /// Compresses `tar` into `out`.
    ///
    /// # Errors
    /// What went wrong, in words.
    fn pack(&self, tar: &mut PipeReader, out: &mut File) -> Result<Blob, String>;
}

/// Tells the time: RFC 3339, UTC.
pub type Clock<'a> = &'a (dyn Fn() -> String + Sync);

/// What a build needs of the outside world.
#[derive(Clone, Copy)]
pub struct World<'a> {
    /// Files and processes.
    pub engine: &'a dyn Engine,
    /// Registries and journal.
    pub courier: &'a dyn Courier,
    /// The build context.
    pub context: &'a dyn Context,
    /// Compression.
    pub pack: &'a dyn Pack,
    /// When to stop. A build that fails sets it, to end what runs beside it.
    pub stop: &'a Stop,
    /// The time.
    pub clock: Clock<'a>,
    /// A directory for layers on their way out.
    pub spool: &'a Path,
}

impl std::fmt::Debug for World<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("spool", &self.spool).finish_non_exhaustive()
    }
}

/// What the request says of the image, beside the Dockerfile.
#[derive(Debug, Clone, Copy)]
pub struct Wishes<'a> {
    /// Names this attempt.
    pub attempt: &'a str,
    /// The Dockerfile's path, for failures.
    pub dockerfile: &'a str,
    /// Labels that are added.
    pub labels: &'a BTreeMap<String, String>,
}

/// Runs all steps and commits the image.
///
/// # Errors
/// The first thing that went wrong, with step and line. [`World::stop`] is set then.
pub fn solve(
    plan: &Plan,
    wishes: Wishes<'_>,
    world: World<'_>,
    log: &mut dyn Log,
) -> Result<Committed, Box<Failure>> {
    let shared = Shared::new(world.engine, world.courier, world.stop);
    let bases = Bases::new(&plan.images);
    let publisher = Publisher::new(world.spool, plan.epoch, world.pack, base_blobs(plan));
    let mut steps = Steps::new(plan, wishes, world, &shared, &bases);
    // The threads end with the scope: on success when their work is done, on failure because `stop` is set.
    std::thread::scope(|scope| {
        let mut run = || -> Result<(), Halt> {
            bases.start(scope, &shared)?;
            let jobs = publisher.start(scope, &shared)?;
            steps.run(&jobs, log)
        };
        if let Err(halt) = run() {
            shared.halt(halt);
        }
    });
    let mut commit = || -> Result<Committed, Halt> {
        shared.check()?;
        shared.courier.event(Event::Pushing)?;
        let layers = publisher.layers();
        let (config, descriptors) = compose(plan, wishes, world.clock, &steps.ended, &layers)?;
        log.entry(Entry::Built { id: short(&hex::encode(Sha256::digest(config.as_bytes()))) });
        let committed = shared.courier.commit(&config, &descriptors)?;
        for reference in &committed.references {
            log.entry(Entry::Tagged { reference });
        }
        Ok(committed)
    };
    commit().map_err(|halt| Box::new(shared.failure(halt)))
}

/// The layers of the base of the final image, with the image's pinned name.
fn base_blobs(plan: &Plan) -> VecDeque<(&str, &kiln_contract::Descriptor)> {
    let image = plan.final_base().map(|image| &plan.images[image].resolved);
    image
        .into_iter()
        .flat_map(|image| image.layers.iter().map(|layer| (image.pinned.as_str(), layer)))
        .collect()
}

/// The config's bytes, and all layers from the bottom up.
fn compose(
    plan: &Plan,
    wishes: Wishes<'_>,
    clock: Clock<'_>,
    ended: &BTreeMap<u32, String>,
    layers: &[Blob],
) -> Result<(String, Vec<kiln_contract::Descriptor>), Halt> {
    let Some(stage) = plan.stages.last() else {
        return Err(internal("a plan without stages").into());
    };
    let expected = stage.image.entries().iter().filter(|entry| !entry.empty_layer).count();
    if layers.len() != expected {
        return Err(internal(format!("{} layers were made and {expected} were planned", layers.len())).into());
    }
    let at = match plan.epoch {
        Some(seconds) => epoch_text(seconds)?,
        None => clock(),
    };
    let created = |step: u32| match plan.epoch {
        Some(_) => at.clone(),
        None => ended.get(&step).cloned().unwrap_or_else(|| at.clone()),
    };
    let diff_ids: Vec<String> = layers.iter().map(|blob| blob.diff_id.clone()).collect();
    let config = stage.image.finish(&diff_ids, wishes.labels, &created, &at);
    let mut all: Vec<_> = base_blobs(plan).into_iter().map(|(_, blob)| blob.clone()).collect();
    all.extend(layers.iter().map(publish::descriptor));
    Ok((config, all))
}

fn epoch_text(seconds: i64) -> Result<String, Halt> {
    match jiff::Timestamp::from_second(seconds) {
        Ok(time) => Ok(time.to_string()),
        Err(e) => Err(internal(format!("SOURCE_DATE_EPOCH {seconds} is no time: {e}")).into()),
    }
}

/// The first 12 digits of a hexadecimal digest, with or without its algorithm.
pub(crate) fn short(digest: &str) -> &str {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.get(..12).unwrap_or(hex)
}

impl Plan {
    /// The image that the final image stands on.
    fn final_base(&self) -> Option<usize> {
        let mut stage = self.stages.last()?;
        loop {
            match stage.base {
                Base::Scratch => return None,
                Base::Image(image) => return Some(image),
                Base::Stage(parent) => stage = self.stages.get(parent)?,
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod fakes;
#[cfg(test)]
mod tests;
