//! The operator's program: settings, API, lease, controller; ends on SIGTERM with its work done and the lease given up.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use kiln_operator::admin::{Admin, Liveness, Readiness};
use kiln_operator::args::Args;
use kiln_operator::clock::{Clock, ClockLayer};
use kiln_operator::config::Config;
use kiln_operator::controller::{self, Signs};
use kiln_operator::image_build::context::Context;
use kiln_operator::image_build::events::Publisher;
use kiln_operator::lease::{Elector, End, unique_identity};
use kiln_operator::metrics::Metrics;
use kiln_operator::telemetry;
use kiln_operator::traces::Traces;
use kube::client::ClientBuilder;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let args = Args::parse();
    telemetry::init();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Also for eyes: the first thing that somebody sees of a wrong setting.
            eprintln!("kiln-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(args: &Args) -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Config::load(&args.config)?;
    let clock = Clock::default();
    let kube = kube::Config::infer().await.context("no way to the API server")?;
    let client = ClientBuilder::try_from(kube).context("no way to the API server")?;
    let client = client.with_layer(&ClockLayer(clock.clone())).build();
    let version = client.apiserver_version().await.context("the API server does not answer")?;
    tracing::info!(kubernetes = version.git_version, builder = config.builder_image, "starting");

    let traces =
        Traces::from_environment().context("the settings of the OTLP exporter (OTEL_EXPORTER_OTLP_*)")?;
    if traces.is_some() {
        tracing::info!("traces of runs are sent to the OTLP endpoint");
    }
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let asked = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to end; what is under way is finished");
        asked.cancel();
    });

    let (liveness, readiness) = (Liveness::default(), Readiness::default());
    let metrics = Arc::new(Metrics::new());
    let admin = Admin { liveness: liveness.clone(), readiness: readiness.clone(), metrics: metrics.clone() };
    let listener = TcpListener::bind(args.admin_address)
        .await
        .with_context(|| format!("can't listen on {} (--admin-address)", args.admin_address))?;
    let served = CancellationToken::new();
    let serving = tokio::spawn(admin.serve(listener, served.clone()));

    // A standby is as ready as it can be.
    readiness.set(true);
    let elector = Elector::new(client.clone(), &args.namespace, unique_identity(&args.identity));
    let standby = standby_beats(liveness.clone());
    let leadership = tokio::select! {
        leadership = elector.acquire(&shutdown) => leadership,
        () = standby => None,
    };
    let Some(leadership) = leadership else { return Ok(()) };
    readiness.set(false);
    metrics.set_leader(true);

    let (wake, wakes) = mpsc::unbounded_channel();
    let events = Publisher::new(client.clone(), &args.identity);
    let mut ctx = Context::new(client, clock, config, leadership.clone(), metrics.clone(), events, wake);
    ctx.traces = traces.unwrap_or_default();
    let ctx = Arc::new(ctx);
    let done = CancellationToken::new();
    let controlling = controller::run(ctx, wakes, Signs { liveness, readiness }, shutdown);
    let end = tokio::select! {
        end = leadership.keep(&done) => end,
        () = controlling => End::Stopped,
    };
    metrics.set_leader(false);
    if end == End::Lost {
        // Nothing may be written any more; a fresh process waits for its turn.
        bail!("the lease was lost to another instance or could not be renewed");
    }
    if let Err(error) = leadership.release().await {
        tracing::warn!(%error, "the lease could not be given up; a successor waits until it has expired");
    }
    served.cancel();
    let _ = serving.await;
    Ok(())
}

/// A standby has no controller that could beat for it.
async fn standby_beats(liveness: Liveness) {
    let mut tick = tokio::time::interval(std::time::Duration::from_secs(5));
    loop {
        tick.tick().await;
        liveness.touch();
    }
}
