//! BuildPolicies: what tenants may do and get, by the labels of their namespaces.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kiln_e2e::cluster::{Sandbox, condition, inline, reason, until};
use kiln_e2e::image;
use kiln_e2e::registry::Registry;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams};
use serde_json::{Value, json};

/// The label that says which policies of these tests a namespace has.
const TENANT: &str = "kiln-e2e/tenant";

fn policies(sandbox: &Sandbox) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("kiln.build", "v1alpha1", "BuildPolicy");
    let resource = ApiResource::from_gvk_with_plural(&kind, "buildpolicies");
    Api::all_with(sandbox.client.clone(), &resource)
}

/// Digest of what holds in the namespace, as the operator sees it now: that of a build which never has a pod.
async fn seen(sandbox: &Sandbox) -> Result<Value> {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let asked = json!(ASKED.fetch_add(1, Ordering::Relaxed).to_string());
    sandbox.apply("canary", &inline("NONE", "canary.example.com/none")).await?;
    sandbox.annotate("canary", "kiln.build/rebuild", asked.clone()).await?;
    let answered =
        |b: &Value| b["status"]["lastHandledRebuild"] == asked && b["status"]["completionTime"].is_string();
    let canary = sandbox.wait("canary", 60, "looked at", answered).await?;
    Ok(canary["status"]["policy"]["digest"].clone())
}

/// Applies a policy and waits until the operator keeps it in the namespace.
async fn enforce(sandbox: &Sandbox, name: &str, spec: &Value) -> Result<()> {
    let before = seen(sandbox).await?;
    let object = json!({"apiVersion": "kiln.build/v1alpha1", "kind": "BuildPolicy",
        "metadata": {"name": name}, "spec": spec});
    let params = PatchParams::apply("kiln-e2e").force();
    policies(sandbox).patch(name, &params, &Patch::Apply(&object)).await?;
    until(60, "the operator to see the policy", async || Ok((seen(sandbox).await? != before).then_some(())))
        .await
}

/// Gives the namespace, and no other, a policy of its name and that spec; another spec takes the place of the one before.
async fn govern(sandbox: &Sandbox, mut spec: Value) -> Result<()> {
    spec["namespaceSelector"] = json!({"matchLabels": {"kubernetes.io/metadata.name": sandbox.name}});
    enforce(sandbox, &sandbox.name, &spec).await
}

async fn remove(sandbox: Sandbox) -> Result<()> {
    policies(&sandbox).delete(&sandbox.name, &DeleteParams::default()).await?;
    sandbox.remove().await
}

/// That the build was refused by the namespace's policy, in these words, and stands still.
fn refused(build: &Value, words: &[&str]) -> Result<()> {
    let failure = &build["status"]["failure"];
    ensure!(failure["class"] == "Policy" && failure["reason"] == "PolicyRefused", "{failure:#}");
    ensure!(condition(build, "Stalled") == Some("True") && reason(build, "Ready") == Some("PolicyRefused"));
    let message = failure["message"].as_str().context("a message")?;
    for word in words {
        ensure!(message.contains(word), "expected {word:?} in {message}");
    }
    Ok(())
}

#[tokio::test]
async fn a_tenant_who_names_what_is_not_theirs_is_told_whose_word_it_is() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let small = Sandbox::with_labels("policy-small", &[(TENANT, "small")]).await?;
    let large = Sandbox::with_labels("policy-large", &[(TENANT, "large")]).await?;
    let own = format!("{}/{{namespace}}/*", registry.host());
    let limits = |allowed: &[&str]| {
        json!({"output": {"allowedRepositories": allowed}, "timeout": {"maximum": "10m"},
            "resources": {"maximum": {"memory": "512Mi"}}, "isolation": {"allowed": ["UserNamespace"]}})
    };
    govern(&small, limits(&[&own])).await?;
    govern(&large, json!({"output": {"allowedRepositories": [registry.host()]}})).await?;
    let dockerfile = "FROM busybox\nRUN true\n";
    let of_small = format!("BuildPolicy {}: spec.", small.name);

    // The same repository: not the one's, and the other's.
    let theirs = crate::target(&registry, &large.name, "app");
    small.apply("theirs", &inline(dockerfile, &theirs)).await?;
    let build = small.finished("theirs", 60).await?;
    let allowed = format!("{}/{}/*", registry.host(), small.name);
    refused(&build, &[&of_small, "output.allowedRepositories", &allowed, &format!("{}/app", large.name)])?;
    ensure!(build["status"]["policy"]["names"] == json!([small.name]), "{:#}", build["status"]["policy"]);
    large.apply("app", &inline(dockerfile, &theirs)).await?;

    let mine = crate::target(&registry, &small.name, "mine");
    for (name, field, value, words) in [
        ("long", "timeout", json!("11m"), ["timeout.maximum allows 10m0s", "found 11m"]),
        (
            "greedy",
            "resources",
            json!({"limits": {"memory": "513Mi"}}),
            ["resources.maximum.memory allows 512Mi", "spec.resources.limits.memory"],
        ),
        (
            "weak",
            "isolation",
            json!("HostRange"),
            ["isolation.allowed allows UserNamespace", "found HostRange"],
        ),
    ] {
        let mut spec = inline(dockerfile, &mine);
        spec[field] = value;
        small.apply(name, &spec).await?;
        refused(&small.finished(name, 60).await?, &[&[&of_small[..]], &words[..]].concat())?;
    }
    let mut plain = inline(dockerfile, &mine);
    plain["output"]["insecure"] = json!(true);
    // The test registry is known to speak plain HTTP; another one is not.
    plain["output"]["image"] = json!(format!("plain.example.com/{}/a:1", small.name));
    govern(&small, limits(&[&own, "plain.example.com"])).await?;
    small.apply("plain", &plain).await?;
    refused(&small.finished("plain", 60).await?, &["spec.output.allowInsecure", "plain.example.com"])?;
    ensure!(small.pods().await?.is_empty(), "nothing of this needs a pod");

    large.succeeded("app", 120).await?;
    remove(large).await?;
    remove(small).await
}

#[tokio::test]
async fn what_was_refused_is_built_when_the_policy_allows_it() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("policy-change").await?;
    govern(&sandbox, json!({"output": {"allowedRepositories": []}})).await?;
    let target = crate::target(&registry, &sandbox.name, "app");
    let spec = inline("FROM busybox\nRUN true\n", &target);
    sandbox.apply("app", &spec).await?;
    let build = sandbox.finished("app", 60).await?;
    refused(&build, &["allows none"])?;
    ensure!(build["status"]["run"] == 1);

    govern(&sandbox, json!({"timeout": {"maximum": "5m"}, "resources": {"maximum": {"memory": "1Gi"}}}))
        .await?;
    let done = |b: &Value| condition(b, "Succeeded") == Some("True");
    let build = sandbox.wait("app", 120, "built by itself", done).await?;
    ensure!(build["status"]["run"] == 2, "{:#}", build["status"]);
    // What it did not ask for it got, as far as the policy goes.
    let pod = serde_json::to_value(sandbox.pods().await?.remove(0))?;
    ensure!(pod["spec"]["activeDeadlineSeconds"] == 600, "{:#}", pod["spec"]);
    let limits = &pod["spec"]["containers"][0]["resources"]["limits"];
    ensure!(limits["memory"] == "1Gi", "{limits:#}");

    // A policy that changes builds nothing that was built.
    govern(&sandbox, json!({"timeout": {"maximum": "4m"}})).await?;
    sandbox.annotate("app", "kiln-e2e/look", json!("again")).await?;
    sandbox.apply("next", &inline("FROM busybox\nRUN false\n", &target)).await?;
    sandbox.finished("next", 120).await?;
    let build = serde_json::to_value(sandbox.builds().get("app").await?)?;
    ensure!(build["status"]["run"] == 2, "{:#}", build["status"]);
    remove(sandbox).await
}

#[tokio::test]
async fn base_images_are_refused_at_their_line_here_and_in_the_pod() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("policy-bases").await?;
    govern(
        &sandbox,
        json!({"baseImages": {"allowedRepositories": ["docker.io/library/alpine", "quay.io/*"]}}),
    )
    .await?;
    let target = crate::target(&registry, &sandbox.name, "app");

    // The operator sees the Dockerfile.
    sandbox.config_map("files", &json!({"Dockerfile": "# one\nFROM busybox\nRUN true\n"})).await?;
    let of_map = json!({"source": {"configMap": {"name": "files"}}, "output": {"image": target}});
    sandbox.apply("map", &of_map).await?;
    let build = sandbox.finished("map", 60).await?;
    let words = [
        "baseImages.allowedRepositories",
        "docker.io/library/alpine, quay.io/*",
        "found docker.io/library/busybox",
    ];
    refused(&build, &words)?;
    ensure!(build["status"]["failure"]["line"] == 2, "{:#}", build["status"]["failure"]);
    ensure!(sandbox.pods().await?.is_empty());

    // Only the build does: of what the operator does not look at, the courier is the boundary.
    let copy = "FROM scratch\nCOPY --from=busybox /bin/busybox /b\n";
    sandbox.apply("copy", &inline(copy, &target)).await?;
    let build = sandbox.finished("copy", 120).await?;
    refused(&build, &words)?;
    let failure = &build["status"]["failure"];
    ensure!(failure["line"] == 2 && failure["file"] == "Dockerfile", "{failure:#}");
    ensure!(build["status"]["attempts"].as_array().is_some_and(|a| a.len() == 1), "it is not tried again");
    remove(sandbox).await
}

#[tokio::test]
async fn a_proxy_is_in_the_step_and_not_in_the_image() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("policy-proxy").await?;
    // Nobody is there: what does not go past it fails.
    let proxy = "http://proxy.invalid:3128";
    let (host, _) = registry.host().rsplit_once(':').context("a port")?;
    govern(
        &sandbox,
        json!({"proxy": {"http": proxy, "https": proxy, "noProxy": [".svc", host]},
        "output": {"template": format!("{}/{{namespace}}/{{name}}:latest", registry.host())}}),
    )
    .await?;
    let dockerfile = "FROM busybox\nRUN env | sort > /env\n";
    let mut spec = inline(dockerfile, "");
    // Where the image goes is the policy's word, too.
    spec.as_object_mut().context("an object")?.remove("output");
    sandbox.apply("app", &spec).await?;
    let build = sandbox.succeeded("app", 120).await?;
    ensure!(build["status"]["output"] == crate::target(&registry, &sandbox.name, "app"), "{build:#}");
    let image = image::read(&registry, &format!("{}/app", sandbox.name), "latest").await?;
    let env = image.file("env")?;
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"] {
        ensure!(env.lines().any(|line| line == format!("{name}={proxy}")), "{name}: {env}");
    }
    ensure!(env.lines().any(|line| line == format!("no_proxy=.svc,{host}")), "{env}");
    let config = image.config.to_string();
    ensure!(!config.to_lowercase().contains("proxy"), "{config}");

    let add = "FROM scratch\nADD http://files.example.com/a.txt /a\n";
    spec["source"]["inline"]["files"][0]["content"] = json!(add);
    spec["timeout"] = json!("4m");
    sandbox.apply("add", &spec).await?;
    let build = sandbox.finished("add", 240).await?;
    let failure = &build["status"]["failure"];
    ensure!(failure["reason"] == "DownloadFailed" && failure["line"] == 2, "{failure:#}");
    remove(sandbox).await
}

#[tokio::test]
async fn a_namespace_that_lets_builders_in_later_is_built_in_then() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let enforce = "pod-security.kubernetes.io/enforce";
    let sandbox = Sandbox::with_labels("policy-pss", &[(enforce, "restricted")]).await?;
    let target = crate::target(&registry, &sandbox.name, "app");
    sandbox.apply("app", &inline("FROM busybox\nRUN true\n", &target)).await?;
    let build = sandbox.finished("app", 60).await?;
    let failure = &build["status"]["failure"];
    ensure!(failure["class"] == "Policy" && failure["reason"] == "PodRefused", "{failure:#}");
    ensure!(failure["message"].as_str().is_some_and(|m| m.contains("restricted")), "{failure:#}");
    let namespaces: Api<Namespace> = Api::all(sandbox.client.clone());
    let patch = json!({"metadata": {"labels": {enforce: "baseline"}}});
    namespaces.patch(&sandbox.name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    let done = |b: &Value| condition(b, "Succeeded") == Some("True");
    sandbox.wait("app", 120, "built by itself", done).await?;
    sandbox.remove().await
}

#[tokio::test]
async fn namespaces_of_a_policy_share_its_places() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let tenant = format!("shared-{}", std::process::id());
    let one = Sandbox::with_labels("policy-one", &[(TENANT, &tenant)]).await?;
    let two = Sandbox::with_labels("policy-two", &[(TENANT, &tenant)]).await?;
    let spec = json!({"namespaceSelector": {"matchLabels": {TENANT: tenant}}, "concurrency": {"total": 1}});
    enforce(&one, &tenant, &spec).await?;
    // It holds its place until it is cancelled.
    let endless =
        inline("FROM busybox\nRUN while true; do sleep 1; done\n", &crate::target(&registry, &one.name, "a"));
    one.apply("a", &endless).await?;
    one.wait("a", 60, "building", |b| reason(b, "Ready") == Some("Building")).await?;
    two.apply("b", &inline("FROM busybox\nRUN true\n", &crate::target(&registry, &two.name, "b"))).await?;
    let waiting = two.wait("b", 60, "queued", |b| reason(b, "Ready") == Some("Queued")).await?;
    let ready = waiting["status"]["conditions"].to_string();
    ensure!(
        waiting["status"]["queue"]["reason"] == "Policy" && ready.contains(&tenant),
        "{:#}",
        waiting["status"]
    );
    one.annotate("a", "kiln.build/cancel", json!("1")).await?;
    two.succeeded("b", 150).await?;
    policies(&one).delete(&tenant, &DeleteParams::default()).await?;
    one.remove().await?;
    two.remove().await
}
