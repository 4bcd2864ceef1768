//! When to try again, and when to give up: full jitter, `Retry-After`, one budget per operation.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::error::{Error, Fault};

/// How long to bear with a registry.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// From the first fault of an operation (or its last progress) to giving up. Two minutes outlast a registry's
    /// rolling restart and most rate limits, and are short against a build.
    pub budget: Duration,
    /// Mean of twice the first pause.
    pub first: Duration,
    /// The longest pause that we choose ourselves.
    pub cap: Duration,
    /// Until a connection stands.
    pub connect: Duration,
    /// Without a byte from the other side, or too few of them (see [`RetryPolicy::MIN_WINDOW_BYTES`]).
    pub idle: Duration,
    /// From the last byte of an upload to the answer: registries hash and move the blob in that time.
    pub settle: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            budget: Duration::from_secs(120),
            first: Duration::from_millis(500),
            cap: Duration::from_secs(20),
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            settle: Duration::from_secs(300),
        }
    }
}

impl RetryPolicy {
    /// Bytes that a body has to bring in one idle window: far below any real link, far above a registry that sends a
    /// byte a second to hold us.
    pub const MIN_WINDOW_BYTES: u64 = 4096;

    /// A policy for something that has an alternative (a mirror): an eighth of the budget.
    pub(crate) fn impatient(&self) -> Self {
        Self { budget: self.budget / 8, connect: self.connect.min(Duration::from_secs(3)), ..self.clone() }
    }
}

/// The retries of one operation.
#[derive(Debug)]
pub(crate) struct Backoff {
    policy: RetryPolicy,
    registry: String,
    action: String,
    since: Option<Instant>,
    tries: u32,
    streak: u32,
}

impl Backoff {
    pub(crate) fn new(policy: &RetryPolicy, registry: &str, action: impl Into<String>) -> Self {
        Self {
            policy: policy.clone(),
            registry: registry.to_owned(),
            action: action.into(),
            since: None,
            tries: 0,
            streak: 0,
        }
    }

    /// Something moved: the budget starts anew with the next fault.
    pub(crate) fn progress(&mut self) {
        self.since = None;
        self.streak = 0;
    }

    /// Waits before the next try, or says that there is none.
    pub(crate) async fn after(&mut self, fault: Fault) -> Result<(), Error> {
        let (detail, after, unknown_host) = match fault {
            Fault::Final(error) => return Err(error),
            Fault::Again { detail, after, unknown_host } => (detail, after, unknown_host),
        };
        self.tries += 1;
        self.streak += 1;
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let budget = if unknown_host { self.policy.budget / 8 } else { self.policy.budget };
        let left = budget.saturating_sub(now - since);
        let pause = after.unwrap_or_else(|| jitter(&self.policy, self.streak));
        if pause > left {
            let detail = match after {
                Some(wait) => format!("{detail} (it asks to wait {} s)", wait.as_secs()),
                None => detail,
            };
            return Err(Error::Unavailable {
                registry: self.registry.clone(),
                action: self.action.clone(),
                tries: self.tries,
                elapsed: now - since,
                detail,
            });
        }
        tracing::debug!(registry = self.registry, action = self.action, detail, ?pause, "trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Full jitter: anything from nothing to the doubled step. 20 halvings of the cap are beyond every budget.
fn jitter(policy: &RetryPolicy, streak: u32) -> Duration {
    let ceiling = policy.first.saturating_mul(1 << streak.min(20)).min(policy.cap);
    ceiling.mul_f64(fastrand::f64())
}

/// Reads a `Retry-After`: seconds or an HTTP date (RFC 9110 section 10.2.3).
pub(crate) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_reads_seconds_and_dates() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after("3", now), Some(Duration::from_secs(3)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:47 GMT", now), Some(Duration::from_secs(10)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:07 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("-1", now), None);
        assert_eq!(retry_after("soon", now), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_ends_and_progress_renews_it() {
        let policy = RetryPolicy { budget: Duration::from_secs(60), ..RetryPolicy::default() };
        let mut backoff = Backoff::new(&policy, "r", "do");
        let start = Instant::now();
        let error = loop {
            if let Err(e) = backoff.after(Fault::again("no")).await {
                break e;
            }
            assert!(start.elapsed() <= Duration::from_secs(60));
        };
        assert!(matches!(error, Error::Unavailable { tries, .. } if tries >= 4), "{error}");
        backoff.progress();
        assert!(backoff.after(Fault::again("no")).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_day_of_retry_after_is_refused_at_once() {
        let mut backoff = Backoff::new(&RetryPolicy::default(), "r", "do");
        let day = Some(Duration::from_secs(86_400));
        let fault = Fault::Again { detail: "429".into(), after: day, unknown_host: false };
        let error = backoff.after(fault).await.expect_err("too long");
        assert!(error.to_string().contains("86400"), "{error}");
    }
}
