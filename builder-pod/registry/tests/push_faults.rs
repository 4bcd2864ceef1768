//! Pushing to a real registry that has faults: what comes of it, and that what has arrived is not sent again.
#![allow(dead_code, clippy::unwrap_used)]

mod faults;
#[path = "faults/image.rs"]
mod image;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use faults::{Fault, Faulty};
use image::{MANIFEST, Made, client, policy};
use kiln_registry::{Error, Put};

const UPLOADS: &str = "/blobs/uploads/";

fn refusing(status: u16, headers: Vec<(&'static str, String)>, body: &str) -> Fault {
    Fault::Answer { after: u64::MAX, status, headers, body: body.to_owned() }
}

/// A registry, a client and an image for it; ends the test where there is no registry.
macro_rules! set_up {
    () => {{
        let Some(registry) = Faulty::start().await? else { return Ok(()) };
        let (client, image) = (client(&[&registry], policy())?, Made::new(&registry.host, 1)?);
        (registry, client, image)
    }};
}

/// The push succeeds, the image is in the registry, every fault happened, and no blob was stored twice.
async fn succeeds(registry: &Faulty, client: &kiln_registry::Client, image: &Made) -> Result<Vec<Put>> {
    let puts = image.push(client).await?;
    registry.all_happened()?;
    ensure!(image.is_there(registry).await?, "it is not all there: {:#?}", registry.seen());
    for (blob, _) in &image.layers {
        let stored = registry.asked("PUT", UPLOADS);
        let stored =
            stored.iter().filter(|s| s.digest.as_ref() == Some(&blob.digest) && s.status == Some(201));
        ensure!(stored.count() <= 1, "{} was stored twice: {:#?}", blob.digest, registry.seen());
    }
    Ok(puts)
}

#[tokio::test]
async fn a_rate_limit_is_waited_for_in_seconds_and_dates() -> Result<()> {
    let (registry, client, image) = set_up!();
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3));
    registry.on("POST", UPLOADS, 1, refusing(429, vec![("retry-after", "1".to_owned())], ""));
    registry.on("PUT", "/manifests/sha256", 1, refusing(429, vec![("retry-after", date)], ""));
    let began = Instant::now();
    succeeds(&registry, &client, &image).await?;
    // A date has whole seconds, and the first second of the three may be nearly over.
    ensure!(began.elapsed() >= Duration::from_millis(1900), "it took {:?} only", began.elapsed());
    assert_eq!(image.whole_uploads(&registry), [1, 1, 1, 1]);
    Ok(())
}

#[tokio::test]
async fn a_day_of_retry_after_ends_the_push_at_once() -> Result<()> {
    let (registry, client, image) = set_up!();
    let words = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"quota of the month"}]}"#;
    registry.on(
        "PUT",
        "/manifests/sha256",
        9,
        refusing(429, vec![("retry-after", "86400".to_owned())], words),
    );
    let began = Instant::now();
    let error = image.push(&client).await.expect_err("not pushed");
    assert!(matches!(error, Error::Unavailable { tries: 1, .. }), "{error}");
    ensure!(began.elapsed() < policy().budget, "it waited {:?}", began.elapsed());
    for part in [&*registry.host, "rate limited", "quota of the month", "86400 s"] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    assert_eq!(registry.asked("PUT", "/manifests/").len(), 1);
    Ok(())
}

#[tokio::test]
async fn server_errors_are_tried_again_at_every_request_of_a_push() -> Result<()> {
    let (registry, client, image) = set_up!();
    for status in [500, 502, 503, 504] {
        registry.on("HEAD", "/blobs/", 1, refusing(status, vec![], ""));
        registry.on("POST", UPLOADS, 1, refusing(status, vec![], ""));
        registry.on("PUT", UPLOADS, 1, refusing(status, vec![], ""));
        registry.on("PUT", "/manifests/", 1, refusing(status, vec![], ""));
        registry.on("HEAD", "/manifests/", 1, refusing(status, vec![], ""));
    }
    succeeds(&registry, &client, &image).await?;
    // All four faults of an upload befell the first layer; the others went once.
    assert_eq!(image.whole_uploads(&registry), [5, 1, 1, 1]);
    Ok(())
}

#[tokio::test]
async fn a_registry_that_stays_down_is_given_up_in_the_budget() -> Result<()> {
    let (registry, _, image) = set_up!();
    let retry = kiln_registry::RetryPolicy { budget: Duration::from_secs(1), ..policy() };
    let client = client(&[&registry], retry)?;
    registry.on("PUT", "/manifests/sha256", usize::MAX, refusing(503, vec![], ""));
    let error = image.push(&client).await.expect_err("not pushed");
    assert!(matches!(&error, Error::Unavailable { tries, .. } if *tries > 1), "{error}");
    assert!(error.to_string().contains("503 Service Unavailable"), "{error}");
    assert_eq!(image.whole_uploads(&registry), [1, 1, 1, 1]);
    Ok(())
}

#[tokio::test]
async fn only_the_blob_whose_connection_broke_is_sent_again() -> Result<()> {
    let (registry, client, image) = set_up!();
    let second = &image.layers[1].0;
    image_layer(&client, &image, 0).await?;
    registry.on("PUT", UPLOADS, 2, Fault::Break { after: second.size / 2 });
    let puts = succeeds(&registry, &client, &image).await?;
    assert_eq!(puts, [Put::Present, Put::Uploaded, Put::Uploaded, Put::Uploaded]);
    assert_eq!(image.whole_uploads(&registry), [1, 1, 1, 1]);
    let tries = registry.uploads_of(&second.digest);
    assert!(tries.len() == 3 && tries[0] >= second.size / 2 && tries[1] >= second.size / 2, "{tries:?}");
    Ok(())
}

async fn image_layer(client: &kiln_registry::Client, image: &Made, index: usize) -> Result<Put> {
    let (blob, bytes) = &image.layers[index];
    Ok(client.put_blob(&image.name, blob, &kiln_registry::Origin::Bytes(bytes.clone())).await?)
}

#[tokio::test]
async fn a_push_that_failed_sends_only_what_is_missing_the_next_time() -> Result<()> {
    let (registry, client, image) = set_up!();
    let third = image.layers[2].0.digest.clone();
    image_layer(&client, &image, 0).await?;
    image_layer(&client, &image, 1).await?;
    registry.on("PUT", UPLOADS, usize::MAX, Fault::Break { after: 1000 });
    let retry = kiln_registry::RetryPolicy { budget: Duration::from_secs(1), ..policy() };
    let hasty = image::client(&[&registry], retry)?;
    let error = image.push(&hasty).await.expect_err("not pushed");
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    // The upload's URL has the registry's own state in it.
    assert!(error.to_string().contains(&third) && !error.to_string().contains("_state"), "{error}");
    registry.heal();
    let puts = succeeds(&registry, &client, &image).await?;
    assert_eq!(puts, [Put::Present, Put::Present, Put::Uploaded, Put::Uploaded]);
    assert_eq!(image.whole_uploads(&registry), [1, 1, 1, 1]);
    Ok(())
}

#[tokio::test]
async fn a_lost_upload_session_is_replaced() -> Result<()> {
    let (registry, client, image) = set_up!();
    registry.on("PUT", UPLOADS, 1, Fault::LoseSession);
    registry.on("PUT", UPLOADS, 1, refusing(416, vec![], ""));
    succeeds(&registry, &client, &image).await?;
    let tries = registry.asked("PUT", UPLOADS);
    // The first answer is the registry's own BLOB_UPLOAD_UNKNOWN.
    assert_eq!((tries[0].status, tries[1].status, tries[2].status), (Some(404), Some(416), Some(201)));
    assert_eq!(image.whole_uploads(&registry), [3, 1, 1, 1]);
    // A session each, none used twice.
    let mut sessions: Vec<_> = tries.iter().map(|s| s.path.clone()).collect();
    sessions.dedup();
    assert_eq!(sessions.len(), tries.len());
    Ok(())
}

#[tokio::test]
async fn what_arrived_before_its_answer_was_lost_is_not_sent_again() -> Result<()> {
    let (registry, client, image) = set_up!();
    registry.on("PUT", UPLOADS, 1, Fault::LoseAnswer);
    registry.on("PUT", "/manifests/", 1, Fault::LoseAnswer);
    let puts = succeeds(&registry, &client, &image).await?;
    assert_eq!(puts[0], Put::Present);
    assert_eq!(image.whole_uploads(&registry), [1, 1, 1, 1]);
    Ok(())
}

#[tokio::test]
async fn another_digest_than_the_acknowledged_one_fails_the_push() -> Result<()> {
    let (registry, client, image) = set_up!();
    let other = format!("sha256:{}", "0".repeat(64));
    registry.on("HEAD", "/manifests/v1", 1, Fault::Header("docker-content-digest", Some(other.clone())));
    let error = image.push(&client).await.expect_err("not pushed");
    assert!(matches!(error, Error::Verification { .. }), "{error}");
    assert!(error.to_string().contains(&other) && error.to_string().contains(&image.digest()), "{error}");
    registry.on("PUT", "/manifests/sha256", 1, refusing(201, vec![], ""));
    let unseen = Made::new(&registry.host, 2)?;
    let error = unseen.push(&client).await.expect_err("not pushed");
    assert!(matches!(error, Error::Verification { .. }), "{error}");
    assert!(error.to_string().contains("has nothing there"), "{error}");
    registry.all_happened()
}

#[tokio::test]
async fn a_registry_that_names_no_digest_is_asked_for_the_manifest() -> Result<()> {
    let (registry, client, image) = set_up!();
    registry.on("HEAD", "/manifests/", 2, Fault::Header("docker-content-digest", None));
    succeeds(&registry, &client, &image).await?;
    assert_eq!(registry.asked("GET", "/manifests/").len(), 2);
    // There by the first answer, and nowhere by the second.
    registry.on("HEAD", "/manifests/v1", 1, Fault::Header("docker-content-digest", None));
    registry.on("GET", "/manifests/v1", 1, refusing(404, vec![], ""));
    let error = image.tag(&client).await.expect_err("not verified");
    assert!(matches!(error, Error::Verification { .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_blob_that_only_seems_to_be_there_fails_the_push() -> Result<()> {
    let (registry, client, image) = set_up!();
    registry.on("HEAD", &image.layers[1].0.digest, 1, refusing(200, vec![], ""));
    let error = image.push(&client).await.expect_err("not pushed");
    assert!(matches!(error, Error::NotFound { .. } | Error::Refused { .. }), "{error}");
    // The registry's own words.
    assert!(error.to_string().contains("BLOB_UNKNOWN"), "{error}");
    assert!(registry.asked("PUT", "/manifests/v1").is_empty(), "the tag was moved");
    registry.all_happened()
}

#[tokio::test]
async fn an_immutable_tag_is_no_obstacle_to_the_image_that_it_names() -> Result<()> {
    let (registry, client, image) = set_up!();
    image.push(&client).await?;
    let words = r#"{"errors":[{"code":"TAG_INVALID","message":"the tag v1 is immutable"}]}"#;
    for (status, words) in [(409, ""), (400, words), (403, words), (412, words)] {
        registry.on("PUT", "/manifests/v1", 1, refusing(status, vec![], words));
        image.tag(&client).await?;
        registry.all_happened()?;
    }
    Ok(())
}

#[tokio::test]
async fn an_immutable_tag_of_another_image_is_said_to_be_one() -> Result<()> {
    let (registry, client, image) = set_up!();
    image.push(&client).await?;
    let other = Made::new(&registry.host, 2)?;
    let words = r#"{"errors":[{"code":"TAG_INVALID","message":"the tag v1 is immutable"}]}"#;
    let before = registry.asked("PUT", "/manifests/v1").len();
    for (status, words) in [(409, ""), (400, words), (403, words), (412, words)] {
        registry.on("PUT", "/manifests/v1", 1, refusing(status, vec![], words));
        let error = other.push(&client).await.expect_err("refused");
        assert!(matches!(&error, Error::ImmutableTag { tag, .. } if tag == "v1"), "{error}");
        registry.all_happened()?;
    }
    assert_eq!(registry.asked("PUT", "/manifests/v1").len(), before + 4, "a refusal was tried again");
    assert!(image.is_there(&registry).await?, "the tag has moved");
    Ok(())
}

#[tokio::test]
async fn a_refusal_that_says_nothing_of_tags_is_not_taken_for_one() -> Result<()> {
    let (registry, client, image) = set_up!();
    registry.on("PUT", "/manifests/v1", 1, refusing(400, vec![], ""));
    let error = image.push(&client).await.expect_err("refused");
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    Ok(())
}

#[tokio::test]
async fn no_tag_moves_after_leave_has_ended() -> Result<()> {
    let (registry, client, image) = set_up!();
    image.push(&client).await?;
    let before = registry.asked("PUT", "/manifests/v1").len();
    registry.on("PUT", "/manifests/v1", usize::MAX, refusing(503, vec![], ""));
    // Leave ends while the second try is answered.
    let asked = AtomicUsize::new(0);
    let may = || asked.fetch_add(1, Ordering::SeqCst) < 1;
    let error =
        client.move_tag(&image.name, "v1", MANIFEST, &image.manifest, &may).await.expect_err("no leave");
    assert!(matches!(error, Error::Withdrawn { .. }), "{error}");
    assert_eq!(registry.asked("PUT", "/manifests/v1").len(), before + 2);
    // The registry is back: nothing of ours is under way any more.
    registry.heal();
    image.tag(&client).await?;
    assert_eq!(registry.asked("PUT", "/manifests/v1").len(), before + 3);
    Ok(())
}

#[tokio::test]
async fn an_error_whose_words_only_drip_holds_nobody_up() -> Result<()> {
    let (registry, _, image) = set_up!();
    let retry = kiln_registry::RetryPolicy { idle: Duration::from_millis(500), ..policy() };
    let client = client(&[&registry], retry)?;
    // The registry's own 404 for a manifest without its blobs, a byte in 100 ms: it would take half a minute.
    registry.on("PUT", "/manifests/", 1, Fault::Drip(Duration::from_millis(100)));
    let began = Instant::now();
    let put = client.put_manifest(&image.name, &image.digest(), MANIFEST, &image.manifest).await;
    assert!(matches!(put, Err(Error::NotFound { .. } | Error::Refused { .. })), "{put:?}");
    ensure!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    Ok(())
}
