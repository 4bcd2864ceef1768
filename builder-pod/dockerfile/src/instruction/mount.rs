//! `RUN --mount=`: kept as written at first, read in full when variables can be expanded.

use thiserror::Error;

use super::csv::fields;
use crate::expand::ExpandError;

/// What is wrong with a `--mount` (or `--device`) value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MountError {
    /// Nothing behind the equals sign.
    #[error("expected fields such as type=cache,target=/path, found nothing")]
    Empty,
    /// Quotes inside a field, or not closed.
    #[error("field {field:?} has a quote that does not enclose the whole field")]
    Quote {
        /// The field from its start.
        field: String,
    },
    /// A word that is no switch.
    #[error("invalid field {field:?}: expected key=value")]
    NoValue {
        /// The field.
        field: String,
    },
    /// An unknown key.
    #[error("unexpected key {key:?} in {field:?}{}", did_you_mean(key, known))]
    Key {
        /// The key in lower case.
        key: String,
        /// The whole field.
        field: String,
        /// The keys that exist.
        known: &'static [&'static str],
    },
    /// A key that this type of mount does not have.
    #[error("unexpected key {key:?} for mount type {kind}")]
    KeyForType {
        /// The key.
        key: &'static str,
        /// The type so far: `type=` must stand in front of keys that depend on it.
        kind: MountType,
    },
    /// A value that cannot be read.
    #[error("invalid value {value:?} for {key}: expected {expected}{}", did_you_mean(value, known))]
    Value {
        /// The key.
        key: &'static str,
        /// The value after expansion.
        value: String,
        /// What is expected, in words.
        expected: &'static str,
        /// The values that exist, where they are a list.
        known: &'static [&'static str],
    },
    /// Variables in `from=`.
    #[error(
        "'from' doesn't support variable expansion, found {value:?}: define an alias stage (FROM $x AS name) instead"
    )]
    FromVariable {
        /// The value as written.
        value: String,
    },
    /// A secret without a name.
    #[error("invalid secret mount: expected one of id, source, target")]
    SecretName,
    /// A secret with two names.
    #[error("both source and id can't be set for a secret mount")]
    SecretSource,
    /// A variable in a value cannot be expanded.
    #[error("cannot expand {value:?}: {source}")]
    Expand {
        /// The value as written.
        value: String,
        /// Why.
        source: ExpandError,
    },
}

fn did_you_mean(word: &str, known: &[&str]) -> String {
    crate::suggest::nearest(word, known).map_or_else(String::new, |found| format!("; did you mean {found}?"))
}

/// `type=` of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MountType {
    /// Files of the context, a stage or an image.
    #[default]
    Bind,
    /// A directory that lasts from build to build.
    Cache,
    /// Memory.
    Tmpfs,
    /// A secret file or variable.
    Secret,
    /// An SSH agent's socket.
    Ssh,
}

impl MountType {
    /// The value as written in a Dockerfile.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Cache => "cache",
            Self::Tmpfs => "tmpfs",
            Self::Secret => "secret",
            Self::Ssh => "ssh",
        }
    }
}

impl std::fmt::Display for MountType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `sharing=` of a cache mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// All builds at once.
    Shared,
    /// One copy for each concurrent build.
    Private,
    /// One build at a time.
    Locked,
}

impl Sharing {
    /// The value as written in a Dockerfile.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Private => "private",
            Self::Locked => "locked",
        }
    }
}

const TYPES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];
const SHARINGS: [&str; 3] = ["shared", "private", "locked"];
const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

/// A mount as written. [`MountSpec::resolve`] makes a [`Mount`] of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSpec {
    /// The flag's value as written.
    pub raw: String,
    fields: Vec<String>,
}

/// A mount with its variables expanded and its fields checked. Where a field is absent the builder
/// applies the default (see engine.md D3).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    /// `type=`
    pub kind: MountType,
    /// `from=`: stage, named context or image.
    pub from: Option<String>,
    /// `source=`
    pub source: Option<String>,
    /// `target=`
    pub target: Option<String>,
    /// Whether the mount is read-only; bind, secret and ssh are unless told otherwise.
    pub read_only: bool,
    /// `size=` of a tmpfs in bytes; 0 for none.
    pub size: u64,
    /// `id=`
    pub id: Option<String>,
    /// `sharing=`
    pub sharing: Option<Sharing>,
    /// `required` of secret and ssh.
    pub required: bool,
    /// `env=` of a secret: the variable, empty for the default name.
    pub env: Option<String>,
    /// `mode=`, permission bits.
    pub mode: Option<u32>,
    /// `uid=`
    pub uid: Option<u32>,
    /// `gid=`
    pub gid: Option<u32>,
}

impl MountSpec {
    /// Splits the value of one `--mount` flag. Only what cannot hold variables is checked yet.
    pub(crate) fn parse(raw: &str) -> Result<Self, MountError> {
        let fields = fields(raw)?;
        for field in &fields {
            let Some((key, value)) = field.split_once('=') else { continue };
            let variable = value.find('$').is_some_and(|at| at + 1 != value.len());
            if variable && key.eq_ignore_ascii_case("from") {
                return Err(MountError::FromVariable { value: value.to_owned() });
            }
        }
        Ok(Self { raw: raw.to_owned(), fields })
    }

    /// The `from=` of the mount, which holds no variables: known before anything is expanded, so that
    /// stages can be ordered. The last one wins; empty is none.
    #[must_use]
    pub fn from(&self) -> Option<&str> {
        let last = self.fields.iter().rev().find_map(|field| {
            let (key, value) = field.split_once('=')?;
            key.eq_ignore_ascii_case("from").then_some(value)
        });
        last.filter(|v| !v.is_empty())
    }

    /// Expands every value with `expand` and reads all fields.
    ///
    /// # Errors
    /// [`MountError`] for unknown keys and values, keys that the type does not have, and what `expand` says.
    pub fn resolve(&self, expand: &dyn Fn(&str) -> Result<String, ExpandError>) -> Result<Mount, MountError> {
        let mut mount = Mount::default();
        let mut read_only = None;
        for field in &self.fields {
            let Some((key, value)) = field.split_once('=') else {
                switch(&mut mount, &mut read_only, field)?;
                continue;
            };
            let value =
                expand(value).map_err(|source| MountError::Expand { value: value.to_owned(), source })?;
            assign(&mut mount, &mut read_only, key, value, field)?;
        }
        mount.read_only = read_only.unwrap_or(!matches!(mount.kind, MountType::Cache | MountType::Tmpfs));
        check(mount)
    }
}

/// A field without value.
fn switch(mount: &mut Mount, read_only: &mut Option<bool>, field: &str) -> Result<(), MountError> {
    match field.to_lowercase().as_str() {
        "readonly" | "ro" => *read_only = Some(true),
        "readwrite" | "rw" => *read_only = Some(false),
        "required" => mount.required = for_secret_or_ssh(mount.kind, true)?,
        _ => return Err(MountError::NoValue { field: field.to_owned() }),
    }
    Ok(())
}

fn for_secret_or_ssh(kind: MountType, value: bool) -> Result<bool, MountError> {
    match kind {
        MountType::Secret | MountType::Ssh => Ok(value),
        _ => Err(MountError::KeyForType { key: "required", kind }),
    }
}

/// A field with value.
fn assign(
    mount: &mut Mount,
    read_only: &mut Option<bool>,
    key: &str,
    value: String,
    field: &str,
) -> Result<(), MountError> {
    match key.to_lowercase().as_str() {
        "type" => {
            mount.kind = match value.to_lowercase().as_str() {
                "bind" => MountType::Bind,
                "cache" => MountType::Cache,
                "tmpfs" => MountType::Tmpfs,
                "secret" => MountType::Secret,
                "ssh" => MountType::Ssh,
                _ => return Err(choice("type", value, "bind, cache, tmpfs, secret or ssh", &TYPES)),
            }
        }
        "sharing" => {
            mount.sharing = Some(match value.to_lowercase().as_str() {
                "shared" => Sharing::Shared,
                "private" => Sharing::Private,
                "locked" => Sharing::Locked,
                _ => return Err(choice("sharing", value, "shared, private or locked", &SHARINGS)),
            });
        }
        "from" => mount.from = some(value),
        "source" | "src" => mount.source = some(value),
        "target" | "dst" | "destination" => mount.target = some(value),
        "id" => mount.id = some(value),
        "env" => mount.env = Some(value),
        "readonly" | "ro" => *read_only = Some(parse_bool("readonly", &value)?),
        "readwrite" | "rw" => *read_only = Some(!parse_bool("readwrite", &value)?),
        "required" => {
            for_secret_or_ssh(mount.kind, true)?;
            mount.required = parse_bool("required", &value)?;
        }
        "size" if mount.kind != MountType::Tmpfs => {
            return Err(MountError::KeyForType { key: "size", kind: mount.kind });
        }
        "size" => mount.size = parse_size(value)?,
        "mode" => mount.mode = Some(number("mode", value, 8, "an octal number such as 0755")?),
        "uid" => mount.uid = Some(number("uid", value, 10, "a number")?),
        "gid" => mount.gid = Some(number("gid", value, 10, "a number")?),
        key => return Err(MountError::Key { key: key.to_owned(), field: field.to_owned(), known: &KEYS }),
    }
    Ok(())
}

/// What depends on several fields.
fn check(mount: Mount) -> Result<Mount, MountError> {
    let kind = mount.kind;
    let wrong = |key| Err(MountError::KeyForType { key, kind });
    if matches!(kind, MountType::Bind | MountType::Tmpfs) {
        for (key, value) in [("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)] {
            if value.is_some() {
                return wrong(key);
            }
        }
    }
    if mount.sharing.is_some() && kind != MountType::Cache {
        return wrong("sharing");
    }
    if kind == MountType::Secret {
        if mount.from.is_some() {
            return wrong("from");
        }
        if mount.source.is_none() && mount.target.is_none() && mount.id.is_none() {
            return Err(MountError::SecretName);
        }
        if mount.source.is_some() && mount.id.is_some() {
            return Err(MountError::SecretSource);
        }
    }
    Ok(mount)
}

fn some(value: String) -> Option<String> {
    (!value.is_empty()).then_some(value)
}

fn choice(
    key: &'static str,
    value: String,
    expected: &'static str,
    known: &'static [&'static str],
) -> MountError {
    MountError::Value { key, value, expected, known }
}

/// The spellings of Go's `strconv.ParseBool`.
pub(crate) fn parse_bool(key: &'static str, value: &str) -> Result<bool, MountError> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(choice(key, value.to_owned(), "true or false", &[])),
    }
}

/// Digits only: neither sign nor prefix.
fn number(key: &'static str, value: String, radix: u32, expected: &'static str) -> Result<u32, MountError> {
    let digits = value.chars().all(|c| c.is_digit(radix));
    match u32::from_str_radix(&value, radix) {
        Ok(number) if digits => Ok(number),
        _ => Err(choice(key, value, expected, &[])),
    }
}

/// A size such as `64m` or `1.5 GiB`: units of 1024, case does not matter.
fn parse_size(value: String) -> Result<u64, MountError> {
    match size_bytes(&value) {
        Some(bytes) => Ok(bytes),
        None => Err(choice("size", value, "a size such as 64m or 1g", &[])),
    }
}

fn size_bytes(value: &str) -> Option<u64> {
    let last = value.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')?;
    let (number, unit) = value.split_at(last + 1);
    let number = number.strip_suffix(' ').unwrap_or(number);
    let plain = |c: char| c.is_ascii_digit() || matches!(c, '.' | '+' | '-' | 'e' | 'E');
    let amount: f64 = number.chars().all(plain).then(|| number.parse().ok())??;
    let unit = unit.to_ascii_lowercase();
    let factor = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit) {
        "" if unit != "ib" => 1.0,
        "k" => 1024.0,
        "m" => 1024.0 * 1024.0,
        "g" => 1024.0 * 1024.0 * 1024.0,
        "t" => 1024.0_f64.powi(4),
        "p" => 1024.0_f64.powi(5),
        _ => return None,
    };
    let bytes = amount * factor;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to fit just here")]
    let bytes = (amount.is_finite() && (0.0..9.0e18).contains(&bytes)).then_some(bytes as u64);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(value: &str) -> Result<Mount, MountError> {
        MountSpec::parse(value)?.resolve(&|w| Ok(w.replace("$T", "cache")))
    }

    #[test]
    fn types_and_defaults() {
        assert!(resolve("target=/x").unwrap().read_only);
        let cache = resolve("type=$T,target=/x,sharing=locked,mode=0700,uid=5").unwrap();
        assert_eq!(
            (cache.kind, cache.read_only, cache.mode, cache.uid),
            (MountType::Cache, false, Some(0o700), Some(5))
        );
        assert!(resolve("type=cache,target=/x,ro").unwrap().read_only);
        assert_eq!(resolve("type=tmpfs,target=/x,size=1.5 KiB").unwrap().size, 1536);
        assert!(resolve("type=secret,id=a,required").unwrap().required);
    }

    #[test]
    fn refused() {
        for bad in [
            "type=nope",
            "type=bind,size=1",
            "required,type=secret,id=a",
            "mode=9",
            "type=cache,uid=-1",
            "type=secret",
            "type=secret,id=a,source=b",
            "from=$x",
            "sharing=locked",
            "typ=cache",
            "z",
            "type=tmpfs,size=1ib",
            "type=tmpfs,size=-1",
            "type=cache,uid=+1",
            "type=tmpfs,uid=1",
        ] {
            assert!(resolve(bad).is_err(), "{bad}");
        }
        assert_eq!(
            resolve("typ=tmpfs").unwrap_err().to_string(),
            "unexpected key \"typ\" in \"typ=tmpfs\"; did you mean type?"
        );
    }

    #[test]
    fn from_is_known_early() {
        assert_eq!(MountSpec::parse("type=bind,from=a,from=b").unwrap().from(), Some("b"));
        assert_eq!(MountSpec::parse("type=bind,from=").unwrap().from(), None);
    }
}
