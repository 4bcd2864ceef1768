//! What a build was given for its steps: secrets and ssh agents, and a git for ADD. Each secret is read when a step asks for it, and handed out
//! through the step's descriptor only; nothing of it is kept.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use kiln_contract::call::{MAX_SECRET, Reply};
use kiln_contract::failure::{Failure, FailureClass, reason};
use kiln_git::Place;

use crate::agent::Agent;
use crate::agent::keys::Key;
use crate::failure::internal;

/// Where secrets are.
#[derive(Debug, Default)]
pub struct Given {
    /// A directory with a file per id, in a pod.
    pub secrets_dir: Option<PathBuf>,
    /// One by one, on a plain machine.
    pub secrets: BTreeMap<String, Secret>,
    /// A directory with a private key per agent's id, in a pod.
    pub ssh_dir: Option<PathBuf>,
    /// One by one, on a plain machine.
    pub ssh: BTreeMap<String, Signers>,
    /// Where git repositories are checked out.
    pub git: Place,
}

/// Who signs for an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signers {
    /// An agent that listens at a socket.
    Socket(PathBuf),
    /// These private keys.
    Keys(Vec<PathBuf>),
}

/// Where a secret is.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// In a file.
    File(PathBuf),
    /// Here.
    Bytes(Vec<u8>),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Bytes(bytes) => write!(f, "Bytes({} of them)", bytes.len()),
        }
    }
}

impl Given {
    /// Writes a secret into `pipe`.
    ///
    /// # Errors
    /// It is there and can't be read, or is too long.
    pub fn secret(&self, id: &str, pipe: OwnedFd) -> Result<Reply, Failure> {
        let named = self.secrets.get(id).cloned();
        let Some(secret) = named.or_else(|| in_directory(self.secrets_dir.as_deref(), id).map(Secret::File))
        else {
            return Ok(Reply::Absent);
        };
        let bytes = match secret {
            Secret::Bytes(bytes) => bytes,
            Secret::File(path) => read(&path).map_err(|e| {
                let text = format!("the secret {id} can't be read from {}: {e}", path.display());
                Failure::new(FailureClass::User, reason::NOT_FOUND, text)
            })?,
        };
        if bytes.len() > MAX_SECRET {
            let text = format!("the secret {id} has more than the {MAX_SECRET} bytes that a secret may have");
            return Err(Failure::new(FailureClass::User, reason::NOT_SUPPORTED, text));
        }
        let written = File::from(pipe).write_all(&bytes);
        written.map(|()| Reply::Done).map_err(|e| internal(format!("handing out the secret {id}: {e}")))
    }
}

impl Given {
    /// The agent of a name; `None` when the build was given none.
    ///
    /// # Errors
    /// A key can't be read.
    pub fn agent(&self, id: &str) -> Result<Option<Agent>, Failure> {
        let named = self.ssh.get(id).cloned();
        let in_pod = || in_directory(self.ssh_dir.as_deref(), id).map(|path| Signers::Keys(vec![path]));
        let paths = match named.or_else(in_pod) {
            None => return Ok(None),
            Some(Signers::Socket(path)) => return Ok(Some(Agent::Socket(path))),
            Some(Signers::Keys(paths)) => paths,
        };
        let key = |path: &PathBuf| {
            let fault = |why: String| {
                let text = format!("the ssh key {id} can't be used ({}): {why}", path.display());
                Failure::new(FailureClass::User, reason::INVALID_SPEC, text)
            };
            let bytes = read(path).map_err(|e| fault(e.to_string()))?;
            Key::parse(&bytes, id).map_err(|e| fault(e.to_string()))
        };
        let keys: Vec<Key> = paths.iter().map(key).collect::<Result<_, _>>()?;
        Ok(Some(Agent::Keys(keys)))
    }
}

/// The file of an id, where there is one; ids come from Dockerfiles and must not lead elsewhere.
fn in_directory(dir: Option<&Path>, id: &str) -> Option<PathBuf> {
    let plain = !id.is_empty() && !id.starts_with('.') && !id.contains(['/', '\0']);
    dir.filter(|_| plain).map(|dir| dir.join(id)).filter(|path| path.exists())
}

/// A little more than may be, so that too much is noticed.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_SECRET as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer, and what came through the pipe.
    fn ask(given: &Given, id: &str) -> (Result<Reply, Failure>, Vec<u8>) {
        let (mut read, write) = std::io::pipe().expect("a pipe");
        std::thread::scope(|s| {
            let answer = s.spawn(|| given.secret(id, write.into()));
            let mut bytes = Vec::new();
            read.read_to_end(&mut bytes).expect("read");
            (answer.join().expect("no panic"), bytes)
        })
    }

    #[test]
    fn secrets_are_found_by_name_and_nowhere_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let secrets = dir.path().join("secrets");
        std::fs::create_dir(&secrets).expect("made");
        std::fs::write(dir.path().join("outside"), "no").expect("written");
        std::fs::write(secrets.join("npm.token"), "from file").expect("written");
        std::fs::write(secrets.join("large"), vec![b'x'; MAX_SECRET]).expect("written");
        std::fs::write(secrets.join("larger"), vec![b'x'; MAX_SECRET + 1]).expect("written");
        let named = [
            ("here".to_owned(), Secret::Bytes(b"given".to_vec())),
            ("gone".to_owned(), Secret::File(dir.path().join("gone"))),
        ];
        let given = Given { secrets_dir: Some(secrets), secrets: named.into(), ..Given::default() };
        assert_eq!(ask(&given, "npm.token"), (Ok(Reply::Done), b"from file".to_vec()));
        assert_eq!(ask(&given, "here"), (Ok(Reply::Done), b"given".to_vec()));
        assert_eq!(ask(&given, "large").1.len(), MAX_SECRET);
        for absent in ["other", "", ".", "..", "../outside", "/etc/passwd", "a/b"] {
            assert_eq!(ask(&given, absent), (Ok(Reply::Absent), vec![]), "{absent}");
        }
        let (answer, bytes) = ask(&given, "larger");
        let failure = answer.expect_err("too long");
        assert!(failure.message.contains("512000") && bytes.is_empty(), "{failure}");
        let failure = ask(&given, "gone").0.expect_err("not there");
        assert!(failure.message.contains("can't be read from"), "{failure}");
        assert!(!format!("{given:?}").contains("given\""));
    }
}
