//! The socket: one task per connection, one call per connection, and the connection that stands for the builder's life.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiln_contract::call::{Call, MAX_FETCH, Reply};
use kiln_contract::failure::{Failure, FailureClass, reason};
use kiln_contract::journal::{Event, HEARTBEAT_SECONDS};
use kiln_contract::report::Outcome;
use kiln_contract::request::BuildRequest;
use kiln_git::added;
use kiln_registry::{Client, Credentials, Mirror, Proxy, Registries, RetryPolicy};
use tokio::io::AsyncWrite;
use tokio::net::UnixListener;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::control::{Control, POLL};
use crate::failure::{Purpose, internal, of_download, of_registry, other_bytes};
use crate::given::Given;
use crate::journal::{Journal, Sink};
use crate::output::{Bytestream, Target};
use crate::session::{Files, Saved, Session};
use crate::{agent, commit, growing, wire};

/// Connections at once: the builder has a handful of transfers under way, and events.
const MAX_CONNECTIONS: usize = 64;
/// How long a peer may take to send its call or take its answer.
const FRAME_WAIT: Duration = Duration::from_secs(60);

/// What a courier is started with.
pub struct Options {
    /// What is built.
    pub request: BuildRequest,
    /// Where to listen.
    pub socket: PathBuf,
    /// Where logins are.
    pub credentials: Credentials,
    /// Secrets and agents for steps.
    pub given: Given,
    /// Certificates that are trusted beside the bundled roots.
    pub ca_bundle: Option<PathBuf>,
    /// The downwardAPI volume; none on a plain machine.
    pub control: Option<PathBuf>,
    /// A directory for what survives a restart; none on a plain machine.
    pub state_dir: Option<PathBuf>,
    /// The termination message; none on a plain machine.
    pub report: Option<PathBuf>,
    /// Takes the journal's lines.
    pub sink: Sink,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// How it ended.
#[derive(Debug, Clone)]
pub struct Served {
    /// The outcome, where there was one.
    pub outcome: Option<Outcome>,
}

/// Serves one attempt until `shutdown`.
///
/// # Errors
/// It could not start; nobody listens then.
pub async fn serve(options: Options, shutdown: CancellationToken) -> Result<Served, Failure> {
    let attempt = options.request.attempt.clone();
    let saved_at = options.state_dir.as_ref().map(|d| d.join("state.json"));
    let before: Option<Saved> = saved_at
        .as_ref()
        .and_then(|path| std::fs::read(path).ok())
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let registries = &options.request.registries;
    let network = options.request.policy.network.clone();
    let client = Client::new(kiln_registry::Options {
        registries: Registries {
            mirrors: registries
                .mirrors
                .iter()
                .map(|m| Mirror { registry: m.registry.clone(), mirrors: m.mirrors.clone() })
                .collect(),
            insecure: registries.insecure.clone(),
        },
        credentials: options.credentials,
        retry: RetryPolicy::default(),
        ca_bundle: options.ca_bundle,
        authorities: network.ca_bundle,
        proxy: network.proxy.map(|p| Proxy { http: p.http, https: p.https, no_proxy: p.no_proxy }),
    })
    .map_err(|e| of_registry(&e, Purpose::Push))?;
    let target = Target::new(&options.request.output)?;
    let cache = options.request.cache.as_ref().map(|wished| Cache::new(wished, &client)).transpose()?;
    let control = Control::new(options.control, &attempt);
    let state = before.as_ref().map(|s| s.state.clone()).unwrap_or_default();
    let session = Session::new(
        options.request,
        client,
        target,
        control,
        Journal::new(options.sink, state),
        Files { saved: saved_at, report: options.report },
        options.given,
    );
    let session = Arc::new(session.with_cache(cache));
    let listener = listen(&options.socket)
        .map_err(|e| internal(format!("listening at {}: {e}", options.socket.display())))?;
    if let Some(manifest) = before.as_ref().and_then(|saved| saved.manifest.clone()) {
        session.keep(manifest)?;
    }
    match before {
        Some(saved) => restarted(session.clone(), saved),
        None => session.event(Event::CourierStarted { attempt })?,
    }
    let attached = Arc::new(AtomicBool::new(false));
    let slots = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    let mut heartbeat = tokio::time::interval(Duration::from_secs(HEARTBEAT_SECONDS));
    heartbeat.tick().await;
    let mut look = tokio::time::interval(POLL);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = heartbeat.tick() => {
                if session.outcome().is_none() && let Err(failure) = session.beat() {
                    tracing::error!(%failure, "heartbeat");
                }
            }
            _ = look.tick() => look_for_stop(&session, &attached).await,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let Ok(slot) = slots.clone().acquire_owned().await else { break };
                    let (session, attached) = (session.clone(), attached.clone());
                    tokio::spawn(async move {
                        if let Err(error) = connection(&session, &attached, stream).await {
                            tracing::warn!(%error, "a connection broke");
                        }
                        drop(slot);
                    });
                }
                Err(error) => tracing::warn!(%error, "accepting"),
            },
        }
    }
    if session.outcome().is_none() {
        session.builder_lost().await?;
    }
    Ok(Served { outcome: session.outcome() })
}

/// Listens at `socket`, for whoever can reach its directory. The name is there when all may connect, not before: a builder
/// that was quicker would be turned away. It replaces what a courier that was restarted has left.
fn listen(socket: &Path) -> std::io::Result<UnixListener> {
    let mut hidden = socket.as_os_str().to_owned();
    hidden.push(".new");
    let hidden = PathBuf::from(hidden);
    match std::fs::remove_file(&hidden) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o666))?;
    std::fs::rename(&hidden, socket)?;
    Ok(listener)
}

/// A courier that finds itself restarted: with the image in the registry it tags, without it the attempt is over.
fn restarted(session: Arc<Session>, saved: Saved) {
    tokio::spawn(async move {
        let result =
            match (&saved.state.failure, &saved.state.succeeded, saved.state.ready_to_tag, saved.manifest) {
                (Some(failure), _, _, _) => session.end(Outcome::Failed(failure.clone())),
                (_, Some(image), _, _) => session.end(Outcome::Succeeded(image.clone())),
                (_, _, Some(image), Some(manifest)) => commit::resume(&session, &image, &manifest).await,
                _ => {
                    let text =
                        "the courier was restarted in mid-build; its state is lost, the build is tried again";
                    Err(Failure::new(FailureClass::Infrastructure, reason::BUILDER_LOST, text))
                }
            };
        if let Err(failure) = result
            && let Err(error) = session.fail(failure).await
        {
            tracing::error!(%error, "the report could not be written");
        }
    });
}

async fn look_for_stop(session: &Arc<Session>, attached: &AtomicBool) {
    if session.outcome().is_some() || session.stop.borrow().is_some() {
        return;
    }
    let Some(word) = session.control.stop() else { return };
    // While tags are being moved it is too late.
    let Ok(tagging) = session.tagging.try_lock() else { return };
    session.stop.send_replace(Some(word.clone()));
    drop(tagging);
    if !attached.load(Ordering::Acquire)
        && let Err(error) = session.fail(crate::failure::of_stop(&word)).await
    {
        tracing::error!(%error, "the report could not be written");
    }
}

async fn connection(
    session: &Arc<Session>,
    attached: &Arc<AtomicBool>,
    stream: tokio::net::UnixStream,
) -> std::io::Result<()> {
    // Not rustix's: it takes the process id 0, which a peer in another pid namespace has, for an error.
    let peer = stream.peer_cred()?.uid();
    let mut stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(FRAME_WAIT))?;
    stream.set_write_timeout(Some(FRAME_WAIT))?;
    let (received, stream_back) =
        tokio::task::spawn_blocking(move || (wire::read(&mut stream), stream)).await?;
    let Some((call, fd)) = received? else { return Ok(()) };
    let own = rustix::process::geteuid().as_raw();
    if session.request.source.is_fetched() && peer == own && !is_of_a_fetch(&call) {
        // The fetcher has the courier's user, the builder has not: secrets, blobs and tags are none of its business.
        let failure = internal("a call that the fetch of a source has no use for");
        return send(stream_back, Reply::Failed { failure }).await.map(drop);
    }
    if call == Call::Watch {
        let word = session.stop.subscribe().wait_for(Option::is_some).await.ok().and_then(|w| w.clone());
        return send(stream_back, Reply::Stop { reason: word.unwrap_or_default() }).await.map(drop);
    }
    if let Call::Attach { version } = call {
        return attach(session, attached, stream_back, version).await;
    }
    if let (Call::BeginBlob, Some(fd)) = (&call, &fd) {
        let file = std::fs::File::from(fd.try_clone()?);
        let (stream, reply) = growing::serve(session, stream_back, file).await?;
        return match reply {
            Some(reply) => send(stream, reply).await.map(drop),
            None => Ok(()),
        };
    }
    let reply = match answer(session, call, fd).await {
        Ok(reply) => reply,
        Err(failure) => Reply::Failed { failure },
    };
    send(stream_back, reply).await.map(drop)
}

/// What the container `source` may ask for.
fn is_of_a_fetch(call: &Call) -> bool {
    matches!(
        call,
        Call::Watch
            | Call::ResolveArtifact { .. }
            | Call::ReadBlob { .. }
            | Call::Event { event: Event::SourceFetched { .. } }
            | Call::Fail { .. }
    )
}

async fn send(mut stream: UnixStream, reply: Reply) -> std::io::Result<UnixStream> {
    tokio::task::spawn_blocking(move || wire::write(&mut stream, &reply).map(|()| stream)).await?
}

/// Holds the connection that stands for the builder's life.
async fn attach(
    session: &Arc<Session>,
    attached: &Arc<AtomicBool>,
    stream: UnixStream,
    version: u32,
) -> std::io::Result<()> {
    if !kiln_contract::reads(version) {
        let text = format!("the builder speaks version {version}, the courier {}", kiln_contract::VERSION);
        return send(stream, Reply::Failed { failure: internal(text) }).await.map(drop);
    }
    if attached.swap(true, Ordering::AcqRel) {
        let text = "a builder is attached already";
        return send(stream, Reply::Failed { failure: internal(text) }).await.map(drop);
    }
    let stream = send(stream, Reply::Done).await?;
    stream.set_read_timeout(None)?;
    let mut reader = stream.try_clone()?;
    let mut gone = tokio::task::spawn_blocking(move || {
        let mut byte = [0u8; 1];
        // The builder never sends anything more: whatever comes, it is over.
        let _ = reader.read(&mut byte);
    });
    let mut stops = session.stop.subscribe();
    let told = async {
        let word = stops.wait_for(Option::is_some).await.ok().and_then(|w| w.clone());
        match (word, stream.try_clone()) {
            (Some(reason), Ok(stream)) => drop(send(stream, Reply::Stop { reason }).await),
            _ => std::future::pending::<()>().await,
        }
    };
    tokio::select! {
        _ = &mut gone => {}
        () = told => drop(gone.await),
    }
    attached.store(false, Ordering::Release);
    // With the image in the registry the commit goes on without the builder.
    if session.outcome().is_none() && session.state().ready_to_tag.is_none() {
        session.builder_lost().await.map_err(std::io::Error::other)?;
    }
    Ok(())
}

async fn find_agent(session: &Arc<Session>, id: String) -> Result<Option<agent::Agent>, Failure> {
    let session = session.clone();
    let task = tokio::task::spawn_blocking(move || session.given.agent(&id));
    task.await.map_err(|e| internal(e.to_string()))?
}

/// Writes to what the builder gave. A pipe takes what there is at once, without a thread that waits for it.
fn writer(fd: OwnedFd) -> std::io::Result<Box<dyn AsyncWrite + Unpin + Send>> {
    let file = std::fs::File::from(fd);
    Ok(if file.metadata()?.file_type().is_fifo() {
        Box::new(pipe::Sender::from_file(file)?)
    } else {
        Box::new(tokio::fs::File::from_std(file))
    })
}

async fn answer(session: &Arc<Session>, call: Call, fd: Option<OwnedFd>) -> Result<Reply, Failure> {
    let needed = |fd: Option<OwnedFd>| fd.ok_or_else(|| internal("the call came without its descriptor"));
    match call {
        Call::Attach { .. } | Call::Watch => Err(internal("attach and watch have a connection of their own")),
        Call::BeginBlob | Call::Grown { .. } => {
            Err(internal("a blob that grows comes with its descriptor first"))
        }
        Call::Resolve { reference, platform } => {
            Ok(Reply::Resolved { image: session.resolve(&reference, &platform).await? })
        }
        Call::ResolveArtifact { reference, platform } => {
            Ok(Reply::Artifact { artifact: session.resolve_artifact(&reference, &platform).await? })
        }
        Call::ReadBlob { image, blob } => {
            let (name, blob, purpose) = session.base_blob(&image, &blob.digest)?;
            let mut out = writer(needed(fd)?).map_err(|e| internal(format!("taking a pipe: {e}")))?;
            let read = session.client_for(purpose).read_blob(&name, &blob, &mut out).await;
            read.map_err(|e| of_registry(&e, purpose))?;
            Ok(Reply::Done)
        }
        Call::Fetch { url, checksum } => {
            let mut out = tokio::fs::File::from_std(needed(fd)?.into());
            let done = session.client.download(&url, MAX_FETCH, &mut out).await;
            let done = done.map_err(|e| of_download(&e))?;
            if let Some(expected) = checksum.filter(|expected| *expected != done.digest) {
                return Err(other_bytes(&url, &expected, &done.digest));
            }
            Ok(Reply::Fetched { size: done.size, digest: done.digest, modified: done.modified })
        }
        Call::FetchGit { source, .. } => {
            let out = needed(fd)?.into();
            let (place, network) = (session.given.git.clone(), session.request.policy.network.clone());
            let task = tokio::task::spawn_blocking(move || added::fetch(&place, &source, &network, out));
            Ok(Reply::CheckedOut { commit: task.await.map_err(|e| internal(e.to_string()))?? })
        }
        Call::PutBlob { blob } => {
            let file = Bytestream::File(needed(fd)?.into());
            let how = session.target.put(&session.client, &blob, file).await?;
            session.has(&blob.digest);
            Ok(Reply::Stored { how })
        }
        Call::PutBaseBlob { image, blob } => {
            let (name, known, purpose) = session.base_blob(&image, &blob.digest)?;
            if (known.size, &known.media_type) != (blob.size, &blob.media_type) {
                return Err(internal(format!("{} of {image} is described in two ways", blob.digest)));
            }
            let client = session.client_for(purpose);
            let how = session.target.put(client, &blob, Bytestream::Base(name)).await?;
            session.has(&blob.digest);
            Ok(Reply::Stored { how })
        }
        Call::CacheGet { key } => Ok(match session.cached(&key).await? {
            Some((image, entry)) => Reply::Cached { image, entry },
            None => Reply::Absent,
        }),
        Call::CachePut { key, entry } => {
            let how = session.keep_cached(&key, &entry, fd.map(std::fs::File::from)).await?;
            Ok(Reply::Stored { how })
        }
        Call::RecordGet { name } => Ok(match session.cache()?.record(&name).await? {
            Some(record) => Reply::Recorded { record },
            None => Reply::Absent,
        }),
        Call::RecordPut { name, record } => {
            session.cache()?.put_record(&name, record).await?;
            Ok(Reply::Done)
        }
        Call::Secret { id } => {
            let (session, pipe) = (session.clone(), needed(fd)?);
            let task = tokio::task::spawn_blocking(move || session.given.secret(&id, pipe));
            task.await.map_err(|e| internal(e.to_string()))?
        }
        Call::FindAgent { id } => {
            Ok(if find_agent(session, id).await?.is_some() { Reply::Done } else { Reply::Absent })
        }
        Call::ServeAgent { id } => {
            let stream = UnixStream::from(needed(fd)?);
            let Some(agent) = find_agent(session, id).await? else { return Ok(Reply::Absent) };
            let slot = session.agents.clone().try_acquire_owned();
            let slot = slot.map_err(|_| internal("too many connections to ssh agents at a time"))?;
            let served = stream.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(stream));
            let stream = served.map_err(|e| internal(format!("serving an ssh agent: {e}")))?;
            // Ends with the connection, which is the step's: at the latest when the step does.
            tokio::spawn(async move {
                if let Err(error) = agent::serve(Arc::new(agent), stream).await {
                    tracing::warn!(%error, "a connection to an ssh agent broke");
                }
                drop(slot);
            });
            Ok(Reply::Done)
        }
        Call::Commit { config, layers } => {
            // In a task of its own: the image is tagged even if the builder dies while it waits.
            let session = session.clone();
            let task = tokio::spawn(async move { commit::commit(&session, &config, &layers).await });
            let (digest, references) = task.await.map_err(|e| internal(e.to_string()))??;
            Ok(Reply::Committed { digest, references })
        }
        Call::Event { event } => session.event(event).map(|()| Reply::Done),
        Call::Fail { failure } => session.fail(failure).await.map(|()| Reply::Done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_open_to_all_from_the_moment_it_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("courier.sock");
        // Left by one before, also in mid-listening.
        drop(UnixListener::bind(&socket).expect("a socket"));
        std::fs::write(dir.path().join("courier.sock.new"), "").expect("a file");
        let (path, seen) = (socket.clone(), Arc::new(AtomicBool::new(false)));
        let watching = seen.clone();
        let old =
            std::fs::metadata(&socket).map(|m| std::os::unix::fs::MetadataExt::ino(&m)).expect("an inode");
        let watch = std::thread::spawn(move || {
            while !watching.load(Ordering::Relaxed) {
                let there = std::fs::metadata(&path).expect("the name is always there");
                if std::os::unix::fs::MetadataExt::ino(&there) != old {
                    assert_eq!(there.permissions().mode() & 0o777, 0o666);
                }
            }
        });
        let listener = listen(&socket).expect("listening");
        let connected = UnixStream::connect(&socket);
        seen.store(true, Ordering::Relaxed);
        watch.join().expect("open from the first moment");
        connected.expect("connected");
        listener.accept().await.expect("accepted");
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 1);
    }
}
