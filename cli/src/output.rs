//! `--output`: the key=value list of `docker build`, for the types that Kiln writes.

use std::path::PathBuf;
use std::str::FromStr;

use kiln_contract::request::Compression;

/// Where the image goes, and in which form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputSpec {
    /// Where.
    pub to: Place,
    /// How its layers are compressed.
    pub compression: Compression,
}

/// Where the image goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Pushed under the names of `-t`.
    Registry,
    /// A tar archive with an OCI image layout.
    OciArchive(PathBuf),
    /// A directory with an OCI image layout.
    OciLayout(PathBuf),
}

/// What is wrong with an `--output`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OutputError {
    /// Not key=value.
    #[error(
        "{part:?} is not key=value; expected type=registry, type=oci,dest=FILE.tar or type=oci-layout,dest=DIR"
    )]
    NotKeyValue {
        /// What was found.
        part: String,
    },
    /// An unknown key.
    #[error("unknown key {key:?}; known are type, dest and compression")]
    UnknownKey {
        /// What was found.
        key: String,
    },
    /// An unknown type.
    #[error("unknown type {found:?}; Kiln writes registry, oci and oci-layout")]
    UnknownType {
        /// What was found.
        found: String,
    },
    /// An unknown compression.
    #[error("unknown compression {found:?}; known are gzip, zstd and uncompressed")]
    UnknownCompression {
        /// What was found.
        found: String,
    },
    /// A key that the type needs is missing.
    #[error("{key} is missing: type={kind},{key}=…")]
    Missing {
        /// The type.
        kind: String,
        /// The key.
        key: &'static str,
    },
    /// A key that the type has no use for.
    #[error("type=registry takes no dest; the image's names are given with -t")]
    DestOfRegistry,
}

impl FromStr for OutputSpec {
    type Err = OutputError;

    fn from_str(text: &str) -> Result<Self, OutputError> {
        let (mut kind, mut dest, mut compression) = (None, None, Compression::default());
        for part in text.split(',') {
            let (key, value) =
                part.split_once('=').ok_or_else(|| OutputError::NotKeyValue { part: part.to_owned() })?;
            match key.trim() {
                "type" => kind = Some(value.to_owned()),
                "dest" => dest = Some(PathBuf::from(value)),
                "compression" => {
                    compression = match value {
                        "gzip" => Compression::Gzip,
                        "zstd" => Compression::Zstd,
                        "uncompressed" => Compression::Uncompressed,
                        _ => return Err(OutputError::UnknownCompression { found: value.to_owned() }),
                    }
                }
                other => return Err(OutputError::UnknownKey { key: other.to_owned() }),
            }
        }
        let kind = kind.ok_or_else(|| OutputError::Missing { kind: "…".to_owned(), key: "type" })?;
        let needed = |dest: Option<PathBuf>| {
            dest.filter(|d| !d.as_os_str().is_empty())
                .ok_or_else(|| OutputError::Missing { kind: kind.clone(), key: "dest" })
        };
        let to = match kind.as_str() {
            "registry" if dest.is_some() => return Err(OutputError::DestOfRegistry),
            "registry" => Place::Registry,
            "oci" => needed(dest).map(Place::OciArchive)?,
            "oci-layout" => needed(dest).map(Place::OciLayout)?,
            _ => return Err(OutputError::UnknownType { found: kind.clone() }),
        };
        Ok(Self { to, compression })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_types_and_compressions() {
        for (text, to, compression) in [
            ("type=registry", Place::Registry, Compression::Gzip),
            ("type=oci,dest=a.tar,compression=gzip", Place::OciArchive("a.tar".into()), Compression::Gzip),
            ("dest=out,type=oci-layout", Place::OciLayout("out".into()), Compression::Gzip),
            ("type=registry,compression=zstd", Place::Registry, Compression::Zstd),
            ("compression=uncompressed,type=registry", Place::Registry, Compression::Uncompressed),
        ] {
            assert_eq!(text.parse(), Ok(OutputSpec { to, compression }), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, words) in [
            ("oci", "is not key=value"),
            ("type=oci", "dest is missing"),
            ("type=oci,dest=", "dest is missing"),
            ("dest=x", "type is missing"),
            ("type=docker", "unknown type \"docker\""),
            ("type=oci,dst=x", "unknown key \"dst\""),
            ("type=registry,dest=x", "takes no dest"),
            ("type=registry,compression=estargz", "known are gzip, zstd and uncompressed"),
        ] {
            let error = text.parse::<OutputSpec>().expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
