//! Asks the API server whether it would take a build's pod, while the build waits for its place: who has to change something in
//! the namespace need not wait first. Nothing is made by that.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kiln_api::{ImageBuild, ImageBuildStatus};
use kiln_contract::Failure;
use kube::api::{Api, PostParams};
use kube::{Resource as _, ResourceExt as _};
use tokio::time::Instant;

use super::apply::{Refusal, account};
use super::context::Context;
use super::decide::CreationFaultKind;
use super::error::{ReconcileError, timed};
use super::names;
use super::pod::Blueprint;
use super::validate::{Buildable, Desired};

/// For how long others of a namespace with the same isolation are taken to be let in, too: a flood asks once.
const FRESH: Duration = Duration::from_secs(60);

/// Where pods were let in a moment ago: namespace and isolation.
#[derive(Debug, Default)]
pub struct LetIn(Mutex<HashMap<(String, &'static str), Instant>>);

impl LetIn {
    fn note(&self, namespace: &str, isolation: &'static str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, at| at.elapsed() < FRESH);
        all.insert((namespace.to_owned(), isolation), Instant::now());
    }

    fn knows(&self, namespace: &str, isolation: &'static str) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&(namespace.to_owned(), isolation)).is_some_and(|at| at.elapsed() < FRESH)
    }
}

/// Asks whether the pod of the run that waits would be taken, and remembers the answer.
///
/// # Errors
/// The API server did not answer as expected; it is tried again.
pub async fn ask(
    ctx: &Context,
    object: &ImageBuild,
    desired: &Desired,
    status: &ImageBuildStatus,
) -> Result<(), ReconcileError> {
    let Buildable::Yes(build) = &desired.buildable else { return Ok(()) };
    let Some(owner) = object.controller_owner_ref(&()) else { return Ok(()) };
    let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
    let (uid, run) = (object.uid().unwrap_or_default(), status.run.unwrap_or_default());
    let blueprint = Blueprint {
        object: &name,
        namespace: &namespace,
        owner: &owner,
        name: &names::pod_name(&name, &uid, run, 1),
        attempt: &names::attempt_id(&uid, run, 1),
        build,
        desired,
        secrets: &[],
        config: &ctx.config,
    };
    let isolation = desired.isolation.as_str();
    let refusal =
        if ctx.let_in.knows(&namespace, isolation) { None } else { refusal(ctx, blueprint).await? };
    let refused = refusal.is_some();
    ctx.preflighted(&uid, run, refusal.map_or(Ok(()), Err));
    if refused {
        ctx.wake((namespace, name));
    }
    Ok(())
}

/// Why the pod would not be taken, however often it is tried; `None` when it would, or when that can't be said yet.
///
/// # Errors
/// The API server did not answer as expected; it is tried again.
async fn refusal(ctx: &Context, mut blueprint: Blueprint<'_>) -> Result<Option<Failure>, ReconcileError> {
    let secrets = match account(ctx, blueprint.namespace, blueprint.build).await? {
        Ok(secrets) => secrets,
        Err(CreationFaultKind::Terminal(failure)) => return Ok(Some(failure)),
        // It may come while the build waits; without it admission refuses every pod.
        Err(_) => return Ok(None),
    };
    blueprint.secrets = &secrets;
    let pods: Api<Pod> = Api::namespaced(ctx.client.clone(), blueprint.namespace);
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let Err(error) = timed("create pod (dry run)", pods.create(&params, &blueprint.pod())).await else {
        ctx.let_in.note(blueprint.namespace, blueprint.desired.isolation.as_str());
        return Ok(None);
    };
    let Some(refusal) = Refusal::of(&error) else { return Err(error) };
    Ok(match refusal.into_fault("pod") {
        Some(CreationFaultKind::Terminal(failure)) => Some(failure),
        // Quota may be free by then, and a pod of the name be gone.
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_let_in_is_forgotten_after_a_minute() {
        let let_in = LetIn::default();
        let_in.note("a", "UserNamespace");
        assert!(let_in.knows("a", "UserNamespace"));
        assert!(!let_in.knows("a", "HostRange") && !let_in.knows("b", "UserNamespace"));
        tokio::time::advance(FRESH).await;
        assert!(!let_in.knows("a", "UserNamespace"));
        let_in.note("b", "HostRange");
        assert_eq!(let_in.0.lock().expect("no panic").len(), 1, "nothing old is kept");
    }
}
