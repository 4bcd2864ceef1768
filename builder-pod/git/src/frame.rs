//! Frames of a Unix socket (`kiln_contract::call`): a length and so many bytes of JSON, and a descriptor that may come with the
//! first byte.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use kiln_contract::call::MAX_FRAME;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How often a socket is tried that nobody listens at yet.
const TICK: Duration = Duration::from_millis(20);

/// Connects, and waits up to `patience` for somebody who listens.
///
/// # Errors
/// Nobody does.
pub fn connect(socket: &Path, patience: Duration) -> io::Result<UnixStream> {
    let since = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Err(_) if since.elapsed() < patience => std::thread::sleep(TICK),
            Err(e) => {
                return Err(io::Error::new(e.kind(), format!("nobody listens at {}: {e}", socket.display())));
            }
            done => return done,
        }
    }
}

/// Sends one frame, and a descriptor with its first byte.
///
/// # Errors
/// The other side is gone.
pub fn send<T: Serialize>(stream: &mut UnixStream, value: &T, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let body = serde_json::to_vec(value)?;
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

/// Receives one frame and the descriptor that came with its first byte; `None` when the other side closed before it.
///
/// # Errors
/// It is cut off, too long, or not what was expected.
pub fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut head = [0u8; 4];
    let (first, fd) = first(stream, &mut head)?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[first..])?;
    let length = u32::from_be_bytes(head);
    if length > MAX_FRAME {
        let text = format!("a frame of {length} bytes is longer than the {MAX_FRAME} allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut body = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut body)?;
    if body.len() != length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some((serde_json::from_slice(&body)?, fd)))
}

fn first(stream: &UnixStream, into: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let mut slices = [IoSliceMut::new(into)];
        match rustix::net::recvmsg(stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((got.bytes, fd))
}
