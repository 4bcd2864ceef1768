//! Tests of the merge: which policies hold, whose default is taken, and that every limit of each holds.

use serde_json::{Value, json};

use super::*;

fn config(more: &str) -> Config {
    Config::parse(&format!("builderImage: b\n{more}")).expect("good")
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn policies(all: &[(&str, Value)]) -> BTreeMap<String, Read> {
    let read = |spec: &Value| serde_json::from_value(spec.clone()).map_err(|e| e.to_string());
    all.iter().map(|(name, spec)| ((*name).to_owned(), read(spec))).collect()
}

/// What holds in the namespace team-a, with no labels.
fn merged(all: &[(&str, Value)]) -> Effective {
    Effective::merge(&config(""), "team-a", &labels(&[]), &policies(all))
}

#[test]
fn without_policies_the_settings_hold() {
    let config = config(
        "isolation: HostRange\nallowedIsolations: [HostRange]\ndefaults: {timeout: 5m, resources: {limits: {memory: 1Gi}}}\nregistries: {insecure: [r.x]}",
    );
    let all = Effective::of_settings(&config, "a");
    assert_eq!((all.isolation, all.timeout), (Isolation::HostRange, 300));
    assert_eq!(all.isolations[0].by, "the operator's setting allowedIsolations");
    assert_eq!(all.registries, config.registries);
    assert_eq!(all.resources.limits["memory"], IntOrString::String("1Gi".into()));
    assert!(all.outputs.is_empty() && all.bases.is_empty() && all.max_timeout.is_none());
    assert!(all.network.is_empty() && all.entitlements.is_empty() && all.status.names.is_empty());
    assert_eq!(all.insecure, Insecure::Unsaid);
}

#[test]
fn labels_select() {
    let selecting = |selector: Value| json!({"namespaceSelector": selector, "timeout": {"maximum": "1m"}});
    for (selector, selected) in [
        (json!({}), true),
        (json!({"matchLabels": {"tier": "small"}}), true),
        (json!({"matchLabels": {"tier": "large"}}), false),
        (json!({"matchLabels": {"tier": "small", "other": "x"}}), false),
        (json!({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "small"]}]}), true),
        (json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["small"]}]}), false),
        (json!({"matchExpressions": [{"key": "none", "operator": "NotIn", "values": ["x"]}]}), true),
        (json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}), true),
        (json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}), false),
    ] {
        let all = policies(&[("p", selecting(selector.clone()))]);
        let all = Effective::merge(&config(""), "a", &labels(&[("tier", "small")]), &all);
        assert_eq!(all.status.names == ["p"], selected, "{selector}");
        assert_eq!(all.max_timeout.is_some(), selected, "{selector}");
    }
}

#[test]
fn every_limit_of_every_policy_holds_and_knows_whose_it_is() {
    let all = merged(&[
        (
            "all",
            json!({"precedence": 9, "output": {"allowedRepositories": ["r.x"], "allowInsecure": true},
                "timeout": {"maximum": "2h"}, "resources": {"maximum": {"memory": "8Gi", "cpu": 4}},
                "isolation": {"allowed": ["UserNamespace", "HostRange"]}, "entitlements": ["network.host"],
                "concurrency": {"perNamespace": 2, "total": 10}}),
        ),
        (
            "tenants",
            json!({"output": {"allowedRepositories": ["r.x/{namespace}/*"], "allowInsecure": false},
                "baseImages": {"allowedRepositories": ["docker.io/library/*"]},
                "timeout": {"maximum": "30m"}, "resources": {"maximum": {"memory": "8192Mi", "cpu": "1500m"}},
                "isolation": {"allowed": ["UserNamespace"]}, "concurrency": {"perNamespace": 5, "total": 3}}),
        ),
    ]);
    let groups = vec![("all".to_owned(), 10), ("tenants".to_owned(), 3)];
    assert_eq!(all.concurrency, Limits { own: Some(2), groups });
    assert_eq!(all.status.names, ["all", "tenants"]);
    let outputs: Vec<_> = all.outputs.iter().map(|l| (l.by.as_str(), l.repositories.clone())).collect();
    assert_eq!(
        outputs,
        [
            ("BuildPolicy all: spec.output.allowedRepositories", vec!["r.x".to_owned()]),
            ("BuildPolicy tenants: spec.output.allowedRepositories", vec!["r.x/team-a/*".to_owned()]),
        ]
    );
    assert_eq!(all.bases.len(), 1);
    assert_eq!(all.insecure, Insecure::Refused("BuildPolicy tenants: spec.output.allowInsecure".into()));
    let most = all.max_timeout.expect("a ceiling");
    assert_eq!((most.by.as_str(), most.value), ("BuildPolicy tenants: spec.timeout.maximum", 1800));
    assert_eq!(all.maximum["cpu"].by, "BuildPolicy tenants: spec.resources.maximum.cpu");
    assert_eq!(
        all.maximum["memory"].by, "BuildPolicy all: spec.resources.maximum.memory",
        "the first of equals"
    );
    let who: Vec<_> = all.isolations.iter().map(|l| (l.by.as_str(), l.value.len())).collect();
    assert_eq!(
        who,
        [
            ("the operator's setting allowedIsolations", 2),
            ("BuildPolicy all: spec.isolation.allowed", 2),
            ("BuildPolicy tenants: spec.isolation.allowed", 1)
        ]
    );
    assert_eq!(all.entitlements, ["network.host"]);
}

#[test]
fn a_default_is_that_of_the_highest_precedence_then_of_the_first_by_name() {
    let speaking = |precedence: i32, timeout: &str, template: Option<&str>| {
        let mut spec = json!({"precedence": precedence, "timeout": {"default": timeout}});
        if let Some(template) = template {
            spec["output"] = json!({ "template": template });
            spec["cache"] = json!({ "template": "r.x/{namespace}/cache" });
        }
        spec
    };
    let all = merged(&[
        ("a", speaking(0, "1m", Some("r.x/{namespace}/{name}:a"))),
        ("b", speaking(0, "2m", None)),
        ("c", speaking(5, "3m", None)),
    ]);
    assert_eq!(all.status.names, ["c", "a", "b"]);
    assert_eq!((all.timeout, all.template.as_deref()), (180, Some("r.x/team-a/{name}:a")));
    assert_eq!(all.cache.as_deref(), Some("r.x/team-a/cache"));
    let equal = merged(&[("b", speaking(1, "2m", None)), ("a", speaking(1, "1m", None))]);
    assert_eq!(equal.timeout, 60);
}

#[test]
fn results_are_shared_by_those_alone_of_whom_the_same_policies_say_so() {
    let all = policies(&[
        ("share", json!({"namespaceSelector": {"matchLabels": {"a": "y"}}, "cache": {"scope": "Policy"}})),
        ("more", json!({"namespaceSelector": {"matchLabels": {"b": "y"}}, "cache": {"scope": "Policy"}})),
        (
            "apart",
            json!({"namespaceSelector": {"matchLabels": {"c": "y"}}, "precedence": -1,
                "cache": {"scope": "Namespace"}}),
        ),
        // Says where, and not whose.
        ("where", json!({"precedence": 9, "cache": {"template": "r.x/cache"}})),
    ]);
    let scope = |namespace: &str, pairs: &[(&str, &str)]| {
        let all = Effective::merge(&config(""), namespace, &labels(pairs), &all);
        assert_eq!(all.cache.as_deref(), Some("r.x/cache"));
        all.cache_scope
    };
    assert_eq!(scope("one", &[]), "one");
    assert_eq!(scope("one", &[("a", "y")]), "policy/share");
    assert_eq!(scope("two", &[("a", "y")]), "policy/share", "they share");
    assert_eq!(scope("one", &[("b", "y")]), "policy/more");
    assert_eq!(
        scope("one", &[("a", "y"), ("b", "y")]),
        "policy/more,share",
        "neither with those of one alone"
    );
    // The strictest holds, whatever its precedence.
    assert_eq!(scope("one", &[("a", "y"), ("c", "y")]), "one");
    assert_eq!(scope("one", &[("a", "y"), ("b", "y"), ("c", "y")]), "one");
    // No namespace is named like a scope of policies.
    assert!(scope("one", &[("a", "y")]).contains('/'));
    assert_eq!(Effective::of_settings(&config(""), "one").cache_scope, "one");
}

#[test]
fn defaults_are_brought_below_the_limits() {
    let all =
        merged(&[("p", json!({"timeout": {"maximum": "5m"}, "isolation": {"allowed": ["HostRange"]}}))]);
    assert_eq!((all.timeout, all.isolation), (300, Isolation::HostRange));
    let none = merged(&[
        ("p", json!({"isolation": {"allowed": ["HostRange"]}})),
        ("q", json!({"isolation": {"allowed": ["UserNamespace"]}})),
    ]);
    assert_eq!(
        none.isolation,
        Isolation::UserNamespace,
        "nothing is allowed: the usual one is refused by name"
    );
}

#[test]
fn ways_to_servers() {
    let proxy = |url: &str| json!({"http": url, "noProxy": [".svc"]});
    let all = Effective::merge(
        &config(
            "registries: {mirrors: [{registry: docker.io, mirrors: [s]}, {registry: q.io, mirrors: [s]}], insecure: [s]}",
        ),
        "team-a",
        &labels(&[]),
        &policies(&[
            (
                "a",
                json!({"registries": {"mirrors": [{"registry": "docker.io", "mirrors": ["a"]}], "insecure": ["i"]},
                    "caBundle": "ONE\n", "proxy": proxy("http://a")}),
            ),
            (
                "b",
                json!({"precedence": 1, "registries": {"mirrors": [{"registry": "docker.io", "mirrors": ["b1", "b2"]}],
                    "insecure": ["s"]}, "caBundle": "TWO"}),
            ),
            ("c", json!({"caBundle": "ONE", "proxy": proxy("http://c")})),
        ]),
    );
    let mirrors: Vec<_> =
        all.registries.mirrors.iter().map(|m| (m.registry.as_str(), m.mirrors.join(" "))).collect();
    assert_eq!(mirrors, [("docker.io", "b1 b2".to_owned()), ("q.io", "s".to_owned())]);
    assert_eq!(all.registries.insecure, ["s", "i"]);
    assert_eq!(all.network.ca_bundle.as_deref(), Some("TWO\nONE\n"));
    let proxy = all.network.proxy.expect("a proxy");
    assert_eq!(proxy.variables(), [("http_proxy", "http://a".to_owned()), ("no_proxy", ".svc".to_owned())]);
}

#[test]
fn entitlements_are_what_each_allows_that_speaks_of_them() {
    let host = json!({"entitlements": ["network.host"]});
    assert_eq!(merged(&[("a", host.clone()), ("b", json!({}))]).entitlements, ["network.host"]);
    assert!(merged(&[("a", host), ("b", json!({"entitlements": []}))]).entitlements.is_empty());
    assert!(merged(&[("a", json!({}))]).entitlements.is_empty());
}

#[test]
fn a_policy_that_can_not_be_read_allows_nothing_and_is_named() {
    for spec in [
        json!({"somethingNew": true}),
        json!({"output": {"somethingNew": 1}}),
        json!({"entitlements": ["device"]}),
        json!({"cache": {"scope": "Cluster"}}),
        json!({"namespaceSelector": {"matchExpressions": [{"key": "k", "operator": "Near"}]}}),
        json!({"timeout": {"maximum": "soon"}}),
        json!({"resources": {"maximum": {"memory": "4GiB"}}}),
    ] {
        let all = merged(&[("fine", json!({})), ("odd", spec.clone())]);
        let why = all.broken.expect("it is told");
        assert!(why.starts_with("BuildPolicy odd can't be read by this operator: "), "{spec}: {why}");
        assert_eq!(all.status.names, ["fine"]);
    }
}

#[test]
fn the_digest_follows_what_can_refuse_a_build() {
    let digest = |config: &Config, labels: &BTreeMap<String, String>, all: &[(&str, Value)]| {
        Effective::merge(config, "a", labels, &policies(all)).status.digest
    };
    let plain = digest(&config(""), &labels(&[]), &[]);
    assert_eq!(plain, digest(&config("maxConcurrentBuilds: 3"), &labels(&[("x", "y")]), &[]));
    let other = [
        digest(&config("allowedIsolations: [UserNamespace]"), &labels(&[]), &[]),
        digest(&config(""), &labels(&[("pod-security.kubernetes.io/enforce", "baseline")]), &[]),
        digest(&config(""), &labels(&[]), &[("p", json!({}))]),
        digest(&config(""), &labels(&[]), &[("p", json!({"precedence": 1}))]),
        digest(&config(""), &labels(&[]), &[("p", json!({"new": 1}))]),
    ];
    let all: BTreeSet<&String> = other.iter().chain([&plain]).collect();
    assert_eq!(all.len(), 6);
    let unselected = json!({"namespaceSelector": {"matchLabels": {"a": "b"}}, "precedence": 7});
    assert_eq!(plain, digest(&config(""), &labels(&[]), &[("p", unselected)]), "of others nothing counts");
}
