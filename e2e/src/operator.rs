//! Faults for the operator: killed with -9, stopped, started again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

/// Namespace that the chart is installed in.
pub const NAMESPACE: &str = "kiln-system";
/// Name of the record of who leads.
const LEASE: &str = "kiln-operator";

/// Sends SIGKILL to every operator process of this machine; when there is none (a cluster elsewhere) the operator's
/// pods are deleted without grace. Returns how many were killed.
///
/// # Errors
/// The API could not be reached.
pub async fn kill(client: &kube::Client) -> Result<usize> {
    let mut killed = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if comm.trim() == "kiln-operator" {
            let done = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status()?;
            killed += usize::from(done.success());
        }
    }
    if killed == 0 {
        let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
        for pod in pods.list(&ListParams::default().labels("app.kubernetes.io/name=kiln")).await? {
            remove(client, &pod.metadata.name.unwrap_or_default()).await?;
            killed += 1;
        }
    }
    Ok(killed)
}

/// The operator's Deployment.
async fn deployment(client: &kube::Client) -> Result<Deployment> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let list =
        deployments.list(&ListParams::default().labels("app.kubernetes.io/component=operator")).await?;
    list.items.into_iter().next().context("no operator deployment in kiln-system")
}

/// Sets how many operators there are to be and waits until it is so.
///
/// # Errors
/// It did not come to be within two minutes.
pub async fn scale(client: &kube::Client, replicas: i32) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let name = deployment(client).await?.metadata.name.unwrap_or_default();
    let patch = json!({"spec": {"replicas": replicas}});
    deployments.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    crate::cluster::until(120, "the operator to be scaled", async || {
        let now = deployments.get(&name).await?;
        let ready = now.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
        let selector = ListParams::default().labels("app.kubernetes.io/component=operator");
        let left = pods.list(&selector).await?.items.len();
        Ok((ready == replicas && (replicas > 0 || left == 0)).then_some(()))
    })
    .await
}

/// The pod of the operator that decides.
///
/// # Errors
/// There is none within a minute.
pub async fn leader(client: &kube::Client) -> Result<String> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    crate::cluster::until(60, "an operator that leads", async || {
        let holder = leases.get(LEASE).await?.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        // The pod's name, and what tells one process of it from another.
        let name = holder.rsplit_once('_').map_or(holder.as_str(), |(name, _)| name);
        Ok(if name.is_empty() { None } else { pods.get_opt(name).await?.and_then(|pod| pod.metadata.name) })
    })
    .await
}

/// Takes a pod of the operator away, without grace.
///
/// # Errors
/// There is none of this name.
pub async fn remove(client: &kube::Client, pod: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    pods.delete(pod, &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await?;
    Ok(())
}

/// The name of the operator's ConfigMap, and the text of its configuration.
async fn configuration(client: &kube::Client) -> Result<(String, String)> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let all = maps.list(&ListParams::default().labels("app.kubernetes.io/component=operator")).await?;
    let found = all.items.into_iter().find_map(|map| {
        let text = map.data?.remove("config.yaml")?;
        Some((map.metadata.name?, text))
    });
    found.context("no configuration of the operator in kiln-system")
}

/// Starts the operator with other settings: `change` gets the text of its configuration. Returns the text as it was.
///
/// # Errors
/// The configuration is not there, or the operator did not start with the new one.
pub async fn settings(client: &kube::Client, change: impl FnOnce(&str) -> String) -> Result<String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let (name, before) = configuration(client).await?;
    scale(client, 0).await?;
    let patch = json!({"data": {"config.yaml": change(&before)}});
    maps.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    scale(client, 1).await?;
    Ok(before)
}

/// An operator outside of the cluster, with the settings and rights of the one inside, whose machine's clock is wrong. It is killed
/// when this is dropped.
#[derive(Debug)]
pub struct WithWrongClock {
    process: Child,
    log: PathBuf,
}

impl WithWrongClock {
    /// Starts one whose clock is `seconds` ahead of this machine's; `dir` is for its files.
    ///
    /// # Errors
    /// The program or libfaketime is not there (`scripts/e2e` sees to both), or the API could not be reached.
    pub async fn start(client: &kube::Client, dir: &Path, seconds: i64) -> Result<Self> {
        // target/debug/deps/e2e-…
        let tests = std::env::current_exe()?;
        let program = tests.ancestors().nth(2).context("a target directory")?.join("kiln-operator");
        ensure!(program.exists(), "{} is not there: cargo build -p kiln-operator", program.display());
        let lib = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
        ensure!(Path::new(&lib).exists(), "{lib} is not there: install the package libfaketime");

        let (_, config) = configuration(client).await?;
        fs::write(dir.join("config.yaml"), config)?;
        let account =
            deployment(client).await?.spec.and_then(|spec| spec.template.spec?.service_account_name);
        let mut access = kube::config::Kubeconfig::read().context("KUBECONFIG")?;
        for info in access.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
            let account = account.as_deref().unwrap_or("default");
            info.impersonate = Some(format!("system:serviceaccount:{NAMESPACE}:{account}"));
        }
        fs::write(dir.join("kubeconfig"), serde_json::to_string(&access)?)?;

        let log = dir.join(format!("operator{seconds:+}.log"));
        let process = Command::new(&program)
            .args(["--admin-address", "127.0.0.1:0", "--namespace", NAMESPACE])
            .args(["--identity", &format!("clock{seconds:+}"), "--config"])
            .arg(dir.join("config.yaml"))
            .env("KUBECONFIG", dir.join("kubeconfig"))
            .env("LD_PRELOAD", &lib)
            .env("FAKETIME", format!("{seconds:+}"))
            // Waiting is right on such a machine; what it is that is wrong is the time of day.
            .envs([("FAKETIME_DONT_FAKE_MONOTONIC", "1"), ("DONT_FAKE_MONOTONIC", "1")])
            .stderr(fs::File::create(&log)?)
            .spawn()
            .with_context(|| program.display().to_string())?;
        Ok(Self { process, log })
    }

    /// What it has logged.
    ///
    /// # Errors
    /// Its log can't be read.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| self.log.display().to_string())
    }
}

impl Drop for WithWrongClock {
    fn drop(&mut self) {
        // Else it has ended by itself.
        if self.process.kill().is_ok() {
            let _ = self.process.wait();
        }
    }
}
