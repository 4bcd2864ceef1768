//! Instruction by instruction: expands variables against the environment before it, changes the image's config, and notes
//! what is to be done with files.

use kiln_contract::image::ResolvedImage;
use kiln_contract::reason::{BASE_IMAGE_INVALID, DOCKERFILE_INVALID, INTERNAL};
use kiln_dockerfile::instruction::{Arg, KeyValue, Network, Run};
use kiln_dockerfile::lint::StageLint;
use kiln_dockerfile::platform::{PROXY_ARGS, is_proxy_arg};
use kiln_dockerfile::{Instruction, InstructionKind};

use super::copy::{self, Written};
use super::env::Words;
use super::graph::{self, Source};
use super::lint::{Before, Lint};
use super::outline::{Outline, at_step, of_trigger};
use super::state::State;
use super::texts::{health_text, join_pairs};
use super::{
    Action, Base, BaseImage, CopyFrom, Env, Plan, PlanError, Stage, heredoc, mounts, ports, stopsignal,
};
use crate::image::{Health, Image, list, quoted};

struct Evaluation<'a> {
    outline: &'a Outline<'a>,
    lint: Lint<'a>,
    /// Place in [`Plan::images`] of each of the outline's images.
    places: Vec<usize>,
    images: Vec<BaseImage>,
    /// Stages that are done, in build order.
    states: Vec<State>,
}

/// The plan of an outline whose images are resolved.
pub(super) fn plan(
    outline: &Outline<'_>,
    resolved: &[ResolvedImage],
    lint: Lint<'_>,
) -> Result<Plan, PlanError> {
    if resolved.len() != outline.images().len() {
        let message =
            format!("{} images were resolved, {} were named", resolved.len(), outline.images().len());
        return Err(PlanError::new(INTERNAL, None, message));
    }
    let mut evaluation =
        Evaluation { outline, lint, places: Vec::new(), images: Vec::new(), states: Vec::new() };
    for (image, used) in resolved.iter().zip(outline.images()) {
        evaluation
            .add_image(image, &used.platform)
            .map_err(|e| PlanError { line: Some(used.line), ..at_step(e, used.step) })?;
    }
    for place in 0..outline.order.len() {
        let state = evaluation.stage(place)?;
        evaluation.states.push(state);
    }
    Ok(evaluation.finish())
}

impl Evaluation<'_> {
    /// Takes in an image; two references to one manifest are one image.
    fn add_image(&mut self, resolved: &ResolvedImage, platform: &str) -> Result<(), PlanError> {
        if let Some(place) = self.images.iter().position(|image| image.resolved.pinned == resolved.pinned) {
            self.places.push(place);
            return Ok(());
        }
        let image = Image::from_base(resolved, platform)
            .map_err(|e| PlanError::new(BASE_IMAGE_INVALID, None, e.to_string()))?;
        self.places.push(self.images.len());
        self.images.push(BaseImage { resolved: resolved.clone(), diff_ids: image.base_diff_ids().to_vec() });
        Ok(())
    }

    /// An image that files are copied from.
    fn image(&self, reference: &str) -> Option<usize> {
        self.image_for(reference, &self.outline.platform)
    }

    fn image_for(&self, reference: &str, platform: &str) -> Option<usize> {
        let wished = |image: &super::ImageUse| image.reference == reference && image.platform == platform;
        let at = self.outline.images().iter().position(wished)?;
        self.places.get(at).copied()
    }

    /// Place in build order of a stage of the Dockerfile, if it is built.
    fn place(&self, stage: usize) -> Option<usize> {
        self.outline.order.iter().position(|node| node.stage == stage)
    }

    fn base(&self, place: usize) -> Result<Base, PlanError> {
        let missing = || PlanError::new(INTERNAL, None, "a stage's base was not planned");
        Ok(match &self.outline.order[place].base {
            // A directory is copied onto nothing.
            Source::Scratch | Source::Context(_) => Base::Scratch,
            Source::Stage(stage) => Base::Stage(self.place(*stage).ok_or_else(missing)?),
            Source::Image(reference) => {
                let image = self.image_for(reference, &self.outline.platforms[place]);
                Base::Image(image.ok_or_else(missing)?)
            }
        })
    }

    fn stage(&self, place: usize) -> Result<State, PlanError> {
        let file = self.outline.file;
        let written = &file.stages[self.outline.order[place].stage];
        let (start, line) = (self.outline.starts[place], written.lines.first);
        let platform = &self.outline.platforms[place];
        let fresh = |image: Image| {
            let mut env = Env::default();
            env.extend_pairs(image.config.env.iter().flatten());
            State {
                image,
                env,
                args: Vec::new(),
                own_cmd: false,
                ops: Vec::new(),
                lint: StageLint::default(),
            }
        };
        let mut state = match self.base(place)? {
            Base::Scratch => fresh(Image::scratch(platform)),
            Base::Stage(parent) => {
                let parent = &self.states[parent];
                State { own_cmd: false, ops: Vec::new(), lint: parent.lint.child(), ..parent.clone() }
            }
            Base::Image(image) => fresh(
                Image::from_base(&self.images[image].resolved, platform)
                    .map_err(|e| at_step(PlanError::new(BASE_IMAGE_INVALID, line, e.to_string()), start))?,
            ),
        };
        // They are among the steps below; children do not do them again.
        state.image.config.on_build = None;
        if let Source::Context(name) = &self.outline.order[place].base {
            let action = copy::whole(self.context(name));
            state.op(start, action, format!("FROM {name}"));
        }
        let triggers = &self.outline.order[place].triggers;
        let mut steps = start + 1..;
        for instruction in triggers {
            let step = steps.next().unwrap_or(start);
            let done = self.instruction(&mut state, place, instruction, step);
            done.map_err(|e| at_step(of_trigger(e, instruction), step))?;
        }
        for (instruction, step) in written.instructions.iter().zip(steps) {
            self.instruction(&mut state, place, instruction, step).map_err(|e| at_step(e, step))?;
        }
        Ok(state)
    }

    /// Where the files of a named context come from.
    fn context(&self, name: &str) -> CopyFrom {
        CopyFrom::Named(self.outline.contexts.keys().position(|known| known == name).unwrap_or(0))
    }

    fn instruction(
        &self,
        state: &mut State,
        place: usize,
        instruction: &Instruction,
        step: u32,
    ) -> Result<(), PlanError> {
        let line = instruction.lines.first;
        let env = state.env.clone();
        let words = Words { env: &env, escape: self.outline.file.escape, line };
        let invalid = |message: String| PlanError::new(DOCKERFILE_INVALID, line, message);
        let shell = state.image.config.shell.as_ref().is_some_and(|shell| !shell.is_empty());
        let before = Before { env: &env, args: &state.args, shell, escape: words.escape };
        self.lint.instruction(&mut state.lint, instruction, before);
        match &instruction.kind {
            InstructionKind::Run(run) => {
                let (action, text) = self.run(state, run, place, words)?;
                state.op(step, action, text);
            }
            InstructionKind::Copy(written) => {
                let from = match &written.from {
                    None => CopyFrom::Context,
                    Some(from) => self.copy_from(from, place, line)?,
                };
                let written = Written {
                    name: "COPY",
                    files: &written.files,
                    chown: written.chown.as_ref(),
                    chmod: written.chmod.as_ref(),
                    excludes: &written.exclude,
                    parents: written.parents,
                    link: written.link,
                    checksum: None,
                    keep_git_dir: None,
                    unpack: None,
                };
                let (action, text) = copy::evaluate(&written, from, &state.workdir(), words)?;
                state.op(step, action, text);
            }
            InstructionKind::Add(written) => {
                let written = Written {
                    name: "ADD",
                    files: &written.files,
                    chown: written.chown.as_ref(),
                    chmod: written.chmod.as_ref(),
                    excludes: &written.exclude,
                    parents: false,
                    link: written.link,
                    checksum: written.checksum.as_ref(),
                    keep_git_dir: written.keep_git_dir,
                    unpack: written.unpack,
                };
                let (action, text) = copy::evaluate(&written, CopyFrom::Context, &state.workdir(), words)?;
                state.op(step, action, text);
            }
            InstructionKind::Workdir(path) => {
                let wished = words.one(path)?;
                // An absolute path stays as written; a relative one is joined and cleaned.
                let path = if wished.starts_with('/') {
                    wished
                } else {
                    copy::clean(&format!("{}/{wished}", state.workdir()))
                };
                state.image.config.working_dir = Some(path.clone());
                let text = format!("WORKDIR {path}");
                if path == "/" {
                    state.image.commit(step, text, false);
                } else {
                    let user = state.image.config.user.clone().filter(|user| !user.is_empty());
                    state.op(step, Action::Workdir { path, user }, text);
                }
            }
            InstructionKind::Arg(args) => self.arg(state, instruction, args, step)?,
            InstructionKind::Env(pairs) => {
                let pairs = expand_pairs(pairs, words)?;
                for (name, value) in &pairs {
                    state.env.set(name, value);
                    state.image.config.set_env(name, value);
                }
                state.image.commit(step, format!("ENV {}", join_pairs(&pairs)), false);
            }
            InstructionKind::Label(pairs) => {
                let pairs = expand_pairs(pairs, words)?;
                state.image.config.labels.get_or_insert_default().extend(pairs.iter().cloned());
                state.image.commit(step, format!("LABEL {}", join_pairs(&pairs)), false);
            }
            InstructionKind::Cmd(command) => {
                let argv = state.argv(command);
                state.image.commit(step, format!("CMD {}", quoted(&argv)), false);
                state.image.config.cmd = Some(argv);
                state.image.config.args_escaped = Some(true);
                state.own_cmd = true;
            }
            InstructionKind::Entrypoint(command) => {
                let argv = state.argv(command);
                state.image.commit(step, format!("ENTRYPOINT {}", quoted(&argv)), false);
                state.image.config.entrypoint = Some(argv);
                if !state.own_cmd {
                    state.image.config.cmd = None;
                }
            }
            InstructionKind::Expose(specs) => {
                let mut ports = Vec::new();
                for spec in specs {
                    for word in words.split(spec)? {
                        ports.extend(ports::parse(&word).map_err(invalid)?);
                    }
                }
                ports.iter().for_each(|port| state.image.config.expose(port));
                state.image.commit(step, format!("EXPOSE {}", list(&ports)), false);
            }
            InstructionKind::Volume(paths) => {
                let paths = words.each(paths)?;
                if paths.iter().any(String::is_empty) {
                    return Err(invalid("VOLUME: expected a path, found nothing".into()));
                }
                paths.iter().for_each(|path| state.image.config.add_volume(path));
                state.image.commit(step, format!("VOLUME {}", list(&paths)), false);
            }
            InstructionKind::User(user) => {
                let user = words.one(user)?;
                state.image.commit(step, format!("USER {user}"), false);
                state.image.config.user = Some(user);
            }
            InstructionKind::StopSignal(signal) => {
                let signal = words.one(signal)?;
                if !stopsignal::is_signal(&signal) {
                    return Err(invalid(format!(
                        "STOPSIGNAL: expected a signal's name or number, found {signal:?}"
                    )));
                }
                state.image.commit(step, format!("STOPSIGNAL {signal}"), false);
                state.image.config.stop_signal = Some(signal);
            }
            InstructionKind::Shell(argv) => {
                state.image.commit(step, format!("SHELL {}", list(argv)), false);
                state.image.config.shell = Some(argv.clone());
            }
            InstructionKind::Healthcheck(check) => {
                state.image.commit(step, health_text(check), false);
                state.image.config.healthcheck = Some(Health {
                    test: Some(check.test.clone()),
                    interval: check.interval_ns,
                    timeout: check.timeout_ns,
                    start_period: check.start_period_ns,
                    start_interval: check.start_interval_ns,
                    retries: i64::from(check.retries),
                });
            }
            InstructionKind::Maintainer(author) => {
                state.image.set_author(author);
                state.image.commit(step, format!("MAINTAINER {author}"), false);
            }
            // Recorded for children; no entry in the history.
            InstructionKind::Onbuild(text) => {
                state.image.config.on_build.get_or_insert_default().push(text.clone());
            }
        }
        Ok(())
    }

    /// ARG: a build argument wins over the default, which wins over the global scope's value. Each variable sees those
    /// before it.
    fn arg(
        &self,
        state: &mut State,
        instruction: &Instruction,
        args: &[Arg],
        step: u32,
    ) -> Result<(), PlanError> {
        let (line, escape) = (instruction.lines.first, self.outline.file.escape);
        let mut text = String::from("ARG");
        for arg in args {
            let before = Before { env: &state.env, args: &state.args, shell: false, escape };
            let given = self.outline.args.contains_key(&arg.key);
            self.lint.argument(&mut state.lint, instruction, arg, given, before);
            let value = match (self.outline.args.get(&arg.key), &arg.value) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(Words { env: &state.env, escape, line }.one(default)?),
                (None, None) => self.outline.globals.get(&arg.key).map(str::to_owned),
            };
            text.push_str(&format!(" {}", arg.key));
            if let Some(value) = &value {
                text.push_str(&format!("={value}"));
                state.env.set(&arg.key, value);
            }
            state.args.push(Arg { value, ..arg.clone() });
        }
        state.image.commit(step, text, false);
        Ok(())
    }

    fn run(
        &self,
        state: &State,
        run: &Run,
        place: usize,
        words: Words<'_>,
    ) -> Result<(Action, String), PlanError> {
        let (command, script) = heredoc::command(&run.command);
        let argv = state.argv(&command);
        let mut env = Env::default();
        for (name, value) in self.outline.args.iter().filter(|(name, _)| is_proxy_arg(name)) {
            if let Some(upper) = PROXY_ARGS.iter().find(|known| known.eq_ignore_ascii_case(name)) {
                env.set(upper, value);
                env.set(&upper.to_ascii_lowercase(), value);
            }
        }
        let given = env.iter().map(|(name, _)| name.to_owned());
        let proxies = given.filter(|name| state.env.get(name).is_none()).collect();
        for (name, value) in state.env.iter() {
            env.set(name, value);
        }
        let workdir = state.workdir();
        let scope = mounts::Scope {
            words,
            workdir: &workdir,
            namespace: self.outline.args.get("BUILDKIT_CACHE_MOUNT_NS").map_or("", String::as_str),
            find: &|from| self.mount_from(from, place, words.line),
        };
        let (mounts, socket) = mounts::resolve(&run.mounts, &scope)?;
        // As in BuildKit also when the agent is not there and need not be.
        if let Some(socket) = socket.filter(|_| env.get("SSH_AUTH_SOCK").is_none()) {
            env.set("SSH_AUTH_SOCK", &socket);
        }
        let text = format!("RUN {}{} # buildkit", state.args_text(), argv.join(" "));
        let action = Action::Run {
            argv,
            script,
            env: env.pairs(),
            proxies,
            cwd: workdir,
            user: state.image.config.user.clone().filter(|user| !user.is_empty()).unwrap_or("0".into()),
            network: run.network != Network::None,
            mounts,
        };
        Ok((action, text))
    }

    /// What `from=` of a mount names.
    fn mount_from(&self, from: &str, place: usize, line: u32) -> Result<Option<CopyFrom>, PlanError> {
        let found = match mounts::source(self.outline.names(), from) {
            Source::Scratch => return Ok(None),
            Source::Stage(stage) => self.place(stage).filter(|p| *p < place).map(CopyFrom::Stage),
            Source::Image(reference) => self.image(&reference).map(CopyFrom::Image),
            Source::Context(name) => Some(self.context(&name)),
        };
        let missing = || PlanError::new(INTERNAL, line, format!("RUN --mount=from={from} was not planned"));
        found.map(Some).ok_or_else(missing)
    }

    fn copy_from(&self, from: &str, place: usize, line: u32) -> Result<CopyFrom, PlanError> {
        let found = match graph::copy_source(self.outline.names(), from, line)? {
            Source::Stage(stage) => self.place(stage).filter(|p| *p < place).map(CopyFrom::Stage),
            Source::Image(reference) => self.image(&reference).map(CopyFrom::Image),
            Source::Context(name) => Some(self.context(&name)),
            Source::Scratch => None,
        };
        found.ok_or_else(|| PlanError::new(INTERNAL, line, format!("COPY --from={from} was not planned")))
    }

    /// Says which layers are published.
    fn finish(self) -> Plan {
        let count = self.states.len();
        let steps = self.outline.steps();
        let bases: Vec<Base> = (0..count).map(|place| self.base(place).unwrap_or(Base::Scratch)).collect();
        let mut publish = vec![false; count];
        if let Some(last) = publish.last_mut() {
            *last = true;
        }
        for place in (0..count).rev() {
            if let Base::Stage(parent) = bases[place] {
                publish[parent] |= publish[place];
            }
        }
        let ends = self.outline.starts.iter().skip(1).map(|start| start - 1);
        let last = u32::try_from(steps.len()).unwrap_or(u32::MAX);
        let ends: Vec<u32> = ends.chain([last]).collect();
        let stages = self
            .states
            .into_iter()
            .enumerate()
            .map(|(place, state)| Stage {
                name: graph::stage_name(self.outline.file, self.outline.order[place].stage),
                steps: self.outline.starts[place]..=ends[place],
                base: bases[place],
                ops: state.ops,
                image: state.image,
                publish: publish[place],
            })
            .collect();
        Plan {
            steps: steps.to_vec(),
            images: self.images,
            stages,
            epoch: self.outline.epoch,
            contexts: self.outline.contexts.keys().cloned().collect(),
            unused_args: self.outline.unused_args(),
        }
    }
}

fn expand_pairs(pairs: &[KeyValue], words: Words<'_>) -> Result<Vec<(String, String)>, PlanError> {
    pairs.iter().map(|pair| Ok((words.one(&pair.key)?, words.one(&pair.value)?))).collect()
}
