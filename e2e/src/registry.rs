//! A client of a plain-HTTP registry: manifests, blobs and tags by the distribution-spec, nothing else.

use anyhow::{Context, Result, bail, ensure};
use reqwest::{IntoUrl, Method, RequestBuilder, StatusCode, Url};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What a registry's tests accept as a manifest.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// One registry.
#[derive(Clone)]
pub struct Registry {
    host: String,
    http: reqwest::Client,
    login: Option<(String, String)>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The password is nobody's business.
        f.debug_struct("Registry").field("host", &self.host).finish_non_exhaustive()
    }
}

/// Something to push: what it is, and its bytes.
#[derive(Debug, Clone)]
pub struct Blob<'a> {
    /// Media type.
    pub kind: &'a str,
    /// Content.
    pub bytes: &'a [u8],
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
            login: None,
        })
    }

    /// The test cluster's registry that wants a login, with one that it takes; `KILN_E2E_AUTH_REGISTRY` names another.
    ///
    /// # Errors
    /// There is no password, or the HTTP client could not be made.
    pub fn guarded() -> Result<Self> {
        let host = std::env::var("KILN_E2E_AUTH_REGISTRY")
            .unwrap_or_else(|_| "registry-auth.kiln-test.svc.cluster.local:5000".to_owned());
        let file = std::env::var("KILN_E2E_AUTH_PASSWORD_FILE")
            .context("KILN_E2E_AUTH_PASSWORD_FILE is not set; e2e/cluster/in sets it")?;
        let password = std::fs::read_to_string(&file).context(file)?.trim().to_owned();
        Ok(Self { login: Some(("kiln".to_owned(), password)), ..Self::at(host)? })
    }

    /// User and password that the client shows; `None` where it shows none.
    pub fn login(&self) -> Option<(&str, &str)> {
        self.login.as_ref().map(|(user, password)| (user.as_str(), password.as_str()))
    }

    fn request(&self, method: Method, url: impl IntoUrl) -> RequestBuilder {
        let request = self.http.request(method, url);
        match &self.login {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
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
        let request = self.request(Method::GET, &url).header("accept", MANIFEST_TYPES);
        let answer = request.send().await.context(url.clone())?;
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
        let answer = self.request(Method::GET, &url).send().await.context(url.clone())?;
        ensure!(answer.status().is_success(), "{url}: {}", answer.status());
        let bytes = answer.bytes().await?.to_vec();
        let found = digest(&bytes);
        ensure!(found == wanted, "{url}: the bytes are {found}");
        Ok(bytes)
    }

    /// Pushes a blob; its descriptor.
    ///
    /// # Errors
    /// The registry did not take it.
    pub async fn push_blob(&self, repository: &str, blob: &Blob<'_>) -> Result<Value> {
        let url = format!("http://{}/v2/{repository}/blobs/uploads/", self.host);
        let begun = self.request(Method::POST, &url).send().await.context(url.clone())?;
        ensure!(begun.status() == StatusCode::ACCEPTED, "{url}: {}", begun.status());
        let place = begun.headers().get("location").with_context(|| format!("{url}: no Location"))?;
        // It may be relative, and may have a query of its own.
        let mut place = Url::parse(&url)?.join(place.to_str()?)?;
        let digest = digest(blob.bytes);
        place.query_pairs_mut().append_pair("digest", &digest);
        let sent =
            self.request(Method::PUT, place.clone()).header("content-type", "application/octet-stream");
        let taken = sent.body(blob.bytes.to_vec()).send().await.with_context(|| place.to_string())?;
        ensure!(taken.status() == StatusCode::CREATED, "{place}: {}", taken.status());
        Ok(json!({"mediaType": blob.kind, "digest": digest, "size": blob.bytes.len()}))
    }

    /// Pushes what an OCI manifest of `config` and `layers` names, and tags it; the manifest's digest.
    ///
    /// # Errors
    /// The registry did not take it.
    pub async fn push(
        &self,
        repository: &str,
        tag: &str,
        config: &Blob<'_>,
        layers: &[Blob<'_>],
    ) -> Result<String> {
        let config = self.push_blob(repository, config).await?;
        let mut pushed = Vec::new();
        for layer in layers {
            pushed.push(self.push_blob(repository, layer).await?);
        }
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": pushed});
        let bytes = manifest.to_string().into_bytes();
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.host);
        let sent = self.request(Method::PUT, &url).header("content-type", kind).body(bytes.clone());
        let taken = sent.send().await.context(url.clone())?;
        ensure!(taken.status() == StatusCode::CREATED, "{url}: {}", taken.status());
        Ok(digest(&bytes))
    }

    /// The tags of a repository; none when there is no such repository.
    ///
    /// # Errors
    /// The registry could not be reached.
    pub async fn tags(&self, repository: &str) -> Result<Vec<String>> {
        let url = format!("http://{}/v2/{repository}/tags/list", self.host);
        let answer = self.request(Method::GET, &url).send().await.context(url.clone())?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(Vec::new());
        }
        if !answer.status().is_success() {
            bail!("{url}: {}", answer.status());
        }
        let body: Value = serde_json::from_slice(&answer.bytes().await?)?;
        let tags = body["tags"].as_array().into_iter().flatten();
        Ok(tags.filter_map(|t| t.as_str().map(str::to_owned)).collect())
    }
}
