//! A blob that is sent while it is written, to a real registry that has faults.
#![allow(dead_code, clippy::unwrap_used)]

mod faults;
#[path = "faults/image.rs"]
mod image;

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use faults::{Fault, Faulty, bytes, digest};
use image::{client, policy};
use kiln_registry::{Blob, ImageName, Origin, Put, RetryPolicy, Written};
use tokio::sync::watch;

const MEBIBYTE: usize = 1 << 20;
const UPLOADS: &str = "/blobs/uploads/";

/// A blob of some pieces, its file, of which half is written, and a repository for it.
struct Growing {
    name: ImageName,
    blob: Blob,
    bytes: Bytes,
    file: File,
}

impl Growing {
    fn new(registry: &Faulty) -> Result<Self> {
        let bytes = bytes(9, 5 * MEBIBYTE / 2);
        let media_type = "application/vnd.oci.image.layer.v1.tar".to_owned();
        let blob = Blob { media_type, digest: digest(&bytes), size: bytes.len() as u64 };
        let mut file = tempfile::tempfile()?;
        file.write_all(&bytes[..MEBIBYTE])?;
        let name = ImageName::parse(&format!("{}/team/app:v1", registry.host))?;
        Ok(Self { name, blob, bytes, file })
    }

    /// Sends it: the second half is written once `begun`.
    async fn put(&mut self, registry: &Faulty, begun: impl Fn() -> bool) -> Result<Put> {
        let (told, written) = watch::channel(Written { bytes: MEBIBYTE as u64, whole: false });
        let client = client(&[registry], policy())?;
        let early = client.begin_blob(&self.name, self.file.try_clone()?, written);
        let beginning = async {
            while !begun() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), beginning).await?;
        self.file.write_all(&self.bytes[MEBIBYTE..])?;
        told.send_replace(Written { bytes: self.blob.size, whole: true });
        Ok(early.put(&self.blob).await?)
    }

    async fn is_there(&self, registry: &Faulty) -> Result<bool> {
        let path = format!("/v2/team/app/blobs/{}", self.blob.digest);
        Ok(registry.stored(&path).await?.as_ref() == Some(&self.bytes))
    }
}

/// A registry; ends the test where there is none.
macro_rules! registry {
    () => {{
        let Some(registry) = Faulty::start().await? else { return Ok(()) };
        registry
    }};
}

#[tokio::test]
async fn bytes_arrive_before_the_file_is_whole() -> Result<()> {
    let registry = registry!();
    registry.want_tokens(None);
    let mut growing = Growing::new(&registry)?;
    let arrived = || registry.asked("PATCH", UPLOADS).iter().any(|seen| seen.received == MEBIBYTE as u64);
    assert_eq!(growing.put(&registry, arrived).await?, Put::Uploaded);
    ensure!(growing.is_there(&registry).await?, "it is not there: {:#?}", registry.seen());
    // All of it went once.
    let sent: u64 = registry.seen().iter().map(|seen| seen.received).sum();
    assert_eq!(sent, growing.blob.size);
    Ok(())
}

#[tokio::test]
async fn whatever_goes_wrong_the_whole_file_is_sent_in_the_ordinary_way() -> Result<()> {
    let refuse = |status| Fault::Answer { after: 0, status, headers: vec![], body: String::new() };
    for (method, fault) in [
        ("POST", refuse(400)),
        ("POST", refuse(503)),
        ("PATCH", refuse(405)),
        ("PATCH", Fault::Break { after: 1000 }),
        ("PATCH", Fault::LoseSession),
        ("PATCH", Fault::Header("location", Some("http://elsewhere.example/upload".into()))),
        ("PUT", refuse(500)),
        ("PUT", Fault::LoseSession),
        ("PUT", Fault::Break { after: 0 }),
    ] {
        let registry = registry!();
        let mut growing = Growing::new(&registry)?;
        registry.on(method, UPLOADS, 1, fault.clone());
        let asked = || !registry.asked("POST", UPLOADS).is_empty();
        let put = growing.put(&registry, asked).await?;
        registry.all_happened()?;
        assert_eq!(put, Put::Uploaded, "{method} {fault:?}");
        ensure!(growing.is_there(&registry).await?, "{method} {fault:?}: {:#?}", registry.seen());
    }
    Ok(())
}

#[tokio::test]
async fn what_is_there_already_is_not_stored_again() -> Result<()> {
    let registry = registry!();
    let mut growing = Growing::new(&registry)?;
    let origin = Origin::Bytes(growing.bytes.clone());
    client(&[&registry], policy())?.put_blob(&growing.name, &growing.blob, &origin).await?;
    assert_eq!(growing.put(&registry, || true).await?, Put::Present);
    assert_eq!(registry.asked("PUT", UPLOADS).len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_file_that_stays_in_part_is_no_blob() -> Result<()> {
    let registry = registry!();
    let growing = Growing::new(&registry)?;
    let (told, written) = watch::channel(Written { bytes: MEBIBYTE as u64, whole: false });
    // It would be tried again until patience ends.
    let policy = RetryPolicy { budget: Duration::ZERO, ..policy() };
    let client = client(&[&registry], policy)?;
    let early = client.begin_blob(&growing.name, growing.file.try_clone()?, written);
    // Whoever wrote it is gone; what is put nonetheless is not that file.
    drop(told);
    let error = early.put(&growing.blob).await.unwrap_err();
    ensure!(error.to_string().contains("failed to fill whole buffer"), "{error}");
    ensure!(!growing.is_there(&registry).await?, "it is there");
    Ok(())
}
