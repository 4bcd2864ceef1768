//! The way from an operator to the API server: every request waits here until the scheduler lets it through, answers it
//! with a fault, or forgets it.

use std::sync::{Arc, Mutex};

use hyper::{Request, Response};
use kube::client::Body;
use serde_json::Value;
use tokio::sync::oneshot;
use tower::{Layer as _, service_fn};

use crate::clock::{Clock, ClockLayer};

use super::api::{Answer, Call};

/// The method of a request to create something that is only to be tried.
pub const DRY_RUN: &str = "POST (dry run)";

/// What becomes of a request in the end.
#[derive(Debug)]
pub enum Reply {
    /// An answer.
    Answer(Answer),
    /// A log.
    Text(String),
    /// The connection breaks.
    Broken,
}

/// A request under way.
#[derive(Debug)]
pub struct Pending {
    /// Which operator sent it.
    pub from: usize,
    pub call: Call,
    /// How long the API server's history was when it was sent.
    pub sent: usize,
    pub reply: oneshot::Sender<Reply>,
}

/// The requests under way, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    pending: Arc<Mutex<Vec<Pending>>>,
    /// `Date` of the answers, in seconds.
    date: Arc<Mutex<i64>>,
    /// How long the API server's history is.
    history: Arc<Mutex<usize>>,
}

impl Gate {
    /// A client of the operator of that number, whose clock sees the answers.
    pub fn client(&self, from: usize, clock: &Clock) -> kube::Client {
        let gate = self.clone();
        let service = service_fn(move |request: Request<Body>| {
            let gate = gate.clone();
            async move { gate.send(from, request).await }
        });
        kube::Client::new(ClockLayer(clock.clone()).layer(service), "default")
    }

    async fn send(&self, from: usize, request: Request<Body>) -> std::io::Result<Response<Body>> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect_bytes().await.map_err(std::io::Error::other)?;
        let dry = parts.uri.query().is_some_and(|query| query.contains("dryRun=All"));
        let call = Call {
            method: if dry { DRY_RUN.to_owned() } else { parts.method.to_string() },
            path: parts.uri.path().to_owned(),
            body: if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes)? },
        };
        let (reply, answer) = oneshot::channel();
        let sent = *self.history.lock().expect("no panic");
        self.pending.lock().expect("no panic").push(Pending { from, call, sent, reply });
        let (code, body) = match answer.await {
            Ok(Reply::Answer((code, value))) => (code, value.to_string()),
            Ok(Reply::Text(text)) => (200, text),
            Ok(Reply::Broken) | Err(_) => {
                return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
            }
        };
        let response = Response::builder().status(code).header("Date", self.date());
        response.body(Body::from(body.into_bytes())).map_err(std::io::Error::other)
    }

    /// The time as an answer's header has it.
    pub fn date(&self) -> String {
        let now = jiff::Timestamp::from_second(*self.date.lock().expect("no panic")).expect("a time");
        now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
    }

    /// What requests and answers are to be marked with from now on.
    pub fn set_now(&self, seconds: i64, history: usize) {
        *self.date.lock().expect("no panic") = seconds;
        *self.history.lock().expect("no panic") = history;
    }

    pub fn len(&self) -> usize {
        self.pending.lock().expect("no panic").len()
    }

    /// Takes the first request out for which that holds.
    pub fn take_if(&self, wanted: impl Fn(&Pending) -> bool) -> Option<Pending> {
        let mut pending = self.pending.lock().expect("no panic");
        let at = pending.iter().position(wanted)?;
        Some(pending.remove(at))
    }

    /// Takes a request out.
    pub fn take(&self, at: usize) -> Pending {
        self.pending.lock().expect("no panic").remove(at)
    }
}
