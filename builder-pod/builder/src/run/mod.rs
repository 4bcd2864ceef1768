//! The program: request in, image or failure out. [`build`] is the whole line from source to commit; [`main_in_pod`] runs
//! it in the `build` container, and `kiln build` on a plain machine.

mod context;
mod human;
mod pod;
mod signals;
mod source;
mod timer;
mod warnings;

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use kiln_contract::image::ResolvedImage;
use kiln_contract::journal::Event;
use kiln_contract::request::{BuildRequest, Compression, Isolation, Source};
use kiln_contract::{Failure, FailureClass, reason};
use kiln_dockerfile::Dockerfile;
use kiln_dockerfile::lint::Findings;

use crate::courier::{Client, Committed, Courier, SOCKET_WAIT};
use crate::engine::{Engine, EngineError, Stop};
use crate::plan::{self, ImageUse, Lint, Outline, Plan, Target};
use crate::solve::failure::{Halt, internal, of_engine, of_plan};
use crate::solve::log::{Entry, Log};
use crate::solve::{Caching, Pack, Wishes, World, resolve, solve};
use context::{Directory, LocalContexts, Place};
use timer::Timer;

pub use human::Human;
pub use pod::main_in_pod;

/// Starts the engine, in a working directory and for an isolation.
pub type StartEngine<'a> = &'a dyn Fn(&Path, Isolation) -> Result<Arc<dyn Engine>, EngineError>;

/// Where a build runs and to whom it speaks.
pub struct Settings<'a> {
    /// The courier's socket.
    pub socket: &'a Path,
    /// The workspace: a real file system.
    pub work_dir: &'a Path,
    /// Set it to stop the build; the build sets it when it ends badly.
    pub stop: &'a Stop,
    /// What all RUN steps are told alike, in any words: the cache keeps results apart by it.
    pub alike: &'a str,
    /// Makes the engine.
    pub start_engine: StartEngine<'a>,
    /// What a person is told.
    pub log: &'a mut dyn Log,
}

impl std::fmt::Debug for Settings<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("socket", &self.socket)
            .field("work_dir", &self.work_dir)
            .finish_non_exhaustive()
    }
}

/// Carries out a request. A failure has been told to the courier and to the log when this returns.
///
/// # Errors
/// Why there is no image.
pub fn build(request: &BuildRequest, settings: Settings<'_>) -> Result<Committed, Box<Failure>> {
    let Settings { socket, work_dir, stop, alike, start_engine, log } = settings;
    let spent = source::fetch_seconds(&request.source);
    let left = request.timeout_seconds.saturating_sub(spent).max(request.timeout_seconds.min(1));
    let _timer = Timer::start(left, stop);
    let client = match Client::attach(socket, stop, SOCKET_WAIT) {
        Ok(client) => client,
        Err(error) => {
            let failure = Halt::from(error).into_failure(stop);
            log.entry(Entry::Failed { failure: &failure, excerpt: None });
            return Err(Box::new(failure));
        }
    };
    let mut build = Build {
        request,
        work_dir,
        stop,
        alike,
        start_engine,
        courier: &client,
        source_text: None,
        findings: Findings::default(),
    };
    let result = build.run(log);
    if let Err(failure) = &result {
        // It may be what a warning is about. That the courier is lost is no news here.
        let _ = build.tell_findings(log);
        let excerpt = build.excerpt(failure);
        log.entry(Entry::Failed { failure, excerpt: excerpt.as_deref() });
        if let Err(error) = client.fail(failure) {
            log.entry(Entry::Warning { text: &format!("the failure could not be reported: {error}") });
        }
    }
    result
}

struct Build<'a> {
    request: &'a BuildRequest,
    work_dir: &'a Path,
    stop: &'a Stop,
    alike: &'a str,
    start_engine: StartEngine<'a>,
    courier: &'a dyn Courier,
    /// The Dockerfile's text, once read.
    source_text: Option<String>,
    /// Warnings that nobody was told of yet.
    findings: Findings,
}

impl Build<'_> {
    fn run(&mut self, log: &mut dyn Log) -> Result<Committed, Box<Failure>> {
        let stop = self.stop;
        self.line(log).map_err(|halt| Box::new(halt.into_failure(stop)))
    }

    /// Source -> parse -> outline -> engine -> resolve -> plan -> solve -> commit.
    fn line(&mut self, log: &mut dyn Log) -> Result<Committed, Halt> {
        let request = self.request;
        let context = source::open(&request.source, &request.context_dir, self.work_dir)?;
        let bytes = match &request.dockerfile_text {
            Some(text) => text.clone().into_bytes(),
            None => source::dockerfile(&context, &request.dockerfile)?,
        };
        self.source_text = Some(String::from_utf8_lossy(&bytes).into_owned());
        let file = self.parse(&bytes)?;
        let machine = format!("linux/{}", std::env::consts::ARCH);
        let target = Target {
            platform: &request.platform,
            machine: &machine,
            stage: request.target.as_deref(),
            args: &request.args,
            contexts: &request.contexts,
            entitlements: &request.entitlements,
        };
        let check = plan::check(&file, &request.args).map_err(|e| of_plan(&e, &request.dockerfile))?;
        self.findings = plan::findings(&file, &check, target);
        let outline = Outline::new(&file, file.syntax.as_deref(), target)
            .map_err(|error| of_plan(&error, &request.dockerfile))?;
        let ignore = source::ignore(&context, &request.dockerfile)?;
        let engine =
            (self.start_engine)(self.work_dir, request.isolation).map_err(|e| of_engine(&e, None))?;
        let isolation = request.isolation.as_str().to_owned();
        self.courier.event(Event::BuilderStarted { isolation })?;
        self.courier.event(Event::Planned { steps: outline.planned() })?;
        let named = source::named(&request.contexts, self.courier, self.work_dir)?;
        let named_step = |outline: &Outline<'_>, halt, log: &mut dyn Log| self.name_step(outline, halt, log);
        let mut images = self.resolve(outline.images()).map_err(|halt| named_step(&outline, halt, log))?;
        let mut outline = outline;
        let triggers = outline.triggers(&images);
        if !triggers.is_empty() {
            // What the bases have their children do are steps, too, and may need further images.
            let fuller = Outline::with_triggers(&file, file.syntax.as_deref(), target, &triggers);
            let fuller = fuller
                .map_err(|error| named_step(&outline, of_plan(&error, &request.dockerfile).into(), log))?;
            self.courier.event(Event::Planned { steps: fuller.planned() })?;
            images = self
                .resolve_more(&outline, &images, fuller.images())
                .map_err(|halt| named_step(&fuller, halt, log))?;
            outline = fuller;
        }
        let found = RefCell::default();
        let plan = outline.plan(&images, Lint { check: &check, ignore: &ignore, found: &found });
        self.findings.append(found.into_inner());
        let plan = plan.map_err(|error| of_plan(&error, &request.dockerfile));
        let plan = plan.map_err(|failure| self.name_step(&outline, failure.into(), log))?;
        for name in &plan.unused_args {
            log.entry(Entry::Warning { text: &format!("build argument {name} is not used: no ARG {name}") });
        }
        let fatal = warnings::fatal(&check, &self.findings, &request.dockerfile);
        self.tell_findings(log)?;
        if let Some(failure) = fatal {
            return Err(failure.into());
        }
        let contexts = LocalContexts::new(Directory { root: Place::Opened(context), ignore }, named);
        self.solve(&plan, &*engine, &contexts, log)
    }

    fn parse(&mut self, bytes: &[u8]) -> Result<Dockerfile, Halt> {
        Dockerfile::parse(bytes).map_err(|error| {
            self.findings = plan::findings_before(bytes, &error, &self.request.args);
            let text = self.source_text.as_deref().unwrap_or_default();
            Failure::new(FailureClass::User, reason::DOCKERFILE_INVALID, error.to_string())
                .at(&self.request.dockerfile, error.position(text).0)
                .into()
        })
    }

    fn resolve(&self, images: &[ImageUse]) -> Result<Vec<ResolvedImage>, Halt> {
        resolve(images, &self.request.dockerfile, self.courier)
    }

    /// The images of a fuller outline: those of the first are known.
    fn resolve_more(
        &self,
        first: &Outline<'_>,
        known: &[ResolvedImage],
        images: &[ImageUse],
    ) -> Result<Vec<ResolvedImage>, Halt> {
        let same = |a: &ImageUse, b: &ImageUse| a.reference == b.reference && a.platform == b.platform;
        let place = |image: &ImageUse| first.images().iter().position(|known| same(known, image));
        let new: Vec<ImageUse> = images.iter().filter(|image| place(image).is_none()).cloned().collect();
        let mut new = self.resolve(&new)?.into_iter();
        let all = images.iter().filter_map(|image| match place(image) {
            Some(at) => known.get(at).cloned(),
            None => new.next(),
        });
        Ok(all.collect())
    }

    /// A step that fails before any step runs is told of like one that ran.
    fn name_step(&self, outline: &Outline<'_>, halt: Halt, log: &mut dyn Log) -> Halt {
        if let Halt::Failed(failure) = &halt
            && let Some(number) = failure.step
            && let Some(step) = outline.steps().get((number as usize).wrapping_sub(1))
        {
            let total = u32::try_from(outline.steps().len()).unwrap_or(u32::MAX);
            log.entry(Entry::Step { number, total, text: &step.text });
            // The failure follows, and says all of it again.
            let _ = self.courier.event(Event::StepFailed { step: number, exit_code: None, cache_miss: None });
        }
        halt
    }

    fn solve(
        &self,
        plan: &Plan,
        engine: &dyn Engine,
        context: &LocalContexts,
        log: &mut dyn Log,
    ) -> Result<Committed, Halt> {
        let spool = self.work_dir.join("spool");
        std::fs::create_dir_all(&spool)
            .map_err(|e| internal(format!("making {} for layers: {e}", spool.display())))?;
        let world = World {
            engine,
            courier: self.courier,
            context,
            pack: &AllCores(self.request.compression),
            stop: self.stop,
            clock: &|| jiff::Timestamp::now().to_string(),
            spool: &spool,
            at_a_time: cores(),
        };
        let request = self.request;
        let place = match &request.source {
            Source::Directory(directory) => directory,
            _ => "",
        };
        let repository = request.output.repository().unwrap_or(place);
        let target = request.target.as_deref().unwrap_or_default();
        let build = [repository, &request.context_dir, &request.dockerfile, target, &request.platform];
        let wishes = Wishes {
            attempt: &self.request.attempt,
            dockerfile: &self.request.dockerfile,
            labels: &self.request.labels,
            cache: self.request.cache.as_ref().map(|_| Caching { alike: self.alike, build: &build }),
        };
        solve(plan, wishes, world, log).map_err(Halt::Failed)
    }

    /// The failing line of the Dockerfile, with a caret under the fault where that is known.
    fn excerpt(&self, failure: &Failure) -> Option<String> {
        let text = self.source_text.as_deref()?;
        let line = failure.line?;
        if failure.reason == reason::DOCKERFILE_INVALID
            && let Err(error) = Dockerfile::parse(text.as_bytes())
        {
            return error.render("", text).split_once('\n').map(|(_, excerpt)| excerpt.to_owned());
        }
        let written = text.lines().nth((line as usize).checked_sub(1)?)?;
        Some(format!(" {line} | {}", kiln_contract::text::truncate(written.trim_end(), 200)))
    }
}

/// Cores that this process may use: its cgroup's limit counts.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Compresses with all cores.
struct AllCores(Compression);

impl Pack for AllCores {
    fn pack(
        &self,
        tar: &mut std::io::PipeReader,
        mut out: &mut dyn std::io::Write,
    ) -> Result<crate::layer::Blob, String> {
        crate::layer::compress(tar, &mut out, self.0, cores()).map_err(|e| e.to_string())
    }
}

/// A directory that paths are resolved in, and never out of.
type Root = OwnedFd;

#[cfg(test)]
mod tests;
