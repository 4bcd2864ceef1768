//! Gives objects their turns to be reconciled, each in a task of its own, and again when they asked for it.
//!
//! kube's `Controller` polls every reconcile that it holds whenever one of them moves on, and takes the next one from a set. With
//! thousands that wait the first used a core up, and the second left some of them for minutes (docs/scale.md).

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::time::{DelayQueue, delay_queue};

use crate::journals::Wake;
use crate::turns::{Kind, Turns};

/// Reconciles whom `triggers` name once `ready` is, until `shutdown`; what is under way then is finished. `kind` says what an
/// object wants, as it is now. `waited` is told how long an object waited for its turn. `reconcile` says when to look at it again
/// where nothing triggers that.
pub async fn run<F>(
    triggers: impl Stream<Item = Wake> + Send,
    ready: impl Future<Output = ()> + Send,
    kind: impl Fn(&Wake) -> Kind + Send,
    waited: impl Fn(Kind, Duration) + Send,
    reconcile: impl Fn(Wake) -> F + Send,
    shutdown: CancellationToken,
) where
    F: Future<Output = Option<Duration>> + Send + 'static,
{
    tokio::pin!(triggers, ready);
    let mut turns = Turns::default();
    // Since when those wait that do.
    let mut asked: HashMap<Wake, Instant> = HashMap::new();
    let mut again = Again::default();
    let mut tasks = JoinSet::new();
    let mut is_ready = false;
    loop {
        while is_ready && !shutdown.is_cancelled() {
            let Some((key, kind)) = turns.next() else { break };
            if let Some(since) = asked.remove(&key) {
                waited(kind, since.elapsed());
            }
            again.remove(&key);
            let work = reconcile(key.clone());
            tasks.spawn(async move { (key, work.await) });
        }
        if shutdown.is_cancelled() && tasks.is_empty() {
            return;
        }
        let wanted = tokio::select! {
            biased;
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => match ended {
                Ok((key, wait)) => {
                    turns.done(&key);
                    if let Some(wait) = wait {
                        again.insert(key, wait);
                    }
                    None
                }
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // Nothing cancels one.
                Err(_) => None,
            },
            () = shutdown.cancelled(), if !shutdown.is_cancelled() => None,
            () = &mut ready, if !is_ready => {
                is_ready = true;
                None
            }
            Some(key) = again.next() => Some(key),
            trigger = triggers.next() => match trigger {
                Some(key) => Some(key),
                // The watches never end.
                None => return,
            },
        };
        if let Some(key) = wanted {
            let kind = kind(&key);
            asked.entry(key.clone()).or_insert_with(Instant::now);
            turns.want(key, kind);
        }
    }
}

/// Who is to be looked at again, and when; the last wish counts.
#[derive(Debug, Default)]
struct Again {
    queue: DelayQueue<Wake>,
    keys: HashMap<Wake, delay_queue::Key>,
}

impl Again {
    fn insert(&mut self, key: Wake, wait: Duration) {
        self.remove(&key);
        let place = self.queue.insert(key.clone(), wait);
        self.keys.insert(key, place);
    }

    fn remove(&mut self, key: &Wake) {
        if let Some(place) = self.keys.remove(key) {
            self.queue.remove(&place);
        }
    }

    /// The next one whose time has come; never returns while nobody is to be looked at.
    async fn next(&mut self) -> Option<Wake> {
        let expired = std::future::poll_fn(|cx| match self.queue.poll_expired(cx) {
            std::task::Poll::Ready(None) => std::task::Poll::Pending,
            other => other,
        });
        let key = expired.await?.into_inner();
        self.keys.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures::stream;
    use tokio::sync::{mpsc, oneshot};

    use super::*;

    fn key(name: &str) -> Wake {
        ("ns".to_owned(), name.to_owned())
    }

    fn stream_of(mut receiver: mpsc::UnboundedReceiver<Wake>) -> impl Stream<Item = Wake> + Send {
        stream::poll_fn(move |cx| receiver.poll_recv(cx))
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_is_looked_at_when_it_asked_for_it_and_not_before_the_list_is_whole() {
        let (send, receive) = mpsc::unbounded_channel();
        let (listed, ready) = oneshot::channel::<()>();
        let seen: Arc<Mutex<Vec<(u64, String)>>> = Arc::default();
        let shutdown = CancellationToken::new();
        let (noted, stop, began) = (seen.clone(), shutdown.clone(), tokio::time::Instant::now());
        let reconcile = move |(_, name): Wake| {
            let (seen, stop) = (noted.clone(), stop.clone());
            async move {
                let mut seen = seen.lock().unwrap();
                seen.push((began.elapsed().as_secs(), name.clone()));
                if seen.len() == 5 {
                    stop.cancel();
                }
                (name == "again").then_some(Duration::from_secs(10))
            }
        };
        send.send(key("again")).unwrap();
        send.send(key("once")).unwrap();
        let ready = async { ready.await.unwrap() };
        let later = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            listed.send(()).unwrap();
            tokio::time::sleep(Duration::from_secs(14)).await;
            // Its wish for 25 s is forgotten.
            send.send(key("again")).unwrap();
            std::future::pending::<()>().await;
        };
        let waits: Mutex<Vec<(Kind, u64)>> = Mutex::default();
        let waited = |kind, time: Duration| waits.lock().unwrap().push((kind, time.as_secs()));
        tokio::select! {
            () = run(stream_of(receive), ready, |_| Kind::Other, waited, reconcile, shutdown) => {}
            () = later => unreachable!(),
        }
        let names: Vec<_> = seen.lock().unwrap().iter().map(|(at, name)| format!("{name} {at}")).collect();
        assert_eq!(names, ["again 5", "once 5", "again 15", "again 19", "again 29"]);
        assert_eq!(waits.into_inner().unwrap(), [5, 5, 0, 0, 0].map(|seconds| (Kind::Other, seconds)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_is_finished_and_nothing_else_begins() {
        let (send, receive) = mpsc::unbounded_channel();
        let ended: Arc<Mutex<Vec<String>>> = Arc::default();
        let shutdown = CancellationToken::new();
        let (noted, stop) = (ended.clone(), shutdown.clone());
        let reconcile = move |(_, name): Wake| {
            let (ended, stop) = (noted.clone(), stop.clone());
            async move {
                stop.cancel();
                tokio::time::sleep(Duration::from_secs(60)).await;
                ended.lock().unwrap().push(name);
                Some(Duration::ZERO)
            }
        };
        send.send(key("a")).unwrap();
        let more = send.clone();
        let late = shutdown.clone();
        tokio::spawn(async move {
            late.cancelled().await;
            let _ = more.send(key("b"));
        });
        run(stream_of(receive), async {}, |_| Kind::First, |_, _| {}, reconcile, shutdown).await;
        assert_eq!(*ended.lock().unwrap(), ["a"]);
    }
}
