//! From what the user wrote to what can be built, or to why not. Pure; nothing after it reads the raw spec.

use std::collections::BTreeMap;

use kiln_api::reference::Reference;
use kiln_api::v1alpha1::{PolicyStatus, Resources, SourceStatus};
use kiln_api::{ImageBuildSpec, duration};
use kiln_contract::policy::{Policy, Proxy};
use kiln_contract::request::{
    BuildRequest, Cache, Compression, Content, File, Isolation, MAX_REQUEST, Output, Registries, Source,
};
use kiln_contract::{Failure, FailureClass, reason};

use crate::config::Config;
use crate::policy::{Effective, bases, check, resources};

use super::dereference::Dereferenced;
use super::digest;

/// The build argument behind `spec.output.sourceDateEpoch`.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// What the object asks for, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// [`digest::input_digest`].
    pub input_digest: String,
    /// What status says of the source; absent where nothing is known before it is fetched.
    pub source: Option<SourceStatus>,
    /// How steps are kept apart.
    pub isolation: Isolation,
    /// Where the image is to go, as written.
    pub output: Option<String>,
    /// Which policies hold.
    pub policy: PolicyStatus,
    /// Seconds that an attempt may take.
    pub timeout_seconds: i64,
    /// Further attempts after infrastructure faults.
    pub retries: usize,
    /// Seconds for which the pod of an ended attempt is kept.
    pub pod_ttl_seconds: i64,
    /// Whether nothing is to run.
    pub suspend: bool,
    /// What to build, or why it can't be.
    pub buildable: Buildable,
}

/// Whether there is something to build.
#[derive(Debug, Clone, PartialEq)]
pub enum Buildable {
    /// This.
    Yes(Box<Build>),
    /// Not until somebody edits the object or its source.
    No(Failure),
    /// Not until what is named exists.
    NotYet(Failure),
}

/// What to build.
#[derive(Debug, Clone, PartialEq)]
pub struct Build {
    /// The context.
    pub source: Source,
    /// The Secret with the credentials of a source that is fetched.
    pub source_secret: Option<String>,
    /// Root of the context within the source.
    pub context_dir: String,
    /// The Dockerfile within the context.
    pub dockerfile: String,
    /// The stage.
    pub target: Option<String>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// Secrets that steps can mount.
    pub secrets: Vec<Given>,
    /// Private keys that steps can sign with.
    pub ssh: Vec<Given>,
    /// Labels for the image's config.
    pub labels: BTreeMap<String, String>,
    /// Normalised references of one repository, the first is the one that users are told.
    pub references: Vec<String>,
    /// How the build's own layers are compressed.
    pub compression: Compression,
    /// Where results of steps are kept.
    pub cache: Option<Cache>,
    /// The PersistentVolumeClaim with the steps' cache mounts.
    pub cache_claim: Option<String>,
    /// Mirrors and plain-HTTP registries, the output's among them where the user said so.
    pub registries: Registries,
    /// Whose `imagePullSecrets` and `secrets` to use.
    pub service_account: String,
    /// Of the build container.
    pub resources: Resources,
    /// What RUN may ask for.
    pub entitlements: Vec<String>,
    /// What the pod keeps of the policies.
    pub policy: Policy,
    /// PriorityClass of the pod.
    pub priority_class: Option<String>,
}

/// A value of a Secret that the courier gets for steps, by name only: the operator reads no Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// Its name in the Dockerfile; a file name.
    pub id: String,
    /// The Secret.
    pub secret: String,
    /// The key in it.
    pub key: String,
}

/// The platform of the pods that this operator makes: its own, since the builder image is of the same release.
pub fn platform() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{arch}")
}

/// Checks the object `name` against the cluster's settings, and what the policies of its namespace say.
pub fn validate(
    name: &str,
    spec: &ImageBuildSpec,
    found: &Dereferenced,
    config: &Config,
    policy: &Effective,
) -> Desired {
    let key = match found {
        Dereferenced::Files(files) => Some(digest::source_digest(files)),
        Dereferenced::Remote(remote, from_flux) => Some(remote.key(*from_flux)),
        Dereferenced::Missing(_) | Dereferenced::Unusable(_) => None,
    };
    let source = match found {
        Dereferenced::Files(_) => Some(SourceStatus { revision: None, digest: key.clone() }),
        Dereferenced::Remote(remote, _) if remote.digest.is_some() => {
            Some(SourceStatus { revision: remote.revision.clone(), digest: remote.digest.clone() })
        }
        _ => None,
    };
    let (wanted, not_isolated) = check::isolation(spec, policy);
    let timeout = check::timeout(spec, policy);
    let mut desired = Desired {
        input_digest: digest::input_digest(spec, key.as_deref()),
        source,
        isolation: match wanted {
            kiln_api::v1alpha1::Isolation::UserNamespace => Isolation::UserNamespace,
            kiln_api::v1alpha1::Isolation::HostRange => Isolation::HostRange,
        },
        output: check::output_text(spec, name, policy),
        policy: policy.status.clone(),
        timeout_seconds: timeout.as_ref().copied().unwrap_or(policy.timeout),
        retries: usize::try_from(spec.retries).unwrap_or_default(),
        pod_ttl_seconds: seconds(&spec.pod_ttl).unwrap_or(86_400),
        suspend: spec.suspend,
        buildable: Buildable::NotYet(Failure::new(FailureClass::Source, reason::SOURCE_NOT_FOUND, "")),
    };
    let checked = || {
        check::readable(policy)?;
        not_isolated.map_or(Ok(()), Err)?;
        let image = check::output(spec, name, policy)?;
        timeout?;
        build(spec, found, config, policy, &image)
    };
    desired.buildable = match found {
        Dereferenced::Missing(failure) => Buildable::NotYet(failure.clone()),
        Dereferenced::Unusable(failure) => Buildable::No(failure.clone()),
        Dereferenced::Files(_) | Dereferenced::Remote(..) => match checked() {
            Ok(build) => Buildable::Yes(Box::new(build)),
            Err(failure) => Buildable::No(failure),
        },
    };
    desired
}

fn build(
    spec: &ImageBuildSpec,
    found: &Dereferenced,
    config: &Config,
    policy: &Effective,
    image: &Reference,
) -> Result<Build, Failure> {
    let mut references = vec![image.to_string()];
    for tag in &spec.output.tags {
        if !kiln_api::reference::is_tag(tag) {
            return Err(invalid(format!("spec.output.tags: expected a tag, found '{tag}'")));
        }
        let reference = image.with_tag(tag).to_string();
        if !references.contains(&reference) {
            references.push(reference);
        }
    }
    let mut registries = policy.registries.clone();
    if spec.output.insecure && !registries.insecure.contains(&image.registry) {
        registries.insecure.push(image.registry.clone());
    }
    let args = arguments(spec, policy)?;
    let (source, source_secret) = source(spec, found, config, policy)?;
    let secrets = spec.secrets.iter().map(|s| (&s.id, &s.secret_name, &s.key));
    let ssh = spec.ssh.iter().map(|s| (&s.id, &s.secret_name, &s.key));
    let build = Build {
        source,
        source_secret,
        context_dir: spec.context_dir.clone(),
        dockerfile: spec.dockerfile.clone(),
        target: spec.target.clone(),
        args,
        secrets: given("spec.secrets", secrets)?,
        ssh: given("spec.ssh", ssh)?,
        labels: spec.labels.clone(),
        references,
        compression: match spec.output.compression {
            Some(kiln_api::v1alpha1::Compression::Zstd) => Compression::Zstd,
            Some(kiln_api::v1alpha1::Compression::Gzip) | None => Compression::Gzip,
        },
        cache: check::cache(spec, policy)?,
        cache_claim: spec.cache.as_ref().and_then(|c| c.mounts.as_ref()).map(|m| m.claim_name.clone()),
        registries,
        service_account: spec.service_account_name.clone(),
        resources: resources::resources(spec.resources.as_ref(), policy)?,
        entitlements: policy.entitlements.clone(),
        policy: Policy { base_images: policy.bases.clone(), network: policy.network.clone() },
        priority_class: spec.priority_class_name.clone(),
    };
    // The name of the attempt, its isolation and its time are not known yet.
    let size = build.request_size() + 256;
    if size > MAX_REQUEST {
        return Err(Failure::new(
            FailureClass::Source,
            reason::SOURCE_INVALID,
            format!(
                "the source's files take {size} bytes in a build request, more than the {MAX_REQUEST} that a ConfigMap holds; make them fewer or smaller"
            ),
        ));
    }
    Ok(build)
}

/// The source as the request has it, and its Secret. What a Dockerfile that is fetched says is known only in the pod.
fn source(
    spec: &ImageBuildSpec,
    found: &Dereferenced,
    config: &Config,
    policy: &Effective,
) -> Result<(Source, Option<String>), Failure> {
    match found {
        Dereferenced::Remote(remote, _) if config.source_image.is_none() => Err(Failure::new(
            FailureClass::Policy,
            reason::NOT_SUPPORTED,
            format!(
                "spec.source: this cluster's Kiln fetches no sources ({}): it has no image to do so (operator setting sourceImage)",
                match remote.source {
                    Source::Git(_) => "git",
                    Source::Oci(_) => "oci",
                    _ => "http",
                }
            ),
        )),
        Dereferenced::Remote(remote, _) => {
            if normalize(&spec.context_dir).is_none() || normalize(&spec.dockerfile).is_none() {
                return Err(outside());
            }
            Ok((remote.source.clone(), remote.secret.clone()))
        }
        Dereferenced::Files(files) => {
            check_dockerfile(spec, files, policy)?;
            Ok((Source::Files(files.clone()), None))
        }
        Dereferenced::Missing(failure) | Dereferenced::Unusable(failure) => Err(failure.clone()),
    }
}

fn outside() -> Failure {
    invalid("spec.contextDir and spec.dockerfile must be relative paths without '..'".to_owned())
}

/// The ids become file names in the courier; the schema says so as well.
fn given<'a>(
    field: &str,
    list: impl Iterator<Item = (&'a String, &'a String, &'a String)>,
) -> Result<Vec<Given>, Failure> {
    let mut out: Vec<Given> = Vec::new();
    for (id, secret, key) in list {
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if id.is_empty() || id.starts_with(['.', '-']) || !id.bytes().all(word) {
            return Err(invalid(format!("{field}: expected an id of A-Z a-z 0-9 _ . -, found '{id}'")));
        }
        if out.iter().any(|known| known.id == *id) {
            return Err(invalid(format!("{field}: the id {id} is there twice")));
        }
        out.push(Given { id: id.clone(), secret: secret.clone(), key: key.clone() });
    }
    Ok(out)
}

/// The build arguments, the epoch and the platform's proxy among them.
fn arguments(spec: &ImageBuildSpec, policy: &Effective) -> Result<BTreeMap<String, String>, Failure> {
    let mut args: BTreeMap<String, String> =
        spec.args.iter().map(|a| (a.name.clone(), a.value.clone())).collect();
    if let Some(seconds) = spec.output.source_date_epoch {
        let seconds = seconds.to_string();
        if args.insert(EPOCH.to_owned(), seconds.clone()).is_some_and(|other| other != seconds) {
            return Err(invalid(format!(
                "spec.output.sourceDateEpoch is {seconds} and the build argument {EPOCH} says otherwise; set one of them"
            )));
        }
    }
    // As `docker build` does with these names: RUN has them, image and history have not. The author's own word wins.
    for (name, value) in policy.network.proxy.iter().flat_map(Proxy::variables) {
        if !args.keys().any(|known| known.eq_ignore_ascii_case(name)) {
            args.insert(name.to_owned(), value);
        }
    }
    Ok(args)
}

impl Build {
    /// The request of an attempt, and its JSON.
    pub fn request(
        &self,
        attempt: &str,
        isolation: Isolation,
        timeout_seconds: i64,
    ) -> (BuildRequest, String) {
        let request = self.request_of(self.source.clone(), attempt, isolation, timeout_seconds);
        // A struct of strings, maps and numbers always has a JSON form.
        let json = serde_json::to_string(&request).unwrap_or_default();
        (request, json)
    }

    /// Bytes of the request's JSON, but for what an attempt adds. Every reconcile asks, so the files, which are nearly all of
    /// it, are counted where they are: neither copied nor written out.
    fn request_size(&self) -> usize {
        let nothing = Source::Files(Vec::new());
        let rest = self.request_of(nothing.clone(), "", Isolation::UserNamespace, 0);
        (json_size(&rest) + json_size(&self.source)).saturating_sub(json_size(&nothing))
    }

    fn request_of(
        &self,
        source: Source,
        attempt: &str,
        isolation: Isolation,
        timeout_seconds: i64,
    ) -> BuildRequest {
        BuildRequest {
            version: kiln_contract::VERSION,
            attempt: attempt.to_owned(),
            source,
            context_dir: self.context_dir.clone(),
            dockerfile: self.dockerfile.clone(),
            dockerfile_text: None,
            target: self.target.clone(),
            args: self.args.clone(),
            labels: self.labels.clone(),
            entitlements: self.entitlements.clone(),
            contexts: std::collections::BTreeMap::new(),
            platform: platform(),
            output: Output::Registry { references: self.references.clone(), permit: true },
            compression: self.compression,
            isolation,
            timeout_seconds: u64::try_from(timeout_seconds).unwrap_or_default(),
            registries: self.registries.clone(),
            policy: self.policy.clone(),
            cache: self.cache.clone(),
        }
    }
}

/// Bytes of a value's JSON, which goes nowhere.
fn json_size(value: &impl serde::Serialize) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Counting does not fail, and neither has a value of ours no JSON form; one that had would be too large.
    serde_json::to_writer(&mut count, value).map_or(usize::MAX / 4, |()| count.0)
}

/// Parses the Dockerfile, so that its author learns of a fault without waiting for a pod.
fn check_dockerfile(spec: &ImageBuildSpec, files: &[File], policy: &Effective) -> Result<(), Failure> {
    let Some(path) = dockerfile_path(&spec.context_dir, &spec.dockerfile) else { return Err(outside()) };
    let Some(found) = file_at(files, &path) else {
        let names: Vec<&str> = files.iter().map(|f| f.path.as_str()).take(10).collect();
        return Err(Failure::new(
            FailureClass::User,
            reason::DOCKERFILE_NOT_FOUND,
            format!("expected the Dockerfile at {path} in the source, found: {}", names.join(", ")),
        ));
    };
    let Content::Text(text) = &found.content else {
        return Err(Failure::new(
            FailureClass::User,
            reason::DOCKERFILE_INVALID,
            format!("expected {path} to be text, found binary data"),
        ));
    };
    let parsed = kiln_dockerfile::Dockerfile::parse(text.as_bytes()).map_err(|error| {
        Failure::new(FailureClass::User, reason::DOCKERFILE_INVALID, error.to_string())
            .at(&spec.dockerfile, error.position(text).0)
    })?;
    let args = spec.args.iter().map(|a| (a.name.clone(), a.value.clone())).collect();
    let refused = bases::refusal(&parsed, &spec.dockerfile, spec.target.as_deref(), &args, &policy.bases);
    refused.map_or(Ok(()), Err)
}

/// Where the Dockerfile is in the source; `None` when that leaves it.
pub(super) fn dockerfile_path(context_dir: &str, dockerfile: &str) -> Option<String> {
    let (dir, file) = (normalize(context_dir)?, normalize(dockerfile)?);
    Some(if dir.is_empty() { file } else { format!("{dir}/{file}") })
}

/// The file of that normalised path.
pub(super) fn file_at<'a>(files: &'a [File], path: &str) -> Option<&'a File> {
    files.iter().find(|f| normalize(&f.path).as_deref() == Some(path))
}

/// The path without `.` and empty parts; `None` when it leaves its root.
fn normalize(path: &str) -> Option<String> {
    if path.starts_with('/') {
        return None;
    }
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    (!parts.contains(&"..")).then(|| parts.join("/"))
}

fn seconds(text: &str) -> Result<i64, String> {
    duration::parse(text).map(|d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX)).map_err(|e| e.to_string())
}

fn invalid(message: String) -> Failure {
    Failure::new(FailureClass::User, reason::INVALID_SPEC, message)
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
