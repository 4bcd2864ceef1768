//! What a build asks for, against what holds for its namespace: isolation, timeout, and where its image and the
//! results of its steps go. Pure.

use kiln_api::ImageBuildSpec;
use kiln_api::duration;
use kiln_api::reference::Reference;
use kiln_api::v1alpha1::Isolation;
use kiln_contract::policy;
use kiln_contract::request::Cache;
use kiln_contract::{Failure, FailureClass, reason};

use super::effective::{Effective, Insecure};

/// A refusal in the name of a policy.
fn refused(message: impl AsRef<str>) -> Failure {
    Failure::new(FailureClass::Policy, reason::POLICY_REFUSED, message)
}

fn invalid(message: impl AsRef<str>) -> Failure {
    Failure::new(FailureClass::User, reason::INVALID_SPEC, message)
}

/// The isolation of the build, and why it may not be used.
pub fn isolation(spec: &ImageBuildSpec, policy: &Effective) -> (Isolation, Option<Failure>) {
    let wanted = spec.isolation.unwrap_or(policy.isolation);
    let list = policy.isolations.iter().find(|list| !list.value.contains(&wanted));
    let failure = list.map(|list| {
        let allowed: Vec<&str> = list.value.iter().map(|i| i.as_str()).collect();
        refused(format!(
            "spec.isolation: {} allows {}, found {}; use one that is allowed, or ask the platform team to allow it",
            list.by,
            allowed.join(", "),
            wanted.as_str()
        ))
    });
    (wanted, failure)
}

/// Seconds that an attempt may take.
///
/// # Errors
/// It is no duration, or longer than a policy allows.
pub fn timeout(spec: &ImageBuildSpec, policy: &Effective) -> Result<i64, Failure> {
    let Some(text) = &spec.timeout else { return Ok(policy.timeout) };
    let wanted = duration::parse(text).map_err(|e| invalid(format!("spec.timeout: {e}")))?;
    let wanted = i64::try_from(wanted.as_secs()).unwrap_or(i64::MAX);
    match &policy.max_timeout {
        Some(most) if wanted > most.value => Err(refused(format!(
            "spec.timeout: {} allows {}, found {text}; make the build faster, or ask the platform team to allow it",
            most.by,
            duration::format(most.value.max(0).unsigned_abs())
        ))),
        _ => Ok(wanted),
    }
}

/// Where the image of the ImageBuild `name` is to go, as written: in its spec, or by the policies' template. Not checked.
pub fn output_text(spec: &ImageBuildSpec, name: &str, policy: &Effective) -> Option<String> {
    match (&policy.template, spec.output.image.as_str()) {
        (None, "") => None,
        (Some(template), "") => Some(template.replace("{name}", name)),
        (_, image) => Some(image.to_owned()),
    }
}

/// Where the image of the ImageBuild `name` goes.
///
/// # Errors
/// It is no reference, or none is named, or a policy does not allow it.
pub fn output(spec: &ImageBuildSpec, name: &str, policy: &Effective) -> Result<Reference, Failure> {
    let Some(text) = output_text(spec, name, policy) else {
        return Err(invalid(
            "spec.output.image is absent, and no BuildPolicy of this namespace says where images go (spec.output.template); name an image",
        ));
    };
    let what = match spec.output.image.as_str() {
        "" => "spec.output.image (from spec.output.template of a BuildPolicy)",
        _ => "spec.output.image",
    };
    let image = Reference::parse(&text).map_err(|e| invalid(format!("{what}: {e}")))?;
    let repository = format!("{}/{}", image.registry, image.repository);
    if let Some(failure) = policy::refusal(&policy.outputs, what, &repository, "push to such a repository") {
        return Err(failure);
    }
    if spec.output.insecure && !policy.registries.insecure.contains(&image.registry) {
        match &policy.insecure {
            Insecure::Allowed => {}
            Insecure::Refused(by) => {
                return Err(refused(format!(
                    "spec.output.insecure: {by} is false; let the registry speak TLS, or ask the platform team to allow it"
                )));
            }
            Insecure::Unsaid => {
                return Err(refused(format!(
                    "spec.output.insecure: no BuildPolicy of this namespace allows plain HTTP (spec.output.allowInsecure); let the registry speak TLS, or ask the platform team to allow it, or to list {} in spec.registries.insecure",
                    image.registry
                )));
            }
        }
    }
    Ok(image)
}

/// Where results of steps are kept: like an output, it is pushed to.
///
/// # Errors
/// It is no repository, or a policy does not allow it.
pub fn cache(spec: &ImageBuildSpec, policy: &Effective) -> Result<Option<Cache>, Failure> {
    let named = spec.cache.as_ref().and_then(|cache| cache.repository.as_ref());
    let (wished, what) = match (named, &policy.cache) {
        (Some(repository), _) => (repository, "spec.cache.repository"),
        (None, Some(template)) => {
            (template, "spec.cache.repository (from spec.cache.template of a BuildPolicy)")
        }
        (None, None) => return Ok(None),
    };
    let parsed = Reference::parse(wished).map_err(|e| invalid(format!("{what}: {e}")))?;
    if wished.rsplit('/').next().is_some_and(|last| last.contains(':')) {
        let text = format!("{what}: expected a repository without a tag, found '{wished}'");
        return Err(invalid(text));
    }
    let repository = format!("{}/{}", parsed.registry, parsed.repository);
    match policy::refusal(&policy.outputs, what, &repository, "use such a repository") {
        Some(failure) => Err(failure),
        None => Ok(Some(Cache { repository, scope: policy.cache_scope.clone() })),
    }
}

/// What a policy that can't be read means for a build: nobody knows what it forbids.
///
/// # Errors
/// There is one.
pub fn readable(policy: &Effective) -> Result<(), Failure> {
    policy.broken.as_ref().map_or(Ok(()), |why| Err(refused(why)))
}
