//! The API server's clock, as far as this process can tell: its own clock, put right by the `Date` of every answer.
//!
//! What the operator compares its time with (creation times, transition times, times that another operator wrote) comes from
//! the API server or through it, so a machine whose clock is wrong by minutes must not end a build early or late.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use hyper::header::DATE;
use hyper::{Request, Response};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use tower::{Layer, Service};

/// Seconds that the two clocks may differ without anything being put right: `Date` has whole seconds, and an answer has
/// been under way for some time.
const TOLERANCE: i64 = 2;
/// Seconds by which it must differ before it is said in the log.
const WORTH_SAYING: i64 = 30;

/// A clock. Clones are the same clock.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// Seconds that the API server's clock is ahead of this machine's.
    ahead: Arc<AtomicI64>,
    #[cfg(test)]
    simulated: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// The API server's time.
    pub fn now(&self) -> Timestamp {
        let local = self.local();
        Timestamp::from_second(local.as_second() + self.ahead.load(Ordering::Relaxed)).unwrap_or(local)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests have a clock of their own")]
    fn local(&self) -> Timestamp {
        Timestamp::now()
    }

    #[cfg(test)]
    fn local(&self) -> Timestamp {
        let seconds = self.simulated.as_ref().map(|s| s.load(Ordering::Relaxed));
        seconds.and_then(|s| Timestamp::from_second(s).ok()).unwrap_or_else(Timestamp::now)
    }

    /// A clock that shows what the test says (seconds since the epoch).
    #[cfg(test)]
    pub fn simulated(seconds: Arc<AtomicI64>) -> Self {
        Self { ahead: Arc::default(), simulated: Some(seconds) }
    }

    /// Takes in the `Date` of an answer that has just come.
    pub(crate) fn observe(&self, date: &str) {
        let Some(theirs) = parse(date) else { return };
        let ahead = theirs.as_second() - self.local().as_second();
        let ahead = if ahead.abs() <= TOLERANCE { 0 } else { ahead };
        let before = self.ahead.load(Ordering::Relaxed);
        // What a slow answer makes of it changes nothing.
        if (ahead - before).abs() <= TOLERANCE {
            return;
        }
        self.ahead.store(ahead, Ordering::Relaxed);
        if (ahead - before).abs() >= WORTH_SAYING {
            tracing::warn!(
                seconds = ahead,
                "the API server's clock differs from this machine's; its time is used"
            );
        }
    }
}

/// Reads an HTTP date (RFC 9110: always GMT).
fn parse(date: &str) -> Option<Timestamp> {
    rfc2822::DateTimeParser::new().parse_timestamp(date).ok()
}

/// Lets a [`Clock`] see every answer.
#[derive(Debug, Clone)]
pub struct ClockLayer(pub Clock);

impl<S> Layer<S> for ClockLayer {
    type Service = Clocked<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Clocked { inner, clock: self.0.clone() }
    }
}

/// A client whose answers a [`Clock`] sees.
#[derive(Debug, Clone)]
pub struct Clocked<S> {
    inner: S,
    clock: Clock,
}

impl<S, A, B> Service<Request<A>> for Clocked<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<B>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let (answer, clock) = (self.inner.call(request), self.clock.clone());
        Box::pin(async move {
            let response = answer.await?;
            if let Some(date) = response.headers().get(DATE).and_then(|d| d.to_str().ok()) {
                clock.observe(date);
            }
            Ok(response)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_servers_time_is_used_where_the_clocks_differ() {
        let local = Arc::new(AtomicI64::new(1_000_000_000));
        let clock = Clock::simulated(local.clone());
        assert_eq!(clock.now().as_second(), 1_000_000_000);
        // 2001-09-09T01:46:40Z is second 1,000,000,000.
        clock.observe("Sun, 09 Sep 2001 01:46:41 GMT");
        assert_eq!(clock.now().as_second(), 1_000_000_000, "a second is the header's precision");
        clock.observe("Sun, 09 Sep 2001 01:56:40 GMT");
        assert_eq!(clock.now().as_second(), 1_000_000_600);
        clock.observe("Sun, 09 Sep 2001 01:56:39 GMT");
        assert_eq!(clock.now().as_second(), 1_000_000_600, "a slow answer changes nothing");
        clock.observe("yesterday");
        local.store(1_000_000_610, Ordering::Relaxed);
        assert_eq!(clock.now().as_second(), 1_000_001_210);
        clock.observe("Sun, 09 Sep 2001 01:46:50 GMT");
        assert_eq!(clock.now().as_second(), 1_000_000_010, "somebody set this machine's clock");
    }
}
