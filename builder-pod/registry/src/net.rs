//! The HTTP client: bundled TLS roots, our own DNS (no NSS: the binary is static and its image empty), no redirects of
//! its own, no cookies.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::OnceCell;

use crate::client::{Options, Proxy};
use crate::error::Error;
use crate::guard;

/// Bytes of a CA bundle: the public ones have 250 KiB.
const MAX_BUNDLE: u64 = 4 << 20;

/// A client that trusts the bundled roots and those of the options, and goes through their proxy.
pub(crate) fn client(options: &Options) -> Result<reqwest::Client, Error> {
    let setup = |what: &str, detail: String| Error::Setup { what: what.to_owned(), detail };
    let mut roots = rustls::RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    if let Some(file) = &options.ca_bundle {
        let what = format!("the CA bundle {}", file.display());
        for certificate in read_bundle(file).map_err(|e| setup(&what, e))? {
            roots.add(certificate).map_err(|e| setup(&what, e.to_string()))?;
        }
    }
    if let Some(pem) = &options.authorities {
        let what = "the platform's CA bundle";
        for certificate in certificates(pem.as_bytes()).map_err(|e| setup(what, e))? {
            roots.add(certificate).map_err(|e| setup(what, e.to_string()))?;
        }
    }
    // The provider is named here, so that it does not matter whether `main` installed one.
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| setup("TLS", e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut builder = reqwest::Client::builder();
    if let Some(proxy) = &options.proxy {
        builder = builder.no_proxy();
        for proxy in proxies(proxy).map_err(|e| setup("the proxy", crate::transport::causes(&e)))? {
            builder = builder.proxy(proxy);
        }
    }
    builder
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .dns_resolver(Arc::new(Dns::default()))
        .connect_timeout(options.retry.connect)
        .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| setup("the HTTP client", crate::transport::causes(&e)))
}

fn read_bundle(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let size = std::fs::metadata(file).map_err(|e| e.to_string())?.len();
    if size > MAX_BUNDLE {
        return Err(format!("it has {size} bytes, more than the {MAX_BUNDLE} allowed"));
    }
    certificates(&std::fs::read(file).map_err(|e| e.to_string())?)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    if certificates.is_empty() {
        return Err("it has no PEM certificate".to_owned());
    }
    Ok(certificates)
}

/// What goes through it, by scheme.
fn proxies(proxy: &Proxy) -> reqwest::Result<Vec<reqwest::Proxy>> {
    let past = reqwest::NoProxy::from_string(&proxy.no_proxy.join(","));
    let mut all = Vec::new();
    if let Some(url) = &proxy.http {
        all.push(reqwest::Proxy::http(url)?.no_proxy(past.clone()));
    }
    if let Some(url) = &proxy.https {
        all.push(reqwest::Proxy::https(url)?.no_proxy(past));
    }
    Ok(all)
}

/// Resolves names by /etc/hosts and the servers of /etc/resolv.conf, and drops forbidden addresses from the answers.
#[derive(Debug, Clone, Default)]
struct Dns {
    resolver: Arc<OnceCell<TokioResolver>>,
}

impl Resolve for Dns {
    fn resolve(&self, name: Name) -> Resolving {
        let dns = self.clone();
        Box::pin(async move {
            let resolver = dns
                .resolver
                .get_or_try_init(|| async {
                    let mut builder = TokioResolver::builder_tokio()?;
                    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
                    builder.build()
                })
                .await?;
            let answer = resolver.lookup_ip(name.as_str()).await?;
            let all: Vec<IpAddr> = answer.iter().collect();
            let good: Vec<SocketAddr> = all
                .iter()
                .filter(|ip| guard::address_allowed(**ip))
                .map(|ip| SocketAddr::new(*ip, 0))
                .collect();
            if good.is_empty() && !all.is_empty() {
                return Err(
                    format!("{} resolves to link-local or metadata addresses only", name.as_str()).into()
                );
            }
            let addresses: Addrs = Box::new(good.into_iter());
            Ok(addresses)
        })
    }
}
