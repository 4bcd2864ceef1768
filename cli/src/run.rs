//! `kiln build`: courier and builder in one process, over a socket in a directory of their own.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, anyhow, bail};
use kiln_builder::engine::{Engine, Stop};
use kiln_builder::helper::{LocalEngine, Options as EngineOptions};
use kiln_builder::plan::git_context;
use kiln_builder::run::{Human, Settings};
use kiln_builder::sandbox::settings::Settings as StepSettings;
use kiln_builder::solve::log::{Entry, Log};
use kiln_contract::policy::Policy;
use kiln_contract::request::{BuildRequest, Cache, Isolation, NamedContext, Output, Registries, Source};
use kiln_contract::{VERSION, reason};
use kiln_courier::{Given, Options, serve};
use kiln_registry::Credentials;
use tokio_util::sync::CancellationToken;

use crate::args::{BuildArgs, Network, Progress};
use crate::given;
use crate::output::Place;

/// Bytes of a Dockerfile outside of the context: a request holds 1 MiB.
const MAX_DOCKERFILE: u64 = 512 << 10;

/// Builds; `Ok(false)` when the build failed and the reason has been told.
///
/// # Errors
/// The command line or the machine does not allow a build to start.
pub fn build(args: &BuildArgs) -> Result<bool> {
    kiln_builder::sandbox::outer::enter_rootless_if_needed().map_err(|e| anyhow!("{e}"))?;
    let work = tempfile::Builder::new()
        .prefix("kiln-")
        .tempdir_in(args.work_dir.as_deref().unwrap_or(Path::new("/var/tmp")))
        .context("making a working directory; name another place with --work-dir")?;
    // The steps' ids have to pass through it; what is in it has modes of its own.
    std::fs::set_permissions(work.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
    let request = request(args, work.path())?;
    let socket = work.path().join("courier.sock");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let shutdown = CancellationToken::new();
    let raw = args.progress == Progress::Rawjson;
    let options = Options {
        request: request.clone(),
        socket: socket.clone(),
        credentials: Credentials::files(
            docker_configs(),
            "~/.docker/config.json (log in with `docker login`)",
        ),
        given: given(args)?,
        ca_bundle: std::env::var_os("SSL_CERT_FILE").map(PathBuf::from),
        control: None,
        state_dir: None,
        report: None,
        sink: Box::new(move |line| if raw { writeln!(std::io::stdout(), "{line}") } else { Ok(()) }),
    };
    let courier = runtime.spawn(serve(options, shutdown.clone()));
    let stop = Stop::default();
    let interrupted = stop.clone();
    runtime.spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.stop(reason::CANCELLED);
        }
    });
    let settings = settings(args, &request)?;
    let alike = settings.alike();
    let work_dir = work.path().join("work");
    std::fs::create_dir(&work_dir)?;
    std::fs::set_permissions(&work_dir, std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
    let built = if courier.is_finished() {
        None
    } else {
        let mut log: Box<dyn Log> = match args.progress {
            Progress::Plain => Box::new(Human::new(std::io::stdout())),
            Progress::Rawjson | Progress::Quiet => Box::new(Errors(Human::new(std::io::stderr()))),
        };
        let settings = Settings {
            socket: &socket,
            work_dir: &work_dir,
            stop: &stop,
            alike: &alike,
            start_engine: &|work_dir, isolation| {
                let options = EngineOptions {
                    settings: settings.clone(),
                    cache_dir: args.cache_dir.clone(),
                    ..EngineOptions::default()
                };
                let engine: Arc<dyn Engine> = Arc::new(LocalEngine::start(work_dir, isolation, options)?);
                Ok(engine)
            },
            log: &mut *log,
        };
        Some(kiln_builder::run::build(&request, settings))
    };
    shutdown.cancel();
    runtime.block_on(courier)?.map_err(|failure| anyhow!("{failure}"))?;
    let Some(Ok(committed)) = built else { return Ok(false) };
    if args.progress == Progress::Quiet {
        writeln!(std::io::stdout(), "{}", committed.digest)?;
    }
    if args.output.is_none() && args.progress == Progress::Plain {
        writeln!(
            std::io::stdout(),
            "The image was dropped: keep one with -o type=oci,dest=FILE.tar, or push it with -t NAME -o type=registry"
        )?;
    }
    Ok(true)
}

/// What all steps are told alike.
fn settings(args: &BuildArgs, request: &BuildRequest) -> Result<StepSettings> {
    let mut settings = StepSettings {
        hosts: args.add_hosts.clone(),
        shm_bytes: args.shm_size,
        ulimits: args.ulimits.clone(),
        no_network: args.network == Network::None,
        ..StepSettings::default()
    };
    if let Some(name) = request.args.get(kiln_builder::plan::HOSTNAME_ARG) {
        settings.set_hostname(name).map_err(|e| anyhow!("{}: {e}", kiln_builder::plan::HOSTNAME_ARG))?;
    }
    Ok(settings)
}

/// What the command line gives to steps.
fn given(args: &BuildArgs) -> Result<Given> {
    let variable = |name: &str| std::env::var_os(name).map(std::os::unix::ffi::OsStringExt::into_vec);
    Ok(Given {
        secrets: given::secrets(&args.secrets, &variable)?,
        ssh: given::agents(&args.ssh, std::env::var_os("SSH_AUTH_SOCK").as_deref().map(Path::new))?,
        ..Given::default()
    })
}

/// Tells only what went wrong.
struct Errors<L>(L);

impl<L: Log> Log for Errors<L> {
    fn entry(&mut self, entry: Entry<'_>) {
        if matches!(entry, Entry::Failed { .. } | Entry::CommandFailed { .. } | Entry::Warning { .. }) {
            self.0.entry(entry);
        }
    }
}

fn request(args: &BuildArgs, work: &Path) -> Result<BuildRequest> {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    let context = std::fs::canonicalize(&args.context)
        .with_context(|| format!("the build context {} can't be opened", args.context.display()))?;
    if !context.is_dir() {
        bail!("the build context {} is no directory", args.context.display());
    }
    let (dockerfile, dockerfile_text) = dockerfile(args.file.as_deref(), &context)?;
    let registries = registries(args.registry_config.as_deref())?;
    let isolation = if in_user_namespace() { Isolation::UserNamespace } else { Isolation::HostRange };
    Ok(BuildRequest {
        version: VERSION,
        attempt: format!("local-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)),
        source: Source::Directory(utf8(&context)?),
        context_dir: ".".to_owned(),
        dockerfile,
        dockerfile_text,
        target: args.target.clone(),
        args: build_args(&args.build_args),
        labels: pairs(&args.labels)?,
        entitlements: entitlements(args)?,
        contexts: contexts(&args.build_contexts)?,
        platform: args.platform.clone().unwrap_or_else(|| format!("linux/{}", architecture())),
        output: output(args, work)?,
        compression: args.output.as_ref().map(|spec| spec.compression).unwrap_or_default(),
        isolation,
        timeout_seconds: args.timeout,
        registries,
        policy: Policy::default(),
        cache: args.cache.clone().map(|repository| Cache { repository, scope: String::new() }),
    })
}

/// Mirrors and plain-HTTP registries, as a file has them.
///
/// # Errors
/// It can't be read.
pub fn registries(file: Option<&Path>) -> Result<Registries> {
    let Some(file) = file else { return Ok(Registries::default()) };
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_saphyr::from_str(&text).map_err(|e| anyhow!("{}: {e}", file.display()))
}

/// What steps may have. `--network none` binds every step, so that leave for another network would be ignored in silence.
fn entitlements(args: &BuildArgs) -> Result<Vec<String>> {
    if args.network == Network::None && args.allow.iter().any(|word| word == "network.host") {
        bail!(
            "--network none and --allow network.host contradict each other: no step gets a network, RUN --network=host included; leave one of them out"
        );
    }
    Ok(args.allow.clone())
}

/// The Dockerfile's path in the context, or its name and text where it lies elsewhere.
fn dockerfile(file: Option<&Path>, context: &Path) -> Result<(String, Option<String>)> {
    let Some(file) = file else { return Ok(("Dockerfile".to_owned(), None)) };
    let real = std::fs::canonicalize(file)
        .with_context(|| format!("the Dockerfile {} can't be opened", file.display()))?;
    if let Ok(inside) = real.strip_prefix(context) {
        return Ok((utf8(inside)?, None));
    }
    let size = std::fs::metadata(&real)?.len();
    if size > MAX_DOCKERFILE {
        bail!("the Dockerfile {} has {size} bytes, more than the {MAX_DOCKERFILE} allowed", file.display());
    }
    let text = std::fs::read_to_string(&real).with_context(|| format!("reading {}", file.display()))?;
    Ok((utf8(file)?, Some(text)))
}

fn output(args: &BuildArgs, work: &Path) -> Result<Output> {
    let references = args.tags.clone();
    Ok(match args.output.as_ref().map(|spec| &spec.to) {
        Some(Place::Registry) if references.is_empty() => {
            bail!("type=registry needs a name to push to: add -t HOST/NAME:TAG")
        }
        Some(Place::Registry) => Output::Registry { references, permit: false },
        Some(Place::OciArchive(file)) => Output::OciArchive { path: utf8(file)?, references },
        Some(Place::OciLayout(dir)) => Output::OciLayout { path: utf8(dir)?, references },
        None => Output::OciLayout { path: utf8(&work.join("dropped"))?, references },
    })
}

fn utf8(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| anyhow!("{} is not UTF-8", path.display()))
}

/// `NAME=VALUE`, or `NAME` for the environment's value; a name that is set nowhere is left out, as docker does.
fn build_args(args: &[String]) -> BTreeMap<String, String> {
    let value = |arg: &String| match arg.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => std::env::var(arg).ok().map(|value| (arg.clone(), value)),
    };
    args.iter().filter_map(value).collect()
}

/// `NAME=PLACE`; a place without a scheme is a directory.
fn contexts(written: &[String]) -> Result<BTreeMap<String, NamedContext>> {
    let mut contexts = BTreeMap::new();
    for text in written {
        let place = text.split_once('=').filter(|(name, place)| !name.is_empty() && !place.is_empty());
        let (name, place) = place.ok_or_else(|| anyhow!("--build-context {text}: expected NAME=PLACE"))?;
        let context = if let Some(reference) = place.strip_prefix("docker-image://") {
            NamedContext::Image(reference.to_owned())
        } else if Path::new(place).exists() {
            NamedContext::Directory(utf8(&std::fs::canonicalize(place)?)?)
        } else if let Some(git) = git_context(place).map_err(|e| anyhow!("--build-context {text}: {e}"))? {
            NamedContext::Git(git)
        } else {
            bail!(
                "--build-context {text}: there is no directory {place}; expected one, docker-image://REF or a git repository"
            )
        };
        contexts.insert(name.to_owned(), context);
    }
    Ok(contexts)
}

fn pairs(labels: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |label: &String| {
        let (name, value) =
            label.split_once('=').ok_or_else(|| anyhow!("--label {label}: expected NAME=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    labels.iter().map(pair).collect()
}

/// Where `docker login` keeps logins.
pub fn docker_configs() -> Vec<PathBuf> {
    let dir = std::env::var_os("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker")));
    dir.map(|d| d.join("config.json")).into_iter().filter(|f| f.exists()).collect()
}

/// Docker's name of this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Whether this process has ids of its own: then steps get a part of them, else a high range of the host's.
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_args_take_values_from_the_environment() {
        let args = build_args(&["A=1=2".into(), "PATH".into(), "SURELY_NOT_SET_ANYWHERE".into()]);
        assert_eq!(args.get("A").map(String::as_str), Some("1=2"));
        assert!(args.contains_key("PATH") && !args.contains_key("SURELY_NOT_SET_ANYWHERE"));
    }

    #[test]
    fn leave_for_a_network_that_no_step_has_is_refused() {
        use clap::Parser as _;
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            build: BuildArgs,
        }
        let of = |words: &[&str]| {
            let words = ["kiln"].iter().chain(words).chain(&["."]);
            entitlements(&Line::try_parse_from(words).expect("arguments").build).map_err(|e| e.to_string())
        };
        let host = ["--allow", "network.host"];
        assert_eq!(of(&host), Ok(vec!["network.host".to_owned()]));
        assert_eq!(of(&["--network", "none"]), Ok(vec![]));
        let both = of(&["--network", "none", "--allow", "network.host"]).expect_err("a contradiction");
        assert!(both.contains("--network none") && both.contains("--allow network.host"), "{both}");
    }

    #[test]
    fn a_dockerfile_in_the_context_is_named_by_its_path_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let context = dir.path().join("c");
        std::fs::create_dir_all(context.join("sub")).expect("made");
        std::fs::write(context.join("sub/D"), "FROM a").expect("written");
        std::fs::write(dir.path().join("D"), "FROM b").expect("written");
        let context = std::fs::canonicalize(context).expect("there");
        let inside = dockerfile(Some(&context.join("sub/D")), &context).expect("found");
        assert_eq!(inside, ("sub/D".to_owned(), None));
        let outside = dockerfile(Some(&dir.path().join("D")), &context).expect("found");
        assert_eq!(outside.1.as_deref(), Some("FROM b"));
    }
}
