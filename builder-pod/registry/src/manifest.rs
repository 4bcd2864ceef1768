//! Manifests and indexes as they come from a registry: bounded, verified, unambiguous (OCI image-spec manifest.md,
//! image-index.md; Docker schema 2).

use serde::Deserialize;

use crate::error::Error;
use crate::name::{ImageName, is_digest};
use crate::platform::{Found, Platform};

/// Bytes of a manifest or index: the distribution-spec asks registries for 4 MiB, others stop at 8.
pub const MAX_MANIFEST: usize = 8 << 20;
/// Bytes of an image config.
pub const MAX_CONFIG: usize = 4 << 20;
/// Layers of an image: overlayfs takes 500, Docker 127.
pub const MAX_LAYERS: usize = 256;
/// Entries of an index.
const MAX_ENTRIES: usize = 1000;

/// Media types of what we can read, in an Accept header.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// What a blob is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Blob {
    /// Media type.
    pub media_type: String,
    /// `sha256:…`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

/// An image, pinned to the manifest of one platform.
#[derive(Debug, Clone)]
pub struct Image {
    /// The name that was asked for.
    pub name: ImageName,
    /// Digest of the platform's manifest.
    pub digest: String,
    /// Media type of that manifest.
    pub media_type: String,
    /// The config, byte for byte.
    pub config: Vec<u8>,
    /// Layers from the bottom up.
    pub layers: Vec<Blob>,
}

/// A manifest or index.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    config: Option<Blob>,
    layers: Option<Vec<Blob>>,
    manifests: Option<Vec<Entry>>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(flatten)]
    blob: Blob,
    platform: Option<Found>,
}

/// What a document turned out to be.
#[derive(Debug)]
pub(crate) enum Parsed {
    Index { chosen: Blob },
    Manifest { media_type: String, config: Blob, layers: Vec<Blob> },
}

/// Reads a document and, of an index, chooses the entry for the platform.
pub(crate) fn parse(
    name: &ImageName,
    header: &str,
    bytes: &[u8],
    platform: &Platform,
) -> Result<Parsed, Error> {
    let what = || format!("the manifest of {name}");
    let invalid = |detail: &str| Error::Invalid { what: what(), detail: detail.to_owned() };
    let document: Document = serde_json::from_slice(bytes).map_err(|e| invalid(&e.to_string()))?;
    if document.schema_version == 1 {
        return Err(invalid(
            "it is of the old schema 1, which carries no verifiable layers; push the image anew",
        ));
    }
    if document.schema_version != 2 {
        return Err(invalid("its schemaVersion is not 2"));
    }
    let media_type = document.media_type.unwrap_or_else(|| header.to_owned());
    match (document.manifests, document.config, document.layers) {
        (Some(entries), None, None) => choose(name, &entries, platform),
        (None, Some(config), Some(layers)) => {
            if layers.len() > MAX_LAYERS {
                return Err(Error::Size {
                    what: what(),
                    found: format!("{} layers", layers.len()),
                    expected: format!("at most {MAX_LAYERS} are allowed"),
                });
            }
            for blob in layers.iter().chain([&config]) {
                check(blob).map_err(|d| invalid(&d))?;
            }
            if media_type.ends_with("manifest.list.v2+json") || media_type.ends_with("index.v1+json") {
                return Err(invalid("its media type says index, its fields say manifest"));
            }
            Ok(Parsed::Manifest { media_type, config, layers })
        }
        _ => Err(invalid("expected either config and layers (an image) or manifests (an index)")),
    }
}

fn check(blob: &Blob) -> Result<(), String> {
    if is_digest(&blob.digest) { Ok(()) } else { Err(format!("{:?} is no sha256 digest", blob.digest)) }
}

fn choose(name: &ImageName, entries: &[Entry], platform: &Platform) -> Result<Parsed, Error> {
    if entries.len() > MAX_ENTRIES {
        return Err(Error::Size {
            what: format!("the index of {name}"),
            found: format!("{} entries", entries.len()),
            expected: format!("at most {MAX_ENTRIES} are allowed"),
        });
    }
    let index = platform.choose(entries.iter().map(|e| e.platform.as_ref())).or_else(|| {
        // An index of one image that does not say its platform is taken at its config's word.
        matches!(entries, [Entry { platform: None, .. }]).then_some(0)
    });
    let available = || {
        let names: Vec<String> = entries
            .iter()
            .filter_map(|e| e.platform.as_ref().map(ToString::to_string))
            .filter(|p| p != "unknown/unknown")
            .take(20)
            .collect();
        if names.is_empty() { "none that it names".to_owned() } else { names.join(", ") }
    };
    let Some(entry) = index.and_then(|i| entries.get(i)) else {
        return Err(Error::PlatformMissing {
            image: name.to_string(),
            wanted: platform.to_string(),
            available: available(),
        });
    };
    check(&entry.blob).map_err(|detail| Error::Invalid { what: format!("the index of {name}"), detail })?;
    Ok(Parsed::Index { chosen: entry.blob.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(json: &str) -> Result<Parsed, Error> {
        let name = ImageName::parse("alpine").expect("a name");
        parse(&name, "", json.as_bytes(), &Platform::parse("linux/amd64").expect("a platform"))
    }

    #[test]
    fn an_index_yields_the_platform() {
        let d = format!("sha256:{}", "a".repeat(64));
        let entry = |arch: &str| {
            format!(
                r#"{{"mediaType":"m","digest":"{d}","size":1,"platform":{{"os":"linux","architecture":"{arch}"}}}}"#
            )
        };
        let index = |entries: &str| format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#);
        assert!(matches!(run(&index(&entry("amd64"))), Ok(Parsed::Index { .. })));
        let error = run(&index(&entry("arm64"))).expect_err("no such platform").to_string();
        assert!(error.contains("linux/amd64") && error.contains("linux/arm64"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_document_is_one_or_an_error(
            version in "[012]|2.0|-1|\"2\"|null",
            fields in proptest::collection::vec(("manifests|layers|config|mediaType|[a-z]{1,3}", "\\[\\]|\\{\\}|null|1|\"[a-z]*\"|BLOB|\\[BLOB\\]|\\[BLOB,BLOB\\]"), 0..5),
            size in "-1|1e3|[0-9]{1,21}",
            digest in "sha256:a{64}|sha256:[a-f/.]{0,9}|",
            text in "\\PC*",
        ) {
            let blob = format!("{{\"mediaType\":\"m\",\"digest\":\"{digest}\",\"size\":{size},\"platform\":{{\"os\":\"linux\",\"architecture\":\"amd64\"}}}}");
            let fields: String = fields.iter().map(|(k, v)| format!(",\"{k}\":{}", v.replace("BLOB", &blob))).collect();
            match run(&format!("{{\"schemaVersion\":{version}{fields}}}")) {
                Ok(Parsed::Index { chosen }) => proptest::prop_assert!(is_digest(&chosen.digest)),
                Ok(Parsed::Manifest { config, layers, .. }) => {
                    proptest::prop_assert!(layers.iter().chain([&config]).all(|b| is_digest(&b.digest)));
                }
                Err(_) => {}
            }
            let _ = run(&text);
        }
    }

    #[test]
    fn brackets_in_any_number_are_refused() {
        for bad in ["[".repeat(MAX_MANIFEST), "{\"a\":".repeat(1 << 20), "{\"manifests\":[".repeat(1 << 18)] {
            assert!(run(&bad).is_err());
        }
    }

    #[test]
    fn ambiguous_and_old_documents_are_refused() {
        for bad in [
            r#"{"schemaVersion":1}"#,
            r#"{"schemaVersion":2}"#,
            r#"{"schemaVersion":2,"manifests":[],"layers":[],"config":{"mediaType":"m","digest":"d","size":1}}"#,
            r#"{"schemaVersion":2,"layers":[],"config":{"mediaType":"m","digest":"sha256:../x","size":1}}"#,
            "[]",
        ] {
            assert!(run(bad).is_err(), "{bad}");
        }
    }
}
