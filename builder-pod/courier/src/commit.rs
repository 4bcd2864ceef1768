//! The end of a good build: manifest by digest, permit, tags, verification.

use std::time::Duration;

use bytes::Bytes;
use kiln_contract::Descriptor;
use kiln_contract::failure::{Failure, FailureClass, reason};
use kiln_contract::journal::Event;
use kiln_contract::report::{Outcome, Pushed};
use kiln_registry::{Error, ImageName};

use crate::control::POLL;
use crate::failure::{Purpose, internal, of_registry, of_stop};
use crate::manifest::{Composed, MANIFEST, compose, digest};
use crate::output::Target;
use crate::session::Session;

/// How long to wait for a permit: an operator that is upgraded or moved to another node is back in less.
const PERMIT_WAIT: Duration = Duration::from_secs(600);

/// Pushes the image, waits for the permit, moves the tags. Returns digest and references.
///
/// # Errors
/// Whatever kept it from that; the caller decides whether the attempt ends with it.
pub async fn commit(
    session: &Session,
    config: &str,
    layers: &[Descriptor],
) -> Result<(String, Vec<String>), Failure> {
    let composed = compose(config, layers).map_err(internal)?;
    let missing = session.missing(layers);
    if !missing.is_empty() {
        return Err(internal(format!("layers were never put: {}", missing.join(", "))));
    }
    session.target.publish(&session.client, config, &composed).await?;
    let image =
        Pushed { reference: first_reference(session), digest: composed.digest.clone(), size: composed.size };
    session.keep(String::from_utf8(composed.bytes.clone()).map_err(|e| internal(e.to_string()))?)?;
    session.event(Event::ReadyToTag { image: image.clone() })?;
    tag(session, &image, &composed).await
}

/// Goes on where a courier stopped that had been restarted: the image is in the registry, its tags have to move.
///
/// # Errors
/// As [`commit`].
pub async fn resume(session: &Session, image: &Pushed, manifest: &str) -> Result<(), Failure> {
    if digest(manifest.as_bytes()) != image.digest {
        return Err(internal("the saved manifest is not the one that was pushed"));
    }
    let config = Descriptor { media_type: String::new(), digest: String::new(), size: 0 };
    let composed = Composed {
        bytes: manifest.as_bytes().to_vec(),
        digest: image.digest.clone(),
        config,
        size: image.size,
    };
    tag(session, image, &composed).await.map(|_| ())
}

fn first_reference(session: &Session) -> String {
    match &session.target {
        Target::Registry { names, .. } => names.first().map(ToString::to_string).unwrap_or_default(),
        Target::Layout { references, .. } => references.first().cloned().unwrap_or_default(),
    }
}

async fn tag(
    session: &Session,
    image: &Pushed,
    composed: &Composed,
) -> Result<(String, Vec<String>), Failure> {
    let references = match &session.target {
        Target::Registry { names, permit } => {
            if *permit {
                // Before the lock: who stops the attempt meanwhile gets it at once.
                wait_for_permit(session, &composed.digest, true).await?;
            }
            let _tagging = session.tagging.lock().await;
            if session.outcome().is_some() {
                return Err(internal("the attempt has ended before its tags were moved"));
            }
            let bytes = Bytes::from(composed.bytes.clone());
            let mut moved = Vec::new();
            for name in names {
                // A stop before the first tag leaves everything as it was; after it, all tags are to name the same image.
                move_tag(session, name, *permit, &composed.digest, &bytes, moved.is_empty()).await?;
                moved.push(name.to_string());
            }
            session.end(Outcome::Succeeded(image.clone()))?;
            return Ok((composed.digest.clone(), moved));
        }
        Target::Layout { layout, references, archive } => {
            let written = layout.finish(&composed.digest, composed.bytes.len(), references);
            let written = written.and_then(|()| archive.as_ref().map_or(Ok(()), |to| layout.archive(to)));
            written.map_err(|e| internal(format!("writing the image: {e}")))?;
            references.clone()
        }
    };
    session.end(Outcome::Succeeded(image.clone()))?;
    Ok((composed.digest.clone(), references))
}

/// Moves one tag, for as long as there is leave to; with new leave it goes on where the old one ended.
async fn move_tag(
    session: &Session,
    name: &ImageName,
    permit: bool,
    digest: &str,
    bytes: &Bytes,
    first: bool,
) -> Result<(), Failure> {
    let may = || !permit || session.control.permits(digest);
    loop {
        if permit {
            wait_for_permit(session, digest, first).await?;
        }
        if let Some(word) = session.stop.borrow().clone().filter(|_| first) {
            return Err(of_stop(&word));
        }
        let tag = name.tag().unwrap_or("latest");
        match session.client.move_tag(name, tag, MANIFEST, bytes, &may).await {
            Err(Error::Withdrawn { .. }) => {}
            moved => return moved.map_err(|e| of_registry(&e, Purpose::Push)),
        }
    }
}

/// Waits for leave to tag. An order to stop ends the wait; without `stoppable` only where there is no leave.
async fn wait_for_permit(session: &Session, digest: &str, stoppable: bool) -> Result<(), Failure> {
    let end = tokio::time::Instant::now() + PERMIT_WAIT;
    let mut tick = tokio::time::interval(POLL);
    loop {
        tick.tick().await;
        let permitted = session.control.permits(digest);
        if let Some(word) = session.control.stop().filter(|_| stoppable || !permitted) {
            return Err(of_stop(&word));
        }
        if session.outcome().is_some() {
            return Err(internal("the attempt has ended before its tags were moved"));
        }
        if permitted {
            return Ok(());
        }
        if tokio::time::Instant::now() > end {
            let text = format!(
                "the operator gave no permit to tag within {} s; is it running?",
                PERMIT_WAIT.as_secs()
            );
            return Err(Failure::new(FailureClass::Infrastructure, reason::NOT_PERMITTED, text));
        }
    }
}
