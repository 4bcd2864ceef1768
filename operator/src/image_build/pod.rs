//! The builder pod and its request, as they are asked for. Pure.
//!
//! Who gets which volume is the boundary that promises 3 and 4 of the design stand on: `build` has no credential, no token
//! and no environment; the Secrets are the courier's alone.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, ConfigMap, ConfigMapVolumeSource, Container, DownwardAPIVolumeFile,
    DownwardAPIVolumeSource, EmptyDirVolumeSource, KeyToPath, ObjectFieldSelector,
    PersistentVolumeClaimVolumeSource, Pod, PodSecurityContext, PodSpec, ProjectedVolumeSource,
    ResourceRequirements, SeccompProfile, SecretProjection, SecretVolumeSource, SecurityContext, Volume,
    VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kiln_api::v1alpha1::Resources;
use kiln_contract::control::{PERMIT_ANNOTATION, STOP_ANNOTATION};
use kiln_contract::paths;
use kiln_contract::request::Isolation;

use crate::config::Config;

use super::names;
use super::validate::{Build, Desired, Given};

/// Seconds that a pod may be active beyond the timeout, which the builder keeps itself: starting, pushing the rest,
/// reporting.
pub const DEADLINE_MARGIN: i64 = 300;
/// Seconds between SIGTERM and SIGKILL: the builder ends within 5, then the courier reports.
const GRACE_SECONDS: i64 = 60;
/// User of courier, source and git: no process of the build has it.
const NOBODY: i64 = 65_532;
/// Registry Secrets of a service account that are mounted; kubelets know no limit, a pod spec should.
pub const MAX_SECRETS: usize = 32;

/// What an attempt's objects are made from.
#[derive(Debug, Clone, Copy)]
pub struct Blueprint<'a> {
    /// The ImageBuild's name.
    pub object: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// The reference that makes pod and request its own.
    pub owner: &'a OwnerReference,
    /// Name of pod and request.
    pub name: &'a str,
    /// [`names::attempt_id`].
    pub attempt: &'a str,
    /// What is built.
    pub build: &'a Build,
    /// How.
    pub desired: &'a Desired,
    /// Names of the registry Secrets of the service account.
    pub secrets: &'a [String],
    /// The cluster's settings.
    pub config: &'a Config,
}

impl Blueprint<'_> {
    fn metadata(&self, annotations: Option<BTreeMap<String, String>>) -> ObjectMeta {
        ObjectMeta {
            name: Some(self.name.to_owned()),
            namespace: Some(self.namespace.to_owned()),
            labels: Some(names::labels(self.object)),
            annotations,
            owner_references: Some(vec![self.owner.clone()]),
            ..ObjectMeta::default()
        }
    }

    /// The request, immutable.
    pub fn request(&self) -> ConfigMap {
        let (_, json) =
            self.build.request(self.attempt, self.desired.isolation, self.desired.timeout_seconds);
        ConfigMap {
            metadata: self.metadata(None),
            data: Some(BTreeMap::from([(paths::REQUEST_KEY.to_owned(), json)])),
            immutable: Some(true),
            ..ConfigMap::default()
        }
    }

    /// The pod.
    pub fn pod(&self) -> Pod {
        let annotations = [
            (names::ATTEMPT_ANNOTATION, self.attempt),
            ("kubectl.kubernetes.io/default-container", paths::BUILD_CONTAINER),
            // A build that is moved begins anew; autoscalers wait for its end instead.
            ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"),
            ("karpenter.sh/do-not-disrupt", "true"),
            // A neighbour in the pod would share its network and outlive it.
            ("linkerd.io/inject", "disabled"),
        ];
        let annotations = annotations.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let mut metadata = self.metadata(Some(annotations.into()));
        let labels = metadata.labels.get_or_insert_default();
        labels.insert("sidecar.istio.io/inject".to_owned(), "false".to_owned());
        Pod {
            metadata,
            spec: Some(PodSpec {
                init_containers: Some(
                    [self.courier()].into_iter().chain(self.source()).chain(self.git()).collect(),
                ),
                containers: vec![self.build_container()],
                volumes: Some(self.volumes()),
                service_account_name: Some(self.build.service_account.clone()),
                automount_service_account_token: Some(false),
                enable_service_links: Some(false),
                host_users: Some(self.desired.isolation == Isolation::HostRange),
                restart_policy: Some("Never".to_owned()),
                priority_class_name: self.build.priority_class.clone(),
                active_deadline_seconds: Some(self.desired.timeout_seconds + DEADLINE_MARGIN),
                termination_grace_period_seconds: Some(GRACE_SECONDS),
                security_context: Some(PodSecurityContext::default()),
                ..PodSpec::default()
            }),
            ..Pod::default()
        }
    }

    /// What steps are given: the volume's name, where the courier has it, and what is in it.
    fn given(&self) -> impl Iterator<Item = (&'static str, &'static str, &[Given])> {
        let all = [
            ("secrets", paths::SECRETS_DIR, self.build.secrets.as_slice()),
            ("ssh", paths::SSH_DIR, self.build.ssh.as_slice()),
        ];
        all.into_iter().filter(|(_, _, list)| !list.is_empty())
    }

    fn courier(&self) -> Container {
        let mut mounts = vec![
            read_only("request", paths::REQUEST_DIR),
            mount("socket", paths::SOCKET_DIR),
            read_only("control", paths::CONTROL_DIR),
            mount("state", paths::STATE_DIR),
        ];
        mounts.extend(
            (0..self.secrets.len()).map(|n| read_only(&auth(n), &format!("{}/{n}", paths::AUTH_DIR))),
        );
        mounts.extend(self.given().map(|(name, path, _)| read_only(name, path)));
        if self.has_git() {
            // A socket can be connected to all the same, and not be replaced.
            mounts.push(read_only("git", paths::GIT_DIR));
        }
        Container {
            name: paths::COURIER_CONTAINER.to_owned(),
            image: Some(self.config.builder_image.clone()),
            image_pull_policy: Some(self.config.image_pull_policy.as_str().to_owned()),
            command: Some(vec!["/kiln-courier".to_owned()]),
            // A native sidecar: there before `build`, told to end after it.
            restart_policy: Some("Always".to_owned()),
            security_context: Some(nobody()),
            resources: Some(ResourceRequirements {
                // It holds one chunk of at most 8 MiB per transfer, however large a layer is.
                requests: Some(quantities(&[("cpu", "50m"), ("memory", "48Mi")])),
                limits: Some(quantities(&[("memory", "256Mi")])),
                ..ResourceRequirements::default()
            }),
            volume_mounts: Some(mounts),
            termination_message_path: Some(paths::TERMINATION_LOG.to_owned()),
            // The report, and never the log in its place.
            termination_message_policy: Some("File".to_owned()),
            ..Container::default()
        }
    }

    fn build_container(&self) -> Container {
        let mut mounts = vec![
            read_only("request", paths::REQUEST_DIR),
            mount("socket", paths::SOCKET_DIR),
            mount("work", paths::WORK_DIR),
        ];
        if self.fetches() {
            mounts.push(read_only("context", paths::CONTEXT_DIR));
        }
        if self.build.cache_claim.is_some() {
            mounts.push(mount("cache-mounts", paths::CACHE_MOUNTS_DIR));
        }
        let own_users = self.desired.isolation == Isolation::UserNamespace;
        Container {
            name: paths::BUILD_CONTAINER.to_owned(),
            image: Some(self.config.builder_image.clone()),
            image_pull_policy: Some(self.config.image_pull_policy.as_str().to_owned()),
            command: Some(vec!["/kiln-builder".to_owned()]),
            security_context: Some(SecurityContext {
                run_as_user: Some(0),
                run_as_group: Some(0),
                read_only_root_filesystem: Some(true),
                // Setuid programs of a step (`sudo`) work as in docker; they mean nothing outside its namespace.
                allow_privilege_escalation: Some(true),
                capabilities: Some(Capabilities {
                    drop: Some(vec!["ALL".to_owned()]),
                    // To write the id maps of the step's user namespace, and nothing else.
                    add: Some(vec!["SETUID".to_owned(), "SETGID".to_owned()]),
                }),
                proc_mount: (own_users && self.config.proc_mount_unmasked).then(|| "Unmasked".to_owned()),
                seccomp_profile: self
                    .config
                    .seccomp_profile
                    .as_deref()
                    .map(|p| seccomp("Localhost", Some(p))),
                app_armor_profile: self.config.app_armor_profile.as_deref().map(app_armor),
                ..SecurityContext::default()
            }),
            resources: Some(resources(&self.build.resources)),
            volume_mounts: Some(mounts),
            termination_message_policy: Some("File".to_owned()),
            ..Container::default()
        }
    }

    fn volumes(&self) -> Vec<Volume> {
        let annotation = |key: &str, path: &str| DownwardAPIVolumeFile {
            path: path.to_owned(),
            field_ref: Some(ObjectFieldSelector {
                field_path: format!("metadata.annotations['{key}']"),
                ..ObjectFieldSelector::default()
            }),
            ..DownwardAPIVolumeFile::default()
        };
        let mut volumes = vec![
            Volume {
                name: "request".to_owned(),
                config_map: Some(ConfigMapVolumeSource { name: self.name.to_owned(), ..Default::default() }),
                ..Volume::default()
            },
            // A socket and nothing else.
            scratch("socket", "1Mi"),
            Volume {
                name: "control".to_owned(),
                downward_api: Some(DownwardAPIVolumeSource {
                    items: Some(vec![
                        annotation(PERMIT_ANNOTATION, paths::PERMIT_FILE),
                        annotation(STOP_ANNOTATION, paths::STOP_FILE),
                    ]),
                    ..DownwardAPIVolumeSource::default()
                }),
                ..Volume::default()
            },
            // The journal's state (256 KiB for 200 steps) and a manifest.
            scratch("state", "8Mi"),
            scratch("work", &self.config.defaults.work_size_limit),
        ];
        volumes.extend(self.secrets.iter().enumerate().map(|(n, secret)| Volume {
            name: auth(n),
            secret: Some(SecretVolumeSource {
                secret_name: Some(secret.clone()),
                // Of another type, or not there: the courier names what it looked for when it needs it.
                optional: Some(true),
                default_mode: Some(0o444),
                items: Some(vec![KeyToPath {
                    key: ".dockerconfigjson".to_owned(),
                    path: paths::AUTH_FILE.to_owned(),
                    mode: None,
                }]),
            }),
            ..Volume::default()
        }));
        volumes.extend(self.given().map(|(name, _, list)| given_volume(name, list)));
        volumes.extend(self.build.cache_claim.iter().map(|claim| Volume {
            name: "cache-mounts".to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.clone(),
                read_only: None,
            }),
            ..Volume::default()
        }));
        volumes.extend(self.source_volumes());
        volumes.extend(self.git_volumes());
        volumes
    }
}

/// One directory with a file per id. A Secret or key that is not there keeps the pod from starting.
fn given_volume(name: &str, list: &[Given]) -> Volume {
    let projection = |given: &Given| VolumeProjection {
        secret: Some(SecretProjection {
            name: given.secret.clone(),
            items: Some(vec![KeyToPath { key: given.key.clone(), path: given.id.clone(), mode: None }]),
            optional: Some(false),
        }),
        ..VolumeProjection::default()
    };
    Volume {
        name: name.to_owned(),
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(0o444),
            sources: Some(list.iter().map(projection).collect()),
        }),
        ..Volume::default()
    }
}

fn auth(number: usize) -> String {
    format!("auth-{number}")
}

pub(super) fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

pub(super) fn read_only(name: &str, path: &str) -> VolumeMount {
    VolumeMount { read_only: Some(true), ..mount(name, path) }
}

pub(super) fn scratch(name: &str, limit: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource { medium: None, size_limit: Some(Quantity(limit.to_owned())) }),
        ..Volume::default()
    }
}

/// No user of the build, no capability, nothing to write to.
pub(super) fn nobody() -> SecurityContext {
    SecurityContext {
        run_as_user: Some(NOBODY),
        run_as_group: Some(NOBODY),
        run_as_non_root: Some(true),
        read_only_root_filesystem: Some(true),
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        seccomp_profile: Some(seccomp("RuntimeDefault", None)),
        ..SecurityContext::default()
    }
}

fn seccomp(kind: &str, profile: Option<&str>) -> SeccompProfile {
    SeccompProfile { type_: kind.to_owned(), localhost_profile: profile.map(str::to_owned) }
}

fn app_armor(profile: &str) -> AppArmorProfile {
    match profile {
        "Unconfined" => AppArmorProfile { type_: profile.to_owned(), localhost_profile: None },
        name => AppArmorProfile { type_: "Localhost".to_owned(), localhost_profile: Some(name.to_owned()) },
    }
}

pub(super) fn quantities(list: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
    list.iter().map(|(name, value)| ((*name).to_owned(), Quantity((*value).to_owned()))).collect()
}

fn resources(resources: &Resources) -> ResourceRequirements {
    let side = |map: &BTreeMap<String, IntOrString>| {
        let text = |value: &IntOrString| match value {
            IntOrString::Int(number) => number.to_string(),
            IntOrString::String(text) => text.clone(),
        };
        (!map.is_empty()).then(|| map.iter().map(|(k, v)| (k.clone(), Quantity(text(v)))).collect())
    };
    ResourceRequirements {
        requests: side(&resources.requests),
        limits: side(&resources.limits),
        claims: None,
    }
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
