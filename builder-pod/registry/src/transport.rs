//! One request: authorization, redirects, and which answers are worth another try.

use std::error::Error as StdError;
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use reqwest::header::{AUTHORIZATION, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Body, Method, Response, StatusCode, Url};
use serde::Deserialize;

use crate::client::Client;
use crate::error::{Error, Fault};
use crate::guard;
use crate::place::Place;
use crate::retry::{RetryPolicy, retry_after};

/// Redirects that are followed: registries send one, to their storage.
const MAX_REDIRECTS: usize = 5;
/// Bytes of an error answer that are read: they hold a line for people.
const MAX_ERROR: usize = 64 << 10;

/// A request, apart from its body.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) place: &'a Place,
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// Token scopes that it needs.
    pub(crate) scopes: Vec<String>,
    pub(crate) headers: Vec<(&'static str, String)>,
    /// What it is for, for messages: "read …", "push …".
    pub(crate) action: String,
    /// How long to wait for the head of the answer.
    pub(crate) patience: Duration,
}

/// The chain of causes, without repeats.
pub(crate) fn causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// What the HTTP client says, without the URL: its query may hold what only the registry is to see (a signature, an upload's
/// state), and its host may look like a word that means something here.
pub(crate) fn told(error: reqwest::Error) -> String {
    causes(&error.without_url())
}

fn fault_of(error: reqwest::Error) -> Fault {
    let detail = told(error);
    let unknown_host = detail.contains("dns") || detail.contains("no record");
    Fault::Again { detail, after: None, unknown_host }
}

impl Client {
    /// Makes a GET-like ask for a place, with the patience of the policy.
    pub(crate) fn ask<'a>(&self, place: &'a Place, method: Method, url: Url, action: &str) -> Ask<'a> {
        Ask {
            place,
            method,
            url,
            scopes: vec![place.pull_scope()],
            headers: Vec::new(),
            action: action.to_owned(),
            patience: self.inner.retry.idle,
        }
    }

    /// Sends it; logs in when asked to. Answers with any status but 401 and those that are worth another try.
    pub(crate) async fn send(
        &self,
        ask: &Ask<'_>,
        body: impl Fn() -> Option<Body>,
    ) -> Result<Response, Fault> {
        let mut header = self.inner.auth.known(ask);
        let mut logins = None;
        loop {
            let answer = self.follow(ask, header.as_ref(), &body).await?;
            let status = answer.status();
            if status != StatusCode::UNAUTHORIZED {
                if let (Some(used), Some(_)) = (&header, &logins) {
                    self.inner.auth.keep(ask, used);
                }
                return judge(answer, self.inner.retry.idle).await;
            }
            let challenges: Vec<String> = answer
                .headers()
                .get_all(WWW_AUTHENTICATE)
                .iter()
                .filter_map(|v| v.to_str().ok().map(str::to_owned))
                .collect();
            let words = error_words(answer, self.inner.retry.idle).await;
            let tries = logins.get_or_insert_with(|| self.logins(ask));
            header = Some(self.next_header(ask, tries, &challenges, &words).await?);
        }
    }

    /// Sends it as it is, and follows redirects of what only reads.
    pub(crate) async fn follow(
        &self,
        ask: &Ask<'_>,
        header: Option<&crate::auth::Header>,
        body: &impl Fn() -> Option<Body>,
    ) -> Result<Response, Fault> {
        let mut url = ask.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.inner.http.request(ask.method.clone(), url.clone());
            for (name, value) in &ask.headers {
                request = request.header(*name, value);
            }
            if let Some(header) = header.filter(|_| guard::same_origin(&url, &ask.place.root)) {
                let mut value = HeaderValue::from_str(&header.value)
                    .map_err(|_| Fault::again("the token is no header value"))?;
                value.set_sensitive(true);
                request = request.header(AUTHORIZATION, value);
            }
            if let Some(body) = body() {
                request = request.body(body);
            }
            let answer = tokio::time::timeout(ask.patience, request.send())
                .await
                .map_err(|_| Fault::again(format!("no answer within {} s", ask.patience.as_secs())))?
                .map_err(fault_of)?;
            let reads = ask.method == Method::GET || ask.method == Method::HEAD;
            if !answer.status().is_redirection() || !reads {
                return Ok(answer);
            }
            let target = answer.headers().get(LOCATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
            url = self.redirect(ask, &url, target)?;
        }
        Err(self.unsafe_of(ask, format!("it redirects more than {MAX_REDIRECTS} times")).into())
    }

    fn redirect(&self, ask: &Ask<'_>, from: &Url, target: &str) -> Result<Url, Fault> {
        let to = from
            .join(target)
            .map_err(|e| self.unsafe_of(ask, format!("it redirects to something that is no URL: {e}")))?;
        let objection = guard::objection(&to).or_else(|| {
            (from.scheme() == "https" && to.scheme() != "https").then(|| "it leaves TLS".to_owned())
        });
        match objection {
            Some(why) => {
                Err(self.unsafe_of(ask, format!("it redirects to {}: {why}", guard::shown(&to))).into())
            }
            None => Ok(to),
        }
    }

    pub(crate) fn unsafe_of(&self, ask: &Ask<'_>, detail: String) -> Error {
        Error::Unsafe { registry: ask.place.host.clone(), action: ask.action.clone(), detail }
    }

    /// The error that an answer stands for which is not the one that was hoped for.
    pub(crate) async fn refusal(&self, ask: &Ask<'_>, what: &str, answer: Response) -> Error {
        let status = answer.status();
        let words = error_words(answer, self.inner.retry.idle).await;
        let detail = if words.is_empty() { status.to_string() } else { format!("{status}: {words}") };
        let (registry, action) = (ask.place.host.clone(), ask.action.clone());
        match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                Error::NotFound { registry, what: what.to_owned(), detail }
            }
            StatusCode::FORBIDDEN => Error::Denied { registry, action, detail },
            _ => Error::Refused { registry, action, detail },
        }
    }
}

/// Answers that may be another the next time become a fault.
pub(crate) async fn judge(answer: Response, idle: Duration) -> Result<Response, Fault> {
    let status = answer.status();
    let again = status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
        || (status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED);
    if !again {
        return Ok(answer);
    }
    let wait = answer.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
    let after = wait.and_then(|v| retry_after(v, SystemTime::now()));
    let limited = if status == StatusCode::TOO_MANY_REQUESTS { " (rate limited)" } else { "" };
    let mut detail = format!("it answered {status}{limited}");
    let words = error_words(answer, idle).await;
    if !words.is_empty() {
        detail.push_str(": ");
        detail.push_str(&words);
    }
    Err(Fault::Again { detail, after, unknown_host: false })
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    errors: Vec<Detail>,
}

#[derive(Deserialize)]
struct Detail {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The registry's own words (distribution-spec error body), bounded and printable; none when they do not come in time.
pub(crate) async fn error_words(mut answer: Response, idle: Duration) -> String {
    let mut bytes = Vec::new();
    let end = tokio::time::Instant::now() + idle;
    while let Ok(Ok(Some(chunk))) = tokio::time::timeout_at(end, answer.chunk()).await {
        bytes.extend_from_slice(&chunk[..chunk.len().min(MAX_ERROR - bytes.len())]);
        if bytes.len() >= MAX_ERROR {
            break;
        }
    }
    let Ok(envelope) = serde_json::from_slice::<Envelope>(&bytes) else { return String::new() };
    let words: Vec<String> =
        envelope.errors.iter().take(3).map(|e| format!("{} {}", e.code, e.message)).collect();
    let text: String = words.join("; ").chars().filter(|c| !c.is_control()).take(300).collect();
    text.trim().to_owned()
}

/// A body in bounded pieces, with the rule against dripping senders.
pub(crate) async fn read_bounded(
    mut answer: Response,
    limit: usize,
    what: &str,
    idle: Duration,
) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    let end = tokio::time::Instant::now() + idle;
    loop {
        let chunk = tokio::time::timeout_at(end, answer.chunk())
            .await
            .map_err(|_| Fault::again(format!("{what} did not come within {} s", idle.as_secs())))?
            .map_err(fault_of)?;
        let Some(chunk) = chunk else { return Ok(bytes) };
        if bytes.len() + chunk.len() > limit {
            return Err(Error::Size {
                what: what.to_owned(),
                found: format!("more than {limit} bytes"),
                expected: format!("at most {limit} are allowed"),
            }
            .into());
        }
        bytes.extend_from_slice(&chunk);
    }
}

/// Reads a long body, and gives up on one that does not move or only drips.
#[derive(Debug)]
pub(crate) struct Window {
    idle: Duration,
    /// Time of waiting since the last time that enough had come.
    waited: Duration,
    bytes: u64,
}

impl Window {
    pub(crate) fn new(idle: Duration) -> Self {
        Self { idle, waited: Duration::ZERO, bytes: 0 }
    }

    /// The next piece; nothing at the end. Only time that is spent here counts, not that of whoever writes the pieces.
    pub(crate) async fn next(
        &mut self,
        body: &mut (impl futures::Stream<Item = reqwest::Result<bytes::Bytes>> + Unpin),
    ) -> Result<Option<bytes::Bytes>, Fault> {
        let began = tokio::time::Instant::now();
        let next = tokio::time::timeout(self.idle.saturating_sub(self.waited), body.next()).await;
        self.waited += began.elapsed();
        let piece = match next {
            Ok(Some(piece)) => piece.map_err(fault_of)?,
            Ok(None) => return Ok(None),
            Err(_) => {
                let (bytes, least) = (self.bytes, RetryPolicy::MIN_WINDOW_BYTES);
                let seconds = self.idle.as_secs_f64();
                return Err(Fault::again(format!(
                    "the transfer stalled: {bytes} bytes in {seconds} s, expected at least {least}"
                )));
            }
        };
        self.bytes += piece.len() as u64;
        if self.bytes >= RetryPolicy::MIN_WINDOW_BYTES {
            (self.bytes, self.waited) = (0, Duration::ZERO);
        }
        Ok(Some(piece))
    }
}

/// The header for the bytes from `offset` on.
pub(crate) fn range_from(offset: u64) -> (&'static str, String) {
    ("range", format!("bytes={offset}-"))
}
