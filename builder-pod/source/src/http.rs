//! An archive from a web server: downloaded whole, checked, then unpacked.

use std::path::Path;

use kiln_contract::source::{Fetched, Http};
use kiln_registry::{Client, Download, Error, Options, Proxy, RetryPolicy};

use crate::error::{Fault, Kind};
use crate::limits::{Budget, MAX_DOWNLOAD};
use crate::secrets::Secrets;
use crate::{Places, archive};

/// Fetches the archive.
///
/// # Errors
/// It can't be had, is not the one that the checksum names, or breaks a rule.
pub fn fetch(source: &Http, secrets: &Secrets, places: &Places) -> Result<Fetched, Fault> {
    source.check().map_err(|text| Fault::invalid(format!("spec.source.http: {text}")))?;
    println!("Fetching {}", source.url);
    let path = places.work.join("archive");
    let download = download(source, secrets, places, &path)?;
    let expected = source.sha256.as_ref().map(|sum| format!("sha256:{sum}"));
    if let Some(expected) = expected.filter(|expected| *expected != download.digest) {
        let text = format!(
            "{} has digest {}, expected {expected}; look at what it holds before you change the checksum",
            source.url, download.digest
        );
        return Err(Fault::new(Kind::Checksum, text));
    }
    println!("Fetched {} ({} bytes)", download.digest, download.size);
    let file =
        std::fs::File::open(&path).map_err(|e| Fault::internal(format!("opening the archive: {e}")))?;
    archive::unpack(file, &places.tree, &mut Budget::default())?;
    let _ = std::fs::remove_file(&path);
    let revision = source.revision.clone().unwrap_or_else(|| download.digest.clone());
    Ok(Fetched { revision, digest: Some(download.digest) })
}

fn download(source: &Http, secrets: &Secrets, places: &Places, path: &Path) -> Result<Download, Fault> {
    let bundle = match secrets.authorities() {
        None => None,
        Some(pem) => {
            let bundle = places.work.join("authorities.pem");
            std::fs::write(&bundle, pem)
                .map_err(|e| Fault::internal(format!("writing {}: {e}", bundle.display())))?;
            Some(bundle)
        }
    };
    let authorization = secrets.authorization()?;
    if authorization.is_some() && !source.url.starts_with("https://") {
        return Err(Fault::invalid("spec.source.http: credentials go over https only"));
    }
    // A download bears with its server for an eighth of the budget: a minute.
    let retry = RetryPolicy { budget: std::time::Duration::from_secs(480), ..RetryPolicy::default() };
    let network = &places.network;
    let proxy = network.proxy.clone().map(|p| Proxy { http: p.http, https: p.https, no_proxy: p.no_proxy });
    let authorities = network.ca_bundle.clone();
    let options = Options { ca_bundle: bundle, authorities, proxy, retry, ..Options::default() };
    let client = Client::new(options).map_err(|e| fault(&e))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Fault::internal(format!("starting the HTTP client: {e}")))?;
    runtime.block_on(async {
        let mut file = tokio::fs::File::create(path)
            .await
            .map_err(|e| Fault::internal(format!("making {}: {e}", path.display())))?;
        let done = client.download_as(&source.url, authorization.as_ref(), MAX_DOWNLOAD, &mut file).await;
        done.map_err(|e| fault(&e))
    })
}

fn fault(error: &Error) -> Fault {
    let (kind, hint) = match error {
        Error::Unauthorized { .. } | Error::Denied { .. } => (
            Kind::Unauthorized,
            "; put username and password, or bearerToken, into the Secret that spec.source.http.secretName names",
        ),
        Error::NotFound { .. } => (Kind::NotFound, ""),
        Error::Size { .. } => (Kind::TooLarge, ""),
        Error::Invalid { .. } | Error::Unsafe { .. } => (Kind::Invalid, ""),
        Error::Local { .. } | Error::Setup { .. } => (Kind::Internal, ""),
        Error::Unavailable { detail, .. } if detail.contains("peer certificate") => (
            Kind::Unauthorized,
            "; put the server's authority into ca.crt of the Secret that spec.source.http.secretName names",
        ),
        _ => (Kind::Unavailable, ""),
    };
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    Fault::new(kind, text + hint)
}
