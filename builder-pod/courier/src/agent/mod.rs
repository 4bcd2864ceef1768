//! The ssh agent that a step talks to (`RUN --mount=type=ssh`; draft-ietf-sshm-ssh-agent). It lists keys and signs; whoever
//! is on the other side can neither add nor take away a key, nor see one.

pub mod keys;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;

use keys::Key;
#[cfg(test)]
use keys::KeyError;

/// Longest message; OpenSSH's own limit.
const MAX_MESSAGE: usize = 256 << 10;

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// Who signs.
#[derive(Debug)]
pub enum Agent {
    /// We do.
    Keys(Vec<Key>),
    /// An agent of this machine; it is asked for nothing else than we would do.
    Socket(PathBuf),
}

/// Answers requests until the other side closes.
///
/// # Errors
/// The connection breaks, a message is too long, or the agent of this machine is gone.
pub async fn serve(agent: Arc<Agent>, mut client: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut behind = match &*agent {
        Agent::Keys(_) => None,
        Agent::Socket(path) => Some(UnixStream::connect(path).await?),
    };
    while let Some(request) = read(&mut client).await? {
        let allowed = matches!(request.first(), Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)));
        let answer = match &mut behind {
            _ if !allowed => vec![FAILURE],
            Some(behind) => {
                write(behind, &request).await?;
                read(behind).await?.ok_or(io::ErrorKind::UnexpectedEof)?
            }
            None => {
                // Signing takes milliseconds, which the courier's other work shall not wait for.
                let agent = agent.clone();
                let task = tokio::task::spawn_blocking(move || agent.answer(&request));
                task.await.map_err(io::Error::other)?.unwrap_or_else(|| vec![FAILURE])
            }
        };
        write(&mut client, &answer).await?;
    }
    Ok(())
}

impl Agent {
    fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Keys(keys) => answer(keys, request),
            Self::Socket(_) => None,
        }
    }
}

async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let length = match from.read_u32().await {
        Ok(length) => length as usize,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > MAX_MESSAGE {
        let text = format!("a message of {length} bytes, more than the {MAX_MESSAGE} allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut message = vec![0; length];
    from.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(message.len() + 4);
    put(&mut bytes, message)?;
    to.write_all(&bytes).await
}

/// The answer to a request; `None` for one that can't be read, or about a key that is not here.
fn answer(keys: &[Key], request: &[u8]) -> Option<Vec<u8>> {
    let (kind, mut rest) = request.split_first()?;
    let mut out = Vec::new();
    if *kind == REQUEST_IDENTITIES {
        out.push(IDENTITIES_ANSWER);
        out.extend_from_slice(&u32::try_from(keys.len()).ok()?.to_be_bytes());
        for key in keys {
            put(&mut out, key.public()).ok()?;
            put(&mut out, key.comment().as_bytes()).ok()?;
        }
        return Some(out);
    }
    let (public, data) = (take(&mut rest)?, take(&mut rest)?);
    let flags = u32::from_be_bytes(rest.try_into().ok()?);
    let key = keys.iter().find(|key| key.public() == public)?;
    let (algorithm, signature) = key.sign(data, flags)?;
    let mut blob = Vec::new();
    put(&mut blob, algorithm.as_bytes()).ok()?;
    put(&mut blob, &signature).ok()?;
    out.push(SIGN_RESPONSE);
    put(&mut out, &blob).ok()?;
    Some(out)
}

/// A byte string: its length and it.
fn put(out: &mut Vec<u8>, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

fn take<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = from.split_first_chunk::<4>()?;
    let (bytes, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *from = rest;
    Some(bytes)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
