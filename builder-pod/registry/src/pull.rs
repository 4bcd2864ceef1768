//! Pulling: a name to a pinned image, and its blobs, verified on the way.

use reqwest::{Method, StatusCode};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::client::Client;
use crate::error::{Error, Fault};
use crate::manifest::{ACCEPT, Blob, Image, MAX_CONFIG, MAX_MANIFEST, Parsed, parse};
use crate::name::ImageName;
use crate::place::Place;
use crate::platform::{Found, Platform};
use crate::retry::{Backoff, RetryPolicy};
use crate::transport::{Window, range_from, read_bounded};

/// `sha256:` digest of bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

impl Client {
    /// Pins a name to the manifest of one platform, and reads its config. Mirrors are asked first; what a mirror has not,
    /// or does not answer, the next place is asked for.
    ///
    /// # Errors
    /// As the last place (the registry itself) answered, with a note of what the mirrors said.
    pub async fn resolve(&self, name: &ImageName, platform: &Platform) -> Result<Image, Error> {
        let mut notes = String::new();
        let places = self.places(name)?;
        let last = places.len() - 1;
        for (index, place) in places.iter().enumerate() {
            match self.resolve_at(place, name, platform).await {
                Ok(image) => return Ok(image),
                Err(e) if index < last => {
                    notes.push_str(&format!("{}mirror: {e}", if notes.is_empty() { "" } else { "; " }));
                }
                Err(e) => return Err(e.with_note(&notes)),
            }
        }
        Err(Error::Invalid { what: name.to_string(), detail: "there is no place to pull it from".to_owned() })
    }

    async fn resolve_at(&self, place: &Place, name: &ImageName, platform: &Platform) -> Result<Image, Error> {
        let (digest, header, bytes) = self.manifest(place, name, name.selector()).await?;
        let (digest, parsed) = match parse(name, &header, &bytes, platform)? {
            Parsed::Index { chosen } => {
                let (digest, header, bytes) = self.manifest(place, name, &chosen.digest).await?;
                (digest, parse(name, &header, &bytes, platform)?)
            }
            manifest => (digest, manifest),
        };
        let Parsed::Manifest { media_type, config, layers } = parsed else {
            return Err(Error::Invalid {
                what: format!("the index of {name}"),
                detail: "it names another index; expected an image".to_owned(),
            });
        };
        let bytes = self.config(place, name, &config).await?;
        let says: Found = serde_json::from_slice(&bytes)
            .map_err(|e| Error::Invalid { what: format!("the config of {name}"), detail: e.to_string() })?;
        if !platform.accepts(&says) {
            return Err(Error::PlatformMissing {
                image: name.to_string(),
                wanted: platform.to_string(),
                available: says.to_string(),
            });
        }
        Ok(Image { name: name.clone(), digest, media_type, config: bytes, layers })
    }

    /// Digest, media type and bytes of a manifest.
    pub(crate) async fn manifest(
        &self,
        place: &Place,
        name: &ImageName,
        selector: &str,
    ) -> Result<(String, String, Vec<u8>), Error> {
        let mut ask =
            self.ask(place, Method::GET, place.manifest(selector), &format!("read the manifest of {name}"));
        ask.headers.push(("accept", ACCEPT.to_owned()));
        let mut backoff = self.patience(place, &ask.action);
        loop {
            let outcome = async {
                let answer = self.send(&ask, || None).await?;
                if !answer.status().is_success() {
                    return Err(self.refusal(&ask, &format!("image {name}"), answer).await.into());
                }
                let header = answer.headers().get("content-type").and_then(|v| v.to_str().ok());
                let header = header.unwrap_or_default().to_owned();
                let what = format!("the manifest of {name}");
                let bytes = read_bounded(answer, MAX_MANIFEST, &what, self.inner.retry.idle).await?;
                let found = digest_of(&bytes);
                if selector.starts_with("sha256:") && selector != found {
                    let expected = selector.to_owned();
                    return Err(Fault::Final(Error::Digest { what, expected, found }));
                }
                Ok((found, header, bytes))
            };
            match outcome.await {
                Ok(found) => return Ok(found),
                Err(fault) => backoff.after(fault).await?,
            }
        }
    }

    fn patience(&self, place: &Place, action: &str) -> Backoff {
        if place.is_mirror() {
            Backoff::new(&self.inner.retry.impatient(), &place.host, action)
        } else {
            self.backoff(place, action)
        }
    }

    async fn config(&self, place: &Place, name: &ImageName, blob: &Blob) -> Result<Vec<u8>, Error> {
        if blob.size > MAX_CONFIG as u64 {
            return Err(Error::Size {
                what: format!("the config of {name}"),
                found: format!("{} bytes", blob.size),
                expected: format!("at most {MAX_CONFIG} are allowed"),
            });
        }
        let mut bytes = Vec::new();
        self.read_at(place, name, blob, &mut bytes).await?;
        Ok(bytes)
    }

    /// Writes a blob, as stored, to `out`. A broken transfer is taken up where it broke. What was written before an error
    /// is not to be used.
    ///
    /// # Errors
    /// [`Error::Digest`] or [`Error::Size`] for other bytes, [`Error::Local`] when `out` can't be written.
    pub async fn read_blob(
        &self,
        name: &ImageName,
        blob: &Blob,
        out: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<(), Error> {
        let places = self.places(name)?;
        let last = places.len() - 1;
        for (index, place) in places.iter().enumerate() {
            match self.read_at(place, name, blob, out).await {
                // Nothing has been written when a place has no such blob or wants a login.
                Err(Error::NotFound { .. } | Error::Unauthorized { .. } | Error::Denied { .. })
                    if index < last => {}
                // Who asks for a blob has read a manifest that names it, so it is not the name that is wrong.
                Err(Error::NotFound { registry, what, detail }) => {
                    let detail = format!("its manifest is there, but {registry} has no {what}: {detail}");
                    return Err(Error::Invalid { what: format!("the image {name}"), detail });
                }
                other => return other,
            }
        }
        Ok(())
    }

    async fn read_at(
        &self,
        place: &Place,
        name: &ImageName,
        blob: &Blob,
        out: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<(), Error> {
        let what = format!("blob {} of {}", blob.digest, name.repository_name());
        let mut backoff = self.backoff(place, format!("read {what}"));
        let mut hasher = Sha256::new();
        let mut done = 0u64;
        while done < blob.size || blob.size == 0 {
            match self.read_part(place, blob, &what, &mut done, &mut hasher, out).await {
                Ok(()) if done < blob.size => {
                    backoff
                        .after(Fault::again(format!("it ended after {done} of {} bytes", blob.size)))
                        .await?;
                }
                Ok(()) => break,
                Err((moved, fault)) => {
                    if moved {
                        backoff.progress();
                    }
                    backoff.after(fault).await?;
                }
            }
        }
        out.flush().await.map_err(|source| Error::Local { what: format!("write {what}"), source })?;
        let found = format!("sha256:{}", hex::encode(hasher.finalize()));
        if found == blob.digest {
            Ok(())
        } else {
            Err(Error::Digest { what, expected: blob.digest.clone(), found })
        }
    }

    /// Reads from `done` on as far as one answer goes. An error says whether anything moved.
    async fn read_part(
        &self,
        place: &Place,
        blob: &Blob,
        what: &str,
        done: &mut u64,
        hasher: &mut Sha256,
        out: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<(), (bool, Fault)> {
        let start = *done;
        let mut ask = self.ask(place, Method::GET, place.blob(&blob.digest), &format!("read {what}"));
        if start > 0 {
            ask.headers.push(range_from(start));
        }
        let answer = self.send(&ask, || None).await.map_err(|f| (false, f))?;
        // A server without ranges begins anew: the part that we have is passed over.
        let mut skip = match answer.status() {
            StatusCode::PARTIAL_CONTENT => 0,
            status if status.is_success() => start,
            _ => return Err((false, self.refusal(&ask, what, answer).await.into())),
        };
        let mut body = answer.bytes_stream();
        let mut window = Window::new(self.inner.retry.idle);
        loop {
            let chunk = match window.next(&mut body).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Ok(()),
                // Who only drips would else renew the budget with every try.
                Err(fault) => return Err((*done - start >= RetryPolicy::MIN_WINDOW_BYTES, fault)),
            };
            let pass = skip.min(chunk.len() as u64);
            skip -= pass;
            let chunk = &chunk[usize::try_from(pass).unwrap_or(chunk.len())..];
            if *done + chunk.len() as u64 > blob.size {
                let found = format!("more than {} bytes", blob.size);
                let expected = format!("expected {}", blob.size);
                return Err((false, Error::Size { what: what.to_owned(), found, expected }.into()));
            }
            hasher.update(chunk);
            out.write_all(chunk)
                .await
                .map_err(|source| (false, Error::Local { what: format!("write {what}"), source }.into()))?;
            *done += chunk.len() as u64;
        }
    }
}
