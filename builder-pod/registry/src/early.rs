//! A blob that is sent while it is still being written, as `docker push` does: POST, one PATCH that streams what is there
//! and what comes, and the digest with the PUT at the end. It is a head start and nothing more: whatever goes wrong with it,
//! [`Client::put_blob`] then sends the whole file in its own way.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Body, Method, StatusCode, Url};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::error::{Error, Fault};
use crate::manifest::Blob;
use crate::name::ImageName;
use crate::push::{Origin, PIECE, Put, SLOWEST, piece};

/// How much of a file is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes from its start on that do not change any more.
    pub bytes: u64,
    /// Whether that is all of it.
    pub whole: bool,
}

/// An upload of a file that grows.
#[derive(Debug)]
pub struct Early {
    client: Client,
    to: ImageName,
    file: Arc<File>,
    sending: JoinHandle<Result<Url, Fault>>,
}

impl Client {
    /// Begins to send `file` to a repository. `written` is told as it grows; when its sender goes before the file is whole, the
    /// upload ends.
    #[must_use]
    pub fn begin_blob(&self, to: &ImageName, file: File, written: watch::Receiver<Written>) -> Early {
        let file = Arc::new(file);
        let (client, name, source) = (self.clone(), to.clone(), file.clone());
        let sending = tokio::spawn(async move { client.stream(&name, &source, written).await });
        Early { client: self.clone(), to: to.clone(), file, sending }
    }

    /// Sends all of a file that grows; the place where the upload goes on.
    async fn stream(
        &self,
        to: &ImageName,
        file: &Arc<File>,
        written: watch::Receiver<Written>,
    ) -> Result<Url, Fault> {
        let place = self.origin(to)?;
        let what = format!("a blob to {}", to.repository_name());
        let mut ask = self.ask(&place, Method::POST, place.uploads(), &format!("push {what}"));
        ask.scopes = vec![place.push_scope()];
        ask.headers = vec![("content-length", "0".to_owned())];
        let answer = self.send(&ask, || None).await?;
        if answer.status() != StatusCode::ACCEPTED {
            return Err(self.refusal(&ask, &what, answer).await.into());
        }
        ask.url = self.session(&ask, &answer)?;
        ask.method = Method::PATCH;
        ask.headers = vec![("content-type", "application/octet-stream".to_owned())];
        // For as long as the file grows; whoever waits for the end has a limit.
        ask.patience = Duration::MAX;
        let body = || Some(Body::wrap_stream(growing(file.clone(), written.clone())));
        let answer = self.send(&ask, body).await?;
        if answer.status() != StatusCode::ACCEPTED && answer.status() != StatusCode::NO_CONTENT {
            return Err(self.refusal(&ask, &what, answer).await.into());
        }
        self.session(&ask, &answer)
    }
}

impl Early {
    /// The file is whole and is `blob`: ends the upload, or sends it in the ordinary way.
    ///
    /// # Errors
    /// As [`Client::put_blob`].
    pub async fn put(mut self, blob: &Blob) -> Result<Put, Error> {
        let (client, to, file) = (self.client.clone(), self.to.clone(), self.file.clone());
        match self.finish(blob).await {
            Ok(put) => Ok(put),
            Err(fault) => {
                tracing::debug!(?fault, "a blob could not be sent while it was made");
                drop(self);
                client.put_blob(&to, blob, &Origin::File(file)).await
            }
        }
    }

    async fn finish(&mut self, blob: &Blob) -> Result<Put, Fault> {
        let client = self.client.clone();
        let place = client.origin(&self.to)?;
        let what = format!("blob {} to {}", blob.digest, self.to.repository_name());
        if client.has_blob(&place, blob, &what).await? {
            return Ok(Put::Present);
        }
        let patience = client.inner.retry.settle + Duration::from_secs(blob.size / SLOWEST);
        let mut session = match tokio::time::timeout(patience, &mut self.sending).await {
            Ok(Ok(sent)) => sent?,
            Ok(Err(_)) => return Err(Fault::again("the upload broke off")),
            Err(_) => return Err(Fault::again(format!("no answer within {} s", patience.as_secs()))),
        };
        session.query_pairs_mut().append_pair("digest", &blob.digest);
        let mut ask = client.ask(&place, Method::PUT, session, &format!("push {what}"));
        ask.scopes = vec![place.push_scope()];
        ask.headers = vec![("content-length", "0".to_owned())];
        // It hashes what it has got.
        ask.patience = patience;
        let answer = client.send(&ask, || None).await?;
        match answer.status() {
            StatusCode::CREATED => Ok(Put::Uploaded),
            _ => Err(client.refusal(&ask, &what, answer).await.into()),
        }
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        self.sending.abort();
    }
}

/// The pieces of a file as they are written, until it is whole.
fn growing(
    file: Arc<File>,
    written: watch::Receiver<Written>,
) -> impl futures::Stream<Item = std::io::Result<Bytes>> {
    futures::stream::try_unfold((file, written, 0u64), |(file, mut written, sent)| async move {
        // Whole pieces, but for the last one.
        let enough = |now: &Written| now.whole || now.bytes >= sent + PIECE;
        let now = *written.wait_for(enough).await.map_err(std::io::Error::other)?;
        let length = PIECE.min(now.bytes.saturating_sub(sent));
        if length == 0 {
            return Ok(None);
        }
        let bytes = piece(file.clone(), sent, length).await?;
        Ok(Some((bytes, (file, written, sent + length))))
    })
}
