//! `kiln build` of stages that don't need one another: they run at the same time, and nobody can tell by the image.
//!
//! Needs root, `/bin/busybox` (package busybox-static) and two cores; says so and passes where they are missing.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

const BUSYBOX: &str = "/bin/busybox";
const BASE: &str = "FROM scratch AS base\nENV PATH=/bin\nCOPY sh sleep cat rm /bin/\n";
const MERGE: &str =
    "FROM base\nCOPY --from=a /out /a\nCOPY --from=b /out /b\nRUN cat /a /b > /both && cat /both\n";

/// Waits in a step for a file, 20 s at most.
fn wait(file: &str) -> String {
    format!("n=0; until [ -e {file} ]; do n=$((n+1)); [ $n -lt 400 ] || exit 9; sleep 0.05; done")
}

struct Site(tempfile::TempDir);

impl Site {
    fn new(stages: &str) -> Result<Option<Self>> {
        use std::os::unix::fs::MetadataExt as _;
        // The owner of a process is the owner of its directory.
        let root = std::fs::metadata("/proc/self")?.uid() == 0;
        if !root || !Path::new(BUSYBOX).exists() || std::thread::available_parallelism()?.get() < 2 {
            println!("not run: it needs root, two cores and {BUSYBOX}");
            return Ok(None);
        }
        let dir = tempfile::tempdir()?;
        for applet in ["sh", "sleep", "cat", "rm"] {
            std::fs::copy(BUSYBOX, dir.path().join(applet))?;
        }
        std::fs::write(dir.path().join("Dockerfile"), format!("{BASE}{stages}{MERGE}"))?;
        Ok(Some(Self(dir)))
    }

    fn build(&self, launcher: &[&str], out: &Path) -> Result<Output> {
        let mut words = launcher.to_vec();
        words.push(env!("CARGO_BIN_EXE_kiln"));
        let to = format!("type=oci-layout,dest={}", out.display());
        Command::new(words[0])
            .args(&words[1..])
            .args(["build", "--build-arg", "SOURCE_DATE_EPOCH=1700000000", "-o", &to])
            .arg(self.0.path())
            .output()
            .context("running kiln")
    }
}

fn log(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn digest(out: &Path) -> Result<String> {
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("index.json"))?)?;
    Ok(index["manifests"][0]["digest"].as_str().context("a digest")?.to_owned())
}

/// Numbers of the steps that a log tells of.
fn numbers(log: &str) -> Vec<u32> {
    let number = |line: &str| line.strip_prefix("Step ")?.split_once('/')?.0.parse().ok();
    log.lines().filter_map(number).collect()
}

#[test]
fn stages_run_at_the_same_time_and_are_told_of_one_after_another() -> Result<()> {
    let stage = |name: &str, other: &str| {
        let wait = wait(&format!("/c/{other}"));
        format!(
            "FROM base AS {name}\nRUN --mount=type=cache,target=/c : > /c/{name}; {wait}; echo {name} met {other}; echo {name} > /out\n"
        )
    };
    let Some(site) = Site::new(&(stage("a", "b") + &stage("b", "a")))? else { return Ok(()) };
    let out = tempfile::tempdir()?;
    let output = site.build(&[], &out.path().join("image"))?;
    let log = log(&output);
    ensure!(output.status.success(), "{log}");
    ensure!(numbers(&log) == (1..=11).collect::<Vec<_>>(), "{log}");
    let place =
        |text: &str| log.lines().position(|line| line == text).with_context(|| format!("{text}: {log}"));
    let step = |number: u32| {
        let line = log.lines().position(|line| line.starts_with(&format!("Step {number}/11 : ")));
        line.with_context(|| format!("step {number}: {log}"))
    };
    let (a, b) = (place("a met b")?, place("b met a")?);
    ensure!((step(5)?..step(6)?).contains(&a) && (step(7)?..step(8)?).contains(&b), "{log}");
    ensure!(!log.contains("goes on"), "{log}");
    Ok(())
}

#[test]
fn a_locked_cache_is_had_by_one_and_the_image_is_that_of_one_core() -> Result<()> {
    let stage = |name: &str| {
        format!(
            "FROM base AS {name}\nRUN --mount=type=cache,target=/c,sharing=locked [ ! -e /c/in ] || exit 8; : > /c/in; sleep 1; rm /c/in; echo {name} > /out\n"
        )
    };
    let Some(site) = Site::new(&(stage("a") + &stage("b")))? else { return Ok(()) };
    let out = tempfile::tempdir()?;
    let (all, one) = (out.path().join("all"), out.path().join("one"));
    let output = site.build(&[], &all)?;
    ensure!(output.status.success(), "{}", log(&output));
    if !Path::new("/usr/bin/taskset").exists() {
        println!("not compared with one core: there is no taskset");
        return Ok(());
    }
    let alone = site.build(&["/usr/bin/taskset", "-c", "0"], &one)?;
    ensure!(alone.status.success(), "{}", log(&alone));
    ensure!(digest(&all)? == digest(&one)?, "another image");
    Ok(())
}

#[test]
fn a_failure_stops_what_runs_beside_it() -> Result<()> {
    let a = format!("FROM base AS a\nRUN --mount=type=cache,target=/c {}; exit 7\n", wait("/c/b"));
    let b = "FROM base AS b\nRUN --mount=type=cache,target=/c echo begun; : > /c/b; sleep 300\n";
    let Some(site) = Site::new(&(a + b))? else { return Ok(()) };
    let out = tempfile::tempdir()?;
    let since = Instant::now();
    let output = site.build(&[], &out.path().join("image"))?;
    let log = log(&output);
    ensure!(!output.status.success() && since.elapsed() < Duration::from_secs(60), "{log}");
    ensure!(log.contains("begun\n ---> Stopped: another step failed\n"), "{log}");
    ensure!(log.contains("Dockerfile:5: ") && log.contains("returned a non-zero code: 7"), "{log}");
    ensure!(!log.contains("Dockerfile:7: "), "{log}");
    Ok(())
}
