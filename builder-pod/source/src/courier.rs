//! The courier's client, as far as a fetch needs it: events, failures, and blobs of the registry that holds the source.
//! One connection per call (`kiln_contract::call`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_contract::Failure;
use kiln_contract::call::{Call, Reply};
use kiln_contract::image::{Artifact, Descriptor};
use kiln_contract::journal::Event;
use kiln_git::frame;

use crate::error::Fault;

/// How long the socket is waited for: the courier is started first and needs well under a second.
const SOCKET_WAIT: Duration = Duration::from_secs(60);

/// The courier's socket.
#[derive(Debug, Clone)]
pub struct Courier {
    socket: PathBuf,
}

impl Courier {
    /// At that path.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Pins the reference of the source.
    ///
    /// # Errors
    /// As the registry answered.
    pub fn resolve(&self, reference: &str, platform: &str) -> Result<Artifact, Fault> {
        let call = Call::ResolveArtifact { reference: reference.to_owned(), platform: platform.to_owned() };
        match self.call(&call, None)? {
            Reply::Artifact { artifact } => Ok(artifact),
            other => Err(unexpected(&other)),
        }
    }

    /// Has a blob written into `file`.
    ///
    /// # Errors
    /// As the registry answered; what was written before is not to be used.
    pub fn read_blob(&self, artifact: &str, blob: &Descriptor, file: &File) -> Result<(), Fault> {
        let call = Call::ReadBlob { image: artifact.to_owned(), blob: blob.clone() };
        done(&self.call(&call, Some(file.as_fd()))?)
    }

    /// Says that something happened.
    ///
    /// # Errors
    /// The courier is gone.
    pub fn event(&self, event: Event) -> Result<(), Fault> {
        done(&self.call(&Call::Event { event }, None)?)
    }

    /// Says that the source can't be had.
    ///
    /// # Errors
    /// The courier is gone.
    pub fn fail(&self, failure: Failure) -> Result<(), Fault> {
        done(&self.call(&Call::Fail { failure }, None)?)
    }

    /// Blocks until the attempt is no longer wanted; says why.
    ///
    /// # Errors
    /// The courier is gone.
    pub fn watch(&self) -> Result<String, Fault> {
        match self.call(&Call::Watch, None)? {
            Reply::Stop { reason } => Ok(reason),
            other => Err(unexpected(&other)),
        }
    }

    fn call(&self, call: &Call, fd: Option<BorrowedFd<'_>>) -> Result<Reply, Fault> {
        let lost = |e: io::Error| Fault::internal(format!("talking with the courier: {e}"));
        let mut stream = frame::connect(&self.socket, SOCKET_WAIT).map_err(lost)?;
        frame::send(&mut stream, call, fd).map_err(lost)?;
        match frame::receive(&mut stream).map_err(lost)? {
            None => Err(lost(io::ErrorKind::UnexpectedEof.into())),
            Some((Reply::Failed { failure }, _)) => Err(Fault::told(failure)),
            Some((reply, _)) => Ok(reply),
        }
    }
}

fn unexpected(reply: &Reply) -> Fault {
    Fault::internal(format!(
        "the courier answered {reply:.200?}; courier and source image must be of one release"
    ))
}

fn done(reply: &Reply) -> Result<(), Fault> {
    if *reply == Reply::Done { Ok(()) } else { Err(unexpected(reply)) }
}
