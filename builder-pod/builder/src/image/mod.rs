//! The image config and its history, instruction by instruction. Pure: a base's config goes in, bytes come out.
//!
//! Rules: OCI image-spec config.md; texts of the history and the Docker extensions as BuildKit `dockerfile2llb` has them.

mod config;
mod gotext;
mod history;

use std::collections::BTreeMap;

use kiln_contract::image::{ResolvedImage, is_sha256_digest};
use serde::Deserialize;
use serde_json::{Map, Value, json};

pub use config::{Health, RunConfig};
pub use gotext::{duration, list, quoted};
pub use history::Entry;

/// `PATH` of an image that has none (BuildKit `system.DefaultPathEnvUnix`).
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Layers of a base image at most: overlayfs takes their names in one page of mount options.
pub const MAX_BASE_LAYERS: usize = 200;
/// History entries of a base image at most, so that a hostile config can't make ours grow without end.
const MAX_BASE_HISTORY: usize = 2000;
/// Fields beside `config`, `rootfs` and `history` that a child keeps; all others (`container`, `docker_version`, caches
/// of other builders…) are about how the base was made.
const INHERITED: [&str; 6] = ["architecture", "os", "variant", "os.version", "os.features", "author"];

/// What is wrong with a base image's config.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the base image {image} is not usable: {problem}")]
pub struct BaseError {
    /// The image's name.
    pub image: String,
    /// What was expected and what was found.
    pub problem: String,
}

/// An image as it grows.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    head: Map<String, Value>,
    /// The `config` object.
    pub config: RunConfig,
    base_history: Vec<Value>,
    base_diff_ids: Vec<String>,
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Base {
    #[serde(default)]
    config: Option<RunConfig>,
    #[serde(default)]
    history: Option<Vec<Value>>,
    rootfs: RootFs,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

impl Image {
    /// `FROM scratch` for a platform (`os/arch[/variant]`).
    pub fn scratch(platform: &str) -> Self {
        let mut image = Self {
            head: Map::new(),
            config: RunConfig { working_dir: Some("/".into()), ..RunConfig::default() },
            base_history: Vec::new(),
            base_diff_ids: Vec::new(),
            entries: Vec::new(),
        };
        image.fill_in(platform);
        image
    }

    /// `FROM` a resolved image; `platform` fills in what the config does not say.
    ///
    /// # Errors
    /// The config is no image config, or does not fit the manifest.
    pub fn from_base(resolved: &ResolvedImage, platform: &str) -> Result<Self, BaseError> {
        let refuse = |problem: String| BaseError { image: resolved.reference.clone(), problem };
        let base: Base = serde_json::from_str(&resolved.config)
            .map_err(|e| refuse(format!("its config is not an image config ({e})")))?;
        let diff_ids = base.rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() != resolved.layers.len() {
            return Err(refuse(format!(
                "its config names {} layers, its manifest {}",
                diff_ids.len(),
                resolved.layers.len()
            )));
        }
        if diff_ids.len() > MAX_BASE_LAYERS {
            return Err(refuse(format!("it has {} layers, {MAX_BASE_LAYERS} are allowed", diff_ids.len())));
        }
        if let Some(bad) = diff_ids.iter().find(|id| !is_sha256_digest(id)) {
            return Err(refuse(format!("{bad:?} is no sha256 diff ID")));
        }
        let history = base.history.unwrap_or_default();
        if history.len() > MAX_BASE_HISTORY {
            return Err(refuse(format!(
                "its history has {} entries, {MAX_BASE_HISTORY} are allowed",
                history.len()
            )));
        }
        let mut head = base.rest;
        head.retain(|name, value| INHERITED.contains(&name.as_str()) && !value.is_null());
        let mut image = Self {
            head,
            config: base.config.unwrap_or_default(),
            base_history: history::of_base(history, diff_ids.len()),
            base_diff_ids: diff_ids,
            entries: Vec::new(),
        };
        image.fill_in(platform);
        Ok(image)
    }

    fn fill_in(&mut self, platform: &str) {
        let mut parts = platform.splitn(3, '/');
        for name in ["os", "architecture", "variant"] {
            if let Some(part) = parts.next().filter(|_| !self.head.contains_key(name)) {
                // A variant belongs to the architecture that it came with.
                let foreign = name == "variant" && !platform.contains(self.architecture());
                if !foreign {
                    self.head.insert(name.to_owned(), json!(part));
                }
            }
        }
        if self.config.env("PATH").is_none() {
            self.config.set_env("PATH", DEFAULT_PATH);
        }
    }

    /// `os/arch[/variant]` of its config.
    pub fn platform(&self) -> String {
        let part = |name: &str| self.head.get(name).and_then(Value::as_str);
        ["os", "architecture", "variant"].into_iter().filter_map(part).collect::<Vec<_>>().join("/")
    }

    fn architecture(&self) -> &str {
        self.head.get("architecture").and_then(Value::as_str).unwrap_or_default()
    }

    /// Diff IDs of the base's layers, from the bottom up.
    pub fn base_diff_ids(&self) -> &[String] {
        &self.base_diff_ids
    }

    /// Entries of the history that were added to the base's.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// `MAINTAINER`.
    pub fn set_author(&mut self, author: &str) {
        self.head.insert("author".into(), json!(author));
    }

    /// Adds an entry to the history.
    pub fn commit(&mut self, step: u32, created_by: String, layer: bool) {
        self.entries.push(Entry { step, created_by, empty_layer: !layer });
    }

    /// The config's bytes: canonical JSON (sorted names, no blanks). `diff_ids` are those of the layers on top of the
    /// base's, `created` says when a step ended (RFC 3339), `at` when the image was made.
    pub fn finish(
        &self,
        diff_ids: &[String],
        labels: &BTreeMap<String, String>,
        created: &dyn Fn(u32) -> String,
        at: &str,
    ) -> String {
        let mut config = self.config.clone();
        if !labels.is_empty() {
            config.labels.get_or_insert_default().extend(labels.clone());
        }
        let mut history = self.base_history.clone();
        history.extend(self.entries.iter().map(|entry| entry.to_json(&created(entry.step))));
        let all: Vec<&String> = self.base_diff_ids.iter().chain(diff_ids).collect();
        let mut out = self.head.clone();
        out.insert("created".into(), json!(at));
        out.insert("config".into(), config.to_json());
        out.insert("rootfs".into(), json!({"type": "layers", "diff_ids": all}));
        out.insert("history".into(), Value::Array(history));
        Value::Object(out).to_string()
    }
}

#[cfg(test)]
mod tests;
