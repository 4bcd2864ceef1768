//! What one attempt has done so far, and its one outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kiln_contract::Descriptor;
use kiln_contract::cache::CacheEntry;
use kiln_contract::call::Stored;
use kiln_contract::failure::{Failure, FailureClass, reason};
use kiln_contract::image::{Artifact, ArtifactLayer, ResolvedImage};
use kiln_contract::journal::{BuildState, Event, steps};
use kiln_contract::policy;
use kiln_contract::report::{Outcome, Report};
use kiln_contract::request::BuildRequest;
use kiln_registry::{Blob, Client, Image, ImageName, Origin, Platform};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore, watch};

use crate::cache::Cache;
use crate::control::Control;
use crate::failure::{Purpose, internal, of_registry};
use crate::given::Given;
use crate::journal::Journal;
use crate::output::Target;

/// Connections of steps to ssh agents at once: a step fetches some dozen repositories side by side.
const MAX_AGENT_CONNECTIONS: usize = 64;

/// Everything that the calls of an attempt share.
#[derive(Debug)]
pub struct Session {
    /// What is built.
    pub request: BuildRequest,
    /// Talks to registries.
    pub client: Client,
    /// Where the image goes.
    pub target: Target,
    /// Results of steps of earlier builds, where there is a place for them.
    pub cache: Option<Cache>,
    /// Permit and stop.
    pub control: Control,
    /// Secrets and agents for steps.
    pub given: Given,
    /// Places for connections of steps to ssh agents.
    pub agents: Arc<Semaphore>,
    /// Held from the moment the first tag may move until all have: an outcome and a stop wait for it.
    pub tagging: tokio::sync::Mutex<()>,
    /// Why the attempt is to stop, once it is.
    pub stop: watch::Sender<Option<String>>,
    /// Signalled when the outcome is there.
    pub ended: Notify,
    journal: Mutex<Journal>,
    images: Mutex<BTreeMap<String, (Image, Purpose)>>,
    blobs: Mutex<BTreeSet<String>>,
    outcome: Mutex<Option<Outcome>>,
    manifest: Mutex<Option<String>>,
    saved: Option<PathBuf>,
    report: Option<PathBuf>,
}

/// What survives a restart of the courier.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Saved {
    /// The journal's state.
    pub state: BuildState,
    /// The manifest that waits for its permit, as text.
    pub manifest: Option<String>,
}

/// Files of a session, all of them absent on a plain machine.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// Where [`Saved`] is kept.
    pub saved: Option<PathBuf>,
    /// The termination message.
    pub report: Option<PathBuf>,
}

impl Session {
    /// A session that has done nothing yet.
    pub fn new(
        request: BuildRequest,
        client: Client,
        target: Target,
        control: Control,
        journal: Journal,
        files: Files,
        given: Given,
    ) -> Self {
        Self {
            request,
            client,
            target,
            cache: None,
            control,
            given,
            agents: Arc::new(Semaphore::new(MAX_AGENT_CONNECTIONS)),
            tagging: tokio::sync::Mutex::new(()),
            stop: watch::Sender::new(None),
            ended: Notify::new(),
            journal: Mutex::new(journal),
            images: Mutex::default(),
            blobs: Mutex::default(),
            outcome: Mutex::default(),
            manifest: Mutex::default(),
            saved: files.saved,
            report: files.report,
        }
    }

    /// The same with a cache.
    #[must_use]
    pub fn with_cache(self, cache: Option<Cache>) -> Self {
        Self { cache, ..self }
    }

    /// Writes an event into the journal.
    ///
    /// # Errors
    /// The journal can't be written.
    pub fn event(&self, event: Event) -> Result<(), Failure> {
        let mut journal = self.journal.lock().map_err(|_| internal("the journal's lock is poisoned"))?;
        journal.write(event).map_err(|e| internal(format!("writing the journal: {e}")))?;
        self.save(&journal)
    }

    /// Writes a sign of life into the journal.
    ///
    /// # Errors
    /// The journal can't be written.
    pub fn beat(&self) -> Result<(), Failure> {
        let mut journal = self.journal.lock().map_err(|_| internal("the journal's lock is poisoned"))?;
        journal.beat().map_err(|e| internal(format!("writing the journal: {e}")))?;
        self.save(&journal)
    }

    /// Keeps the manifest that waits for its permit, for a courier that is restarted meanwhile.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn keep(&self, manifest: String) -> Result<(), Failure> {
        let journal = self.journal.lock().map_err(|_| internal("the journal's lock is poisoned"))?;
        if let Ok(mut kept) = self.manifest.lock() {
            *kept = Some(manifest);
        }
        self.save(&journal)
    }

    /// Writes down what a restarted courier needs. The journal's lock is held meanwhile: one writes at a time, the older state
    /// first.
    fn save(&self, journal: &Journal) -> Result<(), Failure> {
        let Some(path) = &self.saved else { return Ok(()) };
        let manifest = self.manifest.lock().ok().and_then(|kept| kept.clone());
        let saved = Saved { state: journal.state().clone(), manifest };
        let fresh = path.with_extension("new");
        let bytes = serde_json::to_vec(&saved).map_err(|e| internal(e.to_string()))?;
        std::fs::write(&fresh, bytes)
            .and_then(|()| std::fs::rename(&fresh, path))
            .map_err(|e| internal(format!("writing {}: {e}", path.display())))
    }

    /// The journal's state.
    pub fn state(&self) -> BuildState {
        self.journal.lock().map(|j| j.state().clone()).unwrap_or_default()
    }

    /// Pins a reference.
    ///
    /// # Errors
    /// A policy forbids it, or as the registry answered.
    pub async fn resolve(&self, reference: &str, platform: &str) -> Result<ResolvedImage, Failure> {
        let pull = |e: kiln_registry::Error| of_registry(&e, Purpose::Pull);
        let name = ImageName::parse(reference).map_err(pull)?;
        // The builder reads what strangers wrote; what a policy forbids is refused here, where the registries are.
        let lists = &self.request.policy.base_images;
        if let Some(failure) = policy::base_image_refusal(lists, reference, &name.repository_name()) {
            return Err(failure);
        }
        let image =
            self.client.resolve(&name, &Platform::parse(platform).map_err(pull)?).await.map_err(pull)?;
        let config = String::from_utf8(image.config.clone()).map_err(|_| {
            let text = format!("the config of {name} is not UTF-8");
            Failure::new(FailureClass::User, reason::BASE_IMAGE_INVALID, text)
        })?;
        let layer = |b: &Blob| Descriptor {
            media_type: b.media_type.clone(),
            digest: b.digest.clone(),
            size: b.size,
        };
        let resolved = ResolvedImage {
            reference: name.to_string(),
            pinned: name.pinned(&image.digest),
            digest: image.digest.clone(),
            media_type: image.media_type.clone(),
            config,
            layers: image.layers.iter().map(layer).collect(),
        };
        if let Ok(mut images) = self.images.lock() {
            images.insert(resolved.pinned.clone(), (image, Purpose::Pull));
        }
        Ok(resolved)
    }

    /// Pins the reference of the build's source.
    ///
    /// # Errors
    /// As the registry answered.
    pub async fn resolve_artifact(&self, reference: &str, platform: &str) -> Result<Artifact, Failure> {
        let of = |e: kiln_registry::Error| of_registry(&e, Purpose::Source);
        let name = ImageName::parse(reference).map_err(of)?;
        let platform = Platform::parse(platform).map_err(of)?;
        let found = self.client.resolve_artifact(&name, &platform).await.map_err(of)?;
        let pinned = name.pinned(&found.digest);
        let known = Image {
            name,
            digest: found.digest.clone(),
            media_type: String::new(),
            config: Vec::new(),
            layers: found.layers.iter().map(|l| l.blob.clone()).collect(),
        };
        if let Ok(mut images) = self.images.lock() {
            images.insert(pinned.clone(), (known, Purpose::Source));
        }
        let layer = |l: kiln_registry::ArtifactLayer| ArtifactLayer {
            blob: Descriptor { media_type: l.blob.media_type, digest: l.blob.digest, size: l.blob.size },
            title: l.title,
            unpack: l.unpack,
        };
        let layers = found.layers.into_iter().map(layer).collect();
        Ok(Artifact { pinned, digest: found.digest, is_image: found.is_image, layers })
    }

    /// The name and blob of an image that was resolved in this attempt, and for what; nothing else may be read.
    ///
    /// # Errors
    /// It was not, or has no such layer.
    pub fn base_blob(&self, image: &str, digest: &str) -> Result<(ImageName, Blob, Purpose), Failure> {
        let images = self.images.lock().map_err(|_| internal("a lock is poisoned"))?;
        let (known, purpose) =
            images.get(image).ok_or_else(|| internal(format!("{image} was not resolved in this build")))?;
        let blob = known.layers.iter().find(|l| l.digest == digest);
        let blob = blob.ok_or_else(|| internal(format!("{image} has no layer {digest}")))?;
        Ok((known.name.clone(), blob.clone(), *purpose))
    }

    /// The cache.
    ///
    /// # Errors
    /// The request names none.
    pub fn cache(&self) -> Result<&Cache, Failure> {
        self.cache.as_ref().ok_or_else(|| internal("the request names no cache"))
    }

    /// Looks an entry of the cache up; its layer can be read from now on.
    ///
    /// # Errors
    /// It can't be told, or what is there is no entry.
    pub async fn cached(&self, key: &str) -> Result<Option<(String, CacheEntry)>, Failure> {
        let cache = self.cache()?;
        let Some((image, entry)) = cache.get(key).await? else { return Ok(None) };
        let pinned = image.name.pinned(&image.digest);
        if let Ok(mut images) = self.images.lock() {
            images.insert(pinned.clone(), (image, Purpose::Cache));
        }
        Ok(Some((pinned, entry)))
    }

    /// Keeps an entry in the cache; `file` has its layer's bytes, the output else.
    ///
    /// # Errors
    /// Neither has it, or as the registry answered.
    pub async fn keep_cached(
        &self,
        key: &str,
        entry: &CacheEntry,
        file: Option<std::fs::File>,
    ) -> Result<Stored, Failure> {
        let cache = self.cache()?;
        let origin = match file {
            Some(file) => Origin::File(Arc::new(file)),
            None if self.missing(std::slice::from_ref(&entry.layer)).is_empty() => {
                self.target.origin(&entry.layer.digest)?
            }
            None => {
                return Err(internal(
                    "a layer for the cache that the output has not got came without its bytes",
                ));
            }
        };
        cache.put(key, entry, &origin).await
    }

    /// The client for a purpose: whoever can do without is not waited for long.
    pub fn client_for(&self, purpose: Purpose) -> &Client {
        match (&self.cache, purpose) {
            (Some(cache), Purpose::Cache) => cache.client(),
            _ => &self.client,
        }
    }

    /// Notes that the output has a blob.
    pub fn has(&self, digest: &str) {
        if let Ok(mut blobs) = self.blobs.lock() {
            blobs.insert(digest.to_owned());
        }
    }

    /// Layers that were never put.
    pub fn missing<'a>(&self, layers: &'a [Descriptor]) -> Vec<&'a str> {
        let blobs = self.blobs.lock().map(|b| b.clone()).unwrap_or_default();
        layers.iter().map(|l| l.digest.as_str()).filter(|d| !blobs.contains(*d)).collect()
    }

    /// The outcome, once there is one.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome.lock().ok()?.clone()
    }

    /// Ends the attempt: journal, then report. The first outcome stays.
    ///
    /// # Errors
    /// The report can't be written.
    pub fn end(&self, outcome: Outcome) -> Result<(), Failure> {
        {
            let mut slot = self.outcome.lock().map_err(|_| internal("a lock is poisoned"))?;
            if slot.is_some() {
                return Ok(());
            }
            *slot = Some(outcome.clone());
        }
        let event = match &outcome {
            Outcome::Succeeded(image) => Event::Succeeded { image: image.clone() },
            Outcome::Failed(failure) => Event::Failed { failure: failure.clone() },
        };
        self.event(event)?;
        let report =
            Report { version: kiln_contract::VERSION, attempt: self.request.attempt.clone(), outcome };
        let written = self.report.as_ref().map_or(Ok(()), |path| std::fs::write(path, report.to_json()));
        self.ended.notify_waiters();
        written.map_err(|e| internal(format!("writing the report: {e}")))
    }

    /// Ends the attempt with a failure, unless tags are being moved just now: then that decides.
    ///
    /// # Errors
    /// The report can't be written.
    pub async fn fail(&self, failure: Failure) -> Result<(), Failure> {
        let _tagging = self.tagging.lock().await;
        self.end(Outcome::Failed(failure))
    }

    /// The builder is gone without a word: says which steps ran.
    ///
    /// # Errors
    /// The report can't be written.
    pub async fn builder_lost(&self) -> Result<(), Failure> {
        let state = self.state();
        let running = state.running();
        let text = match running[..] {
            [] => "the builder ended without a word".to_owned(),
            [_] => format!("the builder ended without a word while {} was running", steps(&running)),
            _ => format!("the builder ended without a word while {} were running", steps(&running)),
        };
        let mut failure = Failure::new(FailureClass::Infrastructure, reason::BUILDER_LOST, text);
        failure.step = running.first().copied();
        self.fail(failure).await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kiln_contract::policy::{AllowList, Policy};
    use kiln_contract::request::{Compression, Isolation, Output, Registries, Source};
    use kiln_registry::{Options, RetryPolicy};

    use super::*;

    fn session(base_images: Vec<AllowList>, files: Files) -> Session {
        let output = Output::OciLayout { path: "unused".into(), references: vec![] };
        let retry = RetryPolicy { budget: std::time::Duration::ZERO, ..RetryPolicy::default() };
        let client = Client::new(Options { retry, ..Options::default() }).expect("a client");
        let target = Target::new(&output).expect("a target");
        let request = BuildRequest {
            version: kiln_contract::VERSION,
            attempt: "a".into(),
            source: Source::Files(vec![]),
            context_dir: ".".into(),
            dockerfile: "Dockerfile".into(),
            dockerfile_text: None,
            target: None,
            args: BTreeMap::new(),
            labels: BTreeMap::new(),
            entitlements: vec![],
            contexts: BTreeMap::new(),
            platform: "linux/amd64".into(),
            output,
            compression: Compression::default(),
            isolation: Isolation::UserNamespace,
            timeout_seconds: 0,
            registries: Registries::default(),
            policy: Policy { base_images, ..Policy::default() },
            cache: None,
        };
        let journal = Journal::new(Box::new(|_| Ok(())), BuildState::default());
        let control = Control::new(None, "a");
        Session::new(request, client, target, control, journal, files, Given::default())
    }

    #[test]
    fn what_is_saved_is_whole_whoever_writes_and_later_events_keep_the_manifest() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.json");
        let session = session(vec![], Files { saved: Some(path.clone()), report: None });
        session.keep("{}".into()).expect("kept");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..200).for_each(|_| session.event(Event::Heartbeat).expect("written")));
            }
        });
        let text = std::fs::read(path).expect("a file");
        let saved: Saved = serde_json::from_slice(&text).expect("whole");
        assert!(saved.state.seq >= 1600);
        assert_eq!((saved.state.seq, saved.manifest.as_deref()), (session.state().seq, Some("{}")));
    }

    #[tokio::test]
    async fn a_base_image_that_a_policy_forbids_is_not_asked_for() {
        let list = |by: &str, pattern: &str| AllowList { by: by.into(), repositories: vec![pattern.into()] };
        // Nobody listens on port 1: what is allowed is asked for, and not there.
        let session = session(
            vec![list("BuildPolicy all: f", "127.0.0.1:1"), list("BuildPolicy a: f", "127.0.0.1:1/a/*")],
            Files::default(),
        );
        let resolve =
            async |reference: &str| session.resolve(reference, "linux/amd64").await.expect_err("not there");
        for (reference, by) in [
            ("alpine", "BuildPolicy all: f allows 127.0.0.1:1, found docker.io/library/alpine"),
            ("index.docker.io/library/alpine", "found docker.io/library/alpine"),
            ("127.0.0.1:1/b/c:1", "BuildPolicy a: f allows 127.0.0.1:1/a/*, found 127.0.0.1:1/b/c"),
            ("127.0.0.1:1/a", "found 127.0.0.1:1/a"),
            ("127.0.0.1:1/ab/c", "found 127.0.0.1:1/ab/c"),
        ] {
            let failure = resolve(reference).await;
            assert_eq!(
                (failure.class, failure.reason.as_str()),
                (FailureClass::Policy, reason::POLICY_REFUSED)
            );
            assert!(failure.message.contains(by), "{failure}");
        }
        let allowed = resolve("127.0.0.1:1/a/b:1").await;
        assert_eq!(allowed.reason, reason::REGISTRY_UNAVAILABLE, "{allowed}");
    }
}
