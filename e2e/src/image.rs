//! An image as the registry has it, every digest, size, diff ID and JSON schema checked on the way in.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::registry::{Registry, digest};

/// A checked image.
#[derive(Debug)]
pub struct Image {
    /// Digest of the manifest.
    pub digest: String,
    /// The manifest.
    pub manifest: Value,
    /// The image config.
    pub config: Value,
    /// Uncompressed layers from the bottom up.
    pub layers: Vec<Vec<u8>>,
}

/// One path of an image's merged file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// tar type flag (`0` file, `2` symlink, `5` directory, …).
    pub kind: u8,
    /// Permission and special bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u64, u64),
    /// Content of a regular file, target of a link.
    pub content: Vec<u8>,
}

/// Directory of the OCI JSON schemas: they are data of the image-spec and lie beside the checkout, not in it.
fn schemas() -> Option<PathBuf> {
    let given = std::env::var_os("KILN_CONFORMANCE").map(PathBuf::from);
    let root =
        given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance"));
    let dir = root.join("oci/schema");
    dir.is_dir().then_some(dir)
}

/// The schemas name one another by file, below addresses that nobody serves.
struct Schemas(PathBuf);

impl jsonschema::Retrieve for Schemas {
    fn retrieve(
        &self,
        uri: &jsonschema::Uri<String>,
    ) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        let path = uri.path().as_str();
        read_schema(&self.0, path.rsplit('/').next().unwrap_or(path))
    }
}

fn read_schema(dir: &Path, name: &str) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
    let path = dir.join(name);
    let bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Checks a document against one of the image-spec's schemas.
///
/// # Errors
/// Every violation.
pub fn check_schema(schema: &str, document: &Value) -> Result<()> {
    let Some(dir) = schemas() else {
        eprintln!("schema check of {schema} skipped: no ../shared/conformance/oci beside the checkout");
        return Ok(());
    };
    let validator = jsonschema::options()
        .with_retriever(Schemas(dir.clone()))
        .build(&read_schema(&dir, schema).map_err(|e| anyhow::anyhow!("{schema}: {e}"))?)
        .map_err(|e| anyhow::anyhow!("{schema}: {e}"))?;
    let faults: Vec<String> =
        validator.iter_errors(document).map(|e| format!("{}: {e}", e.instance_path)).collect();
    ensure!(faults.is_empty(), "against {schema}: {}", faults.join("; "));
    Ok(())
}

/// Reads and checks `repository:reference`.
///
/// # Errors
/// The first thing that does not hold.
pub async fn read(registry: &Registry, repository: &str, reference: &str) -> Result<Image> {
    let (manifest_digest, bytes) = registry
        .manifest(repository, reference)
        .await?
        .with_context(|| format!("{repository}:{reference} is not in the registry"))?;
    let manifest: Value = serde_json::from_slice(&bytes).context("the manifest is no JSON")?;
    check_schema("image-manifest-schema.json", &manifest)?;
    let config_bytes = registry.blob(repository, text(&manifest["config"]["digest"])?).await?;
    ensure!(manifest["config"]["size"] == config_bytes.len(), "the config's size is wrong");
    let config: Value = serde_json::from_slice(&config_bytes).context("the config is no JSON")?;
    check_schema("config-schema.json", &config)?;
    let descriptors = manifest["layers"].as_array().context("no layers in the manifest")?;
    let diff_ids = config["rootfs"]["diff_ids"].as_array().context("no diff_ids in the config")?;
    ensure!(descriptors.len() == diff_ids.len(), "{} layers, {} diff ids", descriptors.len(), diff_ids.len());
    let filled = config["history"]
        .as_array()
        .map_or(0, |h| h.iter().filter(|e| !e["empty_layer"].as_bool().unwrap_or_default()).count());
    ensure!(filled == diff_ids.len(), "history speaks of {filled} layers, there are {}", diff_ids.len());
    let mut layers = Vec::new();
    for (descriptor, diff_id) in descriptors.iter().zip(diff_ids) {
        let blob = registry.blob(repository, text(&descriptor["digest"])?).await?;
        ensure!(descriptor["size"] == blob.len(), "size of {} is wrong", descriptor["digest"]);
        let tar = match text(&descriptor["mediaType"])? {
            t if t.ends_with("+gzip") || t.ends_with(".gzip") => {
                let mut tar = Vec::new();
                flate2::read::MultiGzDecoder::new(&blob[..]).read_to_end(&mut tar).context("gunzip")?;
                tar
            }
            t if t.ends_with("tar") => blob,
            other => bail!("layer of media type {other}"),
        };
        ensure!(digest(&tar) == text(diff_id)?, "diff id of {} is wrong", descriptor["digest"]);
        layers.push(tar);
    }
    Ok(Image { digest: manifest_digest, manifest, config, layers })
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("{value} is no string"))
}

impl Image {
    /// The file system that the layers make, by path without a leading slash.
    ///
    /// # Errors
    /// A layer is no valid tar.
    pub fn files(&self) -> Result<BTreeMap<String, Entry>> {
        let mut files = BTreeMap::new();
        for layer in &self.layers {
            apply(&mut files, layer)?;
        }
        Ok(files)
    }

    /// The text of a regular file.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn file(&self, path: &str) -> Result<String> {
        let files = self.files()?;
        let entry = files.get(path).with_context(|| format!("{path} is not in the image"))?;
        Ok(String::from_utf8_lossy(&entry.content).into_owned())
    }
}

/// Applies one layer by the rules of the image-spec's layer.md.
fn apply(files: &mut BTreeMap<String, Entry>, layer: &[u8]) -> Result<()> {
    let mut archive = tar::Archive::new(layer);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let raw = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = raw.trim_start_matches("./").trim_matches('/').to_owned();
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let below = |p: &str| if p.is_empty() { String::new() } else { format!("{p}/") };
        if name == ".wh..wh..opq" {
            files.retain(|p, _| !p.starts_with(&below(parent)));
            continue;
        }
        if let Some(gone) = name.strip_prefix(".wh.") {
            let gone = format!("{}{gone}", below(parent));
            files.retain(|p, _| *p != gone && !p.starts_with(&below(&gone)));
            continue;
        }
        let header = entry.header().clone();
        let kind = header.entry_type().as_byte();
        let mut content = Vec::new();
        if header.entry_type().is_file() {
            entry.read_to_end(&mut content)?;
        } else if let Some(link) = entry.link_name_bytes() {
            content = link.into_owned();
        }
        let owner = (header.uid()?, header.gid()?);
        files.insert(path, Entry { kind, mode: header.mode()?, owner, content });
    }
    Ok(())
}
