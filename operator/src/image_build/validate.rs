//! From what the user wrote to what can be built, or to why not. Pure; nothing after it reads the raw spec.

use std::collections::BTreeMap;

use kiln_api::reference::Reference;
use kiln_api::v1alpha1::Resources;
use kiln_api::{ImageBuildSpec, duration};
use kiln_contract::request::{
    BuildRequest, Content, File, Isolation, MAX_REQUEST, Output, Registries, Source,
};
use kiln_contract::{Failure, FailureClass, reason};

use crate::config::Config;

use super::dereference::Dereferenced;
use super::digest;

/// The build argument behind `spec.output.sourceDateEpoch`.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// What the object asks for, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// [`digest::input_digest`].
    pub input_digest: String,
    /// [`digest::source_digest`]; absent when the source is missing.
    pub source_digest: Option<String>,
    /// How steps are kept apart.
    pub isolation: Isolation,
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
    pub files: Vec<File>,
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
    /// Mirrors and plain-HTTP registries, the output's among them where the user said so.
    pub registries: Registries,
    /// Whose `imagePullSecrets` and `secrets` to use.
    pub service_account: String,
    /// Of the build container.
    pub resources: Resources,
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

/// Checks the object against the cluster's settings.
pub fn validate(spec: &ImageBuildSpec, found: &Dereferenced, config: &Config) -> Desired {
    let (files, fault) = match found {
        Dereferenced::Files(files) => (Some(files.as_slice()), None),
        Dereferenced::Missing(failure) => (None, Some(Buildable::NotYet(failure.clone()))),
        Dereferenced::Unusable(failure) => (None, Some(Buildable::No(failure.clone()))),
    };
    let source_digest = files.map(digest::source_digest);
    let wanted = spec.isolation.unwrap_or(config.isolation);
    let mut desired = Desired {
        input_digest: digest::input_digest(spec, source_digest.as_deref()),
        source_digest,
        isolation: match wanted {
            kiln_api::v1alpha1::Isolation::UserNamespace => Isolation::UserNamespace,
            kiln_api::v1alpha1::Isolation::HostRange => Isolation::HostRange,
        },
        timeout_seconds: config.defaults.timeout.seconds(),
        retries: usize::try_from(spec.retries).unwrap_or_default(),
        pod_ttl_seconds: seconds(&spec.pod_ttl).unwrap_or(86_400),
        suspend: spec.suspend,
        buildable: Buildable::NotYet(Failure::new(FailureClass::Source, reason::SOURCE_NOT_FOUND, "")),
    };
    desired.buildable = fault.unwrap_or_else(|| {
        if !config.allowed_isolations.contains(&wanted) {
            return Buildable::No(Failure::new(
                FailureClass::Policy,
                reason::INVALID_SPEC,
                format!(
                    "spec.isolation: {} is not allowed in this cluster (operator setting allowedIsolations)",
                    wanted.as_str()
                ),
            ));
        }
        match build(spec, files.unwrap_or_default(), config) {
            Ok(build) => Buildable::Yes(Box::new(build)),
            Err(failure) => Buildable::No(failure),
        }
    });
    if let Some(text) = &spec.timeout {
        match seconds(text) {
            Ok(timeout) => desired.timeout_seconds = timeout,
            Err(message) => desired.buildable = Buildable::No(invalid(format!("spec.timeout: {message}"))),
        }
    }
    desired
}

fn build(spec: &ImageBuildSpec, files: &[File], config: &Config) -> Result<Build, Failure> {
    let image =
        Reference::parse(&spec.output.image).map_err(|e| invalid(format!("spec.output.image: {e}")))?;
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
    let mut registries = config.registries.clone();
    if spec.output.insecure && !registries.insecure.contains(&image.registry) {
        registries.insecure.push(image.registry.clone());
    }
    check_dockerfile(spec, files)?;
    let secrets = spec.secrets.iter().map(|s| (&s.id, &s.secret_name, &s.key));
    let ssh = spec.ssh.iter().map(|s| (&s.id, &s.secret_name, &s.key));
    let build = Build {
        files: files.to_vec(),
        context_dir: spec.context_dir.clone(),
        dockerfile: spec.dockerfile.clone(),
        target: spec.target.clone(),
        args: arguments(spec)?,
        secrets: given("spec.secrets", secrets)?,
        ssh: given("spec.ssh", ssh)?,
        labels: spec.labels.clone(),
        references,
        registries,
        service_account: spec.service_account_name.clone(),
        resources: spec.resources.clone().unwrap_or_else(|| (&config.defaults.resources).into()),
    };
    let size = build.request("", Isolation::UserNamespace, 0).1.len() + 256;
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

/// The build arguments, the epoch among them.
fn arguments(spec: &ImageBuildSpec) -> Result<BTreeMap<String, String>, Failure> {
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
        let request = BuildRequest {
            version: kiln_contract::VERSION,
            attempt: attempt.to_owned(),
            source: Source::Files(self.files.clone()),
            context_dir: self.context_dir.clone(),
            dockerfile: self.dockerfile.clone(),
            dockerfile_text: None,
            target: self.target.clone(),
            args: self.args.clone(),
            labels: self.labels.clone(),
            entitlements: Vec::new(),
            contexts: std::collections::BTreeMap::new(),
            platform: platform(),
            output: Output::Registry { references: self.references.clone(), permit: true },
            isolation,
            timeout_seconds: u64::try_from(timeout_seconds).unwrap_or_default(),
            registries: self.registries.clone(),
        };
        // A struct of strings, maps and numbers always has a JSON form.
        let json = serde_json::to_string(&request).unwrap_or_default();
        (request, json)
    }
}

/// Parses the Dockerfile, so that its author learns of a fault without waiting for a pod.
fn check_dockerfile(spec: &ImageBuildSpec, files: &[File]) -> Result<(), Failure> {
    let (Some(dir), Some(file)) = (normalize(&spec.context_dir), normalize(&spec.dockerfile)) else {
        return Err(invalid(
            "spec.contextDir and spec.dockerfile must be relative paths without '..'".to_owned(),
        ));
    };
    let path = if dir.is_empty() { file } else { format!("{dir}/{file}") };
    let Some(found) = files.iter().find(|f| normalize(&f.path).as_deref() == Some(&path)) else {
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
    match kiln_dockerfile::Dockerfile::parse(text.as_bytes()) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::new(FailureClass::User, reason::DOCKERFILE_INVALID, error.to_string())
            .at(&spec.dockerfile, error.position(text).0)),
    }
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
mod tests {
    use super::*;
    use kiln_api::v1alpha1;

    fn config(more: &str) -> Config {
        Config::parse(&format!("builderImage: b\n{more}")).expect("it is good")
    }

    fn spec() -> ImageBuildSpec {
        ImageBuildSpec {
            output: v1alpha1::Output {
                image: "reg.x:5000/a".into(),
                tags: vec!["v1".into()],
                insecure: true,
                source_date_epoch: None,
            },
            ..ImageBuildSpec::default()
        }
    }

    fn files(list: &[(&str, &str)]) -> Dereferenced {
        let file = |(path, text): &(&str, &str)| File {
            path: (*path).to_owned(),
            content: Content::Text((*text).to_owned()),
        };
        Dereferenced::Files(list.iter().map(file).collect())
    }

    fn refused(spec: &ImageBuildSpec, found: &Dereferenced, config: &Config) -> Failure {
        match validate(spec, found, config).buildable {
            Buildable::No(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_good_object_becomes_a_request() {
        let desired = validate(
            &spec(),
            &files(&[("Dockerfile", "FROM scratch\n")]),
            &config("defaults: {timeout: 5m}"),
        );
        assert_eq!((desired.timeout_seconds, desired.pod_ttl_seconds, desired.retries), (300, 86_400, 2));
        let Buildable::Yes(build) = &desired.buildable else { panic!("{desired:?}") };
        let (request, json) = build.request("u-1-1", desired.isolation, desired.timeout_seconds);
        assert_eq!(BuildRequest::parse(json.as_bytes()), Ok(request.clone()));
        assert_eq!(
            request.output,
            Output::Registry {
                references: vec!["reg.x:5000/a:latest".into(), "reg.x:5000/a:v1".into()],
                permit: true
            }
        );
        assert_eq!(request.registries.insecure, ["reg.x:5000"]);
        assert!(request.platform.starts_with("linux/"));
    }

    #[test]
    fn an_epoch_is_a_build_argument() {
        let mut spec = spec();
        spec.output.source_date_epoch = Some(7);
        let found = files(&[("Dockerfile", "FROM scratch\n")]);
        let Buildable::Yes(build) = validate(&spec, &found, &config("")).buildable else {
            panic!("not buildable")
        };
        assert_eq!(build.args[EPOCH], "7");
        spec.args = vec![v1alpha1::BuildArg { name: EPOCH.into(), value: "8".into() }];
        assert!(refused(&spec, &found, &config("")).message.contains("sourceDateEpoch"));
    }

    #[test]
    fn the_dockerfile_is_looked_for_where_the_spec_says() {
        let mut spec = spec();
        spec.context_dir = "./sub/".into();
        spec.dockerfile = "build//Dockerfile".into();
        let found = files(&[("sub/build/Dockerfile", "FROM scratch\n")]);
        assert!(matches!(validate(&spec, &found, &config("")).buildable, Buildable::Yes(_)));
        let failure = refused(&spec, &files(&[("Dockerfile", "")]), &config(""));
        assert_eq!(failure.reason, reason::DOCKERFILE_NOT_FOUND);
        assert!(failure.message.contains("sub/build/Dockerfile"), "{failure}");
    }

    #[test]
    fn a_fault_in_the_dockerfile_is_named_with_its_line() {
        let failure = refused(&spec(), &files(&[("Dockerfile", "FROM scratch\nRUNN x\n")]), &config(""));
        assert_eq!((failure.reason.as_str(), failure.line), (reason::DOCKERFILE_INVALID, Some(2)));
        assert!(failure.to_string().starts_with("Dockerfile:2: "), "{failure}");
        assert!(failure.message.contains("did you mean RUN"), "{failure}");
    }

    #[test]
    fn what_the_cluster_forbids_or_the_spec_garbles_is_refused() {
        let found = files(&[("Dockerfile", "FROM scratch\n")]);
        let mut spec = spec();
        spec.isolation = Some(v1alpha1::Isolation::HostRange);
        let failure = refused(&spec, &found, &config("allowedIsolations: [UserNamespace]"));
        assert_eq!(failure.class, FailureClass::Policy);
        spec.isolation = None;
        spec.timeout = Some("soon".into());
        assert!(refused(&spec, &found, &config("")).message.contains("spec.timeout"));
        spec.timeout = None;
        for ids in [&["../x"][..], &["a", "a"], &[""]] {
            let one = |id: &&str| v1alpha1::BuildSecret { id: (*id).into(), ..Default::default() };
            spec.secrets = ids.iter().map(one).collect();
            assert!(refused(&spec, &found, &config("")).message.contains("spec.secrets"), "{ids:?}");
        }
        spec.secrets.clear();
        spec.output.image = "A b".into();
        assert!(refused(&spec, &found, &config("")).message.contains("spec.output.image"));
    }

    #[test]
    fn a_source_that_escapes_past_a_config_map_is_refused() {
        let quotes = "\"".repeat(600 << 10);
        let found = files(&[("Dockerfile", "FROM scratch\n"), ("q", &quotes)]);
        assert_eq!(refused(&spec(), &found, &config("")).reason, reason::SOURCE_INVALID);
    }
}
