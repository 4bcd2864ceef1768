//! The two builds of the README, and the second one's image at work.

use anyhow::{Result, ensure};
use kiln_e2e::cluster::{Sandbox, condition, inline};
use kiln_e2e::{image, registry::Registry};

const SEED: &str =
    "FROM alpine\nRUN apk add --update redis\nRUN apk add --update gcc\nCMD [\"redis-server\"]\n";
const DEBIAN: &str = "FROM debian\n\
    RUN apt-get update && apt-get install -y --no-install-recommends redis-server\n\
    RUN apt-get install -y --no-install-recommends gcc libc6-dev\n\
    CMD [\"redis-server\"]\n";

#[tokio::test]
async fn the_seed_builds_and_its_log_reads_like_dockers() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("seed").await?;
    sandbox.apply("seed", &inline(SEED, &crate::target(&registry, &sandbox.name, "seed"))).await?;
    let build = sandbox.succeeded("seed", 300).await?;

    let found = image::read(&registry, &format!("{}/seed", sandbox.name), "latest").await?;
    ensure!(build["status"]["image"]["digest"] == found.digest.as_str(), "status names another digest");
    ensure!(found.config["config"]["Cmd"] == serde_json::json!(["redis-server"]), "{}", found.config);

    let pod = sandbox.pods().await?.remove(0).metadata.name.unwrap_or_default();
    let log = sandbox.logs(&pod, "build").await?;
    let lines: Vec<&str> = log.lines().collect();
    let mut at = 0;
    for wanted in [
        "Step 1/4 : FROM alpine",
        " ---> ",
        "Step 2/4 : RUN apk add --update redis",
        " ---> Running in ",
        " ---> ",
        "Step 3/4 : RUN apk add --update gcc",
        " ---> Running in ",
        " ---> ",
        "Step 4/4 : CMD [\"redis-server\"]",
        " ---> ",
        "Successfully built ",
        "Successfully tagged ",
    ] {
        let next = lines[at..].iter().position(|l| l.starts_with(wanted));
        ensure!(next.is_some(), "{wanted:?} is missing after line {at} of the log:\n{log}");
        at += next.unwrap_or_default() + 1;
    }
    ensure!(!log.contains('\u{1b}'), "a pod's log has no ANSI sequences");
    sandbox.remove().await
}

#[tokio::test]
async fn debian_with_real_packages_builds_and_runs() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("debian").await?;
    let target = crate::target(&registry, &sandbox.name, "redis");
    sandbox.apply("redis", &inline(DEBIAN, &target)).await?;
    let build = sandbox.succeeded("redis", 600).await?;
    ensure!(condition(&build, "Ready") == Some("True"));
    image::read(&registry, &format!("{}/redis", sandbox.name), "latest").await?;

    sandbox.run("redis", &target, &[]).await?;
    kiln_e2e::cluster::until(60, "redis to answer", async || {
        Ok(sandbox.exec("redis", &["redis-cli", "ping"]).await.ok().filter(|out| out.trim() == "PONG"))
    })
    .await?;
    let compile = "printf '#include <stdio.h>\\nint main(void){puts(\"compiled\");return 0;}' > /tmp/a.c && gcc -o /tmp/a /tmp/a.c && /tmp/a";
    let out = sandbox.exec("redis", &["sh", "-c", compile]).await?;
    ensure!(out.trim() == "compiled", "gcc in the image: {out}");
    sandbox.remove().await
}
