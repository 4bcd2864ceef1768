//! One binary for all end-to-end tests: `e2e/cluster/in cargo test -p kiln-e2e`.
//!
//! Tests share one cluster and one operator. Those that stop or kill the operator take [`operator_to_myself`], the
//! others [`with_operator`], so that no test waits for an operator that another one has just taken away.

use std::sync::LazyLock;

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

mod cache;
mod cache_mounts;
mod clock;
mod contract;
mod demo;
mod failures;
mod faults;
mod fetches;
mod flux;
mod git_https;
mod gitops;
mod isolation;
mod journals;
mod language;
mod lifecycle;
mod load;
mod missing;
mod outages;
mod pod;
mod policies;
mod servers;
mod sources;
mod waiting;

static OPERATOR: LazyLock<RwLock<()>> = LazyLock::new(RwLock::default);

/// For tests that need the operator to be there.
pub async fn with_operator() -> RwLockReadGuard<'static, ()> {
    OPERATOR.read().await
}

/// For tests that take the operator away.
pub async fn operator_to_myself() -> RwLockWriteGuard<'static, ()> {
    OPERATOR.write().await
}

/// `host/namespace/name:tag` in the cluster's registry: no two tests push to one repository.
pub fn target(registry: &kiln_e2e::registry::Registry, namespace: &str, name: &str) -> String {
    format!("{}/{namespace}/{name}:latest", registry.host())
}

/// Applies the build `app` and waits until its second step runs; its pod.
pub async fn in_mid_build(
    sandbox: &kiln_e2e::cluster::Sandbox,
    registry: &kiln_e2e::registry::Registry,
    dockerfile: &str,
) -> anyhow::Result<k8s_openapi::api::core::v1::Pod> {
    let spec = kiln_e2e::cluster::inline(dockerfile, &target(registry, &sandbox.name, "app"));
    sandbox.apply("app", &spec).await?;
    sandbox.wait("app", 120, "running", |b| b["status"]["steps"][1]["state"] == "Running").await?;
    anyhow::Context::context(sandbox.pods().await?.pop(), "a pod")
}
