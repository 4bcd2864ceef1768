//! The proxy: one request in, one to the registry, unless a rule says otherwise. It is the token service, too.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue, LOCATION};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;

type Body = BoxBody<Bytes, io::Error>;

/// The login that the token service knows.
const LOGIN: &str = "kiln:secret";

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// An answer of the proxy's own, once so many bytes of the request's body have come.
    Answer { after: u64, status: u16, headers: Vec<(&'static str, String)>, body: String },
    /// The connection breaks once so many bytes of the request's body have come.
    Break { after: u64 },
    /// The registry does what it is asked, and the answer is lost.
    LoseAnswer,
    /// The upload session is deleted in the registry before the bytes reach it.
    LoseSession,
    /// All tokens end once so many bytes of the request's body have come.
    ExpireTokens { after: u64 },
    /// So many bytes of the registry's answer, then the connection breaks.
    Cut(usize),
    /// The registry's answer, a byte in every such time.
    Drip(Duration),
    /// The registry's answer with one bit of its body changed.
    Corrupt,
    /// The registry's answer with another header, or without it.
    Header(&'static str, Option<String>),
}

/// A fault and what it befalls.
#[derive(Debug)]
pub struct Rule {
    pub method: &'static str,
    pub part: String,
    pub left: usize,
    pub fault: Fault,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    /// Of the query.
    pub digest: Option<String>,
    pub authorization: Option<String>,
    /// Bytes of the body that came.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: usize,
    /// Of the answer; none where the connection was broken.
    pub status: Option<u16>,
}

/// Tokens of the token service.
#[derive(Debug, Default)]
pub struct Tokens {
    /// JSON that stands as `expires_in` in its answers.
    pub expires_in: Option<String>,
    pub given: usize,
    pub good: HashSet<String>,
}

pub struct Proxy {
    socket: PathBuf,
    host: String,
    pub rules: Mutex<Vec<Rule>>,
    pub seen: Mutex<Vec<Seen>>,
    pub tokens: Mutex<Option<Tokens>>,
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

fn answer(status: u16, headers: &[(&'static str, String)], body: impl Into<Bytes>) -> Result<Response<Body>> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, value);
    }
    Ok(response.body(whole(body))?)
}

impl Proxy {
    /// Listens; the second value is where.
    pub async fn start(socket: PathBuf) -> Result<(Arc<Self>, String)> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let host = listener.local_addr()?.to_string();
        let proxy = Arc::new(Self {
            socket,
            host: host.clone(),
            rules: Mutex::default(),
            seen: Mutex::default(),
            tokens: Mutex::default(),
        });
        let serving = proxy.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let proxy = serving.clone();
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(|request| proxy.serve(request));
                    // An error of the service is the way to break a connection.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok((proxy, host))
    }

    async fn serve(&self, request: Request<Incoming>) -> Result<Response<Body>> {
        let index = self.note(&request);
        let answer = self.answer(request, index).await;
        self.seen.lock().unwrap()[index].status = answer.as_ref().ok().map(|a| a.status().as_u16());
        answer
    }

    fn note(&self, request: &Request<Incoming>) -> usize {
        let query = request.uri().query().unwrap_or_default();
        let digest = query.split('&').find_map(|pair| pair.strip_prefix("digest="));
        let header = request.headers().get(AUTHORIZATION).and_then(|v| v.to_str().ok());
        let mut seen = self.seen.lock().unwrap();
        seen.push(Seen {
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            digest: digest.map(|d| d.replace("%3A", ":")),
            authorization: header.map(str::to_owned),
            received: 0,
            sent: 0,
            status: None,
        });
        seen.len() - 1
    }

    fn rule(&self, request: &Request<Incoming>) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap();
        let path = request.uri().path();
        let rule = rules
            .iter_mut()
            .find(|r| r.left > 0 && r.method == request.method() && path.contains(&r.part))?;
        rule.left -= 1;
        Some(rule.fault.clone())
    }

    async fn answer(&self, request: Request<Incoming>, index: usize) -> Result<Response<Body>> {
        let (from_service, refused) = (request.uri().path() == "/token", self.unauthorized(&request));
        // A rule for what needs a token waits for a request that has one.
        let fault = if refused && !from_service { None } else { self.rule(&request) };
        let (head, mut body) = request.into_parts();
        let mut bytes = Vec::new();
        let stop = match &fault {
            Some(Fault::Answer { after, .. } | Fault::Break { after } | Fault::ExpireTokens { after }) => {
                *after
            }
            _ => u64::MAX,
        };
        while (bytes.len() as u64) < stop
            && let Some(frame) = body.frame().await
        {
            if let Ok(data) = frame?.into_data() {
                bytes.extend_from_slice(&data);
                self.seen.lock().unwrap()[index].received = bytes.len() as u64;
            }
        }
        match &fault {
            Some(Fault::Answer { status, headers, body, .. }) => {
                return answer(*status, headers, body.clone());
            }
            Some(Fault::Break { .. }) => bail!("broken on purpose"),
            Some(Fault::ExpireTokens { .. }) => {
                if let Some(tokens) = &mut *self.tokens.lock().unwrap() {
                    tokens.good.clear();
                }
                return self.challenge();
            }
            _ => {}
        }
        if from_service {
            return self.token(head.headers.get(AUTHORIZATION));
        }
        if refused {
            return self.challenge();
        }
        if matches!(fault, Some(Fault::LoseSession)) {
            let gone = self
                .forward(Request::delete(head.uri.clone()).header("host", &self.host).body(whole(""))?)
                .await?;
            anyhow::ensure!(gone.status() == 204, "the session can't be deleted: {}", gone.status());
        }
        let mut forwarded = Request::from_parts(head, whole(bytes));
        forwarded.headers_mut().remove(AUTHORIZATION);
        let (mut head, body) = self.forward(forwarded).await?.into_parts();
        let mut bytes = body.to_vec();
        if let Some(to) = head.headers.get(LOCATION).and_then(|v| v.to_str().ok())
            && to.starts_with("http")
        {
            // The registry knows only its socket.
            let path = to.parse::<Uri>()?.path_and_query().context("a path")?.to_string();
            head.headers.insert(LOCATION, HeaderValue::from_str(&path)?);
        }
        if let Some(Fault::Cut(length)) = &fault {
            bytes.truncate(*length);
        }
        self.seen.lock().unwrap()[index].sent = bytes.len();
        let body = match fault {
            Some(Fault::LoseAnswer) => bail!("its answer is lost on purpose"),
            Some(Fault::Cut(_)) => {
                let cut = io::Error::other("cut on purpose");
                let parts = [Ok(Frame::data(Bytes::from(bytes))), Err(cut)];
                BodyExt::boxed(StreamBody::new(futures::stream::iter(parts).then(|part| async {
                    // The server writes out what it has when it has to wait for more.
                    tokio::task::yield_now().await;
                    part
                })))
            }
            Some(Fault::Drip(every)) => {
                BodyExt::boxed(StreamBody::new(futures::stream::iter(bytes).then(move |byte| async move {
                    // The fault itself, not a wait for something.
                    tokio::time::sleep(every).await;
                    Ok(Frame::data(Bytes::from(vec![byte])))
                })))
            }
            Some(Fault::Corrupt) => {
                let middle = bytes.len() / 2;
                *bytes.get_mut(middle).context("nothing to corrupt")? ^= 1;
                whole(bytes)
            }
            Some(Fault::Header(name, value)) => {
                let name = HeaderName::from_static(name);
                match value {
                    Some(value) => head.headers.insert(name, HeaderValue::from_str(&value)?),
                    None => head.headers.remove(name),
                };
                whole(bytes)
            }
            _ => whole(bytes),
        };
        Ok(Response::from_parts(head, body))
    }

    async fn forward(&self, request: Request<Body>) -> Result<Response<Bytes>> {
        let stream = tokio::net::UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    }

    /// What the registry has at this path.
    pub async fn stored(&self, path: &str) -> Result<Option<Bytes>> {
        let request = Request::get(path)
            .header("host", &self.host)
            .header("accept", "application/vnd.oci.image.manifest.v1+json");
        let answer = self.forward(request.body(whole(""))?).await?;
        Ok((answer.status() == 200).then(|| answer.into_body()))
    }

    fn unauthorized(&self, request: &Request<Incoming>) -> bool {
        let tokens = self.tokens.lock().unwrap();
        let Some(tokens) = &*tokens else { return false };
        let header = request.headers().get(AUTHORIZATION).and_then(|v| v.to_str().ok());
        !header.and_then(|h| h.strip_prefix("Bearer ")).is_some_and(|token| tokens.good.contains(token))
    }

    fn challenge(&self) -> Result<Response<Body>> {
        let realm = format!(r#"Bearer realm="http://{}/token",service="tests""#, self.host);
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        answer(401, &[("www-authenticate", realm)], body)
    }

    fn token(&self, login: Option<&HeaderValue>) -> Result<Response<Body>> {
        let wanted = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(LOGIN));
        if login.is_none_or(|l| l.as_bytes() != wanted.as_bytes()) {
            return answer(401, &[], "");
        }
        let mut tokens = self.tokens.lock().unwrap();
        let tokens = tokens.as_mut().context("no test wanted tokens")?;
        tokens.given += 1;
        let token = format!("token-{}", tokens.given);
        tokens.good.insert(token.clone());
        let lasting = tokens.expires_in.as_ref().map(|e| format!(r#","expires_in":{e}"#)).unwrap_or_default();
        answer(
            200,
            &[("content-type", "application/json".to_owned())],
            format!(r#"{{"token":"{token}"{lasting}}}"#),
        )
    }
}
