//! Runs a program to its end: what it writes is bounded, what it keeps on disk, too.

use std::collections::VecDeque;
use std::io::{self, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::limits::MAX_WORK;

/// Bytes of output that are kept: the sizes of [`crate::limits::MAX_FILES`] files, a line each.
const MAX_OUTPUT: u64 = 16 << 20;
/// Bytes of what it complains of that are kept, from the end.
const MAX_WORDS: usize = 8 << 10;
/// How often it is looked whether it has ended.
const TICK: Duration = Duration::from_millis(10);
/// How often its files are counted.
const LOOK: Duration = Duration::from_secs(1);

/// It did not end well.
#[derive(Debug)]
pub(crate) enum Error {
    /// It ended with another code than 0, and said this.
    Failed(String),
    /// It kept more on disk than allowed.
    TooLarge,
    /// It could not be run.
    System(io::Error),
}

/// Runs it; its output. `work` is where it keeps its files; with `log` what it complains of goes to our own log, too.
pub(crate) fn run(mut command: Command, work: &Path, log: bool) -> Result<String, Error> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(Error::System)?;
    let stdout = child.stdout.take().map(|out| std::thread::spawn(move || collect(out)));
    let stderr = child.stderr.take().map(|err| std::thread::spawn(move || tail(err, log)));
    let mut looked = Instant::now();
    let status = loop {
        match child.try_wait().map_err(Error::System)? {
            Some(status) => break status,
            None if looked.elapsed() > LOOK => {
                looked = Instant::now();
                if size(work) > MAX_WORK {
                    kill(&child);
                    let _ = child.wait();
                    return Err(Error::TooLarge);
                }
            }
            None => std::thread::sleep(TICK),
        }
    };
    let output = stdout.and_then(|t| t.join().ok()).unwrap_or_default();
    let words = stderr.and_then(|t| t.join().ok()).unwrap_or_default();
    if status.success() { Ok(output) } else { Err(Error::Failed(words)) }
}

/// With all that it has started.
fn kill(child: &std::process::Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}

fn collect(mut out: impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = (&mut out).take(MAX_OUTPUT).read_to_end(&mut bytes);
    // The rest is read, so that its writer goes on.
    let _ = io::copy(&mut out, &mut io::sink());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Passes it on to our own log where that is wanted, and keeps the end.
fn tail(mut err: impl Read, log: bool) -> String {
    let mut kept: VecDeque<u8> = VecDeque::new();
    let mut buffer = [0; 4096];
    while let Ok(got @ 1..) = err.read(&mut buffer) {
        if log {
            let _ = io::stderr().write_all(&buffer[..got]);
        }
        kept.extend(&buffer[..got]);
        let surplus = kept.len().saturating_sub(MAX_WORDS);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(kept.make_contiguous()).into_owned()
}

/// Bytes of all files below `dir`, as far as they can be read.
fn size(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}
