//! A blob that the builder is still writing: the output gets it while it grows (`Call::BeginBlob`).

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use kiln_contract::call::{Call, Reply};
use kiln_contract::{Descriptor, Failure};
use kiln_registry::{Early, Written};
use tokio::sync::watch;

use crate::failure::{Purpose, of_registry};
use crate::output::{Bytestream, blob_of, stored};
use crate::session::Session;
use crate::wire;

/// Sends `file` as it grows, until the builder says what it is. Without a reply when the builder gave it up.
pub(crate) async fn serve(
    session: &Arc<Session>,
    mut stream: UnixStream,
    file: File,
) -> io::Result<(UnixStream, Option<Reply>)> {
    // The next word comes when the compressor has the next block, and that takes as long as the step's files do.
    stream.set_read_timeout(None)?;
    let (progress, written) = watch::channel(Written::default());
    let early = session.target.begin(&session.client, file.try_clone()?, written);
    let heard = tokio::task::spawn_blocking(move || {
        loop {
            match wire::read(&mut stream)? {
                Some((Call::Grown { bytes }, _)) => {
                    progress.send_modify(|now| now.bytes = now.bytes.max(bytes));
                }
                last => return io::Result::Ok((last, progress, stream)),
            }
        }
    });
    let (last, progress, stream) = heard.await??;
    let Some((Call::PutBlob { blob }, _)) = last else { return Ok((stream, None)) };
    progress.send_replace(Written { bytes: blob.size, whole: true });
    let reply = put(session, early, &blob, file).await.unwrap_or_else(|failure| Reply::Failed { failure });
    Ok((stream, Some(reply)))
}

async fn put(
    session: &Session,
    early: Option<Early>,
    blob: &Descriptor,
    file: File,
) -> Result<Reply, Failure> {
    let how = match early {
        Some(early) => {
            let put = early.put(&blob_of(blob)).await;
            put.map(stored).map_err(|e| of_registry(&e, Purpose::Push))?
        }
        None => session.target.put(&session.client, blob, Bytestream::File(file)).await?,
    };
    session.has(&blob.digest);
    Ok(Reply::Stored { how })
}
