//! A reader of a plain-HTTP registry: manifests, blobs and tags by the distribution-spec, nothing else.

use anyhow::{Context, Result, bail, ensure};
use reqwest::StatusCode;
use sha2::{Digest, Sha256};

/// What a registry's tests accept as a manifest.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// One registry, without credentials.
#[derive(Debug, Clone)]
pub struct Registry {
    host: String,
    http: reqwest::Client,
}

/// `sha256:` digest of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

impl Registry {
    /// The test cluster's open registry; `KILN_E2E_REGISTRY` names another.
    ///
    /// # Errors
    /// The HTTP client could not be made.
    pub fn of_the_cluster() -> Result<Self> {
        let host = std::env::var("KILN_E2E_REGISTRY")
            .unwrap_or_else(|_| "registry.kiln-test.svc.cluster.local:5000".to_owned());
        Self::at(host)
    }

    /// The registry at `host:port`.
    ///
    /// # Errors
    /// The HTTP client could not be made.
    pub fn at(host: String) -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            host,
            http: reqwest::Client::builder().no_proxy().build().context("making an HTTP client")?,
        })
    }

    /// `host:port`, as image names have it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The manifest that a tag or digest names, byte for byte, and its digest; `None` when there is none.
    ///
    /// # Errors
    /// The registry could not be reached, or its digest header is not the digest of what it sent.
    pub async fn manifest(&self, repository: &str, reference: &str) -> Result<Option<(String, Vec<u8>)>> {
        let url = format!("http://{}/v2/{repository}/manifests/{reference}", self.host);
        let answer =
            self.http.get(&url).header("accept", MANIFEST_TYPES).send().await.context(url.clone())?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        ensure!(answer.status().is_success(), "{url}: {}", answer.status());
        let said = answer
            .headers()
            .get("docker-content-digest")
            .map(|v| v.to_str().map(str::to_owned))
            .transpose()?;
        let bytes = answer.bytes().await?.to_vec();
        let found = digest(&bytes);
        if let Some(said) = said {
            ensure!(said == found, "{url}: the registry says {said}, the bytes are {found}");
        }
        Ok(Some((found, bytes)))
    }

    /// A blob, checked against its digest.
    ///
    /// # Errors
    /// It is not there, or other bytes are.
    pub async fn blob(&self, repository: &str, wanted: &str) -> Result<Vec<u8>> {
        let url = format!("http://{}/v2/{repository}/blobs/{wanted}", self.host);
        let answer = self.http.get(&url).send().await.context(url.clone())?;
        ensure!(answer.status().is_success(), "{url}: {}", answer.status());
        let bytes = answer.bytes().await?.to_vec();
        let found = digest(&bytes);
        ensure!(found == wanted, "{url}: the bytes are {found}");
        Ok(bytes)
    }

    /// The tags of a repository; none when there is no such repository.
    ///
    /// # Errors
    /// The registry could not be reached.
    pub async fn tags(&self, repository: &str) -> Result<Vec<String>> {
        let url = format!("http://{}/v2/{repository}/tags/list", self.host);
        let answer = self.http.get(&url).send().await.context(url.clone())?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(Vec::new());
        }
        if !answer.status().is_success() {
            bail!("{url}: {}", answer.status());
        }
        let body: serde_json::Value = serde_json::from_slice(&answer.bytes().await?)?;
        let tags = body["tags"].as_array().into_iter().flatten();
        Ok(tags.filter_map(|t| t.as_str().map(str::to_owned)).collect())
    }
}
