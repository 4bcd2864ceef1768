//! A builder that is killed leaves no process behind.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};
use kiln_builder::engine::{Engine as _, Output, Owner, Step, Stop, User, View};
use kiln_builder::helper::{LocalEngine, Options};
use kiln_contract::request::Isolation;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags};

use crate::image;

const VICTIM: &str = "__victim";

/// How long the kernel may take on a busy machine.
const PATIENCE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

struct Stdout;

impl Output for Stdout {
    fn write(&mut self, bytes: &[u8]) {
        let _ = std::io::stdout().write_all(bytes);
        let _ = std::io::stdout().flush();
    }
}

/// The builder that will be killed, if this program was started as that.
pub fn victim(arguments: &[String]) -> Option<ExitCode> {
    if arguments.get(1)? != VICTIM {
        return None;
    }
    let place = Path::new(arguments.get(2)?);
    let engine = LocalEngine::start(place, Isolation::HostRange, Options::default()).unwrap();
    image::write(&place.join("trees/b0"), engine.ids()).unwrap();
    let step = Step {
        view: View { lowers: vec!["b0".into()], upper: "s0".into() },
        argv: ["sh", "-c", "sleep 31339 & echo ready; sleep 31339"].map(str::to_owned).to_vec(),
        script: None,
        env: vec!["PATH=/bin".into()],
        cwd: "/".into(),
        user: User { owner: Owner { uid: 1000, gid: 1000 }, groups: vec![], home: "/".into() },
        network: true,
        mounts: vec![],
    };
    let result = engine.run(&step, &mut Stdout, &Stop::default());
    println!("{result:?}");
    Some(ExitCode::FAILURE)
}

/// Starts a victim, kills it in the middle of a step, and waits for everything that it started to end.
pub fn run(place: &Path) -> Result<()> {
    std::fs::create_dir(place)?;
    let mut child = Command::new("/proc/self/exe")
        .args([VICTIM, place.to_str().context("a path of text")?])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
    ensure!(line == "ready\n", "{line:?}");
    let sleeping = sleeping()?;
    ensure!(sleeping.len() >= 2, "two processes sleep");
    child.kill()?;
    child.wait()?;
    for process in sleeping {
        let count = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&PATIENCE))?;
        ensure!(count == 1, "a process of the step outlived its builder");
    }
    // The helper has the victim's standard error; when it is gone too, the pipe ends.
    let mut rest = String::new();
    child.stderr.take().context("no stderr")?.read_to_string(&mut rest)?;
    ensure!(rest.is_empty(), "{rest}");
    Ok(())
}

fn sleeping() -> Result<Vec<std::os::fd::OwnedFd>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.windows(5).any(|part| part == b"31339") && line.starts_with(b"s") {
            found.push(rustix::process::pidfd_open(pid, PidfdFlags::empty())?);
        }
    }
    Ok(found)
}
