//! What ADD and named contexts ask of git: a checkout without credentials, here or by the container `git`, and its faults in the
//! words of a build's failure.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_contract::call::{Call, Reply};
use kiln_contract::failure::{Failure, FailureClass, reason};
use kiln_contract::policy::Network;
use kiln_contract::source::{Git, Transport};

use crate::environment::{Access, Ssh};
use crate::error::{Cause, Fault, Kind};
use crate::{frame, pack};

/// How long the container's socket is waited for: it is started before the build, and needs well under a second.
const SOCKET_WAIT: Duration = Duration::from_secs(60);
/// How long the courier may take to send its call or take its answer.
const FRAME_WAIT: Duration = Duration::from_secs(60);

/// Where git runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Place {
    /// In a process of this one: on a plain machine, with its user's ssh.
    #[default]
    Here,
    /// In the container that listens at this socket, if the pod has it.
    Container(PathBuf),
}

/// Checks `source` out and writes its files as a tar into `out`; gives the commit. Blocks.
///
/// # Errors
/// The repository, the reference or the directory is not there, is not to be had, or is another commit than the checksum
/// says; there is no git here.
pub fn fetch(place: &Place, source: &Git, network: &Network, out: File) -> Result<String, Failure> {
    match place {
        Place::Here => {
            let access = Access { ssh: Ssh::Machine, machine: true, ..Access::reaching(network) };
            pack::fetch_packed(source, &access, &std::env::temp_dir(), out).map_err(|f| failure(&f, source))
        }
        Place::Container(socket) => ask(socket, source, network, &out),
    }
}

fn ask(socket: &Path, source: &Git, network: &Network, out: &File) -> Result<String, Failure> {
    if !socket.parent().is_some_and(Path::is_dir) {
        let text = "this pod can't check out git repositories: its Dockerfile names none in an ADD that the operator could \
            see before the build (one in a trigger of a base image is not seen), or the operator has no sourceImage; name \
            the repository in an ADD of the Dockerfile, and set the chart value source.image";
        return Err(Failure::new(FailureClass::User, reason::NOT_SUPPORTED, text));
    }
    let lost = |e: std::io::Error| {
        internal(format!(
            "the container git ended, or does not answer, while it fetched {}: {e}; its memory is limited to 1 GiB",
            source.shown()
        ))
    };
    let mut stream = frame::connect(socket, SOCKET_WAIT).map_err(lost)?;
    let call = Call::FetchGit { source: source.clone(), network: network.clone() };
    frame::send(&mut stream, &call, Some(out.as_fd())).map_err(lost)?;
    match frame::receive(&mut stream).map_err(lost)? {
        Some((Reply::CheckedOut { commit }, _)) => Ok(commit),
        Some((Reply::Failed { failure }, _)) => Err(failure),
        Some((other, _)) => Err(internal(format!(
            "the container git answered {other:.200?}; builder and source image must be of one release"
        ))),
        None => Err(lost(std::io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Answers the courier's calls at `socket`, in the container `git`, until the process ends. One at a time: memory and volume are
/// measured for one.
///
/// # Errors
/// Nobody can listen there.
pub fn serve(socket: &Path, work: &Path) -> std::io::Result<()> {
    // Left by one that was restarted.
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    for stream in UnixListener::bind(socket)?.incoming() {
        if let Err(e) = stream.and_then(|stream| answer(stream, work)) {
            eprintln!("a connection broke: {e}");
        }
    }
    Ok(())
}

fn answer(mut stream: UnixStream, work: &Path) -> std::io::Result<()> {
    stream.set_read_timeout(Some(FRAME_WAIT))?;
    stream.set_write_timeout(Some(FRAME_WAIT))?;
    let reply = match frame::receive(&mut stream)? {
        None => return Ok(()),
        Some((Call::FetchGit { source, network }, Some(out))) => {
            let access = Access { log: true, ..Access::reaching(&network) };
            match contained(&source).and_then(|()| {
                pack::fetch_packed(&source, &access, work, out.into()).map_err(|f| failure(&f, &source))
            }) {
                Ok(commit) => Reply::CheckedOut { commit },
                Err(failure) => Reply::Failed { failure },
            }
        }
        Some(_) => Reply::Failed { failure: internal("expected fetchGit with a descriptor".to_owned()) },
    };
    frame::send(&mut stream, &reply, None)
}

/// What the container can do: it holds no key and knows no host.
fn contained(source: &Git) -> Result<(), Failure> {
    if source.transport() != Ok(Transport::Ssh) {
        return Ok(());
    }
    let text = format!(
        "{} is on ssh, which ADD and named contexts do not speak in a cluster: no key is given to the process that fetches \
        them; use an https URL, or make it the build's source (spec.source.git with secretName)",
        source.shown()
    );
    Err(Failure::new(FailureClass::User, reason::NOT_SUPPORTED, text))
}

fn failure(fault: &Fault, source: &Git) -> Failure {
    let class = match fault.kind {
        Kind::Internal if fault.cause == Some(Cause::NoGit) => {
            let text = "sources from git need the program git on this machine: install it, or download an archive with ADD";
            return Failure::new(FailureClass::User, reason::NOT_SUPPORTED, text);
        }
        Kind::Internal => return internal(fault.message.clone()),
        Kind::Unavailable => FailureClass::Source,
        _ => FailureClass::User,
    };
    let hint = match fault.cause {
        Some(Cause::Login) => {
            "; it is private, or not there, and no credentials go with ADD: a private repository can be the build's source"
        }
        Some(Cause::Transport) => "; submodules may be on https and ssh only",
        _ => "",
    };
    let text = format!("the git repository {} can't be used: {}{hint}", what(source), fault.message);
    Failure::new(class, reason::DOWNLOAD_FAILED, text)
}

fn what(source: &Git) -> String {
    match source.commit.as_ref().or(source.reference.as_ref()) {
        Some(reference) => format!("{} ({reference})", source.shown()),
        None => source.shown(),
    }
}

fn internal(text: String) -> Failure {
    Failure::new(FailureClass::Infrastructure, reason::INTERNAL, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(url: &str) -> Git {
        Git { url: url.to_owned(), depth: 1, submodules: true, ..Git::default() }
    }

    #[test]
    fn only_networks_are_spoken_with() {
        let place = tempfile::tempdir().expect("a directory");
        for url in [place.path().display().to_string(), "ext::sh -c true".to_owned()] {
            let out = tempfile::tempfile().expect("a file");
            let failure = fetch(&Place::Here, &source(&url), &Network::default(), out).expect_err("refused");
            assert!(
                failure.reason == reason::DOWNLOAD_FAILED && failure.message.contains("expected a URL"),
                "{failure}"
            );
        }
    }

    #[test]
    fn the_container_speaks_no_ssh_and_a_pod_without_it_says_so() {
        let failure = contained(&source("git@h:a/b.git")).expect_err("refused");
        assert!(failure.reason == reason::NOT_SUPPORTED && failure.message.contains("https"), "{failure}");
        assert!(contained(&source("https://h/a")).is_ok());
        let place = tempfile::tempdir().expect("a directory");
        let out = tempfile::tempfile().expect("a file");
        let none = Place::Container(place.path().join("none/git.sock"));
        let failure = fetch(&none, &source("https://h/a"), &Network::default(), out).expect_err("refused");
        assert!(
            failure.reason == reason::NOT_SUPPORTED && failure.message.contains("source.image"),
            "{failure}"
        );
    }
}
