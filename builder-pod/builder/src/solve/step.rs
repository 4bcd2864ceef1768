//! The steps, one after another, stage by stage.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::SyncSender;

use kiln_contract::journal::Event;
use kiln_contract::source::Git;
use kiln_contract::{Failure, FailureClass, reason};
use sha2::{Digest, Sha256};

use super::bases::Bases;
use super::checkout::Checkout;
use super::failure::{Halt, internal, of_engine};
use super::log::{Entry, Log};
use super::mount::Mounted;
use super::publish::{Job, spool_file};
use super::redact::Redactor;
use super::shared::{Place, Shared};
use super::{Wishes, World, agent, short};
use crate::engine::Step as Command;
use crate::engine::{Destination, EngineError, EngineErrorKind, Exit, Output, Owner, Selection, View};
use crate::plan::{Action, Base, CopyFrom, Item, Op, Plan, Stage};
use crate::tree;

/// Bytes of a step's output that are kept for the failure: what `Failure::log_tail` shows, doubled, because control
/// characters and a torn first line go.
const TAIL: usize = 2 * kiln_contract::failure::MAX_LOG_TAIL;

/// Runs the steps of a plan.
pub(super) struct Steps<'a> {
    pub(super) plan: &'a Plan,
    wishes: Wishes<'a>,
    world: World<'a>,
    pub(super) shared: &'a Shared<'a>,
    pub(super) bases: &'a Bases<'a>,
    /// What each stage that was run left.
    pub(super) stages: Vec<Left>,
    pub(super) mounted: Mounted,
    /// When each step ended.
    pub ended: BTreeMap<u32, String>,
    layers: usize,
    uppers: usize,
}

/// What a stage left.
#[derive(Debug, Clone, Default)]
pub(super) struct Left {
    /// Trees from the bottom up.
    pub trees: Vec<String>,
    /// Names the stage's state: a sum over its base and its instructions so far.
    id: String,
}

impl<'a> Steps<'a> {
    pub fn new(
        plan: &'a Plan,
        wishes: Wishes<'a>,
        world: World<'a>,
        shared: &'a Shared<'a>,
        bases: &'a Bases<'a>,
    ) -> Self {
        Self {
            plan,
            wishes,
            world,
            shared,
            bases,
            stages: Vec::new(),
            mounted: Mounted::default(),
            ended: BTreeMap::new(),
            layers: 0,
            uppers: 0,
        }
    }

    /// Runs all of them; layers of the final image go to `jobs`.
    pub fn run(&mut self, jobs: &SyncSender<Job>, log: &mut dyn Log) -> Result<(), Halt> {
        let plan = self.plan;
        let first = plan.stages.first().map_or(1, |stage| *stage.steps.start());
        for number in 1..first {
            self.step(number, log, |steps, log| {
                let id = digest(&["", &steps.plan.steps[number as usize - 1].text]);
                log.entry(Entry::Done { id: short(&id) });
                Ok(())
            })?;
        }
        for stage in &plan.stages {
            let mut left = Left::default();
            for number in stage.steps.clone() {
                self.step(number, log, |steps, log| {
                    if number == *stage.steps.start() {
                        left = steps.start(stage)?;
                        log.entry(Entry::Done { id: short(&left.id) });
                    }
                    let ops = stage.ops.iter().filter(|op| op.step == number);
                    for op in ops {
                        steps.op(stage, op, &mut left, jobs, log)?;
                    }
                    if number != *stage.steps.start() {
                        left.id = digest(&[&left.id, &steps.plan.steps[number as usize - 1].text]);
                        log.entry(Entry::Done { id: short(&left.id) });
                    }
                    Ok(())
                })?;
            }
            self.stages.push(left);
        }
        Ok(())
    }

    /// What every step has in common: events, log, and the place of a failure.
    fn step(
        &mut self,
        number: u32,
        log: &mut dyn Log,
        work: impl FnOnce(&mut Self, &mut dyn Log) -> Result<(), Halt>,
    ) -> Result<(), Halt> {
        let step = &self.plan.steps[number as usize - 1];
        let total = u32::try_from(self.plan.steps.len()).unwrap_or(u32::MAX);
        self.shared.check()?;
        self.shared.courier.event(Event::StepStarted { step: number })?;
        log.entry(Entry::Step { number, total, text: &step.text });
        match work(self, log) {
            Ok(()) => {
                self.ended.insert(number, (self.world.clock)());
                Ok(self.shared.courier.event(Event::StepDone { step: number, cached: false })?)
            }
            Err(Halt::Stopped) => {
                let dockerfile = self.wishes.dockerfile.to_owned();
                self.shared.stopped_in(Place { dockerfile, line: step.line, step: number });
                Err(Halt::Stopped)
            }
            Err(Halt::Failed(failure)) => {
                let failure = failure.at(self.wishes.dockerfile, step.line).in_step(number);
                let exit_code = failure.exit_code;
                // The failure itself follows, and says all of it again: a courier that is lost is noticed there.
                let _ = self.shared.courier.event(Event::StepFailed { step: number, exit_code });
                Err(failure.into())
            }
        }
    }

    /// What a stage starts from. Files that nobody reads are not waited for.
    fn start(&self, stage: &Stage) -> Result<Left, Halt> {
        Ok(match stage.base {
            Base::Scratch => Left { trees: Vec::new(), id: digest(&["scratch"]) },
            Base::Stage(parent) => self.stages.get(parent).cloned().unwrap_or_default(),
            Base::Image(image) => {
                let trees = if stage.files { self.bases.trees(self.shared, image)? } else { Vec::new() };
                Left { trees, id: self.plan.images[image].resolved.digest.clone() }
            }
        })
    }

    fn op(
        &mut self,
        stage: &Stage,
        op: &Op,
        left: &mut Left,
        jobs: &SyncSender<Job>,
        log: &mut dyn Log,
    ) -> Result<(), Halt> {
        self.uppers += 1;
        let view = View { lowers: left.trees.clone(), upper: format!("s{}", self.uppers) };
        let engine = |error: EngineError| of_engine(&error, Some(&op.action));
        let mut stubs = Vec::new();
        match &op.action {
            Action::Run { argv, script, env, cwd, user, network, mounts } => {
                let user = self.shared.engine.user(&view.lowers, user).map_err(engine)?;
                let mut env = env.clone();
                if !user.home.is_empty() && !env.iter().any(|pair| pair.starts_with("HOME=")) {
                    env.push(format!("HOME={}", user.home));
                }
                let mut command = Command {
                    view: view.clone(),
                    argv: argv.clone(),
                    script: script.clone(),
                    env,
                    cwd: cwd.clone(),
                    user,
                    network: *network,
                    mounts: Vec::new(),
                };
                stubs = self.with_mounts(mounts, |steps, prepared| {
                    prepared.set(&mut command.env);
                    command.mounts.clone_from(&prepared.mounts);
                    let run = || steps.command(&command, log);
                    let ended = agent::with(&prepared.agents, steps.shared.courier, run)?;
                    ended.map(|exit| exit.stubs).map_err(|fault| fault.into_halt(&op.action))
                })?;
            }
            Action::Workdir { path, user } => {
                let owner = match user {
                    Some(user) => self.shared.engine.owner(&view.lowers, user).map_err(engine)?,
                    None => Owner::default(),
                };
                self.shared.engine.make_directory(&view, path, owner).map_err(engine)?;
            }
            Action::Copy { from, items, dest, chown, mode, unpack, link } => {
                let seen: &[String] = if *link { &[] } else { &view.lowers };
                let owner = match chown {
                    Some(chown) => {
                        check_owner(seen, chown)?;
                        Some(self.shared.engine.owner(seen, chown).map_err(engine)?)
                    }
                    None => None,
                };
                let mut to = Destination {
                    path: dest.clone(),
                    sources: items.len(),
                    owner,
                    mode: mode.clone(),
                    unpack: false,
                    link: *link,
                };
                for item in items {
                    to.unpack = match item {
                        Item::Files(_) => unpack.unwrap_or(true),
                        Item::Url { .. } => unpack.unwrap_or(false),
                        Item::Inline(_) | Item::Git { .. } => false,
                    };
                    self.item(&view, &to, *from, item).map_err(|halt| halt.into_halt(&op.action))?;
                }
            }
        }
        left.trees.push(view.upper.clone());
        if stage.publish {
            let job = Job { step: op.step, index: self.layers, view, stubs };
            self.layers += 1;
            // Nobody takes jobs after a failure in the background, which is noted already.
            jobs.send(job).map_err(|_| Halt::Stopped)?;
        }
        Ok(())
    }

    /// Copies one of the things that an instruction names.
    fn item(&self, view: &View, to: &Destination, from: CopyFrom, item: &Item) -> Result<(), CopyFault> {
        let what = match item {
            Item::Inline(file) => {
                let now = || (self.world.clock)().parse().map_or(0, |time: jiff::Timestamp| time.as_second());
                let mtime = self.plan.epoch.unwrap_or_else(now);
                let send = |out: OwnedFd| Ok(tree::write_inline(file, mtime, File::from(out))?);
                return Ok(self.copy_stream(view, to, send)?);
            }
            Item::Url { url, name, checksum } => {
                return self.download(view, to, url, name, checksum.as_deref());
            }
            Item::Git { source, excludes } => {
                return self.repository(view, to, source, excludes);
            }
            Item::Files(what) => what,
        };
        match from {
            CopyFrom::Context => {
                self.copy_stream(view, to, |out| self.world.context.send(None, what, out))?;
            }
            CopyFrom::Named(context) => {
                let name = self.plan.contexts.get(context).map(String::as_str);
                self.copy_stream(view, to, |out| self.world.context.send(name, what, out))?;
            }
            CopyFrom::Stage(stage) => {
                let trees = self.stages.get(stage).map_or(&[][..], |left| &left.trees);
                self.shared.engine.copy_tree(view, to, trees, what)?;
            }
            CopyFrom::Image(image) => {
                let trees = self.bases.trees(self.shared, image)?;
                self.shared.engine.copy_tree(view, to, &trees, what)?;
            }
        }
        Ok(())
    }

    /// The courier downloads, into a file without a name; from there it is copied as files of ours are.
    fn download(
        &self,
        view: &View,
        to: &Destination,
        url: &str,
        name: &str,
        checksum: Option<&str>,
    ) -> Result<(), CopyFault> {
        let mut file = spool_file(self.world.spool, "download")?;
        let fetched = self.shared.courier.fetch(url, checksum, file.as_fd()).map_err(Halt::from)?;
        let rewound = std::io::Seek::rewind(&mut file);
        rewound.map_err(|e| Halt::from(internal(format!("reading a download: {e}"))))?;
        // A server that does not say when: 1970, as BuildKit has it.
        let mtime = fetched.modified.unwrap_or(0);
        Ok(self.copy_stream(view, to, move |out| {
            Ok(tree::write_file(name, 0o600, mtime, fetched.size, &mut file, File::from(out))?)
        })?)
    }

    /// The courier checks out; here the files lie in a directory of ours while they are copied.
    fn repository(
        &self,
        view: &View,
        to: &Destination,
        source: &Git,
        excludes: &[String],
    ) -> Result<(), CopyFault> {
        let checkout = Checkout::fetch(self.shared.courier, source, self.world.spool, "checkout")?;
        let what = Selection { sources: vec![".".to_owned()], excludes: excludes.to_vec(), parents: false };
        let all = |_: &str, _: bool| tree::Ignored::No;
        let root = checkout.root();
        Ok(self.copy_stream(view, to, |out| Ok(tree::write_context(root, &what, &all, File::from(out))?))?)
    }

    fn command(&self, command: &Command, log: &mut dyn Log) -> Result<Exit, CommandFault> {
        let id = digest(&[self.wishes.attempt, &command.view.upper]);
        log.entry(Entry::Running { id: short(&id) });
        let redactor = Redactor::new(&self.mounted.secrets);
        let mut output = StepOutput { log: &mut *log, redactor, tail: Vec::new() };
        let ended = self.shared.engine.run(command, &mut output, self.shared.stop);
        output.finish();
        let tail = String::from_utf8_lossy(&output.tail).into_owned();
        let words = command.argv.join(" ");
        match ended {
            Ok(exit) if exit.code == 0 => Ok(exit),
            Ok(exit) => {
                log.entry(Entry::CommandFailed { command: &words, code: exit.code });
                Err(CommandFault::Exit { exit, words, tail })
            }
            Err(error) => Err(CommandFault::Engine { error, tail }),
        }
    }

    /// Files of a context, the build's own or a named one.
    pub(super) fn copy_context(
        &self,
        view: &View,
        to: &Destination,
        name: Option<&str>,
        what: &Selection,
    ) -> Result<(), EngineError> {
        self.copy_stream(view, to, |out| self.world.context.send(name, what, out))
    }

    /// Files of ours go through a pipe: this side opens them, the helper writes them.
    fn copy_stream(
        &self,
        view: &View,
        to: &Destination,
        send: impl FnOnce(OwnedFd) -> Result<(), EngineError> + Send,
    ) -> Result<(), EngineError> {
        let fault = |message: String| EngineError { kind: EngineErrorKind::Internal, message };
        let (read, write) = std::io::pipe().map_err(|e| fault(format!("making a pipe: {e}")))?;
        let (sent, copied) = std::thread::scope(|s| {
            let sending = s.spawn(move || send(OwnedFd::from(write)));
            let copied = self.shared.engine.copy_stream(view, to, read.into());
            (sending.join(), copied)
        });
        let sent = sent.map_err(|_| fault("a thread that read the context panicked".into()))?;
        match (sent, copied) {
            (Ok(()), copied) => copied,
            // A missing source cuts the stream short, and so do both sides' other troubles: the one that names the
            // user's fault is the cause.
            (Err(sent), Err(copied)) => {
                Err(if copied.kind != EngineErrorKind::Internal && sent.kind == EngineErrorKind::Internal {
                    copied
                } else {
                    sent
                })
            }
            (Err(sent), Ok(())) => Err(sent),
        }
    }
}

/// What kept files from being copied: the engine's trouble, or one that is a halt already.
enum CopyFault {
    Engine(EngineError),
    Halt(Halt),
}

impl From<EngineError> for CopyFault {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl From<Halt> for CopyFault {
    fn from(halt: Halt) -> Self {
        Self::Halt(halt)
    }
}

impl CopyFault {
    fn into_halt(self, action: &Action) -> Halt {
        match self {
            Self::Engine(error) => of_engine(&error, Some(action)),
            Self::Halt(halt) => halt,
        }
    }
}

enum CommandFault {
    Exit { exit: Exit, words: String, tail: String },
    Engine { error: EngineError, tail: String },
}

impl CommandFault {
    fn into_halt(self, action: &Action) -> Halt {
        match self {
            Self::Engine { error, tail } => of_engine(&error, Some(action))
                .map(|failure| if tail.is_empty() { failure } else { failure.with_log_tail(&tail) }),
            Self::Exit { exit, words, tail } => {
                let code = exit.code;
                let mut failure = if exit.out_of_memory {
                    let message = format!(
                        "the command '{words}' ended with code {code} because memory ran out; raise the build's memory limit"
                    );
                    Failure::new(FailureClass::OutOfMemory, reason::OUT_OF_MEMORY, message)
                } else {
                    let message = format!("the command '{words}' returned a non-zero code: {code}");
                    Failure::new(FailureClass::User, reason::STEP_FAILED, message)
                };
                failure.exit_code = Some(code);
                failure.with_log_tail(&tail).into()
            }
        }
    }
}

/// A name can only be looked up where there are files; BuildKit fails on an empty image as well.
fn check_owner(lowers: &[String], chown: &str) -> Result<(), Halt> {
    if !lowers.is_empty() || chown.bytes().all(|b| b.is_ascii_digit() || b == b':') {
        return Ok(());
    }
    let message =
        format!("--chown={chown}: an empty image has no /etc/passwd to look names up in; write numbers");
    Err(Failure::new(FailureClass::User, reason::NOT_FOUND, message).into())
}

/// Hands a command's output, without the build's secrets, to the log and keeps its end.
struct StepOutput<'a> {
    log: &'a mut dyn Log,
    redactor: Redactor,
    tail: Vec<u8>,
}

impl Output for StepOutput<'_> {
    fn write(&mut self, bytes: &[u8]) {
        let bytes = self.redactor.take(bytes);
        self.show(&bytes);
    }
}

impl StepOutput<'_> {
    /// The command has ended.
    fn finish(&mut self) {
        let bytes = self.redactor.finish();
        self.show(&bytes);
    }

    fn show(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.log.entry(Entry::Output { bytes });
        self.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL)..]);
        if self.tail.len() > 2 * TAIL {
            self.tail.drain(..self.tail.len() - TAIL);
        }
    }
}

/// sha256 over fields, each with its length in front.
fn digest(fields: &[&str]) -> String {
    let mut sum = Sha256::new();
    for field in fields {
        sum.update((field.len() as u64).to_be_bytes());
        sum.update(field.as_bytes());
    }
    hex::encode(sum.finalize())
}
