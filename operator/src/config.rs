//! The cluster's settings: one YAML file that the chart fills. What is wrong in it is refused at start, by line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kiln_api::v1alpha1::{Isolation, Resources};
use kiln_contract::request::Registries;
use serde::Deserialize;

/// Bytes of the file at most: a ConfigMap holds 1 MiB.
const MAX_CONFIG: u64 = 1 << 20;

/// Settings that hold for the whole cluster.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Image of both containers of a builder pod, with `/kiln-builder` and `/kiln-courier` in it.
    pub builder_image: String,
    /// Image of the container that fetches sources, with `/kiln-source`, git and ssh in it. Without it only sources in the
    /// object and in ConfigMaps can be built.
    #[serde(default)]
    pub source_image: Option<String>,
    /// When the kubelet pulls them.
    #[serde(default)]
    pub image_pull_policy: PullPolicy,
    /// Isolation of builds that name none.
    #[serde(default = "user_namespace")]
    pub isolation: Isolation,
    /// Isolations that a build may name.
    #[serde(default = "all_isolations")]
    pub allowed_isolations: Vec<Isolation>,
    /// Localhost seccomp profile of the build container, below the kubelet's seccomp directory; unset when absent.
    #[serde(default)]
    pub seccomp_profile: Option<String>,
    /// AppArmor profile of the build container: the name of one that is loaded on the nodes, or `Unconfined`; unset when
    /// absent.
    #[serde(default)]
    pub app_armor_profile: Option<String>,
    /// Whether the build container's /proc is unmasked (`UserNamespace` only).
    #[serde(default = "yes")]
    pub proc_mount_unmasked: bool,
    /// Mirrors and plain-HTTP registries.
    #[serde(default)]
    pub registries: Registries,
    /// For builds that do not say it themselves.
    #[serde(default)]
    pub defaults: Defaults,
    /// Builds that run at the same time, in all; 0 for no limit.
    #[serde(default)]
    pub max_concurrent_builds: usize,
    /// Builds of one namespace that run at the same time; 0 for no limit.
    #[serde(default)]
    pub max_concurrent_builds_per_namespace: usize,
    /// Namespaces to build in; all when empty.
    #[serde(default)]
    pub watch_namespaces: Vec<String>,
    /// How long a pod may wait for a node before the build fails as `Unschedulable`: long enough for a cluster to grow, or for
    /// other pods to end.
    #[serde(default = "one_hour")]
    pub pod_scheduling_deadline: Span,
    /// How long a pod may take to start before the build fails as `PodStartFailed`, and how long a missing ConfigMap or
    /// ServiceAccount is waited for.
    #[serde(default = "five_minutes")]
    pub pod_start_grace: Span,
}

/// What builds get that do not say it themselves.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Defaults {
    /// Of an attempt.
    #[serde(default = "one_hour")]
    pub timeout: Span,
    /// Of the build container.
    #[serde(default)]
    pub resources: DefaultResources,
    /// Size limit of the builder's workspace; the kubelet evicts a pod that goes over it.
    #[serde(default = "fifty_gib")]
    pub work_size_limit: String,
}

/// Requests and limits by resource name.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DefaultResources {
    /// What the scheduler sets aside.
    #[serde(default)]
    pub requests: BTreeMap<String, IntOrString>,
    /// What may be used at most.
    #[serde(default)]
    pub limits: BTreeMap<String, IntOrString>,
}

impl From<&DefaultResources> for Resources {
    fn from(defaults: &DefaultResources) -> Self {
        Self { requests: defaults.requests.clone(), limits: defaults.limits.clone() }
    }
}

/// When the kubelet pulls an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum PullPolicy {
    /// Each time.
    Always,
    /// When the node does not have it.
    #[default]
    IfNotPresent,
    /// Not at all.
    Never,
}

impl PullPolicy {
    /// The word that a pod uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// A duration as users write it (`1h30m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

impl TryFrom<String> for Span {
    type Error = kiln_api::duration::InvalidDuration;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        kiln_api::duration::parse(&text).map(Self)
    }
}

impl Span {
    /// Whole seconds.
    pub fn seconds(self) -> i64 {
        i64::try_from(self.0.as_secs()).unwrap_or(i64::MAX)
    }
}

/// The settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the settings from {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is too long.
    #[error("{} has {size} bytes, more than the {MAX_CONFIG} allowed for settings", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        size: u64,
    },
    /// A line of it is wrong.
    #[error("{}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        message: String,
    },
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// It can't be read, a field is unknown or wrong (with its line), or a value makes no sense.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let size = std::fs::metadata(path).map_err(read)?.len();
        if size > MAX_CONFIG {
            return Err(ConfigError::TooLong { path: path.to_owned(), size });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::parse(&text).map_err(|message| ConfigError::Invalid { path: path.to_owned(), message })
    }

    /// Reads and checks the text.
    ///
    /// # Errors
    /// What is wrong, with the line where there is one.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.builder_image.trim().is_empty() {
            return Err("builderImage: expected an image reference, found nothing".to_owned());
        }
        if self.source_image.as_ref().is_some_and(|image| image.trim().is_empty()) {
            return Err("sourceImage: expected an image reference, found nothing".to_owned());
        }
        if !self.allowed_isolations.contains(&self.isolation) {
            return Err(format!(
                "isolation: {} is the default but is not in allowedIsolations",
                self.isolation.as_str()
            ));
        }
        if let Some(profile) = &self.seccomp_profile
            && (profile.is_empty()
                || profile.starts_with('/')
                || profile.split('/').any(|part| part == ".." || part.is_empty()))
        {
            return Err(format!(
                "seccompProfile: expected a path below the kubelet's seccomp directory like kiln/build.json, found '{profile}'"
            ));
        }
        let quantities = self.defaults.resources.requests.iter().chain(&self.defaults.resources.limits);
        for (name, value) in quantities {
            if let IntOrString::String(text) = value {
                quantity(text).map_err(|e| format!("defaults.resources: {name}: {e}"))?;
            }
        }
        quantity(&self.defaults.work_size_limit).map_err(|e| format!("defaults.workSizeLimit: {e}"))?;
        let timeout = self.defaults.timeout.seconds();
        if !(1..=86_400).contains(&timeout) {
            return Err(format!("defaults.timeout: expected 1s to 24h, found {timeout}s"));
        }
        Ok(())
    }
}

/// Checks the form of a Kubernetes quantity: digits, a fraction perhaps, a known suffix.
fn quantity(text: &str) -> Result<(), String> {
    const SUFFIXES: [&str; 16] =
        ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    let dots = number.bytes().filter(|b| *b == b'.').count();
    if digits > 0 && digits + dots == number.len() && dots <= 1 && SUFFIXES.contains(&&text[number.len()..]) {
        Ok(())
    } else {
        Err(format!("expected a quantity like 500m or 2Gi, found '{text}'"))
    }
}

impl Default for Defaults {
    fn default() -> Self {
        Self { timeout: one_hour(), resources: DefaultResources::default(), work_size_limit: fifty_gib() }
    }
}

fn user_namespace() -> Isolation {
    Isolation::UserNamespace
}

fn all_isolations() -> Vec<Isolation> {
    vec![Isolation::UserNamespace, Isolation::HostRange]
}

fn yes() -> bool {
    true
}

fn five_minutes() -> Span {
    Span(Duration::from_secs(300))
}

fn one_hour() -> Span {
    Span(Duration::from_secs(3600))
}

fn fifty_gib() -> String {
    "50Gi".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_and_the_least_file_are_read() {
        let full = Config::parse(
            "builderImage: kiln.local/kiln-builder:1\nimagePullPolicy: Always\nisolation: HostRange\n\
             seccompProfile: kiln/build.json\nprocMountUnmasked: false\n\
             registries:\n  mirrors:\n  - registry: docker.io\n    mirrors: [a.b:5000/hub]\n  insecure: []\n\
             defaults:\n  timeout: 30m\n  resources:\n    requests: {cpu: 1, memory: 512Mi}\n    limits: {memory: 4Gi}\n\
             maxConcurrentBuilds: 20\nmaxConcurrentBuildsPerNamespace: 5\nwatchNamespaces: []\npodSchedulingDeadline: \"30m\"\npodStartGrace: \"10m\"\n",
        )
        .expect("it is good");
        assert_eq!(full.registries.mirrors[0].mirrors, ["a.b:5000/hub"]);
        assert_eq!(full.defaults.resources.requests["cpu"], IntOrString::Int(1));
        assert_eq!(full.defaults.timeout.seconds(), 1800);
        assert_eq!((full.max_concurrent_builds, full.max_concurrent_builds_per_namespace), (20, 5));
        let least = Config::parse("builderImage: a").expect("it is good");
        assert_eq!((least.isolation, least.pod_start_grace.seconds()), (Isolation::UserNamespace, 300));
        assert_eq!((least.max_concurrent_builds, least.max_concurrent_builds_per_namespace), (0, 0));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, words) in [
            ("builderImage: a\nisolaton: HostRange\n", vec!["isolaton", "2"]),
            ("builderImage: a\nisolation: None\n", vec!["None", "2"]),
            ("builderImage: a\npodStartGrace: soon\n", vec!["expected a duration", "soon", "2"]),
            ("builderImage: a\ndefaults:\n  timeout: 1h\n  ressources: {}\n", vec!["ressources", "4"]),
            ("isolation: HostRange\n", vec!["builderImage"]),
            ("builderImage: ''\n", vec!["builderImage"]),
            ("builderImage: a\nsourceImage: ''\n", vec!["sourceImage"]),
            ("builderImage: a\nseccompProfile: /etc/x\n", vec!["seccompProfile", "/etc/x"]),
            ("builderImage: a\nallowedIsolations: [HostRange]\n", vec!["isolation", "UserNamespace"]),
            ("builderImage: a\ndefaults: {resources: {limits: {memory: 4GiB}}}\n", vec!["memory", "4GiB"]),
            ("builderImage: [a\n", vec!["1"]),
        ] {
            let error = Config::parse(text).expect_err(text);
            for word in words {
                assert!(error.contains(word), "{word:?} is not in: {error}");
            }
        }
    }
}
