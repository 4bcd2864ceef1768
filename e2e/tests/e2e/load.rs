//! Many at once.

use anyhow::{Result, ensure};
use kiln_e2e::cluster::{Sandbox, inline};
use kiln_e2e::{image, registry::Registry};

#[tokio::test]
async fn twenty_builds_at_once_all_succeed() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("twenty").await?;
    let names: Vec<String> = (1..=20).map(|n| format!("b{n}")).collect();
    for name in &names {
        let dockerfile = format!("FROM busybox\nRUN echo {name} > /name\n");
        sandbox.apply(name, &inline(&dockerfile, &crate::target(&registry, &sandbox.name, name))).await?;
    }
    for name in &names {
        let build = sandbox.succeeded(name, 600).await?;
        let found = image::read(&registry, &format!("{}/{name}", sandbox.name), "latest").await?;
        ensure!(found.file("name")? == format!("{name}\n"), "each image is its own");
        ensure!(build["status"]["image"]["digest"] == found.digest.as_str());
    }
    ensure!(sandbox.pods().await?.len() == names.len(), "one pod per build");
    sandbox.remove().await
}
