//! Tests of the election: the rules on values, and candidates against an API server in memory that keeps resourceVersions.

use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::{Method, Request, Response, StatusCode};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("a time")
}

fn spec(holder: Option<&str>, seconds: Option<i32>) -> LeaseSpec {
    LeaseSpec {
        holder_identity: holder.map(ToOwned::to_owned),
        lease_duration_seconds: seconds,
        ..LeaseSpec::default()
    }
}

#[test]
fn a_lease_is_taken_when_it_is_free_or_has_not_changed_for_its_duration() {
    for (holder, seconds, unchanged_for, expected) in [
        (None, None, 0, Step::Take),
        (Some(""), Some(15), 0, Step::Take),
        (Some("me"), Some(15), 0, Step::Renew),
        (Some("me"), Some(15), 1000, Step::Renew),
        (Some("other"), Some(15), 14, Step::Wait),
        (Some("other"), Some(15), 15, Step::Take),
        (Some("other"), None, 14, Step::Wait),
        (Some("other"), None, 15, Step::Take),
        (Some("other"), Some(1), 14, Step::Wait),
        (Some("other"), Some(-1), 14, Step::Wait),
        (Some("other"), Some(60), 59, Step::Wait),
        (Some("other"), Some(i32::MAX), 300, Step::Take),
    ] {
        let step = step(&spec(holder, seconds), Duration::from_secs(unchanged_for), "me");
        assert_eq!(step, expected, "{holder:?} {seconds:?} {unchanged_for}");
    }
}

#[test]
fn a_record_says_who_leads_since_when_and_how_often_that_changed() {
    let first = claimed(LeaseSpec::default(), "a", at(10));
    let show = |s: &LeaseSpec| {
        let seconds = |t: &Option<MicroTime>| t.as_ref().map(|t| t.0.as_second());
        (s.holder_identity.clone(), seconds(&s.acquire_time), seconds(&s.renew_time), s.lease_transitions)
    };
    assert_eq!(show(&first), (Some("a".into()), Some(10), Some(10), Some(0)));
    let renewed = claimed(first, "a", at(12));
    assert_eq!(show(&renewed), (Some("a".into()), Some(10), Some(12), Some(0)));
    let taken = claimed(renewed.clone(), "b", at(40));
    assert_eq!(show(&taken), (Some("b".into()), Some(40), Some(40), Some(1)));
    let free = released(renewed, at(13));
    assert_eq!(show(&free), (Some(String::new()), Some(10), Some(13), Some(0)));
    assert_eq!(show(&claimed(free, "b", at(14))), (Some("b".into()), Some(14), Some(14), Some(1)));
}

#[test]
fn identities_differ_between_starts() {
    assert_ne!(unique_identity("pod"), unique_identity("pod"));
}

/// An API server with one Lease.
#[derive(Default)]
struct Server {
    lease: StdMutex<Option<Value>>,
    /// No answer to anything.
    down: AtomicBool,
    /// The next write is stored, but its answer is lost.
    lose_answer: AtomicBool,
}

impl Server {
    async fn answer(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Result<Response<Body>, std::convert::Infallible> {
        if self.down.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let method = request.method().clone();
        let body = request.into_body().collect_bytes().await.expect("a body");
        let (code, value) = self.store(&method, &body);
        if method != Method::GET && self.lose_answer.swap(false, Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let answer = Response::builder().status(code).body(Body::from(value.to_string().into_bytes()));
        Ok(answer.expect("a response"))
    }

    fn store(&self, method: &Method, body: &[u8]) -> (StatusCode, Value) {
        let refused = |code: StatusCode, reason: &str| {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": reason, "reason": reason, "code": code.as_u16()});
            (code, status)
        };
        let mut lease = self.lease.lock().expect("no panic");
        let version = |lease: &Value| lease["metadata"]["resourceVersion"].as_str().map(ToOwned::to_owned);
        let next = match (method, lease.as_ref()) {
            (&Method::GET, Some(lease)) => return (StatusCode::OK, lease.clone()),
            (&Method::POST, Some(_)) => return refused(StatusCode::CONFLICT, "AlreadyExists"),
            (&Method::POST, None) => 1,
            (_, None) => return refused(StatusCode::NOT_FOUND, "NotFound"),
            (_, Some(stored)) => {
                let mine = serde_json::from_slice(body).ok().and_then(|v: Value| version(&v));
                assert!(mine.is_some(), "a write without a precondition");
                if mine != version(stored) {
                    return refused(StatusCode::CONFLICT, "Conflict");
                }
                mine.and_then(|v| v.parse::<u64>().ok()).expect("a number") + 1
            }
        };
        let mut stored: Value = serde_json::from_slice(body).expect("JSON");
        stored["metadata"]["resourceVersion"] = json!(next.to_string());
        *lease = Some(stored.clone());
        (StatusCode::OK, stored)
    }

    /// Changes the lease as a third party would.
    fn change(&self, key: &str, value: Value) {
        let mut lease = self.lease.lock().expect("no panic");
        let lease = lease.as_mut().expect("a lease");
        lease["spec"][key] = value;
        lease["metadata"]["resourceVersion"] = json!("1000");
    }

    fn spec(&self) -> LeaseSpec {
        let lease = self.lease.lock().expect("no panic").clone().expect("a lease");
        serde_json::from_value(lease["spec"].clone()).expect("a spec")
    }

    fn elector(self: &Arc<Self>, identity: &str) -> Elector {
        let server = Arc::clone(self);
        let service = tower::service_fn(move |request| Arc::clone(&server).answer(request));
        Elector::new(Client::new(service, "default"), "ns", identity)
    }
}

/// Acquires within so many seconds.
async fn within(seconds: u64, elector: &Elector) -> Option<Leadership> {
    let forever = CancellationToken::new();
    timeout(Duration::from_secs(seconds), elector.acquire(&forever)).await.ok().flatten()
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_another_takes_over_when_it_falls_silent() {
    let server = Arc::new(Server::default());
    let (a, b) = (server.elector("a"), server.elector("b"));
    let first = within(1, &a).await.expect("nobody else is there");
    let stop = CancellationToken::new();
    let keeper = tokio::spawn({
        let (first, stop) = (first.clone(), stop.clone());
        async move { first.keep(&stop).await }
    });
    assert!(within(120, &b).await.is_none(), "the first one renews");
    assert!(first.is_leader());
    stop.cancel();
    assert_eq!(keeper.await.expect("no panic"), End::Stopped);
    let silent = Instant::now();
    let second = within(60, &b).await.expect("the first one is silent");
    assert!(silent.elapsed() >= RENEW_DEADLINE, "it waited");
    assert!(second.is_leader() && !first.is_leader());
    let spec = server.spec();
    assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("b"), Some(1)));
    assert_eq!(first.keep(&CancellationToken::new()).await, End::Lost);
    first.release().await.expect("nothing to do");
    assert_eq!(server.spec().holder_identity.as_deref(), Some("b"), "who lost it does not release it");
}

#[tokio::test(start_paused = true)]
async fn a_released_lease_is_taken_at_once() {
    let server = Arc::new(Server::default());
    let first = within(1, &server.elector("a")).await.expect("nobody else is there");
    let b = server.elector("b");
    let (second, ()) = tokio::join!(within(10, &b), async {
        sleep(Duration::from_secs(1)).await;
        assert!(first.is_leader());
        first.release().await.expect("released");
        assert!(!first.is_leader());
    });
    assert!(second.expect("it is free").is_leader());
    assert_eq!(first.keep(&CancellationToken::new()).await, End::Lost);
    assert_eq!(server.spec().holder_identity.as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_replaced_or_cut_off_stops() {
    let server = Arc::new(Server::default());
    let first = within(1, &server.elector("a")).await.expect("nobody else is there");
    server.change("holderIdentity", json!("b"));
    let began = Instant::now();
    assert_eq!(first.keep(&CancellationToken::new()).await, End::Lost);
    assert!(began.elapsed() <= RETRY * 2 && !first.is_leader());

    let server = Arc::new(Server::default());
    let first = within(1, &server.elector("a")).await.expect("nobody else is there");
    let began = Instant::now();
    server.down.store(true, Ordering::SeqCst);
    assert_eq!(first.keep(&CancellationToken::new()).await, End::Lost);
    assert!(began.elapsed() <= RENEW_DEADLINE, "{:?}", began.elapsed());
    server.down.store(false, Ordering::SeqCst);
    assert_eq!(first.keep(&CancellationToken::new()).await, End::Lost, "lost stays lost");
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_and_a_foreign_edit_cost_no_leadership() {
    let server = Arc::new(Server::default());
    server.lose_answer.store(true, Ordering::SeqCst);
    let first = within(30, &server.elector("a")).await.expect("its own record is no obstacle");
    assert_eq!(server.spec().lease_transitions, Some(0));
    let stop = CancellationToken::new();
    let (end, ()) = tokio::join!(first.keep(&stop), async {
        server.lose_answer.store(true, Ordering::SeqCst);
        sleep(Duration::from_secs(20)).await;
        server.change("leaseTransitions", json!(7));
        sleep(Duration::from_secs(20)).await;
        assert!(first.is_leader());
        stop.cancel();
    });
    assert_eq!((end, server.spec().lease_transitions), (End::Stopped, Some(7)));
}

#[tokio::test(start_paused = true)]
async fn a_standby_ends_on_shutdown() {
    let server = Arc::new(Server::default());
    let _first = within(1, &server.elector("a")).await.expect("nobody else is there");
    for down in [false, true] {
        server.down.store(down, Ordering::SeqCst);
        let shutdown = CancellationToken::new();
        let b = server.elector("b");
        let (lease, ()) = tokio::join!(b.acquire(&shutdown), async {
            sleep(Duration::from_secs(3)).await;
            shutdown.cancel();
        });
        assert!(lease.is_none());
    }
}
