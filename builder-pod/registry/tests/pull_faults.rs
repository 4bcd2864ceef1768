//! Pulling from a real registry that has faults: right bytes or a clear error, and no byte twice.
#![allow(dead_code, clippy::unwrap_used)]

mod faults;
#[path = "faults/image.rs"]
mod image;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use faults::{Fault, Faulty};
use image::{Made, client, policy};
use kiln_registry::{Client, Error, Platform, RetryPolicy};

/// A registry with an image in it; ends the test where there is no registry.
macro_rules! set_up {
    () => {{
        let Some(registry) = Faulty::start().await? else { return Ok(()) };
        let (client, image) = (client(&[&registry], policy())?, Made::new(&registry.host, 1)?);
        image.push(&client).await?;
        (registry, client, image)
    }};
}

fn answering(status: u16, headers: Vec<(&'static str, String)>) -> Fault {
    Fault::Answer { after: 0, status, headers, body: String::new() }
}

async fn read(client: &Client, image: &Made) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    client.read_blob(&image.name, &image.layers[0].0, &mut out).await.map(|()| out)
}

#[tokio::test]
async fn a_transfer_that_broke_goes_on_where_it_broke() -> Result<()> {
    let (registry, client, image) = set_up!();
    registry.on("GET", "/blobs/", 1, Fault::Cut(100_000));
    registry.on("GET", "/blobs/", 1, answering(503, vec![]));
    registry.on("GET", "/blobs/", 1, Fault::Cut(100_000));
    assert_eq!(read(&client, &image).await?, image.layers[0].1);
    registry.all_happened()?;
    let sent: usize = registry.asked("GET", "/blobs/").iter().map(|s| s.sent).sum();
    assert_eq!(sent as u64, image.layers[0].0.size, "{:#?}", registry.asked("GET", "/blobs/"));
    Ok(())
}

#[tokio::test]
async fn changed_bytes_are_no_base_image() -> Result<()> {
    let (registry, client, image) = set_up!();
    registry.on("GET", "/blobs/", 1, Fault::Corrupt);
    let error = read(&client, &image).await.expect_err("other bytes");
    let Error::Digest { expected, found, .. } = &error else { panic!("{error}") };
    assert!(*expected == image.layers[0].0.digest && found != expected, "{error}");
    registry.on("GET", "/manifests/sha256", 1, Fault::Corrupt);
    let pinned = kiln_registry::ImageName::parse(&image.name.pinned(&image.digest()))?;
    let error = client.resolve(&pinned, &Platform::parse("linux/amd64")?).await.expect_err("other bytes");
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    registry.all_happened()
}

#[tokio::test]
async fn a_byte_at_a_time_is_a_stalled_transfer() -> Result<()> {
    let (registry, _, image) = set_up!();
    let retry = RetryPolicy { idle: Duration::from_millis(400), budget: Duration::from_secs(2), ..policy() };
    let client = client(&[&registry], retry)?;
    registry.on("GET", "/blobs/", usize::MAX, Fault::Drip(Duration::from_millis(50)));
    let began = Instant::now();
    let error = read(&client, &image).await.expect_err("it would take hours");
    assert!(matches!(&error, Error::Unavailable { tries, .. } if *tries > 1), "{error}");
    assert!(error.to_string().contains("expected at least 4096"), "{error}");
    ensure!(began.elapsed() < Duration::from_secs(15), "it took {:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_stall_in_the_middle_is_taken_up() -> Result<()> {
    let (registry, _, image) = set_up!();
    let retry = RetryPolicy { idle: Duration::from_millis(400), ..policy() };
    let client = client(&[&registry], retry)?;
    registry.on("GET", "/blobs/", 1, Fault::Drip(Duration::from_millis(20)));
    assert_eq!(read(&client, &image).await?, image.layers[0].1);
    let asked = registry.asked("GET", "/blobs/");
    ensure!(asked.len() == 2 && asked[1].status == Some(206), "{asked:#?}");
    Ok(())
}

#[tokio::test]
async fn a_manifest_that_is_there_and_its_blob_not() -> Result<()> {
    let (registry, client, image) = set_up!();
    registry.on("GET", "/blobs/", 1, answering(404, vec![]));
    let error = read(&client, &image).await.expect_err("no such blob");
    assert!(matches!(&error, Error::Invalid { .. }), "{error}");
    for part in [&*registry.host, &image.layers[0].0.digest, "404"] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    // By its head a tag is there, by its body it is not.
    assert_eq!(client.digest_of_tag(&image.name, "v1").await?, Some(image.digest()));
    registry.on("GET", "/manifests/v1", 1, answering(404, vec![]));
    let error = client.resolve(&image.name, &Platform::parse("linux/amd64")?).await.expect_err("no manifest");
    assert!(matches!(&error, Error::NotFound { .. }), "{error}");
    registry.all_happened()
}

#[tokio::test]
async fn a_redirect_to_another_host_takes_no_credentials_along() -> Result<()> {
    let (registry, client, image) = set_up!();
    let storage = registry.beside().await?;
    registry.want_tokens(Some("300"));
    let there = format!("http://{}/v2/team/app/blobs/{}", storage.host, image.layers[0].0.digest);
    registry.on("GET", "/blobs/", 1, answering(307, vec![("location", there)]));
    assert_eq!(read(&client, &image).await?, image.layers[0].1);
    registry.all_happened()?;
    let with_token = registry.asked("GET", "/blobs/");
    assert!(with_token.last().is_some_and(|s| s.authorization.is_some()), "{with_token:#?}");
    let asked = storage.seen();
    ensure!(asked.len() == 1 && asked[0].authorization.is_none(), "{asked:#?}");
    Ok(())
}

#[tokio::test]
async fn a_rate_limit_on_a_pull_is_waited_for_and_named() -> Result<()> {
    let (registry, client, image) = set_up!();
    let platform = Platform::parse("linux/amd64")?;
    registry.on("GET", "/manifests/v1", 1, answering(429, vec![("retry-after", "1".to_owned())]));
    let began = Instant::now();
    assert_eq!(client.resolve(&image.name, &platform).await?.digest, image.digest());
    ensure!(began.elapsed() >= Duration::from_secs(1), "it did not wait");
    registry.on("GET", "/manifests/v1", 1, answering(429, vec![("retry-after", "21600".to_owned())]));
    let error = client.resolve(&image.name, &platform).await.expect_err("six hours are too long");
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("rate limited") && error.to_string().contains("21600 s"), "{error}");
    registry.all_happened()
}
