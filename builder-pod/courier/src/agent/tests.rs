//! The agent against OpenSSH's own programs where they are there, and against odd messages.

use std::process::Command;

use tokio::io::duplex;

use super::*;

/// A key as ssh-keygen writes it; `None` where there is no ssh-keygen.
fn generate(dir: &std::path::Path, kind: &[&str]) -> Option<Vec<u8>> {
    let file = dir.join(kind.concat());
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-N", "", "-C", "me@here", "-f"]).arg(&file).args(kind);
    match command.status() {
        Ok(status) if status.success() => Some(std::fs::read(file).expect("the key")),
        _ => {
            println!("not run: ssh-keygen {kind:?} does not work here");
            None
        }
    }
}

/// What the agent says to each request.
async fn ask(agent: Agent, requests: &[&[u8]]) -> Vec<Vec<u8>> {
    let (mut ours, theirs) = duplex(1 << 20);
    let talk = async {
        let mut answers = Vec::new();
        for request in requests {
            write(&mut ours, request).await.expect("sent");
            answers.push(read(&mut ours).await.expect("read").expect("an answer"));
        }
        drop(ours);
        answers
    };
    let (served, answers) = tokio::join!(serve(Arc::new(agent), theirs), talk);
    served.expect("served");
    answers
}

fn sign_request(public: &[u8], data: &[u8], flags: u32) -> Vec<u8> {
    let mut request = vec![SIGN_REQUEST];
    put(&mut request, public).expect("short");
    put(&mut request, data).expect("short");
    request.extend_from_slice(&flags.to_be_bytes());
    request
}

#[tokio::test]
async fn keys_are_listed_and_sign() {
    let dir = tempfile::tempdir().expect("a directory");
    for (kind, flags, algorithm) in [
        (&["-t", "ed25519"][..], 0, "ssh-ed25519"),
        (&["-t", "ecdsa", "-b", "256"], 0, "ecdsa-sha2-nistp256"),
        (&["-t", "ecdsa", "-b", "384"], 0, "ecdsa-sha2-nistp384"),
        (&["-t", "ecdsa", "-b", "256", "-m", "PKCS8"], 0, "ecdsa-sha2-nistp256"),
        (&["-t", "rsa", "-b", "2048"], RSA_256, "rsa-sha2-256"),
        (&["-t", "rsa", "-b", "3072"], RSA_512, "rsa-sha2-512"),
        (&["-t", "rsa", "-m", "PEM", "-b", "2048"], RSA_512, "rsa-sha2-512"),
        (&["-t", "rsa", "-m", "PKCS8", "-b", "2048"], RSA_512 | RSA_256, "rsa-sha2-512"),
    ] {
        let Some(bytes) = generate(dir.path(), kind) else { continue };
        let key = Key::parse(&bytes, "name").expect("a key");
        let public = key.public().to_vec();
        let file = std::fs::read_to_string(dir.path().join(format!("{}.pub", kind.concat()))).expect("there");
        let written = file.split(' ').nth(1).expect("base64");
        assert_eq!(base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &public), written);
        let agent = Agent::Keys(vec![key]);
        let answers = ask(agent, &[&[REQUEST_IDENTITIES], &sign_request(&public, b"data", flags)]).await;
        let mut list = &answers[0][5..];
        assert_eq!(answers[0][..5], [IDENTITIES_ANSWER, 0, 0, 0, 1]);
        assert_eq!(take(&mut list), Some(&public[..]));
        let comment = String::from_utf8_lossy(take(&mut list).expect("a comment")).into_owned();
        assert!(["me@here", "name"].contains(&comment.as_str()), "{comment}");
        // Whether the signature holds is for OpenSSH to say, below.
        let mut response = &answers[1][1..];
        assert_eq!(answers[1][0], SIGN_RESPONSE, "{kind:?}");
        let mut blob = take(&mut response).expect("a signature");
        assert_eq!(take(&mut blob), Some(algorithm.as_bytes()));
        assert!(take(&mut blob).is_some_and(|signature| signature.len() >= 64) && blob.is_empty());
    }
}

const RSA_256: u32 = 2;
const RSA_512: u32 = 4;

#[tokio::test]
async fn nothing_else_is_done() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(bytes) = generate(dir.path(), &["-t", "ed25519"]) else { return };
    let key = Key::parse(&bytes, "name").expect("a key");
    let public = key.public().to_vec();
    let agent = Agent::Keys(vec![key]);
    let mut long = sign_request(&public, b"data", 0);
    long.push(0);
    let short = &sign_request(&public, b"data", 0)[..20];
    let other = sign_request(b"another key", b"data", 0);
    // Add, remove, remove all, lock, unlock, extension; no type at all; broken and unknown requests to sign.
    let requests: [&[u8]; 10] = [&[17], &[18], &[19], &[22], &[23], &[27], &[], &long, short, &other];
    for (request, answer) in requests.iter().zip(ask(agent, &requests).await) {
        assert_eq!(answer, [FAILURE], "{request:?}");
    }
    let (mut ours, theirs) = duplex(64);
    ours.write_u32(u32::try_from(MAX_MESSAGE + 1).expect("small")).await.expect("sent");
    assert!(serve(Arc::new(Agent::Keys(vec![])), theirs).await.is_err(), "too long");
}

#[tokio::test]
async fn an_agent_of_this_machine_is_asked_the_same_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("agent");
    let listener = tokio::net::UnixListener::bind(&path).expect("listening");
    let behind = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut seen = Vec::new();
        while let Some(request) = read(&mut stream).await.expect("read") {
            write(&mut stream, &[b"answer to ".as_slice(), &request].concat()).await.expect("sent");
            seen.push(request);
        }
        seen
    });
    let answers = ask(Agent::Socket(path), &[&[REQUEST_IDENTITIES], &[19], &[SIGN_REQUEST, 1]]).await;
    assert_eq!(answers, [b"answer to \x0b".to_vec(), vec![FAILURE], b"answer to \x0d\x01".to_vec()]);
    assert_eq!(behind.await.expect("no panic"), [vec![REQUEST_IDENTITIES], vec![SIGN_REQUEST, 1]]);
}

/// `ssh-keygen -Y sign` has the agent sign, and `-Y check-novalidate` checks the signature.
#[tokio::test(flavor = "multi_thread")]
async fn openssh_takes_the_signatures() {
    let dir = tempfile::tempdir().expect("a directory");
    for kind in [
        &["-t", "ed25519"][..],
        &["-t", "ecdsa"],
        &["-t", "ecdsa", "-b", "384"],
        &["-t", "rsa", "-b", "2048"],
        &["-t", "rsa", "-m", "PEM"],
    ] {
        let Some(bytes) = generate(dir.path(), kind) else { continue };
        let agent = Arc::new(Agent::Keys(vec![Key::parse(&bytes, "name").expect("a key")]));
        let path = dir.path().join(format!("agent{}", kind.concat()));
        let listener = tokio::net::UnixListener::bind(&path).expect("listening");
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                serve(agent.clone(), stream).await.expect("served");
            }
        });
        // Only the agent has the private half.
        std::fs::remove_file(dir.path().join(kind.concat())).expect("removed");
        let public = dir.path().join(format!("{}.pub", kind.concat()));
        let script = r#"
            set -e
            ssh-add -l
            cd "$1"; rm -f data.sig; echo data > data
            ssh-keygen -Y sign -n file -f "$2" data
            ssh-keygen -Y check-novalidate -n file -s data.sig < data"#;
        let run = tokio::process::Command::new("sh")
            .args(["-c", script, "sh"])
            .args([dir.path(), &public])
            .env("SSH_AUTH_SOCK", &path)
            .output();
        let done = run.await.expect("sh");
        assert!(done.status.success(), "{kind:?}: {}", String::from_utf8_lossy(&done.stderr));
        let add = tokio::process::Command::new("ssh-add").arg("-D").env("SSH_AUTH_SOCK", &path).output();
        assert!(!add.await.expect("ssh-add").status.success(), "keys can't be taken away");
        serving.abort();
    }
}

#[test]
fn what_is_no_usable_key_is_told_without_showing_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(good) = generate(dir.path(), &["-t", "ed25519"]) else { return };
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "secret", "-f"]).arg(dir.path().join("enc"));
    assert!(command.status().expect("ssh-keygen").success());
    let encrypted = std::fs::read(dir.path().join("enc")).expect("there");
    let text = String::from_utf8(good).expect("text");
    let crs = text.trim_end().replace('\n', "\r\n");
    assert!(Key::parse(crs.as_bytes(), "n").is_ok(), "line ends do not matter");
    for (bytes, expected) in [
        (encrypted, KeyError::Encrypted),
        (generate(dir.path(), &["-t", "ecdsa", "-b", "521"]).expect("a key"), KeyError::Kind),
        (generate(dir.path(), &["-t", "rsa", "-b", "1024"]).expect("a key"), KeyError::Kind),
        (b"ssh-ed25519 AAAA me".to_vec(), KeyError::Format),
        (b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n".to_vec(), KeyError::Format),
        (text.replace("b3Bl", "AAAA").into_bytes(), KeyError::Invalid),
        (b"\xff".to_vec(), KeyError::Format),
        (vec![], KeyError::Format),
    ] {
        assert_eq!(Key::parse(&bytes, "n").map(|_| ()), Err(expected), "{}", String::from_utf8_lossy(&bytes));
    }
}

/// A number in ssh has no zeros in front; one key of 256 has such a number, and here it is 1, whose point is the curve's
/// base (SEC 2, secp256r1).
#[test]
fn short_numbers_are_read() {
    let point = "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296\
                 4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";
    let point = hex::decode(point).expect("hexadecimal");
    let text = |parts: &[&[u8]]| {
        let mut out = Vec::new();
        parts.iter().for_each(|part| put(&mut out, part).expect("short"));
        out
    };
    let mut private = vec![7; 8];
    private.extend(text(&[b"ecdsa-sha2-nistp256", b"nistp256", &point, &[1], b"me@here"]));
    let mut blob = b"openssh-key-v1\0".to_vec();
    blob.extend(text(&[b"none", b"none", b""]));
    blob.extend_from_slice(&[0, 0, 0, 1]);
    blob.extend(text(&[b"public", &private]));
    let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &blob);
    let pem = format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\n-----END OPENSSH PRIVATE KEY-----\n");
    let key = Key::parse(pem.as_bytes(), "name").expect("a key");
    assert_eq!((key.comment(), key.sign(b"data", 0).is_some()), ("me@here", true));
}
