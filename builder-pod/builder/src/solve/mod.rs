//! Carries out a plan over the engine and the courier: base images come in and layers go out in the background, and stages
//! that don't need one another are gone through at the same time.
//!
//! | module | does |
//! |---|---|
//! | `stages` | says which stage's turn it is |
//! | `stage` | goes through one, step by step |
//! | `step` | carries a step out; `copy`, `command`, `mount` with `caches`, `secrets`, `agent` are its parts |
//! | `sections` | puts what stages tell at the same time into one log |
//! | `bases`, `publish` | what comes in and what goes out |
//! | `cache` | results of earlier builds |

mod agent;
mod arrivals;
mod bases;
mod cache;
mod caches;
mod checkout;
mod command;
mod copy;
pub mod failure;
mod lazy;
pub mod log;
mod lower;
mod mount;
mod publish;
mod redact;
mod resolve;
mod secrets;
mod sections;
mod shared;
mod spool;
mod stage;
mod stages;
mod step;

use std::collections::{BTreeMap, VecDeque};
use std::io::{PipeReader, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};

use kiln_contract::Failure;
use kiln_contract::journal::Event;
use sha2::{Digest, Sha256};

use crate::courier::{Committed, Courier};
use crate::engine::{Engine, EngineError, Selection, Stop};
use crate::image::Entry as HistoryEntry;
use crate::layer::Blob;
use crate::plan::{Base, Plan};
use bases::Bases;
use cache::decide::{self, Work};
use cache::facts::{Early, Seen};
use cache::key::Keys;
use cache::lookup::{Hits, look_up};
use cache::miss::Misses;
use cache::pull::Pulls;
use cache::save::{self, Save};
use failure::{Halt, internal};
use lazy::Lazy;
use log::{Entry, Log};
use publish::{Layer, Publisher};
use sections::Sections;
use shared::Shared;
use step::{Steps, Tools};

pub use checkout::Checkout;
pub use resolve::resolve;

/// Bytes of all secrets that the steps of a build mount that run at the same time, together: they are in memory, several
/// times while a step starts.
pub const MAX_SECRETS: usize = 4 << 20;

/// The build context.
pub trait Context: Sync {
    /// Writes the selected files as a stream for [`Engine::copy_stream`] into `out`: of the build context, or of the named
    /// one.
    ///
    /// # Errors
    /// Kind `User` for a missing source.
    fn send(&self, name: Option<&str>, what: &Selection, out: OwnedFd) -> Result<(), EngineError>;

    /// A digest over all of the selected files that makes a difference in an image, but their times.
    ///
    /// # Errors
    /// As [`Context::send`].
    fn digest(&self, name: Option<&str>, what: &Selection) -> Result<String, EngineError>;
}

/// Makes blobs of tars.
pub trait Pack: Sync {
    /// Compresses `tar` into `out`.
    ///
    /// # Errors
    /// What went wrong, in words.
    fn pack(&self, tar: &mut PipeReader, out: &mut dyn Write) -> Result<Blob, String>;
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
    /// Stages that are gone through at a time.
    pub at_a_time: usize,
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
    /// Results of steps are looked up in the cache, and kept there. `None`: there is no cache.
    pub cache: Option<Caching<'a>>,
}

/// What a build with a cache is told of it.
#[derive(Debug, Clone, Copy)]
pub struct Caching<'a> {
    /// What all RUN steps are told alike: it is part of what names results.
    pub alike: &'a str,
    /// What is built, in any words that stay the same from build to build.
    pub build: &'a [&'a str],
}

impl Caching<'_> {
    /// Names the build's record.
    fn name(&self) -> String {
        step::digest(&[&["kiln build record 1"], self.build].concat())
    }
}

/// What is known before the first step.
pub(crate) struct Known<'a> {
    /// What names the results; none without a cache.
    keys: Option<Keys>,
    /// What the cache has.
    hits: Hits,
    /// What is done.
    work: Work,
    /// Why something is missing.
    misses: Misses<'a>,
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
    let early = Early::default();
    let known = match find_out(plan, wishes, world, &early, &shared, log) {
        Ok(known) => known,
        Err(halt) => return Err(Box::new(shared.failure(halt))),
    };
    let (saves, to_save) = channel();
    let saves = known.keys.is_some().then_some(saves);
    let publisher = Publisher::new(world.spool, plan.epoch, world.pack, base_blobs(plan), saves);
    let cache = known.keys.is_some();
    let bases = Bases::new(&plan.images, &known.work.images, cache.then_some(&publisher));
    let pulls = Pulls::new(&known.hits, &known.work.unpack);
    let lazy = Lazy::new(plan, &known.work, &known.hits, cache, &publisher);
    let kept = Mutex::default();
    let tools = Tools {
        shared: &shared,
        bases: &bases,
        early: &early,
        pulls: &pulls,
        lazy: &lazy,
        publisher: &publisher,
    };
    let steps = Steps::new(plan, wishes, world, tools, known);
    let committed = std::thread::scope(|beside| {
        // What is for the cache is kept beside the build, and to its end after it.
        let keeping = {
            let (publisher, shared, kept) = (&publisher, &shared, &kept);
            publish::spawn(beside, "save", move || {
                save::keep_all(to_save, publisher, shared, world.clock, kept);
            })
        };
        // Nothing waits for what is only told: not even the commit.
        if let Some(caching) = wishes.cache.filter(|_| steps.misses.asks()) {
            let (steps, shared, name) = (&steps, &shared, caching.name());
            // Without it less is told.
            let _ = publish::spawn(beside, "record", move || steps.misses.ask(shared, &name));
        }
        // The threads end with the scope: on success when their work is done, on failure because `stop` is set.
        std::thread::scope(|scope| {
            let run = || -> Result<(), Halt> {
                keeping?;
                bases.start(scope, &shared)?;
                pulls.start(scope, &shared)?;
                lazy.start(scope, &shared)?;
                let jobs = publisher.start(scope, &shared)?;
                let sections = Sections::new(&mut *log, plan.stages.len());
                let done = steps.run(&jobs, &sections);
                sections.finish();
                done
            };
            if let Err(halt) = run() {
                shared.halt(halt);
            }
        });
        let mut commit = || -> Result<Committed, Halt> {
            shared.check()?;
            shared.courier.event(Event::Pushing)?;
            let layers = publisher.layers();
            let (config, descriptors) = compose(plan, wishes, world.clock, &steps.ended(), &layers)?;
            log.entry(Entry::Built { id: short(&hex::encode(Sha256::digest(config.as_bytes()))) });
            let committed = shared.courier.commit(&config, &descriptors)?;
            for reference in &committed.references {
                log.entry(Entry::Tagged { reference });
            }
            Ok(committed)
        };
        // A failure stops what is beside it.
        let committed = commit().map_err(|halt| Box::new(shared.failure(halt)));
        if let (Ok(_), Some(caching), Some(record)) = (&committed, wishes.cache, steps.record()) {
            publisher.save(Save::Record { name: caching.name(), record });
        }
        publisher.all_saved();
        committed
    });
    let kept = kept.into_inner().unwrap_or_else(PoisonError::into_inner);
    for text in [lazy.warning(), kept.warning()].into_iter().flatten().filter(|_| committed.is_ok()) {
        log.entry(Entry::Warning { text: &text });
    }
    if let (true, Some(mounts)) = (committed.is_ok(), &steps.mounted.saved) {
        let left = steps.mounted.left();
        std::thread::scope(|scope| {
            // In a thread of its own, whose priority is its own.
            let save = || mounts.save_all(&left, &publisher, &shared, world.clock, log);
            // One that panics has told so itself; the image is there.
            let _ = scope.spawn(save).join();
        });
    }
    committed
}

/// What names the results of steps, and what the cache has of them.
fn find_out<'a>(
    plan: &'a Plan,
    wishes: Wishes<'_>,
    world: World<'_>,
    early: &Early,
    shared: &Shared<'_>,
    log: &mut dyn Log,
) -> Result<Known<'a>, Halt> {
    let Some(caching) = wishes.cache else {
        let misses = Misses::none(plan);
        return Ok(Known { keys: None, hits: Hits::default(), work: decide::all(plan), misses });
    };
    let keys = Keys::new(plan, caching.alike, &Seen { world, early });
    let found = look_up(plan, &keys, shared, log)?;
    let misses = Misses::new(plan, &keys, &found);
    Ok(Known { keys: found.answers.then_some(keys), hits: found.hits, work: found.work, misses })
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
    layers: &[Layer],
) -> Result<(String, Vec<kiln_contract::Descriptor>), Halt> {
    let Some(stage) = plan.stages.last() else {
        return Err(internal("a plan without stages").into());
    };
    let expected = stage.image.entries().iter().filter(|entry| !entry.empty_layer).count();
    if layers.len() != expected {
        return Err(internal(format!("{} layers were made and {expected} were planned", layers.len())).into());
    }
    let (created, at) = match plan.epoch {
        Some(seconds) => {
            let at = epoch_text(seconds)?;
            (BTreeMap::new(), at)
        }
        None => times(stage.image.entries(), ended, clock),
    };
    let created = |step: u32| created.get(&step).unwrap_or(&at).clone();
    let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let config = stage.image.finish(&diff_ids, wishes.labels, &created, &at);
    let mut all: Vec<_> = base_blobs(plan).into_iter().map(|(_, blob)| blob.clone()).collect();
    all.extend(layers.iter().map(|layer| layer.blob.clone()));
    Ok((config, all))
}

/// When each step of the image ended, and when the image was made. As BuildKit has it: what makes no layer has the time of
/// the layer before it, or else of the first one; so a build that takes all layers from the cache gives the same image.
fn times(
    entries: &[HistoryEntry],
    ended: &BTreeMap<u32, String>,
    clock: Clock<'_>,
) -> (BTreeMap<u32, String>, String) {
    let layers = entries.iter().filter(|entry| !entry.empty_layer);
    let mut known = layers.filter_map(|entry| ended.get(&entry.step)).peekable();
    let Some(first) = known.peek() else {
        return (ended.clone(), clock());
    };
    let mut now = (*first).clone();
    let mut created = BTreeMap::new();
    for entry in entries {
        if let Some(time) = ended.get(&entry.step).filter(|_| !entry.empty_layer) {
            now.clone_from(time);
        }
        created.insert(entry.step, now.clone());
    }
    (created, now)
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
