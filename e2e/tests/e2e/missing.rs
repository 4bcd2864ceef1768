//! What a build names and is not there yet: told soon, and taken when it appears.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kiln_e2e::cluster::{Sandbox, condition, inline, reason};
use kiln_e2e::registry::Registry;
use kube::api::{Patch, PatchParams};
use serde_json::json;

#[tokio::test]
async fn a_secret_that_is_not_there_is_named_within_30_seconds_and_taken_when_it_appears() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("late").await?;
    // The account lists it, so that the pod is made; only the kubelet knows that it is not there.
    let listed = json!({"secrets": [{"name": "npm"}]});
    let accounts = sandbox.api::<ServiceAccount>();
    accounts.patch("default", &PatchParams::default(), &Patch::Merge(&listed)).await?;
    let dockerfile =
        "FROM busybox\nRUN --mount=type=secret,id=token test \"$(cat /run/secrets/token)\" = late\n";
    let mut spec = inline(dockerfile, &crate::target(&registry, &sandbox.name, "app"));
    spec["secrets"] = json!([{"id": "token", "secretName": "npm", "key": "token"}]);
    sandbox.apply("app", &spec).await?;
    let build = sandbox
        .wait("app", 30, "waiting for the Secret", |b| reason(b, "Reconciling") == Some("WaitingForSecret"))
        .await?;
    ensure!(
        condition(&build, "Reconciling") == Some("True") && condition(&build, "Stalled") == Some("False")
    );
    let conditions = build["status"]["conditions"].to_string();
    let command = format!("kubectl -n {} create secret generic npm --from-file=token=FILE", sandbox.name);
    ensure!(conditions.contains("Secret npm (spec.secrets[0].secretName)"), "{conditions}");
    ensure!(conditions.contains(&command), "{conditions}");

    let secret = json!({"metadata": {"name": "npm"}, "stringData": {"token": "late"}});
    sandbox.api::<Secret>().create(&Default::default(), &serde_json::from_value(secret)?).await?;
    // The kubelet tries again after twice as long each time.
    let build = sandbox.succeeded("app", 180).await?;
    ensure!(build["status"]["attempts"].as_array().is_some_and(|a| a.len() == 1), "in the same pod");
    sandbox.remove().await
}
