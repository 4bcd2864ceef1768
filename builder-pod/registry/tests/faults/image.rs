//! What the tests push: an image of three layers, by a client that has little patience.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use kiln_registry::{
    Blob, Client, Credentials, Error, ImageName, Options, Origin, Put, Registries, RetryPolicy,
};

use crate::faults::{Faulty, bytes, digest};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Short enough for a test to see the end of it, long enough for a busy machine.
pub fn policy() -> RetryPolicy {
    RetryPolicy {
        budget: Duration::from_secs(20),
        first: Duration::from_millis(10),
        cap: Duration::from_millis(100),
        connect: Duration::from_secs(5),
        idle: Duration::from_secs(10),
        settle: Duration::from_secs(20),
    }
}

/// A client that may talk to these, and has the token service's login for them.
pub fn client(hosts: &[&Faulty], retry: RetryPolicy) -> Result<Client> {
    let mut file = tempfile::NamedTempFile::new_in(hosts.first().context("no host")?.directory())?;
    let auths: serde_json::Map<String, serde_json::Value> = hosts
        .iter()
        .map(|h| (h.host.clone(), serde_json::json!({"username": "kiln", "password": "secret"})))
        .collect();
    file.write_all(serde_json::json!({ "auths": auths }).to_string().as_bytes())?;
    // It is read at every login, and goes with the registry's directory.
    let (_, path) = file.keep()?;
    Ok(Client::new(Options {
        registries: Registries {
            insecure: hosts.iter().map(|h| h.host.clone()).collect(),
            ..Registries::default()
        },
        credentials: Credentials::files(vec![path], "the test's file"),
        retry,
        ..Options::default()
    })?)
}

/// An image that is not pushed yet.
pub struct Made {
    pub name: ImageName,
    pub layers: Vec<(Blob, Bytes)>,
    pub config: (Blob, Bytes),
    pub manifest: Bytes,
}

impl Made {
    /// One of three layers; images of different seeds have no blob in common.
    pub fn new(host: &str, seed: u8) -> Result<Self> {
        let layers: Vec<_> = (0..3u8)
            .map(|n| {
                let bytes = bytes(seed * 3 + n, (300 + usize::from(n)) << 10);
                (
                    Blob { media_type: LAYER.to_owned(), digest: digest(&bytes), size: bytes.len() as u64 },
                    bytes,
                )
            })
            .collect();
        let ids: Vec<_> = layers.iter().map(|(blob, _)| &blob.digest).collect();
        let config = Bytes::from(
            serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
                "rootfs": {"type": "layers", "diff_ids": ids}})
            .to_string(),
        );
        let config_blob = Blob {
            media_type: "application/vnd.oci.image.config.v1+json".to_owned(),
            digest: digest(&config),
            size: config.len() as u64,
        };
        let described = |blob: &Blob| serde_json::json!({"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size});
        let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": described(&config_blob),
            "layers": layers.iter().map(|(blob, _)| described(blob)).collect::<Vec<_>>()});
        Ok(Self {
            name: ImageName::parse(&format!("{host}/team/app:v1"))?,
            layers,
            config: (config_blob, config),
            manifest: Bytes::from(manifest.to_string()),
        })
    }

    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }

    fn blobs(&self) -> impl Iterator<Item = &(Blob, Bytes)> {
        self.layers.iter().chain([&self.config])
    }

    /// Pushes it as the courier does: blobs from files, config, manifest by digest, tag.
    pub async fn push(&self, client: &Client) -> Result<Vec<Put>, Error> {
        let mut puts = Vec::new();
        for (blob, bytes) in self.blobs() {
            let local = |source| Error::Local { what: "the test's file".to_owned(), source };
            let mut file = tempfile::tempfile().map_err(local)?;
            file.write_all(bytes).map_err(local)?;
            puts.push(client.put_blob(&self.name, blob, &Origin::File(Arc::new(file))).await?);
        }
        client.put_manifest(&self.name, &self.digest(), MANIFEST, &self.manifest).await?;
        self.tag(client).await?;
        Ok(puts)
    }

    pub async fn tag(&self, client: &Client) -> Result<(), Error> {
        client.move_tag(&self.name, "v1", MANIFEST, &self.manifest, &|| true).await
    }

    /// How often each blob was sent whole, from the first layer to the config.
    pub fn whole_uploads(&self, registry: &Faulty) -> Vec<usize> {
        let whole =
            |blob: &Blob| registry.uploads_of(&blob.digest).iter().filter(|n| **n == blob.size).count();
        self.blobs().map(|(blob, _)| whole(blob)).collect()
    }

    /// Asks the registry itself, without the client under test, whether all of it is there.
    pub async fn is_there(&self, registry: &Faulty) -> Result<bool> {
        let mut wanted = vec![("manifests/v1".to_owned(), &self.manifest)];
        wanted.extend(self.blobs().map(|(blob, bytes)| (format!("blobs/{}", blob.digest), bytes)));
        for (path, bytes) in wanted {
            if registry.stored(&format!("/v2/team/app/{path}")).await?.as_ref() != Some(bytes) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
