//! The courier's program: paths are those of the builder pod, flags are for tests.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow};
use clap::{Parser, Subcommand};
use kiln_contract::paths;
use kiln_contract::report::{Outcome, Report};
use kiln_contract::request::BuildRequest;
use kiln_courier::gc_command::{self, GcArgs};
use kiln_courier::{Given, Options, Place, serve};
use kiln_registry::Credentials;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Talks to registries for a build, keeps its journal and writes its report.
#[derive(Debug, Parser)]
#[command(name = "kiln-courier", version, args_conflicts_with_subcommands = true)]
struct Args {
    /// Something else than a build.
    #[command(subcommand)]
    other: Option<Other>,
    /// The build request.
    #[arg(long, default_value = paths::REQUEST)]
    request: PathBuf,
    /// Where to listen for the builder.
    #[arg(long, default_value = paths::SOCKET)]
    socket: PathBuf,
    /// Directory with `permit` and `stop`.
    #[arg(long, default_value = paths::CONTROL_DIR)]
    control: PathBuf,
    /// Directory with registry credentials, one directory per Secret.
    #[arg(long, default_value = paths::AUTH_DIR)]
    auth: PathBuf,
    /// Directory with the secrets of steps, one file per id.
    #[arg(long, default_value = paths::SECRETS_DIR)]
    secrets: PathBuf,
    /// Directory with the private keys of steps' ssh agents, one file per id.
    #[arg(long, default_value = paths::SSH_DIR)]
    ssh: PathBuf,
    /// Where the container that checks git repositories out listens, if there is one.
    #[arg(long, default_value = paths::GIT_SOCKET)]
    git: PathBuf,
    /// Directory for what survives a restart.
    #[arg(long, default_value = paths::STATE_DIR)]
    state: PathBuf,
    /// Where the report goes.
    #[arg(long, default_value = paths::TERMINATION_LOG)]
    report: PathBuf,
}

/// What the program does beside builds.
#[derive(Debug, Subcommand)]
enum Other {
    /// Remove what a cache of steps keeps beyond an age or a size (the chart's CronJob).
    CacheGc {
        #[command(flatten)]
        gc: GcArgs,
        /// Directory with registry credentials, one directory per Secret.
        #[arg(long, default_value = paths::AUTH_DIR)]
        auth: PathBuf,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).init();
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(worker_threads = 2)]
async fn run(args: Args) -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    if let Some(Other::CacheGc { gc, auth }) = args.other {
        let credentials = Credentials::below(
            auth,
            paths::AUTH_FILE,
            "the Secret that the chart's cacheGC.authSecret names",
        );
        return gc_command::run(&gc, credentials, Vec::new()).await;
    }
    let bytes =
        std::fs::read(&args.request).with_context(|| format!("reading {}", args.request.display()))?;
    let request = BuildRequest::parse(&bytes).map_err(|text| anyhow!(text))?;
    let attempt = request.attempt.clone();
    let shutdown = CancellationToken::new();
    let mut term = signal(SignalKind::terminate())?;
    let token = shutdown.clone();
    let waiting = tokio::spawn(async move {
        term.recv().await;
        token.cancel();
    });
    let options = Options {
        request,
        socket: args.socket,
        credentials: Credentials::below(
            args.auth,
            paths::AUTH_FILE,
            "the imagePullSecrets of the build's service account",
        ),
        given: Given {
            secrets_dir: Some(args.secrets),
            ssh_dir: Some(args.ssh),
            git: Place::Container(args.git),
            ..Given::default()
        },
        ca_bundle: std::env::var_os("SSL_CERT_FILE").map(PathBuf::from),
        control: Some(args.control),
        state_dir: Some(args.state),
        report: Some(args.report.clone()),
        sink: Box::new(|line| {
            let mut out = std::io::stdout().lock();
            out.write_all(line.as_bytes())?;
            out.write_all(b"\n")?;
            out.flush()
        }),
    };
    let served = serve(options, shutdown).await;
    waiting.abort();
    if let Err(failure) = &served {
        // Nobody else can say why there is no courier.
        let outcome = Outcome::Failed(failure.clone());
        let report = Report { version: kiln_contract::VERSION, attempt, outcome };
        std::fs::write(&args.report, report.to_json()).context("writing the report")?;
    }
    served.map(drop).map_err(|failure| anyhow!("{failure}"))
}
