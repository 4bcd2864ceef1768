//! The reconcile: dereference (IO), validate (pure), decide (pure), status (one write, if it differs), apply (IO).
//!
//! The status comes before the actions: an attempt is on record before its pod is made, and a pod before it gets a permit.
//! So a crash anywhere leaves something that the next reconcile finds again by name.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kiln_api::{ImageBuild, ImageBuildStatus};
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::{Resource, ResourceExt as _};
use tracing::Instrument as _;

use crate::journals::Subject;
use crate::metrics::Write;
use crate::mutant;
use crate::policy;
use crate::queue::Claim;
use crate::telemetry::build_span;

use super::apply::{self, Account, Creation};
use super::context::{Context, runs, waits, waits_since};
use super::decide::{Action, CreationFault, Decision, Observed, Slot, decide};
use super::dereference::dereference;
use super::error::{ReconcileError, timed};
use super::events::transitions;
use super::kubelet::{self, Warning};
use super::names;
use super::observe::PodView;
use super::pod::Blueprint;
use super::pod_events;
use super::preflight;
use super::start::Patience;
use super::store;
use super::validate::{Buildable, Desired, validate};

/// An ImageBuild, or what can be said of one that can't be read.
pub type Object = DeserializeGuard<ImageBuild>;

/// Annotation that asks for a rebuild.
const REBUILD: &str = "kiln.build/rebuild";
/// Annotation that cancels a run, by number.
const CANCEL: &str = "kiln.build/cancel";

/// Reconciles one object; says when to look at it again where no event will.
///
/// # Errors
/// The API server did not answer as expected, or the object changed meanwhile; it is tried again.
pub(crate) async fn reconcile_once(
    object: &Object,
    ctx: &Context,
) -> Result<Option<Duration>, ReconcileError> {
    let began = Instant::now();
    let result = match &object.0 {
        Ok(build) => Box::pin(reconcile_build(build, ctx)).instrument(build_span(build)).await,
        Err(invalid) => store::unreadable(ctx, invalid).await.map(|()| None),
    };
    let uid = object.meta().uid.clone().unwrap_or_default();
    ctx.metrics.reconciled(result.as_ref().map(|_| ()), began.elapsed());
    if result.is_ok() {
        ctx.count(&uid, false);
    }
    result
}

/// How long to wait after a failed reconcile.
pub(crate) fn retry_after(object: &Object, error: &ReconcileError, ctx: &Context) -> Duration {
    let uid = object.meta().uid.clone().unwrap_or_default();
    let times = ctx.count(&uid, true);
    let wait = error.backoff(times);
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    match error {
        ReconcileError::Conflict => tracing::debug!(namespace, name, "changed meanwhile, decided again"),
        _ => tracing::warn!(namespace, name, %error, retry_seconds = wait.as_secs(), "reconcile failed"),
    }
    wait
}

async fn reconcile_build(build: &ImageBuild, ctx: &Context) -> Result<Option<Duration>, ReconcileError> {
    let meta = build.meta();
    if meta.deletion_timestamp.is_some() {
        // Its pods go with it: the garbage collector sees to that.
        return Ok(None);
    }
    let newest = {
        let shown = This::of(build);
        ctx.written(&shown.uid, &shown.resource_version)
    };
    let build = newest.as_deref().unwrap_or(build);
    let this = This::of(build);
    let stored = build.status.clone().unwrap_or_default();

    let found = dereference(&ctx.client, &this.namespace, &build.spec).await?;
    let policy = policy::watch::effective(ctx, &this.namespace).await?;
    let desired = validate(&this.name, &build.spec, &found, &ctx.config, &policy);
    let pods = look_at_pods(ctx, &this, &stored).await?;
    let warnings = listen(ctx, &this, &stored, &pods).await;
    let decision = ponder(ctx, &this, &desired, &stored, &pods, &warnings);

    if !ctx.leadership.is_leader() {
        return Err(ReconcileError::NotLeader);
    }
    confirm_end(ctx, &this, &stored, &decision.status, &pods).await?;
    let wait = ctx.pace(&this.uid, &stored, &decision.status);
    let written = decision.status != stored && wait == 0;
    let write = async {
        if written {
            store::write(ctx, build, &stored, &decision.status).await
        } else {
            Ok(this.resource_version.clone())
        }
    };
    // What a pod needs to know is asked for meanwhile.
    let (version, account) = futures::join!(write, account(ctx, &this, &desired, &decision));
    let version = version?;
    keep_place(ctx, &this.uid, &decision.status);
    let mut now = Now { version: &version, written, account };
    let acted = act(ctx, build, &this, &mut now, &desired, &pods, &decision).await;
    if written {
        // Last: a pod does not wait for them.
        let events =
            ctx.events.publish(&build.object_ref(&()), &transitions(&stored, &decision.status)).await;
        ctx.metrics.wrote_many(Write::Event, events);
    }
    acted?;
    let wait = (wait > 0).then(|| Duration::from_secs(wait.unsigned_abs()));
    Ok(decision.again.into_iter().chain(wait).min())
}

/// Who the object is.
struct This {
    name: String,
    namespace: String,
    uid: String,
    resource_version: String,
    generation: i64,
    cancel: Option<i64>,
    rebuild: Option<String>,
}

impl This {
    fn of(build: &ImageBuild) -> Self {
        let annotation = |key: &str| build.annotations().get(key);
        Self {
            name: build.name_any(),
            namespace: build.namespace().unwrap_or_default(),
            uid: build.uid().unwrap_or_default(),
            resource_version: build.resource_version().unwrap_or_default(),
            generation: build.meta().generation.unwrap_or_default(),
            cancel: annotation(CANCEL).and_then(|text| text.trim().parse().ok()),
            rebuild: annotation(REBUILD).filter(|text| !text.is_empty()).cloned(),
        }
    }

    /// The attempt that is under way, by the status.
    fn subject(&self, status: &ImageBuildStatus) -> Option<Subject> {
        let attempt = status.attempts.last()?;
        Some(Subject {
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            attempt: names::attempt_id(&self.uid, status.run.unwrap_or_default(), attempt.number),
            pod: attempt.pod_name.clone(),
        })
    }
}

/// The object's pods; and sees that the journal of the one that runs is followed, or read to its end.
async fn look_at_pods(
    ctx: &Context,
    this: &This,
    status: &ImageBuildStatus,
) -> Result<BTreeMap<String, PodView>, ReconcileError> {
    let mut pods = ctx.pods.of(&this.uid);
    let Some(subject) = this.subject(status).filter(|_| runs(status)) else { return Ok(pods) };
    let on_record = status.attempts.last().and_then(|a| a.pod_uid.clone());
    if let Some(uid) = &on_record
        && pods.get(&subject.pod).is_none_or(|pod| pod.uid != *uid)
        // Gone, or made a moment ago in place of another: only the API server knows.
        && let Some(pod) = pod_now(ctx, this, &subject.pod, uid).await?
    {
        pods.insert(pod.name.clone(), pod);
    }
    let known = on_record.or_else(|| ctx.verified(&this.uid));
    match pods.get(&subject.pod).filter(|p| known.as_ref() == Some(&p.uid)) {
        Some(pod) if pod.terminal => ctx.journals.settle(&subject).await,
        Some(pod) if pod.courier.has_started() => ctx.journals.follow(&subject),
        _ => {}
    }
    Ok(pods)
}

/// The object's pod of that name and UID as the API server has it now.
async fn pod_now(
    ctx: &Context,
    this: &This,
    name: &str,
    uid: &str,
) -> Result<Option<PodView>, ReconcileError> {
    let api: Api<Pod> = Api::namespaced(ctx.client.clone(), &this.namespace);
    let there = timed("get pod", api.get_opt(name)).await?.map(|pod| PodView::of(&pod));
    let pod = there.filter(|p| p.uid == uid && p.owner.as_deref() == Some(this.uid.as_str()));
    if let Some(pod) = &pod {
        ctx.pods.answered(pod.clone());
    }
    Ok(pod)
}

/// What Events say of the pod that is to start, where it takes long to.
async fn listen(
    ctx: &Context,
    this: &This,
    status: &ImageBuildStatus,
    pods: &BTreeMap<String, PodView>,
) -> Vec<Warning> {
    let subject = this.subject(status).filter(|_| runs(status));
    match subject.and_then(|s| pods.get(&s.pod)) {
        Some(pod) if kubelet::due(pod, ctx.clock.now().as_second()) == Some(0) => {
            pod_events::warnings(ctx, &this.uid, pod).await
        }
        _ => Vec::new(),
    }
}

/// An attempt whose pod has not ended is not given up on what an old list shows: the API server is asked how the pod is now.
async fn confirm_end(
    ctx: &Context,
    this: &This,
    before: &ImageBuildStatus,
    after: &ImageBuildStatus,
    pods: &BTreeMap<String, PodView>,
) -> Result<(), ReconcileError> {
    let Some(attempt) = before.attempts.last().filter(|a| a.finished_at.is_none()) else { return Ok(()) };
    let goes_on = after.run == before.run
        && after.attempts.iter().any(|a| {
            let well = a.reason.as_deref() == Some(super::lifecycle::SUCCEEDED);
            a.number == attempt.number && (a.finished_at.is_none() || well)
        });
    let Some(pod) = pods.get(&attempt.pod_name).filter(|p| !goes_on && !p.terminal) else { return Ok(()) };
    match pod_now(ctx, this, &pod.name, &pod.uid).await? {
        Some(now) if now.resource_version == pod.resource_version => Ok(()),
        Some(_) => Err(ReconcileError::Conflict),
        None => {
            ctx.pods.not_found(pod);
            Err(ReconcileError::Conflict)
        }
    }
}

/// Decides, and asks for a place in the queue where the decision needs one.
fn ponder(
    ctx: &Context,
    this: &This,
    desired: &Desired,
    stored: &ImageBuildStatus,
    pods: &BTreeMap<String, PodView>,
    warnings: &[Warning],
) -> Decision {
    let subject = this.subject(stored);
    let journal = subject.as_ref().and_then(|s| ctx.journals.state(&s.uid, &s.attempt));
    let creation = subject.as_ref().and_then(|s| ctx.creation(&s.uid, &s.attempt));
    let preflight = ctx.preflight(&this.uid, stored.run.unwrap_or_default());
    let verified = ctx.verified(&this.uid);
    let mut observed = Observed {
        name: &this.name,
        namespace: &this.namespace,
        uid: &this.uid,
        generation: this.generation,
        cancel: this.cancel,
        rebuild: this.rebuild.as_deref(),
        desired,
        status: stored,
        pods,
        journal: journal.as_ref(),
        warnings,
        slot: Slot::Unknown,
        creation: creation.as_ref(),
        preflight: preflight.as_ref(),
        verified: verified.as_deref(),
        patience: Patience {
            scheduling: ctx.config.pod_scheduling_deadline.seconds(),
            start: ctx.config.pod_start_grace.seconds(),
        },
    };
    let now = ctx.clock.now();
    let decision = decide(now, &observed);
    if !decision.ask_for_slot {
        return decision;
    }
    let Buildable::Yes(build) = &desired.buildable else { return decision };
    observed.slot = ctx.ask(&Claim {
        uid: &this.uid,
        namespace: &this.namespace,
        name: &this.name,
        priority: ctx.priorities.of(build.priority_class.as_deref()),
        since: waits_since(&decision.status),
    });
    decide(now, &observed)
}

/// Keeps or gives back the build's place in the queue, and its journal.
fn keep_place(ctx: &Context, uid: &str, status: &ImageBuildStatus) {
    if status.completion_time.is_some() {
        ctx.journals.forget(uid);
    }
    if !runs(status) && !waits(status) {
        ctx.release(uid);
    }
}

/// The service account of the build, where a pod is to be made.
async fn account(
    ctx: &Context,
    this: &This,
    desired: &Desired,
    decision: &Decision,
) -> Result<Option<Account>, ReconcileError> {
    match &desired.buildable {
        Buildable::Yes(build) if decision.actions.iter().any(|a| matches!(a, Action::CreatePod { .. })) => {
            apply::account(ctx, &this.namespace, build).await.map(Some)
        }
        _ => Ok(None),
    }
}

/// The object as the decision took it to be.
struct Now<'a> {
    /// Its resourceVersion.
    version: &'a str,
    /// Whether its status was just written, which shows that it is so.
    written: bool,
    /// Its service account, for the pod that is to be made.
    account: Result<Option<Account>, ReconcileError>,
}

impl Now<'_> {
    /// Asks the API server whether it still is: nobody may have deleted, cancelled, edited or decided anything meanwhile.
    async fn confirm(&self, ctx: &Context, this: &This) -> Result<(), ReconcileError> {
        let api: Api<ImageBuild> = Api::namespaced(ctx.client.clone(), &this.namespace);
        let now = timed("get imagebuild", api.get_metadata_opt(&this.name)).await?;
        match now.and_then(|o| o.metadata.resource_version) {
            Some(version) if version == self.version => Ok(()),
            _ => Err(ReconcileError::Conflict),
        }
    }
}

async fn act(
    ctx: &Context,
    build: &ImageBuild,
    this: &This,
    now: &mut Now<'_>,
    desired: &Desired,
    pods: &BTreeMap<String, PodView>,
    decision: &Decision,
) -> Result<(), ReconcileError> {
    let views: Vec<&PodView> = pods.values().collect();
    // What was read may be old, and a pod that looks left over belong to an attempt that began since.
    let mut confirmed = now.written;
    for action in &decision.actions {
        if !ctx.leadership.is_leader() {
            return Err(ReconcileError::NotLeader);
        }
        let (look, blind) = match action {
            // The tag moves after this.
            Action::Permit { .. } => (true, mutant!(PermitWithoutLook)),
            Action::CreatePod { .. } => (!confirmed, false),
            Action::Preflight => (false, false), // It changes nothing.
            _ => (!confirmed, mutant!(StopWithoutLook)),
        };
        if look && !blind {
            now.confirm(ctx, this).await?;
            confirmed = true;
        }
        match action {
            Action::CreatePod { .. } => create(ctx, build, this, now, desired, &decision.status).await?,
            Action::Preflight => preflight::ask(ctx, build, desired, &decision.status).await?,
            _ => apply::act(ctx, &this.namespace, &views, action).await?,
        }
    }
    Ok(())
}

/// Makes the pod of the attempt that the status names last.
async fn create(
    ctx: &Context,
    object: &ImageBuild,
    this: &This,
    now: &mut Now<'_>,
    desired: &Desired,
    status: &ImageBuildStatus,
) -> Result<(), ReconcileError> {
    let (Buildable::Yes(build), Some(subject)) = (&desired.buildable, this.subject(status)) else {
        return Ok(());
    };
    let Some(owner) = object.controller_owner_ref(&()) else { return Ok(()) };
    let blueprint = Blueprint {
        object: &this.name,
        namespace: &this.namespace,
        owner: &owner,
        name: &subject.pod,
        attempt: &subject.attempt,
        build,
        desired,
        secrets: &[],
        config: &ctx.config,
    };
    let Some(account) = std::mem::replace(&mut now.account, Ok(None))? else { return Ok(()) };
    let still_so = async || now.confirm(ctx, this).await;
    match Box::pin(apply::create(ctx, blueprint, account, still_so)).await? {
        Creation::Made(uid) => ctx.made(&this.uid, uid),
        Creation::Failed(kind) => {
            let fault = CreationFault { at: ctx.clock.now(), kind };
            ctx.failed_to_make(&this.uid, &subject.attempt, fault);
        }
    }
    // The pod goes on record, or the fault into the status.
    ctx.wake((this.namespace.clone(), this.name.clone()));
    Ok(())
}
