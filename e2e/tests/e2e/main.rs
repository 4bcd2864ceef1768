//! One binary for all end-to-end tests: `e2e/cluster/in cargo test -p kiln-e2e`.
//!
//! Tests share one cluster and one operator. Those that stop or kill the operator take [`operator_to_myself`], the
//! others [`with_operator`], so that no test waits for an operator that another one has just taken away.

use std::sync::LazyLock;

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

mod cache;
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
