//! `/livez`, `/readyz` and `/metrics` over HTTP/1.1: for the kubelet and Prometheus, so small that hyper alone serves it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::{self, Metrics};

/// How old a heartbeat may be: the controller beats every few seconds, an API call may take 20.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// Connections at the same time: one probe each and a few scrapers are usual.
const MAX_CONNECTIONS: usize = 64;
/// For one connection, which carries one request: who sends or reads more slowly is cut off.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// How long answers under way are waited for at the end.
const DRAIN: Duration = Duration::from_secs(2);
/// Before the next try when no connection can be accepted (no file descriptor is left, say).
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// A heartbeat; begins with one. All clones are the same.
#[derive(Debug, Clone)]
pub struct Liveness {
    last: Arc<watch::Sender<Instant>>,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { last: Arc::new(watch::Sender::new(Instant::now())) }
    }
}

impl Liveness {
    /// Says that work goes on.
    pub fn touch(&self) {
        self.last.send_replace(Instant::now());
    }

    /// How long ago that was.
    fn age(&self) -> Duration {
        self.last.borrow().elapsed()
    }
}

/// Whether the instance is ready: caches are filled, or it waits for the lease. All clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    ready: Arc<AtomicBool>,
}

impl Readiness {
    /// Says whether it is.
    pub fn set(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// Whether it is.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }
}

/// What is served.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Behind `/livez`.
    pub liveness: Liveness,
    /// Behind `/readyz`.
    pub readiness: Readiness,
    /// Behind `/metrics`.
    pub metrics: Arc<Metrics>,
}

impl Admin {
    /// Serves on a listener that is bound, so that a port in use is seen at start. Ends soon after `shutdown`.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let connections = TaskTracker::new();
        while let Some(accepted) = shutdown.run_until_cancelled(accept(&listener, &places)).await {
            match accepted {
                Ok((stream, place)) => {
                    connections.spawn(self.clone().connection(stream, place));
                }
                Err(error) => {
                    tracing::warn!(%error, "can't accept a connection for /livez, /readyz or /metrics");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
        drop(listener);
        connections.close();
        if timeout(DRAIN, connections.wait()).await.is_err() {
            tracing::debug!("connections to /livez, /readyz or /metrics are cut off");
        }
    }

    async fn connection(self, stream: TcpStream, _place: OwnedSemaphorePermit) {
        let service = service_fn(|request: Request<_>| {
            let answer = self.answer(request.method(), request.uri().path());
            async { Ok::<_, std::convert::Infallible>(answer) }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        let serving =
            http.keep_alive(false).max_buf_size(MAX_HEAD).serve_connection(TokioIo::new(stream), service);
        match timeout(CONNECTION_TIMEOUT, serving).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a connection for /livez, /readyz or /metrics failed"),
            Err(_) => tracing::debug!("a connection for /livez, /readyz or /metrics took too long"),
        }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<String> {
        if ![Method::GET, Method::HEAD].contains(method) {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "expected GET\n");
        }
        match path {
            "/livez" => livez(self.liveness.age()),
            "/readyz" if self.readiness.is_ready() => plain(StatusCode::OK, "ok\n"),
            "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, "not ready: the caches are not filled yet\n"),
            "/metrics" => match self.metrics.encode() {
                Ok(text) => typed(StatusCode::OK, metrics::CONTENT_TYPE, text),
                Err(error) => {
                    plain(StatusCode::INTERNAL_SERVER_ERROR, format!("can't write the metrics: {error}\n"))
                }
            },
            _ => plain(StatusCode::NOT_FOUND, "expected /livez, /readyz or /metrics\n"),
        }
    }
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

fn livez(age: Duration) -> Response<String> {
    if age <= HEARTBEAT {
        return plain(StatusCode::OK, "ok\n");
    }
    let words = format!(
        "no heartbeat of the controller for {} seconds; expected one within {}\n",
        age.as_secs(),
        HEARTBEAT.as_secs()
    );
    plain(StatusCode::SERVICE_UNAVAILABLE, words)
}

fn plain(status: StatusCode, text: impl Into<String>) -> Response<String> {
    typed(status, "text/plain; charset=utf-8", text.into())
}

fn typed(status: StatusCode, content_type: &'static str, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn start() -> (Admin, SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let admin = Admin {
            liveness: Liveness::default(),
            readiness: Readiness::default(),
            metrics: Arc::new(Metrics::new()),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(admin.clone().serve(listener, shutdown.clone()));
        (admin, address, shutdown, serving)
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(format!("{request} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer and the end");
        answer
    }

    #[tokio::test]
    async fn probes_and_metrics_are_answered() {
        let (admin, address, shutdown, serving) = start().await;
        assert!(ask(address, "GET /livez").await.starts_with("HTTP/1.1 200 "));
        let starting = ask(address, "GET /readyz").await;
        assert!(starting.starts_with("HTTP/1.1 503 ") && starting.contains("not ready: "), "{starting}");
        admin.readiness.set(true);
        assert!(ask(address, "GET /readyz?verbose").await.starts_with("HTTP/1.1 200 "));
        let metrics = ask(address, "GET /metrics").await;
        assert!(
            metrics.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n")
        );
        assert!(metrics.ends_with("# EOF\n"), "{metrics}");
        let head = ask(address, "HEAD /metrics").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(ask(address, "GET /").await.starts_with("HTTP/1.1 404 "));
        assert!(ask(address, "POST /livez").await.starts_with("HTTP/1.1 405 "));
        let long = format!("GET /{}", "a".repeat(2 * MAX_HEAD));
        assert!(ask(address, &long).await.starts_with("HTTP/1.1 4"), "a long head is refused");
        shutdown.cancel();
        serving.await.expect("no panic");
        assert!(TcpStream::connect(address).await.is_err(), "it listens no more");
    }

    #[tokio::test]
    async fn an_idle_connection_holds_up_neither_others_nor_the_end() {
        let (_admin, address, shutdown, serving) = start().await;
        let _idle = TcpStream::connect(address).await.expect("it listens");
        assert!(ask(address, "GET /livez").await.contains("ok"));
        shutdown.cancel();
        timeout(DRAIN * 4, serving).await.expect("it ends").expect("no panic");
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_counts_for_a_minute() {
        let liveness = Liveness::default();
        let code = |liveness: &Liveness| livez(liveness.age()).status().as_u16();
        tokio::time::advance(HEARTBEAT).await;
        assert_eq!(code(&liveness), 200);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(code(&liveness), 503);
        assert!(livez(liveness.age()).body().contains("for 61 seconds"), "it says why");
        liveness.clone().touch();
        assert_eq!(code(&liveness), 200);
    }
}
