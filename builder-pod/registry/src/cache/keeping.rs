//! What a repository keeps for the cache, and taking it away again: listing tags, telling Kiln's artifacts from whatever else is
//! there, and deleting them by digest (distribution-spec, "Listing Tags" and "Deleting Manifests").

use std::collections::BTreeMap;

use reqwest::header::LINK;
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;

use super::{CREATED, KEY, entry, record};
use crate::client::Client;
use crate::error::{Error, Fault};
use crate::guard;
use crate::manifest::Blob;
use crate::name::ImageName;
use crate::place::Place;
use crate::transport::read_bounded;

/// Tags of one page: what registries commonly give at most.
const PAGE: usize = 1000;
/// Bytes of a page: 1000 tags of 128 characters, and as much again.
const MAX_PAGE: usize = 1 << 20;
/// Pages of a repository: one that leads to itself ends here.
const MAX_PAGES: usize = 1000;

/// What an artifact of the cache is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeptKind {
    /// The result of a step, or the index of a layer.
    Entry,
    /// What a build did last, with the tags of the entries that it wants.
    Record(Vec<String>),
}

/// An artifact of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its tag.
    pub tag: String,
    /// Digest of its manifest.
    pub digest: String,
    /// What it is.
    pub kind: KeptKind,
    /// When it was made, RFC 3339, as it says.
    pub created: String,
    /// Its layer; a record has none.
    pub layer: Option<Blob>,
}

struct Page {
    tags: Vec<String>,
    next: Option<Url>,
}

#[derive(Deserialize)]
struct Tags {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    artifact_type: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    layers: Vec<Blob>,
}

impl Client {
    /// The tags of a repository that may be the cache's: 64 hexadecimal digits, and how many others there are. Nothing where
    /// there is no such repository.
    ///
    /// # Errors
    /// As the registry answered at the end of the retries.
    pub async fn cache_tags(&self, repository: &ImageName) -> Result<(Vec<String>, usize), Error> {
        let place = self.origin(repository)?;
        let (mut found, mut others) = (Vec::new(), 0);
        let mut next = Some(place.tags(PAGE));
        for _ in 0..MAX_PAGES {
            let Some(url) = next.take() else { return Ok((found, others)) };
            let page = match self.tag_page(&place, repository, url).await {
                Err(Error::NotFound { .. }) => return Ok((found, others)),
                page => page?,
            };
            for tag in page.tags {
                if is_key(&tag) { found.push(tag) } else { others += 1 }
            }
            next = page.next;
        }
        Err(Error::Size {
            what: format!("the list of tags of {repository}"),
            found: format!("more than {MAX_PAGES} pages"),
            expected: format!("at most {MAX_PAGES} are read"),
        })
    }

    async fn tag_page(&self, place: &Place, repository: &ImageName, url: Url) -> Result<Page, Error> {
        let what = format!("the tags of {}", repository.repository_name());
        let ask = self.ask(place, Method::GET, url, &format!("list {what}"));
        let mut backoff = self.backoff(place, ask.action.clone());
        loop {
            let outcome = async {
                let answer = self.send(&ask, || None).await?;
                if !answer.status().is_success() {
                    return Err(Fault::from(self.refusal(&ask, &what, answer).await));
                }
                let link = answer.headers().get(LINK).and_then(|v| v.to_str().ok());
                let next = link.and_then(|link| following(&ask.url, link));
                if let Some(next) = next.as_ref().filter(|next| !guard::same_origin(next, &place.root)) {
                    let detail = format!("the next page is at {}", guard::shown(next));
                    return Err(self.unsafe_of(&ask, detail).into());
                }
                let bytes = read_bounded(answer, MAX_PAGE, &what, self.inner.retry.idle).await?;
                let read: Tags = serde_json::from_slice(&bytes).map_err(|e| {
                    Fault::Final(Error::Invalid { what: what.clone(), detail: e.to_string() })
                })?;
                Ok(Page { tags: read.tags.unwrap_or_default(), next })
            };
            match outcome.await {
                Ok(page) => return Ok(page),
                Err(fault) => backoff.after(fault).await?,
            }
        }
    }

    /// The cache's artifact under the tag of `name`; `None` for what is none of its, and for what is gone by now.
    ///
    /// # Errors
    /// As the registry answered at the end of the retries.
    pub async fn kept(&self, name: &ImageName) -> Result<Option<Kept>, Error> {
        let place = self.origin(name)?;
        match self.manifest(&place, name, name.selector()).await {
            Ok((digest, _, bytes)) => Ok(read(name.tag().unwrap_or_default(), digest, &bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes a manifest of the cache by its digest, under whatever tags it is. One that is gone is as good as deleted.
    ///
    /// # Errors
    /// [`Error::NoDeletes`] where the registry deletes nothing, else as it answered at the end of the retries.
    pub async fn delete_kept(&self, repository: &ImageName, kept: &Kept) -> Result<(), Error> {
        let place = self.origin(repository)?;
        let what = format!("{} {}", repository.repository_name(), kept.digest);
        let mut ask =
            self.ask(&place, Method::DELETE, place.manifest(&kept.digest), &format!("delete {what}"));
        ask.scopes = vec![place.delete_scope()];
        let mut backoff = self.backoff(&place, ask.action.clone());
        loop {
            let outcome = async {
                let answer = self.send(&ask, || None).await?;
                let status = answer.status();
                if status.is_success() || status == StatusCode::NOT_FOUND {
                    return Ok(());
                }
                let none = [StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_IMPLEMENTED].contains(&status);
                let refusal = self.refusal(&ask, &what, answer).await;
                let words = refusal.to_string();
                Err(Fault::from(if none || words.contains("UNSUPPORTED") {
                    Error::NoDeletes { registry: place.host.clone(), detail: words }
                } else {
                    refusal
                }))
            };
            match outcome.await {
                Ok(()) => return Ok(()),
                Err(fault) => backoff.after(fault).await?,
            }
        }
    }
}

/// Where a `Link` says that the next page is (RFC 8288, as registries write it).
fn following(from: &Url, link: &str) -> Option<Url> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let next = parameters.split(';').any(|p| p.trim().trim_start_matches("rel=").trim_matches('"') == "next");
    next.then(|| from.join(target).ok()).flatten()
}

fn is_key(tag: &str) -> bool {
    tag.len() == 64 && tag.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// What a manifest is, if it is the cache's: by its type, and by the tag that it was made for.
fn read(tag: &str, digest: String, bytes: &[u8]) -> Option<Kept> {
    let document: Document = serde_json::from_slice(bytes).ok()?;
    if document.annotations.get(KEY).map(String::as_str) != Some(tag) {
        return None;
    }
    let created = document.annotations.get(CREATED).cloned().unwrap_or_default();
    let (kind, layer) = match document.artifact_type.as_str() {
        entry::ARTIFACT => (KeptKind::Entry, document.layers.into_iter().next()),
        record::ARTIFACT => {
            // One whose steps can't be read wants nothing.
            let steps = record::read(tag, bytes).map(|record| record.steps).unwrap_or_default();
            (KeptKind::Record(steps.into_values().map(|step| step.entry).collect()), None)
        }
        _ => return None,
    };
    Some(Kept { tag: tag.to_owned(), digest, kind, created, layer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_made_for_its_tag_is_the_caches_and_pages_follow_one_another() {
        let of = |tag: &str, text: &str| read(tag, "sha256:0".into(), text.as_bytes());
        let entry = format!(
            r#"{{"artifactType":"{}","annotations":{{"{KEY}":"t","{CREATED}":"c"}},"layers":[{{"mediaType":"m","digest":"d","size":3}}]}}"#,
            entry::ARTIFACT
        );
        let kept = of("t", &entry).expect("an entry");
        assert_eq!((kept.kind, kept.created.as_str()), (KeptKind::Entry, "c"));
        assert_eq!(kept.layer.map(|layer| layer.size), Some(3));
        assert_eq!(of("u", &entry), None, "made for another tag");
        for other in [
            entry.replace(entry::ARTIFACT, "application/vnd.other"),
            entry.replace(KEY, "other"),
            "{}".to_owned(),
            "no JSON".to_owned(),
        ] {
            assert_eq!(of("t", &other), None, "{other}");
        }
        let from = Url::parse("https://r.x/v2/a/tags/list?n=2").expect("a URL");
        let next = |link: &str| following(&from, link).map(|url| url.to_string());
        let there = "https://r.x/v2/a/tags/list?n=2&last=b".to_owned();
        assert_eq!(next("</v2/a/tags/list?n=2&last=b>; rel=\"next\""), Some(there.clone()));
        assert_eq!(next("<https://r.x/v2/a/tags/list?n=2&last=b>;rel=next"), Some(there));
        assert_eq!((next("</x>; rel=\"prev\""), next("x")), (None, None));
        assert!(is_key(&"0f".repeat(32)) && !is_key("latest") && !is_key(&"0F".repeat(32)));
    }
}
