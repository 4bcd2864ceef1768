//! The engine of this machine: file work through the helper, commands in sandboxes.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use kiln_contract::request::Isolation;

use super::caches::Caches;
use super::client::Helper;
use super::view::{self, work_of};
use super::wire::Request;
use crate::engine::{
    Copied, Destination, Diff, Engine, EngineError, EngineErrorKind, Exit, MountSource, Output, Owner,
    Selection, Step, Stop, Unpacked, User, View,
};
use crate::sandbox::facts::{self, Facts};
use crate::sandbox::fault::{At as _, Fault, Stage};
use crate::sandbox::idmap::{self, IdMap};
use crate::sandbox::settings::Settings;
use crate::sandbox::spawn::{self, Failure};
use crate::sandbox::spec::{ProcChoice, ProcKind, Spec, Task};
use crate::sandbox::{MOUNT_POINT, oom, probe, socket};

/// Settings of a [`LocalEngine`].
#[derive(Debug, Clone)]
pub struct Options {
    /// The program to start launchers and the helper from; its main has to call [`super::dispatch_reexec`].
    pub program: PathBuf,
    /// First host id of steps in mode `HostRange`.
    pub host_base: u32,
    /// What all steps are told alike.
    pub settings: Settings,
    /// Where caches of steps outlast the build; none: nowhere.
    pub cache_dir: Option<PathBuf>,
    /// They are used where they are: the ids of steps have to get there by path. Otherwise they are moved, which takes the
    /// workspace's file system and rights over the files of steps (root, or root of an outer user namespace).
    pub caches_in_place: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            program: PathBuf::from("/proc/self/exe"),
            host_base: idmap::HOST_RANGE_BASE,
            settings: Settings::default(),
            cache_dir: None,
            caches_in_place: false,
        }
    }
}

/// Trees below a working directory, a helper that owns them, and a sandbox per step.
#[derive(Debug)]
pub struct LocalEngine {
    helper: Helper,
    trees: PathBuf,
    program: PathBuf,
    map: IdMap,
    settings: Settings,
    proc: ProcKind,
    caches: Option<Caches>,
}

/// Names of the probe's trees.
const PROBE: [&str; 2] = ["probe-l", "probe-u"];

impl LocalEngine {
    /// Prepares `work_dir` (made when absent; what an earlier run left in its trees is removed), starts the helper and
    /// tries a whole sandbox.
    ///
    /// # Errors
    /// Kind `Isolation`, naming the setting that is missing, when this machine does not allow the sandbox; kind `Space`
    /// or `Internal`.
    pub fn start(work_dir: &Path, isolation: Isolation, options: Options) -> Result<Self, EngineError> {
        let map = idmap::current(isolation, options.host_base)?;
        let explain = |fault: Fault| probe::explain(&fault, &facts::gather(work_dir));
        let trees = make_directories(work_dir).map_err(explain)?;
        let helper = Helper::start(&options.program, &trees, map).map_err(explain)?;
        let caches = |dir| Caches::new(dir, &trees, map, options.caches_in_place);
        let caches = options.cache_dir.as_deref().map(caches).transpose()?;
        let mut engine = Self {
            helper,
            trees,
            program: options.program,
            map,
            settings: options.settings,
            proc: ProcKind::Bound,
            caches,
        };
        engine.clear()?;
        engine.proc = engine.probe()?;
        Ok(engine)
    }

    /// Which `/proc` steps see.
    pub fn proc(&self) -> ProcKind {
        self.proc
    }

    /// The ids of steps.
    pub fn ids(&self) -> IdMap {
        self.map
    }

    /// What this machine allows, for hints.
    pub fn facts(&self) -> Facts {
        facts::gather(&self.trees)
    }

    /// Removes every tree.
    ///
    /// # Errors
    /// Kind `Internal`.
    pub fn clear(&self) -> Result<(), EngineError> {
        self.helper.call(&Request::Clear, None)
    }

    fn probe(&self) -> Result<ProcKind, EngineError> {
        let [lower, upper] = PROBE.map(str::to_owned);
        let spec = Spec {
            map: self.map,
            lowers: vec![lower.clone()],
            work: work_of(&upper),
            upper: upper.clone(),
            task: Task::Probe,
            script: None,
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: User::default(),
            network: false,
            settings: Settings::default(),
            mounts: Vec::new(),
            proc: ProcChoice::Try,
        };
        let ended = spawn::run(&self.program, &self.trees, &spec, &mut Silence, &Stop::default())
            .map_err(|failure| self.tell(failure, &Stop::default()))?;
        self.remove(&[lower, upper])?;
        if ended.code == 0 {
            Ok(ended.proc)
        } else {
            Err(internal(format!("the sandbox probe ended with exit code {}", ended.code)))
        }
    }

    /// A tree that takes a mount's changes. Alone it is mounted as it is, over others as the upper one of an overlay.
    fn prepare_upper(&self, lowers: &[String], upper: &str) -> Result<(), EngineError> {
        if lowers.is_empty() {
            return self.make_tree(upper, 0o755, Owner::default());
        }
        let view = View { lowers: lowers.to_vec(), upper: upper.to_owned() };
        self.helper.call(&Request::Prepare { view }, None)
    }

    fn tell(&self, failure: Failure, stop: &Stop) -> EngineError {
        match failure {
            Failure::Fault(fault) => probe::explain(&fault, &self.facts()),
            Failure::Refused(message) => EngineError { kind: EngineErrorKind::User, message },
            Failure::Stopped => EngineError {
                kind: EngineErrorKind::Stopped,
                message: format!("the build was told to stop: {}", stop.reason().unwrap_or_default()),
            },
        }
    }
}

/// Makes the working directory and what the engine keeps in it; gives the trees directory.
fn make_directories(work_dir: &Path) -> Result<PathBuf, Fault> {
    let trees = work_dir.join("trees");
    let fail = || format!("cannot make {}", trees.display());
    // Nobody else on the machine may come near setuid files in trees.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(work_dir).at(Stage::Launch, fail)?;
    std::fs::DirBuilder::new().recursive(true).create(trees.join(MOUNT_POINT)).at(Stage::Launch, fail)?;
    // The helper, another user to the kernel, makes the trees in there.
    std::fs::set_permissions(&trees, std::fs::Permissions::from_mode(0o777)).at(Stage::Launch, fail)?;
    Ok(trees)
}

fn internal(message: String) -> EngineError {
    EngineError { kind: EngineErrorKind::Internal, message }
}

struct Silence;

impl Output for Silence {
    fn write(&mut self, _: &[u8]) {}
}

impl Engine for LocalEngine {
    fn unpack(
        &self,
        tree: &str,
        media_type: &str,
        blob: OwnedFd,
        index: Option<OwnedFd>,
    ) -> Result<Unpacked, EngineError> {
        let request = Request::Unpack { tree: tree.to_owned(), media_type: media_type.to_owned() };
        self.helper.call(&request, [blob].into_iter().chain(index))
    }

    fn index(&self, media_type: &str, blob: OwnedFd, index: OwnedFd) -> Result<Unpacked, EngineError> {
        self.helper.call(&Request::Index { media_type: media_type.to_owned() }, [blob, index])
    }

    fn settle(&self, layers: &[(String, Unpacked)]) -> Result<(), EngineError> {
        self.helper.call(&Request::Settle { layers: layers.to_vec() }, None)
    }

    fn copy_stream(&self, view: &View, to: &Destination, entries: OwnedFd) -> Result<Copied, EngineError> {
        self.helper.call(&Request::CopyStream { view: view.clone(), to: to.clone() }, Some(entries))
    }

    fn copy_tree(
        &self,
        view: &View,
        to: &Destination,
        from: &[String],
        what: &Selection,
    ) -> Result<Copied, EngineError> {
        let (view, to, from, what) = (view.clone(), to.clone(), from.to_vec(), what.clone());
        self.helper.call(&Request::CopyTree { view, to, from, what }, None)
    }

    fn make_directory(&self, view: &View, path: &str, owner: Owner) -> Result<(), EngineError> {
        self.helper.call(&Request::MakeDirectory { view: view.clone(), path: path.to_owned(), owner }, None)
    }

    fn make_tree(&self, tree: &str, mode: u32, owner: Owner) -> Result<(), EngineError> {
        self.helper.call(&Request::MakeTree { tree: tree.to_owned(), mode, owner }, None)
    }

    fn keeps_caches(&self) -> bool {
        self.caches.is_some()
    }

    fn take_cache(&self, key: &str, tree: &str, wait: bool, stop: &Stop) -> Result<bool, EngineError> {
        view::check([&tree.to_owned()])?;
        self.caches.as_ref().map_or(Ok(false), |caches| caches.take(key, tree, wait, stop))
    }

    fn keep_cache(&self, key: &str, tree: &str) -> Result<bool, EngineError> {
        self.caches.as_ref().map_or(Ok(false), |caches| caches.keep(key, tree))
    }

    fn listen(&self, name: &str, mode: u32, owner: Owner) -> Result<UnixListener, EngineError> {
        view::check([&name.to_owned()])?;
        let outside = |inner: u32| {
            self.map.outside(inner).ok_or_else(|| EngineError {
                kind: EngineErrorKind::User,
                message: format!(
                    "a socket can't be given to {inner}: steps have the ids 0 to {}",
                    self.map.count - 1
                ),
            })
        };
        let ids = (outside(owner.uid)?, outside(owner.gid)?);
        let listening = socket::listen(&self.trees, name, mode, ids);
        listening.map_err(|error| internal(format!("cannot listen at the socket {name}: {error}")))
    }

    fn user(&self, lowers: &[String], user: &str) -> Result<User, EngineError> {
        self.helper.call(&Request::User { lowers: lowers.to_vec(), user: user.to_owned() }, None)
    }

    fn owner(&self, lowers: &[String], chown: &str) -> Result<Owner, EngineError> {
        self.helper.call(&Request::Owner { lowers: lowers.to_vec(), chown: chown.to_owned() }, None)
    }

    fn run(&self, step: &Step, output: &mut dyn Output, stop: &Stop) -> Result<Exit, EngineError> {
        let () = self.helper.call(&Request::Prepare { view: step.view.clone() }, None)?;
        for mount in &step.mounts {
            if let MountSource::Trees { lowers, upper: Some(upper), .. } = &mount.source {
                self.prepare_upper(lowers, upper)?;
            }
        }
        let spec = Spec {
            map: self.map,
            lowers: step.view.lowers.clone(),
            upper: step.view.upper.clone(),
            work: work_of(&step.view.upper),
            task: Task::Command(step.argv.clone()),
            script: step.script.clone(),
            env: step.env.clone(),
            cwd: step.cwd.clone(),
            user: step.user.clone(),
            network: step.network && !self.settings.no_network,
            settings: self.settings.clone(),
            mounts: step.mounts.clone(),
            proc: ProcChoice::Settled(self.proc),
        };
        let before = oom::kills();
        let ended = spawn::run(&self.program, &self.trees, &spec, output, stop)
            .map_err(|failure| self.tell(failure, stop))?;
        if !ended.stubs.is_empty() {
            let (upper, stubs) = (step.view.upper.clone(), ended.stubs.clone());
            let () = self.helper.call(&Request::RemoveStubs { upper, stubs }, None)?;
        }
        let out_of_memory = oom::explains(before, oom::kills(), ended.code);
        Ok(Exit { code: ended.code, out_of_memory, stubs: ended.stubs })
    }

    fn diff(
        &self,
        view: &View,
        stubs: &[String],
        epoch: Option<i64>,
        out: OwnedFd,
        index: Option<OwnedFd>,
    ) -> Result<Diff, EngineError> {
        let request = Request::Diff { view: view.clone(), stubs: stubs.to_vec(), epoch };
        self.helper.call(&request, [out].into_iter().chain(index))
    }

    fn archive(&self, tree: &str, out: OwnedFd) -> Result<Diff, EngineError> {
        self.helper.call(&Request::Archive { tree: tree.to_owned() }, Some(out))
    }

    fn remove(&self, trees: &[String]) -> Result<(), EngineError> {
        self.helper.call(&Request::Remove { trees: trees.to_vec() }, None)
    }
}
