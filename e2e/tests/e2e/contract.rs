//! What the status says of a build, live and afterwards, and what the API refuses.

use anyhow::{Result, ensure};
use kiln_e2e::cluster::{Sandbox, condition, inline};
use kiln_e2e::{image, registry::Registry};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

const STEPS: &str = "FROM busybox AS base\nRUN echo one > /one\nFROM base\nWORKDIR /srv\nCOPY --from=base /one /copied\n\
    COPY app.sh /usr/bin/app\nENV GREETING=hello\nRUN sh /usr/bin/app > /srv/out\nUSER 1000:1000\n\
    LABEL a=b\nEXPOSE 6379\nVOLUME /data\nSTOPSIGNAL SIGTERM\nENTRYPOINT [\"sh\"]\nCMD [\"-c\", \"true\"]\n";

#[tokio::test]
async fn status_tells_every_step_and_the_image_is_whole() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("status").await?;
    let files = json!([{"path": "Dockerfile", "content": STEPS}, {"path": "app.sh", "content": "echo $GREETING\n"},
        {"path": ".dockerignore", "content": "secret\n"}]);
    let target = crate::target(&registry, &sandbox.name, "app");
    let spec = json!({"source": {"inline": {"files": files}}, "output": {"image": target, "tags": ["v1"]},
        "labels": {"team": "a"}});
    sandbox.apply("app", &spec).await?;
    let build = sandbox.succeeded("app", 180).await?;
    let status = &build["status"];

    let steps = status["steps"].as_array().cloned().unwrap_or_default();
    ensure!(steps.len() == 15, "15 steps expected: {status:#}");
    for (step, line) in steps.iter().zip(1..) {
        ensure!(step["line"] == line, "line of {step}");
        ensure!(step["state"] == "Done", "state of {step}");
        ensure!(step["startedAt"].is_string() && step["finishedAt"].is_string(), "times of {step}");
    }
    ensure!(steps[1]["instruction"] == "RUN echo one > /one", "{}", steps[1]);
    // Layers: those of the stage `base` (the final image stands on it) and of the final stage.
    for number in [2, 5, 6, 8] {
        let step = &steps[number - 1];
        ensure!(
            step["layer"]["digest"].as_str().is_some_and(|d| d.starts_with("sha256:")),
            "layer of {step}"
        );
        ensure!(step["layer"]["size"].as_u64().is_some_and(|s| s > 0), "layer size of {step}");
    }
    for (kind, wanted) in
        [("Ready", "True"), ("Succeeded", "True"), ("Stalled", "False"), ("Reconciling", "False")]
    {
        ensure!(condition(&build, kind) == Some(wanted), "{kind} of {status:#}");
    }
    ensure!(status["run"] == 1 && status["completionTime"].is_string(), "{status:#}");

    let found = image::read(&registry, &format!("{}/app", sandbox.name), "latest").await?;
    let tagged = image::read(&registry, &format!("{}/app", sandbox.name), "v1").await?;
    ensure!(found.digest == tagged.digest && status["image"]["digest"] == found.digest.as_str());
    ensure!(found.file("srv/out")? == "hello\n" && found.file("copied")? == "one\n");
    let config = &found.config["config"];
    ensure!(config["User"] == "1000:1000" && config["WorkingDir"] == "/srv", "{config}");
    ensure!(config["Labels"] == json!({"a": "b", "team": "a"}), "{config}");
    ensure!(
        config["ExposedPorts"] == json!({"6379/tcp": {}}) && config["Volumes"] == json!({"/data": {}}),
        "{config}"
    );
    ensure!(config["Entrypoint"] == json!(["sh"]) && config["Cmd"] == json!(["-c", "true"]), "{config}");

    sandbox.run("app", &target, &["sleep", "1000"]).await?;
    ensure!(sandbox.exec("app", &["cat", "/srv/out"]).await? == "hello\n", "the image runs under containerd");
    sandbox.remove().await
}

#[tokio::test]
async fn the_step_count_moves_while_the_build_runs() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("progress").await?;
    // The last step runs until it is cancelled, so that the test can see the count while it stands.
    let dockerfile = "FROM busybox\nRUN echo first\nRUN sleep 600\n";
    sandbox.apply("slow", &inline(dockerfile, &crate::target(&registry, &sandbox.name, "slow"))).await?;
    let build = sandbox
        .wait("slow", 120, "running its third step", |b| b["status"]["steps"][2]["state"] == "Running")
        .await?;
    ensure!(build["status"]["progress"] == "2/3", "progress: {}", build["status"]["progress"]);
    ensure!(
        condition(&build, "Reconciling") == Some("True") && condition(&build, "Ready") == Some("Unknown")
    );
    ensure!(build["status"]["steps"][1]["state"] == "Done", "{}", build["status"]["steps"]);
    sandbox.annotate("slow", "kiln.build/cancel", json!("1")).await?;
    sandbox.finished("slow", 60).await?;
    sandbox.remove().await
}

#[tokio::test]
async fn the_api_refuses_what_can_not_be() -> Result<()> {
    let sandbox = Sandbox::new("refused").await?;
    let good = inline("FROM scratch\n", "host/app:1");
    let with = |path: &str, value: Value| {
        let mut spec = good.clone();
        if let Some(slot) = spec.pointer_mut(path) {
            *slot = value;
        } else if let Some((parent, key)) = path.rsplit_once('/') {
            spec.pointer_mut(parent).and_then(Value::as_object_mut).map(|o| o.insert(key.to_owned(), value));
        }
        spec
    };
    let cases = [
        (with("/source/configMap", json!({"name": "a"})), "exactly one"),
        (with("/source", json!({})), "exactly one"),
        (with("/output/image", json!("host.example/UPPER/case")), "image"),
        (with("/output/image", json!("user@host/app")), "image"),
        (with("/output/tags", json!(["no spaces"])), "tags"),
        (with("/timeout", json!("soon")), "timeout"),
        (with("/isolation", json!("None")), "isolation"),
        (with("/dockerfle", json!("Dockerfile")), "dockerfle"),
    ];
    for (spec, words) in cases {
        let object = json!({"apiVersion": "kiln.build/v1alpha1", "kind": "ImageBuild",
            "metadata": {"name": "refused"}, "spec": spec});
        let params = PatchParams {
            field_validation: Some(kube::api::ValidationDirective::Strict),
            ..PatchParams::apply("kiln-e2e")
        };
        let answer = sandbox.builds().patch("refused", &params, &Patch::Apply(&object)).await;
        match answer {
            Ok(_) => anyhow::bail!("accepted: {spec}"),
            Err(e) => ensure!(e.to_string().contains(words), "{words:?} is not in: {e}"),
        }
    }
    // A fresh object reads as in progress to kstatus even before the operator has seen it.
    let made: kube::api::DynamicObject = serde_json::from_value(json!({"apiVersion": "kiln.build/v1alpha1",
        "kind": "ImageBuild", "metadata": {"name": "fresh"}, "spec": good}))?;
    let made = sandbox.builds().create(&PostParams { dry_run: true, ..PostParams::default() }, &made).await?;
    ensure!(made.data["status"]["observedGeneration"] == -1, "{}", made.data["status"]);
    sandbox.remove().await
}

#[tokio::test]
async fn a_context_from_a_config_map() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("configmap").await?;
    sandbox
        .config_map(
            "context",
            &json!({"Dockerfile": "FROM scratch\nARG WHO\nCOPY hello /\nLABEL who=$WHO\n", "hello": "hi\n"}),
        )
        .await?;
    let spec = json!({"source": {"configMap": {"name": "context"}}, "args": [{"name": "WHO", "value": "me"}],
        "output": {"image": crate::target(&registry, &sandbox.name, "cm")}});
    sandbox.apply("cm", &spec).await?;
    sandbox.succeeded("cm", 120).await?;
    let found = image::read(&registry, &format!("{}/cm", sandbox.name), "latest").await?;
    ensure!(found.file("hello")? == "hi\n" && found.config["config"]["Labels"]["who"] == "me");

    let spec = json!({"source": {"configMap": {"name": "missing"}},
        "output": {"image": crate::target(&registry, &sandbox.name, "none")}});
    sandbox.apply("none", &spec).await?;
    let build = sandbox
        .wait("none", 60, "saying what is missing", |b| {
            b["status"]["conditions"].to_string().contains("missing")
        })
        .await?;
    ensure!(condition(&build, "Succeeded") != Some("True"), "{build:#}");
    sandbox.remove().await
}
