//! Frames of the socket, on the courier's side (`kiln_contract::call`).

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use kiln_contract::call::{Call, MAX_FRAME, Reply};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// Reads one call and the descriptor that came with its first byte; `None` when the other side closed before it.
pub(crate) fn read(stream: &mut UnixStream) -> io::Result<Option<(Call, Option<OwnedFd>)>> {
    let mut head = [0u8; 4];
    let (first, fd) = receive(stream, &mut head)?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[first..])?;
    let length = u32::from_be_bytes(head);
    if length > MAX_FRAME {
        let text = format!("a call of {length} bytes is longer than the {MAX_FRAME} allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut body = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut body)?;
    if body.len() != length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some((serde_json::from_slice(&body)?, fd)))
}

fn receive(stream: &UnixStream, into: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
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

/// Writes one reply.
pub(crate) fn write(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    let body = serde_json::to_vec(reply)?;
    let length = u32::try_from(body.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    stream.write_all(&frame)
}
