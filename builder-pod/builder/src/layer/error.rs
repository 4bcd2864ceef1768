//! What goes wrong while a layer is compressed.

use std::io;

/// What went wrong while a layer was compressed.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The tar could not be read.
    #[error("reading the layer's tar: {source}")]
    Read {
        /// The system's answer.
        source: io::Error,
    },
    /// The blob could not be written.
    #[error("writing the layer's blob: {source}")]
    Write {
        /// The system's answer.
        source: io::Error,
    },
    /// The compressor refused.
    #[error("compressing the layer: {message}")]
    Compress {
        /// Its answer.
        message: String,
    },
}
