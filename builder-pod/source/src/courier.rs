//! The courier's client, as far as a fetch needs it: events, failures, and blobs of the registry that holds the source.
//! One connection per call (`kiln_contract::call`).

use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_contract::Failure;
use kiln_contract::call::{Call, MAX_FRAME, Reply};
use kiln_contract::image::{Artifact, Descriptor};
use kiln_contract::journal::Event;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::error::Fault;

/// How long the socket is waited for: the courier is started first and needs well under a second.
const SOCKET_WAIT: Duration = Duration::from_secs(60);
/// How often it is tried.
const TICK: Duration = Duration::from_millis(20);

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
        let mut stream = self.connect()?;
        send(&mut stream, call, fd).map_err(lost)?;
        match receive(&mut stream).map_err(lost)? {
            Reply::Failed { failure } => Err(Fault::told(failure)),
            reply => Ok(reply),
        }
    }

    fn connect(&self) -> Result<UnixStream, Fault> {
        let since = Instant::now();
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => return Ok(stream),
                Err(_) if since.elapsed() < SOCKET_WAIT => std::thread::sleep(TICK),
                Err(e) => {
                    let text = format!("nobody listens at {}: {e}", self.socket.display());
                    return Err(Fault::internal(text));
                }
            }
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

fn send(stream: &mut UnixStream, call: &Call, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let body = serde_json::to_vec(call)?;
    let length = u32::try_from(body.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    let mut sent = 0;
    if let Some(fd) = fd {
        let fds = [fd];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::Error::other("no room for a descriptor"));
        }
        sent = rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&*stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
        })?;
    }
    stream.write_all(&bytes[sent..])
}

fn receive(stream: &mut UnixStream) -> io::Result<Reply> {
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let length = u32::from_be_bytes(head);
    if length > MAX_FRAME {
        let text = format!("a reply of {length} bytes is longer than the {MAX_FRAME} allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut body = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}
