//! `kiln build` into a real registry that has faults: what the user reads, and what is sent again.
//!
//! Needs root and a registry to build (Go); says so and passes where they are missing.
#![allow(dead_code, clippy::unwrap_used)]

#[path = "../../builder-pod/registry/tests/faults/mod.rs"]
mod faults;

use anyhow::{Context as _, Result, ensure};
use faults::{Fault, Faulty};

const UPLOADS: &str = "/blobs/uploads/";
/// Two layers, the second of half a mebibyte that does not compress.
const DOCKERFILE: &str = "FROM scratch\nCOPY small /small\nCOPY big /big\n";
const BIG: u64 = 512 << 10;

/// What a build said and how it ended.
struct Built {
    succeeded: bool,
    said: String,
}

/// A registry; none, with the reason on the screen, where these tests can't run.
async fn registry() -> Result<Option<Faulty>> {
    // The owner of a process is the owner of its directory.
    use std::os::unix::fs::MetadataExt as _;
    if std::fs::metadata("/proc/self")?.uid() != 0 {
        println!("not run: it needs root");
        return Ok(None);
    }
    Faulty::start().await
}

async fn build(registry: &Faulty, seed: u8) -> Result<Built> {
    let dir = tempfile::tempdir()?;
    let context = dir.path().join("context");
    std::fs::create_dir(&context)?;
    std::fs::write(context.join("Dockerfile"), DOCKERFILE)?;
    std::fs::write(context.join("small"), [seed])?;
    std::fs::write(context.join("big"), faults::bytes(seed, usize::try_from(BIG)?))?;
    let config = dir.path().join("registries.yaml");
    std::fs::write(&config, format!("insecure: [\"{}\"]\n", registry.host))?;
    let login = serde_json::json!({"auths": {&registry.host: {"username": "kiln", "password": "secret"}}});
    std::fs::write(dir.path().join("config.json"), login.to_string())?;
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"))
        // So that two builds have the same blobs.
        .args([
            "build",
            "--build-arg",
            "SOURCE_DATE_EPOCH=1700000000",
            "-o",
            "type=registry",
            "-t",
            &name(registry),
            "--registry-config",
        ])
        .arg(&config)
        .arg(&context)
        .env("DOCKER_CONFIG", dir.path())
        .output()
        .await
        .context("running kiln")?;
    let said = [output.stdout, output.stderr].concat();
    Ok(Built { succeeded: output.status.success(), said: String::from_utf8(said)? })
}

fn name(registry: &Faulty) -> String {
    format!("{}/team/app:v1", registry.host)
}

fn refusing(status: u16, headers: Vec<(&'static str, String)>, body: &str) -> Fault {
    Fault::Answer { after: u64::MAX, status, headers, body: body.to_owned() }
}

/// How often each blob was sent with all its bytes, apart from those that came once.
fn sent_again(registry: &Faulty) -> Vec<u64> {
    let mut whole = std::collections::BTreeMap::<String, Vec<u64>>::new();
    for put in registry.asked("PUT", UPLOADS) {
        whole.entry(put.digest.unwrap_or_default()).or_default().push(put.received);
    }
    whole.into_values().flat_map(|tries| tries.into_iter().skip(1).collect::<Vec<_>>()).collect()
}

fn says(built: &Built, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(built.said.contains(part), "expected {part:?} in:\n{}", built.said);
    }
    Ok(())
}

/// Succeeded, and the registry has manifest and blobs.
async fn is_pushed(registry: &Faulty, built: &Built) -> Result<()> {
    ensure!(built.succeeded, "{}", built.said);
    registry.all_happened()?;
    let manifest = registry.stored("/v2/team/app/manifests/v1").await?.context("no manifest")?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest)?;
    let layers = manifest["layers"].as_array().context("layers")?;
    ensure!(layers.len() == 2, "{manifest}");
    for blob in layers.iter().chain([&manifest["config"]]) {
        let digest = blob["digest"].as_str().context("a digest")?;
        let stored = registry.stored(&format!("/v2/team/app/blobs/{digest}")).await?;
        ensure!(stored.is_some_and(|bytes| faults::digest(&bytes) == digest), "{digest} is not there");
    }
    Ok(())
}

#[tokio::test]
async fn a_build_outlasts_what_passes() -> Result<()> {
    let Some(registry) = registry().await? else { return Ok(()) };
    registry.want_tokens(Some("300"));
    registry.on("PUT", UPLOADS, 1, Fault::Break { after: 0 });
    registry.on("POST", UPLOADS, 1, refusing(500, vec![], ""));
    registry.on("PUT", "/manifests/sha256", 1, refusing(429, vec![("retry-after", "1".to_owned())], ""));
    registry.on("PUT", "/manifests/v1", 1, Fault::ExpireTokens { after: 0 });
    let built = build(&registry, 1).await?;
    is_pushed(&registry, &built).await?;
    // One blob again: the one whose connection broke.
    assert_eq!(sent_again(&registry).len(), 1, "{:#?}", registry.asked("PUT", UPLOADS));
    Ok(())
}

#[tokio::test]
async fn a_build_that_failed_sends_only_what_is_missing_the_next_time() -> Result<()> {
    let Some(registry) = registry().await? else { return Ok(()) };
    let words = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"quota of the month"}]}"#;
    let day = || refusing(429, vec![("retry-after", "86400".to_owned())], words);
    registry.on("PUT", "/manifests/sha256", 1, day());
    let built = build(&registry, 1).await?;
    ensure!(!built.succeeded, "{}", built.said);
    says(&built, &[&registry.host, "rate limited", "quota of the month", "86400 s"])?;
    let sent = registry.asked("PUT", UPLOADS).len();
    assert_eq!(sent, 3, "{:#?}", registry.seen());
    let built = build(&registry, 1).await?;
    is_pushed(&registry, &built).await?;
    // The second build has the same three blobs, and they are there.
    let again: u64 = registry.asked("PUT", UPLOADS).iter().skip(sent).map(|s| s.received).sum();
    ensure!(again == 0, "{again} bytes were sent again");
    Ok(())
}

#[tokio::test]
async fn a_registry_that_shows_another_digest_fails_the_build() -> Result<()> {
    let Some(registry) = registry().await? else { return Ok(()) };
    let other = format!("sha256:{}", "0".repeat(64));
    registry.on("HEAD", "/manifests/v1", 1, Fault::Header("docker-content-digest", Some(other.clone())));
    let built = build(&registry, 1).await?;
    ensure!(!built.succeeded, "{}", built.said);
    says(&built, &["acknowledged the manifest", &registry.host, &format!("shows {other} there")])
}

#[tokio::test]
async fn a_tag_that_may_not_move_is_named() -> Result<()> {
    let Some(registry) = registry().await? else { return Ok(()) };
    let built = build(&registry, 1).await?;
    is_pushed(&registry, &built).await?;
    let before = registry.stored("/v2/team/app/manifests/v1").await?;
    let words = r#"{"errors":[{"code":"TAG_INVALID","message":"the tag v1 is immutable"}]}"#;
    registry.on("PUT", "/manifests/v1", 1, refusing(400, vec![], words));
    let built = build(&registry, 2).await?;
    ensure!(!built.succeeded, "{}", built.said);
    says(
        &built,
        &[
            &registry.host,
            "another image as v1",
            "the tag v1 is immutable",
            "push to a tag that is not taken",
        ],
    )?;
    registry.all_happened()?;
    ensure!(registry.stored("/v2/team/app/manifests/v1").await? == before, "the tag has moved");
    Ok(())
}

#[tokio::test]
async fn a_login_that_is_refused_is_said_with_what_to_do() -> Result<()> {
    let Some(registry) = registry().await? else { return Ok(()) };
    registry.want_tokens(None);
    registry.on("GET", "/token", usize::MAX, refusing(401, vec![], ""));
    let built = build(&registry, 1).await?;
    ensure!(!built.succeeded, "{}", built.said);
    says(&built, &[&registry.host, "user \"kiln\"", "the token service answered 401"])?;
    ensure!(registry.asked("PUT", UPLOADS).is_empty(), "something was sent");
    Ok(())
}
