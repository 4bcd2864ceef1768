//! The BuildPolicies and the labels of namespaces, as the watches show them, and what they come to for each namespace.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Config;
use crate::pods::Scope;

use super::effective::{Effective, Read};

/// What is known of them.
#[derive(Debug, Default)]
pub struct Policies(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    policies: BTreeMap<String, Read>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// What was made of them, until something changes: every reconcile asks.
    merged: HashMap<String, Arc<Effective>>,
}

impl Policies {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves maps that are whole: every change is one insert or remove.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watch shows a policy, or why it can't be read. Whether that is news.
    pub fn show_policy(&self, name: &str, read: Read) -> bool {
        let mut inner = self.inner();
        if inner.policies.get(name) == Some(&read) {
            return false;
        }
        inner.policies.insert(name.to_owned(), read);
        inner.merged.clear();
        true
    }

    /// A policy is gone. Whether that is news.
    pub fn policy_gone(&self, name: &str) -> bool {
        let mut inner = self.inner();
        let known = inner.policies.remove(name).is_some();
        inner.merged.clear();
        known
    }

    /// A list of policies is whole: the others are gone. Whether that is news.
    pub fn retain_policies(&self, names: &BTreeSet<String>) -> bool {
        let mut inner = self.inner();
        let before = inner.policies.len();
        inner.policies.retain(|name, _| names.contains(name));
        inner.merged.clear();
        inner.policies.len() != before
    }

    /// The watch shows a namespace. Whether its labels are news.
    pub fn show_namespace(&self, name: &str, labels: BTreeMap<String, String>) -> bool {
        let mut inner = self.inner();
        if inner.namespaces.get(name) == Some(&labels) {
            return false;
        }
        inner.namespaces.insert(name.to_owned(), labels);
        inner.merged.remove(name);
        true
    }

    /// A namespace is gone.
    pub fn namespace_gone(&self, name: &str) {
        let mut inner = self.inner();
        inner.namespaces.remove(name);
        inner.merged.remove(name);
    }

    /// A list of the scope's namespaces is whole: the others are gone. Returns which were known.
    pub fn retain_namespaces(&self, scope: &Scope, names: &BTreeSet<String>) -> Vec<String> {
        let mut inner = self.inner();
        let gone = |name: &String| scope.as_ref().is_none_or(|s| s == name) && !names.contains(name);
        let those: Vec<String> = inner.namespaces.keys().filter(|name| gone(name)).cloned().collect();
        for name in &those {
            inner.namespaces.remove(name);
            inner.merged.remove(name);
        }
        those
    }

    /// The namespaces that are known.
    pub fn namespaces(&self) -> Vec<String> {
        self.inner().namespaces.keys().cloned().collect()
    }

    /// What holds in a namespace; `None` when its labels are not known.
    pub fn effective(&self, config: &Config, namespace: &str) -> Option<Arc<Effective>> {
        let mut inner = self.inner();
        if let Some(merged) = inner.merged.get(namespace) {
            return Some(merged.clone());
        }
        let labels = inner.namespaces.get(namespace)?;
        let merged = Arc::new(Effective::merge(config, namespace, labels, &inner.policies));
        inner.merged.insert(namespace.to_owned(), merged.clone());
        Some(merged)
    }
}

#[cfg(test)]
mod tests {
    use kiln_api::v1alpha1::{BuildPolicySpec, TimeoutPolicy};

    use super::*;

    fn policy(maximum: &str) -> Read {
        let timeout = TimeoutPolicy { maximum: Some(maximum.into()), default: None };
        let selector = serde_json::json!({"matchLabels": {"tier": "small"}});
        Ok(BuildPolicySpec {
            namespace_selector: serde_json::from_value(selector).expect("a selector"),
            timeout: Some(timeout),
            ..BuildPolicySpec::default()
        })
    }

    fn small() -> BTreeMap<String, String> {
        BTreeMap::from([("tier".to_owned(), "small".to_owned())])
    }

    #[test]
    fn what_holds_follows_the_watches() {
        let config = Config::parse("builderImage: b").expect("good");
        let known = Policies::default();
        let most = |ns: &str| known.effective(&config, ns).map(|e| e.max_timeout.as_ref().map(|m| m.value));
        assert_eq!(most("a"), None, "labels that are not known select nothing and allow nothing");
        assert!(known.show_namespace("a", BTreeMap::new()));
        assert!(!known.show_namespace("a", BTreeMap::new()), "no news");
        assert_eq!(most("a"), Some(None));
        assert!(known.show_policy("p", policy("10m")) && !known.show_policy("p", policy("10m")));
        assert_eq!(most("a"), Some(None), "it is not selected");
        assert!(known.show_namespace("a", small()));
        assert_eq!(most("a"), Some(Some(600)));
        assert!(known.show_policy("p", policy("5m")));
        assert_eq!(most("a"), Some(Some(300)), "nothing old is kept");
        assert!(known.retain_policies(&BTreeSet::new()));
        assert_eq!(most("a"), Some(None));
        known.show_namespace("b", small());
        known.retain_namespaces(&Some("b".to_owned()), &BTreeSet::new());
        assert_eq!(
            (most("a"), most("b")),
            (Some(None), None),
            "a list of one namespace says nothing of others"
        );
        known.retain_namespaces(&None, &BTreeSet::new());
        assert_eq!(most("a"), None);
        assert!(!known.policy_gone("p"));
    }
}
