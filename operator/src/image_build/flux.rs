//! Flux' source objects, which this crate has no types of: read and watched through the dynamic API, where they exist.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, future};
use kiln_api::v1alpha1::FluxKind;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::{WatchStreamExt as _, watcher};

use crate::pods::Scope;

use super::context::Context;
use super::error::{ReconcileError, timed};

/// Flux' API group.
const GROUP: &str = "source.toolkit.fluxcd.io";
/// Versions that have `status.artifact` with a digest, newest first.
const VERSIONS: [&str; 2] = ["v1", "v1beta2"];
/// How often it is looked whether the cluster has a kind by now.
const LOOK: Duration = Duration::from_secs(60);

fn resource(kind: FluxKind, version: &str) -> ApiResource {
    let gvk = GroupVersionKind::gvk(GROUP, version, kind.as_str());
    ApiResource::from_gvk_with_plural(&gvk, kind.plural())
}

/// Reads a Flux object; `None` when there is none, or no such kind.
///
/// # Errors
/// The API server did not answer as expected.
pub async fn read(
    client: &kube::Client,
    namespace: &str,
    kind: FluxKind,
    name: &str,
) -> Result<Option<DynamicObject>, ReconcileError> {
    for version in VERSIONS {
        let api: Api<DynamicObject> =
            Api::namespaced_with(client.clone(), namespace, &resource(kind, version));
        match timed("get flux source", api.get(name)).await {
            Ok(found) => return Ok(Some(found)),
            // Of a kind that the cluster does not know the API server says "404 page not found", and not in JSON.
            Err(error) if error.status().is_some_and(|s| s.code == 404) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The name under which [`Context::built_from`] knows a Flux object.
pub fn key(kind: FluxKind, name: &str) -> String {
    format!("{}/{name}", kind.as_str())
}

/// Watches the Flux objects of a scope, and wakes who builds from one that changed. Never ends; a cluster without Flux is
/// looked at once a minute.
pub async fn watch(ctx: Arc<Context>, scope: Scope) {
    future::join_all(FluxKind::ALL.map(|kind| watch_kind(&ctx, &scope, kind))).await;
}

async fn watch_kind(ctx: &Context, scope: &Scope, kind: FluxKind) {
    loop {
        if let Some(version) = served(ctx, kind).await {
            let resource = resource(kind, version);
            let api: Api<DynamicObject> = match scope {
                Some(namespace) => Api::namespaced_with(ctx.client.clone(), namespace, &resource),
                None => Api::all_with(ctx.client.clone(), &resource),
            };
            let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).touched_objects());
            while let Some(event) = events.next().await {
                match event {
                    Ok(object) => {
                        let namespace = object.metadata.namespace.unwrap_or_default();
                        let name = object.metadata.name.unwrap_or_default();
                        ctx.built_from(&namespace, &key(kind, &name)).into_iter().for_each(|w| ctx.wake(w));
                    }
                    Err(error) => {
                        // The kind may be gone, or the right to see it: both are looked at anew.
                        tracing::warn!(%error, kind = kind.as_str(), "the watch of Flux sources was interrupted");
                        break;
                    }
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The version of a kind that the cluster serves.
async fn served(ctx: &Context, kind: FluxKind) -> Option<&'static str> {
    for version in VERSIONS {
        let group = format!("{GROUP}/{version}");
        let list = ctx.client.list_api_group_resources(&group);
        if let Ok(found) = timed("list flux kinds", list).await
            && found.resources.iter().any(|r| r.kind == kind.as_str())
        {
            return Some(version);
        }
    }
    None
}
