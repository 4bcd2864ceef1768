//! Wires watches to reconciles: ImageBuilds, their pods, the ConfigMaps and Flux objects that they build from, their journals,
//! the policies that hold for them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures::{Stream, StreamExt as _, TryStreamExt as _, future, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::controller::{self, Controller};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::{Liveness, Readiness};
use crate::image_build::context::{Context, config_map_key, runs};
use crate::image_build::flux;
use crate::image_build::names;
use crate::image_build::observe::PodView;
use crate::image_build::reconcile::{Object, on_error, reconcile};
use crate::journals::Wake;
use crate::pods::Scope;
use crate::policy;

/// Reconciles that run at the same time, of builds that want to begin and of all others. Each is a few API calls; the rest of its
/// time it waits. Who waits for a pod does not wait behind the news of those that have one, nor for an API server that is
/// busy with them.
const CONCURRENCY: [usize; 2] = [48, 16];
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
    let triggers = stream::select(stream::select(pod_wakes.boxed(), source_wakes.boxed()), wakes.boxed())
        .map(|(namespace, name)| ObjectRef::new(&name).within(&namespace));

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
    // First come, first served. The controller's own limit takes whichever it finds first in a set, and with more to do than
    // can be done some objects were not looked at for minutes.
    let turns = CONCURRENCY.map(|places| Arc::new(Semaphore::new(places)));
    let (served, latest) = (turns.clone(), reader.clone());
    let in_turn = move |object: Arc<Object>, ctx: Arc<Context>| {
        let [first, others] = &served;
        let turns = if wants_to_begin(&object) { first } else { others }.clone();
        let latest = latest.clone();
        async move {
            // Closed: the operator ends, and another one will look at it.
            let Ok(_turn) = turns.acquire().await else { return Ok(controller::Action::await_change()) };
            // It may have waited for long. What is gone needs no look.
            let Some(object) = latest.get(&ObjectRef::from_obj(&*object)) else {
                return Ok(controller::Action::await_change());
            };
            Box::pin(reconcile(object, ctx)).await
        }
    };
    Controller::for_stream(objects, reader)
        .reconcile_on(triggers)
        .graceful_shutdown_on(async move {
            shutdown.cancelled().await;
            turns.iter().for_each(|turns| turns.close());
        })
        .run(in_turn, |object, error, ctx| on_error(&object, error, &ctx), ctx)
        .for_each(|result| {
            // Reconciles tell of their own faults in `on_error`.
            if let Err(error @ (controller::Error::QueueError(_) | controller::Error::RunnerError(_))) =
                result
            {
                tracing::warn!(%error, "a watch was interrupted and is taken up again");
            }
            future::ready(())
        })
        .await;
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
