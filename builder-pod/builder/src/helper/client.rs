//! The builder's side of the helper: starts it, gives it its ids, calls it.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::de::DeserializeOwned;

use super::HELPER_WORD;
use super::wire::{self, Hello, MAX_BODY, Reply, Request};
use crate::engine::{EngineError, EngineErrorKind};
use crate::sandbox::fault::{At as _, Fault, Stage};
use crate::sandbox::idmap::IdMap;
use crate::sandbox::process;

/// A running helper. It ends when this is dropped, or when the builder dies.
#[derive(Debug)]
pub struct Helper {
    /// `None` only while this is dropped.
    socket: Option<OwnedFd>,
    child: Child,
}

impl Helper {
    /// Starts the helper in user namespace of its own with the ids of `map`.
    ///
    /// # Errors
    /// The stage that failed.
    pub fn start(program: &Path, trees: &Path, map: IdMap) -> Result<Self, Fault> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .at(Stage::Launch, || "cannot make a socket".to_owned())?;
        let child = Command::new(program)
            .arg(HELPER_WORD)
            .env_clear()
            .current_dir(trees)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .at(Stage::Launch, || format!("cannot start {}", program.display()))?;
        let helper = Self { socket: Some(ours), child };
        helper.welcome(map)?;
        Ok(helper)
    }

    fn welcome(&self, map: IdMap) -> Result<(), Fault> {
        let lost = || "the helper ended while it started".to_owned();
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let (Some(socket), Some(pid)) = (&self.socket, pid) else {
            return Err(Fault::new(Stage::Launch, "the helper has no process id"));
        };
        loop {
            match wire::receive_hello(socket).at(Stage::Launch, lost)? {
                Hello::Unshared => {
                    process::write_maps(pid, map)?;
                    wire::send_hello(socket, &Hello::Mapped).at(Stage::Launch, lost)?;
                }
                Hello::Ready => return Ok(()),
                Hello::Failed(fault) => return Err(fault),
                Hello::Mapped => return Err(Fault::new(Stage::Launch, "the helper talks out of turn")),
            }
        }
    }

    /// Makes a call and waits for its answer. `payload` is closed here as soon as the helper has it, so that pipes end
    /// when they should.
    ///
    /// # Errors
    /// The helper's answer; kind `Internal` when the helper is gone.
    pub fn call<T: DeserializeOwned>(
        &self,
        request: &Request,
        payload: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<T, EngineError> {
        let payload: Vec<OwnedFd> = payload.into_iter().collect();
        let reply = self.exchange(request, payload).map_err(|error| {
            internal(format!(
                "the helper process does not answer ({error}); it may have been killed for lack of memory"
            ))
        })?;
        let value = serde_json::from_slice::<Reply>(&reply)
            .map_err(|error| internal(format!("the helper's answer can't be read: {error}")))??;
        serde_json::from_value(value)
            .map_err(|error| internal(format!("the helper's answer is not what was asked for: {error}")))
    }

    fn exchange(&self, request: &Request, payload: Vec<OwnedFd>) -> std::io::Result<Vec<u8>> {
        let socket = self.socket.as_ref().ok_or(std::io::ErrorKind::NotConnected)?;
        let (mut ours, theirs) = UnixStream::pair()?;
        let fds: Vec<BorrowedFd<'_>> =
            [theirs.as_fd()].into_iter().chain(payload.iter().map(OwnedFd::as_fd)).collect();
        wire::send(socket, b"call", &fds)?;
        drop(fds);
        drop((theirs, payload));
        ours.write_all(&serde_json::to_vec(request)?)?;
        ours.shutdown(Shutdown::Write)?;
        let mut reply = Vec::new();
        ours.take(MAX_BODY).read_to_end(&mut reply)?;
        if reply.is_empty() { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(reply) }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.socket = None;
        let _ = self.child.wait();
    }
}

fn internal(message: String) -> EngineError {
    EngineError { kind: EngineErrorKind::Internal, message }
}
