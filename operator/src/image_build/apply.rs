//! Carries out what was decided: pods, requests, permits, orders to stop. Every call may be made twice and by two
//! operators: names are deterministic, and what is there already is taken over only by owner UID.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kiln_contract::control::{PERMIT_ANNOTATION, PERMIT_UNTIL_ANNOTATION, STOP_ANNOTATION};
use kiln_contract::{Failure, FailureClass, reason};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};

use crate::metrics::Write;
use crate::mutant;

use super::context::Context;
use super::decide::{Action, CreationFaultKind};
use super::deviation::deviation;
use super::error::{ReconcileError, timed};
use super::observe::PodView;
use super::pod::{Blueprint, MAX_SECRETS};
use super::validate::Build;

/// Name under which the operator's fields are kept apart from other managers'.
pub const FIELD_MANAGER: &str = "kiln-operator";

/// The names of a service account's registry Secrets, or what keeps it from being used.
pub(super) type Account = Result<Vec<String>, CreationFaultKind>;

/// What there is to say of the build's service account.
///
/// # Errors
/// The API server did not answer as expected; it is tried again.
pub(super) async fn account(
    ctx: &Context,
    namespace: &str,
    build: &Build,
) -> Result<Account, ReconcileError> {
    let accounts: Api<ServiceAccount> = Api::namespaced(ctx.client.clone(), namespace);
    let account = &build.service_account;
    let Some(found) = timed("get serviceaccount", accounts.get_opt(account)).await? else {
        return Ok(Err(CreationFaultKind::Missing(Failure::new(
            FailureClass::Source,
            reason::SOURCE_NOT_FOUND,
            format!(
                "ServiceAccount {account} (spec.serviceAccountName) is not in namespace {namespace}; create it"
            ),
        ))));
    };
    if let Some(failure) = not_listed(&found, namespace, build) {
        // Applied together, the service account may come second.
        return Ok(Err(CreationFaultKind::Missing(failure)));
    }
    let secrets: Vec<String> =
        found.image_pull_secrets.into_iter().flatten().map(|s| s.name).filter(|n| !n.is_empty()).collect();
    if secrets.len() > MAX_SECRETS {
        return Ok(Err(CreationFaultKind::Terminal(Failure::new(
            FailureClass::Source,
            reason::SOURCE_INVALID,
            format!(
                "ServiceAccount {account} lists {} imagePullSecrets, expected at most {MAX_SECRETS}",
                secrets.len()
            ),
        ))));
    }
    Ok(Ok(secrets))
}

/// What came of making a pod.
#[derive(Debug, PartialEq)]
pub enum Creation {
    /// The pod of this UID is there, and it is the one that was asked for.
    Made(String),
    /// It is not.
    Failed(CreationFaultKind),
}

/// Makes request and pod of an attempt, or finds them made. `still_so` is asked when somebody has been at it before: whether
/// the object is as it was when this was decided.
///
/// # Errors
/// The API server did not answer as expected, or the object has changed; it is tried again.
pub async fn create(
    ctx: &Context,
    mut blueprint: Blueprint<'_>,
    account: Account,
    still_so: impl AsyncFnOnce() -> Result<(), ReconcileError>,
) -> Result<Creation, ReconcileError> {
    let failed = |kind| Ok(Creation::Failed(kind));
    let pods: Api<Pod> = Api::namespaced(ctx.client.clone(), blueprint.namespace);
    // Made by an operator that did not live to see it. Whether it could be made now is another question.
    if ctx.pods.of(&blueprint.owner.uid).contains_key(blueprint.name)
        && let Some(there) = timed("get pod", pods.get_opt(blueprint.name)).await?
    {
        return take_over(ctx, &blueprint, &there).await;
    }
    let secrets = match account {
        Ok(secrets) => secrets,
        Err(fault) => return failed(fault),
    };
    blueprint.secrets = &secrets;

    let requests: Api<ConfigMap> = Api::namespaced(ctx.client.clone(), blueprint.namespace);
    let made = timed("create configmap", requests.create(&PostParams::default(), &blueprint.request())).await;
    ctx.metrics.wrote(Write::ConfigMap);
    match made {
        Ok(_) => {}
        Err(error) => match Refusal::of(&error) {
            Some(Refusal::Exists) => {
                // One that went meanwhile is nobody's.
                let Some(there) = timed("get configmap", requests.get_opt(blueprint.name)).await? else {
                    return Err(ReconcileError::Conflict);
                };
                let owner = there.metadata.owner_references.into_iter().flatten().next();
                if owner.is_none_or(|o| o.uid != blueprint.owner.uid) {
                    return failed(CreationFaultKind::Terminal(foreign("ConfigMap", &blueprint)));
                }
                // Another operator's pod may have come, ended and gone, and be on record by now.
                still_so().await?;
            }
            Some(refusal) => return refusal.into_fault("ConfigMap").map(Creation::Failed).ok_or(error),
            None => return Err(error),
        },
    }

    let asked = blueprint.pod();
    let made = timed("create pod", pods.create(&PostParams::default(), &asked)).await;
    ctx.metrics.wrote(Write::Pod);
    let made = match made {
        Ok(pod) => pod,
        Err(error) => {
            return match Refusal::of(&error) {
                Some(Refusal::Exists) => match timed("get pod", pods.get_opt(blueprint.name)).await? {
                    Some(there) => take_over(ctx, &blueprint, &there).await,
                    None => Err(ReconcileError::Conflict),
                },
                Some(refusal) => refusal.into_fault("pod").map(Creation::Failed).ok_or(error),
                None => Err(error),
            };
        }
    };
    let view = PodView::of(&made);
    let Some(difference) = deviation(&asked, &made) else {
        tracing::info!(namespace = view.namespace, pod = view.name, "made builder pod");
        return Ok(accept(ctx, view));
    };
    let message = format!(
        "pod {} was changed on its way into the cluster: {difference}; exempt pods labelled {}={} from the admission webhook that does this",
        view.name,
        super::names::COMPONENT.0,
        super::names::COMPONENT.1
    );
    // Whether it has got a node meanwhile or not: it is not to run.
    delete(ctx, &view, None).await?;
    failed(CreationFaultKind::Terminal(Failure::new(FailureClass::Policy, reason::POD_MODIFIED, message)))
}

/// Takes over a pod of the attempt's name that is there, where it is the object's and the one that was asked for.
async fn take_over(
    ctx: &Context,
    blueprint: &Blueprint<'_>,
    there: &Pod,
) -> Result<Creation, ReconcileError> {
    let view = PodView::of(there);
    if view.owner.as_deref() != Some(blueprint.owner.uid.as_str()) && !mutant!(AdoptForeignPod) {
        return Ok(Creation::Failed(CreationFaultKind::Terminal(foreign("pod", blueprint))));
    }
    let Some(difference) = deviation(&blueprint.pod(), there) else {
        tracing::info!(namespace = view.namespace, pod = view.name, "took over builder pod");
        return Ok(accept(ctx, view));
    };
    if view.deletion.is_none() {
        delete(ctx, &view, None).await?;
    }
    // Which of the two it was shows when it is made again.
    Ok(Creation::Failed(CreationFaultKind::Missing(Failure::new(
        FailureClass::Infrastructure,
        reason::POD_MODIFIED,
        format!(
            "pod {} is not the one that this operator makes: {difference}; another version of Kiln made it, or an admission webhook changed it; it is deleted and made again",
            view.name
        ),
    ))))
}

/// The pod is the one that was asked for.
fn accept(ctx: &Context, pod: PodView) -> Creation {
    let uid = pod.uid.clone();
    ctx.pods.answered(pod);
    Creation::Made(uid)
}

/// Secrets that the object names for its source and its steps and the service account does not list: who may create ImageBuilds is not to
/// read any Secret of the namespace by that.
fn not_listed(account: &ServiceAccount, namespace: &str, build: &Build) -> Option<Failure> {
    let listed = |name: &str| account.secrets.iter().flatten().any(|s| s.name.as_deref() == Some(name));
    let named: BTreeSet<&str> = build
        .secrets
        .iter()
        .chain(&build.ssh)
        .map(|g| g.secret.as_str())
        .chain(build.source_secret.as_deref())
        .filter(|name| !listed(name))
        .collect();
    let first = named.first()?;
    let patch = json!({"secrets": named.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()});
    let account = &build.service_account;
    let others = if named.len() > 1 { format!(" and {} more", named.len() - 1) } else { String::new() };
    Some(Failure::new(
        FailureClass::Policy,
        reason::SECRET_NOT_LISTED,
        format!(
            "Secret {first}{others} (spec.source, spec.secrets, spec.ssh) is not in the secrets of ServiceAccount {account}; list it: kubectl -n {namespace} patch serviceaccount {account} -p '{patch}'"
        ),
    ))
}

fn foreign(kind: &str, blueprint: &Blueprint<'_>) -> Failure {
    Failure::new(
        FailureClass::Infrastructure,
        reason::POD_NAME_CONFLICT,
        format!(
            "a {kind} named {} is in namespace {} and does not belong to this ImageBuild; delete it and ask for a rebuild",
            blueprint.name, blueprint.namespace
        ),
    )
}

/// Why the API server did not make an object, where that is an answer and no fault of its own.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// One of that name is there.
    Exists,
    /// Quota is used up.
    Quota(String),
    /// It will not be made, whatever the number of tries.
    Final(String),
}

impl Refusal {
    /// What the answer says, where it says something of the object.
    pub(super) fn of(error: &ReconcileError) -> Option<Self> {
        let status = error.status()?;
        let words = status.message.clone();
        match (status.code, status.reason.as_str()) {
            (409, "AlreadyExists") => Some(Self::Exists),
            (403, _) if words.contains("exceeded quota") => Some(Self::Quota(words)),
            // Our own rights are missing, or the namespace is on its way out: neither is about this build.
            (403, _) if words.contains("cannot create resource") || words.contains("is being terminated") => {
                None
            }
            (400 | 403 | 422, _) => Some(Self::Final(words)),
            (500.., _) if mutant!(ApiFaultIsFinal) => Some(Self::Final(words)),
            _ => None,
        }
    }

    /// What it means for the attempt; nothing when the object is there.
    pub(super) fn into_fault(self, kind: &str) -> Option<CreationFaultKind> {
        match self {
            Self::Exists => None,
            Self::Quota(words) => Some(CreationFaultKind::Quota(words)),
            Self::Final(words) => {
                let hint = if words.contains("PodSecurity") {
                    "; builder pods need a namespace whose pod-security.kubernetes.io/enforce level is baseline or privileged"
                } else {
                    ""
                };
                let message = format!("the cluster refused the builder's {kind}: {words}{hint}");
                Some(CreationFaultKind::Terminal(Failure::new(
                    FailureClass::Policy,
                    reason::POD_REFUSED,
                    message,
                )))
            }
        }
    }
}

/// Carries out an action on a pod that is there.
///
/// # Errors
/// The API server did not answer as expected; it is tried again.
pub async fn act(
    ctx: &Context,
    namespace: &str,
    pods: &[&PodView],
    action: &Action,
) -> Result<(), ReconcileError> {
    let (name, body, what) = match action {
        Action::CreatePod { .. } | Action::Preflight => return Ok(()),
        Action::DeletePod { pod } => {
            // One that has got a node meanwhile runs, and is told to stop instead: its log has to stay.
            let version = pod.node.is_none().then_some(&pod.resource_version);
            return delete(ctx, pod, version).await;
        }
        Action::Permit { pod, permit, until } => {
            let mut body = annotation(PERMIT_ANNOTATION, permit);
            body["metadata"]["annotations"][PERMIT_UNTIL_ANNOTATION] = json!(until.to_string());
            (pod, body, "permit")
        }
        Action::Stop { pod, stop } => (pod, annotation(STOP_ANNOTATION, stop), "stop"),
        Action::Kill { pod } => (pod, json!({"spec": {"activeDeadlineSeconds": 1}}), "kill"),
    };
    let Some(pod) = pods.iter().find(|p| p.name == *name) else { return Ok(()) };
    let mut body = body;
    // Another pod of this name is none of ours.
    body["metadata"]["uid"] = json!(pod.uid);
    let api: Api<Pod> = Api::namespaced(ctx.client.clone(), namespace);
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let patched = timed("patch pod", api.patch(name, &params, &Patch::Merge(&body))).await;
    ctx.metrics.wrote(Write::Annotation);
    match patched {
        Ok(changed) => {
            tracing::info!(namespace, pod = name, what, "told builder pod");
            ctx.pods.answered(PodView::of(&changed));
            Ok(())
        }
        Err(error) if is_gone(&error) => {
            ctx.pods.not_found(pod);
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn annotation(key: &str, value: &impl serde::Serialize) -> Value {
    json!({"metadata": {"annotations": {key: json!(value).to_string()}}})
}

/// Whether the object is not there, or another one of its name is.
fn is_gone(error: &ReconcileError) -> bool {
    error.status().is_some_and(|s| matches!(s.code, 404 | 409))
}

/// Deletes a pod and its request; with a version only as long as the pod has that.
async fn delete(ctx: &Context, pod: &PodView, version: Option<&String>) -> Result<(), ReconcileError> {
    let exactly = |uid: &str, version: Option<&String>| DeleteParams {
        preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: version.cloned() }),
        ..DeleteParams::background()
    };
    let api: Api<Pod> = Api::namespaced(ctx.client.clone(), &pod.namespace);
    match timed("delete pod", api.delete(&pod.name, &exactly(&pod.uid, version))).await {
        Ok(_) => {}
        Err(error) if version.is_some() && error.status().is_some_and(|s| s.code == 409) => {
            return Err(ReconcileError::Conflict);
        }
        Err(error) if is_gone(&error) => ctx.pods.not_found(pod),
        Err(error) => return Err(error),
    }
    ctx.metrics.wrote(Write::Pod);
    let requests: Api<ConfigMap> = Api::namespaced(ctx.client.clone(), &pod.namespace);
    let Some(request) = timed("get configmap", requests.get_metadata_opt(&pod.name)).await? else {
        return Ok(());
    };
    let owners = request.metadata.owner_references.unwrap_or_default();
    if let Some(uid) =
        request.metadata.uid.filter(|_| owners.iter().any(|o| Some(&o.uid) == pod.owner.as_ref()))
    {
        match timed("delete configmap", requests.delete(&pod.name, &exactly(&uid, None))).await {
            Err(error) if !is_gone(&error) => return Err(error),
            _ => ctx.metrics.wrote(Write::ConfigMap),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn refusal(code: u16, word: &str, message: &str) -> Option<Refusal> {
        let status = kube::core::Status {
            code,
            reason: word.to_owned(),
            message: message.to_owned(),
            ..kube::core::Status::default()
        };
        let source = Box::new(kube::Error::Api(Box::new(status)));
        Refusal::of(&ReconcileError::Api { call: "create pod", source })
    }

    #[test]
    fn a_secret_that_the_service_account_does_not_list_is_named_with_the_remedy() {
        use crate::image_build::testing::{blueprint, desired};
        use crate::image_build::validate::{Buildable, Given};
        let desired = desired("v1:a");
        let Buildable::Yes(mut build) = desired.buildable.clone() else { panic!("not buildable") };
        let given = |secret: &str| Given { id: "i".into(), secret: secret.into(), key: "k".into() };
        build.secrets = vec![given("npm"), given("both")];
        build.ssh = vec![given("both"), given("git")];
        let (owner, config) = (Default::default(), Config::parse("builderImage: b").expect("it is good"));
        let failure = |listed: Value| {
            let account = serde_json::from_value(json!({"secrets": listed})).expect("an account");
            let blueprint = blueprint(&desired, &build, &owner, &config);
            not_listed(&account, blueprint.namespace, blueprint.build)
        };
        assert_eq!(failure(json!([{"name": "npm"}, {"name": "both"}, {"name": "git"}, {"name": "x"}])), None);
        let one = failure(json!([{"name": "npm"}, {"name": "both"}])).expect("git is missing");
        assert_eq!((one.class, one.reason.as_str()), (FailureClass::Policy, reason::SECRET_NOT_LISTED));
        let command = r#"kubectl -n ns patch serviceaccount default -p '{"secrets":[{"name":"git"}]}'"#;
        assert!(one.message.contains("Secret git (") && one.message.ends_with(command), "{one}");
        let all = failure(Value::Null).expect("none is listed");
        assert!(all.message.contains("Secret both and 2 more"), "{all}");
        assert!(
            all.message.contains(r#"{"secrets":[{"name":"both"},{"name":"git"},{"name":"npm"}]}"#),
            "{all}"
        );
    }

    #[test]
    fn answers_of_the_api_server_are_told_from_its_faults() {
        assert_eq!(refusal(409, "AlreadyExists", ""), Some(Refusal::Exists));
        assert!(matches!(
            refusal(403, "Forbidden", "pods \"a\" is forbidden: exceeded quota: q"),
            Some(Refusal::Quota(_))
        ));
        assert!(matches!(
            refusal(403, "Forbidden", "violates PodSecurity \"restricted:latest\""),
            Some(Refusal::Final(_))
        ));
        assert!(matches!(refusal(422, "Invalid", "spec.x: no"), Some(Refusal::Final(_))));
        for (code, word, message) in [
            (403, "Forbidden", "User \"a\" cannot create resource \"pods\" in API group \"\""),
            (403, "Forbidden", "unable to create new content in namespace a because it is being terminated"),
            (409, "Conflict", ""),
            (404, "NotFound", "namespaces \"a\" not found"),
            (500, "InternalError", "failed calling webhook"),
            (429, "TooManyRequests", ""),
        ] {
            assert_eq!(refusal(code, word, message), None, "{message}");
        }
    }

    #[test]
    fn a_refusal_by_pod_security_says_which_level_is_needed() {
        let fault = Refusal::Final("violates PodSecurity \"restricted\"".into()).into_fault("pod");
        let Some(CreationFaultKind::Terminal(failure)) = fault else { panic!("{fault:?}") };
        assert!(failure.message.contains("baseline"), "{failure}");
    }
}
