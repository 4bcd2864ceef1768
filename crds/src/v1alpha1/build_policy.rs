//! `BuildPolicy` and its spec: what builds of some namespaces may do, and what they get that they do not ask for.
#![expect(clippy::duplicated_attributes, reason = "each printcolumn has the same keys")]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::image_build::quantities;
use super::{Isolation, Resources};

/// What builds of the selected namespaces may do, and what they get that they do not ask for. What is absent says nothing.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "kiln.build",
    version = "v1alpha1",
    kind = "BuildPolicy",
    plural = "buildpolicies",
    singular = "buildpolicy",
    shortname = "bp",
    category = "kiln",
    derive = "PartialEq",
    doc = "What builds of some namespaces may do, and what they get that they do not ask for. Where several policies select a namespace, each limit of each of them holds; a default is that of the highest precedence. A change applies to the next attempt and starts none by itself, but for builds that a policy refused.",
    printcolumn(
        name = "Precedence",
        type_ = "integer",
        json_path = ".spec.precedence",
        description = "Whose defaults win; the highest"
    ),
    printcolumn(
        name = "Output",
        type_ = "string",
        json_path = ".spec.output.allowedRepositories",
        description = "Where images may be pushed"
    ),
    printcolumn(
        name = "Bases",
        type_ = "string",
        json_path = ".spec.baseImages.allowedRepositories",
        description = "Where base images may come from",
        priority = 1
    ),
    printcolumn(
        name = "Timeout",
        type_ = "string",
        json_path = ".spec.timeout.maximum",
        description = "The longest time that an attempt may take",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[cfg_attr(test, kube(cel))]
// What is not understood would be a limit that does not hold: such a policy is refused as a whole.
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BuildPolicySpec {
    /// Labels of the namespaces whose builds it is for; all namespaces when empty or absent. Every namespace has its name in
    /// the label `kubernetes.io/metadata.name`.
    #[serde(default)]
    pub namespace_selector: LabelSelector,
    /// Whose default is taken where several policies of a namespace have one: that of the highest precedence, and of the
    /// first by name among equals. Without a meaning for limits, which hold all. -1000000 to 1000000.
    #[serde(default)]
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    pub precedence: i32,
    /// Where images may be pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<OutputPolicy>,
    /// Where results of steps are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CachePolicy>,
    /// Where base images may come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_images: Option<BaseImagePolicy>,
    /// How steps may be kept apart from the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<IsolationPolicy>,
    /// How long an attempt may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<TimeoutPolicy>,
    /// What the build container gets and may ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcePolicy>,
    /// How many builds may run at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<ConcurrencyPolicy>,
    /// How the registries are reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registries: Option<RegistryPolicy>,
    /// Certificates of authorities, PEM, that courier and source trust beside the public ones, for registries, sources and
    /// what ADD downloads; at most 131072 characters. Those of several policies are all trusted. Steps do not get them: what a RUN
    /// trusts is the base image's business.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 131_072))]
    #[x_kube(
        validation = Rule::new("self.contains('-----BEGIN CERTIFICATE-----')").message("must be PEM: -----BEGIN CERTIFICATE----- and what follows")
    )]
    pub ca_bundle: Option<String>,
    /// The proxy for registries, sources, what ADD downloads, and the commands of RUN. Taken whole from one policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyPolicy>,
    /// What RUN may ask for beyond the usual; nothing when absent in every policy of a namespace. Only what each policy that has the
    /// field allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    pub entitlements: Option<Vec<Entitlement>>,
}

/// Which repositories an entry of a list of allowed ones can mean.
const REPOSITORIES: &str =
    r"^(([a-z0-9.-]|\{namespace\})+|\[[0-9a-f:]+\])(:[0-9]{1,5})?(/([a-z0-9._-]|\{namespace\})+)*(/\*)?$";

/// Where images may be pushed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutputPolicy {
    /// Repositories that builds may push to: `host[:port]` (all of it), `host/path` (this one) or `host/path/*` (all below
    /// it), at most 64 of at most 255 characters. `{namespace}` stands for the build's namespace. Docker Hub is `docker.io`, with
    /// `library/` before single names. Any repository when absent, none when empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 255), regex(pattern = REPOSITORIES))
    )]
    pub allowed_repositories: Option<Vec<String>>,
    /// Where the image goes of builds that do not say it (`spec.output.image`): a reference, at most 255 characters, in which
    /// `{namespace}` and `{name}` stand for those of the ImageBuild.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(
        validation = Rule::new(r"self.replace('{namespace}', 'n').replace('{name}', 'n').matches('^(([a-zA-Z0-9.-]+|\\[[a-fA-F0-9:]+\\])(:[0-9]{1,5})?/)?[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$')").message("must be an image reference, like registry.example.com/{namespace}/{name}:latest")
    )]
    pub template: Option<String>,
    /// Whether builds may ask for plain HTTP to their output's registry (`spec.output.insecure`). They may where a policy
    /// says true and none says false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_insecure: Option<bool>,
}

/// Where results of steps are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.template) || has(self.scope)").message("at least one of template and scope must be set")
)]
pub struct CachePolicy {
    /// The cache of a build without `spec.cache.repository`: a repository without a tag, with `{namespace}` for the build's namespace,
    /// at most 255 characters. `output.allowedRepositories` has to allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(
        validation = Rule::new(r"self.replace('{namespace}', 'n').matches('^((([a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*)|\\[[a-fA-F0-9:]+\\])(:[0-9]{1,5})?/)?[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*$')").message("must be a repository without a tag: [host[:port]/]repository in lower case, like registry.example.com/{namespace}/cache")
    )]
    pub template: Option<String>,
    /// Whose results a build may take, and who may take its own. `Namespace`, which holds where no policy says otherwise:
    /// those of its own namespace. `Policy`: those of all namespaces for which the same policies say `Policy` and none says
    /// `Namespace`, as far as they name the same repository. Who builds in one of them decides then what is in the images
    /// of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<CacheScope>,
}

/// Whose results of steps a build may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CacheScope {
    /// Those of its own namespace.
    Namespace,
    /// Those of all namespaces for which the same policies say so.
    Policy,
}

/// Where base images may come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BaseImagePolicy {
    /// Repositories that FROM, COPY --from, RUN --mount=from and named contexts may name, in the form of
    /// `output.allowedRepositories`, at most 64 of at most 255 characters. Mirrors do not count: the name as the Dockerfile has it
    /// does. Any repository when absent, none when empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 255), regex(pattern = REPOSITORIES))
    )]
    pub allowed_repositories: Option<Vec<String>>,
}

/// How steps may be kept apart from the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.default) || !has(self.allowed) || self.default in self.allowed").message("default must be one of allowed")
)]
pub struct IsolationPolicy {
    /// What builds may use; anything when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    pub allowed: Option<Vec<Isolation>>,
    /// What builds get that do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Isolation>,
}

/// How long an attempt may take.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.default) || !has(self.maximum) || duration(self.default) <= duration(self.maximum)").message("default must not be longer than maximum")
)]
pub struct TimeoutPolicy {
    /// The longest `spec.timeout`, as a Go duration (`90s`, `30m`, `2h`), 1s to 24h. A default that is longer is cut to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 16), regex(pattern = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')").message("must be between 1s and 24h")
    )]
    pub maximum: Option<String>,
    /// The timeout of builds that do not say it, as a Go duration, 1s to 24h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 16), regex(pattern = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')").message("must be between 1s and 24h")
    )]
    pub default: Option<String>,
}

/// What the build container gets and may ask for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourcePolicy {
    /// The most that a build may ask for, as request or limit, by resource name: `cpu` in cores (`500m`), `memory` and
    /// `ephemeral-storage` in bytes (`8Gi`). A build without a limit for one of these three gets this one, and a default beyond it is
    /// cut to it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub maximum: BTreeMap<String, IntOrString>,
    /// Requests and limits of builds that do not say them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Resources>,
}

/// How many builds may run at a time; further ones wait in the queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConcurrencyPolicy {
    /// Builds of each selected namespace, 1 to 100000. The lowest of several policies and of the operator's setting counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub per_namespace: Option<i32>,
    /// Builds of all namespaces together that this policy selects, 1 to 100000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub total: Option<i32>,
}

/// How the registries are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistryPolicy {
    /// Mirrors of registries, at most 32. Those of a registry are taken whole from one policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["registry".into()]))]
    pub mirrors: Vec<RegistryMirror>,
    /// `host[:port]` of registries that speak plain HTTP, mirrors among them; at most 32. Those of all policies count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        inner(
            length(min = 1, max = 255),
            regex(pattern = r"^([a-zA-Z0-9.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?$")
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub insecure: Vec<String>,
}

/// Other places that serve a registry's images.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistryMirror {
    /// The registry as image names have it: `docker.io`, `quay.io`.
    #[schemars(
        length(min = 1, max = 255),
        regex(pattern = r"^([a-zA-Z0-9.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?$")
    )]
    pub registry: String,
    /// `host[:port][/prefix]` of each mirror, at most 8; tried in order, then the registry itself.
    #[schemars(
        length(min = 1, max = 8),
        inner(length(min = 1, max = 255), regex(pattern = r"^[a-z0-9.-]+(:[0-9]{1,5})?(/[a-z0-9._-]+)*$"))
    )]
    pub mirrors: Vec<String>,
}

/// A proxy. Commands of RUN have it as `http_proxy`, `https_proxy` and `no_proxy`, in lower and upper case, as `docker build` does
/// with the build arguments of these names: neither image nor history has it. A build argument of one of these names wins
/// for RUN.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.http) || has(self.https)").message("at least one of http and https must be set")
)]
pub struct ProxyPolicy {
    /// `http://host[:port]` of the proxy for plain HTTP; without user and password, which everybody could read here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 255),
        regex(pattern = r"^https?://([a-zA-Z0-9.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?/?$")
    )]
    pub http: Option<String>,
    /// `http://host[:port]` of the proxy for HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 255),
        regex(pattern = r"^https?://([a-zA-Z0-9.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?/?$")
    )]
    pub https: Option<String>,
    /// Where there is no way through the proxy, or none is needed: host names, domains with what is below them
    /// (`.svc.cluster.local`), addresses and ranges (`10.0.0.0/8`); at most 64. Name what is inside the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z0-9.*:/\[\]_-]+$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub no_proxy: Vec<String>,
}

/// What RUN may ask for beyond the usual, in BuildKit's words. `network.host`: `RUN --network=host`, which in a cluster is
/// the builder pod's network, and no other than without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Entitlement {
    /// `RUN --network=host`.
    #[serde(rename = "network.host")]
    NetworkHost,
}

impl Entitlement {
    /// The word that the object uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NetworkHost => "network.host",
        }
    }
}
