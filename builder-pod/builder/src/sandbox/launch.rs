//! The launcher: one small process per step that stays in the builder's user namespace, makes the step's namespaces and
//! waits for the step's end.
//!
//! Standard input brings the [`Spec`] and then, by its end, the word to stop; standard output takes [`Message`]s;
//! standard error is the step's output pipe.

use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};
use rustix::thread::UnshareFlags;

use super::fault::{At as _, Fault, Stage};
use super::root::Files;
use super::settings::Settings;
use super::spec::{MAX_MESSAGE, Message, Spec};
use super::{HOSTNAME, init, process};

/// A pod's resolv.conf and hosts are some hundred bytes; the copies share a tmpfs of 8 MiB.
const MAX_FILE: u64 = 1 << 20;

/// The launcher's main.
pub fn main() -> ExitCode {
    let status = match quiet() {
        Ok(status) => status,
        Err(_) => return ExitCode::from(70),
    };
    let message = match launch(&status) {
        Ok(ended) => ended,
        Err(fault) => Message::Failed(fault),
    };
    match init::send(&status, &message) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(70),
    }
}

/// Leaves everything of the builder's that came along; the channel for messages moves away from standard output.
fn quiet() -> std::io::Result<OwnedFd> {
    process::close_from(3)?;
    // A terminal's interrupt is for the builder to act on; it fails when we lead a group already.
    let _ = rustix::process::setsid();
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    let status = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), init::STATUS_FD)?;
    // All above 2 were closed, so this holds; the step relies on it when it closes everything else.
    if status.as_raw_fd() == init::STATUS_FD { Ok(status) } else { Err(std::io::ErrorKind::Other.into()) }
}

fn launch(status: &OwnedFd) -> Result<Message, Fault> {
    let spec = read_spec()?;
    let files = Files {
        resolv_conf: pod_file("/etc/resolv.conf"),
        hosts: hosts(&pod_file("/etc/hosts"), &spec.settings),
    };
    let born = process::Signal::new()?;
    let mapped = process::Signal::new()?;
    let go = process::Signal::new()?;
    let maker = match process::fork().at(Stage::Launch, || "cannot start a process".to_owned())? {
        process::Fork::Parent(pid) => pid,
        process::Fork::Child => {
            drop((born.receiver, mapped.sender, go.sender));
            make(&spec, &files, status, born.sender, mapped.receiver, go.receiver)
        }
    };
    // The step's output must end when the step does.
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty());
    null.and_then(rustix::stdio::dup2_stderr).at(Stage::Launch, || "cannot open /dev/null".to_owned())?;
    drop((born.sender, mapped.receiver, go.receiver));

    let born_again = born.receiver.try_clone().at(Stage::Launch, || "cannot share a pipe".to_owned())?;
    // A maker that failed has said so itself, in a message of its own; its end is all that is left to wait for.
    let told = process::hear(born.receiver)?;
    if told.is_some() {
        process::write_maps(maker, spec.map)?;
        process::tell(&mapped.sender, 0)?;
    }
    let step = process::hear(born_again)?.and_then(Pid::from_raw);
    rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(maker), WaitOptions::empty()))
        .at(Stage::Launch, || "cannot wait for the maker".to_owned())?;
    let Some(step) = step else {
        return Ok(Message::Ended { code: 125, signal: None });
    };
    let watched = rustix::process::pidfd_open(step, PidfdFlags::empty())
        .at(Stage::Launch, || "cannot watch the step".to_owned())?;
    // A step that could not be set up has said so itself, and may be gone by now: its end is all that is left to wait for.
    let _ = process::tell(&go.sender, 0);
    wait(step, &watched)
}

/// The maker: enters new namespaces, has its ids written, forks the step's first process and ends.
fn make(spec: &Spec, files: &Files, status: &OwnedFd, born: OwnedFd, mapped: OwnedFd, go: OwnedFd) -> ! {
    let result = unshare(spec, &born, mapped).and_then(|()| {
        match process::fork_sibling().at(Stage::Launch, || "cannot start the step's process".to_owned())? {
            process::Fork::Parent(pid) => process::tell(&born, pid.as_raw_nonzero().get()),
            process::Fork::Child => {
                drop(born);
                init::run(spec, files, status, go)
            }
        }
    });
    match result {
        Ok(()) => std::process::exit(0),
        Err(fault) => {
            let _ = init::send(status, &Message::Failed(fault));
            std::process::exit(1)
        }
    }
}

fn unshare(spec: &Spec, born: &OwnedFd, mapped: OwnedFd) -> Result<(), Fault> {
    // Steps are what the kernel should kill first when memory is short. Not allowed everywhere, and not needed.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let mut flags = UnshareFlags::NEWUSER
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS;
    if !spec.network {
        flags |= UnshareFlags::NEWNET;
    }
    // SAFETY: the flags leave the table of descriptors alone, and this process has one thread.
    unsafe { rustix::thread::unshare_unsafe(flags) }
        .at(Stage::Unshare, || "cannot make the step's namespaces (unshare)".to_owned())?;
    process::tell(born, 0)?;
    match process::hear(mapped)? {
        Some(_) => Ok(()),
        None => Err(Fault::new(Stage::WriteMap, "the step's ids could not be set")),
    }
}

/// Waits until the step's first process, and hence every process of the step, is gone; kills it when told to stop.
fn wait(step: Pid, watched: &OwnedFd) -> Result<Message, Fault> {
    let stdin = rustix::stdio::stdin();
    let mut told = false;
    loop {
        let mut events = vec![PollFd::new(watched, PollFlags::IN)];
        if !told {
            events.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
        }
        rustix::io::retry_on_intr(|| poll(&mut events, None))
            .at(Stage::Launch, || "cannot wait for the step".to_owned())?;
        if !events[0].revents().is_empty() {
            break;
        }
        if events.get(1).is_some_and(|event| !event.revents().is_empty()) {
            told = true;
            // We own the step's user namespace, so we may.
            rustix::process::pidfd_send_signal(watched, Signal::KILL)
                .at(Stage::Launch, || "cannot kill the step".to_owned())?;
        }
    }
    let status = rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(step), WaitOptions::empty()))
        .at(Stage::Launch, || "cannot wait for the step".to_owned())?
        .map(|(_, status)| status);
    Ok(ended(status))
}

fn ended(status: Option<WaitStatus>) -> Message {
    let signal = status.and_then(WaitStatus::terminating_signal);
    let code = status.and_then(WaitStatus::exit_status);
    Message::Ended { code: signal.map_or_else(|| code.unwrap_or(-1), |signal| 128 + signal), signal }
}

fn read_spec() -> Result<Spec, Fault> {
    let mut stdin = std::io::stdin().lock();
    let mut line = Vec::new();
    let mut chunk = [0; 65536];
    // The builder sends one line and then keeps the pipe open, so nothing can be read beyond it.
    while line.last() != Some(&b'\n') {
        let count = stdin.read(&mut chunk).at(Stage::Launch, || "cannot read the step".to_owned())?;
        if count == 0 || line.len() > MAX_MESSAGE {
            return Err(Fault::new(Stage::Launch, "the builder sent no whole step"));
        }
        line.extend_from_slice(&chunk[..count]);
    }
    serde_json::from_slice(&line).map_err(|error| {
        Fault::new(Stage::Launch, format!("the builder sent a step that can't be read: {error}"))
    })
}

/// A small file of the pod; empty when it is not there.
fn pod_file(path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    bytes
}

/// The pod's names, which hold its host aliases, and the step's own host name.
fn hosts(of_pod: &[u8], settings: &Settings) -> Vec<u8> {
    let mut text = if of_pod.is_empty() {
        b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_vec()
    } else {
        of_pod.to_vec()
    };
    if text.last() != Some(&b'\n') {
        text.push(b'\n');
    }
    for host in &settings.hosts {
        text.extend_from_slice(format!("{}\t{}\n", host.address, host.name).as_bytes());
    }
    let hostname = settings.hostname.as_deref().unwrap_or(HOSTNAME);
    text.extend_from_slice(format!("127.0.0.1\t{hostname}\n").as_bytes());
    text
}
