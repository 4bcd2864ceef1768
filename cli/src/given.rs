//! `--secret` and `--ssh` of the command line, as buildx reads them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kiln_contract::call::MAX_SECRET;
use kiln_courier::Given;
use kiln_courier::given::{Secret, Signers};

/// What is wrong with a `--secret`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GivenError {
    /// A field that is no `key=value`.
    #[error("expected id=NAME[,src=FILE|,env=VARIABLE], found {0:?}")]
    Field(String),
    /// A key that there is not.
    #[error("unexpected key {0:?}; the keys are id, src, env and type")]
    Key(String),
    /// Neither `file` nor `env`.
    #[error("unexpected type {0:?}; the types are file and env")]
    Type(String),
    /// No name.
    #[error("the secret has no name: add id=NAME")]
    NoId,
    /// A file that can't be read.
    #[error("the secret {id} can't be read from {path}: {why}")]
    File {
        /// Its name.
        id: String,
        /// Where it should be.
        path: String,
        /// What the system says.
        why: String,
    },
    /// A variable that is not set.
    #[error("the secret {id} is in the environment variable {name}, which is not set")]
    Variable {
        /// Its name.
        id: String,
        /// The variable.
        name: String,
    },
    /// No agent to ask.
    #[error(
        "the ssh agent {id} needs SSH_AUTH_SOCK in the environment (an agent that runs), or a key: --ssh {id}=KEY"
    )]
    NoAgent {
        /// Its name.
        id: String,
    },
    /// A key or socket that can't be used.
    #[error("the ssh agent {id}: {why}")]
    Ssh {
        /// Its name.
        id: String,
        /// What is wrong.
        why: String,
    },
    /// More than a secret may have.
    #[error("the secret {id} has more than the {MAX_SECRET} bytes that a secret may have")]
    TooLong {
        /// Its name.
        id: String,
    },
}

/// A `--secret`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretSpec {
    id: String,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    File(PathBuf),
    Variable(String),
    /// The variable of its name, or the file where there is no such variable.
    Either,
}

impl FromStr for SecretSpec {
    type Err = GivenError;

    fn from_str(text: &str) -> Result<Self, GivenError> {
        let (mut id, mut file, mut variable, mut in_variable) = (None, None, None, false);
        for field in text.split(',') {
            let (key, value) = field.split_once('=').ok_or_else(|| GivenError::Field(field.to_owned()))?;
            match key.to_lowercase().as_str() {
                "id" => id = Some(value.to_owned()),
                "src" | "source" => file = Some(value.to_owned()),
                "env" => variable = Some(value.to_owned()),
                "type" if value == "file" => in_variable = false,
                "type" if value == "env" => in_variable = true,
                "type" => return Err(GivenError::Type(value.to_owned())),
                _ => return Err(GivenError::Key(key.to_owned())),
            }
        }
        let id = id.filter(|id: &String| !id.is_empty()).ok_or(GivenError::NoId)?;
        if in_variable && variable.is_none() {
            variable = file.take();
        }
        let place = match (variable, file) {
            (Some(name), _) => Place::Variable(name),
            (None, Some(path)) => Place::File(path.into()),
            (None, None) => Place::Either,
        };
        Ok(Self { id, place })
    }
}

/// A `--ssh`: `NAME`, `NAME=SOCKET` or `NAME=KEY[,KEY]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSpec {
    id: String,
    paths: Vec<PathBuf>,
}

impl FromStr for SshSpec {
    type Err = GivenError;

    fn from_str(text: &str) -> Result<Self, GivenError> {
        let (id, paths) = text.split_once('=').unwrap_or((text, ""));
        let id = if id.is_empty() { "default" } else { id };
        let paths = paths.split(',').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
        Ok(Self { id: id.to_owned(), paths })
    }
}

/// Who signs for each agent; `default_socket` is `SSH_AUTH_SOCK`.
///
/// # Errors
/// A key or socket is not there, or the key can't be used.
pub fn agents(
    specs: &[SshSpec],
    default_socket: Option<&Path>,
) -> Result<BTreeMap<String, Signers>, GivenError> {
    let mut agents = BTreeMap::new();
    for SshSpec { id, paths } in specs {
        let fault = |why: String| GivenError::Ssh { id: id.clone(), why };
        let mut absolute = Vec::new();
        for path in paths {
            let shown = |e: std::io::Error| fault(format!("{}: {e}", path.display()));
            let path = std::path::absolute(path).map_err(shown)?;
            let is_socket = {
                use std::os::unix::fs::FileTypeExt as _;
                std::fs::metadata(&path).map_err(shown)?.file_type().is_socket()
            };
            absolute.push((path, is_socket));
        }
        let signers = match absolute.as_slice() {
            [] => {
                let socket = default_socket.filter(|path| !path.as_os_str().is_empty());
                Signers::Socket(socket.ok_or_else(|| GivenError::NoAgent { id: id.clone() })?.to_owned())
            }
            [(socket, true)] => Signers::Socket(socket.clone()),
            several if several.iter().any(|(_, is_socket)| *is_socket) => {
                return Err(fault("a socket stands alone: either one socket or keys".to_owned()));
            }
            _ => Signers::Keys(absolute.into_iter().map(|(path, _)| path).collect()),
        };
        // A key that can't be used is told now.
        let one = Given { ssh: [(id.clone(), signers.clone())].into(), ..Given::default() };
        one.agent(id).map_err(|failure| fault(failure.message))?;
        agents.insert(id.clone(), signers);
    }
    Ok(agents)
}

/// Where the secrets are; whatever is not there is told now and not in the middle of a build.
///
/// # Errors
/// A file or variable is not there, or is too long.
pub fn secrets(
    specs: &[SecretSpec],
    variable: &dyn Fn(&str) -> Option<Vec<u8>>,
) -> Result<BTreeMap<String, Secret>, GivenError> {
    let mut secrets = BTreeMap::new();
    for SecretSpec { id, place } in specs {
        let secret = match place {
            Place::File(path) => file(id, path)?,
            Place::Variable(name) => {
                let missing = || GivenError::Variable { id: id.clone(), name: name.clone() };
                Secret::Bytes(variable(name).ok_or_else(missing)?)
            }
            Place::Either => match variable(id) {
                Some(value) => Secret::Bytes(value),
                None => file(id, Path::new(id))?,
            },
        };
        if matches!(&secret, Secret::Bytes(bytes) if bytes.len() > MAX_SECRET) {
            return Err(GivenError::TooLong { id: id.clone() });
        }
        secrets.insert(id.clone(), secret);
    }
    Ok(secrets)
}

fn file(id: &str, path: &Path) -> Result<Secret, GivenError> {
    let fault = |why: String| GivenError::File { id: id.to_owned(), path: path.display().to_string(), why };
    let path = std::path::absolute(path).map_err(|e| fault(e.to_string()))?;
    match std::fs::metadata(&path) {
        Err(e) => Err(fault(e.to_string())),
        Ok(found) if found.is_dir() => Err(fault("it is a directory".to_owned())),
        Ok(found) if found.len() > MAX_SECRET as u64 => Err(GivenError::TooLong { id: id.to_owned() }),
        // A pipe (`src=<(command)`) can be read once only.
        Ok(found) if !found.is_file() => {
            use std::io::Read as _;
            let mut bytes = Vec::new();
            let opened = std::fs::File::open(&path);
            opened
                .and_then(|file| file.take(MAX_SECRET as u64 + 1).read_to_end(&mut bytes))
                .map_err(|e| fault(e.to_string()))?;
            Ok(Secret::Bytes(bytes))
        }
        Ok(_) => Ok(Secret::File(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Secret, GivenError> {
        let variable = |name: &str| (name == "TOKEN").then(|| b"value".to_vec());
        Ok(secrets(&[text.parse()?], &variable)?.remove("id").expect("it is called id"))
    }

    #[test]
    fn files_and_variables() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        std::fs::write(&path, "x").expect("written");
        let here = path.display().to_string();
        let value = Ok(Secret::Bytes(b"value".to_vec()));
        assert_eq!(read(&format!("id=id,src={here}")), Ok(Secret::File(path.clone())));
        assert_eq!(read(&format!("type=file,ID=id,source={here}")), Ok(Secret::File(path)));
        assert_eq!(read("id=id,env=TOKEN"), value);
        assert_eq!(read("type=env,id=id,src=TOKEN"), value);
        let either: SecretSpec = "id=TOKEN".parse().expect("good");
        let found = secrets(&[either], &|_| Some(b"v".to_vec())).expect("there");
        assert_eq!(found["TOKEN"], Secret::Bytes(b"v".to_vec()));
    }

    #[test]
    fn agents_are_sockets_or_keys() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("agent");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("listening");
        let read =
            |text: &str, default: Option<&Path>| agents(&[text.parse::<SshSpec>().expect("always")], default);
        let here = socket.display().to_string();
        let expected = |id: &str| Ok([(id.to_owned(), Signers::Socket(socket.clone()))].into());
        assert_eq!(read("default", Some(&socket)), expected("default"));
        assert_eq!(read("", Some(&socket)), expected("default"));
        assert_eq!(read(&format!("git={here}"), None), expected("git"));
        std::fs::write(dir.path().join("key"), "no key").expect("written");
        let key = dir.path().join("key").display().to_string();
        for (text, words) in [
            ("default", "needs SSH_AUTH_SOCK"),
            ("a=/nonexistent/x", "/nonexistent/x: No such file"),
            (&format!("a={here},{key}"), "a socket stands alone"),
            (&format!("a={key}"), "expected a private key in OpenSSH's format"),
        ] {
            let error = read(text, None).expect_err(words).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let large = |_: &str| Some(vec![0; MAX_SECRET + 1]);
        assert_eq!(
            secrets(&["id=a,env=A".parse().expect("good")], &large),
            Err(GivenError::TooLong { id: "a".into() })
        );
        for (text, words) in [
            ("x", "expected id=NAME"),
            ("src=x", "no name"),
            ("id=", "no name"),
            ("id=a,path=x", "unexpected key \"path\""),
            ("id=a,type=x", "unexpected type"),
            ("id=id,src=/nonexistent/x", "can't be read from /nonexistent/x"),
            ("id=id,src=/", "is a directory"),
            ("id=id,env=NOT_SET", "NOT_SET, which is not set"),
        ] {
            let error = read(text).expect_err(words).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
