//! `kubectl wait` on an ImageBuild, as docs/gitops.md says: which wait returns at which end.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use kiln_e2e::cluster::{Sandbox, inline};
use kiln_e2e::registry::Registry;
use serde_json::json;
use tokio::process::Command;

const SUCCEEDED: &str = "--for=condition=Succeeded";
const STALLED: &str = "--for=condition=Stalled";
const ENDED: &str = "--for=jsonpath={.status.completionTime}";

/// What `kubectl wait` answers about the object `app`.
async fn wait(sandbox: &Sandbox, what: &str, seconds: u32) -> Result<Output> {
    let timeout = format!("--timeout={seconds}s");
    Command::new("kubectl")
        .args(["-n", &sandbox.name, "wait", "imagebuild/app", what, &timeout])
        .output()
        .await
        .context("kubectl was not found in PATH; run this with e2e/cluster/in")
}

/// Fails unless the wait was over in time.
async fn returns(sandbox: &Sandbox, what: &str) -> Result<()> {
    let output = wait(sandbox, what, 180).await?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl wait {what} should have returned: {words}");
    ensure!(String::from_utf8_lossy(&output.stdout).contains("condition met"), "{what}: {output:?}");
    Ok(())
}

/// Fails unless the wait goes on for an object that has ended.
async fn goes_on(sandbox: &Sandbox, what: &str) -> Result<()> {
    let output = wait(sandbox, what, 2).await?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && words.contains("timed out"), "kubectl wait {what}: {output:?}");
    Ok(())
}

#[tokio::test]
async fn a_build_that_succeeds() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("wait-success").await?;
    let target = crate::target(&registry, &sandbox.name, "app");
    sandbox.apply("app", &inline("FROM busybox\nRUN echo 1 > /n\n", &target)).await?;
    // Both at once: each begins before the build has ended.
    tokio::try_join!(returns(&sandbox, SUCCEEDED), returns(&sandbox, ENDED))?;
    goes_on(&sandbox, STALLED).await?;
    sandbox.remove().await
}

#[tokio::test]
async fn a_build_that_fails() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("wait-failure").await?;
    let target = crate::target(&registry, &sandbox.name, "app");
    sandbox.apply("app", &inline("FROM busybox\nRUN exit 3\n", &target)).await?;
    tokio::try_join!(returns(&sandbox, STALLED), returns(&sandbox, ENDED))?;
    goes_on(&sandbox, SUCCEEDED).await?;
    sandbox.remove().await
}

#[tokio::test]
async fn a_build_that_is_cancelled() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("wait-cancel").await?;
    let target = crate::target(&registry, &sandbox.name, "app");
    sandbox.apply("app", &inline("FROM busybox\nRUN sleep 600\n", &target)).await?;
    sandbox.wait("app", 120, "running its step", |b| b["status"]["steps"][1]["state"] == "Running").await?;
    goes_on(&sandbox, ENDED).await?;
    sandbox.annotate("app", "kiln.build/cancel", json!("1")).await?;
    tokio::try_join!(returns(&sandbox, STALLED), returns(&sandbox, ENDED))?;
    goes_on(&sandbox, SUCCEEDED).await?;
    sandbox.remove().await
}
