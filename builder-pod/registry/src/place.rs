//! Where a repository is served: the registry itself or one of its mirrors, as a base URL.

use reqwest::Url;

use crate::client::Registries;
use crate::error::Error;
use crate::name::{ImageName, split_mirror};

/// Where Docker Hub's API is.
const HUB_API: &str = "registry-1.docker.io";

/// One repository at one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// `host[:port]` as users write it: for messages and for credentials.
    pub(crate) host: String,
    /// The repository's path there.
    pub(crate) path: String,
    /// `https://host[:port]/`.
    pub(crate) root: Url,
    /// The registry that this is a mirror of.
    mirror_of: Option<String>,
}

impl Place {
    /// The server of a URL; it has no repository.
    pub(crate) fn of_url(url: &Url) -> Option<Self> {
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let host = format!("{}{port}", url.host_str()?);
        let root = url.join("/").ok()?;
        Some(Self { host, path: String::new(), root, mirror_of: None })
    }

    /// The repository at its own registry.
    pub(crate) fn origin(name: &ImageName, registries: &Registries) -> Result<Self, Error> {
        Self::new(name.registry(), name.repository().to_owned(), None, registries)
    }

    /// Every place to pull from, in order; the registry itself is the last.
    pub(crate) fn all(name: &ImageName, registries: &Registries) -> Result<Vec<Self>, Error> {
        let mut places = Vec::new();
        let mirrors = registries.mirrors.iter().filter(|m| m.registry == name.registry());
        for mirror in mirrors.flat_map(|m| &m.mirrors) {
            let (host, prefix) = split_mirror(mirror)?;
            let path = match prefix.as_str() {
                "" => name.repository().to_owned(),
                prefix => format!("{prefix}/{}", name.repository()),
            };
            places.push(Self::new(&host, path, Some(name.registry().to_owned()), registries)?);
        }
        places.push(Self::origin(name, registries)?);
        Ok(places)
    }

    fn new(
        host: &str,
        path: String,
        mirror_of: Option<String>,
        registries: &Registries,
    ) -> Result<Self, Error> {
        let scheme = if registries.insecure.iter().any(|i| i == host) { "http" } else { "https" };
        let server = if host == "docker.io" { HUB_API } else { host };
        let root = Url::parse(&format!("{scheme}://{server}/"))
            .map_err(|e| Error::Name { name: host.to_owned(), detail: e.to_string() })?;
        if let Some(detail) = crate::guard::objection(&root) {
            return Err(Error::Unsafe { registry: host.to_owned(), action: "talk to it".to_owned(), detail });
        }
        Ok(Self { host: host.to_owned(), path, root, mirror_of })
    }

    pub(crate) fn is_mirror(&self) -> bool {
        self.mirror_of.is_some()
    }

    /// Whether both are repositories of one registry.
    pub(crate) fn same_registry(&self, other: &Self) -> bool {
        crate::guard::same_origin(&self.root, &other.root)
    }

    pub(crate) fn manifest(&self, selector: &str) -> Url {
        self.url(&format!("manifests/{selector}"))
    }

    pub(crate) fn blob(&self, digest: &str) -> Url {
        self.url(&format!("blobs/{digest}"))
    }

    pub(crate) fn uploads(&self) -> Url {
        self.url("blobs/uploads/")
    }

    /// The first page of tags.
    pub(crate) fn tags(&self, count: usize) -> Url {
        let mut url = self.url("tags/list");
        url.query_pairs_mut().append_pair("n", &count.to_string());
        url
    }

    fn url(&self, rest: &str) -> Url {
        let mut url = self.root.clone();
        // Path and rest are of the strict grammars of `name`, so nothing in them is special in a URL.
        url.set_path(&format!("/v2/{}/{rest}", self.path));
        if let Some(registry) = &self.mirror_of {
            // Mirrors that serve several registries tell them apart by this (containerd's registry host interface).
            url.query_pairs_mut().append_pair("ns", registry);
        }
        url
    }

    pub(crate) fn pull_scope(&self) -> String {
        format!("repository:{}:pull", self.path)
    }

    /// Docker's token services know `delete` as an action of its own; others give what they know of.
    pub(crate) fn delete_scope(&self) -> String {
        format!("repository:{}:delete,pull,push", self.path)
    }

    pub(crate) fn push_scope(&self) -> String {
        format!("repository:{}:pull,push", self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Mirror;

    #[test]
    fn mirrors_come_first_and_hub_has_its_own_host() {
        let registries = Registries {
            mirrors: vec![Mirror {
                registry: "docker.io".into(),
                mirrors: vec!["m:5000".into(), "cache.example/hub".into()],
            }],
            insecure: vec!["m:5000".into()],
        };
        let name = ImageName::parse("alpine:3").expect("a name");
        let places = Place::all(&name, &registries).expect("places");
        let urls: Vec<String> = places.iter().map(|p| p.manifest(name.selector()).to_string()).collect();
        assert_eq!(
            urls,
            [
                "http://m:5000/v2/library/alpine/manifests/3?ns=docker.io",
                "https://cache.example/v2/hub/library/alpine/manifests/3?ns=docker.io",
                "https://registry-1.docker.io/v2/library/alpine/manifests/3",
            ]
        );
        let other = ImageName::parse("quay.io/a/b").expect("a name");
        assert_eq!(Place::all(&other, &registries).expect("places").len(), 1);
        let metadata = ImageName::parse("169.254.169.254/a").expect("a name");
        assert!(matches!(Place::all(&metadata, &registries), Err(Error::Unsafe { .. })));
    }
}
