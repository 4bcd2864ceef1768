//! Watches BuildPolicies and the labels of namespaces, and wakes the builds that were refused when something changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt as _, future};
use k8s_openapi::api::core::v1::Namespace;
use kiln_api::BuildPolicy;
use kube::ResourceExt as _;
use kube::api::Api;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::sync::watch;

use crate::image_build::context::Context;
use crate::image_build::error::{ReconcileError, timed};
use crate::pods::Scope;

use super::effective::{Effective, Read};

type Policy = DeserializeGuard<BuildPolicy>;
type Labelled = PartialObjectMeta<Namespace>;

/// Watches until it is dropped; `synced` counts the lists that are whole: one of policies, and one of namespaces for each scope.
pub async fn run(ctx: Arc<Context>, scopes: Vec<Scope>, synced: watch::Sender<usize>) {
    let namespaces = scopes.iter().map(|scope| watch_namespaces(&ctx, scope, synced.clone()));
    future::join(watch_policies(&ctx, synced.clone()), future::join_all(namespaces)).await;
}

/// How many lists [`run`] counts.
pub fn lists(scopes: &[Scope]) -> usize {
    1 + scopes.len()
}

fn read(policy: &Policy) -> Read {
    match &policy.0 {
        Ok(policy) => Ok(policy.spec.clone()),
        Err(invalid) => Err(invalid.error.clone()),
    }
}

async fn watch_policies(ctx: &Context, synced: watch::Sender<usize>) {
    let api: Api<Policy> = Api::all(ctx.client.clone());
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let (mut listed, mut synced) = (BTreeSet::new(), Some(synced));
    // What a list that is not whole yet has shown is acted on with its end: once, however many policies there are.
    let mut shown = false;
    while let Some(event) = events.next().await {
        let whole = matches!(event, Ok(watcher::Event::InitDone));
        let news = match event {
            Ok(watcher::Event::Init) => {
                listed.clear();
                false
            }
            Ok(watcher::Event::InitApply(policy)) => {
                let name = policy.name_any();
                shown |= ctx.policies.show_policy(&name, read(&policy));
                listed.insert(name);
                false
            }
            Ok(watcher::Event::InitDone) => {
                let gone = ctx.policies.retain_policies(&listed);
                std::mem::take(&mut shown) | gone
            }
            Ok(watcher::Event::Apply(policy)) => {
                let name = policy.name_any();
                tracing::info!(policy = name, "a BuildPolicy was changed");
                ctx.policies.show_policy(&name, read(&policy))
            }
            Ok(watcher::Event::Delete(policy)) => ctx.policies.policy_gone(&policy.name_any()),
            Err(error) => {
                tracing::warn!(%error, "the watch of BuildPolicies was interrupted and is taken up again; without a first list nothing is built");
                false
            }
        };
        if news {
            ctx.policies.namespaces().iter().for_each(|namespace| limit(ctx, namespace));
            ctx.wake_refused(None);
        }
        // Nothing is built before the limits hold.
        if whole {
            done(&mut synced);
        }
    }
}

async fn watch_namespaces(ctx: &Context, scope: &Scope, synced: watch::Sender<usize>) {
    let api: Api<Labelled> = Api::all(ctx.client.clone());
    // With rights in some namespaces only these can be listed, one by one.
    let config = watcher::Config::default();
    let config = match scope {
        Some(namespace) => config.fields(&format!("metadata.name={namespace}")),
        None => config,
    };
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let (mut listed, mut synced) = (BTreeSet::new(), Some(synced));
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitDone) => {
                let gone = ctx.policies.retain_namespaces(scope, &listed);
                gone.iter().for_each(|namespace| limit(ctx, namespace));
                done(&mut synced);
            }
            Ok(watcher::Event::InitApply(namespace) | watcher::Event::Apply(namespace)) => {
                let name = namespace.name_any();
                listed.insert(name.clone());
                if ctx.policies.show_namespace(&name, labels(namespace)) {
                    limit(ctx, &name);
                    ctx.wake_refused(Some(&name));
                }
            }
            Ok(watcher::Event::Delete(namespace)) => {
                ctx.policies.namespace_gone(&namespace.name_any());
                limit(ctx, &namespace.name_any());
            }
            Err(error) => {
                tracing::warn!(%error, "the watch of namespaces was interrupted and is taken up again; without a first list nothing is built");
            }
        }
    }
}

/// Has the queue keep what the policies say of a namespace.
fn limit(ctx: &Context, namespace: &str) {
    let known = ctx.policies.effective(&ctx.config, namespace);
    ctx.limit(namespace, known.map(|policy| policy.concurrency.clone()).unwrap_or_default());
}

fn done(synced: &mut Option<watch::Sender<usize>>) {
    if let Some(synced) = synced.take() {
        synced.send_modify(|done| *done += 1);
    }
}

fn labels(namespace: Labelled) -> BTreeMap<String, String> {
    namespace.metadata.labels.unwrap_or_default()
}

/// What holds in a namespace. One that no watch has shown yet, because it is new, is asked for.
///
/// # Errors
/// The API server did not answer as expected, or there is no such namespace (any more).
pub async fn effective(ctx: &Context, namespace: &str) -> Result<Arc<Effective>, ReconcileError> {
    if let Some(known) = ctx.policies.effective(&ctx.config, namespace) {
        return Ok(known);
    }
    let api: Api<Namespace> = Api::all(ctx.client.clone());
    let found = timed("get namespace", api.get_metadata_opt(namespace)).await?;
    let labels = found.map(labels).ok_or(ReconcileError::Conflict)?;
    ctx.policies.show_namespace(namespace, labels);
    limit(ctx, namespace);
    ctx.policies.effective(&ctx.config, namespace).ok_or(ReconcileError::Conflict)
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
