//! The step's first process, from its birth in the new namespaces to the command.

use std::convert::Infallible;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Signal, Uid};

use super::fault::{At as _, Fault, Stage, Stop};
use super::root::{self, Files};
use super::spec::{Message, Spec, Task};
use super::{HOSTNAME, caps, command, probe, process, seccomp};

/// Exit code of a first process that could not start the command; never seen by users, the message says why.
const NOT_STARTED: i32 = 125;

/// Where the channel to the builder sits while everything above is closed.
pub const STATUS_FD: i32 = 3;

/// Becomes the command. Standard error is the step's output, `status` is descriptor [`STATUS_FD`]; `go` speaks when no
/// process of ours is left in the user namespace.
pub fn run(spec: &Spec, files: &Files, status: &OwnedFd, go: OwnedFd) -> ! {
    let message = match start(spec, files, status, go) {
        Ok(()) => std::process::exit(0),
        Err(Stop::Fault(fault)) => Message::Failed(fault),
        Err(Stop::Refused(text)) => Message::Refused(text),
    };
    let _ = send(status, &message);
    std::process::exit(NOT_STARTED)
}

/// Writes one message.
///
/// # Errors
/// When the builder is gone.
pub fn send(status: impl AsFd, message: &Message) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let mut file = std::fs::File::from(status.as_fd().try_clone_to_owned()?);
    file.write_all(&line)
}

fn start(spec: &Spec, files: &Files, status: &OwnedFd, go: OwnedFd) -> Result<(), Stop> {
    process::become_root()?;
    rustix::process::umask(Mode::empty());
    let filter = seccomp::program(&[])?;
    if spec.task == Task::Probe {
        probe::prepare(spec)?;
    }
    let (stubs, proc) = root::build(spec, files)?;
    let hostname = spec.settings.hostname.as_deref().unwrap_or(HOSTNAME);
    rustix::system::sethostname(hostname.as_bytes())
        .at(Stage::Hostname, || "cannot set the step's host name".to_owned())?;
    if !spec.network {
        raise_loopback()?;
    }
    if process::hear(go)?.is_none() {
        return Err(Fault::new(Stage::Launch, "the launcher is gone").into());
    }
    send(status, &Message::Ready { stubs, proc }).at(Stage::Launch, || "the builder is gone".to_owned())?;
    stdio()?;
    // Its own session: no terminal of the builder's to push keys into.
    let _ = rustix::process::setsid();
    for limit in &spec.settings.ulimits {
        limit.apply().map_err(Stop::Refused)?;
    }
    caps::limit()?;
    seccomp::install(&filter)?;
    let entered = become_user(spec)?;
    if let Err(error) = entered.or_else(|_| command::enter_directory(&spec.cwd)) {
        return Err(Stop::Refused(format!(
            "cannot change to the working directory {:?}: {}",
            spec.cwd,
            command::words(error.raw_os_error())
        )));
    }
    match &spec.task {
        Task::Probe => Ok(probe::exercise()?),
        Task::Command(argv) => {
            rustix::process::umask(Mode::from_raw_mode(0o022));
            process::close_from(STATUS_FD.cast_unsigned() + 1)
                .at(Stage::Launch, || "cannot close descriptors".to_owned())?;
            default_signals();
            let never: Infallible = command::execute(argv, &spec.env).map_err(Stop::Refused)?;
            match never {}
        }
    }
}

/// Standard input is empty, standard output and error are the one pipe.
fn stdio() -> Result<(), Fault> {
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    null.and_then(rustix::stdio::dup2_stdin)
        .and_then(|()| rustix::stdio::dup2_stdout(rustix::stdio::stderr()))
        .at(Stage::Launch, || "cannot set the step's standard streams".to_owned())
}

/// Becomes the step's user; says how changing to the working directory went while still root (docker tries that first:
/// a user may work in a directory that it could not enter).
fn become_user(spec: &Spec) -> Result<rustix::io::Result<()>, Fault> {
    let (uid, gid) = (Uid::from_raw(spec.user.owner.uid), Gid::from_raw(spec.user.owner.gid));
    let groups: Vec<Gid> = spec.user.groups.iter().copied().map(Gid::from_raw).collect();
    let entered = command::enter_directory(&spec.cwd);
    rustix::thread::set_thread_groups(&groups)
        .and_then(|()| rustix::thread::set_thread_res_gid(gid, gid, gid))
        .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid))
        .at(Stage::User, || format!("cannot become user {}:{}", uid.as_raw(), gid.as_raw()))?;
    caps::settle(uid.is_root())?;
    // Changing ids clears it, so here; it is the last resort for a launcher that was killed.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .at(Stage::User, || "cannot tie the step to its launcher".to_owned())?;
    Ok(entered)
}

/// The builder's runtime ignores SIGPIPE; commands expect the default.
fn default_signals() {
    // SAFETY: default dispositions and an empty mask; no handler of ours exists.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

fn raise_loopback() -> Result<(), Fault> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
        .at(Stage::Loopback, || "cannot make a socket".to_owned())?;
    // SAFETY: all bytes zero is a valid ifreq; the name fits and stays terminated; the kernel reads one ifreq.
    let result = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l'.cast_signed() as libc::c_char;
        request.ifr_name[1] = b'o'.cast_signed() as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request)
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        .at(Stage::Loopback, || "cannot bring the step's loopback interface up".to_owned())
}
