//! Which rules are asked for: `# check=skip=A,B;error=true`, for the file or above one instruction.

use thiserror::Error;

use super::Rule;
use crate::directives;

/// What `# check=` or the build argument `BUILDKIT_DOCKERFILE_CHECK` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Check {
    skip: Names,
    experimental: Names,
    error: bool,
}

/// Rules by name; one that does not exist is none's name, as in BuildKit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Names {
    all: bool,
    some: Vec<String>,
}

/// What is wrong with the options.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CheckError {
    /// No `=`, or a name that is none.
    #[error("check option {option:?}: expected skip=RULES, experimental=RULES or error=true")]
    Option {
        /// As written.
        option: String,
    },
    /// `error=` with something else.
    #[error("check option error={value}: expected true or false")]
    Bool {
        /// As written.
        value: String,
    },
}

impl Names {
    fn parse(text: &str) -> Self {
        match text.trim() {
            "all" => Self { all: true, some: Vec::new() },
            names => Self { all: false, some: names.split(',').map(|name| name.trim().to_owned()).collect() },
        }
    }

    fn has(&self, rule: Rule) -> bool {
        self.all || self.some.iter().any(|name| name == rule.name())
    }
}

impl Check {
    /// Reads options, up to three of them with semicolons between; empty text asks for the usual.
    ///
    /// # Errors
    /// An option that does not exist, or a value that is none.
    pub fn parse(text: &str) -> Result<Self, CheckError> {
        let mut check = Self::default();
        if text.trim().is_empty() {
            return Ok(check);
        }
        for option in text.trim().splitn(3, ';') {
            let unknown = || CheckError::Option { option: option.to_owned() };
            let (name, value) = option.split_once('=').ok_or_else(unknown)?;
            match name.trim() {
                "skip" => check.skip = Names::parse(value),
                "experimental" => check.experimental = Names::parse(value),
                "error" => check.error = truth(value.trim())?,
                _ => return Err(unknown()),
            }
        }
        Ok(check)
    }

    /// Whether a finding fails the build.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.error
    }

    /// Whether a rule is to be checked for an instruction with these comments above it.
    pub(super) fn asks_for(&self, rule: Rule, comments: &[String]) -> bool {
        // Options that can't be read are no options here, as in BuildKit.
        let local = comments.iter().find_map(|comment| directives::check_in_comment(comment));
        let local = local.and_then(|text| Self::parse(&text).ok()).unwrap_or_default();
        if rule.is_experimental() {
            self.experimental.has(rule) || local.experimental.has(rule)
        } else {
            !self.skip.has(rule) && !local.skip.has(rule)
        }
    }
}

/// What Go's `strconv.ParseBool` takes.
fn truth(value: &str) -> Result<bool, CheckError> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(CheckError::Bool { value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let asks = |text: &str, rule| Check::parse(text).unwrap().asks_for(rule, &[]);
        assert!(asks("", Rule::UndefinedVar) && !asks("", Rule::InvalidDefinitionDescription));
        assert!(!asks("skip=A, UndefinedVar;error=true", Rule::UndefinedVar));
        assert!(asks("skip=UndefinedVar", Rule::FromAsCasing) && !asks("skip=all", Rule::FromAsCasing));
        assert!(asks("experimental=all;skip=all", Rule::InvalidDefinitionDescription));
        assert!(!asks("skip=UndefinedVar", Rule::InvalidDefinitionDescription));
        assert!(Check::parse(" error = 1 ").unwrap().is_error());
        assert!(!Check::parse("error=False").unwrap().is_error());
        for bad in ["skip", "error=yes", "error", "skips=A", "error=true;", "a=b"] {
            assert!(Check::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn comments_above_an_instruction() {
        let asks = |comments: &[&str]| {
            let comments: Vec<String> = comments.iter().map(|c| (*c).to_owned()).collect();
            Check::default().asks_for(Rule::UndefinedVar, &comments)
        };
        assert!(!asks(&["words", "check=skip=UndefinedVar // why"]));
        assert!(!asks(&["check = skip=all"]));
        assert!(asks(&["check=skip=FromAsCasing", "check=skip=UndefinedVar"]), "the first one counts");
        assert!(asks(&["check=nonsense"]) && asks(&["checked"]) && asks(&[]));
    }
}
