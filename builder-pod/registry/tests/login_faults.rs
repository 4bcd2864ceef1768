//! Tokens of a registry that end too early, say nonsense of their time, or are not to be had.
#![allow(dead_code, clippy::unwrap_used)]

mod faults;
#[path = "faults/image.rs"]
mod image;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use faults::{Fault, Faulty};
use image::{Made, client, policy};
use kiln_registry::{Error, Origin};

const UPLOADS: &str = "/blobs/uploads/";

/// A registry that wants tokens which say this of their time, a client with its login, and an image.
macro_rules! set_up {
    ($expires_in:expr) => {{
        let Some(registry) = Faulty::start().await? else { return Ok(()) };
        registry.want_tokens($expires_in);
        let (client, image) = (client(&[&registry], policy())?, Made::new(&registry.host, 1)?);
        (registry, client, image)
    }};
}

#[tokio::test]
async fn a_token_that_ends_in_the_middle_of_an_upload_is_replaced() -> Result<()> {
    let (registry, client, image) = set_up!(Some("300"));
    let first = image.layers[0].0.clone();
    let (blob, bytes) = &image.layers[0];
    registry.on("PUT", UPLOADS, 1, Fault::ExpireTokens { after: first.size / 2 });
    client.put_blob(&image.name, blob, &Origin::Bytes(bytes.clone())).await?;
    // Of the next blob all bytes have come when the registry says so; then before each manifest, and its verification.
    registry.on("PUT", UPLOADS, 1, Fault::ExpireTokens { after: u64::MAX });
    for part in ["/manifests/sha256", "/manifests/v1"] {
        registry.on("PUT", part, 1, Fault::ExpireTokens { after: 0 });
        registry.on("HEAD", part, 1, Fault::ExpireTokens { after: 0 });
    }
    image.push(&client).await?;
    registry.all_happened()?;
    ensure!(image.is_there(&registry).await?, "it is not all there");
    // A blob goes again for the sake of a token that ended under it, and for no other.
    assert_eq!(image.whole_uploads(&registry), [1, 2, 1, 1]);
    ensure!((7..=8).contains(&registry.tokens_given()), "{} tokens", registry.tokens_given());
    Ok(())
}

#[tokio::test]
async fn whatever_a_token_says_of_its_time_the_push_succeeds() -> Result<()> {
    for expires_in in [
        None,
        Some("300"),
        Some("0"),
        Some("-1"),
        Some("-9223372036854775809"),
        Some("18446744073709551616"),
        Some("1e300"),
        Some("59.5"),
        Some("null"),
        Some("\"soon\""),
    ] {
        let (registry, client, image) = set_up!(expires_in);
        image.push(&client).await?;
        ensure!(image.is_there(&registry).await?, "{expires_in:?}: it is not all there");
        // One token serves all of it, so that no blob has to go twice.
        assert_eq!(image.whole_uploads(&registry), [1; 4], "{expires_in:?}");
        assert_eq!(registry.tokens_given(), 1, "{expires_in:?}: {:#?}", registry.seen());
    }
    Ok(())
}

#[tokio::test]
async fn a_token_service_that_limits_the_rate_is_waited_for() -> Result<()> {
    let (registry, client, image) = set_up!(Some("300"));
    let limit = |seconds: &str| Fault::Answer {
        after: 0,
        status: 429,
        headers: vec![("retry-after", seconds.to_owned())],
        body: String::new(),
    };
    registry.on("GET", "/token", 1, limit("2"));
    let began = Instant::now();
    image.push(&client).await?;
    ensure!(began.elapsed() >= Duration::from_secs(2), "it did not wait");
    let (registry, client, image) = set_up!(Some("300"));
    registry.on("GET", "/token", 1, limit("86400"));
    let error = image.push(&client).await.expect_err("a day is too long");
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    for part in ["the token service", "rate limited", "86400 s"] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_token_that_is_never_good_enough_ends_the_push() -> Result<()> {
    let (registry, client, image) = set_up!(Some("300"));
    registry.on("HEAD", "/blobs/", usize::MAX, Fault::ExpireTokens { after: 0 });
    let error = image.push(&client).await.expect_err("refused");
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert!(registry.asked("POST", UPLOADS).is_empty());
    ensure!(registry.tokens_given() <= 2, "{} tokens for one request", registry.tokens_given());
    Ok(())
}
