//! The first look at a Dockerfile, before anything is asked of a registry: what is needed, numbered, and possible.

use std::collections::{BTreeMap, BTreeSet};

use kiln_contract::image::ResolvedImage;
use kiln_contract::journal::{MAX_STEPS, PlannedStep};
use kiln_contract::reason::{DOCKERFILE_INVALID, INVALID_SPEC, NOT_SUPPORTED};
use kiln_contract::request::NamedContext;
use kiln_dockerfile::instruction::MountSpec;
use kiln_dockerfile::platform::{is_global_arg, is_proxy_arg};
use kiln_dockerfile::{Dockerfile, Instruction, InstructionKind, Stage};

use super::env::Words;
use super::graph::{self, Node, Scope, Source};
use super::{Env, Lint, Plan, PlanError, Step, evaluate, mounts, normalize_platform, support, target};
use crate::image::Image;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// `os/arch[/variant]`: what is built for, where FROM says nothing else.
    pub platform: &'a str,
    /// `os/arch[/variant]`: what this machine is.
    pub machine: &'a str,
    /// The stage to build; the last one when absent.
    pub stage: Option<&'a str>,
    /// Build arguments.
    pub args: &'a BTreeMap<String, String>,
    /// Named contexts.
    pub contexts: &'a BTreeMap<String, NamedContext>,
    /// What steps may have beyond the usual.
    pub entitlements: &'a [String],
}

/// ONBUILD instructions that base images carry, by reference as the Dockerfile has it.
pub type Triggers = BTreeMap<String, Vec<String>>;

/// An image that has to be resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUse {
    /// As the Dockerfile has it, expanded.
    pub reference: String,
    /// `os/arch[/variant]`.
    pub platform: String,
    /// The first step that uses it.
    pub step: u32,
    /// That step's line.
    pub line: u32,
}

/// What is known of a build before its base images are.
#[derive(Debug)]
pub struct Outline<'a> {
    pub(super) file: &'a Dockerfile,
    pub(super) contexts: &'a BTreeMap<String, NamedContext>,
    entitlements: &'a [String],
    pub(super) args: &'a BTreeMap<String, String>,
    pub(super) platform: String,
    pub(super) globals: Env,
    pub(super) order: Vec<Node>,
    /// Number of the FROM of each stage in `order`.
    pub(super) starts: Vec<u32>,
    /// Platform of each stage in `order`.
    pub(super) platforms: Vec<String>,
    pub(super) epoch: Option<i64>,
    steps: Vec<Step>,
    images: Vec<ImageUse>,
}

impl<'a> Outline<'a> {
    /// Reads what is asked of `file`; `syntax` is what its `# syntax=` line names.
    ///
    /// # Errors
    /// What can't be, or is not implemented, with its line.
    pub fn new(file: &'a Dockerfile, syntax: Option<&str>, wished: Target<'a>) -> Result<Self, PlanError> {
        Self::with_triggers(file, syntax, wished, &Triggers::new())
    }

    /// The same, once it is known what base images have their children do ([`Outline::triggers`]): each is a step.
    ///
    /// # Errors
    /// As [`Outline::new`].
    pub fn with_triggers(
        file: &'a Dockerfile,
        syntax: Option<&str>,
        wished: Target<'a>,
        on_build: &Triggers,
    ) -> Result<Self, PlanError> {
        if let Some(syntax) = syntax {
            support::check_syntax(syntax, Some(1))?;
        }
        if let Some(syntax) = wished.args.get("BUILDKIT_SYNTAX") {
            support::check_syntax(syntax, None)?;
        }
        let platform = normalize_platform(wished.platform).ok_or_else(|| {
            PlanError::new(
                INVALID_SPEC,
                None,
                format!("{:?} is no platform; expected os/arch[/variant]", wished.platform),
            )
        })?;
        let last = graph::target(file, wished.stage)?;
        let stage = file.stages[last].name.as_deref().unwrap_or("default");
        let machine = normalize_platform(wished.machine).unwrap_or_else(|| platform.clone());
        let automatic = target::platform_args(&machine, &platform, stage, wished.args);
        let globals = globals(file, automatic, wished.args)?;
        let epoch = epoch(file, wished.args.get("SOURCE_DATE_EPOCH").map(String::as_str), &globals)?;
        let order = graph::order(Scope { file, contexts: wished.contexts, on_build }, last, &globals)?;
        let mut outline = Self {
            file,
            contexts: wished.contexts,
            entitlements: wished.entitlements,
            args: wished.args,
            platform,
            globals,
            order,
            starts: Vec::new(),
            platforms: Vec::new(),
            epoch,
            steps: Vec::new(),
            images: Vec::new(),
        };
        outline.number()?;
        Ok(outline)
    }

    /// Numbers all steps, finds the images, and refuses what can't be done.
    fn number(&mut self) -> Result<(), PlanError> {
        let file = self.file;
        for meta in &file.meta_args {
            self.push("global", meta.lines.first, &meta.original);
        }
        for node in self.order.clone() {
            let stage = &file.stages[node.stage];
            let name = graph::stage_name(file, node.stage);
            let start = self.push(&name, stage.lines.first, &stage.original);
            self.starts.push(start);
            let platform = self
                .stage_platform(stage.platform.as_deref(), &node, stage.lines.first)
                .map_err(|e| at_step(e, start))?;
            if let Source::Image(reference) = &node.base {
                self.need_for(reference, &platform, start, stage.lines.first);
            }
            self.platforms.push(platform);
            let triggers = node.triggers.iter().map(|instruction| (instruction, true));
            for (instruction, triggered) in triggers.chain(stage.instructions.iter().map(|i| (i, false))) {
                let line = instruction.lines.first;
                let number = self.push(&name, line, &instruction.original);
                let place =
                    |error| at_step(if triggered { of_trigger(error, instruction) } else { error }, number);
                support::check(instruction, self.entitlements).map_err(place)?;
                if let InstructionKind::Copy(copy) = &instruction.kind
                    && let Some(from) = &copy.from
                    && let Source::Image(reference) =
                        graph::copy_source(self.names(), from, line).map_err(place)?
                {
                    self.need(&reference, number, line);
                }
                if let InstructionKind::Run(run) = &instruction.kind {
                    for from in run.mounts.iter().filter_map(MountSpec::from) {
                        if let Source::Image(reference) = mounts::source(self.names(), from) {
                            self.need(&reference, number, line);
                        }
                    }
                }
            }
        }
        if self.steps.len() > MAX_STEPS {
            return Err(PlanError::new(
                NOT_SUPPORTED,
                None,
                format!(
                    "the build has {} steps, {MAX_STEPS} are allowed; join RUN lines or split the Dockerfile",
                    self.steps.len()
                ),
            ));
        }
        Ok(())
    }

    /// What names are looked up in.
    pub(super) fn names(&self) -> Scope<'a> {
        static NONE: Triggers = Triggers::new();
        Scope { file: self.file, contexts: self.contexts, on_build: &NONE }
    }

    /// What the images that stages start from have their children do; `resolved` are those of [`Outline::images`].
    pub fn triggers(&self, resolved: &[ResolvedImage]) -> Triggers {
        let bases = |reference: &str| {
            self.order.iter().any(|node| matches!(&node.base, Source::Image(base) if base == reference))
        };
        let images = self.images.iter().zip(resolved).filter(|(used, _)| bases(&used.reference));
        images
            .filter_map(|(used, image)| {
                // One that is not usable is refused in the plan.
                let mut image = Image::from_base(image, &self.platform).ok()?;
                let triggers = image.config.on_build.take().filter(|triggers| !triggers.is_empty())?;
                Some((used.reference.clone(), triggers))
            })
            .collect()
    }

    fn push(&mut self, stage: &str, line: u32, text: &str) -> u32 {
        self.steps.push(Step { stage: stage.to_owned(), line, text: text.replace(['\n', '\r'], " ") });
        u32::try_from(self.steps.len()).unwrap_or(u32::MAX)
    }

    fn need(&mut self, reference: &str, step: u32, line: u32) {
        let platform = self.platform.clone();
        self.need_for(reference, &platform, step, line);
    }

    fn need_for(&mut self, reference: &str, platform: &str, step: u32, line: u32) {
        let known = |image: &ImageUse| image.reference == reference && image.platform == platform;
        if !self.images.iter().any(known) {
            let (reference, platform) = (reference.to_owned(), platform.to_owned());
            self.images.push(ImageUse { reference, platform, step, line });
        }
    }

    /// What a stage is built for: as its FROM says, else as the stage that it starts from, else as was asked for.
    fn stage_platform(&self, written: Option<&str>, node: &Node, line: u32) -> Result<String, PlanError> {
        let words = Words { env: &self.globals, escape: self.file.escape, line };
        let wished = words.maybe(written.map(str::to_owned).as_ref())?.filter(|wished| !wished.is_empty());
        let Some(wished) = wished else {
            let parent = match node.base {
                Source::Stage(stage) => self.order.iter().position(|node| node.stage == stage),
                _ => None,
            };
            let inherited = parent.and_then(|place| self.platforms.get(place));
            return Ok(inherited.unwrap_or(&self.platform).clone());
        };
        normalize_platform(&wished).ok_or_else(|| {
            PlanError::new(
                DOCKERFILE_INVALID,
                line,
                format!("FROM --platform={wished}: expected os/arch[/variant], such as linux/amd64"),
            )
        })
    }

    /// All steps, in order of execution.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The steps as the journal has them.
    pub fn planned(&self) -> Vec<PlannedStep> {
        self.steps.iter().map(Step::planned).collect()
    }

    /// The images to resolve, each reference once, in order of first use.
    pub fn images(&self) -> &[ImageUse] {
        &self.images
    }

    /// The whole plan, once all of [`Outline::images`] are resolved, in that order. Warnings go to `lint`, also without a
    /// plan.
    ///
    /// # Errors
    /// What can't be, or is not implemented, with its line.
    pub fn plan(&self, resolved: &[ResolvedImage], lint: Lint<'_>) -> Result<Plan, PlanError> {
        evaluate::plan(self, resolved, lint)
    }

    /// Build arguments that nothing takes up.
    pub(super) fn unused_args(&self) -> Vec<String> {
        let mut used: BTreeSet<&str> =
            self.file.meta_args.iter().flat_map(|meta| &meta.args).map(|arg| arg.key.as_str()).collect();
        for node in &self.order {
            for instruction in node.triggers.iter().chain(&self.file.stages[node.stage].instructions) {
                if let InstructionKind::Arg(args) = &instruction.kind {
                    used.extend(args.iter().map(|arg| arg.key.as_str()));
                }
            }
        }
        let builtin = |name: &str| {
            is_proxy_arg(name)
                || is_global_arg(name)
                || name.starts_with("BUILDKIT_")
                || name == "SOURCE_DATE_EPOCH"
        };
        self.args.keys().filter(|name| !used.contains(name.as_str()) && !builtin(name)).cloned().collect()
    }
}

/// The global scope: `automatic` arguments, and what each ARG before the first FROM adds.
pub(super) fn globals(
    file: &Dockerfile,
    automatic: Env,
    args: &BTreeMap<String, String>,
) -> Result<Env, PlanError> {
    let mut globals = automatic;
    for meta in &file.meta_args {
        let line = meta.lines.first;
        for arg in &meta.args {
            let value = match args.get(&arg.key) {
                Some(value) => Some(value.clone()),
                None => Words { env: &globals, escape: file.escape, line }.maybe(arg.value.as_ref())?,
            };
            if let Some(value) = value {
                globals.set(&arg.key, &value);
            }
        }
    }
    Ok(globals)
}

/// The same error in a step.
pub(super) fn at_step(error: PlanError, step: u32) -> PlanError {
    PlanError { step: Some(step), ..error }
}

/// The error of an instruction that a base brought.
pub(super) fn of_trigger(mut error: PlanError, trigger: &Instruction) -> PlanError {
    error.message = format!("ONBUILD {} of the base image: {}", trigger.original, error.message);
    error
}

/// A stage whose time is asked for may only fetch a source.
fn of_source_stage(stage: &Stage, name: &str) -> PlanError {
    let line = stage.lines.first;
    let other = stage.instructions.iter().find(|i| !matches!(i.kind, InstructionKind::Add(_)));
    let problem = match other {
        _ if stage.base != "scratch" => format!("it is FROM {}", stage.base),
        Some(other) => format!("it has a {}", other.name()),
        None => {
            let what = format!("SOURCE_DATE_EPOCH={name} (the time of a source)");
            return support::refusal(&what, line);
        }
    };
    let message = format!(
        "SOURCE_DATE_EPOCH={name}: the stage must be FROM scratch and have nothing but an ADD of a URL or git repository; {problem}"
    );
    PlanError::new(DOCKERFILE_INVALID, line, message)
}

/// `SOURCE_DATE_EPOCH` of the request, or of the Dockerfile's global scope.
fn epoch(file: &Dockerfile, argument: Option<&str>, globals: &Env) -> Result<Option<i64>, PlanError> {
    let Some(text) = argument.or_else(|| globals.get("SOURCE_DATE_EPOCH")).filter(|text| !text.is_empty())
    else {
        return Ok(None);
    };
    // The year 9999 is the last that RFC 3339 can write.
    let seconds = text.parse::<i64>().ok().filter(|seconds| (0..=253_402_300_799).contains(seconds));
    if text == "context" {
        // The time of the build context: files that somebody hands in have none (BuildKit).
        return Ok(None);
    }
    if let Some(stage) = file.stages.iter().find(|stage| stage.name.as_deref() == Some(text)) {
        return Err(of_source_stage(stage, text));
    }
    seconds.map(Some).ok_or_else(|| {
        PlanError::new(
            DOCKERFILE_INVALID,
            None,
            format!("SOURCE_DATE_EPOCH: expected seconds since 1970-01-01, found {text:?}"),
        )
    })
}
