//! `--output`: the key=value list of `docker build`, for the types that Kiln writes.

use std::path::PathBuf;
use std::str::FromStr;

/// Where the image goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputSpec {
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
    #[error("unknown key {key:?}; known are type and dest")]
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
        let (mut kind, mut dest) = (None, None);
        for part in text.split(',') {
            let (key, value) =
                part.split_once('=').ok_or_else(|| OutputError::NotKeyValue { part: part.to_owned() })?;
            match key.trim() {
                "type" => kind = Some(value.to_owned()),
                "dest" => dest = Some(PathBuf::from(value)),
                other => return Err(OutputError::UnknownKey { key: other.to_owned() }),
            }
        }
        let kind = kind.ok_or_else(|| OutputError::Missing { kind: "…".to_owned(), key: "type" })?;
        let needed = |dest: Option<PathBuf>| {
            dest.filter(|d| !d.as_os_str().is_empty())
                .ok_or_else(|| OutputError::Missing { kind: kind.clone(), key: "dest" })
        };
        match kind.as_str() {
            "registry" if dest.is_some() => Err(OutputError::DestOfRegistry),
            "registry" => Ok(Self::Registry),
            "oci" => needed(dest).map(Self::OciArchive),
            "oci-layout" => needed(dest).map(Self::OciLayout),
            _ => Err(OutputError::UnknownType { found: kind.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_types() {
        assert_eq!("type=registry".parse(), Ok(OutputSpec::Registry));
        assert_eq!("type=oci,dest=a.tar".parse(), Ok(OutputSpec::OciArchive("a.tar".into())));
        assert_eq!("dest=out,type=oci-layout".parse(), Ok(OutputSpec::OciLayout("out".into())));
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
        ] {
            let error = text.parse::<OutputSpec>().expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
