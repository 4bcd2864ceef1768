//! The flags of one instruction: which exist, which are given, with what value.

use crate::error::ParseErrorKind;

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// `--x`, `--x=true`, `--x=false`.
    Switch,
    /// `--x=value`, once.
    Value,
    /// `--x=value`, any number of times.
    Values,
}

/// The flags that are given, in order.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    given: Vec<(&'static str, String)>,
}

/// A flag that is not right, and the name to find a near one for.
pub(crate) struct FlagError {
    pub(crate) kind: ParseErrorKind,
    pub(crate) unknown: Option<(String, Vec<&'static str>)>,
}

impl From<ParseErrorKind> for FlagError {
    fn from(kind: ParseErrorKind) -> Self {
        Self { kind, unknown: None }
    }
}

impl Flags {
    /// Checks `words` against the flags of an instruction. A `--` word ends them.
    pub(crate) fn read(words: &[String], known: &'static [(&'static str, Takes)]) -> Result<Self, FlagError> {
        let mut flags = Self::default();
        for word in words {
            if word == "--" {
                break;
            }
            let (flag, value) = match word.split_once('=') {
                Some((flag, value)) => (flag, Some(value)),
                None => (word.as_str(), None),
            };
            let written = || flag.to_owned();
            let name = flag.strip_prefix("--").unwrap_or(flag);
            let Some((name, takes)) = known.iter().find(|(known, _)| *known == name) else {
                let names = known.iter().map(|(name, _)| *name).collect();
                let unknown = Some((name.to_owned(), names));
                return Err(FlagError { kind: ParseErrorKind::UnknownFlag { flag: written() }, unknown });
            };
            if *takes != Takes::Values && flags.last(name).is_some() {
                return Err(ParseErrorKind::DuplicateFlag { flag: written() }.into());
            }
            let value = match (takes, value) {
                (Takes::Switch, None) => "true".to_owned(),
                (Takes::Switch, Some("")) | (Takes::Value | Takes::Values, None) => {
                    return Err(ParseErrorKind::FlagValue { flag: written() }.into());
                }
                (Takes::Switch, Some(value)) => {
                    let lower = value.to_lowercase();
                    if lower != "true" && lower != "false" {
                        return Err(
                            ParseErrorKind::FlagBool { flag: written(), value: value.to_owned() }.into()
                        );
                    }
                    lower
                }
                (_, Some(value)) => value.to_owned(),
            };
            flags.given.push((name, value));
        }
        Ok(flags)
    }

    fn last(&self, name: &str) -> Option<&str> {
        self.given.iter().rev().find(|(n, _)| *n == name).map(|(_, v)| v.as_str())
    }

    /// The value, `None` when absent or empty.
    pub(crate) fn value(&self, name: &str) -> Option<String> {
        self.last(name).filter(|v| !v.is_empty()).map(str::to_owned)
    }

    /// The value, absent as `None` and empty as empty.
    pub(crate) fn written(&self, name: &str) -> Option<&str> {
        self.last(name)
    }

    /// All values in order.
    pub(crate) fn values(&self, name: &str) -> Vec<String> {
        self.given.iter().filter(|(n, _)| *n == name).map(|(_, v)| v.clone()).collect()
    }

    /// A switch, `None` when absent.
    pub(crate) fn switch(&self, name: &str) -> Option<bool> {
        self.last(name).map(|v| v == "true")
    }

    /// The names that are given, each once.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (name, _) in &self.given {
            if !names.iter().any(|n| n == name) {
                names.push((*name).to_owned());
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[(&str, Takes)] =
        &[("link", Takes::Switch), ("from", Takes::Value), ("exclude", Takes::Values)];

    fn read(words: &[&str]) -> Result<Flags, ParseErrorKind> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        Flags::read(&words, KNOWN).map_err(|e| e.kind)
    }

    #[test]
    fn good() {
        let flags = read(&["--link=FALSE", "--from=a", "--exclude=x", "--exclude=y=z"]).unwrap();
        assert_eq!((flags.switch("link"), flags.value("from").as_deref()), (Some(false), Some("a")));
        assert_eq!(flags.values("exclude"), ["x", "y=z"]);
        assert_eq!(flags.names(), ["link", "from", "exclude"]);
    }

    #[test]
    fn bad() {
        for words in [&["--lin"][..], &["--from"], &["--from=a", "--from=b"], &["--link="], &["--link=1"]] {
            assert!(read(words).is_err(), "{words:?}");
        }
    }
}
