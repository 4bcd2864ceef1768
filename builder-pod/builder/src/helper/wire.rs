//! How builder and helper talk.
//!
//! One packet socket connects them. After the handshake the builder sends on it, per call, one end of a new stream socket
//! and the descriptors that the call is about, if any; the request is all that comes on the stream until its end, the
//! reply all that goes back. So calls of any size run side by side.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::engine::{Destination, EngineError, Owner, Selection, Unpacked, View};
use crate::sandbox::fault::Fault;

/// Longest request or reply. The long ones list a layer's implied directories and links, which `tree::unpack` limits; this
/// only keeps a fault from taking all memory.
pub const MAX_BODY: u64 = 256 << 20;

/// Longest packet of the handshake: one fault.
const MAX_PACKET: usize = 16 << 10;

/// What builder and helper tell each other while the helper starts.
#[derive(Debug, Serialize, Deserialize)]
pub enum Hello {
    /// Helper: in its namespaces, waiting for its ids.
    Unshared,
    /// Builder: the ids are set.
    Mapped,
    /// Helper: ready for calls.
    Ready,
    /// Helper: could not start.
    Failed(Fault),
}

/// A call. Those about streams of bytes bring descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// [`crate::engine::Engine::unpack`]; with the blob, and the place for the index if that is wanted.
    Unpack { tree: String, media_type: String },
    /// [`crate::engine::Engine::index`]; with the blob and the place for the index.
    Index { media_type: String },
    /// [`crate::engine::Engine::settle`].
    Settle { layers: Vec<(String, Unpacked)> },
    /// [`crate::engine::Engine::copy_stream`]; with the stream.
    CopyStream { view: View, to: Destination },
    /// [`crate::engine::Engine::copy_tree`].
    CopyTree { view: View, to: Destination, from: Vec<String>, what: Selection },
    /// [`crate::engine::Engine::make_directory`].
    MakeDirectory { view: View, path: String, owner: Owner },
    /// [`crate::engine::Engine::make_tree`].
    MakeTree { tree: String, mode: u32, owner: Owner },
    /// [`crate::engine::Engine::user`].
    User { lowers: Vec<String>, user: String },
    /// [`crate::engine::Engine::owner`].
    Owner { lowers: Vec<String>, chown: String },
    /// Makes what a step's overlay needs.
    Prepare { view: View },
    /// Takes the mount points out of an upper tree that its step needed.
    RemoveStubs { upper: String, stubs: Vec<String> },
    /// [`crate::engine::Engine::diff`]; with the place for the tar, and that for its index if it is wanted.
    Diff { view: View, stubs: Vec<String>, epoch: Option<i64> },
    /// [`crate::engine::Engine::archive`]; with the place for the tar.
    Archive { tree: String },
    /// [`crate::engine::Engine::remove`].
    Remove { trees: Vec<String> },
    /// Removes every tree.
    Clear,
}

/// What comes back: the value as the call defines it.
pub type Reply = Result<serde_json::Value, EngineError>;

/// Sends a packet with descriptors.
///
/// # Errors
/// When the other side is gone.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(rustix::io::Errno::INVAL);
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
    })
    .map(|_| ())
}

/// Receives a packet with descriptors; `None` at the end.
///
/// # Errors
/// The kernel's.
pub fn receive(socket: impl AsFd) -> rustix::io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    if received.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    let fds = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    Ok(Some((bytes, fds)))
}

/// Sends a word of the handshake.
///
/// # Errors
/// When the other side is gone.
pub fn send_hello(socket: impl AsFd, hello: &Hello) -> std::io::Result<()> {
    Ok(send(socket, &serde_json::to_vec(hello)?, &[])?)
}

/// Waits for a word of the handshake.
///
/// # Errors
/// When the other side is gone or talks nonsense.
pub fn receive_hello(socket: impl AsFd) -> std::io::Result<Hello> {
    match receive(socket)? {
        Some((bytes, _)) => Ok(serde_json::from_slice(&bytes)?),
        None => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    proptest::proptest! {
        /// The other side may be anything: what it says is understood or an error, and no descriptor of it stays open.
        #[test]
        fn any_packet_is_a_word_or_an_error(bytes in "[{}\\[\\]\":,A-Za-z0-9]*|\\PC*", fds in 0usize..6) {
            let (here, there) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(6))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let many = vec![here.as_fd(); fds];
            proptest::prop_assert!(many.is_empty() || control.push(SendAncillaryMessage::ScmRights(&many)));
            let bytes = &bytes.as_bytes()[..bytes.len().min(MAX_PACKET)];
            rustix::net::sendmsg(&here, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
            if let Some((got, fds)) = receive(&there).unwrap() {
                proptest::prop_assert_eq!(&got, bytes);
                proptest::prop_assert!(fds.len() <= 6);
            }
            send(&here, bytes, &[]).unwrap();
            let _ = receive_hello(&there);
            let _ = serde_json::from_slice::<Request>(bytes);
            let _ = serde_json::from_slice::<Reply>(bytes);
        }
    }

    #[test]
    fn descriptors_travel_with_a_packet() {
        let (here, there) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        send(&here, b"x", &[writer.as_fd()]).unwrap();
        drop(writer);
        send_hello(&here, &Hello::Ready).unwrap();
        drop(here);
        let (bytes, fds) = receive(&there).unwrap().unwrap();
        assert_eq!((bytes.as_slice(), fds.len()), (b"x".as_slice(), 1));
        let flags = rustix::io::fcntl_getfd(&fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        std::fs::File::from(fds.into_iter().next().unwrap()).write_all(b"through").unwrap();
        let mut text = String::new();
        std::fs::File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert!(matches!(receive_hello(&there), Ok(Hello::Ready)));
        assert!(receive(&there).unwrap().is_none());
    }
}
