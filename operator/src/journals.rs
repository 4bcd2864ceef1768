//! Follows the journals of running attempts through `pods/log` and folds them into what their status shows.
//!
//! A journal is read from its start each time; folding is idempotent. A stream that falls silent or ends early is opened
//! again. Beyond a bounded number of streams the rest is polled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{AsyncBufRead, AsyncBufReadExt as _};
use k8s_openapi::api::core::v1::Pod;
use kiln_contract::journal::{BuildState, Event, HEARTBEAT_SECONDS, Line, MAX_JOURNAL};
use kiln_contract::paths::COURIER_CONTAINER;
use kube::Api;
use kube::api::LogParams;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tracing::Instrument as _;

/// Streams that are open at the same time: each is a connection of the API server to a kubelet.
const MAX_STREAMS: usize = 1024;
/// Without a line for this long (three heartbeats) a stream is taken for dead.
const SILENCE: Duration = Duration::from_secs(3 * HEARTBEAT_SECONDS);
/// Between openings of a stream that ended early.
const REOPEN: Duration = Duration::from_secs(1);
/// Between looks at a journal that has no stream.
const POLL: Duration = Duration::from_secs(5);
/// Between tellings of one build's steps; what decides something is told at once.
const TELL: Duration = Duration::from_secs(1);
/// For the last read of a journal, once its pod has ended.
const LAST_READ: Duration = Duration::from_secs(5);
/// Bytes of a line: a checkpoint of 200 steps has some 150 KiB.
const MAX_LINE: usize = MAX_JOURNAL;
/// Bytes of a log that are read: a journal with its checkpoints and heartbeats of a day.
const MAX_LOG: i64 = 8 << 20;

/// An object to look at again: namespace and name.
pub type Wake = (String, String);

/// Whose journal it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// UID of the ImageBuild.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The attempt.
    pub attempt: String,
    /// The attempt's pod.
    pub pod: String,
}

/// The journals of the attempts that run, one per ImageBuild.
#[derive(Clone)]
pub struct Journals {
    client: kube::Client,
    wake: mpsc::UnboundedSender<Wake>,
    streams: Arc<Semaphore>,
    followed: Arc<Mutex<HashMap<String, Followed>>>,
}

impl std::fmt::Debug for Journals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journals").field("followed", &self.lock().len()).finish_non_exhaustive()
    }
}

struct Followed {
    attempt: String,
    state: BuildState,
    settled: bool,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Followed {
    fn new(subject: &Subject) -> Self {
        Self { attempt: subject.attempt.clone(), state: BuildState::default(), settled: false, task: None }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Journals {
    /// No journals yet. `wake` is told when one has news.
    pub fn new(client: kube::Client, wake: mpsc::UnboundedSender<Wake>) -> Self {
        Self { client, wake, streams: Arc::new(Semaphore::new(MAX_STREAMS)), followed: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Followed>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are followed.
    pub fn len(&self) -> usize {
        self.lock().values().filter(|f| f.task.is_some()).count()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is known of an attempt.
    pub fn state(&self, uid: &str, attempt: &str) -> Option<BuildState> {
        self.lock().get(uid).filter(|f| f.attempt == attempt && f.state.seq > 0).map(|f| f.state.clone())
    }

    /// Follows an attempt whose courier runs, unless that is being done.
    pub fn follow(&self, subject: &Subject) {
        let mut followed = self.lock();
        if followed.get(&subject.uid).is_some_and(|f| f.attempt == subject.attempt) {
            return;
        }
        let mut fresh = Followed::new(subject);
        fresh.task = Some(tokio::spawn(follow(self.clone(), subject.clone()).in_current_span()));
        followed.insert(subject.uid.clone(), fresh);
    }

    /// Reads the journal of an attempt whose pod has ended to its end, once, unless its end was read. What can't be read stays
    /// unknown.
    pub async fn settle(&self, subject: &Subject) {
        {
            let mut followed = self.lock();
            let entry = followed.entry(subject.uid.clone()).or_insert_with(|| Followed::new(subject));
            if entry.attempt != subject.attempt {
                *entry = Followed::new(subject);
            }
            if std::mem::replace(&mut entry.settled, true) {
                return;
            }
            if let Some(task) = entry.task.take() {
                task.abort();
            }
            let end = entry.state.succeeded.is_some() || entry.state.failure.is_some();
            if end && !entry.state.gap {
                return;
            }
        }
        let read = self.read(subject, false, |line| {
            self.apply(subject, line);
        });
        match tokio::time::timeout(LAST_READ, read).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::info!(pod = subject.pod, %error, "the journal of an ended pod can't be read");
            }
            Err(_) => tracing::info!(pod = subject.pod, "the journal of an ended pod can't be read in time"),
        }
    }

    /// Forgets an ImageBuild whose run has ended, or that is gone.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Takes a line in. `None` when it was known or says nothing, else whether it decides something.
    fn apply(&self, subject: &Subject, line: &Line) -> Option<bool> {
        let mut followed = self.lock();
        let entry = followed.get_mut(&subject.uid).filter(|f| f.attempt == subject.attempt)?;
        let known = line.seq <= entry.state.seq;
        entry.state.apply(line);
        match line.event {
            _ if known => None,
            Event::Heartbeat => None,
            Event::ReadyToTag { .. }
            | Event::Succeeded { .. }
            | Event::Failed { .. }
            | Event::Planned { .. } => Some(true),
            _ => Some(false),
        }
    }

    /// Reads the log once, to its end or, when following, until it falls silent.
    async fn read(
        &self,
        subject: &Subject,
        follow: bool,
        mut on_line: impl FnMut(&Line),
    ) -> Result<(), ReadError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &subject.namespace);
        let params = LogParams {
            container: Some(COURIER_CONTAINER.to_owned()),
            follow,
            limit_bytes: (!follow).then_some(MAX_LOG),
            ..LogParams::default()
        };
        let opened = tokio::time::timeout(SILENCE, pods.log_stream(&subject.pod, &params));
        let mut stream = std::pin::pin!(opened.await.map_err(|_| ReadError::Silence)??);
        loop {
            let text = tokio::time::timeout(SILENCE, next_line(&mut stream))
                .await
                .map_err(|_| ReadError::Silence)??;
            let Some(text) = text else { return Ok(()) };
            if let Some(line) = Line::parse(&text) {
                on_line(&line);
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("no line for {} seconds", SILENCE.as_secs())]
    Silence,
}

/// The next line, without its line feed; a line over [`MAX_LINE`] is passed over.
async fn next_line(stream: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    let mut too_long = false;
    loop {
        let chunk = stream.fill_buf().await?;
        if chunk.is_empty() {
            let last = (!line.is_empty() && !too_long).then(|| String::from_utf8_lossy(&line).into_owned());
            return Ok(last);
        }
        let end = chunk.iter().position(|b| *b == b'\n');
        let taken = end.unwrap_or(chunk.len());
        if line.len() + taken > MAX_LINE {
            too_long = true;
            line.clear();
        }
        if !too_long {
            line.extend_from_slice(&chunk[..taken]);
        }
        stream.consume_unpin(taken + usize::from(end.is_some()));
        if end.is_some() {
            if too_long {
                too_long = false;
                continue;
            }
            return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
        }
    }
}

/// Follows until aborted.
async fn follow(journals: Journals, subject: Subject) {
    let (news, mut heard) = mpsc::unbounded_channel::<bool>();
    let wake = journals.wake.clone();
    let place = (subject.namespace.clone(), subject.name.clone());
    let tell = async move {
        let mut due: Option<Instant> = None;
        let mut told = Instant::now() - TELL;
        loop {
            let urgent = tokio::select! {
                heard = heard.recv() => match heard {
                    Some(urgent) => urgent,
                    None => return,
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => true,
            };
            if urgent || told.elapsed() >= TELL {
                (due, told) = (None, Instant::now());
                // The controller is gone only when the process ends.
                let _ = wake.send(place.clone());
            } else {
                due.get_or_insert(told + TELL);
            }
        }
    };
    let read = async move {
        loop {
            let stream = journals.streams.clone().try_acquire_owned().ok();
            let on_line = |line: &Line| {
                if let Some(urgent) = journals.apply(&subject, line) {
                    let _ = news.send(urgent);
                }
            };
            let read = journals.read(&subject, stream.is_some(), on_line).await;
            if let Err(error) = read {
                tracing::debug!(pod = subject.pod, %error, "the journal is opened again");
            }
            let pause = if stream.is_some() { REOPEN } else { POLL };
            drop(stream);
            tokio::time::sleep(pause).await;
        }
    };
    tokio::join!(tell, read);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_whole_and_a_monstrous_one_is_passed_over() {
        let mut text = b"one\ntwo\n".to_vec();
        text.extend(std::iter::repeat_n(b'x', MAX_LINE + 1));
        text.extend(b"\nthree");
        let mut reader = futures::io::BufReader::with_capacity(7, futures::io::Cursor::new(text));
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut reader).await.expect("it reads") {
            lines.push(line);
        }
        assert_eq!(lines, ["one", "two", "three"]);
    }

    proptest::proptest! {
        /// Whatever a log holds and in whatever pieces it comes, its lines are those between the line feeds.
        #[test]
        fn any_log_is_read_line_by_line(log: Vec<u8>, feeds in proptest::collection::vec(0usize..200, 0..9), capacity in 1usize..40) {
            let mut log = log;
            for at in feeds {
                log.insert(at.min(log.len()), b'\n');
            }
            let mut reader = futures::io::BufReader::with_capacity(capacity, futures::io::Cursor::new(&log));
            let read = futures::executor::block_on(async {
                let mut lines = Vec::new();
                while let Some(line) = next_line(&mut reader).await.expect("it reads") {
                    let _ = Line::parse(&line);
                    lines.push(line);
                }
                lines
            });
            let mut expected: Vec<_> = log.split(|b| *b == b'\n').map(|l| String::from_utf8_lossy(l).into_owned()).collect();
            if expected.last().is_some_and(String::is_empty) {
                expected.pop();
            }
            proptest::prop_assert_eq!(read, expected);
        }
    }
}
