//! An environment: names and values in the order in which they were first set.

use kiln_dockerfile::{Expander, expand_heredoc};

use super::PlanError;

/// Names and values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Env(Vec<(String, String)>);

impl Env {
    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Sets a name, in its old place or at the end.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// `NAME=value` of each.
    pub fn pairs(&self) -> Vec<String> {
        self.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// Takes in `NAME=value` pairs; a pair without `=` is an empty value.
    pub fn extend_pairs<'a>(&mut self, pairs: impl IntoIterator<Item = &'a String>) {
        for pair in pairs {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            self.set(name, value);
        }
    }
}

/// Expands words of one instruction against the environment before it.
#[derive(Clone, Copy)]
pub(super) struct Words<'a> {
    pub env: &'a Env,
    pub escape: char,
    pub line: u32,
}

impl Words<'_> {
    pub fn one(&self, word: &str) -> Result<String, PlanError> {
        let get = |name: &str| self.env.get(name).map(str::to_owned);
        Expander::new(&get, self.escape).word(word).map_err(|e| self.fault(word, &e))
    }

    /// The body of a here-document.
    pub fn heredoc(&self, body: &str) -> Result<String, PlanError> {
        let get = |name: &str| self.env.get(name).map(str::to_owned);
        expand_heredoc(body, &get).map_err(|e| self.fault("the here-document", &e))
    }

    pub fn each(&self, words: &[String]) -> Result<Vec<String>, PlanError> {
        words.iter().map(|word| self.one(word)).collect()
    }

    pub fn maybe(&self, word: Option<&String>) -> Result<Option<String>, PlanError> {
        word.map(|word| self.one(word)).transpose()
    }

    /// Expands, and splits at white space.
    pub fn split(&self, word: &str) -> Result<Vec<String>, PlanError> {
        let get = |name: &str| self.env.get(name).map(str::to_owned);
        Expander::new(&get, self.escape).words(word).map_err(|e| self.fault(word, &e))
    }

    fn fault(&self, word: &str, error: &dyn std::fmt::Display) -> PlanError {
        PlanError::new(
            kiln_contract::reason::DOCKERFILE_INVALID,
            self.line,
            format!("{word:?} can't be expanded: {error}"),
        )
    }
}
