//! The client: settings and what all operations share.

use std::path::PathBuf;
use std::sync::Arc;

use crate::auth::Auth;
use crate::credentials::Credentials;
use crate::error::Error;
use crate::name::ImageName;
use crate::place::Place;
use crate::retry::{Backoff, RetryPolicy};

/// Mirrors and plain-HTTP registries.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    /// Tried in order before the registry itself.
    pub mirrors: Vec<Mirror>,
    /// `host[:port]` of registries that are talked to over plain HTTP.
    pub insecure: Vec<String>,
}

/// Other places that serve a registry's images.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// The registry as image names have it (`docker.io`).
    pub registry: String,
    /// `host[:port][/prefix]` of each mirror.
    pub mirrors: Vec<String>,
}

/// A proxy for all that the client asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxy {
    /// URL of the proxy for plain HTTP.
    pub http: Option<String>,
    /// URL of the proxy for HTTPS.
    pub https: Option<String>,
    /// Hosts, domains, addresses and ranges that are reached without it.
    pub no_proxy: Vec<String>,
}

/// What a client is made from.
#[derive(Debug, Clone)]
pub struct Options {
    /// Mirrors and plain-HTTP registries.
    pub registries: Registries,
    /// Where credentials are looked up.
    pub credentials: Credentials,
    /// How long to bear with a registry.
    pub retry: RetryPolicy,
    /// PEM certificates that are trusted beside the bundled roots.
    pub ca_bundle: Option<PathBuf>,
    /// Further ones, as text.
    pub authorities: Option<String>,
    /// What it goes through, instead of what the environment says.
    pub proxy: Option<Proxy>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            registries: Registries::default(),
            credentials: Credentials::none(),
            retry: RetryPolicy::default(),
            ca_bundle: None,
            authorities: None,
            proxy: None,
        }
    }
}

/// Talks to registries. Cheap to clone; clones share connections and tokens.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) http: reqwest::Client,
    pub(crate) registries: Registries,
    pub(crate) credentials: Credentials,
    pub(crate) retry: RetryPolicy,
    pub(crate) auth: Arc<Auth>,
}

impl Client {
    /// A client with these settings.
    ///
    /// # Errors
    /// [`Error::Setup`] when the CA bundle or the proxy can't be used, [`Error::Name`] for a mirror that is not
    /// `host[:port][/prefix]`.
    pub fn new(options: Options) -> Result<Self, Error> {
        for mirror in options.registries.mirrors.iter().flat_map(|m| &m.mirrors) {
            crate::name::split_mirror(mirror)?;
        }
        Ok(Self {
            inner: Arc::new(Inner {
                http: crate::net::client(&options)?,
                registries: options.registries,
                credentials: options.credentials,
                retry: options.retry,
                auth: Arc::default(),
            }),
        })
    }

    /// The same client for what the caller can do without: it gives up after an eighth of the time.
    #[must_use]
    pub fn impatient(&self) -> Self {
        let inner = &self.inner;
        Self {
            inner: Arc::new(Inner {
                http: inner.http.clone(),
                registries: inner.registries.clone(),
                credentials: inner.credentials.clone(),
                retry: inner.retry.impatient(),
                auth: inner.auth.clone(),
            }),
        }
    }

    pub(crate) fn origin(&self, name: &ImageName) -> Result<Place, Error> {
        Place::origin(name, &self.inner.registries)
    }

    pub(crate) fn places(&self, name: &ImageName) -> Result<Vec<Place>, Error> {
        Place::all(name, &self.inner.registries)
    }

    pub(crate) fn backoff(&self, place: &Place, action: impl Into<String>) -> Backoff {
        Backoff::new(&self.inner.retry, &place.host, action)
    }
}
