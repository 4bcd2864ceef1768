//! Wires watches to reconciles: ImageBuilds, their pods, the ConfigMaps and Flux objects that they build from, their journals,
//! the policies that hold for them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures::{Stream, StreamExt as _, TryStreamExt as _, future, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt as _;
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::{Liveness, Readiness};
use crate::dispatch;
use crate::image_build::context::{Context, config_map_key, runs};
use crate::image_build::flux;
use crate::image_build::names;
use crate::image_build::observe::PodView;
use crate::image_build::reconcile::{Object, reconcile_once, retry_after};
use crate::journals::Wake;
use crate::pods::Scope;
use crate::policy;
use crate::turns::Kind;

/// How often the controller's own loop shows that it turns, and the builds are counted.
const BEAT: Duration = Duration::from_secs(5);

/// Says that work goes on.
#[derive(Debug, Clone)]
pub struct Signs {
    /// Behind `/livez`.
    pub liveness: Liveness,
    /// Behind `/readyz`.
    pub readiness: Readiness,
}

/// Watches and reconciles until `shutdown`; what is under way then is finished.
pub async fn run(
    ctx: Arc<Context>,
    wakes: mpsc::UnboundedReceiver<Wake>,
    signs: Signs,
    shutdown: CancellationToken,
) {
    let scopes: Vec<Scope> = match ctx.config.watch_namespaces.as_slice() {
        [] => vec![None],
        some => some.iter().cloned().map(Some).collect(),
    };
    // Without them nobody knows what is allowed: they come before all builds.
    let (listed, mut policies) = watch::channel(0usize);
    let lists = policy::watch::lists(&scopes);
    let watching = tokio::spawn(policy::watch::run(ctx.clone(), scopes.clone(), listed));
    match shutdown.run_until_cancelled(policies.wait_for(|done| *done == lists)).await {
        Some(Ok(_)) => {}
        _ => {
            watching.abort();
            return;
        }
    }
    // Wakes reach the controller of their namespace; with one for all, that one.
    let mut inboxes = Vec::new();
    let mut controllers = Vec::new();
    let stores: Arc<Mutex<Vec<Store<Object>>>> = Arc::default();
    let (synced, mut all_synced) = watch::channel(0usize);
    for scope in &scopes {
        let (inbox, own) = mpsc::unbounded_channel();
        inboxes.push((scope.clone(), inbox));
        let beats = beats(signs.liveness.clone());
        let own = stream::select(tokio_stream(own), beats);
        controllers.push(run_scope(
            ctx.clone(),
            scope.clone(),
            own,
            stores.clone(),
            synced.clone(),
            shutdown.clone(),
        ));
    }
    let deliver = tokio::spawn(deliver(wakes, inboxes));
    let worth = ctx.clone();
    let priorities = tokio::spawn(async move { worth.priorities.watch(worth.client.clone()).await });
    let count = scopes.len();
    let (readiness, beat_ctx) = (signs.readiness.clone(), ctx.clone());
    let ready = tokio::spawn(async move {
        if all_synced.wait_for(|done| *done == count).await.is_ok() {
            tracing::info!("caches are filled");
            readiness.set(true);
        }
        let mut tick = tokio::time::interval(BEAT);
        loop {
            tick.tick().await;
            let all: Vec<_> = {
                let stores = stores.lock().unwrap_or_else(PoisonError::into_inner);
                stores.iter().flat_map(Store::state).collect()
            };
            let statuses = all.iter().filter_map(|object| object.0.as_ref().ok()?.status.as_ref());
            beat_ctx.metrics.show_builds(beat_ctx.clock.now(), statuses);
            beat_ctx.metrics.set_followers(beat_ctx.journals.len());
        }
    });
    future::join_all(controllers).await;
    deliver.abort();
    priorities.abort();
    ready.abort();
    watching.abort();
}

/// Hands each wake to the controller of its namespace.
async fn deliver(
    mut wakes: mpsc::UnboundedReceiver<Wake>,
    inboxes: Vec<(Scope, mpsc::UnboundedSender<Wake>)>,
) {
    while let Some(wake) = wakes.recv().await {
        let inbox = inboxes.iter().find(|(scope, _)| scope.as_ref().is_none_or(|s| *s == wake.0));
        if let Some((_, inbox)) = inbox {
            let _ = inbox.send(wake);
        }
    }
}

fn api<K>(ctx: &Context, scope: &Scope) -> Api<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
{
    match scope {
        Some(namespace) => Api::namespaced(ctx.client.clone(), namespace),
        None => Api::all(ctx.client.clone()),
    }
}

/// One controller, for one namespace or for all.
async fn run_scope(
    ctx: Arc<Context>,
    scope: Scope,
    wakes: impl Stream<Item = Wake> + Send + 'static,
    stores: Arc<Mutex<Vec<Store<Object>>>>,
    synced: watch::Sender<usize>,
    shutdown: CancellationToken,
) {
    // Without the pods every attempt would look as if its pod were gone: they come first.
    let mut pods = Box::pin(watch_pods(ctx.clone(), scope.clone()));
    let mut early = Vec::new();
    loop {
        match shutdown.run_until_cancelled(pods.next()).await {
            Some(Some(Told::Synced)) => break,
            Some(Some(Told::Changed(wake))) => early.push(wake),
            Some(None) | None => return,
        }
    }
    let pod_wakes = stream::iter(early).chain(pods.filter_map(|told| {
        future::ready(match told {
            Told::Changed(wake) => Some(wake),
            Told::Synced => None,
        })
    }));
    let flux = tokio::spawn(flux::watch(ctx.clone(), scope.clone()));
    let source_wakes = watch_config_maps(ctx.clone(), &scope);
    let (reader, writer) = reflector::store();
    let known = note_objects(
        ctx.clone(),
        scope.clone(),
        watcher(api(&ctx, &scope), watcher::Config::default()).modify(|object: &mut Object| {
            // A third of what would be kept of each object.
            if let Ok(build) = &mut object.0 {
                build.metadata.managed_fields = None;
            }
        }),
        synced,
    );
    let objects = reflector::reflector(writer, known).default_backoff().touched_objects();
    stores.lock().unwrap_or_else(PoisonError::into_inner).push(reader.clone());
    let shown = objects.filter_map(|touched| {
        future::ready(match touched {
            Ok(object) => Some((object.namespace().unwrap_or_default(), object.name_any())),
            Err(error) => {
                tracing::warn!(%error, "the watch of ImageBuilds was interrupted and is taken up again");
                None
            }
        })
    });
    let triggers =
        stream::select_all([shown.boxed(), pod_wakes.boxed(), source_wakes.boxed(), wakes.boxed()]);
    let (ready, latest) = (reader.clone(), reader.clone());
    let ready = async move {
        // The store goes only with this controller.
        let _ = ready.wait_until_ready().await;
    };
    let look = move |wake: &Wake| {
        let object = latest.get(&ObjectRef::new(&wake.1).within(&wake.0));
        if object.is_some_and(|object| wants_to_begin(&object)) { Kind::First } else { Kind::Other }
    };
    let metrics = ctx.metrics.clone();
    let waited = move |kind, time| metrics.waited(kind, time);
    let reconcile = move |(namespace, name): Wake| {
        // As it is now, which may be long after it was asked for. What is gone needs no look.
        let object = reader.get(&ObjectRef::new(&name).within(&namespace));
        let ctx = ctx.clone();
        async move {
            let object = object?;
            match Box::pin(reconcile_once(&object, &ctx)).await {
                Ok(again) => again,
                Err(error) => Some(retry_after(&object, &error, &ctx)),
            }
        }
    };
    dispatch::run(triggers, ready, look, waited, reconcile, shutdown).await;
    flux.abort();
}

/// Whether a build has no attempt under way and may get one.
fn wants_to_begin(object: &Object) -> bool {
    let Ok(build) = &object.0 else { return false };
    let Some(status) = &build.status else { return true };
    let edited = Some(status.observed_generation) != build.metadata.generation;
    edited || (status.completion_time.is_none() && !runs(status))
}

fn tokio_stream(mut receiver: mpsc::UnboundedReceiver<Wake>) -> impl Stream<Item = Wake> + Send + 'static {
    stream::poll_fn(move |cx| receiver.poll_recv(cx))
}

/// Touches `/livez` whenever the controller's own loop looks whether there is something to do, which it is made to do
/// every few seconds. Yields nothing.
fn beats(liveness: Liveness) -> impl Stream<Item = Wake> + Send + 'static {
    let mut tick = tokio::time::interval(BEAT);
    stream::poll_fn(move |cx| {
        while tick.poll_tick(cx).is_ready() {
            liveness.touch();
        }
        Poll::Pending
    })
}

type Watched<K> = Result<watcher::Event<K>, watcher::Error>;

/// Remembers each object that the watch shows, and forgets those that are gone.
fn note_objects(
    ctx: Arc<Context>,
    scope: Scope,
    events: impl Stream<Item = Watched<Object>> + Send + 'static,
    synced: watch::Sender<usize>,
) -> impl Stream<Item = Watched<Object>> + Send + 'static {
    let mut listed = BTreeSet::new();
    let mut synced = Some(synced);
    events.inspect_ok(move |event| match event {
        watcher::Event::Init => listed.clear(),
        watcher::Event::InitApply(object) => {
            if let Some(uid) = &meta(object).uid {
                listed.insert(uid.clone());
            }
            if let Ok(build) = &object.0 {
                ctx.meet(build);
            }
        }
        watcher::Event::InitDone => {
            ctx.retain(&scope, &listed);
            if let Some(synced) = synced.take() {
                synced.send_modify(|done| *done += 1);
            }
        }
        watcher::Event::Apply(object) => {
            if let Ok(build) = &object.0 {
                ctx.note(build);
            }
        }
        watcher::Event::Delete(object) => {
            if let Some(uid) = &meta(object).uid {
                ctx.forget(uid);
            }
        }
    })
}

fn meta(object: &Object) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
    kube::Resource::meta(object)
}

/// What the pod watch tells.
enum Told {
    /// The first list is whole.
    Synced,
    /// The owner of a pod that changed.
    Changed(Wake),
}

/// Keeps [`Context::pods`] and tells whose pods changed.
fn watch_pods(ctx: Arc<Context>, scope: Scope) -> impl Stream<Item = Told> + Send {
    let selected = watcher::Config::default().labels(names::SELECTOR);
    let events = watcher(api::<Pod>(&ctx, &scope), selected).default_backoff();
    events.flat_map(move |event| {
        let owner = |view: &PodView| {
            view.owner_name.clone().map(|name| Told::Changed((view.namespace.clone(), name)))
        };
        let told: Vec<Told> = match event {
            Ok(watcher::Event::Init) => {
                ctx.pods.list_begins(&scope);
                Vec::new()
            }
            Ok(watcher::Event::InitDone) => {
                let gone = ctx.pods.list_ends(&scope);
                gone.into_iter().map(Told::Changed).chain([Told::Synced]).collect()
            }
            Ok(watcher::Event::InitApply(pod) | watcher::Event::Apply(pod)) => {
                let view = PodView::of(&pod);
                let told = owner(&view);
                ctx.pods.show(&scope, view);
                told.into_iter().collect()
            }
            Ok(watcher::Event::Delete(pod)) => {
                let view = PodView::of(&pod);
                ctx.pods.gone(&view);
                owner(&view).into_iter().collect()
            }
            Err(error) => {
                tracing::warn!(%error, "the watch of pods was interrupted and is taken up again");
                Vec::new()
            }
        };
        stream::iter(told)
    })
}

/// Tells who builds from a ConfigMap that changed. Only metadata crosses the wire.
fn watch_config_maps(ctx: Arc<Context>, scope: &Scope) -> impl Stream<Item = Wake> + Send + use<> {
    let events = watcher(api::<PartialObjectMeta<ConfigMap>>(&ctx, scope), watcher::Config::default());
    events.default_backoff().touched_objects().flat_map(move |touched| {
        let wakes = match touched {
            Ok(map) => {
                let namespace = map.metadata.namespace.unwrap_or_default();
                ctx.built_from(&namespace, &config_map_key(&map.metadata.name.unwrap_or_default()))
            }
            Err(error) => {
                tracing::warn!(%error, "the watch of ConfigMaps was interrupted and is taken up again");
                Vec::new()
            }
        };
        stream::iter(wakes)
    })
}

#[cfg(test)]
mod tests {
    use kiln_contract::report::Outcome;
    use kiln_contract::{Failure, FailureClass, reason};
    use kube::core::DeserializeGuard;
    use kube::core::error_boundary::InvalidObject;
    use serde_json::json;

    use super::*;
    use crate::image_build::testing::{World, pushed, queued};

    /// Whether an object of that status, edited or not since it was written, has the turns of those that begin.
    fn begins(world: &World, edits: i64) -> bool {
        let mut build = build();
        build.metadata.generation = Some(world.generation + edits);
        build.status = Some(world.status.clone());
        wants_to_begin(&DeserializeGuard(Ok(build)))
    }

    fn build() -> kiln_api::ImageBuild {
        let build = json!({"metadata": {"name": "app", "generation": 1}, "spec": {
            "source": {"inline": {"files": []}}, "output": {"image": "r.x/a:1"}}});
        serde_json::from_value(build).expect("an ImageBuild")
    }

    #[test]
    fn those_without_an_attempt_under_way_have_turns_of_their_own() {
        assert!(wants_to_begin(&DeserializeGuard(Ok(build()))), "it was never looked at");
        let unreadable = InvalidObject { error: "no".into(), metadata: build().metadata };
        assert!(!wants_to_begin(&DeserializeGuard(Err(unreadable))), "it builds nothing");

        let mut world = World::new();
        world.slot = queued(3);
        world.decide();
        assert!(begins(&world, 0), "it waits for a place");
        world.slot = crate::image_build::decide::Slot::Granted;
        world.decide();
        assert!(world.status.attempts[0].pod_uid.is_none() && !begins(&world, 0), "its pod is being made");
        world.run_pod();
        assert!(!begins(&world, 0), "it runs");
        assert!(begins(&world, 1), "it runs and was edited");

        let lost = Failure::new(FailureClass::Infrastructure, reason::BUILDER_LOST, "gone");
        world.report(Outcome::Failed(lost));
        world.decide();
        assert!(world.status.completion_time.is_none() && begins(&world, 0), "it waits to be tried again");
        world.now += 60;
        world.run_pod();
        assert!(!begins(&world, 0), "its second attempt runs");
        world.report(Outcome::Succeeded(pushed()));
        world.decide();
        assert!(!begins(&world, 0), "it has succeeded");
        assert!(begins(&world, 1), "it has succeeded and was edited");

        let mut world = World::new();
        world.run_pod();
        world.report(Outcome::Failed(Failure::new(FailureClass::User, reason::STEP_FAILED, "exit 1")));
        world.decide();
        assert!(!begins(&world, 0), "it has failed");
        assert!(begins(&world, 1), "it has failed and was edited");

        let mut world = World::new();
        world.desired.suspend = true;
        world.decide();
        assert!(begins(&world, 0), "it was suspended before it began, and what ends that is an edit");
    }
}
