//! What expansion takes and gives: options, result, errors, and its bounds.

use std::collections::BTreeSet;

use thiserror::Error;

use crate::glob::PatternError;

/// `${a:-${b:-...}}` nested deeper than this is an error: each level costs stack.
pub(crate) const MAX_DEPTH: usize = 100;

/// Bytes that the values put into one word and the words nested in it may sum up to. ENV can double a value on every line, so
/// without a bound forty lines would fill the memory. A heredoc body is one word too, hence not smaller.
pub(crate) const MAX_VALUE_BYTES: usize = 16 << 20;

/// What is wrong with a word.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ExpandError {
    /// A quote is not closed.
    #[error("expected a closing {quote} before the end, found none")]
    Quote {
        /// The quote.
        quote: char,
    },
    /// `${` without `}`.
    #[error("expected '}}' to close '${{', found the end")]
    Brace,
    /// `${x/pattern` without a second `/`.
    #[error("expected '/' between pattern and replacement in '${{...}}'")]
    Slash,
    /// `${}`, `${:...}` or `${{`.
    #[error("bad substitution: expected a variable name after '${{'")]
    Substitution,
    /// A modifier that does not exist.
    #[error(
        "unsupported modifier {modifier:?} in substitution: expected one of :- - :+ + :? ? # ## % %% / //"
    )]
    Modifier {
        /// The modifier as written.
        modifier: String,
    },
    /// `${x?message}` of a variable that is unset, or `${x:?message}` of one that is unset or empty.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The message of the Dockerfile, or what is wrong.
        message: String,
    },
    /// A pattern that cannot be used.
    #[error("invalid pattern {pattern:?} in substitution: {source}")]
    Pattern {
        /// The pattern after its own expansion.
        pattern: String,
        /// What is wrong with it.
        source: PatternError,
    },
    /// Nested too deep.
    #[error("substitutions are nested more than {MAX_DEPTH} deep")]
    Depth,
    /// The values sum up to too much.
    #[error("expanded values exceed {MAX_VALUE_BYTES} bytes in one word")]
    Size,
}

/// What stays as written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExpandOptions {
    /// Quotes stay in the result (they still quote).
    pub raw_quotes: bool,
    /// Escape characters stay in the result (they still escape).
    pub raw_escapes: bool,
    /// Quotes are ordinary characters: bodies of heredocs.
    pub skip_process_quotes: bool,
    /// An unset variable stays as written instead of becoming empty.
    pub skip_unset_env: bool,
}

/// What an expansion gives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expanded {
    /// The word with everything replaced.
    pub text: String,
    /// The text split at white space outside quotes.
    pub words: Vec<String>,
    /// Variables that were looked up and set.
    pub matched: BTreeSet<String>,
    /// Variables that were looked up and not set.
    pub unmatched: BTreeSet<String>,
}
