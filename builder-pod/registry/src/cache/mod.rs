//! What Kiln keeps of its builds in a registry: small artifacts in a repository of their own, told from images by their type.
//!
//! | module | is about |
//! |---|---|
//! | `entry` | the result of a step, or the index of a layer |
//! | `record` | what a build did last |
//! | `keeping` | all that a repository keeps, and taking it away |

mod entry;
mod keeping;
mod record;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::client::Client;
use crate::error::Error;
use crate::manifest::Blob;
use crate::name::ImageName;
use crate::pull::digest_of;
use crate::push::Origin;

pub use entry::CacheEntry;
pub use keeping::{Kept, KeptKind};
pub use record::{CacheRecord, CacheStep};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The config of artifacts that have none.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// The empty config's bytes.
const EMPTY_BYTES: &[u8] = b"{}";
/// Annotation: the tag again, so that an artifact that was copied to another tag is none.
const KEY: &str = "build.kiln.cache.key";
/// Annotation: when the step, or the build, ended.
const CREATED: &str = "org.opencontainers.image.created";

impl Client {
    /// Puts what all entries of a repository need there, once.
    ///
    /// # Errors
    /// As [`Client::write_entry`].
    pub async fn prepare_cache(&self, name: &ImageName) -> Result<(), Error> {
        let empty = Blob {
            media_type: EMPTY.to_owned(),
            digest: digest_of(EMPTY_BYTES),
            size: EMPTY_BYTES.len() as u64,
        };
        self.put_blob(name, &empty, &Origin::Bytes(Bytes::from_static(EMPTY_BYTES))).await.map(drop)
    }
}

/// The empty config's descriptor.
fn empty() -> Value {
    json!({"mediaType": EMPTY, "digest": digest_of(EMPTY_BYTES), "size": EMPTY_BYTES.len()})
}
