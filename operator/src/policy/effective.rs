//! The policies of one namespace and the operator's settings as one. Pure.
//!
//! Limits hold all: lists have to allow a thing one by one, of ceilings the lowest counts. Of defaults one is taken: that of the
//! policy of the highest precedence, then of the first by name; the settings come last. Whatever may refuse a build remembers
//! whose word it is.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kiln_api::duration;
use kiln_api::v1alpha1::{BuildPolicySpec, CacheScope, Entitlement, Isolation, PolicyStatus, Resources};
use kiln_contract::policy::{AllowList, Network, Proxy};
use kiln_contract::request::{Mirror, Registries};
use kube::core::{Selector, SelectorExt as _};
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::queue::Limits;

use super::quantity;

/// Names of policies that a status shows.
const MAX_NAMES: usize = 16;
/// Labels of a namespace that decide on whether its pods are admitted (Kubernetes: Pod Security Admission).
const POD_SECURITY: &str = "pod-security.kubernetes.io/";

/// What somebody says, and who.
#[derive(Debug, Clone, PartialEq)]
pub struct Ruled<T> {
    /// Policy and field, as a refusal names them.
    pub by: String,
    /// What.
    pub value: T,
}

/// Whether a build may ask for plain HTTP to its output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Insecure {
    /// A policy says so, and none says no.
    Allowed,
    /// That policy says no.
    Refused(String),
    /// Nobody says anything, which is no.
    Unsaid,
}

/// What holds for the builds of a namespace.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// Whose builds it is for.
    pub namespace: String,
    /// What status shows of it.
    pub status: PolicyStatus,
    /// Where images may be pushed: each has to allow it.
    pub outputs: Vec<AllowList>,
    /// Where the image goes of a build that does not say it; `{name}` is still in it.
    pub template: Option<String>,
    /// Where results of steps are kept of a build that does not say it.
    pub cache: Option<String>,
    /// Who shares results of steps: builds of another scope never get them.
    pub cache_scope: String,
    /// Whether plain HTTP to the output may be asked for.
    pub insecure: Insecure,
    /// Where base images may come from: each has to allow it.
    pub bases: Vec<AllowList>,
    /// Isolations that may be used: each has to allow it.
    pub isolations: Vec<Ruled<Vec<Isolation>>>,
    /// The isolation of a build that does not say it.
    pub isolation: Isolation,
    /// Seconds that an attempt may take at most.
    pub max_timeout: Option<Ruled<i64>>,
    /// Seconds that an attempt may take of a build that does not say it.
    pub timeout: i64,
    /// The most that may be asked for, by resource.
    pub maximum: BTreeMap<String, Ruled<IntOrString>>,
    /// Requests and limits of a build that does not say them.
    pub resources: Resources,
    /// Mirrors and plain-HTTP registries.
    pub registries: Registries,
    /// Proxy and authorities.
    pub network: Network,
    /// What RUN may ask for.
    pub entitlements: Vec<String>,
    /// How many builds may run at a time.
    pub concurrency: Limits,
    /// Why nothing can be built: a policy that may hold can't be read.
    pub broken: Option<String>,
}

/// A policy as it was read: its spec, or why it can't be.
pub type Read = Result<BuildPolicySpec, String>;

impl Effective {
    /// What the settings alone say.
    pub fn of_settings(config: &Config, namespace: &str) -> Self {
        Self::merge(config, namespace, &BTreeMap::new(), &BTreeMap::new())
    }

    /// What the settings and those policies say that select a namespace with these labels.
    pub fn merge(
        config: &Config,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        policies: &BTreeMap<String, Read>,
    ) -> Self {
        let (those, broken) = select(labels, policies);
        let isolations = Ruled {
            by: "the operator's setting allowedIsolations".to_owned(),
            value: config.allowed_isolations.clone(),
        };
        let defaults = &config.defaults;
        let mut all = Self {
            namespace: namespace.to_owned(),
            status: PolicyStatus {
                names: those.iter().take(MAX_NAMES).map(|(name, _)| (*name).to_owned()).collect(),
                digest: digest(config, labels, &those, broken.as_deref()),
            },
            outputs: Vec::new(),
            template: None,
            cache: None,
            cache_scope: cache_scope(namespace, &those),
            insecure: Insecure::Unsaid,
            bases: Vec::new(),
            isolations: vec![isolations],
            isolation: config.isolation,
            max_timeout: None,
            timeout: defaults.timeout.seconds(),
            maximum: BTreeMap::new(),
            resources: (&defaults.resources).into(),
            registries: Registries::default(),
            network: Network::default(),
            entitlements: entitlements(&those),
            concurrency: Limits::default(),
            broken,
        };
        // The first to speak of a default is heard.
        let first = |get: fn(&BuildPolicySpec) -> bool| those.iter().map(|(_, s)| *s).find(|s| get(s));
        let with = first(|s| s.isolation.as_ref().is_some_and(|i| i.default.is_some()));
        if let Some(isolation) = with.and_then(|s| s.isolation.as_ref()?.default) {
            all.isolation = isolation;
        }
        let with = first(|s| s.timeout.as_ref().is_some_and(|t| t.default.is_some()));
        if let Some(text) = with.and_then(|s| s.timeout.as_ref()?.default.as_ref()) {
            all.timeout = seconds(text).unwrap_or(all.timeout);
        }
        let with = first(|s| s.resources.as_ref().is_some_and(|r| r.default.is_some()));
        if let Some(resources) = with.and_then(|s| s.resources.as_ref()?.default.clone()) {
            all.resources = resources;
        }
        let with = first(|s| s.output.as_ref().is_some_and(|o| o.template.is_some()));
        all.template = with
            .and_then(|s| s.output.as_ref()?.template.as_ref())
            .map(|template| template.replace("{namespace}", namespace));
        let with = first(|s| s.cache.as_ref().is_some_and(|c| c.template.is_some()));
        all.cache = with
            .and_then(|s| s.cache.as_ref()?.template.as_ref())
            .map(|template| template.replace("{namespace}", namespace));
        let proxy = first(|s| s.proxy.is_some()).and_then(|s| s.proxy.clone());
        all.network.proxy = proxy.map(|p| Proxy { http: p.http, https: p.https, no_proxy: p.no_proxy });
        for (name, spec) in &those {
            all.limit(name, spec, namespace);
        }
        all.registries = registries(config, &those);
        all.network.ca_bundle = authorities(&those);
        all.settle();
        all
    }

    /// Takes in the limits of one policy.
    fn limit(&mut self, name: &str, spec: &BuildPolicySpec, namespace: &str) {
        let by = |field: &str| format!("BuildPolicy {name}: spec.{field}");
        let list = |field: &str, all: &[String]| AllowList {
            by: by(field),
            repositories: all.iter().map(|p| p.replace("{namespace}", namespace)).collect(),
        };
        if let Some(output) = &spec.output {
            let allowed = output.allowed_repositories.as_ref();
            self.outputs.extend(allowed.map(|all| list("output.allowedRepositories", all)));
            self.insecure = match (output.allow_insecure, &self.insecure) {
                (None, said) => said.clone(),
                (_, Insecure::Refused(first)) => Insecure::Refused(first.clone()),
                (Some(true), _) => Insecure::Allowed,
                (Some(false), _) => Insecure::Refused(by("output.allowInsecure")),
            };
        }
        let bases = spec.base_images.as_ref().and_then(|b| b.allowed_repositories.as_ref());
        self.bases.extend(bases.map(|all| list("baseImages.allowedRepositories", all)));
        let isolations = spec.isolation.as_ref().and_then(|i| i.allowed.clone());
        self.isolations.extend(isolations.map(|value| Ruled { by: by("isolation.allowed"), value }));
        let maximum = spec.timeout.as_ref().and_then(|t| t.maximum.as_ref());
        if let Some(value) = maximum.and_then(|text| seconds(text))
            && self.max_timeout.as_ref().is_none_or(|m| value < m.value)
        {
            self.max_timeout = Some(Ruled { by: by("timeout.maximum"), value });
        }
        let concurrency = spec.concurrency.clone().unwrap_or_default();
        let count = |n: Option<i32>| n.and_then(|n| usize::try_from(n).ok());
        if let Some(own) = count(concurrency.per_namespace) {
            self.concurrency.own = Some(self.concurrency.own.map_or(own, |known| known.min(own)));
        }
        self.concurrency.groups.extend(count(concurrency.total).map(|total| (name.to_owned(), total)));
        for (resource, value) in spec.resources.iter().flat_map(|r| &r.maximum) {
            let known = self.maximum.get(resource);
            if known.is_none_or(|k| quantity::parse(value) < quantity::parse(&k.value)) {
                let ruled = Ruled { by: by(&format!("resources.maximum.{resource}")), value: value.clone() };
                self.maximum.insert(resource.clone(), ruled);
            }
        }
    }

    /// Brings defaults below the limits: a build is not refused for what it did not ask for.
    fn settle(&mut self) {
        if let Some(maximum) = &self.max_timeout {
            self.timeout = self.timeout.min(maximum.value);
        }
        // The stronger one first.
        let choices = [self.isolation, Isolation::UserNamespace, Isolation::HostRange];
        let allowed = |i: &Isolation| self.isolations.iter().all(|list| list.value.contains(i));
        self.isolation = choices.into_iter().find(allowed).unwrap_or(self.isolation);
    }
}

/// The policies that select a namespace with these labels, the one whose defaults win first; and why one that may do so can't
/// be read.
fn select<'a>(
    labels: &BTreeMap<String, String>,
    policies: &'a BTreeMap<String, Read>,
) -> (Vec<(&'a str, &'a BuildPolicySpec)>, Option<String>) {
    let mut those = Vec::new();
    let mut broken = None;
    for (name, read) in policies {
        let selected = read.as_ref().map_err(Clone::clone).and_then(|spec| {
            let selector: Selector = spec
                .namespace_selector
                .clone()
                .try_into()
                .map_err(|e: kube::core::ParseExpressionError| format!("namespaceSelector: {e}"))?;
            readable(spec).map(|()| selector.matches(labels).then_some(spec))
        });
        match selected {
            Ok(spec) => those.extend(spec.map(|spec| (name.as_str(), spec))),
            // It may be for this namespace: what it forbids is not known, so nothing is allowed.
            Err(error) => {
                broken.get_or_insert(format!(
                    "BuildPolicy {name} can't be read by this operator: {error}; correct it, or upgrade the operator with the CustomResourceDefinitions"
                ));
            }
        }
    }
    those.sort_by_key(|(name, spec)| (std::cmp::Reverse(spec.precedence), *name));
    (those, broken)
}

/// What the schema says of single values, again: a limit that can't be read would be none.
fn readable(spec: &BuildPolicySpec) -> Result<(), String> {
    for text in spec.timeout.iter().flat_map(|t| [&t.maximum, &t.default]).flatten() {
        duration::parse(text).map_err(|e| format!("timeout: {e}"))?;
    }
    for (resource, value) in spec.resources.iter().flat_map(|r| &r.maximum) {
        if quantity::parse(value).is_none() {
            let found = quantity::shown(value);
            return Err(format!("resources.maximum.{resource}: expected a quantity, found '{found}'"));
        }
    }
    Ok(())
}

fn seconds(text: &str) -> Option<i64> {
    duration::parse(text).ok().map(|d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// The namespace, unless a policy has its namespaces share and none keeps this one apart. Only namespaces share of which the
/// same policies say so: each of them wants all who share to be among its own. No name of a namespace has a slash.
fn cache_scope(namespace: &str, those: &[(&str, &BuildPolicySpec)]) -> String {
    let says = |scope| {
        let is = move |spec: &BuildPolicySpec| spec.cache.as_ref().is_some_and(|c| c.scope == Some(scope));
        those.iter().filter(move |(_, spec)| is(spec)).map(|(name, _)| *name)
    };
    let sharing: BTreeSet<&str> = says(CacheScope::Policy).collect();
    if sharing.is_empty() || says(CacheScope::Namespace).next().is_some() {
        return namespace.to_owned();
    }
    format!("policy/{}", sharing.into_iter().collect::<Vec<_>>().join(","))
}

/// What every policy allows that speaks of it; nothing where none does.
fn entitlements(those: &[(&str, &BuildPolicySpec)]) -> Vec<String> {
    let lists: Vec<&Vec<Entitlement>> = those.iter().filter_map(|(_, s)| s.entitlements.as_ref()).collect();
    let Some(first) = lists.first() else { return Vec::new() };
    let all: BTreeSet<&Entitlement> = first.iter().filter(|e| lists.iter().all(|l| l.contains(e))).collect();
    all.into_iter().map(|e| e.as_str().to_owned()).collect()
}

fn registries(config: &Config, those: &[(&str, &BuildPolicySpec)]) -> Registries {
    let mut all = Registries::default();
    let policies = those.iter().filter_map(|(_, s)| s.registries.as_ref());
    for mirror in policies.clone().flat_map(|r| &r.mirrors) {
        if all.mirrors.iter().all(|known| known.registry != mirror.registry) {
            all.mirrors.push(Mirror { registry: mirror.registry.clone(), mirrors: mirror.mirrors.clone() });
        }
    }
    let of_policies: BTreeSet<String> = all.mirrors.iter().map(|m| m.registry.clone()).collect();
    let of_settings = config.registries.mirrors.iter().filter(|m| !of_policies.contains(&m.registry));
    all.mirrors.extend(of_settings.cloned());
    for host in policies.flat_map(|r| &r.insecure).chain(&config.registries.insecure) {
        if !all.insecure.contains(host) {
            all.insecure.push(host.clone());
        }
    }
    all
}

fn authorities(those: &[(&str, &BuildPolicySpec)]) -> Option<String> {
    let mut bundles: Vec<&str> = Vec::new();
    for bundle in those.iter().filter_map(|(_, s)| s.ca_bundle.as_deref()).map(str::trim) {
        if !bundles.contains(&bundle) {
            bundles.push(bundle);
        }
    }
    (!bundles.is_empty()).then(|| bundles.join("\n") + "\n")
}

/// Of all that can refuse a build. Of policies the whole spec counts.
fn digest(
    config: &Config,
    labels: &BTreeMap<String, String>,
    those: &[(&str, &BuildPolicySpec)],
    broken: Option<&str>,
) -> String {
    let isolations: Vec<&str> = config.allowed_isolations.iter().map(|i| i.as_str()).collect();
    let labels: Vec<_> = labels.iter().filter(|(key, _)| key.starts_with(POD_SECURITY)).collect();
    let all = serde_json::json!([isolations, labels, those, broken]);
    format!("sha256:{}", hex::encode(Sha256::digest(all.to_string())))
}

#[cfg(test)]
#[path = "effective_tests.rs"]
mod tests;
