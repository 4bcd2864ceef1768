//! Frames of the socket, on the courier's side (`kiln_contract::call`).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use kiln_contract::call::{Call, Reply};
use kiln_git::frame;

/// Reads one call and the descriptor that came with its first byte; `None` when the other side closed before it.
pub(crate) fn read(stream: &mut UnixStream) -> io::Result<Option<(Call, Option<OwnedFd>)>> {
    frame::receive(stream)
}

/// Writes one reply.
pub(crate) fn write(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    frame::send(stream, reply, None)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use kiln_contract::call::MAX_FRAME;
    use proptest::prelude::*;

    use super::*;

    /// What is read when these bytes come, in pieces, and then the end.
    fn read_from(bytes: &[u8], pieces: usize) -> io::Result<Option<Call>> {
        let (mut here, mut there) = UnixStream::pair()?;
        let piece = bytes.len().div_ceil(pieces).max(1);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for part in bytes.chunks(piece) {
                    // The reader may have given up.
                    let _ = there.write_all(part);
                }
            });
            let call = read(&mut here).map(|found| found.map(|(call, _)| call));
            drop(here);
            call
        })
    }

    fn framed(length: u32, body: &[u8]) -> Vec<u8> {
        [length.to_be_bytes().as_slice(), body].concat()
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_call_or_an_error(bytes: Vec<u8>, pieces in 1usize..5) {
            let read = read_from(&bytes, pieces);
            prop_assert!(bytes.is_empty() == matches!(read, Ok(None)));
        }

        #[test]
        fn a_frame_reads_back_in_any_pieces_and_not_in_part(
            reference in "\\PC{0,50}",
            pieces in 1usize..9,
            cut in any::<prop::sample::Index>(),
        ) {
            let call = Call::Resolve { reference, platform: "linux/amd64".into() };
            let body = serde_json::to_vec(&call).unwrap();
            let frame = framed(u32::try_from(body.len()).unwrap(), &body);
            prop_assert_eq!(read_from(&frame, pieces).unwrap(), Some(call));
            let cut = cut.index(frame.len() - 1) + 1;
            prop_assert!(read_from(&frame[..cut], pieces).is_err());
        }
    }

    #[test]
    fn a_long_frame_is_refused_before_it_is_read() {
        let error = read_from(&framed(MAX_FRAME + 1, b"{"), 1).unwrap_err();
        assert!(error.to_string().contains("longer"), "{error}");
        // One that only promises to be long takes no memory for it.
        assert!(read_from(&framed(MAX_FRAME, b"{"), 1).is_err());
    }
}
