//! The program of the containers `source` and, with `--serve-git`, `git`: paths are those of the builder pod, flags are for tests.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use clap::Parser;
use kiln_contract::journal::Event;
use kiln_contract::request::BuildRequest;
use kiln_contract::{Failure, FailureClass, paths, reason};
use kiln_source::limits::MAX_SECONDS;
use kiln_source::{Courier, Places, Secrets, fetch};

/// Fetches a build's source, or serves checkouts of git repositories to the courier.
#[derive(Debug, Parser)]
#[command(name = "kiln-source", version)]
struct Args {
    /// The build request.
    #[arg(long, default_value = paths::REQUEST)]
    request: PathBuf,
    /// Where the courier listens.
    #[arg(long, default_value = paths::SOCKET)]
    socket: PathBuf,
    /// Directory with the source's credentials, a file per key.
    #[arg(long, default_value = paths::SOURCE_AUTH_DIR)]
    auth: PathBuf,
    /// Where the files go.
    #[arg(long, default_value = paths::CONTEXT_TREE)]
    tree: PathBuf,
    /// Where the seconds go that it took.
    #[arg(long, default_value = paths::FETCH_SECONDS)]
    seconds: PathBuf,
    /// For what is needed only while fetching.
    #[arg(long, default_value = paths::FETCH_DIR)]
    work: PathBuf,
    /// Check git repositories out for the courier, until told to end.
    #[arg(long)]
    serve_git: bool,
    /// Where to listen for the courier then.
    #[arg(long, default_value = paths::GIT_SOCKET)]
    git_socket: PathBuf,
    /// Where to work then.
    #[arg(long, default_value = paths::GIT_WORK_DIR)]
    git_work: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // The build is another user.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // As process 1 it has no default action for SIGTERM.
    if let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::spawn(async move {
            terminate.recv().await;
            std::process::exit(143);
        });
    }
    let args = Args::parse();
    let done = tokio::task::spawn_blocking(move || run(&args)).await;
    match done.map_err(|e| anyhow!("{e}")).and_then(|result| result) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if args.serve_git {
        return kiln_git::added::serve(&args.git_socket, &args.git_work)
            .with_context(|| format!("listening at {}", args.git_socket.display()));
    }
    let began = Instant::now();
    let courier = Courier::new(&args.socket);
    let told = |failure: Failure| -> Result<()> {
        courier.fail(failure.clone()).context("the failure could not be reported")?;
        Err(anyhow!("{failure}"))
    };
    let internal = |text: String| Failure::new(FailureClass::Infrastructure, reason::INTERNAL, text);
    let bytes = match std::fs::read(&args.request) {
        Ok(bytes) => bytes,
        Err(e) => return told(internal(format!("reading {}: {e}", args.request.display()))),
    };
    let request = match BuildRequest::parse(&bytes) {
        Ok(request) => request,
        Err(text) => return told(internal(text)),
    };
    guard(&courier, request.timeout_seconds);
    let network = request.policy.network.clone();
    let places = Places { tree: args.tree.clone(), work: args.work.join("work"), network };
    let fetched = Secrets::read(&args.auth)
        .and_then(|secrets| fetch(&request.source, &request.platform, &secrets, &places, &courier));
    match fetched {
        Ok(source) => {
            std::fs::write(&args.seconds, began.elapsed().as_secs().to_string())
                .with_context(|| format!("writing {}", args.seconds.display()))?;
            courier.event(Event::SourceFetched { source }).context("telling the courier")
        }
        Err(fault) => told(fault.failure()),
    }
}

/// Ends the program when its time is over, or when the attempt is no longer wanted. What it has started ends with it.
fn guard(courier: &Courier, timeout: u64) {
    let (limit, failure) = if timeout > 0 && timeout <= MAX_SECONDS {
        let text = "the source could not be fetched within the build's timeout; raise spec.timeout";
        (timeout, Failure::new(FailureClass::Timeout, reason::TIMED_OUT, text))
    } else {
        let text = format!("the source could not be fetched within {MAX_SECONDS} seconds");
        (MAX_SECONDS, Failure::new(FailureClass::Source, reason::SOURCE_UNAVAILABLE, text))
    };
    let late = courier.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(limit));
        let _ = late.fail(failure);
        std::process::exit(1);
    });
    let unwanted = courier.clone();
    std::thread::spawn(move || {
        // A courier that is gone ends the pod.
        if let Ok(reason) = unwanted.watch() {
            eprintln!("told to stop: {reason}");
            std::process::exit(1);
        }
    });
}
