//! Leader election on a Lease, by client-go's rules: who renews it leads; who sees it unrenewed for 15 seconds takes it.
//!
//! Clocks are never compared: a candidate measures by its own monotonic clock how long the record has not changed, and
//! the leader how long ago it sent the last renewal that was stored. Every write names the resourceVersion it replaces,
//! so of two that write only one gets through. A leader that was paused may still have a request under way when another
//! takes over: what keeps a build from being made twice is the resourceVersion of its status, not the lease.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Name of the Lease.
pub const NAME: &str = "kiln-operator";
/// How long a lease holds without a renewal (client-go's LeaseDuration).
const LEASE: Duration = Duration::from_secs(LEASE_SECONDS as u64);
const LEASE_SECONDS: i32 = 15;
/// How long somebody else's lease is honoured at most, whatever its record says: a wrong one must not stop all for good.
const MAX_LEASE: Duration = Duration::from_secs(300);
/// How long after the last renewal the leader may still act (RenewDeadline): it stops 5 seconds before another may begin.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between renewals, and between looks at somebody else's lease (RetryPeriod).
const RETRY: Duration = Duration::from_secs(2);
/// For one API call: two of them and a pause end within [`LEASE`].
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The lease could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The API server refused or did not answer as expected.
    #[error("{call}: {source}")]
    Api {
        /// Which call.
        call: &'static str,
        /// Its answer.
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("{call}: no answer from the API server within {} seconds", CALL_TIMEOUT.as_secs())]
    Timeout {
        /// Which call.
        call: &'static str,
    },
}

impl LeaseError {
    /// HTTP status of the API server's answer, where there was one.
    fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Self::Timeout { .. } => None,
        }
    }
}

/// A candidate.
#[derive(Debug, Clone)]
pub struct Elector {
    api: Api<Lease>,
    identity: String,
}

/// The lease in hand. All clones are the same leadership.
#[derive(Debug, Clone)]
pub struct Leadership {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    elector: Elector,
    /// When the last renewal that was stored was sent; `None` once the lease is lost or released.
    renewed: watch::Sender<Option<Instant>>,
    /// The lease as last stored. Locked while it is written.
    held: Mutex<Lease>,
}

/// Why [`Leadership::keep`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Another has the lease, or it could not be renewed in time. Nothing may be written any more.
    Lost,
    /// Asked to stop; the lease is still held for a few seconds, or until [`Leadership::release`].
    Stopped,
}

/// A name that no other process has, another start of the same container included.
pub fn unique_identity(name: &str) -> String {
    format!("{name}_{:x}", Timestamp::now().as_nanosecond())
}

impl Elector {
    /// A candidate for the lease in `namespace`. `identity` must differ between processes, see [`unique_identity`].
    pub fn new(client: Client, namespace: &str, identity: impl Into<String>) -> Self {
        Self { api: Api::namespaced(client, namespace), identity: identity.into() }
    }

    /// Waits until the lease is ours; `None` when asked to shut down before. Faults are logged and tried again.
    pub async fn acquire(&self, shutdown: &CancellationToken) -> Option<Leadership> {
        let mut seen = None;
        loop {
            // A write under way is not cut off: it may be stored, and then nobody leads for 15 seconds.
            let read = shutdown.run_until_cancelled(self.read()).await?;
            let tried = match read {
                Ok(lease) => self.take(lease, &mut seen).await,
                Err(error) => Err(error),
            };
            match tried {
                Ok(Some(leadership)) => return Some(leadership),
                Ok(None) => {}
                Err(error) if error.code() == Some(409) => tracing::debug!("another took the lease first"),
                Err(error) => tracing::warn!(%error, "can't look after the lease; tried again"),
            }
            shutdown.run_until_cancelled(sleep(RETRY)).await?;
        }
    }

    /// Takes the lease if it is free to take.
    async fn take(
        &self,
        lease: Option<Lease>,
        seen: &mut Option<Seen>,
    ) -> Result<Option<Leadership>, LeaseError> {
        let now = Instant::now();
        let sent;
        let held = match lease {
            None => {
                let lease = Lease {
                    metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
                    spec: Some(claimed(LeaseSpec::default(), &self.identity, Timestamp::now())),
                };
                sent = Instant::now();
                timed("create lease", self.api.create(&PostParams::default(), &lease)).await?
            }
            Some(lease) => {
                let spec = lease.spec.clone().unwrap_or_default();
                let since = seen.take().filter(|s| s.spec == spec).map_or(now, |s| s.since);
                let step = step(&spec, now.duration_since(since), &self.identity);
                *seen = Some(Seen { spec: spec.clone(), since });
                if step == Step::Wait {
                    return Ok(None);
                }
                sent = Instant::now();
                self.replace(lease, claimed(spec, &self.identity, Timestamp::now())).await?
            }
        };
        tracing::info!(identity = self.identity, "leads now");
        Ok(Some(Leadership {
            inner: Arc::new(Inner {
                elector: self.clone(),
                renewed: watch::Sender::new(Some(sent)),
                held: Mutex::new(held),
            }),
        }))
    }

    async fn read(&self) -> Result<Option<Lease>, LeaseError> {
        timed("get lease", self.api.get_opt(NAME)).await
    }

    /// Stores that spec in place of the lease as it was read: with its resourceVersion.
    async fn replace(&self, mut lease: Lease, spec: LeaseSpec) -> Result<Lease, LeaseError> {
        lease.spec = Some(spec);
        timed("replace lease", self.api.replace(NAME, &PostParams::default(), &lease)).await
    }
}

impl Leadership {
    /// A lease in the hands of an operator of the simulator, which renews it by hand.
    #[cfg(test)]
    pub(crate) fn simulated(client: Client) -> Self {
        let renewed = watch::Sender::new(Some(Instant::now()));
        let elector = Elector::new(client, "simulated", "simulated");
        Self { inner: Arc::new(Inner { elector, renewed, held: Mutex::default() }) }
    }

    /// Renews it.
    #[cfg(test)]
    pub(crate) fn simulate_renewal(&self) {
        self.inner.renewed.send_replace(Some(Instant::now()));
    }

    /// Whether this process may act: its last renewal is younger than 10 seconds. Ask before each write.
    pub fn is_leader(&self) -> bool {
        self.left().is_some()
    }

    /// How long it may act without a further renewal.
    fn left(&self) -> Option<Duration> {
        let renewed = (*self.inner.renewed.borrow())?;
        RENEW_DEADLINE.checked_sub(renewed.elapsed()).filter(|left| !left.is_zero())
    }

    /// Renews until the lease is lost or `stop` is cancelled, which is done only after the last work has ended.
    pub async fn keep(&self, stop: &CancellationToken) -> End {
        loop {
            let Some(left) = self.left() else {
                return self.lose("it was not renewed in time").await;
            };
            if stop.run_until_cancelled(sleep(RETRY.min(left))).await.is_none() {
                return End::Stopped;
            }
            let Some(left) = self.left() else { continue };
            match timeout(left, self.store(claimed)).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return self.lose("it is not ours any more").await,
                Ok(Err(error)) => tracing::warn!(%error, "can't renew the lease; tried again"),
                Err(_) => tracing::warn!("can't renew the lease before it ends"),
            }
        }
    }

    /// Gives the lease up, so that a successor takes it at once. Nothing may be written after this was called.
    ///
    /// # Errors
    /// It could not be written; a successor has to wait until it has expired.
    pub async fn release(&self) -> Result<(), LeaseError> {
        let released = self.store(|spec, _, now| released(spec, now)).await;
        if released? {
            tracing::info!("the lease is released");
        }
        Ok(())
    }

    /// Stores what `change` makes of the lease; `false` when it is not ours any more. Afterwards we lead if it names us.
    async fn store(&self, change: fn(LeaseSpec, &str, Timestamp) -> LeaseSpec) -> Result<bool, LeaseError> {
        let elector = &self.inner.elector;
        let mut held = self.inner.held.lock().await;
        if self.inner.renewed.borrow().is_none() {
            return Ok(false);
        }
        let mut reread = false;
        loop {
            let spec = change(held.spec.clone().unwrap_or_default(), &elector.identity, Timestamp::now());
            let leads = spec.holder_identity.as_ref() == Some(&elector.identity);
            let sent = Instant::now();
            if !leads {
                // Before the write: a successor may begin before its answer is here.
                self.inner.renewed.send_replace(None);
            }
            let error = match elector.replace(held.clone(), spec).await {
                Ok(lease) => {
                    *held = lease;
                    if leads {
                        self.inner.renewed.send_replace(Some(sent));
                    }
                    return Ok(true);
                }
                Err(error) => error,
            };
            match error.code() {
                Some(404) => return Ok(false),
                // Somebody else's write, or one of ours whose answer was lost.
                Some(409) if !reread => {}
                _ => return Err(error),
            }
            reread = true;
            match elector.read().await? {
                Some(lease) if holder(lease.spec.as_ref()) == Some(elector.identity.as_str()) => {
                    *held = lease;
                }
                _ => return Ok(false),
            }
        }
    }

    /// The end of it: not even a late answer makes us the leader again.
    async fn lose(&self, why: &str) -> End {
        let _held = self.inner.held.lock().await;
        self.inner.renewed.send_replace(None);
        tracing::error!(identity = self.inner.elector.identity, "the lease is lost: {why}");
        End::Lost
    }
}

/// The record as last read, and since when it has read so.
#[derive(Debug)]
struct Seen {
    spec: LeaseSpec,
    since: Instant,
}

/// What a candidate does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Somebody else leads.
    Wait,
    /// Nobody does.
    Take,
    /// We do: the answer to our write was lost.
    Renew,
}

/// What `identity` does about a record that has not changed for so long.
fn step(spec: &LeaseSpec, unchanged_for: Duration, identity: &str) -> Step {
    // A holder of another version may keep to another duration, but to none shorter than ours.
    let theirs = u64::try_from(spec.lease_duration_seconds.unwrap_or(LEASE_SECONDS)).unwrap_or(0);
    let holds_for = Duration::from_secs(theirs).clamp(LEASE, MAX_LEASE);
    match holder(Some(spec)) {
        None => Step::Take,
        Some(holder) if holder == identity => Step::Renew,
        Some(_) if unchanged_for >= holds_for => Step::Take,
        Some(_) => Step::Wait,
    }
}

/// The record with `identity` as its holder from now on, or still.
fn claimed(spec: LeaseSpec, identity: &str, now: Timestamp) -> LeaseSpec {
    let still = holder(Some(&spec)) == Some(identity);
    let transitions = spec.lease_transitions.map(|n| n.saturating_add(i32::from(!still)));
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(LEASE_SECONDS),
        acquire_time: spec.acquire_time.filter(|_| still).or(Some(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(transitions.unwrap_or(0)),
        ..spec
    }
}

/// The record with no holder.
fn released(spec: LeaseSpec, now: Timestamp) -> LeaseSpec {
    LeaseSpec { holder_identity: Some(String::new()), renew_time: Some(MicroTime(now)), ..spec }
}

fn holder(spec: Option<&LeaseSpec>) -> Option<&str> {
    spec?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

async fn timed<T>(
    call: &'static str,
    work: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, LeaseError> {
    match timeout(CALL_TIMEOUT, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(LeaseError::Api { call, source: Box::new(source) }),
        Err(_) => Err(LeaseError::Timeout { call }),
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
