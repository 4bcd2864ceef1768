//! The `config` object of an image config: what a container of the image runs with. Unknown fields are kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The `config` object (OCI image-spec config.md, and Docker's extensions).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// `USER`.
    #[serde(skip_serializing_if = "is_blank")]
    pub user: Option<String>,
    /// `EXPOSE`: `port/protocol`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed_ports: Option<BTreeMap<String, Value>>,
    /// `NAME=value`, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// `ENTRYPOINT`.
    #[serde(skip_serializing_if = "is_none_or_empty")]
    pub entrypoint: Option<Vec<String>>,
    /// `CMD`.
    #[serde(skip_serializing_if = "is_none_or_empty")]
    pub cmd: Option<Vec<String>>,
    /// `HEALTHCHECK` (Docker).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Health>,
    /// Docker: the command is one shell text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args_escaped: Option<bool>,
    /// `VOLUME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<BTreeMap<String, Value>>,
    /// `WORKDIR`.
    #[serde(skip_serializing_if = "is_blank")]
    pub working_dir: Option<String>,
    /// `ONBUILD` (Docker).
    #[serde(skip_serializing_if = "is_none_or_empty")]
    pub on_build: Option<Vec<String>>,
    /// `LABEL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// `STOPSIGNAL`.
    #[serde(skip_serializing_if = "is_blank")]
    pub stop_signal: Option<String>,
    /// `SHELL` (Docker).
    #[serde(skip_serializing_if = "is_none_or_empty")]
    pub shell: Option<Vec<String>>,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A health check; times in nanoseconds, 0 for the default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Health {
    /// `NONE`, `CMD` and words, or `CMD-SHELL` and a text.
    #[serde(skip_serializing_if = "is_none_or_empty")]
    pub test: Option<Vec<String>>,
    /// Between two checks.
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// For one check.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// At the start, in which failures don't count.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Between two checks during that.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row that make the container unhealthy.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

fn is_blank(text: &Option<String>) -> bool {
    text.as_deref().is_none_or(str::is_empty)
}

fn is_none_or_empty(list: &Option<Vec<String>>) -> bool {
    list.as_deref().is_none_or(<[String]>::is_empty)
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl RunConfig {
    /// The value of an environment variable; the last of several counts.
    pub fn env(&self, name: &str) -> Option<&str> {
        self.env.iter().flatten().rev().find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    /// Sets an environment variable: in its old place, or at the end.
    pub fn set_env(&mut self, name: &str, value: &str) {
        let env = self.env.get_or_insert_default();
        let pair = format!("{name}={value}");
        let names = |old: &String| old.strip_prefix(name).is_some_and(|rest| rest.starts_with('='));
        match env.iter().position(names) {
            Some(at) => env[at] = pair,
            None => env.push(pair),
        }
    }

    /// `EXPOSE` of one `port/protocol`.
    pub fn expose(&mut self, port: &str) {
        self.exposed_ports.get_or_insert_default().insert(port.to_owned(), json!({}));
    }

    /// `VOLUME` of one path.
    pub fn add_volume(&mut self, path: &str) {
        self.volumes.get_or_insert_default().insert(path.to_owned(), json!({}));
    }

    pub(super) fn to_json(&self) -> Value {
        // Strings, numbers and maps with string names always serialise.
        serde_json::to_value(self).unwrap_or_default()
    }
}
