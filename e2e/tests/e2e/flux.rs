//! Flux's source-controller and kustomize-controller, from their own modules (`scripts/flux`), for the namespace of one test.
//!
//! They are processes of the test in the control plane's network, where they reach the API server and pods reach them: what
//! Flux reads, decides and writes is the same as in a pod, and two images of a hundred megabytes need not go to each node.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kiln_e2e::cluster::{Sandbox, until};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::runtime::wait::await_condition;
use serde_json::Value;

/// Where `scripts/flux` put the programs and the CRDs.
fn built() -> Result<PathBuf> {
    let dir = std::env::var_os("KILN_E2E_FLUX")
        .context("KILN_E2E_FLUX is not set; it is the folder that scripts/flux prints")?;
    Ok(PathBuf::from(dir))
}

/// Gives the cluster Flux's CRDs, and waits until it serves them.
pub async fn crds(client: &kube::Client) -> Result<()> {
    let file = built()?.join("crds.yaml");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut names = Vec::new();
    // A document between two separators may be empty.
    let all = serde_saphyr::from_multiple::<Option<CustomResourceDefinition>>(&text)?;
    for crd in all.into_iter().flatten() {
        let name = crd.metadata.name.clone().context("a CRD's name")?;
        // Tests run side by side, so it may be there already.
        api.patch(&name, &PatchParams::apply("kiln-e2e").force(), &Patch::Apply(&crd)).await?;
        names.push(name);
    }
    for name in names {
        let served = await_condition(api.clone(), &name, kube::runtime::conditions::is_crd_established());
        tokio::time::timeout(Duration::from_secs(60), served)
            .await
            .with_context(|| format!("{name} was not established within 60 s"))??;
    }
    Ok(())
}

/// The objects of one of Flux's kinds in the test's namespace.
pub fn objects(sandbox: &Sandbox, group: &str, kind: &str) -> Api<DynamicObject> {
    let plural = match kind {
        "GitRepository" => "gitrepositories".to_owned(),
        _ => format!("{}s", kind.to_lowercase()),
    };
    let kind = GroupVersionKind::gvk(&format!("{group}.toolkit.fluxcd.io"), "v1", kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, &plural);
    Api::namespaced_with(sandbox.client.clone(), &sandbox.name, &resource)
}

/// One of the controllers, and the file that has its log.
struct Controller {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Controller {
    fn start(name: &'static str, dir: &Path, namespace: &str, args: &[String]) -> Result<Self> {
        let program = built()?.join(name);
        let log = dir.join(format!("{name}.log"));
        let mut command = Command::new(&program);
        // Nobody asks for their metrics and their health: the ports would be those of another test.
        command.args(["--watch-all-namespaces=false", "--metrics-addr=0", "--health-addr=0"]).args(args);
        command.env("RUNTIME_NAMESPACE", namespace).env("TMPDIR", dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let child = command.spawn().with_context(|| program.display().to_string())?;
        Ok(Self { name, child, log })
    }

    /// The last lines of its log.
    fn tail(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// Both controllers; they end with the test.
pub struct Flux {
    controllers: [Controller; 2],
    _dir: tempfile::TempDir,
}

impl Flux {
    /// Starts them for the namespace of `sandbox`; artifacts are served at `address`.
    pub async fn start(address: IpAddr, sandbox: &Sandbox) -> Result<Self> {
        crds(&sandbox.client).await?;
        let dir = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind((address, 0))?.local_addr()?.port();
        let storage = dir.path().join("artifacts");
        std::fs::create_dir(&storage)?;
        let source = Controller::start(
            "source-controller",
            dir.path(),
            &sandbox.name,
            &[
                format!("--storage-path={}", storage.display()),
                format!("--storage-addr={address}:{port}"),
                format!("--storage-adv-addr={address}:{port}"),
            ],
        )?;
        let kustomize = Controller::start("kustomize-controller", dir.path(), &sandbox.name, &[])?;
        let mut flux = Self { controllers: [source, kustomize], _dir: dir };
        until(60, "source-controller to serve artifacts", async || {
            Ok(tokio::net::TcpStream::connect((address, port)).await.ok())
        })
        .await
        .map_err(|e| flux.explained(&e))?;
        Ok(flux)
    }

    /// Waits until an object's JSON fulfils `wanted`, and returns it.
    pub async fn wait(
        &mut self,
        api: &Api<DynamicObject>,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool + Send + Sync,
    ) -> Result<Value> {
        const SECONDS: u64 = 180;
        let holds = |object: Option<&DynamicObject>| {
            object.and_then(|o| serde_json::to_value(o).ok()).is_some_and(|value| wanted(&value))
        };
        let waiting = await_condition(api.clone(), name, holds);
        match tokio::time::timeout(Duration::from_secs(SECONDS), waiting).await {
            Ok(Ok(Some(object))) => Ok(serde_json::to_value(object)?),
            Ok(Ok(None)) => bail!("{name} is gone"),
            Ok(Err(e)) => Err(self.explained(&e.into())),
            Err(_) => {
                let now = serde_json::to_value(api.get_opt(name).await?)?;
                let status = serde_json::to_string_pretty(&now["status"])?;
                let e = anyhow::anyhow!("{name} was not {what} within {SECONDS} s\nstatus: {status}");
                Err(self.explained(&e))
            }
        }
    }

    /// The error with what the controllers last said, and whether they still run.
    fn explained(&mut self, e: &anyhow::Error) -> anyhow::Error {
        let mut text = format!("{e:#}");
        for controller in &mut self.controllers {
            let state = match controller.child.try_wait() {
                Ok(None) => "runs".to_owned(),
                Ok(Some(status)) => format!("ended: {status}"),
                Err(e) => e.to_string(),
            };
            text += &format!("\n{} {state}; its log ends:\n{}", controller.name, controller.tail());
        }
        anyhow::anyhow!(text)
    }
}
