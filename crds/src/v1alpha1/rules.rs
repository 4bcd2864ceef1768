//! The CEL rules of the schema, evaluated as the API server does.

use serde_json::{Value, json};

use super::{BuildPolicy, ImageBuild};

fn object() -> Value {
    json!({
        "apiVersion": "kiln.build/v1alpha1",
        "kind": "ImageBuild",
        "metadata": {"name": "a", "namespace": "b"},
        "spec": {
            "source": {"inline": {"files": [{"path": "Dockerfile", "content": "FROM scratch"}]}},
            "output": {"image": "registry.example.com/team/app:1"},
        },
    })
}

/// What the rules say about the object with `value` at `pointer`.
fn verdict(pointer: &str, value: Value) -> Result<(), String> {
    let mut object = object();
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    object.pointer_mut(parent).expect("a parent")[key] = value;
    let build: ImageBuild = serde_json::from_value(object).expect("it has the shape");
    build.validate_cel().map_err(|e| format!("{e:?}"))
}

#[test]
fn good_objects_pass() {
    for (pointer, value) in [
        ("/spec/source", json!({"configMap": {"name": "files"}})),
        ("/spec/source/inline/files", json!([{"path": "a/b c/..d", "content": ""}])),
        ("/spec/output/image", json!("redis")),
        ("/spec/output/image", json!("localhost:5000/a__b/c-d--e.f:V_1.0-x")),
        ("/spec/output/image", json!("[::1]:5000/a")),
        ("/spec/contextDir", json!("a/b")),
        ("/spec/cache", json!({"repository": "registry.example.com:5000/team/cache"})),
        ("/spec/cache", json!({"mounts": {"claimName": "caches.a-1"}})),
        ("/spec/cache", json!({"repository": "registry.example.com/cache", "mounts": {"claimName": "c"}})),
        (
            "/spec/source",
            json!({"git": {"url": "https://git.example.com:8443/a/b.git", "ref": "release/1.0"}}),
        ),
        (
            "/spec/source",
            json!({"git": {"url": "https://h/a", "commit": "0a".repeat(20), "secretName": "s"}}),
        ),
        ("/spec/source", json!({"git": {"url": "git@github.com:a/b.git", "secretName": "s"}})),
        (
            "/spec/source",
            json!({"git": {"url": "ssh://git@[::1]:22/a", "secretName": "s", "ref": "refs/pull/1/head"}}),
        ),
        ("/spec/source", json!({"http": {"url": "https://h/a.tar.gz?x=y"}})),
        ("/spec/source", json!({"http": {"url": "http://h/a.tar.gz", "sha256": "0a".repeat(32)}})),
        ("/spec/source", json!({"oci": {"image": "ghcr.io/a/b@sha256:00"}})),
        ("/spec/source", json!({"oci": {"image": "[::1]:5000/a:1"}})),
        ("/spec/source", json!({"flux": {"kind": "OCIRepository", "name": "app"}})),
        ("/spec/timeout", json!("24h")),
        ("/spec/timeout", json!("1h30m5s")),
        ("/spec/podTTL", json!("0s")),
    ] {
        assert_eq!(verdict(pointer, value.clone()), Ok(()), "{pointer} {value}");
    }
}

#[test]
fn bad_objects_are_refused_with_the_rule() {
    let half = "x".repeat(300 << 10);
    for (pointer, value, words) in [
        ("/spec/source", json!({}), "exactly one of"),
        ("/spec/cache", json!({"repository": "registry.example.com/cache:tag"}), "without a tag"),
        ("/spec/cache", json!({"repository": "registry.example.com/Cache"}), "in lower case"),
        ("/spec/cache", json!({}), "expected repository, mounts or both"),
        (
            "/spec/source",
            json!({"configMap": {"name": "a"}, "inline": {"files": [{"path": "a", "content": ""}]}}),
            "exactly one of",
        ),
        (
            "/spec/source",
            json!({"configMap": {"name": "a"}, "flux": {"kind": "Bucket", "name": "a"}}),
            "exactly one of",
        ),
        ("/spec/source", json!({"git": {"url": "--upload-pack=x", "secretName": "s"}}), "git URL"),
        ("/spec/source", json!({"git": {"url": "ext::sh -c x", "secretName": "s"}}), "git URL"),
        ("/spec/source", json!({"git": {"url": "file:///etc", "secretName": "s"}}), "git URL"),
        ("/spec/source", json!({"git": {"url": "ssh://-oProxyCommand=x/y", "secretName": "s"}}), "git URL"),
        ("/spec/source", json!({"git": {"url": "git@h:-x", "secretName": "s"}}), "git URL"),
        ("/spec/source", json!({"git": {"url": "https://u:p@h/x"}}), "git URL"),
        ("/spec/source", json!({"git": {"url": "git@h:x"}}), "needs secretName"),
        ("/spec/source", json!({"git": {"url": "http://h/x", "secretName": "s"}}), "https or ssh only"),
        (
            "/spec/source",
            json!({"git": {"url": "https://h/x", "ref": "--upload-pack=x"}}),
            "must be a branch",
        ),
        ("/spec/source", json!({"git": {"url": "https://h/x", "ref": "a..b"}}), "must be a branch"),
        (
            "/spec/source",
            json!({"git": {"url": "https://h/x", "ref": "a", "commit": "0a".repeat(20)}}),
            "at most one",
        ),
        ("/spec/source", json!({"http": {"url": "http://h/x"}}), "needs sha256"),
        ("/spec/source", json!({"http": {"url": "ftp://h/x", "sha256": "0a".repeat(32)}}), "must be a URL"),
        ("/spec/source", json!({"oci": {"image": "-x"}}), "image reference"),
        ("/spec/source/inline/files", json!([{"path": "/a", "content": ""}]), "relative path"),
        ("/spec/source/inline/files", json!([{"path": "a/../b", "content": ""}]), "relative path"),
        ("/spec/source/inline/files", json!([{"path": "a//b", "content": ""}]), "relative path"),
        (
            "/spec/source/inline/files",
            json!([{"path": "a", "content": half}, {"path": "b", "content": half}]),
            "524288 bytes",
        ),
        ("/spec/output/image", json!("a@sha256:00"), "must not carry a digest"),
        ("/spec/output/image", json!("registry.example.com/Team/app"), "image reference"),
        ("/spec/output/image", json!("https://registry.example.com/app"), "image reference"),
        ("/spec/output/image", json!("a:-b"), "image reference"),
        ("/spec/contextDir", json!("../x"), "relative path"),
        ("/spec/dockerfile", json!("/x"), "relative path"),
        ("/spec/timeout", json!("0s"), "between 1s and 24h"),
        ("/spec/timeout", json!("25h"), "between 1s and 24h"),
        ("/spec/podTTL", json!("721h"), "at most 720h"),
    ] {
        let said = verdict(pointer, value).expect_err(words);
        assert!(said.contains(words), "{pointer}: {said}");
    }
}

/// What the rules say about a policy of that spec.
fn policy(spec: &Value) -> Result<(), String> {
    let object = json!({"apiVersion": "kiln.build/v1alpha1", "kind": "BuildPolicy", "metadata": {"name": "a"}, "spec": spec});
    let policy: BuildPolicy = serde_json::from_value(object).expect("it has the shape");
    policy.validate_cel().map_err(|e| format!("{e:?}"))
}

#[test]
fn good_policies_pass_and_what_contradicts_itself_is_refused() {
    for good in [
        json!({}),
        json!({"output": {"template": "registry.example.com:5000/{namespace}/apps/{name}:latest"}}),
        json!({"output": {"template": "{namespace}/{name}"}}),
        json!({"isolation": {"allowed": ["UserNamespace"], "default": "UserNamespace"}}),
        json!({"isolation": {"default": "HostRange"}}),
        json!({"cache": {"template": "registry.example.com/{namespace}/cache"}}),
        json!({"cache": {"scope": "Policy"}}),
        json!({"timeout": {"maximum": "1h", "default": "1h"}}),
        json!({"proxy": {"https": "http://proxy.example.com:3128"}}),
        json!({"caBundle": "# ours\n-----BEGIN CERTIFICATE-----\n"}),
    ] {
        assert_eq!(policy(&good), Ok(()), "{good}");
    }
    for (bad, words) in [
        (json!({"output": {"template": "registry.example.com/{team}/{name}"}}), "image reference"),
        (json!({"output": {"template": "registry.example.com/A"}}), "image reference"),
        (json!({"isolation": {"allowed": ["UserNamespace"], "default": "HostRange"}}), "one of allowed"),
        (json!({"cache": {}}), "at least one of template and scope"),
        (json!({"cache": {"template": "registry.example.com/cache:1"}}), "without a tag"),
        (json!({"timeout": {"maximum": "1h", "default": "61m"}}), "not be longer"),
        (json!({"timeout": {"maximum": "25h"}}), "between 1s and 24h"),
        (json!({"timeout": {"default": "0s"}}), "between 1s and 24h"),
        (json!({"proxy": {"noProxy": ["a"]}}), "at least one of http and https"),
        (json!({"caBundle": "x"}), "must be PEM"),
    ] {
        let said = policy(&bad).expect_err(words);
        assert!(said.contains(words), "{bad}: {said}");
    }
}

#[test]
fn a_field_of_a_policy_that_is_not_known_is_no_field_to_pass_over() {
    for spec in [
        json!({"new": 1}),
        json!({"output": {"new": 1}}),
        json!({"cache": {"scope": "Cluster"}}),
        json!({"entitlements": ["security.insecure"]}),
    ] {
        let object = json!({"metadata": {"name": "a"}, "spec": spec});
        assert!(serde_json::from_value::<BuildPolicy>(object).is_err(), "{spec}");
    }
}
