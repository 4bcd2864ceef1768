//! The client against a courier of a few lines that answers over a real socket.

use std::fs::File;
use std::io::{IoSliceMut, Seek, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;
use std::sync::mpsc;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::*;

/// Takes one connection: its call, and the descriptor that came with it.
fn accept(listener: &UnixListener) -> (UnixStream, Call, Option<OwnedFd>) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut first = [0u8; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        &stream,
        &mut [IoSliceMut::new(&mut first)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    assert_eq!(got.bytes, 4);
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let mut body = vec![0; u32::from_be_bytes(first) as usize];
    stream.read_exact(&mut body).unwrap();
    (stream, serde_json::from_slice(&body).unwrap(), fd)
}

fn reply(mut stream: &UnixStream, reply: &Reply) {
    let body = serde_json::to_vec(reply).unwrap();
    stream.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&body).unwrap();
}

fn blob() -> Descriptor {
    Descriptor { media_type: "m".into(), digest: "sha256:1".into(), size: 5 }
}

struct Rig {
    _dir: tempfile::TempDir,
    listener: UnixListener,
    attached: UnixStream,
    client: Client,
    stop: Stop,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let stop = Stop::default();
    // The client is there first and has to wait for the socket.
    let thread = {
        let (socket, stop) = (socket.clone(), stop.clone());
        std::thread::spawn(move || Client::attach(&socket, &stop, SOCKET_WAIT).unwrap())
    };
    let listener = UnixListener::bind(&socket).unwrap();
    let (attached, call, _) = accept(&listener);
    assert_eq!(call, Call::Attach { version: VERSION });
    reply(&attached, &Reply::Done);
    Rig { _dir: dir, listener, attached, client: thread.join().unwrap(), stop }
}

#[test]
fn a_blob_is_written_into_the_pipe_that_came_along() {
    let rig = rig();
    let (mut read, write) = std::io::pipe().unwrap();
    std::thread::scope(|s| {
        let asked = s.spawn(|| rig.client.read_blob("i@sha256:0", &blob(), write.into()));
        let (stream, call, fd) = accept(&rig.listener);
        assert_eq!(call, Call::ReadBlob { image: "i@sha256:0".into(), blob: blob() });
        File::from(fd.unwrap()).write_all(b"hello").unwrap();
        let mut text = String::new();
        // Ends only when no write end is left: neither the client's nor the courier's.
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        reply(&stream, &Reply::Done);
        asked.join().unwrap().unwrap();
    });
}

#[test]
fn a_file_goes_along_and_stays_readable() {
    let rig = rig();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"bytes").unwrap();
    std::thread::scope(|s| {
        let asked = s.spawn(|| rig.client.put_blob(&blob(), file.as_fd()));
        let (stream, call, fd) = accept(&rig.listener);
        assert_eq!(call, Call::PutBlob { blob: blob() });
        let mut theirs = File::from(fd.unwrap());
        theirs.rewind().unwrap();
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, "bytes");
        reply(&stream, &Reply::Stored { how: Stored::Uploaded });
        assert_eq!(asked.join().unwrap().unwrap(), Stored::Uploaded);
    });
}

#[test]
fn a_failure_comes_back_as_it_was_said() {
    let rig = rig();
    let failure =
        Failure::new(kiln_contract::FailureClass::Registry, reason::REGISTRY_UNAUTHORIZED, "log in");
    std::thread::scope(|s| {
        let asked = s.spawn(|| rig.client.resolve("alpine", "linux/amd64"));
        let (stream, _, _) = accept(&rig.listener);
        reply(&stream, &Reply::Failed { failure: failure.clone() });
        match asked.join().unwrap() {
            Err(CourierError::Failed(found)) => assert_eq!(*found, failure),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn an_answer_of_the_wrong_kind_is_named() {
    let rig = rig();
    std::thread::scope(|s| {
        let asked = s.spawn(|| rig.client.commit("{}", &[]));
        let (stream, _, _) = accept(&rig.listener);
        reply(&stream, &Reply::Done);
        let error = asked.join().unwrap().unwrap_err().to_string();
        assert!(error.contains("answered commit with Done"), "{error}");
    });
}

#[test]
fn a_stop_ends_the_wait_for_an_answer_and_a_failure_still_goes_out() {
    let rig = rig();
    let failure = Failure::new(kiln_contract::FailureClass::Cancelled, reason::CANCELLED, "stopped");
    std::thread::scope(|s| {
        let asked = s.spawn(|| rig.client.resolve("alpine", "linux/amd64"));
        let (_kept_open, _, _) = accept(&rig.listener);
        reply(&rig.attached, &Reply::Stop { reason: reason::CANCELLED.into() });
        assert!(matches!(asked.join().unwrap(), Err(CourierError::Stopped)));
        assert_eq!(rig.stop.reason().as_deref(), Some(reason::CANCELLED));
        let failing = s.spawn(|| rig.client.fail(&failure));
        let (stream, call, _) = accept(&rig.listener);
        assert_eq!(call, Call::Fail { failure: failure.clone() });
        reply(&stream, &Reply::Done);
        failing.join().unwrap().unwrap();
    });
}

#[test]
fn the_courier_s_end_stops_the_build_and_the_client_s_own_end_does_not() {
    let Rig { _dir, listener, attached, client, stop } = rig();
    drop(attached);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|s| {
        // Nobody answers this call; it ends because the attached connection ended.
        s.spawn(|| sender.send(client.resolve("alpine", "linux/amd64").is_err()));
        let (_kept_open, _, _) = accept(&listener);
        assert!(receiver.recv().unwrap());
    });
    assert_eq!(stop.reason().as_deref(), Some(reason::BUILDER_LOST));

    let Rig { _dir, attached: _attached, client, stop, .. } = self::rig();
    drop(client);
    assert!(!stop.is_stopped());
}

#[test]
fn no_courier_is_said_with_the_place_to_look() {
    let dir = tempfile::tempdir().unwrap();
    let error =
        Client::attach(&dir.path().join("none"), &Stop::default(), Duration::ZERO).unwrap_err().to_string();
    assert!(error.contains("nobody listens at") && error.contains("courier container"), "{error}");
}

#[test]
fn secrets_come_through_a_pipe() {
    let rig = rig();
    let ask = |answer: Reply, bytes: &[u8]| {
        std::thread::scope(|s| {
            let asked = s.spawn(|| rig.client.secret("npm"));
            let (stream, call, fd) = accept(&rig.listener);
            assert_eq!(call, Call::Secret { id: "npm".into() });
            let mut pipe = File::from(fd.unwrap());
            // A client that has enough of it reads no more.
            let _ = pipe.write_all(bytes);
            drop(pipe);
            reply(&stream, &answer);
            asked.join().unwrap()
        })
    };
    assert_eq!(ask(Reply::Done, b"hush").unwrap(), Some(Secret(b"hush".to_vec())));
    assert_eq!(ask(Reply::Absent, b"").unwrap(), None);
    assert!(matches!(ask(Reply::Done, &vec![0; MAX_SECRET + 1]), Err(CourierError::Lost { .. })));
    rig.stop.stop("Cancelled");
    let asked = rig.client.secret("never answered");
    assert!(matches!(asked, Err(CourierError::Stopped)), "{asked:?}");
}
