//! `ImageBuild` and its spec: "this source, built this way, is at this tag".
#![expect(clippy::duplicated_attributes, reason = "each printcolumn has the same keys")]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{BuildSecret, Cache, ImageBuildStatus, Output, Source, SshKey};

/// What is to be built, how, and where the image goes.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "kiln.build",
    version = "v1alpha1",
    kind = "ImageBuild",
    plural = "imagebuilds",
    singular = "imagebuild",
    namespaced,
    status = "ImageBuildStatus",
    shortname = "ib",
    category = "kiln",
    derive = "PartialEq",
    doc = "An image that is kept built: this source, built this way, is at this tag. Editing it builds again; applying it unchanged does not.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether the image of the current spec is at its tag"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        description = "Why, in one word"
    ),
    printcolumn(
        name = "Step",
        type_ = "string",
        json_path = ".status.progress",
        description = "Steps of the Dockerfile that are done, of all"
    ),
    printcolumn(
        name = "Image",
        type_ = "string",
        json_path = ".status.output",
        description = "Where the image goes"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Digest",
        type_ = "string",
        json_path = ".status.image.digest",
        description = "Digest of the last image that was pushed",
        priority = 1
    ),
    printcolumn(
        name = "Duration",
        type_ = "string",
        json_path = ".status.duration",
        description = "How long the latest run took",
        priority = 1
    ),
    printcolumn(
        name = "Isolation",
        type_ = "string",
        json_path = ".status.isolation",
        description = "How steps are kept apart from the node",
        priority = 1
    )
)]
#[cfg_attr(test, kube(cel))]
#[serde(rename_all = "camelCase")]
pub struct ImageBuildSpec {
    /// Where the files of the build context come from.
    pub source: Source,
    /// Directory within the source that is the build context, relative, `.` for all of it. At most 512 characters.
    #[serde(default = "dot")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("!self.startsWith('/') && self.split('/').all(p, p != '..')").message("must be a relative path without '..'")
    )]
    pub context_dir: String,
    /// Path of the Dockerfile within the build context. At most 512 characters.
    #[serde(default = "dockerfile")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("!self.startsWith('/') && self.split('/').all(p, p != '..')").message("must be a relative path without '..'")
    )]
    pub dockerfile: String,
    /// Name or number of the stage to build, as `docker build --target`; the last one when absent. At most 128 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"))]
    pub target: Option<String>,
    /// Build arguments, as `docker build --build-arg`. At most 100. Not for secrets, which can be read in the object and in
    /// the image's history then; see `secrets`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub args: Vec<BuildArg>,
    /// Secrets that steps can mount (`RUN --mount=type=secret`), as `docker build --secret`. At most 32. A secret reaches the
    /// step that mounts it and no other, and neither the image nor its history. A change of a Secret's contents starts no
    /// new run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub secrets: Vec<BuildSecret>,
    /// Private keys that steps can sign with (`RUN --mount=type=ssh`), as `docker build --ssh`. At most 32. A step gets an
    /// agent that signs, and never the key. A change of a Secret's contents starts no new run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub ssh: Vec<SshKey>,
    /// Labels that are added to the image's config, as `docker build --label`. At most 64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub labels: BTreeMap<String, String>,
    /// Where the image goes.
    #[serde(default)]
    pub output: Output,
    /// Where results of steps are looked up, and kept for later builds, and what their cache mounts hold; nowhere when absent,
    /// unless a BuildPolicy names a repository. Does not start a new run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// How the steps are kept apart from the node; the cluster's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// ServiceAccount of this namespace whose `imagePullSecrets` hold the registry credentials, for base images and for
    /// the push, and whose `secrets` list what `secrets`, `ssh` and the source's `secretName` name. Its token is not mounted.
    #[serde(default = "default_service_account")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub service_account_name: String,
    /// Resources of the build container; the cluster's defaults when absent. Does not start a new run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// PriorityClass of the builder pod. Its value also orders the builds of this namespace that wait in the queue: higher
    /// ones first. It overtakes no other namespace's. The cluster's default class when absent. Does not start a new run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    #[x_kube(
        validation = Rule::new("!self.startsWith('system-')").message("must not be one of the cluster's own classes (system-...)")
    )]
    pub priority_class_name: Option<String>,
    /// How long an attempt may take, as a Go duration (`90s`, `1h`, `1h30m`), 1s to 24h; the cluster's default (1h unless
    /// set otherwise) when absent. Does not start a new run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 16), regex(pattern = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')").message("must be between 1s and 24h")
    )]
    pub timeout: Option<String>,
    /// How many further attempts a run gets after infrastructure faults (eviction, node loss), 0 to 10. Failures of the
    /// Dockerfile, the source or the registry are not tried again. Does not start a new run.
    #[serde(default = "two")]
    #[schemars(range(min = 0, max = 10))]
    pub retries: i32,
    /// Stops the run that is under way and starts none; false resumes. What is finished stays as it is.
    #[serde(default)]
    pub suspend: bool,
    /// How long the pod of an ended attempt is kept for its log, as a Go duration (`30m`, `24h`), 0s to 720h. Does not start
    /// a new run.
    #[serde(default = "day", rename = "podTTL")]
    #[schemars(length(min = 2, max = 16), regex(pattern = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
    #[x_kube(
        validation = Rule::new("duration(self) <= duration('720h')").message("must be at most 720h")
    )]
    pub pod_ttl: String,
}

/// A build argument.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildArg {
    /// Name of the ARG, 1 to 128 characters of `[A-Za-z0-9_]`, not beginning with a digit.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,
    /// Its value, at most 8192 characters.
    #[serde(default)]
    #[schemars(length(max = 8192))]
    pub value: String,
}

/// How the steps are kept apart from the node; the cluster's default when absent. `UserNamespace`: the pod has a user
/// namespace of its own. `HostRange`: steps get a high range of the node's ids, for nodes without user namespaces for pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Isolation {
    /// The pod has a user namespace of its own (`hostUsers: false`), steps get a part of its ids. The strongest.
    UserNamespace,
    /// The pod has the node's ids and steps get a high range of them: for nodes without user namespaces for pods.
    HostRange,
}

impl Isolation {
    /// The word that the object uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UserNamespace => "UserNamespace",
            Self::HostRange => "HostRange",
        }
    }
}

/// Resources of the build container, as in a pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler sets aside, by resource name: `cpu` in cores (`500m`), `memory` and `ephemeral-storage` in bytes (`2Gi`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub requests: BTreeMap<String, IntOrString>,
    /// What the container may use at most, in the same units. A build over its memory limit fails as `OutOfMemory`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub limits: BTreeMap<String, IntOrString>,
}

/// A map of quantities. The pattern is the one that Kubernetes' own CRDs carry for `resource.Quantity`.
pub(super) fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {
            "description": "A quantity: a number with an optional suffix (m, k, Ki, M, Mi, G, Gi, ...).",
            "x-kubernetes-int-or-string": true,
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
        }
    })
}

fn dot() -> String {
    ".".to_owned()
}

fn dockerfile() -> String {
    "Dockerfile".to_owned()
}

fn default_service_account() -> String {
    "default".to_owned()
}

fn two() -> i32 {
    2
}

fn day() -> String {
    "24h".to_owned()
}

impl Default for ImageBuildSpec {
    /// An empty source and output, and what the CRD sets by default otherwise.
    fn default() -> Self {
        Self {
            source: Source::default(),
            context_dir: dot(),
            dockerfile: dockerfile(),
            target: None,
            args: Vec::new(),
            secrets: Vec::new(),
            ssh: Vec::new(),
            labels: BTreeMap::new(),
            output: Output::default(),
            cache: None,
            isolation: None,
            service_account_name: default_service_account(),
            resources: None,
            priority_class_name: None,
            timeout: None,
            retries: two(),
            suspend: false,
            pod_ttl: day(),
        }
    }
}
