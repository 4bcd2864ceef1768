//! Pull, push, mount, retry and authentication against OCI registries.
//!
//! Built on `oci-distribution` (the crate `oci-client`): its reference grammar, manifest types and error envelope. The
//! requests themselves are made here, because it has no retry, no resume, no mount with scope on both repositories, no
//! several mirrors, and asks whatever token realm a registry names. Everything that a registry sends is bounded and
//! verified; credentials go to the registry (or its token service over TLS) and nowhere else.

mod artifact;
mod auth;
mod cache;
mod client;
mod credentials;
mod download;
mod early;
mod error;
mod guard;
mod manifest;
mod name;
mod net;
mod place;
mod platform;
mod pull;
mod push;
mod retry;
mod transport;

pub use artifact::{Artifact, ArtifactLayer};
pub use cache::{CacheEntry, CacheRecord, CacheStep, Kept, KeptKind};
pub use client::{Client, Mirror, Options, Proxy, Registries};
pub use credentials::Credentials;
pub use download::{Authorization, Download};
pub use early::{Early, Written};
pub use error::Error;
pub use manifest::{Blob, Image, MAX_CONFIG, MAX_LAYERS, MAX_MANIFEST};
pub use name::{ImageName, is_digest};
pub use platform::Platform;
pub use push::{Origin, Put};
pub use retry::RetryPolicy;
