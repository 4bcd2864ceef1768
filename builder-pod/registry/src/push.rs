//! Pushing: blobs (there already, mounted, copied or sent), then the manifest by digest, then tags; each verified.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Body, Method, Response, StatusCode, Url};

use crate::client::Client;
use crate::error::{Error, Fault};
use crate::guard;
use crate::manifest::{ACCEPT, Blob};
use crate::name::ImageName;
use crate::place::Place;
use crate::pull::digest_of;

/// Bytes of a blob in memory while it is sent.
pub(crate) const PIECE: u64 = 1 << 20;
/// Bytes a second below which an upload counts as stuck.
pub(crate) const SLOWEST: u64 = 64 << 10;
/// Seconds within which a try to move a tag has ended, one way or the other.
pub const TAG_SECONDS: u64 = 25;
/// Bytes between reader and sender of a copy.
const PIPE: usize = 1 << 20;

/// How a blob came to be in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It was there.
    Present,
    /// Mounted from another repository of the registry.
    Mounted,
    /// Sent.
    Uploaded,
}

/// Where the bytes of a blob are.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A readable, seekable file; read with `pread`, as often as it takes.
    File(Arc<File>),
    /// A repository, of this registry or another.
    Repository(ImageName),
    /// In memory (configs).
    Bytes(Bytes),
}

impl Client {
    /// Puts a blob into a repository.
    ///
    /// # Errors
    /// As the registry answered at the end of the retries.
    pub async fn put_blob(&self, to: &ImageName, blob: &Blob, origin: &Origin) -> Result<Put, Error> {
        let place = self.origin(to)?;
        let what = format!("blob {} to {}", blob.digest, to.repository_name());
        let mut backoff = self.backoff(&place, format!("push {what}"));
        loop {
            let fault = match self.try_put(&place, blob, origin, &what).await {
                Ok(put) => return Ok(put),
                Err(fault) => fault,
            };
            backoff.after(fault).await?;
        }
    }

    async fn try_put(&self, place: &Place, blob: &Blob, origin: &Origin, what: &str) -> Result<Put, Fault> {
        if self.has_blob(place, blob, what).await? {
            return Ok(Put::Present);
        }
        let mut ask = self.ask(place, Method::POST, place.uploads(), &format!("push {what}"));
        ask.scopes = vec![place.push_scope()];
        ask.headers = vec![("content-length", "0".to_owned())];
        if let Origin::Repository(from) = origin {
            let source = self.origin(from)?;
            if source.same_registry(place) && source.path != place.path {
                ask.scopes.push(source.pull_scope());
                ask.url
                    .query_pairs_mut()
                    .append_pair("mount", &blob.digest)
                    .append_pair("from", &source.path);
            }
        }
        let answer = self.send(&ask, || None).await?;
        let session = match answer.status() {
            StatusCode::CREATED => return Ok(Put::Mounted),
            StatusCode::ACCEPTED => self.session(&ask, &answer)?,
            _ => return Err(self.refusal(&ask, what, answer).await.into()),
        };
        if let Origin::Repository(from) = origin {
            self.must_have(from, blob).await?;
        }
        self.upload(ask, session, blob, origin, what).await?;
        Ok(Put::Uploaded)
    }

    /// Whether the repository has a blob.
    pub(crate) async fn has_blob(&self, place: &Place, blob: &Blob, what: &str) -> Result<bool, Fault> {
        let mut ask = self.ask(place, Method::HEAD, place.blob(&blob.digest), &format!("push {what}"));
        ask.scopes = vec![place.push_scope()];
        let answer = self.send(&ask, || None).await?;
        match answer.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refusal(&ask, what, answer).await.into()),
        }
    }

    /// Looks for a blob before it is copied: a copy of what is not there would only break off, and be tried again and again.
    async fn must_have(&self, from: &ImageName, blob: &Blob) -> Result<(), Fault> {
        for place in self.places(from)? {
            let ask = self.ask(&place, Method::HEAD, place.blob(&blob.digest), &format!("look for {from}"));
            match self.send(&ask, || None).await {
                Ok(answer) if answer.status() == StatusCode::NOT_FOUND => {}
                // There, or not to be told: the copy itself will.
                _ => return Ok(()),
            }
        }
        let detail = format!("its manifest is there, but its registry has no blob {}", blob.digest);
        Err(Error::Invalid { what: format!("the image {from}"), detail }.into())
    }

    /// Where the bytes go: only to the registry itself, since they go with our credentials.
    pub(crate) fn session(&self, ask: &crate::transport::Ask<'_>, answer: &Response) -> Result<Url, Fault> {
        let target = answer.headers().get("location").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let url = ask
            .url
            .join(target)
            .map_err(|e| self.unsafe_of(ask, format!("its upload location {target:?} is no URL: {e}")))?;
        if !guard::same_origin(&url, &ask.place.root) {
            let detail = format!("its upload location is elsewhere: {}", guard::shown(&url));
            return Err(self.unsafe_of(ask, detail).into());
        }
        Ok(url)
    }

    async fn upload(
        &self,
        mut ask: crate::transport::Ask<'_>,
        mut session: Url,
        blob: &Blob,
        origin: &Origin,
        what: &str,
    ) -> Result<(), Fault> {
        session.query_pairs_mut().append_pair("digest", &blob.digest);
        ask.method = Method::PUT;
        ask.url = session;
        ask.patience = self.inner.retry.settle + Duration::from_secs(blob.size / SLOWEST);
        ask.headers = vec![
            ("content-length", blob.size.to_string()),
            ("content-type", "application/octet-stream".to_owned()),
        ];
        let answer = self.send(&ask, || Some(self.body(blob, origin))).await?;
        match answer.status() {
            StatusCode::CREATED => Ok(()),
            // The session is gone or out of step: a new one is made.
            StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE => {
                Err(Fault::again(format!("the registry lost the upload session ({})", answer.status())))
            }
            status if status.is_success() => {
                Err(Fault::again(format!("the registry answered {status} to the end of the upload")))
            }
            _ => Err(self.refusal(&ask, what, answer).await.into()),
        }
    }

    fn body(&self, blob: &Blob, origin: &Origin) -> Body {
        match origin {
            Origin::Bytes(bytes) => Body::from(bytes.clone()),
            Origin::File(file) => Body::wrap_stream(pieces(file.clone(), blob.size)),
            Origin::Repository(from) => {
                let (reader, mut writer) = tokio::io::duplex(PIPE);
                let (client, from, blob) = (self.clone(), from.clone(), blob.clone());
                // It ends with the reader: a write to a dropped pipe fails.
                tokio::spawn(async move {
                    if let Err(error) = client.read_blob(&from, &blob, &mut writer).await {
                        tracing::debug!(%error, "a copy between registries broke off");
                    }
                });
                Body::wrap_stream(tokio_util::io::ReaderStream::new(reader))
            }
        }
    }

    /// Whether the repository has this manifest under this tag or digest.
    ///
    /// # Errors
    /// The registry did not say.
    pub async fn digest_of_tag(&self, name: &ImageName, selector: &str) -> Result<Option<String>, Error> {
        let place = self.origin(name)?;
        let mut ask = self.ask(&place, Method::HEAD, place.manifest(selector), &format!("look up {name}"));
        ask.scopes = vec![place.push_scope()];
        ask.headers.push(("accept", ACCEPT.to_owned()));
        let mut backoff = self.backoff(&place, ask.action.clone());
        loop {
            let outcome = async {
                let answer = self.send(&ask, || None).await?;
                match answer.status() {
                    StatusCode::NOT_FOUND => Ok(None),
                    status if status.is_success() => {
                        let header =
                            answer.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
                        Ok(Some(header.map(str::to_owned)))
                    }
                    _ => Err(Fault::from(self.refusal(&ask, &name.to_string(), answer).await)),
                }
            };
            match outcome.await {
                Ok(None) => return Ok(None),
                Ok(Some(Some(found))) => return Ok(Some(found)),
                // The header is a registry's to leave out: then the manifest itself says it.
                Ok(Some(None)) => {
                    return match self.manifest(&place, name, selector).await {
                        Ok((found, ..)) => Ok(Some(found)),
                        Err(Error::NotFound { .. }) => Ok(None),
                        Err(error) => Err(error),
                    };
                }
                Err(fault) => backoff.after(fault).await?,
            }
        }
    }

    /// Puts a manifest under its own digest, and asks the registry whether it now has it there.
    ///
    /// # Errors
    /// [`Error::Verification`] when the registry shows another digest afterwards.
    pub async fn put_manifest(
        &self,
        name: &ImageName,
        digest: &str,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<(), Error> {
        self.put(name, digest, media_type, bytes, self.inner.retry.settle, &|| true).await
    }

    /// Has a tag name a manifest that the registry has, and asks whether it now does. `may` is asked before every further
    /// try, and a try is over within [`TAG_SECONDS`]: so long after leave has ended no tag moves any more.
    ///
    /// # Errors
    /// As [`Client::put_manifest`]; [`Error::ImmutableTag`]; [`Error::Withdrawn`] when `may` says no.
    pub async fn move_tag(
        &self,
        name: &ImageName,
        tag: &str,
        media_type: &str,
        bytes: &Bytes,
        may: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Error> {
        let patience = Duration::from_secs(TAG_SECONDS).saturating_sub(self.inner.retry.connect);
        self.put(name, tag, media_type, bytes, patience, may).await
    }

    async fn put(
        &self,
        name: &ImageName,
        selector: &str,
        media_type: &str,
        bytes: &Bytes,
        patience: Duration,
        may: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Error> {
        let wanted = digest_of(bytes);
        if self.send_manifest(name, selector, media_type, bytes, patience, may).await? {
            return Ok(());
        }
        let place = self.origin(name)?;
        match self.digest_of_tag(name, selector).await? {
            Some(found) if found == wanted => Ok(()),
            found => Err(Error::Verification {
                registry: place.host,
                what: format!("the manifest {wanted} as {selector}"),
                detail: match found {
                    Some(found) => format!("shows {found} there"),
                    None => "has nothing there".to_owned(),
                },
            }),
        }
    }

    /// Sends a manifest; says whether it is known to be there (the registry acknowledges what it then shows otherwise).
    pub(crate) async fn send_manifest(
        &self,
        name: &ImageName,
        selector: &str,
        media_type: &str,
        bytes: &Bytes,
        patience: Duration,
        may: &(dyn Fn() -> bool + Sync),
    ) -> Result<bool, Error> {
        let wanted = digest_of(bytes);
        let place = self.origin(name)?;
        let mut ask = self.ask(&place, Method::PUT, place.manifest(selector), &format!("push {name}"));
        ask.scopes = vec![place.push_scope()];
        ask.patience = patience;
        ask.headers.push(("content-type", media_type.to_owned()));
        let mut backoff = self.backoff(&place, ask.action.clone());
        loop {
            let outcome = async {
                let answer = self.send(&ask, || Some(Body::from(bytes.clone()))).await?;
                let status = answer.status();
                if status.is_success() {
                    return Ok(());
                }
                Err(Fault::from(immutable(
                    self.refusal(&ask, &name.to_string(), answer).await,
                    status,
                    selector,
                )))
            };
            match outcome.await {
                Ok(()) => return Ok(false),
                // An earlier try, or an earlier attempt, may have got there: then all is as it should be.
                Err(Fault::Final(refused @ Error::ImmutableTag { .. })) => {
                    let there = self.digest_of_tag(name, selector).await?;
                    return if there.as_ref() == Some(&wanted) { Ok(true) } else { Err(refused) };
                }
                Err(fault) => backoff.after(fault).await?,
            }
            if !may() {
                return Err(Error::Withdrawn { registry: place.host });
            }
        }
    }
}

/// A refusal as what it is for a tag that may not move: registries have no status in common for it, only the word.
fn immutable(error: Error, status: StatusCode, selector: &str) -> Error {
    match error {
        Error::Refused { registry, detail, .. } | Error::Denied { registry, detail, .. }
            if status == StatusCode::CONFLICT || detail.to_ascii_lowercase().contains("immutable") =>
        {
            Error::ImmutableTag { registry, tag: selector.to_owned(), detail }
        }
        error => error,
    }
}

/// A file in pieces, read when they are asked for.
fn pieces(file: Arc<File>, size: u64) -> impl futures::Stream<Item = std::io::Result<Bytes>> {
    futures::stream::try_unfold((file, 0u64), move |(file, offset)| async move {
        if offset >= size {
            return Ok(None);
        }
        let length = PIECE.min(size - offset);
        let bytes = piece(file.clone(), offset, length).await?;
        Ok(Some((bytes, (file, offset + length))))
    })
}

/// One piece of a file.
pub(crate) async fn piece(file: Arc<File>, offset: u64, length: u64) -> std::io::Result<Bytes> {
    let length = usize::try_from(length).map_err(std::io::Error::other)?;
    let read = tokio::task::spawn_blocking(move || {
        let mut piece = vec![0; length];
        file.read_exact_at(&mut piece, offset).map(|()| piece)
    });
    read.await.map_err(std::io::Error::other)?.map(Bytes::from)
}
