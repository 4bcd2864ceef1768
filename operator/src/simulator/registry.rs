//! The registry: which tags were moved, by whom and when.

use sha2::{Digest as _, Sha256};

use super::api::{Api, owner};
use super::node::Runner;

/// A tag that was moved.
#[derive(Debug, Clone)]
pub struct Move {
    /// UID of the ImageBuild.
    pub owner: String,
    /// `<uid>-<run>-<attempt>`.
    pub attempt: String,
    /// What the tag names since.
    pub digest: String,
}

/// The registry.
#[derive(Debug, Default)]
pub struct Registry {
    pub moves: Vec<Move>,
}

impl Registry {
    /// Digest of the image of a Dockerfile.
    pub fn digest(content: &str) -> String {
        format!("sha256:{}", hex::encode(Sha256::digest(content)))
    }

    pub fn tag(&mut self, api: &Api, by: &Runner, digest: &str) {
        let attempt = by.attempt();
        let owner = api.get(&by.key).and_then(|p| owner(p));
        let owner = owner.unwrap_or_else(|| attempt.split('-').next().unwrap_or_default().to_owned());
        self.moves.push(Move { owner, attempt, digest: digest.to_owned() });
    }
}
