//! The cluster under test: namespaces of their own for each test, ImageBuilds as the JSON that users write, and waiting
//! for conditions by watching, with the last state in the error when they don't come.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use kube::api::{
    Api, ApiResource, AttachParams, DeleteParams, DynamicObject, GroupVersionKind, ListParams, LogParams,
    ObjectMeta, Patch, PatchParams,
};
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

/// Field manager of what the tests apply.
const MANAGER: &str = "kiln-e2e";

/// A namespace that one test has for itself.
#[derive(Clone)]
pub struct Sandbox {
    /// The API.
    pub client: kube::Client,
    /// The namespace's name.
    pub name: String,
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Asks again until `probe` yields something, for at most `seconds`.
///
/// # Errors
/// It didn't, or `probe` failed.
pub async fn until<T, F>(seconds: u64, what: &str, mut probe: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tick.tick().await;
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        if Instant::now() > end {
            bail!("waited {seconds} s in vain for {what}");
        }
    }
}

/// A client for the cluster that `KUBECONFIG` names.
///
/// # Errors
/// There is none.
pub async fn client() -> Result<kube::Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    kube::Client::try_default()
        .await
        .context("no cluster: run the tests through e2e/cluster/in, or set KUBECONFIG")
}

impl Sandbox {
    /// Makes a namespace whose name begins with `prefix`.
    ///
    /// # Errors
    /// The API refused it.
    pub async fn new(prefix: &str) -> Result<Self> {
        Self::with_labels(prefix, &[]).await
    }

    /// The same with labels on the namespace.
    ///
    /// # Errors
    /// The API refused it.
    pub async fn with_labels(prefix: &str, labels: &[(&str, &str)]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let client = client().await?;
        let name = format!("e2e-{prefix}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let labels: BTreeMap<_, _> = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let metadata = ObjectMeta { name: Some(name.clone()), labels: Some(labels), ..ObjectMeta::default() };
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces.create(&Default::default(), &Namespace { metadata, ..Namespace::default() }).await?;
        let sandbox = Self { client, name };
        let accounts: Api<ServiceAccount> = sandbox.api();
        until(60, "the namespace's default service account", async || {
            Ok(accounts.get_opt("default").await?)
        })
        .await?;
        Ok(sandbox)
    }

    /// Namespaced API of a built-in kind.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// The ImageBuilds of the namespace.
    pub fn builds(&self) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("kiln.build", "v1alpha1", "ImageBuild");
        Api::namespaced_with(
            self.client.clone(),
            &self.name,
            &ApiResource::from_gvk_with_plural(&kind, "imagebuilds"),
        )
    }

    /// Applies an ImageBuild as `kubectl apply --server-side` would.
    ///
    /// # Errors
    /// The API refused it.
    pub async fn apply(&self, name: &str, spec: &Value) -> Result<DynamicObject> {
        let object = json!({"apiVersion": "kiln.build/v1alpha1", "kind": "ImageBuild",
            "metadata": {"name": name}, "spec": spec});
        Ok(self.builds().patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object)).await?)
    }

    /// Sets (or with `null` removes) an annotation of an ImageBuild.
    ///
    /// # Errors
    /// The API refused it.
    pub async fn annotate(&self, name: &str, key: &str, value: Value) -> Result<()> {
        let patch = json!({"metadata": {"annotations": {key: value}}});
        self.builds().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(())
    }

    /// Waits until the object's JSON fulfils `wanted`, and returns it.
    ///
    /// # Errors
    /// It didn't within `seconds`; the error has the status as it last was.
    pub async fn wait(
        &self,
        name: &str,
        seconds: u64,
        what: &str,
        wanted: impl Fn(&Value) -> bool + Send + Sync,
    ) -> Result<Value> {
        let holds = |object: Option<&DynamicObject>| {
            object.and_then(|o| serde_json::to_value(o).ok()).is_some_and(|value| wanted(&value))
        };
        let waiting = await_condition(self.builds(), name, holds);
        match tokio::time::timeout(Duration::from_secs(seconds), waiting).await {
            Ok(Ok(Some(object))) => Ok(serde_json::to_value(object)?),
            Ok(Ok(None)) => bail!("{name} is gone"),
            Ok(Err(e)) => Err(e.into()),
            Err(_) => {
                let now = serde_json::to_value(self.builds().get(name).await?)?;
                let pods = self.pods().await?;
                let pods: Vec<_> = pods.iter().map(|p| (&p.metadata.name, &p.status)).collect();
                bail!(
                    "{name} was not {what} within {seconds} s\nstatus: {}\npods: {}",
                    serde_json::to_string_pretty(&now["status"])?,
                    serde_json::to_string_pretty(&json!(pods))?
                )
            }
        }
    }

    /// Waits for a terminal condition (`Succeeded` True or False) of the present generation.
    ///
    /// # Errors
    /// As [`Sandbox::wait`].
    pub async fn finished(&self, name: &str, seconds: u64) -> Result<Value> {
        self.wait(name, seconds, "finished", |b| {
            is_current(b) && matches!(condition(b, "Succeeded"), Some("True" | "False"))
        })
        .await
    }

    /// Waits for success.
    ///
    /// # Errors
    /// It failed (with its failure) or did not finish in time.
    pub async fn succeeded(&self, name: &str, seconds: u64) -> Result<Value> {
        let build = self.finished(name, seconds).await?;
        if condition(&build, "Succeeded") != Some("True") {
            let mut logs = String::new();
            for pod in self.pods().await? {
                let pod = pod.metadata.name.unwrap_or_default();
                logs += &self.logs(&pod, "build").await.unwrap_or_default();
                logs += &self.logs(&pod, "courier").await.unwrap_or_default();
            }
            bail!("{name} failed: {}\n{logs}", serde_json::to_string_pretty(&build["status"]["failure"])?);
        }
        Ok(build)
    }

    /// The pods of the namespace.
    ///
    /// # Errors
    /// The API did not answer.
    pub async fn pods(&self) -> Result<Vec<Pod>> {
        Ok(self.api::<Pod>().list(&ListParams::default()).await?.items)
    }

    /// The log of a container.
    ///
    /// # Errors
    /// There is none.
    pub async fn logs(&self, pod: &str, container: &str) -> Result<String> {
        let params = LogParams { container: Some(container.to_owned()), ..LogParams::default() };
        Ok(self.api::<Pod>().logs(pod, &params).await?)
    }

    /// Runs a pod with `image` and waits until it is ready to be spoken to.
    ///
    /// # Errors
    /// It didn't run within two minutes.
    pub async fn run(&self, name: &str, image: &str, command: &[&str]) -> Result<()> {
        let mut container = json!({"name": "main", "image": image, "imagePullPolicy": "Always"});
        if !command.is_empty() {
            container["command"] = json!(command);
        }
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [container],
            "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1}});
        let pods: Api<Pod> = self.api();
        pods.create(&Default::default(), &serde_json::from_value(pod)?).await?;
        let running = await_condition(pods, name, kube::runtime::conditions::is_pod_running());
        tokio::time::timeout(Duration::from_secs(120), running).await.context("the image did not run")??;
        Ok(())
    }

    /// Runs a command in a pod; its stdout, or an error with its stderr.
    ///
    /// # Errors
    /// It ended badly.
    pub async fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        let mut process = self.api::<Pod>().exec(pod, command.to_vec(), &AttachParams::default()).await?;
        let (mut stdout, mut stderr) = (String::new(), String::new());
        if let Some(mut out) = process.stdout() {
            out.read_to_string(&mut stdout).await?;
        }
        if let Some(mut err) = process.stderr() {
            err.read_to_string(&mut stderr).await?;
        }
        let status = process.take_status().context("the command has no status")?.await;
        match status.and_then(|s| s.status).as_deref() {
            Some("Success") => Ok(stdout),
            other => bail!("{command:?} ended {other:?}: {stdout}{stderr}"),
        }
    }

    /// Makes a registry Secret and lists it on the default service account.
    ///
    /// # Errors
    /// The API refused it.
    pub async fn registry_secret(&self, name: &str, host: &str, user: &str, password: &str) -> Result<()> {
        let config = json!({"auths": {host: {"username": user, "password": password}}});
        let secret = json!({"metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": config.to_string()}});
        self.api::<Secret>().create(&Default::default(), &serde_json::from_value(secret)?).await?;
        let patch = json!({"imagePullSecrets": [{"name": name}]});
        self.api::<ServiceAccount>().patch("default", &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(())
    }

    /// Makes a ConfigMap.
    ///
    /// # Errors
    /// The API refused it.
    pub async fn config_map(&self, name: &str, data: &Value) -> Result<()> {
        let map = json!({"metadata": {"name": name}, "data": data});
        self.api::<ConfigMap>().create(&Default::default(), &serde_json::from_value(map)?).await?;
        Ok(())
    }

    /// Removes the namespace and all in it, without waiting.
    ///
    /// # Errors
    /// The API refused.
    pub async fn remove(self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(&self.name, &DeleteParams::default()).await?;
        Ok(())
    }
}

/// A spec that builds one inline Dockerfile into `image`.
pub fn inline(dockerfile: &str, image: &str) -> Value {
    json!({"source": {"inline": {"files": [{"path": "Dockerfile", "content": dockerfile}]}},
        "output": {"image": image}})
}

/// Status of a condition.
pub fn condition<'a>(build: &'a Value, kind: &str) -> Option<&'a str> {
    find(build, kind)?["status"].as_str()
}

/// Reason of a condition.
pub fn reason<'a>(build: &'a Value, kind: &str) -> Option<&'a str> {
    find(build, kind)?["reason"].as_str()
}

fn find<'a>(build: &'a Value, kind: &str) -> Option<&'a Value> {
    build["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

/// Whether the status speaks of the spec as it is.
pub fn is_current(build: &Value) -> bool {
    build["status"]["observedGeneration"] == build["metadata"]["generation"]
}
