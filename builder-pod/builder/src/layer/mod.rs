//! A layer's bytes: tar stream -> diff ID -> compressed blob -> digest, in one pass.

mod error;

use std::io::{Read, Write};

pub use error::LayerError;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// gzip, `application/vnd.oci.image.layer.v1.tar+gzip`.
    #[default]
    Gzip,
    /// Not at all, `application/vnd.oci.image.layer.v1.tar`.
    None,
}

/// A finished layer blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:…` of the tar.
    pub diff_id: String,
    /// `sha256:…` of the blob.
    pub digest: String,
    /// Bytes of the blob.
    pub size: u64,
    /// Bytes of the tar.
    pub tar_size: u64,
    /// Media type of the blob (OCI image-spec layer.md).
    pub media_type: &'static str,
}

/// Compresses `tar` into `out` with up to `threads` threads.
///
/// # Errors
/// [`LayerError`] when reading or writing fails.
pub fn compress(
    _tar: impl Read,
    _out: &mut impl Write,
    _compression: Compression,
    _threads: usize,
) -> Result<Blob, LayerError> {
    Err(LayerError::Compress { message: "not written yet".into() })
}
