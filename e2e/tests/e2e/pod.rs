//! The builder pod as the API server has it.

use anyhow::{Context, Result, ensure};
use kiln_e2e::cluster::{Sandbox, inline};
use kiln_e2e::registry::Registry;
use serde_json::{Value, json};

#[tokio::test]
async fn the_builder_pod_fits_baseline_and_its_build_container_holds_nothing() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let enforce = [
        ("pod-security.kubernetes.io/enforce", "baseline"),
        ("pod-security.kubernetes.io/enforce-version", "latest"),
    ];
    let sandbox = Sandbox::with_labels("baseline", &enforce).await?;
    sandbox.registry_secret("push", registry.host(), "anybody", "anything").await?;
    sandbox
        .apply("app", &inline("FROM busybox\nRUN true\n", &crate::target(&registry, &sandbox.name, "app")))
        .await?;
    sandbox.succeeded("app", 120).await?;

    let pod = serde_json::to_value(sandbox.pods().await?.remove(0))?;
    let spec = &pod["spec"];
    ensure!(spec["hostUsers"] == false && spec["automountServiceAccountToken"] == false, "{spec:#}");
    ensure!(spec["restartPolicy"] == "Never" && spec["hostNetwork"].is_null() && spec["hostPID"].is_null());
    let containers = |key: &str| spec[key].as_array().cloned().unwrap_or_default();
    let (main, init) = (containers("containers"), containers("initContainers"));
    ensure!(main.len() == 1 && main[0]["name"] == "build" && init[0]["name"] == "courier", "{spec:#}");
    ensure!(init[0]["restartPolicy"] == "Always", "the courier is a native sidecar");
    for container in main.iter().chain(&init) {
        let security = &container["securityContext"];
        ensure!(security["privileged"] != true, "{container:#}");
        ensure!(security["capabilities"]["drop"] == json!(["ALL"]), "{container:#}");
        ensure!(security["seccompProfile"]["type"] != "Unconfined", "{container:#}");
        let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
        let token =
            mounts.iter().any(|m| m["mountPath"].as_str().is_some_and(|p| p.contains("serviceaccount")));
        ensure!(!token, "no token is mounted: {container:#}");
    }
    let build = &main[0];
    let mut added: Vec<&str> = build["securityContext"]["capabilities"]["add"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    added.sort_unstable();
    ensure!(added == ["SETGID", "SETUID"], "{added:?}");
    ensure!(init[0]["securityContext"]["capabilities"]["add"].is_null(), "the courier has no capability");
    ensure!(
        build["securityContext"]["seccompProfile"]["type"] == "Localhost",
        "the chart's profile is in force"
    );
    ensure!(build["env"].is_null() && build["envFrom"].is_null(), "{build:#}");

    let volumes = spec["volumes"].as_array().context("no volumes")?;
    for mount in build["volumeMounts"].as_array().context("no mounts")? {
        let volume = volumes.iter().find(|v| v["name"] == mount["name"]).context("a mount without volume")?;
        ensure!(volume["secret"].is_null() && volume["projected"].is_null(), "build mounts {volume}");
        ensure!(volume["downwardAPI"].is_null() && volume["hostPath"].is_null(), "build mounts {volume}");
    }
    ensure!(volumes.iter().any(|v| !v["secret"].is_null()), "the courier has the registry's Secret");
    sandbox.remove().await
}
