//! The builder's side of a step: starts the launcher, passes the output on, waits for the end.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::fault::{At as _, Fault, Stage};
use super::spec::{MAX_MESSAGE, Message, ProcKind, Spec};
use super::{STEP_WORD, stdio};
use crate::engine::{Output, Stop};

/// How often a stop is looked for while a step is silent. A tenth of a second is soon enough for people.
const STOP_CHECK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Bytes passed on at once.
const CHUNK: usize = 64 << 10;

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Exit code; 128 + N for signal N.
    pub code: i32,
    /// See [`crate::engine::Exit::stubs`].
    pub stubs: Vec<String>,
    /// Which `/proc` it had.
    pub proc: ProcKind,
}

/// Why a step did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The sandbox could not be made.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The command could not be started, by fault of the Dockerfile.
    #[error("{0}")]
    Refused(String),
    /// The build is to stop.
    #[error("stopped")]
    Stopped,
}

/// Runs a step from start to end; when this returns no process of it is left (except after a launcher that was killed
/// from outside, when the kernel is killing the step).
///
/// # Errors
/// [`Failure`].
pub fn run(
    program: &Path,
    trees: &Path,
    spec: &Spec,
    output: &mut dyn Output,
    stop: &Stop,
) -> Result<Ended, Failure> {
    let owner = spec.user.owner;
    let outside = |inner: u32, what: &str| {
        spec.map.outside(inner).ok_or_else(|| {
            Failure::Refused(format!(
                "the step's {what} is {inner}, but steps have the ids 0 to {}",
                spec.map.count - 1
            ))
        })
    };
    for group in &spec.user.groups {
        outside(*group, "supplementary group")?;
    }
    let (uid, gid) = (outside(owner.uid, "user id")?, outside(owner.gid, "group id")?);
    let (reader, writer) = stdio::pipe_owned_by(uid, gid)
        .at(Stage::User, || format!("cannot make a pipe that belongs to user {}", owner.uid))?;
    let mut child = Command::new(program)
        .arg(STEP_WORD)
        .env_clear()
        .current_dir(trees)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::from(writer))
        .spawn()
        .at(Stage::Launch, || format!("cannot start {}", program.display()))?;
    let result = attend(&mut child, reader, spec, output, stop);
    // A launcher that is still there has lost its way; its death kills the step.
    if result.is_err() {
        let _ = child.kill();
    }
    let _ = child.wait();
    result
}

fn attend(
    child: &mut Child,
    reader: OwnedFd,
    spec: &Spec,
    output: &mut dyn Output,
    stop: &Stop,
) -> Result<Ended, Failure> {
    let mut stdin = child.stdin.take();
    let mut line = serde_json::to_vec(spec)
        .map_err(|error| Fault::new(Stage::Launch, format!("cannot write the step: {error}")))?;
    line.push(b'\n');
    if let Some(stdin) = &mut stdin {
        stdin.write_all(&line).at(Stage::Launch, || "cannot tell the launcher its step".to_owned())?;
    }
    let status = child.stdout.take().map(|stdout| File::from(OwnedFd::from(stdout)));
    let mut output_pipe = Some(File::from(reader));
    let mut status_pipe = status;
    let mut messages = Vec::new();
    let mut chunk = vec![0; CHUNK];
    let mut stopped = false;
    while output_pipe.is_some() || status_pipe.is_some() {
        if !stopped && stop.is_stopped() {
            stopped = true;
            // The launcher takes the end of its input as the word to kill the step.
            stdin = None;
        }
        let (output_ready, status_ready) = ready(output_pipe.as_ref(), status_pipe.as_ref())?;
        if output_ready {
            match read(output_pipe.as_mut(), &mut chunk)? {
                0 => output_pipe = None,
                count => output.write(&chunk[..count]),
            }
        }
        if status_ready {
            match read(status_pipe.as_mut(), &mut chunk)? {
                0 => {
                    status_pipe = None;
                    // A launcher that ended without its last word was killed; the output may never end then.
                    if !parse(&messages)?.iter().any(is_last) {
                        return Err(if stopped { Failure::Stopped } else { lost() });
                    }
                }
                count if messages.len() + count > MAX_MESSAGE => {
                    return Err(Fault::new(Stage::Launch, "the launcher says too much").into());
                }
                count => messages.extend_from_slice(&chunk[..count]),
            }
        }
    }
    drop(stdin);
    if stopped {
        return Err(Failure::Stopped);
    }
    judge(parse(&messages)?)
}

fn is_last(message: &Message) -> bool {
    matches!(message, Message::Ended { .. } | Message::Failed(_))
}

fn lost() -> Failure {
    Fault::new(Stage::Launch, "the step's launcher was killed, perhaps for lack of memory").into()
}

fn parse(messages: &[u8]) -> Result<Vec<Message>, Failure> {
    messages
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            serde_json::from_slice(line).map_err(|error| {
                Fault::new(Stage::Launch, format!("the launcher said something unreadable: {error}")).into()
            })
        })
        .collect()
}

/// The first failure tells; without one the step ran.
fn judge(messages: Vec<Message>) -> Result<Ended, Failure> {
    let mut ready = None;
    for message in messages {
        match message {
            Message::Ready { stubs, proc } => ready = Some((stubs, proc)),
            Message::Failed(fault) => return Err(fault.into()),
            Message::Refused(text) => return Err(Failure::Refused(text)),
            Message::Ended { code, .. } => {
                let (stubs, proc) = ready.ok_or_else(lost)?;
                return Ok(Ended { code, stubs, proc });
            }
        }
    }
    Err(lost())
}

/// Waits a moment for either pipe; says which has something (or its end) to read.
fn ready(output: Option<&File>, status: Option<&File>) -> Result<(bool, bool), Failure> {
    let mut events: Vec<_> =
        [output, status].into_iter().flatten().map(|file| PollFd::new(file, PollFlags::IN)).collect();
    rustix::io::retry_on_intr(|| poll(&mut events, Some(&STOP_CHECK)))
        .at(Stage::Launch, || "cannot wait for the step".to_owned())?;
    let mut flags = events.iter().map(|event| !event.revents().is_empty());
    let output_ready = output.is_some() && flags.next().unwrap_or(false);
    let status_ready = status.is_some() && flags.next().unwrap_or(false);
    Ok((output_ready, status_ready))
}

fn read(file: Option<&mut File>, chunk: &mut [u8]) -> Result<usize, Failure> {
    let Some(file) = file else { return Ok(0) };
    loop {
        match file.read(chunk) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return Ok(result.at(Stage::Launch, || "cannot read from the step".to_owned())?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_tells() {
        let ended = Message::Ended { code: 125, signal: None };
        let ready = Message::Ready { stubs: vec!["dev".into()], proc: ProcKind::Fresh };
        assert_eq!(
            judge(vec![ready.clone(), ended.clone()]).unwrap(),
            Ended { code: 125, stubs: vec!["dev".into()], proc: ProcKind::Fresh }
        );
        let refused = Message::Refused("no such user".into());
        assert!(matches!(judge(vec![ready, refused, ended.clone()]), Err(Failure::Refused(_))));
        assert!(matches!(judge(vec![ended]), Err(Failure::Fault(_))));
        assert!(matches!(judge(vec![]), Err(Failure::Fault(_))));
    }
}
