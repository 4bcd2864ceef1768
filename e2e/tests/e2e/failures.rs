//! Builds that fail through the user's or the registry's doing, and what the object says then.

use anyhow::{Context, Result, ensure};
use kiln_e2e::cluster::{Sandbox, condition, inline, reason};
use kiln_e2e::registry::Registry;
use serde_json::json;

#[tokio::test]
async fn a_failing_run_says_step_line_code_and_tail() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("fail").await?;
    let dockerfile =
        "FROM busybox\n\n# a comment\nRUN echo fine\nRUN echo the reason >&2; exit 42\nRUN echo never\n";
    sandbox.apply("fail", &inline(dockerfile, &crate::target(&registry, &sandbox.name, "fail"))).await?;
    let build = sandbox.finished("fail", 120).await?;
    let failure = &build["status"]["failure"];
    for (key, wanted) in [
        ("class", json!("User")),
        ("reason", json!("StepFailed")),
        ("file", json!("Dockerfile")),
        ("line", json!(5)),
        ("step", json!(3)),
        ("exitCode", json!(42)),
    ] {
        ensure!(failure[key] == wanted, "{key} of {failure:#}");
    }
    ensure!(failure["logTail"].as_str().is_some_and(|t| t.contains("the reason")), "{failure:#}");
    ensure!(condition(&build, "Stalled") == Some("True") && condition(&build, "Ready") == Some("False"));
    ensure!(
        condition(&build, "Succeeded") == Some("False") && condition(&build, "Reconciling") == Some("False")
    );
    ensure!(reason(&build, "Stalled") == Some("StepFailed"));
    let states: Vec<_> = (0..4).map(|n| build["status"]["steps"][n]["state"].clone()).collect();
    ensure!(states == ["Done", "Done", "Failed", "Skipped"], "{states:?}");
    ensure!(build["status"]["completionTime"].is_string());
    let pods = sandbox.pods().await?;
    ensure!(pods.len() == 1, "the pod is kept, and a user's fault is not tried again");
    let log = sandbox.logs(pods[0].metadata.name.as_deref().unwrap_or_default(), "build").await?;
    ensure!(log.contains("returned a non-zero code: 42") && log.contains("Dockerfile:5"), "{log}");
    ensure!(registry.tags(&format!("{}/fail", sandbox.name)).await?.is_empty(), "nothing is tagged");

    // Fixing the spec builds at once.
    sandbox
        .apply(
            "fail",
            &inline("FROM busybox\nRUN echo fixed\n", &crate::target(&registry, &sandbox.name, "fail")),
        )
        .await?;
    let build = sandbox.succeeded("fail", 120).await?;
    ensure!(build["status"]["run"] == 2 && build["status"]["failure"].is_null(), "{:#}", build["status"]);
    sandbox.remove().await
}

#[tokio::test]
async fn a_typo_is_found_before_any_pod_is_made() -> Result<()> {
    let _guard = crate::with_operator().await;
    let sandbox = Sandbox::new("typo").await?;
    sandbox.apply("typo", &inline("FROM busybox\nRUNN echo hi\n", "registry.invalid/a:b")).await?;
    let build = sandbox.finished("typo", 60).await?;
    let failure = &build["status"]["failure"];
    ensure!(failure["reason"] == "DockerfileInvalid" && failure["line"] == 2, "{failure:#}");
    ensure!(
        failure["message"].as_str().is_some_and(|m| m.contains("RUNN") && m.contains("RUN?")),
        "{failure:#}"
    );
    ensure!(sandbox.pods().await?.is_empty());
    sandbox.remove().await
}

#[tokio::test]
async fn what_is_not_there_yet_is_refused_by_name_with_its_line() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("unsupported").await?;
    let dockerfile = "FROM busybox\nRUN --security=insecure id\n";
    sandbox.apply("no", &inline(dockerfile, &crate::target(&registry, &sandbox.name, "no"))).await?;
    let build = sandbox.finished("no", 120).await?;
    let failure = &build["status"]["failure"];
    ensure!(failure["line"] == 2 && failure["class"] == "User", "{failure:#}");
    ensure!(failure["message"].as_str().is_some_and(|m| m.contains("--security")), "{failure:#}");
    sandbox.remove().await
}

#[tokio::test]
async fn a_missing_base_image_is_named() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("nobase").await?;
    let from = format!("{}/no/such:image", registry.host());
    let dockerfile = format!("# first line\nFROM {from}\nRUN true\n");
    sandbox.apply("nobase", &inline(&dockerfile, &crate::target(&registry, &sandbox.name, "nobase"))).await?;
    let build = sandbox.finished("nobase", 120).await?;
    let failure = &build["status"]["failure"];
    ensure!(failure["reason"] == "BaseImageNotFound" && failure["line"] == 2, "{failure:#}");
    ensure!(failure["message"].as_str().is_some_and(|m| m.contains("no/such")), "{failure:#}");
    sandbox.remove().await
}

#[tokio::test]
async fn wrong_registry_credentials_fail_soon_and_name_the_registry() -> Result<()> {
    let _guard = crate::with_operator().await;
    let guarded = Registry::guarded()?;
    let host = guarded.host();
    let (user, password) = guarded.login().context("a login")?;
    let sandbox = Sandbox::new("auth").await?;
    let spec = inline("FROM scratch\nCOPY Dockerfile /\n", &format!("{host}/{}/app:1", sandbox.name));
    for (name, secret) in [("none", None), ("wrong", Some("not the password"))] {
        if let Some(secret) = secret {
            sandbox.registry_secret("push", host, user, secret).await?;
        }
        sandbox.apply(name, &spec).await?;
        let build = sandbox.finished(name, 90).await?;
        let failure = &build["status"]["failure"];
        ensure!(failure["class"] == "Registry" && failure["reason"] == "RegistryUnauthorized", "{failure:#}");
        ensure!(failure["message"].as_str().is_some_and(|m| m.contains(host)), "{failure:#}");
        ensure!(sandbox.pods().await?.len() == if secret.is_some() { 2 } else { 1 }, "it is not tried again");
    }
    let right = Sandbox::new("authok").await?;
    right.registry_secret("push", host, user, password).await?;
    right
        .apply("right", &inline("FROM scratch\nCOPY Dockerfile /\n", &format!("{host}/{}/app:1", right.name)))
        .await?;
    right.succeeded("right", 90).await?;
    right.remove().await?;
    sandbox.remove().await
}

#[tokio::test]
async fn a_build_that_takes_too_long_times_out() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("timeout").await?;
    let mut spec = inline("FROM busybox\nRUN sleep 600\n", &crate::target(&registry, &sandbox.name, "slow"));
    spec["timeout"] = json!("15s");
    sandbox.apply("slow", &spec).await?;
    let build = sandbox.finished("slow", 120).await?;
    let failure = &build["status"]["failure"];
    ensure!(
        failure["class"] == "Timeout" && failure["reason"] == "TimedOut" && failure["step"] == 2,
        "{failure:#}"
    );
    ensure!(build["status"]["completionTime"].is_string() && condition(&build, "Stalled") == Some("True"));
    sandbox.remove().await
}
