//! `RUN --mount`: from the flags as written to what a step mounts. Rules: BuildKit `dockerfile2llb` (`convert_runmount`,
//! `convert_secrets`, `convert_ssh`).

use kiln_contract::reason::{DOCKERFILE_INVALID, NOT_FOUND};
use kiln_dockerfile::Expander;
use kiln_dockerfile::instruction::{Mount as Written, MountError, MountSpec, MountType, Sharing};

use super::copy::clean;
use super::env::Words;
use super::graph::{self, Source};
use super::{CopyFrom, PlanError};
use crate::engine::Owner;

/// What a step mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// `type=bind`
    Files {
        /// Absolute.
        target: String,
        /// Whether changes are refused; else they are thrown away.
        read_only: bool,
        /// Whose files; nobody's for `from=scratch`.
        from: Option<CopyFrom>,
        /// Path within, absolute.
        path: String,
    },
    /// `type=cache`
    Cache {
        /// Absolute.
        target: String,
        /// Whether changes are refused.
        read_only: bool,
        /// Which cache.
        cache: Cache,
        /// Path within, absolute.
        path: String,
        /// Who else may use it at the same time.
        sharing: Sharing,
    },
    /// `type=tmpfs`
    Memory {
        /// Absolute.
        target: String,
        /// Whether changes are refused.
        read_only: bool,
        /// Bytes at most; 0 for the kernel's default.
        size: u64,
    },
    /// `type=secret`
    Secret {
        /// Its name in the request.
        id: String,
        /// Where the file is, absolute; none for a variable alone.
        target: Option<String>,
        /// The variable.
        env: Option<String>,
        /// Permission bits of the file.
        mode: u32,
        /// Whose the file is.
        owner: Owner,
        /// Whether the step fails without it.
        required: bool,
    },
    /// `type=ssh`
    Agent {
        /// Its name in the request.
        id: String,
        /// Where the socket is, absolute.
        target: String,
        /// Permission bits of the socket.
        mode: u32,
        /// Whose the socket is.
        owner: Owner,
        /// Whether the step fails without it.
        required: bool,
    },
}

impl Mount {
    /// Whose files it shows.
    pub(super) fn from(&self) -> Option<CopyFrom> {
        match self {
            Self::Files { from, .. } => *from,
            Self::Cache { cache, .. } => cache.from,
            Self::Memory { .. } | Self::Secret { .. } | Self::Agent { .. } => None,
        }
    }
}

/// Which cache a mount means. BuildKit keeps caches apart by what they start from, and a wished owner or mode is part of
/// that.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cache {
    /// `id=`, or the target; behind the namespace of the build argument `BUILDKIT_CACHE_MOUNT_NS`.
    pub id: String,
    /// What it holds at first.
    pub from: Option<CopyFrom>,
    /// Mode and owner of its root, where wished.
    pub root: Option<(u32, u32, u32)>,
}

impl Cache {
    /// Names it for people: its id, behind a namespace where there is one.
    pub fn name(&self) -> &str {
        self.id.strip_prefix('/').unwrap_or(&self.id)
    }

    /// Names it from build to build.
    pub fn key(&self) -> String {
        let root = self.root.map(|(mode, uid, gid)| format!("{mode:o} {uid}:{gid}"));
        format!("{} {}", root.unwrap_or_default(), self.id)
    }
}

/// Modes that BuildKit gives by default.
const SECRET_MODE: u32 = 0o400;
const SOCKET_MODE: u32 = 0o600;
const CACHE_MODE: u32 = 0o755;

/// What `from=` of a mount means: a stage by its name (never by its number), else an image.
pub(super) fn source(names: graph::Scope<'_>, from: &str) -> Source {
    if let Some(context) = names.context(from) {
        return context;
    }
    match graph::named(names.file, from, names.file.stages.len()) {
        Some(stage) => Source::Stage(stage),
        None if from == "scratch" => Source::Scratch,
        None => Source::Image(from.to_owned()),
    }
}

/// Reads a mount that holds no variables as far as can be before anything is asked of a registry.
pub(super) fn check_early(spec: &MountSpec, line: u32) -> Result<(), PlanError> {
    if spec.raw.contains(['$', '\\', '\'', '"']) {
        return Ok(());
    }
    spec.resolve(&|word| Ok(word.to_owned())).map(drop).map_err(|e| invalid(spec, line, &e))
}

/// What the mounts of a RUN are made from.
pub(super) struct Scope<'a> {
    pub words: Words<'a>,
    /// Absolute.
    pub workdir: &'a str,
    /// `BUILDKIT_CACHE_MOUNT_NS`
    pub namespace: &'a str,
    /// Finds what `from=` names.
    pub find: &'a dyn Fn(&str) -> Result<Option<CopyFrom>, PlanError>,
}

/// The mounts of a RUN, and the first agent's socket, for `SSH_AUTH_SOCK`.
pub(super) fn resolve(
    specs: &[MountSpec],
    scope: &Scope<'_>,
) -> Result<(Vec<Mount>, Option<String>), PlanError> {
    let mut mounts = Vec::with_capacity(specs.len());
    let mut sockets: Vec<String> = Vec::new();
    for spec in specs {
        let get = |name: &str| scope.words.env.get(name).map(str::to_owned);
        let written = spec
            .resolve(&|word| Expander::new(&get, scope.words.escape).word(word))
            .map_err(|e| invalid(spec, scope.words.line, &e))?;
        let fault = |why: &str| {
            let message = format!("RUN --mount={}: {why}", spec.raw);
            PlanError::new(DOCKERFILE_INVALID, scope.words.line, message)
        };
        let mount = one(written, scope, sockets.len(), &fault)?;
        if let Mount::Agent { target, .. } = &mount {
            sockets.push(target.clone());
        }
        mounts.push(mount);
    }
    Ok((mounts, sockets.into_iter().next()))
}

fn invalid(spec: &MountSpec, line: u32, error: &MountError) -> PlanError {
    PlanError::new(DOCKERFILE_INVALID, line, format!("RUN --mount={}: {error}", spec.raw))
}

fn one(
    written: Written,
    scope: &Scope<'_>,
    sockets: usize,
    fault: &dyn Fn(&str) -> PlanError,
) -> Result<Mount, PlanError> {
    let owner = Owner { uid: written.uid.unwrap_or(0), gid: written.gid.unwrap_or(0) };
    let (read_only, required) = (written.read_only, written.required);
    match written.kind {
        MountType::Secret => secret(&written, owner, fault),
        MountType::Ssh if written.source.is_some() => {
            Err(fault("an ssh mount has no source; name the agent with id="))
        }
        MountType::Ssh => {
            let target = written.target.unwrap_or_else(|| format!("/run/buildkit/ssh_agent.{sockets}"));
            Ok(Mount::Agent {
                id: written.id.unwrap_or_else(|| "default".to_owned()),
                target: place("/", &target, fault)?,
                mode: written.mode.unwrap_or(SOCKET_MODE) & 0o777,
                owner,
                required,
            })
        }
        kind => {
            // A target is seen from WORKDIR, and none at all is WORKDIR itself (BuildKit).
            let wished = written.target.unwrap_or_default();
            let target = place(scope.workdir, &wished, fault)?;
            let path = clean(&format!("/{}", written.source.as_deref().unwrap_or_default()));
            match kind {
                MountType::Tmpfs => return Ok(Mount::Memory { target, read_only, size: written.size }),
                MountType::Cache => {}
                _ => {
                    let from = match &written.from {
                        None => Some(CopyFrom::Context),
                        Some(from) => (scope.find)(from)?,
                    };
                    return Ok(Mount::Files { target, read_only, from, path });
                }
            }
            let from = written.from.as_deref().map(scope.find).transpose()?.flatten();
            let wishes = written.mode.is_some() || written.uid.is_some() || written.gid.is_some();
            // BuildKit gives a mode and an owner only to a directory that it makes for that, which a source bypasses.
            let root = (path == "/" && wishes).then(|| {
                let mode = written.mode.unwrap_or(CACHE_MODE) & 0o7777;
                (mode, owner.uid, owner.gid)
            });
            let id = written.id.unwrap_or_else(|| go_clean(&wished));
            Ok(Mount::Cache {
                target,
                read_only,
                cache: Cache { id: format!("{}/{id}", scope.namespace), from, root },
                path,
                sharing: written.sharing.unwrap_or(Sharing::Shared),
            })
        }
    }
}

fn secret(written: &Written, owner: Owner, fault: &dyn Fn(&str) -> PlanError) -> Result<Mount, PlanError> {
    let base = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    let named = written.source.clone().or_else(|| written.id.clone());
    let id = named.unwrap_or_else(|| base(written.target.as_deref().unwrap_or_default()));
    if id.is_empty() {
        return Err(fault("the secret has no name; give it one with id="));
    }
    let env = match written.env.as_deref() {
        None => None,
        Some("") => Some(id.clone()),
        Some(name) => Some(name.to_owned()),
    };
    if env.as_ref().is_some_and(|name| name.contains(['=', '\0'])) {
        return Err(fault("env= needs the name of a variable"));
    }
    let target = match (&written.target, &env) {
        (Some(target), _) => Some(place("/", target, fault)?),
        (None, None) => Some(place("/run/secrets", &base(&id), fault)?),
        (None, Some(_)) => None,
    };
    let mode = written.mode.unwrap_or(SECRET_MODE) & 0o777;
    Ok(Mount::Secret { id, target, env, mode, owner, required: written.required })
}

/// A target seen from a directory.
fn place(dir: &str, target: &str, fault: &dyn Fn(&str) -> PlanError) -> Result<String, PlanError> {
    let path = if target.starts_with('/') { clean(target) } else { clean(&format!("{dir}/{target}")) };
    // The OCI runtimes refuse these as well.
    if path == "/" || path == "/proc" || path.starts_with("/proc/") {
        return Err(fault(&format!("nothing can be mounted at {path}")));
    }
    Ok(path)
}

/// Go's `path.Clean`, also of a relative path.
fn go_clean(path: &str) -> String {
    if path.starts_with('/') {
        return clean(path);
    }
    // A name in front keeps what leads above it apart: `../x` is not `x`.
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    if parts.is_empty() { ".".to_owned() } else { parts.join("/") }
}

/// The error of a stage that comes too late to be mounted.
pub(super) fn too_late(from: &str, line: u32) -> PlanError {
    PlanError::new(
        NOT_FOUND,
        line,
        format!("RUN --mount=from={from}: the stage has to be defined before the one that mounts it"),
    )
}
