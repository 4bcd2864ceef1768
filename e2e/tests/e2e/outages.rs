//! Outages: of the API server, of a kubelet, of a node, of the courier; a pod that is evicted, and one that an admission
//! policy changes on its way. They need the cluster's processes to be on this machine, which `e2e/cluster/up` sees to.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kiln_e2e::cluster::{Sandbox, inline, until};
use kiln_e2e::process::Processes;
use kiln_e2e::{image, registry::Registry};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

/// The pod of a build of which a step of some seconds runs.
async fn in_mid_build(sandbox: &Sandbox, registry: &Registry, seconds: u32) -> Result<Pod> {
    let dockerfile = format!("FROM busybox\nRUN sleep {seconds}; echo x > /x\nRUN echo y > /y\n");
    crate::in_mid_build(sandbox, registry, &dockerfile).await
}

/// That the build succeeded in the attempt of that number, and its image is in the registry.
pub async fn built(sandbox: &Sandbox, registry: &Registry, seconds: u64, attempt: u64) -> Result<Value> {
    let build = sandbox.succeeded("app", seconds).await?;
    let attempts = build["status"]["attempts"].as_array().cloned().unwrap_or_default();
    let last = attempts.last().map(|a| a["number"].clone());
    ensure!(build["status"]["run"] == 1 && last == Some(json!(attempt)), "{:#}", build["status"]);
    let found = image::read(registry, &format!("{}/app", sandbox.name), "latest").await?;
    ensure!(build["status"]["image"]["digest"] == found.digest.as_str());
    Ok(build)
}

#[tokio::test]
async fn the_api_server_is_away_for_two_minutes() -> Result<()> {
    let _guard = crate::operator_to_myself().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("apiaway").await?;
    in_mid_build(&sandbox, &registry, 20).await?;
    let server = Processes::find("kube-apiserver", "")?;
    server.signal("STOP")?;
    // The fault itself: the step ends, the image is pushed, and nobody can say so.
    tokio::time::sleep(Duration::from_secs(120)).await;
    server.signal("CONT")?;
    let build = built(&sandbox, &registry, 180, 1).await?;
    ensure!(sandbox.pods().await?.len() == 1, "nothing was built twice");
    let steps = build["status"]["steps"].as_array().cloned().unwrap_or_default();
    ensure!(steps.iter().all(|s| s["state"] == "Done"), "{steps:?}");
    sandbox.remove().await
}

#[tokio::test]
async fn the_kubelet_is_started_again_in_mid_build() -> Result<()> {
    let _guard = crate::operator_to_myself().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("kubelet").await?;
    let pod = in_mid_build(&sandbox, &registry, 10).await?;
    let node = pod.spec.and_then(|s| s.node_name).context("a node")?;
    let flag = format!("--hostname-override={node}");
    Processes::find("kubelet", &flag)?.signal("KILL")?;
    until(60, "another kubelet", async || Ok((Processes::find("kubelet", &flag)?.count() > 0).then_some(())))
        .await?;
    built(&sandbox, &registry, 240, 1).await?;
    ensure!(sandbox.pods().await?.len() == 1, "nothing was built twice");
    sandbox.remove().await
}

#[tokio::test]
async fn a_courier_that_dies_costs_an_attempt_and_no_more() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("courier").await?;
    let pod = in_mid_build(&sandbox, &registry, 15).await?;
    let uid = pod.metadata.uid.context("a UID")?;
    Processes::find("kiln-courier", &uid)?.signal("KILL")?;
    let build = built(&sandbox, &registry, 240, 2).await?;
    let first = &build["status"]["attempts"][0];
    ensure!(first["class"] == "Infrastructure", "{first:#}");
    sandbox.remove().await
}

#[tokio::test]
async fn a_pod_that_takes_too_much_of_the_disk_is_evicted_and_says_so() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("evicted").await?;
    let dockerfile = "FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count=300 && sleep 120\n";
    let mut spec = inline(dockerfile, &crate::target(&registry, &sandbox.name, "app"));
    spec["resources"] = json!({"limits": {"ephemeral-storage": "100Mi"}});
    spec["retries"] = json!(0);
    sandbox.apply("app", &spec).await?;
    let build = sandbox.finished("app", 180).await?;
    let failure = &build["status"]["failure"];
    ensure!(failure["class"] == "Evicted" && failure["step"] == 2, "{failure:#}");
    ensure!(failure["message"].to_string().contains("ephemeral"), "{failure:#}");
    sandbox.remove().await
}

#[tokio::test]
async fn a_node_that_is_lost_costs_an_attempt_and_no_tag() -> Result<()> {
    let _guard = crate::operator_to_myself().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("nodelost").await?;
    let nodes: Api<Node> = Api::all(sandbox.client.clone());
    if nodes.list(&Default::default()).await?.items.len() < 2 {
        println!("not run: the cluster has one node");
        return sandbox.remove().await;
    }
    let pod = in_mid_build(&sandbox, &registry, 8).await?;
    let (name, node) = (pod.metadata.name.context("a name")?, pod.spec.and_then(|s| s.node_name));
    let node = node.context("a node")?;
    let kubelet = Processes::find("kubelet", &format!("--hostname-override={node}"))?;
    kubelet.signal("STOP")?;
    let cordon = |yes: bool| Patch::Merge(json!({"spec": {"unschedulable": yes}}));
    nodes.patch(&node, &PatchParams::default(), &cordon(true)).await?;
    // What the control plane does with the pods of a node that is silent for five minutes.
    let pods: Api<Pod> = sandbox.api();
    pods.delete(&name, &DeleteParams::default()).await?;
    let built = built(&sandbox, &registry, 400, 2).await;
    nodes.patch(&node, &PatchParams::default(), &cordon(false)).await?;
    kubelet.signal("CONT")?;
    built?;
    until(120, "the lost pod to be gone", async || Ok(pods.get_opt(&name).await?.is_none().then_some(())))
        .await?;
    sandbox.remove().await
}

#[tokio::test]
async fn a_pod_that_an_admission_policy_changes_is_refused_by_name() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("admission").await?;
    let kind = |kind: &str, plural: &str| {
        let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
        ApiResource::from_gvk_with_plural(&kind, plural)
    };
    let policies = kind("MutatingAdmissionPolicy", "mutatingadmissionpolicies");
    let bindings = kind("MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings");
    let expression = r#"[JSONPatch{op: "add", path: "/spec/containers/0/env", value: [Object.spec.containers.env{name: "TOKEN", value: "x"}]}]"#;
    let policy = json!({"spec": {
        "failurePolicy": "Fail", "reinvocationPolicy": "Never",
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
            "operations": ["CREATE"], "resources": ["pods"]}]},
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}],
    }});
    let binding = json!({"spec": {"policyName": sandbox.name, "matchResources": {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": sandbox.name}}}}});
    let mut made = Vec::new();
    for (resource, spec) in [(policies, policy), (bindings, binding)] {
        let api: Api<DynamicObject> = Api::all_with(sandbox.client.clone(), &resource);
        let object = DynamicObject::new(&sandbox.name, &resource).data(spec);
        api.create(&Default::default(), &object)
            .await
            .context("no MutatingAdmissionPolicy in this cluster")?;
        made.push(api);
    }
    // A policy is in force some time after it was made: then a pod shows it.
    let pods: Api<Pod> = sandbox.api();
    let probe =
        json!({"metadata": {"name": "probe"}, "spec": {"containers": [{"name": "c", "image": "none"}]}});
    let dry = kube::api::PostParams { dry_run: true, ..Default::default() };
    until(60, "the policy to be in force", async || {
        let pod = pods.create(&dry, &serde_json::from_value(probe.clone())?).await?;
        Ok(json!(pod).to_string().contains("TOKEN").then_some(()))
    })
    .await?;
    let target = crate::target(&registry, &sandbox.name, "app");
    sandbox.apply("app", &inline("FROM busybox\nRUN true\n", &target)).await?;
    let build = sandbox.finished("app", 60).await;
    for api in made.iter().rev() {
        api.delete(&sandbox.name, &DeleteParams::default()).await?;
    }
    let status = &build?["status"];
    let failure = &status["failure"];
    ensure!(failure["class"] == "Policy" && failure["reason"] == "PodModified", "{status:#}");
    ensure!(failure["message"].to_string().contains("env"), "{failure:#}");
    until(120, "such a pod to be gone", async || Ok(sandbox.pods().await?.is_empty().then_some(()))).await?;
    sandbox.remove().await
}
