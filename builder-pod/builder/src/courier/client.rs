//! The courier's client over its Unix socket: one connection per call, and one that stays open for as long as the build
//! lives. A wait for an answer ends when the build is told to stop.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kiln_contract::cache::{BuildRecord, CacheEntry};
use kiln_contract::call::{Call, MAX_SECRET, Reply, Stored};
use kiln_contract::image::ResolvedImage;
use kiln_contract::journal::Event;
use kiln_contract::policy::Network;
use kiln_contract::source::Git;
use kiln_contract::{Descriptor, Failure, VERSION, reason};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Cached, Committed, Courier, CourierError, Fetched, Growing, frame};
use crate::engine::{Secret, Stop};

/// How long to wait for the courier's socket: the courier is started first and needs well under a second; a minute covers
/// a node under heavy load.
pub const SOCKET_WAIT: Duration = Duration::from_secs(60);
/// How often the socket is tried while it is not there, and how often a wait looks at [`Stop`].
const TICK: Duration = Duration::from_millis(20);
/// How long the courier may take to write the report of a failure: within the 5 s that the builder has after its SIGTERM.
const FAIL_WAIT: Duration = Duration::from_secs(4);
/// How long a write into the socket may block: the courier reads whole frames at once, so longer means it hangs.
const WRITE_WAIT: Duration = Duration::from_secs(60);

/// A connection to the courier.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    stop: Stop,
    attached: UnixStream,
    closing: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
}

/// When a wait for an answer ends without one.
#[derive(Clone, Copy)]
enum Patience {
    UntilStopped,
    For(Duration),
}

impl Client {
    /// Waits up to `wait` for the courier's socket and attaches: from then on `stop` is set when the courier says so, or
    /// when it is gone.
    ///
    /// # Errors
    /// No courier within `wait`, or one of another version.
    pub fn attach(socket: &Path, stop: &Stop, wait: Duration) -> Result<Self, CourierError> {
        let mut stream = connect(socket, stop, wait)?;
        frame::write(&mut stream, &Call::Attach { version: VERSION }, None).map_err(lost("attaching"))?;
        let waited =
            Waiting { stream: &stream, stop, patience: Patience::UntilStopped, since: Instant::now() };
        expect_done("attach", receive(waited)?)?;
        let closing = Arc::new(AtomicBool::new(false));
        let watcher = {
            let (stream, stop, closing) =
                (stream.try_clone().map_err(lost("attaching"))?, stop.clone(), closing.clone());
            std::thread::Builder::new()
                .name("courier-watch".into())
                .spawn(move || watch(stream, &stop, &closing))
                .map_err(lost("starting a thread"))?
        };
        Ok(Self {
            socket: socket.to_owned(),
            stop: stop.clone(),
            attached: stream,
            closing,
            watcher: Some(watcher),
        })
    }

    fn call(
        &self,
        call: &Call,
        fd: Option<BorrowedFd<'_>>,
        patience: Patience,
    ) -> Result<Reply, CourierError> {
        self.answer(&self.say(call, fd)?, patience)
    }

    /// Connects and sends a call.
    fn say(&self, call: &Call, fd: Option<BorrowedFd<'_>>) -> Result<UnixStream, CourierError> {
        let mut stream = UnixStream::connect(&self.socket).map_err(lost("connecting"))?;
        stream.set_write_timeout(Some(WRITE_WAIT)).map_err(lost("connecting"))?;
        frame::write(&mut stream, call, fd).map_err(lost("sending"))?;
        Ok(stream)
    }

    fn answer(&self, stream: &UnixStream, patience: Patience) -> Result<Reply, CourierError> {
        receive(Waiting { stream, stop: &self.stop, patience, since: Instant::now() })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Release);
        // The watcher's read ends with it; a socket that is closed already is fine.
        let _ = self.attached.shutdown(Shutdown::Both);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

/// Tries the socket until somebody listens there.
fn connect(socket: &Path, stop: &Stop, wait: Duration) -> Result<UnixStream, CourierError> {
    let since = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Err(lost("connecting")(e));
            }
            Err(e) if since.elapsed() >= wait => {
                let text = format!(
                    "nobody listens at {} after {} s ({e}); see the log of the courier container",
                    socket.display(),
                    wait.as_secs()
                );
                return Err(lost("waiting for its socket")(io::Error::new(io::ErrorKind::TimedOut, text)));
            }
            Err(_) if stop.is_stopped() => return Err(CourierError::Stopped),
            Err(_) => std::thread::sleep(TICK),
        }
    }
}

/// Lives as long as the attached connection: a `Stop` on it, or its end, stops the build.
fn watch(mut stream: UnixStream, stop: &Stop, closing: &AtomicBool) {
    loop {
        match frame::read::<Reply>(&mut stream) {
            Ok(Some(Reply::Stop { reason })) => stop.stop(&reason),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => {
                if !closing.load(Ordering::Acquire) {
                    stop.stop(reason::BUILDER_LOST);
                }
                return;
            }
        }
    }
}

/// Reads from the socket, but gives up when the build stops or patience ends.
struct Waiting<'a, S> {
    stream: &'a S,
    stop: &'a Stop,
    patience: Patience,
    since: Instant,
}

impl<'a, S: AsFd> Read for Waiting<'a, S>
where
    &'a S: Read,
{
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut fds = [PollFd::new(self.stream, PollFlags::IN)];
            let tick = Timespec { tv_sec: 0, tv_nsec: i64::from(TICK.subsec_nanos()) };
            match poll(&mut fds, Some(&tick)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return self.stream.read(into),
                Err(e) => return Err(e.into()),
            }
            match self.patience {
                Patience::UntilStopped if self.stop.is_stopped() => {
                    return Err(io::Error::other(StoppedWaiting));
                }
                Patience::For(wait) if self.since.elapsed() >= wait => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                _ => {}
            }
        }
    }
}

/// Marks the end of a wait by [`Stop`] within an `io::Error`.
#[derive(Debug, thiserror::Error)]
#[error("stopped")]
struct StoppedWaiting;

fn is_stopped(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<StoppedWaiting>)
}

fn receive(mut waiting: Waiting<'_, UnixStream>) -> Result<Reply, CourierError> {
    match frame::read(&mut waiting) {
        Ok(Some(Reply::Failed { failure })) => Err(CourierError::Failed(Box::new(failure))),
        Ok(Some(reply)) => Ok(reply),
        Ok(None) => Err(lost("waiting for an answer")(io::ErrorKind::UnexpectedEof.into())),
        Err(e) if is_stopped(&e) => Err(CourierError::Stopped),
        Err(e) => Err(lost("waiting for an answer")(e)),
    }
}

fn lost(during: &'static str) -> impl Fn(io::Error) -> CourierError {
    move |source| CourierError::Lost { during, source }
}

fn unexpected(call: &'static str, reply: &Reply) -> CourierError {
    CourierError::Unexpected { call, found: format!("{reply:.200?}") }
}

fn expect_done(call: &'static str, reply: Reply) -> Result<(), CourierError> {
    match reply {
        Reply::Done => Ok(()),
        other => Err(unexpected(call, &other)),
    }
}

fn expect_stored(call: &'static str, reply: Reply) -> Result<Stored, CourierError> {
    match reply {
        Reply::Stored { how } => Ok(how),
        other => Err(unexpected(call, &other)),
    }
}

impl Courier for Client {
    fn resolve(&self, reference: &str, platform: &str) -> Result<ResolvedImage, CourierError> {
        let call = Call::Resolve { reference: reference.to_owned(), platform: platform.to_owned() };
        match self.call(&call, None, Patience::UntilStopped)? {
            Reply::Resolved { image } => Ok(image),
            other => Err(unexpected("resolve", &other)),
        }
    }

    fn read_blob(&self, image: &str, blob: &Descriptor, into: OwnedFd) -> Result<(), CourierError> {
        let call = Call::ReadBlob { image: image.to_owned(), blob: blob.clone() };
        let stream = self.say(&call, Some(into.as_fd()))?;
        // Ours must be closed before the wait, or the reader of the pipe never sees its end.
        drop(into);
        expect_done("readBlob", self.answer(&stream, Patience::UntilStopped)?)
    }

    fn fetch(
        &self,
        url: &str,
        checksum: Option<&str>,
        file: BorrowedFd<'_>,
    ) -> Result<Fetched, CourierError> {
        let call = Call::Fetch { url: url.to_owned(), checksum: checksum.map(str::to_owned) };
        match self.call(&call, Some(file), Patience::UntilStopped)? {
            Reply::Fetched { size, digest, modified } => Ok(Fetched { size, digest, modified }),
            other => Err(unexpected("fetch", &other)),
        }
    }

    fn fetch_git(&self, source: &Git, file: BorrowedFd<'_>) -> Result<String, CourierError> {
        let call = Call::FetchGit { source: source.clone(), network: Network::default() };
        match self.call(&call, Some(file), Patience::UntilStopped)? {
            Reply::CheckedOut { commit } => Ok(commit),
            other => Err(unexpected("fetchGit", &other)),
        }
    }

    fn put_blob(&self, blob: &Descriptor, file: BorrowedFd<'_>) -> Result<Stored, CourierError> {
        let call = Call::PutBlob { blob: blob.clone() };
        expect_stored("putBlob", self.call(&call, Some(file), Patience::UntilStopped)?)
    }

    fn begin_blob(&self, file: BorrowedFd<'_>) -> Result<Box<dyn Growing>, CourierError> {
        let stream = self.say(&Call::BeginBlob, Some(file))?;
        Ok(Box::new(Begun { stream, stop: self.stop.clone() }))
    }

    fn put_base_blob(&self, image: &str, blob: &Descriptor) -> Result<Stored, CourierError> {
        let call = Call::PutBaseBlob { image: image.to_owned(), blob: blob.clone() };
        expect_stored("putBaseBlob", self.call(&call, None, Patience::UntilStopped)?)
    }

    fn cache_get(&self, key: &str) -> Result<Option<Cached>, CourierError> {
        let call = Call::CacheGet { key: key.to_owned() };
        match self.call(&call, None, Patience::UntilStopped)? {
            Reply::Cached { image, entry } => Ok(Some(Cached { image, entry })),
            Reply::Absent => Ok(None),
            other => Err(unexpected("cacheGet", &other)),
        }
    }

    fn cache_put(
        &self,
        key: &str,
        entry: &CacheEntry,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<Stored, CourierError> {
        let call = Call::CachePut { key: key.to_owned(), entry: entry.clone() };
        expect_stored("cachePut", self.call(&call, file, Patience::UntilStopped)?)
    }

    fn record_get(&self, name: &str) -> Result<Option<BuildRecord>, CourierError> {
        match self.call(&Call::RecordGet { name: name.to_owned() }, None, Patience::UntilStopped)? {
            Reply::Recorded { record } => Ok(Some(record)),
            Reply::Absent => Ok(None),
            other => Err(unexpected("recordGet", &other)),
        }
    }

    fn record_put(&self, name: &str, record: &BuildRecord) -> Result<(), CourierError> {
        let call = Call::RecordPut { name: name.to_owned(), record: record.clone() };
        match self.call(&call, None, Patience::UntilStopped)? {
            Reply::Done => Ok(()),
            other => Err(unexpected("recordPut", &other)),
        }
    }

    fn secret(&self, id: &str) -> Result<Option<Secret>, CourierError> {
        let (read, write) = std::io::pipe().map_err(lost("making a pipe"))?;
        let stream = self.say(&Call::Secret { id: id.to_owned() }, Some(write.as_fd()))?;
        drop(write);
        // The pipe ends when the courier has written all of it, or has nothing to write.
        let mut bytes = Vec::new();
        let waiting = Waiting {
            stream: &read,
            stop: &self.stop,
            patience: Patience::UntilStopped,
            since: Instant::now(),
        };
        match waiting.take(MAX_SECRET as u64 + 1).read_to_end(&mut bytes) {
            Err(e) if is_stopped(&e) => return Err(CourierError::Stopped),
            result => result.map_err(lost("reading a secret"))?,
        };
        match self.answer(&stream, Patience::UntilStopped)? {
            Reply::Done if bytes.len() <= MAX_SECRET => Ok(Some(Secret(bytes))),
            Reply::Done => Err(lost("reading a secret")(io::ErrorKind::FileTooLarge.into())),
            Reply::Absent => Ok(None),
            other => Err(unexpected("secret", &other)),
        }
    }

    fn find_agent(&self, id: &str) -> Result<bool, CourierError> {
        match self.call(&Call::FindAgent { id: id.to_owned() }, None, Patience::UntilStopped)? {
            Reply::Done => Ok(true),
            Reply::Absent => Ok(false),
            other => Err(unexpected("findAgent", &other)),
        }
    }

    fn serve_agent(&self, id: &str, connection: OwnedFd) -> Result<(), CourierError> {
        let call = Call::ServeAgent { id: id.to_owned() };
        expect_done("serveAgent", self.call(&call, Some(connection.as_fd()), Patience::UntilStopped)?)
    }

    fn commit(&self, config: &str, layers: &[Descriptor]) -> Result<Committed, CourierError> {
        let call = Call::Commit { config: config.to_owned(), layers: layers.to_vec() };
        match self.call(&call, None, Patience::UntilStopped)? {
            Reply::Committed { digest, references } => Ok(Committed { digest, references }),
            other => Err(unexpected("commit", &other)),
        }
    }

    fn event(&self, event: Event) -> Result<(), CourierError> {
        expect_done("event", self.call(&Call::Event { event }, None, Patience::UntilStopped)?)
    }

    fn fail(&self, failure: &Failure) -> Result<(), CourierError> {
        let call = Call::Fail { failure: failure.clone() };
        expect_done("fail", self.call(&call, None, Patience::For(FAIL_WAIT))?)
    }
}

/// The connection of a blob that grows.
struct Begun {
    stream: UnixStream,
    stop: Stop,
}

impl Growing for Begun {
    fn grown(&mut self, bytes: u64) -> Result<(), CourierError> {
        frame::write(&mut self.stream, &Call::Grown { bytes }, None).map_err(lost("sending"))
    }

    fn put(mut self: Box<Self>, blob: &Descriptor) -> Result<Stored, CourierError> {
        let call = Call::PutBlob { blob: blob.clone() };
        frame::write(&mut self.stream, &call, None).map_err(lost("sending"))?;
        let (stream, stop) = (&self.stream, &self.stop);
        let waiting = Waiting { stream, stop, patience: Patience::UntilStopped, since: Instant::now() };
        expect_stored("putBlob", receive(waiting)?)
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
