//! The figures: how they are computed, what they are held against, the table and the JSON. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::audit::Writes;

/// A distribution of times, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Times {
    /// How many.
    pub count: usize,
    /// Half of them took no longer.
    pub p50: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// None took longer.
    pub max: f64,
}

impl Times {
    /// Of these.
    pub fn of(times: impl IntoIterator<Item = Duration>) -> Self {
        let mut all: Vec<f64> = times.into_iter().map(|t| t.as_secs_f64()).collect();
        all.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (all.len() as f64 * share).ceil() as usize;
            all.get(rank.max(1) - 1).copied().unwrap_or_default()
        };
        Self { count: all.len(), p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

/// Jain's index of fairness: 1 where all have the same, 1/n where one has everything.
pub fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|x| x * x).sum();
    if squares == 0.0 { 1.0 } else { sum * sum / (shares.len() as f64 * squares) }
}

/// Where it was run.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// Cores.
    pub cores: usize,
    /// GiB of memory.
    pub memory: f64,
    /// Of the operating system.
    pub kernel: String,
    /// Load average over a minute, at the beginning and at the end.
    pub load: [f64; 2],
}

/// What the API server does without an operator.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ceiling {
    /// ImageBuilds created per second.
    pub image_builds: f64,
    /// Pods created per second.
    pub pods: f64,
}

/// The great run.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// ImageBuilds, and the namespaces that they are spread over.
    pub objects: usize,
    /// Namespaces.
    pub namespaces: usize,
    /// Creates per second that were asked for.
    pub rate: f64,
    /// Creates per second that were reached.
    pub reached: f64,
    /// Objects of the burst in the middle.
    pub burst: usize,
    /// Seconds that a build takes in its pod.
    pub takes: f64,
    /// From object to pod at the rate, outside the burst and its wake.
    pub paced: Times,
    /// In the burst.
    pub in_burst: Times,
    /// At the rate while pods of the burst were still missing.
    pub in_wake: Times,
    /// Writes to the API of each build, by the API server's audit log.
    pub writes: std::collections::BTreeMap<String, f64>,
    /// Those beside its pod and request.
    pub writes_beside: f64,
    /// Reconciles of each build.
    pub reconciles: f64,
    /// MiB of the operator at the end and at most.
    pub rss: [f64; 2],
    /// Its CPU, in milliseconds for each build.
    pub cpu_per_build: f64,
    /// Its CPU, in cores over the time of the run.
    pub cores: f64,
    /// From the first create to the last end, in seconds.
    pub seconds: f64,
}

/// A restart.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Restart {
    /// How the one before was ended.
    pub signal: String,
    /// Objects there were.
    pub objects: usize,
    /// Builds that ran.
    pub in_flight: usize,
    /// Seconds until it led and its caches were filled.
    pub ready: f64,
    /// Seconds until it had looked at every object.
    pub steady: f64,
    /// MiB that it held then.
    pub rss: f64,
}

/// The run with few places and unequal floods.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fairness {
    /// Builds that may run.
    pub places: usize,
    /// Builds of each namespace, the least and the most.
    pub backlog: [usize; 2],
    /// Pods that each namespace got while all had something waiting.
    pub grants: Vec<usize>,
    /// Of those.
    pub jain: f64,
}

/// All of it.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// When.
    pub date: String,
    /// Where.
    pub machine: Machine,
    /// Without an operator.
    pub ceiling: Ceiling,
    /// The great run.
    pub load: Load,
    /// Restarts.
    pub restarts: Vec<Restart>,
    /// Fairness.
    pub fairness: Fairness,
    /// Attempts with more than one pod, and objects with more than one attempt.
    pub duplicates: usize,
    /// Objects that did not become Ready with the image of their attempt.
    pub failed: usize,
    /// What it is held against.
    pub targets: Vec<Target>,
}

/// A figure that is to be reached.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    /// What.
    pub what: String,
    /// In words.
    pub wanted: String,
    /// In words.
    pub found: String,
    /// Whether it is.
    pub met: bool,
}

/// Sets what each build of a run has written.
pub fn per_build(load: &mut Load, writes: &Writes) {
    let each = |n: u64| n as f64 / load.objects.max(1) as f64;
    load.writes = writes.iter().map(|(what, n)| (what.clone(), each(*n))).collect();
    load.writes_beside = each(crate::audit::beside_pod_and_request(writes));
}

impl Figures {
    /// Holds the figures against the targets.
    pub fn judge(&mut self) {
        let target = |what: &str, wanted: String, found: String, met: bool| Target {
            what: what.to_owned(),
            wanted,
            found,
            met,
        };
        let load = &self.load;
        let steady = self.restarts.iter().map(|r| r.steady).fold(0.0, f64::max);
        self.targets = vec![
            target(
                &format!("object to pod at {} creates/s, p99", load.rate),
                "under 2 s".to_owned(),
                format!("{:.2} s", load.paced.p99),
                load.paced.count > 0 && load.paced.p99 < 2.0,
            ),
            target(
                "API writes of a build beside pod and request",
                "at most 8".to_owned(),
                format!("{:.1}", load.writes_beside),
                load.writes_beside <= 8.0,
            ),
            target(
                "memory of the operator",
                "under 200 MiB".to_owned(),
                format!("{:.0} MiB", load.rss[1]),
                load.rss[1] < 200.0,
            ),
            target("duplicate pods", "none".to_owned(), self.duplicates.to_string(), self.duplicates == 0),
            target(
                "builds that did not end well",
                "none".to_owned(),
                self.failed.to_string(),
                self.failed == 0,
            ),
            target(
                "restart to steady",
                "under 30 s".to_owned(),
                format!("{steady:.1} s"),
                !self.restarts.is_empty() && steady < 30.0,
            ),
            target(
                "Jain's index, unequal floods",
                "at least 0.95".to_owned(),
                format!("{:.3}", self.fairness.jain),
                self.fairness.jain >= 0.95,
            ),
        ];
    }

    /// Whether every target is met.
    pub fn is_met(&self) -> bool {
        self.targets.iter().all(|t| t.met)
    }

    /// As Markdown.
    pub fn table(&self) -> String {
        let (load, machine) = (&self.load, &self.machine);
        let mut text = String::new();
        let mut row = |what: &str, found: String| {
            // A String takes whatever is written.
            let _ = writeln!(text, "| {what} | {found} |");
        };
        row("figure", "found".to_owned());
        row("---", "---".to_owned());
        row("date", self.date.clone());
        let m = machine;
        row("machine", format!("{} cores, {:.0} GiB, Linux {}", m.cores, m.memory, m.kernel));
        row("load of the machine before and after", format!("{:.1}, {:.1}", m.load[0], m.load[1]));
        row(
            "API server alone: ImageBuilds, pods created per second",
            format!("{:.0}, {:.0}", self.ceiling.image_builds, self.ceiling.pods),
        );
        row("ImageBuilds, namespaces", format!("{}, {}", load.objects, load.namespaces));
        row(
            "creates per second asked for, reached; burst",
            format!("{}, {:.1}; {}", load.rate, load.reached, load.burst),
        );
        row("a build takes", format!("{} s", load.takes));
        let times = |t: &Times| format!("{:.2} s, {:.2} s, {:.2} s ({})", t.p50, t.p99, t.max, t.count);
        row("object to pod at the rate: p50, p99, max", times(&load.paced));
        row("object to pod in the burst", times(&load.in_burst));
        row("object to pod at the rate, in the burst's wake", times(&load.in_wake));
        row("first create to last end", format!("{:.0} s", load.seconds));
        row("API writes of a build beside pod and request", format!("{:.2}", load.writes_beside));
        for (what, n) in load.writes.iter().filter(|(_, n)| **n >= 0.005) {
            row(&format!("— {what}"), format!("{n:.2}"));
        }
        row("reconciles of a build", format!("{:.1}", load.reconciles));
        row(
            "operator: memory at the end, at most",
            format!("{:.0} MiB, {:.0} MiB", load.rss[0], load.rss[1]),
        );
        row("operator: CPU", format!("{:.0} ms a build, {:.2} cores", load.cpu_per_build, load.cores));
        for r in &self.restarts {
            row(
                &format!(
                    "restart after SIG{} with {} objects, {} running: ready, steady",
                    r.signal, r.objects, r.in_flight
                ),
                format!("{:.1} s, {:.1} s ({:.0} MiB)", r.ready, r.steady, r.rss),
            );
        }
        let f = &self.fairness;
        row(
            &format!(
                "{} places, {} namespaces with {} to {} builds: Jain's index",
                f.places,
                f.grants.len(),
                f.backlog[0],
                f.backlog[1]
            ),
            format!(
                "{:.3} ({} to {} pods each)",
                f.jain,
                f.grants.iter().min().unwrap_or(&0),
                f.grants.iter().max().unwrap_or(&0)
            ),
        );
        row("duplicate pods", self.duplicates.to_string());
        row("builds that did not end well", self.failed.to_string());
        text.push_str("\n| target | wanted | found | |\n| --- | --- | --- | --- |\n");
        for t in &self.targets {
            let met = if t.met { "met" } else { "NOT MET" };
            let _ = writeln!(text, "| {} | {} | {} | {met} |", t.what, t.wanted, t.found);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_fairness_are_those_of_the_book() {
        let times = Times::of((1..=200).map(Duration::from_secs));
        assert_eq!(times, Times { count: 200, p50: 100.0, p99: 198.0, max: 200.0 });
        assert_eq!(Times::of([]), Times::default());
        assert!((jain(&[5.0; 7]) - 1.0).abs() < 1e-9);
        assert!((jain(&[1.0, 0.0, 0.0, 0.0]) - 0.25).abs() < 1e-9);
    }

    #[test]
    fn what_was_not_measured_is_no_success() {
        let mut figures = Figures::default();
        figures.judge();
        assert!(!figures.is_met());
        let open: Vec<&str> = figures.targets.iter().filter(|t| !t.met).map(|t| t.what.as_str()).collect();
        assert!(open.contains(&"restart to steady") && open.len() == 3, "{open:?}");
    }

    #[test]
    fn each_target_is_seen_to_fail() {
        let mut good = Figures::default();
        good.load.objects = 10;
        good.load.paced = Times { count: 10, p50: 0.1, p99: 1.9, max: 3.0 };
        good.restarts = vec![Restart { steady: 29.0, ..Restart::default() }];
        good.fairness.jain = 0.99;
        good.judge();
        assert!(good.is_met(), "{:?}", good.targets);
        assert!(good.table().lines().all(|l| l.is_empty() || l.starts_with('|')));
        let worse: [fn(&mut Figures); 7] = [
            |f| f.load.paced.p99 = 2.0,
            |f| f.load.writes_beside = 8.1,
            |f| f.load.rss[1] = 200.0,
            |f| f.duplicates = 1,
            |f| f.failed = 1,
            |f| f.restarts[0].steady = 30.0,
            |f| f.fairness.jain = 0.94,
        ];
        for (at, worsen) in worse.iter().enumerate() {
            let mut figures = good.clone();
            worsen(&mut figures);
            figures.judge();
            let met: Vec<bool> = figures.targets.iter().map(|t| t.met).collect();
            assert_eq!(met.iter().position(|m| !m), Some(at));
        }
    }
}
