//! Logging in: HTTP Basic, or a bearer token from the registry's token service (distribution token specification).

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use serde::Deserialize;

use crate::client::Client;
use crate::credentials::{Login, Secret};
use crate::error::{Error, Fault};
use crate::guard;
use crate::transport::{Ask, judge, read_bounded};

/// Bytes of a token answer: tokens have a few KiB.
const MAX_TOKEN: usize = 256 << 10;
/// The token specification's lifetime for a token that does not say, and the least that it allows.
const DEFAULT_SECONDS: u64 = 60;
/// A token is asked anew this long before its end, and at the latest after an hour.
const MARGIN_SECONDS: u64 = 10;
const MAX_SECONDS: u64 = 3600;

/// An Authorization header and how long it is good.
#[derive(Clone)]
pub(crate) struct Header {
    pub(crate) value: String,
    until: Instant,
}

impl Header {
    /// One that was not asked of anybody.
    pub(crate) fn given(value: String) -> Self {
        Self { value, until: lasting(MAX_SECONDS) }
    }
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Header").finish_non_exhaustive()
    }
}

/// Headers that worked, by registry and scope.
#[derive(Debug, Default)]
pub(crate) struct Auth {
    known: Mutex<HashMap<(String, String), Header>>,
}

/// The logins that are still to be tried for one request.
pub(crate) struct Logins {
    left: std::vec::IntoIter<Option<Login>>,
    tried: Vec<String>,
    remarks: Vec<String>,
}

fn key(ask: &Ask<'_>) -> (String, String) {
    (ask.place.root.to_string(), ask.scopes.join(" "))
}

impl Auth {
    pub(crate) fn known(&self, ask: &Ask<'_>) -> Option<Header> {
        let known = self.known.lock().ok()?;
        known.get(&key(ask)).filter(|h| h.until > Instant::now()).cloned()
    }

    pub(crate) fn keep(&self, ask: &Ask<'_>, header: &Header) {
        if let Ok(mut known) = self.known.lock() {
            known.insert(key(ask), header.clone());
        }
    }
}

enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

fn challenge(headers: &[String]) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        for found in http_auth::parser::ChallengeParser::new(header).flatten() {
            if found.scheme.eq_ignore_ascii_case("bearer") {
                let value = |name: &str| {
                    let param = found.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
                    Some(param.1.to_unescaped())
                };
                return Some(Challenge::Bearer { realm: value("realm")?, service: value("service") });
            }
            if found.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    /// Seconds. Services send whole numbers, fractions, and numbers beyond 64 bits; only a number counts.
    #[serde(default)]
    expires_in: serde_json::Value,
}

/// How long a token lasts by its service's word. Below the specification's time (or where it says nothing of use) it is tried for
/// that time: without a token every blob would be sent twice, since the challenge comes after its bytes.
fn seconds(expires_in: &serde_json::Value) -> u64 {
    // The cast saturates, which is what is wanted of a huge number.
    expires_in.as_f64().map_or(DEFAULT_SECONDS, |s| (s as u64).max(DEFAULT_SECONDS))
}

impl Client {
    /// What can be tried for a request: each login that fits, and nobody in particular when there is none.
    pub(crate) fn logins(&self, ask: &Ask<'_>) -> Logins {
        let found = self.inner.credentials.lookup(&ask.place.host, &ask.place.path);
        let mut left: Vec<Option<Login>> = found.logins.into_iter().map(Some).collect();
        // Reading may also be open to all; writing with no login has no second chance.
        left.push(None);
        Logins { left: left.into_iter(), tried: Vec::new(), remarks: found.remarks }
    }

    /// The next header to try, or the reason why there is none left.
    pub(crate) async fn next_header(
        &self,
        ask: &Ask<'_>,
        logins: &mut Logins,
        challenges: &[String],
        words: &str,
    ) -> Result<Header, Fault> {
        let wanted = challenge(challenges);
        let mut refusals = Vec::new();
        for login in logins.left.by_ref() {
            if let Some(login) = &login {
                logins.tried.push(login.described());
            }
            match (&wanted, &login) {
                (Some(Challenge::Basic), Some(Login { user, secret: Secret::Password(password), .. })) => {
                    return Ok(Header { value: basic(user, password), until: lasting(MAX_SECONDS) });
                }
                (Some(Challenge::Bearer { realm, service }), login) => {
                    match self.token(ask, realm, service.as_deref(), login.as_ref()).await? {
                        Ok(header) => return Ok(header),
                        Err(refusal) => refusals.push(refusal),
                    }
                }
                _ => {}
            }
        }
        let mut detail = match logins.tried.as_slice() {
            [] => format!("no credentials for {} in {}", ask.place.host, self.inner.credentials.described()),
            tried => format!("tried {}, and the registry accepted none", tried.join(", ")),
        };
        for remark in
            refusals.iter().chain(&logins.remarks).chain((!words.is_empty()).then(|| words.to_owned()).iter())
        {
            detail.push_str("; ");
            detail.push_str(remark);
        }
        Err(Error::Unauthorized { registry: ask.place.host.clone(), action: ask.action.clone(), detail }
            .into())
    }

    /// A token from the service that the registry names; the inner error is the service's no.
    async fn token(
        &self,
        ask: &Ask<'_>,
        realm: &str,
        service: Option<&str>,
        login: Option<&Login>,
    ) -> Result<Result<Header, String>, Fault> {
        let mut url = Url::parse(realm)
            .map_err(|e| self.unsafe_of(ask, format!("its token service {realm:?} is no URL: {e}")))?;
        let plain = url.scheme() == "http";
        // Over plain HTTP only where the registry itself is spoken to like that, on the same host.
        if let Some(why) = guard::objection(&url).or_else(|| {
            (plain && (ask.place.root.scheme() != "http" || url.host_str() != ask.place.root.host_str()))
                .then(|| "it is plain HTTP".to_owned())
        }) {
            return Err(self
                .unsafe_of(ask, format!("its token service is {}: {why}", guard::shown(&url)))
                .into());
        }
        let scopes = ask.scopes.clone();
        let request = match login.map(|l| (&l.user, &l.secret)) {
            Some((_, Secret::Refresh(refresh))) => {
                let mut form =
                    vec![("grant_type", "refresh_token".to_owned()), ("refresh_token", refresh.clone())];
                form.extend([("client_id", "kiln".to_owned()), ("scope", scopes.join(" "))]);
                form.extend(service.map(|s| ("service", s.to_owned())));
                let body = form_encoded(&form);
                self.inner
                    .http
                    .post(url)
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(body)
            }
            other => {
                let mut query = url.query_pairs_mut();
                if let Some(service) = service {
                    query.append_pair("service", service);
                }
                for scope in &scopes {
                    query.append_pair("scope", scope);
                }
                drop(query);
                let request = self.inner.http.get(url);
                match other {
                    Some((user, Secret::Password(password))) => {
                        request.header("authorization", basic(user, password))
                    }
                    _ => request,
                }
            }
        };
        let answer = tokio::time::timeout(self.inner.retry.idle, request.send())
            .await
            .map_err(|_| Fault::again("the token service did not answer"))?
            .map_err(|e| Fault::again(format!("the token service: {}", crate::transport::told(e))))?;
        // With the time that it asks us to wait.
        let answer =
            judge(answer, self.inner.retry.idle).await.map_err(|fault| fault.at("the token service"))?;
        let status = answer.status();
        if !status.is_success() {
            return Ok(Err(format!("the token service answered {status}")));
        }
        let bytes = read_bounded(answer, MAX_TOKEN, "the token", self.inner.retry.idle).await?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|e| Error::Invalid {
            what: format!("the token answer of {}", ask.place.host),
            detail: e.to_string(),
        })?;
        let text = if token.token.is_empty() { token.access_token } else { token.token };
        if text.is_empty() {
            return Ok(Err("the token service sent no token".to_owned()));
        }
        let seconds = seconds(&token.expires_in);
        Ok(Ok(Header {
            value: format!("Bearer {text}"),
            until: lasting(seconds.saturating_sub(MARGIN_SECONDS)),
        }))
    }
}

fn lasting(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds.min(MAX_SECONDS))
}

pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn form_encoded(pairs: &[(&str, String)]) -> String {
    let mut url = Url::parse("https://form.invalid/").ok();
    if let Some(url) = &mut url {
        url.query_pairs_mut().extend_pairs(pairs.iter().map(|(k, v)| (*k, v.as_str())));
    }
    url.and_then(|u| u.query().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_wins_over_basic() {
        let bearer =
            r#"Bearer realm="https://auth.example/token",service="r",scope="repository:a:pull""#.to_owned();
        let found = challenge(&["Basic realm=\"x\"".to_owned(), bearer]);
        assert!(matches!(found, Some(Challenge::Bearer { realm, service: Some(s) })
            if realm == "https://auth.example/token" && s == "r"));
        assert!(matches!(challenge(&["Basic realm=\"x\"".to_owned()]), Some(Challenge::Basic)));
        assert!(challenge(&["Negotiate".to_owned()]).is_none());
    }

    #[test]
    fn forms_are_encoded() {
        assert_eq!(form_encoded(&[("a", "x y&z".into()), ("b", "1".into())]), "a=x+y%26z&b=1");
    }
}
