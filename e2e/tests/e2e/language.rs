//! The parts of the language that only a cluster can show: secrets, keys and caches of a step, triggers of a base image.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kiln_e2e::cluster::{Sandbox, inline, reason};
use kiln_e2e::{image, registry::Registry};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

/// The value of the build secret. It must be nowhere but in the step that mounts it.
const CANARY: &str = "canary-of-a-build-secret-8731";

const MOUNTS: &str = "FROM debian AS tools\n\
    RUN --mount=type=cache,target=/var/cache/apt,sharing=locked apt-get update && apt-get install -y --no-install-recommends openssh-client\n\
    RUN --mount=type=secret,id=token sha256sum < /run/secrets/token | cut -d' ' -f1 > /token.sum\n\
    RUN --mount=type=secret,id=token,env=TOKEN printf %s \"$TOKEN\" | wc -c > /token.len && echo \"it is $TOKEN\"\n\
    RUN --mount=type=ssh ssh-add -L > /keys\n\
    RUN --mount=type=tmpfs,target=/scratch echo gone > /scratch/file\n\
    RUN test ! -e /run/secrets/token && test -z \"$TOKEN$SSH_AUTH_SOCK\" && test ! -e /scratch/file\n\
    FROM busybox\n\
    RUN --mount=type=bind,from=tools,source=/keys,target=/mnt/keys cp /mnt/keys /keys\n\
    COPY --from=tools /token.sum /token.len /\n";

/// A key pair as `ssh-keygen` makes it: private, public.
fn key_pair() -> Result<(String, String)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("key");
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "e2e", "-f"])
        .arg(&path)
        .status()
        .context("ssh-keygen (Debian package openssh-client)")?;
    ensure!(made.success(), "ssh-keygen: {made}");
    Ok((std::fs::read_to_string(&path)?, std::fs::read_to_string(path.with_extension("pub"))?))
}

async fn secret(sandbox: &Sandbox, name: &str, data: Value) -> Result<()> {
    let secret = json!({"metadata": {"name": name}, "stringData": data});
    sandbox.api::<Secret>().create(&Default::default(), &serde_json::from_value(secret)?).await?;
    Ok(())
}

#[tokio::test]
async fn secrets_keys_and_caches_reach_the_step_that_mounts_them_and_nothing_else() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("mounts").await?;
    let (private, public) = key_pair()?;
    secret(&sandbox, "token", json!({"value": CANARY})).await?;
    secret(&sandbox, "key", json!({"ssh-privatekey": private})).await?;
    let mut spec = inline(MOUNTS, &crate::target(&registry, &sandbox.name, "app"));
    spec["secrets"] = json!([{"id": "token", "secretName": "token", "key": "value"}]);
    spec["ssh"] = json!([{"secretName": "key"}]);
    sandbox.apply("app", &spec).await?;

    // A Secret that the service account does not list is not to be had, and the object says how to list it.
    let build = sandbox
        .wait("app", 60, "waiting for the Secret to be listed", |b| {
            reason(b, "Ready") == Some("SecretNotListed")
        })
        .await?;
    let message = build["status"]["conditions"].to_string();
    ensure!(message.contains("kubectl") && message.contains("token"), "{message}");
    ensure!(sandbox.pods().await?.is_empty(), "no pod holds a Secret that is not listed");
    let listed = json!({"secrets": [{"name": "token"}, {"name": "key"}]});
    sandbox.api::<ServiceAccount>().patch("default", &PatchParams::default(), &Patch::Merge(&listed)).await?;

    sandbox.succeeded("app", 300).await?;
    let found = image::read(&registry, &format!("{}/app", sandbox.name), "latest").await?;
    let sum = kiln_e2e::registry::digest(CANARY.as_bytes());
    ensure!(format!("sha256:{}", found.file("token.sum")?.trim()) == sum, "the step had the secret");
    ensure!(found.file("token.len")?.trim() == CANARY.len().to_string(), "and as a variable");
    let key = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
    ensure!(key(&found.file("keys")?) == key(&public), "{} is not {public}", found.file("keys")?);
    ensure!(!found.config.to_string().contains(CANARY), "the config has the secret");
    for layer in &found.layers {
        ensure!(!String::from_utf8_lossy(layer).contains(CANARY), "a layer has the secret");
    }
    let pod = sandbox.pods().await?.remove(0);
    let name = pod.metadata.name.clone().unwrap_or_default();
    let log = sandbox.logs(&name, "build").await?;
    ensure!(log.contains("it is ***") && !log.contains(CANARY), "{log}");
    ensure!(!sandbox.logs(&name, "courier").await?.contains(CANARY), "the journal has the secret");
    let pod = serde_json::to_value(pod)?;
    ensure!(
        !pod["spec"]["containers"].to_string().contains("secret"),
        "the build container mounts no Secret"
    );
    sandbox.remove().await
}

#[tokio::test]
async fn a_base_images_triggers_are_steps_of_the_build() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("onbuild").await?;
    let base = crate::target(&registry, &sandbox.name, "base");
    let triggers =
        "FROM busybox\nONBUILD COPY app.txt /srv/\nONBUILD RUN tr a-z A-Z < /srv/app.txt > /srv/loud\n";
    sandbox.apply("base", &inline(triggers, &base)).await?;
    sandbox.succeeded("base", 120).await?;
    let found = image::read(&registry, &format!("{}/base", sandbox.name), "latest").await?;
    ensure!(found.config["config"]["OnBuild"].as_array().is_some_and(|t| t.len() == 2), "{}", found.config);

    let files = json!([{"path": "Dockerfile", "content": format!("FROM {base}\nCMD [\"cat\", \"/srv/loud\"]\n")},
        {"path": "app.txt", "content": "hello\n"}]);
    let spec = json!({"source": {"inline": {"files": files}},
        "output": {"image": crate::target(&registry, &sandbox.name, "app")}});
    sandbox.apply("app", &spec).await?;
    let build = sandbox.succeeded("app", 120).await?;
    let steps = build["status"]["steps"].as_array().cloned().unwrap_or_default();
    let texts: Vec<&str> = steps.iter().filter_map(|s| s["instruction"].as_str()).collect();
    ensure!(
        texts.len() == 4 && texts[1].contains("COPY app.txt") && texts[2].contains("RUN tr"),
        "{texts:?}"
    );
    ensure!(steps.iter().all(|s| s["state"] == "Done"), "{steps:?}");
    let found = image::read(&registry, &format!("{}/app", sandbox.name), "latest").await?;
    ensure!(found.file("srv/loud")? == "HELLO\n");
    ensure!(found.config["config"]["OnBuild"].is_null(), "triggers fire once: {}", found.config);
    sandbox.remove().await
}

#[tokio::test]
async fn one_input_with_an_epoch_has_one_digest_in_either_isolation() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("epoch").await?;
    let dockerfile = "FROM busybox\nWORKDIR /srv/a/b\nCOPY app.txt .\nRUN mkdir -p x/y && date > /dev/null && \
        touch x/y/made && ln -s made x/y/link && chown -R 33:44 x && rm /etc/passwd; echo done\nLABEL a=b\n";
    let mut digests = Vec::new();
    for (name, isolation, cpu) in
        [("a", "UserNamespace", "1"), ("b", "HostRange", "2"), ("c", "UserNamespace", "2")]
    {
        let files =
            json!([{"path": "Dockerfile", "content": dockerfile}, {"path": "app.txt", "content": "hello\n"}]);
        let spec = json!({"source": {"inline": {"files": files}}, "isolation": isolation,
            "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": cpu}},
            "output": {"image": crate::target(&registry, &sandbox.name, name), "sourceDateEpoch": 1_700_000_000}});
        sandbox.apply(name, &spec).await?;
        sandbox.succeeded(name, 120).await?;
        let found = image::read(&registry, &format!("{}/{name}", sandbox.name), "latest").await?;
        ensure!(found.config["created"] == "2023-11-14T22:13:20Z", "{}", found.config);
        digests.push(found.digest);
    }
    ensure!(digests[0] == digests[1] && digests[1] == digests[2], "{digests:?}");
    sandbox.remove().await
}
