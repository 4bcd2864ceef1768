//! What a step sees besides its image while it runs (`RUN --mount`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Owner;

/// Something that lies over the step's root while its command runs, and no longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where: an absolute path in the step's root. What is missing of it is made, and named in [`super::Exit::stubs`].
    pub target: String,
    /// Whether the step may only read it.
    pub read_only: bool,
    /// What.
    pub source: MountSource,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A directory or file of trees.
    Trees {
        /// From the bottom up.
        lowers: Vec<String>,
        /// Tree that takes changes; without it nothing can be changed. Made when it is not there.
        upper: Option<String>,
        /// The directory or file within them, `/` for all. Links in it are followed inside the trees only.
        path: String,
        /// What people call the trees, for messages (`stage build`).
        name: String,
    },
    /// An empty directory in memory.
    Memory {
        /// Bytes that it may hold at most; 0 for the kernel's default.
        size: u64,
    },
    /// A file in memory.
    File {
        /// What is in it.
        bytes: Secret,
        /// Permission bits.
        mode: u32,
        /// Whose it is.
        owner: Owner,
    },
    /// A socket that [`super::Engine::listen`] made.
    Socket {
        /// Its name there.
        name: String,
    },
}

/// Bytes that nobody is to see by chance: they are not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        // The decoder's own message would quote a part of it.
        STANDARD.decode(text).map(Self).map_err(|_| serde::de::Error::custom("a secret is no base64"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_travel_and_are_not_printed() {
        let secret = Secret(b"hush\xff".to_vec());
        assert_eq!(format!("{secret:?}"), "Secret(5 bytes)");
        let text = serde_json::to_string(&secret).unwrap();
        assert!(!text.contains("hush"));
        assert_eq!(serde_json::from_str::<Secret>(&text).unwrap(), secret);
        let error = serde_json::from_str::<Secret>("\"hush!\"").unwrap_err();
        assert!(!error.to_string().contains("hush"), "{error}");
    }
}
