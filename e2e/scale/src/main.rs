//! `make scale`: the operator's own program at ten thousand ImageBuilds, on a real API server, with nodes that kwok plays and
//! builder pods that this plays. Prints a table, writes JSON, and fails where a target is missed.

mod audit;
mod fleet;
mod load;
mod logs;
mod operator;
mod report;
mod story;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use kiln_api::ImageBuild;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};

use fleet::{Fleet, Key};
use load::until;
use operator::{Metrics, Operator, Setup};
use report::{Ceiling, Fairness, Figures, Load, Machine, Restart, Times};

#[derive(Debug, clap::Parser)]
struct Args {
    /// The operator's program.
    #[arg(long)]
    operator: PathBuf,
    /// Its settings, without maxConcurrentBuilds.
    #[arg(long)]
    config: PathBuf,
    /// A kubeconfig with the rights that the chart gives it.
    #[arg(long)]
    operator_kubeconfig: PathBuf,
    /// The API server's audit log, with the operator's writes.
    #[arg(long)]
    audit: PathBuf,
    /// Where kubelets' logs are served.
    #[arg(long)]
    logs_address: SocketAddr,
    /// Certificate and key for that.
    #[arg(long, num_args = 2)]
    tls: Vec<PathBuf>,
    /// Where figures and logs go.
    #[arg(long)]
    folder: PathBuf,
    /// ImageBuilds.
    #[arg(long, default_value_t = 10_000)]
    builds: usize,
    /// Namespaces that they are spread over.
    #[arg(long, default_value_t = 200)]
    namespaces: usize,
    /// Creates per second.
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// Of them, those that come at once, in the middle.
    #[arg(long, default_value_t = 1000)]
    burst: usize,
    /// Seconds that a build takes in its pod.
    #[arg(long, default_value_t = 10.0)]
    takes: f64,
    /// Builds that run when the operator is restarted.
    #[arg(long, default_value_t = 200)]
    in_flight: usize,
    /// Objects with which the API server's ceiling is measured.
    #[arg(long, default_value_t = 2000)]
    ceiling: usize,
}

/// Everything that the parts need.
struct Run {
    args: Args,
    client: Client,
    fleet: Arc<Fleet>,
    setup: Setup,
    /// Operators started so far.
    started: usize,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("scale: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(args: Args) -> Result<bool> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_default().await.context("no cluster: run this through scripts/scale")?;
    let fleet = Fleet::new(client.clone(), Duration::from_secs_f64(args.takes));
    logs::serve(fleet.clone(), args.logs_address, &args.tls[0], &args.tls[1]).await?;
    let playing = tokio::spawn(fleet.clone().play());
    let setup = Setup {
        program: args.operator.clone(),
        config: std::fs::read_to_string(&args.config).with_context(|| args.config.display().to_string())?,
        folder: args.folder.clone(),
        kubeconfig: args.operator_kubeconfig.clone(),
    };
    let mut run = Run { args, client, fleet, setup, started: 0 };
    let before = load_average()?;

    say("nodes");
    load::nodes(&run.client).await?;
    let names: Vec<String> = (0..run.args.namespaces).map(|n| format!("scale-{n}")).collect();
    load::namespaces(&run.client, &names).await?;
    say("the API server alone");
    let (image_builds, pods) = load::ceiling(&run.client, run.args.ceiling).await?;
    say(&format!("it takes {image_builds:.0} ImageBuilds and {pods:.0} pods per second"));

    let mut figures = Figures {
        date: jiff::Zoned::now().date().to_string(),
        ceiling: Ceiling { image_builds, pods },
        ..Figures::default()
    };
    let operator = run.start(0).await?;
    figures.load = run.load(&operator, &names).await?;
    let mut operator = operator;
    for signal in ["TERM", "KILL"] {
        let (next, restart) = run.restart(operator, signal, &names).await?;
        figures.restarts.push(restart);
        operator = next;
    }
    operator.end("TERM").await?;
    figures.fairness = run.fairness().await?;
    (figures.duplicates, figures.failed) = run.verify().await?;
    figures.machine = machine([before, load_average()?])?;
    playing.abort();

    figures.judge();
    let path = run.args.folder.join("scale.json");
    std::fs::write(&path, serde_json::to_string_pretty(&figures)? + "\n")?;
    println!("\n{}\nfigures: {}", figures.table(), path.display());
    Ok(figures.is_met())
}

fn say(what: &str) {
    println!("{} {what}", jiff::Zoned::now().strftime("%H:%M:%S"));
}

impl Run {
    /// Starts an operator with so many places, and waits until it leads and its caches are filled.
    async fn start(&mut self, places: usize) -> Result<Operator> {
        self.started += 1;
        let operator = Operator::start(&self.setup, self.started, places)?;
        until(180, "the operator to be ready", async || {
            operator.usage()?;
            Ok(operator.is_ready().await.then_some(()))
        })
        .await?;
        Ok(operator)
    }

    fn keys(names: &[String], prefix: &str, count: usize) -> Vec<Key> {
        (0..count).map(|n| (names[n % names.len()].clone(), format!("{prefix}-{n}"))).collect()
    }

    /// Waits until the pods of all of these have ended and the operator has said so.
    async fn ended(&self, keys: &[Key], seconds: u64) -> Result<()> {
        let mut shown = Instant::now();
        until(seconds, "all builds to end", async || {
            let ended = {
                let seen = self.fleet.seen();
                keys.iter().filter(|k| seen.ended.contains_key(*k)).count()
            };
            if shown.elapsed() > Duration::from_secs(10) {
                say(&format!("{ended} of {} pods have ended", keys.len()));
                shown = Instant::now();
            }
            if ended < keys.len() {
                return Ok(None);
            }
            let metrics = Metrics::read().await?;
            let open = ["pending", "queued", "building"].map(|state| format!("phase=\"{state}\""));
            let open: f64 = open.iter().map(|state| metrics.sum("kiln_builds", &[state])).sum();
            Ok((open == 0.0).then_some(()))
        })
        .await
    }

    /// The great run.
    async fn load(&self, operator: &Operator, names: &[String]) -> Result<Load> {
        let args = &self.args;
        let keys = Self::keys(names, "build", args.builds);
        let half = (args.builds - args.burst) / 2;
        let (first, rest) = keys.split_at(half);
        let (burst, second) = rest.split_at(args.burst);
        let writes = audit::writes(&self.args.audit)?;
        let (metrics, usage) = (Metrics::read().await?, operator.usage()?);
        let began = Instant::now();
        say(&format!("{} ImageBuilds at {} per second", first.len(), args.rate));
        let mut asked = load::create(&self.client, first, Some(args.rate)).await?;
        let paced = began.elapsed();
        say(&format!("{} ImageBuilds at once", burst.len()));
        let of_burst = load::create(&self.client, burst, None).await?;
        say(&format!("{} ImageBuilds at {} per second", second.len(), args.rate));
        let again = Instant::now();
        asked.extend(load::create(&self.client, second, Some(args.rate)).await?);
        let paced = paced + again.elapsed();
        self.ended(&keys, 1800).await?;
        let seconds = began.elapsed().as_secs_f64();
        let (usage_after, after) = (operator.usage()?, Metrics::read().await?);

        let seen = self.fleet.seen();
        let took = |asked: &HashMap<Key, Instant>, wanted: &dyn Fn(&Instant) -> bool| {
            let times = asked.iter().filter(|(_, at)| wanted(at));
            Times::of(times.filter_map(|(key, at)| Some(seen.first.get(key)?.duration_since(*at))))
        };
        let burst_began = of_burst.values().min().copied();
        let burst_over = burst.iter().filter_map(|key| seen.first.get(key)).max().copied();
        let in_wake = |at: &Instant| {
            burst_began.is_some_and(|from| *at >= from) && burst_over.is_some_and(|to| *at <= to)
        };
        let mut load = Load {
            objects: args.builds,
            namespaces: args.namespaces,
            rate: args.rate,
            reached: (first.len() + second.len()) as f64 / paced.as_secs_f64(),
            burst: args.burst,
            takes: args.takes,
            paced: took(&asked, &|at| !in_wake(at)),
            in_burst: took(&of_burst, &|_| true),
            in_wake: took(&asked, &in_wake),
            rss: [usage_after.rss, usage_after.peak],
            cpu_per_build: (usage_after.cpu - usage.cpu) * 1000.0 / args.builds as f64,
            cores: (usage_after.cpu - usage.cpu) / seconds,
            reconciles: (after.sum("kiln_reconciles_total", &[]) - metrics.sum("kiln_reconciles_total", &[]))
                / args.builds as f64,
            seconds,
            ..Load::default()
        };
        report::per_build(&mut load, &audit::since(&writes, &audit::writes(&self.args.audit)?));
        Ok(load)
    }

    /// Ends the operator while builds run, and starts another.
    async fn restart(
        &mut self,
        operator: Operator,
        signal: &str,
        names: &[String],
    ) -> Result<(Operator, Restart)> {
        say(&format!("restart after SIG{signal}"));
        let keys = Self::keys(names, &format!("restart-{}", signal.to_lowercase()), self.args.in_flight);
        load::create(&self.client, &keys, None).await?;
        until(300, "pods of the builds that are to run meanwhile", async || {
            let seen = self.fleet.seen();
            Ok(keys.iter().all(|k| seen.first.contains_key(k)).then_some(()))
        })
        .await?;
        let objects = self.list().await?.len();
        operator.end(signal).await?;
        let next = self.start(0).await?;
        let ready = next.since.elapsed().as_secs_f64();
        until(180, "the operator to have looked at every object", async || {
            let metrics = Metrics::read().await?;
            Ok((metrics.sum("kiln_reconciles_total", &["result=\"ok\""]) >= objects as f64).then_some(()))
        })
        .await?;
        let steady = next.since.elapsed().as_secs_f64();
        let restart = Restart {
            signal: signal.to_owned(),
            objects,
            in_flight: keys.len(),
            ready,
            steady,
            rss: next.usage()?.rss,
        };
        self.ended(&keys, 600).await?;
        Ok((next, restart))
    }

    /// Few places, and namespaces with very different floods; the greatest comes first.
    async fn fairness(&mut self) -> Result<Fairness> {
        const NAMESPACES: usize = 10;
        const PLACES: usize = 20;
        self.fleet.set_takes(Duration::from_secs(2));
        let operator = self.start(PLACES).await?;
        let names: Vec<String> = (0..NAMESPACES).map(|n| format!("fair-{n}")).collect();
        load::namespaces(&self.client, &names).await?;
        say(&format!("{PLACES} places for {NAMESPACES} namespaces"));
        let backlog: Vec<usize> = (0..NAMESPACES).map(|n| 12 * (NAMESPACES - n)).collect();
        let keys = |n: usize| Self::keys(&names[n..=n], "flood", backlog[n]);
        let mut all = Vec::new();
        for n in 0..NAMESPACES {
            load::create(&self.client, &keys(n), None).await?;
            all.extend(keys(n));
        }
        let from = Instant::now();
        self.ended(&all, 1800).await?;
        operator.end("TERM").await?;
        let seen = self.fleet.seen();
        let when = |n: usize| {
            let mut all: Vec<Instant> = keys(n).iter().filter_map(|k| seen.first.get(k).copied()).collect();
            all.sort();
            all
        };
        // Until the first namespace has nothing waiting any more.
        let until = (0..NAMESPACES).filter_map(|n| when(n).last().copied()).min().context("no pods")?;
        let grants: Vec<usize> = (0..NAMESPACES)
            .map(|n| when(n).iter().filter(|at| **at >= from && **at <= until).count())
            .collect();
        let shares: Vec<f64> = grants.iter().map(|n| *n as f64).collect();
        let (least, most) = (backlog.iter().min(), backlog.iter().max());
        Ok(Fairness {
            places: PLACES,
            backlog: [*least.unwrap_or(&0), *most.unwrap_or(&0)],
            grants,
            jain: report::jain(&shares),
        })
    }

    async fn list(&self) -> Result<Vec<ImageBuild>> {
        let builds: Api<ImageBuild> = Api::all(self.client.clone());
        let mut all = Vec::new();
        let mut next = None;
        loop {
            let params = ListParams { limit: Some(500), continue_token: next, ..ListParams::default() };
            let page = builds.list(&params).await?;
            all.extend(page.items);
            next = page.metadata.continue_.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(all);
            }
        }
    }

    /// Duplicates, and builds that did not end well.
    async fn verify(&self) -> Result<(usize, usize)> {
        say("verifying");
        let seen = self.fleet.seen().attempts.clone();
        let mut duplicates = seen.values().filter(|pods| pods.len() > 1).count();
        let mut bad: BTreeMap<String, String> = BTreeMap::new();
        for build in self.list().await? {
            let name = format!("{}/{}", build.namespace().unwrap_or_default(), build.name_any());
            let Some(status) = &build.status else {
                bad.insert(name, "it has no status".to_owned());
                continue;
            };
            duplicates += usize::from(status.attempts.len() > 1 || status.run != Some(1));
            let attempt = format!("{}-1-1", build.uid().unwrap_or_default());
            let wanted = story::Story::of(&attempt, "", Duration::ZERO).image.digest;
            let ready = status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
            let digest = status.image.as_ref().map(|i| i.digest.as_str());
            let steps = status.steps.iter().filter(|s| s.finished_at.is_some()).count();
            if !ready || digest != Some(wanted.as_str()) || steps != story::STEPS as usize {
                bad.insert(name, format!("ready {ready}, digest {digest:?}, {steps} steps done"));
            }
        }
        for (name, why) in bad.iter().take(5) {
            say(&format!("{name}: {why}"));
        }
        for fault in self.fleet.seen().faults.iter().take(5) {
            say(fault);
        }
        Ok((duplicates, bad.len()))
    }
}

fn load_average() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    text.split(' ').next().and_then(|n| n.parse().ok()).context("/proc/loadavg")
}

fn machine(load: [f64; 2]) -> Result<Machine> {
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let kib =
        memory.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok()).context("/proc/meminfo")?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let cores = std::thread::available_parallelism()?.get();
    Ok(Machine { cores, memory: kib / (1024.0 * 1024.0), kernel, load })
}
