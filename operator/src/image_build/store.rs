//! Writes statuses, each as a whole. `PUT` and not server-side apply, see ADR 0003: the status has one writer, what is written
//! stands for the object of one resourceVersion, and the API server needs half as long for it.

use kiln_api::{ImageBuild, ImageBuildStatus};
use kube::ResourceExt as _;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::error_boundary::InvalidObject;
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::json;

use crate::metrics::Write;
use crate::mutant;

use super::apply::FIELD_MANAGER;
use super::conditions::{self, Phase};
use super::context::Context;
use super::error::{ReconcileError, timed};

/// Stores the status, provided that the object is still the one that was decided on. Returns its new resourceVersion.
pub async fn write(
    ctx: &Context,
    build: &ImageBuild,
    before: &ImageBuildStatus,
    after: &ImageBuildStatus,
) -> Result<String, ReconcileError> {
    let (name, namespace) = (build.name_any(), build.namespace().unwrap_or_default());
    let uid = build.uid().unwrap_or_default();
    let mut object = build.clone();
    object.status = Some(after.clone());
    // Its resourceVersion is the condition.
    if mutant!(StatusWithoutVersion) {
        object.metadata.resource_version = None;
    }
    let api: Api<ImageBuild> = Api::namespaced(ctx.client.clone(), &namespace);
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    let began = tokio::time::Instant::now();
    let put = timed("put imagebuild status", api.replace_status(&name, &params, &object)).await;
    ctx.write_took(began.elapsed());
    ctx.metrics.wrote(Write::Status);
    let written = put.map_err(|error| match error.status().map(|s| s.code) {
        Some(409) => ReconcileError::Conflict,
        _ => error,
    })?;
    if written.status.as_ref() != Some(after) {
        // Every later reconcile would write it again.
        tracing::error!(
            namespace,
            name,
            "the API server stores another status than was written: the CRD in the cluster is not this operator's"
        );
    }
    let version = written.metadata.resource_version.clone().unwrap_or_default();
    ctx.wrote(&uid, written);
    ctx.metrics.stored(before, after);
    ctx.traces.stored(build, before, after);
    if before.completion_time.is_none() && after.completion_time.is_some() {
        tracing::info!(
            namespace,
            name,
            run = after.run,
            reason = after.history.last().map(|h| h.reason.as_str()),
            duration = after.duration,
            "run ended"
        );
    }
    Ok(version)
}

/// Says of an object that can't be read why, so that nobody waits for it.
pub async fn unreadable(ctx: &Context, invalid: &InvalidObject) -> Result<(), ReconcileError> {
    let meta = &invalid.metadata;
    let (name, namespace) =
        (meta.name.clone().unwrap_or_default(), meta.namespace.clone().unwrap_or_default());
    tracing::warn!(namespace, name, error = invalid.error, "an ImageBuild can't be read");
    // The time of its creation, so that writing it again changes nothing.
    let at = meta.creation_timestamp.as_ref().map_or_else(|| ctx.clock.now(), |t| t.0);
    let message =
        format!("this operator can't read the object: {}; correct it or upgrade Kiln", invalid.error);
    let mut status = ImageBuildStatus::default();
    conditions::set(&mut status, &Phase::Unreadable { message }, meta.generation.unwrap_or_default(), at);
    let kind = GroupVersionKind::gvk("kiln.build", "v1alpha1", "ImageBuild");
    let resource = ApiResource::from_gvk_with_plural(&kind, "imagebuilds");
    let api: Api<DynamicObject> = Api::namespaced_with(ctx.client.clone(), &namespace, &resource);
    let patch = json!({
        "apiVersion": "kiln.build/v1alpha1", "kind": "ImageBuild", "metadata": {"name": name},
        "status": {"observedGeneration": status.observed_generation, "conditions": status.conditions},
    });
    let params = PatchParams::apply("kiln-operator-unreadable").force();
    timed("patch imagebuild status", api.patch_status(&name, &params, &Patch::Apply(&patch))).await?;
    ctx.metrics.wrote(Write::Status);
    Ok(())
}
