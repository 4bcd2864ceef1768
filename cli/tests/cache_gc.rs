//! `kiln cache gc` against a real registry: what it removes, and what it leaves alone.
//!
//! Needs a registry to build (Go); says so and passes where there is none.
#![allow(dead_code, clippy::unwrap_used)]

#[path = "../../builder-pod/registry/tests/faults/mod.rs"]
mod faults;

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use bytes::Bytes;
use faults::{Fault, Faulty};
use kiln_registry::{
    Blob, CacheEntry, CacheRecord, CacheStep, Client, ImageName, Options, Origin, Registries,
};

const OLD: &str = "2020-01-02T03:04:05Z";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Made now, as far as any limit here is concerned; the collector takes no time to be later than its own.
const NOW: &str = "2999-01-01T00:00:00Z";

struct Site {
    registry: Faulty,
    client: Client,
}

/// What the program said, and whether it ended well.
struct Said {
    text: String,
    good: bool,
}

fn tag(letters: &str) -> String {
    letters.repeat(64 / letters.len())
}

fn refusing(status: u16, body: &str) -> Fault {
    Fault::Answer { after: u64::MAX, status, headers: vec![], body: body.to_owned() }
}

impl Site {
    async fn new() -> Result<Option<Self>> {
        let Some(registry) = Faulty::start().await? else { return Ok(None) };
        let registries = Registries { insecure: vec![registry.host.clone()], ..Registries::default() };
        let client = Client::new(Options { registries, ..Options::default() })?;
        Ok(Some(Self { registry, client }))
    }

    fn name(&self, tag: &str) -> ImageName {
        ImageName::parse(&format!("{}/team/cache:{tag}", self.registry.host)).expect("a name")
    }

    async fn entry(&self, tag: &str, seed: u8, created: &str) -> Result<()> {
        let bytes = faults::bytes(seed, 1000);
        let digest = faults::digest(&bytes);
        let layer = Blob { media_type: LAYER.into(), digest: digest.clone(), size: 1000 };
        let entry = CacheEntry { layer, diff_id: digest, created: created.into() };
        self.client.prepare_cache(&self.name(tag)).await?;
        self.client.write_entry(&self.name(tag), &entry, &Origin::Bytes(bytes)).await?;
        Ok(())
    }

    async fn record(&self, tag: &str, created: &str, wants: &[&str]) -> Result<()> {
        let step = |entry: &&str| {
            let step = CacheStep { entry: (*entry).to_owned(), ..CacheStep::default() };
            ((*entry).to_owned(), step)
        };
        let record = CacheRecord { created: created.into(), steps: wants.iter().map(step).collect() };
        Ok(self.client.write_record(&self.name(tag), &record).await?)
    }

    /// Something else that is in the repository.
    async fn other(&self, tag: &str, annotations: &BTreeMap<&str, &str>) -> Result<()> {
        let empty = serde_json::json!({"mediaType": "application/vnd.oci.empty.v1+json",
            "digest": faults::digest(b"{}"), "size": 2});
        let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": empty,
            "layers": [empty], "annotations": annotations});
        let bytes = Bytes::from(manifest.to_string());
        Ok(self.client.put_manifest(&self.name(tag), tag, MANIFEST, &bytes).await?)
    }

    async fn there(&self, tag: &str) -> Result<bool> {
        Ok(self.registry.stored(&format!("/v2/team/cache/manifests/{tag}")).await?.is_some())
    }

    async fn gc(&self, more: &[&str]) -> Result<Said> {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"))
            .args(["cache", "gc", "--insecure", &self.registry.host])
            .args(more)
            .arg(format!("{}/team/cache", self.registry.host))
            .env_remove("KILN_REGISTRY_CONFIG")
            .output()
            .await?;
        let text = String::from_utf8([output.stdout, output.stderr].concat())?;
        Ok(Said { text, good: output.status.success() })
    }
}

#[tokio::test]
async fn what_is_old_goes_and_what_is_wanted_or_not_the_caches_stays() -> Result<()> {
    let Some(site) = Site::new().await? else { return Ok(()) };
    let (old, wanted, fresh, foreign) = (tag("0a"), tag("0b"), tag("0c"), tag("0d"));
    site.entry(&old, 1, OLD).await?;
    site.entry(&wanted, 2, OLD).await?;
    site.entry(&fresh, 3, NOW).await?;
    site.record(&tag("1a"), NOW, &[&wanted]).await?;
    site.record(&tag("1b"), OLD, &[&old]).await?;
    // A tag like the cache's own, and an old entry that was given another tag.
    site.other(&foreign, &BTreeMap::new()).await?;
    site.other("latest", &BTreeMap::from([("build.kiln.cache.key", "latest")])).await?;
    let all = [&old, &wanted, &fresh, &foreign, &tag("1a"), &tag("1b")].map(String::clone);

    let dry = site.gc(&["--max-age", "30d", "--dry-run"]).await?;
    ensure!(dry.good && dry.text.contains("would remove 2 of 5;"), "{}", dry.text);
    for tag in &all {
        ensure!(site.there(tag).await?, "{tag} is gone, and nothing was to be removed");
    }
    ensure!(site.registry.asked("DELETE", "").is_empty());

    let done = site.gc(&["--max-age", "30d"]).await?;
    ensure!(done.good && done.text.contains("removed 2 of 5;"), "{}", done.text);
    ensure!(done.text.contains("2 other tags left alone"), "{}", done.text);
    ensure!(done.text.contains(&format!("{}  result", &old[..12])), "{}", done.text);
    for tag in &all {
        let stays = *tag != old && *tag != all[5];
        ensure!(site.there(tag).await? == stays, "{tag}: {}", done.text);
    }
    ensure!(site.there("latest").await?);
    // Nothing is left to do.
    let again = site.gc(&["--max-age", "30d"]).await?;
    ensure!(again.good && again.text.contains("removed 0 of 3;"), "{}", again.text);
    // By size the one goes that was used less: both are of now, the record's and its own; the tag decides.
    let less = site.gc(&["--max-size", "1000"]).await?;
    ensure!(less.good && less.text.contains("removed 1 of 3;"), "{}", less.text);
    ensure!(less.text.contains("layers 2.0 KiB before, 1000 B after"), "{}", less.text);
    Ok(())
}

#[tokio::test]
async fn a_registry_that_deletes_nothing_is_said_to() -> Result<()> {
    let Some(site) = Site::new().await? else { return Ok(()) };
    site.entry(&tag("0a"), 1, OLD).await?;
    let words = r#"{"errors":[{"code":"UNSUPPORTED","message":"The operation is unsupported."}]}"#;
    for status in [405, 400] {
        site.registry.on("DELETE", "/manifests/", usize::MAX, refusing(status, words));
        let said = site.gc(&["--max-age", "30d"]).await?;
        site.registry.heal();
        ensure!(!said.good && said.text.contains("REGISTRY_STORAGE_DELETE_ENABLED"), "{}", said.text);
    }
    // Another fault is not taken for this one.
    site.registry.on("DELETE", "/manifests/", usize::MAX, refusing(403, ""));
    let said = site.gc(&["--max-age", "30d"]).await?;
    ensure!(!said.good && said.text.contains("denied to delete"), "{}", said.text);
    site.registry.heal();
    // Somebody else has removed it meanwhile.
    site.registry.on("DELETE", "/manifests/", 1, refusing(404, ""));
    let said = site.gc(&["--max-age", "30d"]).await?;
    ensure!(said.good && said.text.contains("removed 1 of 1;"), "{}", said.text);
    Ok(())
}

#[tokio::test]
async fn all_pages_are_read_and_no_other_host_is_asked_for_one() -> Result<()> {
    let Some(site) = Site::new().await? else { return Ok(()) };
    let (one, two) = (tag("0a"), tag("0b"));
    site.entry(&one, 1, OLD).await?;
    site.entry(&two, 2, OLD).await?;
    let page = |tag: &str, link: &str| Fault::Answer {
        after: u64::MAX,
        status: 200,
        headers: vec![("link", format!("<{link}>; rel=\"next\""))],
        body: serde_json::json!({"name": "team/cache", "tags": [tag]}).to_string(),
    };
    let next = format!("/v2/team/cache/tags/list?n=5&last={one}");
    site.registry.on("GET", "/tags/list", 1, page(&one, &next));
    let said = site.gc(&["--max-age", "30d", "--dry-run"]).await?;
    ensure!(said.good && said.text.contains("would remove 2 of 2;"), "{}", said.text);
    let asked = site.registry.asked("GET", "/tags/list");
    ensure!(asked.len() == 2, "{asked:#?}");
    site.registry.on("GET", "/tags/list", 1, page(&one, "http://198.51.100.1/v2/x/tags/list"));
    let said = site.gc(&["--max-age", "30d"]).await?;
    ensure!(!said.good && said.text.contains("the next page is at http://198.51.100.1"), "{}", said.text);
    ensure!(site.there(&one).await? && site.there(&two).await?);
    Ok(())
}

#[tokio::test]
async fn an_empty_place_is_no_fault_and_no_limit_is_one() -> Result<()> {
    let Some(site) = Site::new().await? else { return Ok(()) };
    let said = site.gc(&["--max-age", "1d"]).await?;
    ensure!(said.good && said.text.contains("removed 0 of 0;"), "{}", said.text);
    let said = site.gc(&[]).await?;
    ensure!(!said.good && said.text.contains("expected --max-age or --max-size"), "{}", said.text);
    Ok(())
}
