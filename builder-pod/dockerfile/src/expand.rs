//! Variable expansion and word splitting: `$x`, `${x}` with modifiers, quotes, escapes.
//!
//! Rules: engine.md D2 and the `shell` data of the conformance corpus. Where BuildKit is odd this is
//! odd in the same way, with a comment at the place.

use crate::expansion::{MAX_DEPTH, MAX_VALUE_BYTES};
use crate::glob;

pub use crate::expansion::{ExpandError, ExpandOptions, Expanded};

/// Looks up a variable; `None` when it is not set.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Expands words against one environment.
#[derive(Clone, Copy)]
pub struct Expander<'a> {
    env: Env<'a>,
    escape: char,
    options: ExpandOptions,
}

impl std::fmt::Debug for Expander<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Expander")
            .field("escape", &self.escape)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<'a> Expander<'a> {
    /// An expander with the Dockerfile's escape character and no options.
    #[must_use]
    pub fn new(env: Env<'a>, escape: char) -> Self {
        Self { env, escape, options: ExpandOptions::default() }
    }

    /// The same with other options.
    #[must_use]
    pub fn options(mut self, options: ExpandOptions) -> Self {
        self.options = options;
        self
    }

    /// Expands `word`, with words and looked-up variables.
    ///
    /// # Errors
    /// [`ExpandError`] for bad syntax, `${x?}` of an unset variable, and results that are too large.
    pub fn expand(&self, word: &str) -> Result<Expanded, ExpandError> {
        let mut run = Run {
            rules: *self,
            // The reference's scanner drops a byte-order mark in front.
            rest: word.strip_prefix('\u{feff}').unwrap_or(word),
            found: Expanded::default(),
            word: String::new(),
            depth: 0,
            bytes: 0,
            steps: glob::MAX_STEPS,
        };
        let scope = Scope { raw_escapes: self.options.raw_escapes, pattern: false };
        let (text, words) = run.until(None, scope)?;
        Ok(Expanded { text, words, ..run.found })
    }

    /// Expands to one string.
    ///
    /// # Errors
    /// See [`Expander::expand`].
    pub fn word(&self, word: &str) -> Result<String, ExpandError> {
        Ok(self.expand(word)?.text)
    }

    /// Expands and splits at white space; blanks that came out of variables split too.
    ///
    /// # Errors
    /// See [`Expander::expand`].
    pub fn words(&self, word: &str) -> Result<Vec<String>, ExpandError> {
        Ok(self.expand(word)?.words)
    }
}

/// Expands one word of an instruction. `escape` is the Dockerfile's escape character.
///
/// # Errors
/// See [`Expander::expand`].
pub fn expand_word(word: &str, env: Env<'_>, escape: char) -> Result<String, ExpandError> {
    Expander::new(env, escape).word(word)
}

/// Expands and splits into words, as EXPOSE does.
///
/// # Errors
/// See [`Expander::expand`].
pub fn expand_words(word: &str, env: Env<'_>, escape: char) -> Result<Vec<String>, ExpandError> {
    Expander::new(env, escape).words(word)
}

/// Expands the body of a COPY or ADD heredoc: quotes stay, and a backslash escapes whatever the
/// Dockerfile's escape character is.
///
/// # Errors
/// See [`Expander::expand`].
pub fn expand_heredoc(body: &str, env: Env<'_>) -> Result<String, ExpandError> {
    Ok(expand_heredoc_noting(body, env)?.text)
}

/// The same, with the variables that were looked up.
pub(crate) fn expand_heredoc_noting(body: &str, env: Env<'_>) -> Result<Expanded, ExpandError> {
    let options = ExpandOptions { skip_process_quotes: true, ..ExpandOptions::default() };
    Expander::new(env, '\\').options(options).expand(body)
}

/// How the surrounding `${...}` wants its text.
#[derive(Clone, Copy)]
struct Scope {
    /// Escape characters are kept.
    raw_escapes: bool,
    /// The text is a pattern: what is literal in quotes must stay literal when the pattern is read.
    pattern: bool,
}

struct Run<'a> {
    rules: Expander<'a>,
    rest: &'a str,
    found: Expanded,
    /// The word that is being collected. One for all nesting levels, as in the reference: a `${x:-y}`
    /// in unquoted text loses what stood before it in the same word when splitting into words.
    word: String,
    depth: usize,
    /// Bytes of values and of nested words so far.
    bytes: usize,
    /// Work that is left for patterns.
    steps: usize,
}

/// The words of one nesting level.
#[derive(Default)]
struct Words {
    list: Vec<String>,
    inside: bool,
}

impl Words {
    /// Takes text that blanks split.
    fn split(&mut self, word: &mut String, text: &str) {
        // Of blanks there is one in each piece, at its end, but for the last.
        for piece in text.split_inclusive(char::is_whitespace) {
            let plain = piece.trim_end();
            if !plain.is_empty() {
                word.push_str(plain);
                self.inside = true;
            }
            if plain.len() < piece.len() && self.inside && !word.is_empty() {
                self.list.push(std::mem::take(word));
                self.inside = false;
            }
        }
    }

    fn raw_char(&mut self, word: &mut String, c: char) {
        word.push(c);
        self.inside = true;
    }

    fn finish(mut self, word: &mut String) -> Vec<String> {
        if !word.is_empty() {
            self.list.push(std::mem::take(word));
        }
        self.list
    }
}

impl<'a> Run<'a> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next();
        self.rest = chars.as_str();
        c
    }

    fn eat(&mut self, wanted: char) -> bool {
        let eaten = self.rest.strip_prefix(wanted);
        self.rest = eaten.unwrap_or(self.rest);
        eaten.is_some()
    }

    /// Reads up to and over `stop`, or to the end without one. The end before `stop` is an error.
    fn until(&mut self, stop: Option<char>, scope: Scope) -> Result<(String, Vec<String>), ExpandError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ExpandError::Depth);
        }
        let quotes = !self.rules.options.skip_process_quotes;
        // Nobody asks for the words of a nested level, and going through a value's characters at each of a hundred levels
        // would take a hundred times as long as reading it.
        let split = stop.is_none();
        let mut out = String::new();
        let mut words = Words::default();
        self.word.clear();
        let escape = self.rules.escape;
        let ends_plain = |c: char| match c {
            '$' | '<' => true,
            '\'' | '"' => quotes || stop == Some(c),
            c => c == escape || stop == Some(c),
        };
        while let Some(c) = self.peek() {
            let plain = self.rest.find(ends_plain).unwrap_or(self.rest.len());
            if plain > 0 {
                let (text, rest) = self.rest.split_at(plain);
                self.rest = rest;
                if split {
                    words.split(&mut self.word, text);
                }
                out.push_str(text);
                continue;
            }
            if Some(c) == stop {
                self.next();
                self.depth -= 1;
                self.account(out.len())?;
                return Ok((out, Vec::new()));
            }
            let special = match c {
                '$' => {
                    let value = self.dollar()?;
                    if split {
                        words.split(&mut self.word, &value);
                    }
                    out.push_str(&value);
                    continue;
                }
                '<' => Some(self.angle()),
                '\'' if quotes => Some(self.single_quoted(scope)?),
                '"' if quotes => Some(self.double_quoted(scope)?),
                _ => None,
            };
            if let Some(text) = special {
                if split {
                    self.word.push_str(&text);
                    words.inside = true;
                }
                out.push_str(&text);
                continue;
            }
            // What is left is the escape character.
            self.next();
            if scope.raw_escapes {
                if split {
                    words.raw_char(&mut self.word, c);
                }
                out.push(c);
            }
            // An escape at the end escapes nothing and is dropped.
            let Some(escaped) = self.next() else { break };
            if split {
                words.raw_char(&mut self.word, escaped);
            }
            out.push(escaped);
        }
        self.depth -= 1;
        match stop {
            Some('/') => Err(ExpandError::Slash),
            Some(_) => Err(ExpandError::Brace),
            None => Ok((out, words.finish(&mut self.word))),
        }
    }

    /// `<<` keeps the blanks behind it, so that `<< EOF` is one word.
    fn angle(&mut self) -> String {
        self.next();
        let mut out = String::from("<");
        if self.eat('<') {
            out.push('<');
            while let Some(c) = self.peek().filter(|c| matches!(c, '\t' | '\r' | ' ')) {
                out.push(c);
                self.next();
            }
        }
        out
    }

    /// Everything up to the next single quote, literally.
    fn single_quoted(&mut self, scope: Scope) -> Result<String, ExpandError> {
        self.next();
        let (inner, rest) = self.rest.split_once('\'').ok_or(ExpandError::Quote { quote: '\'' })?;
        self.rest = rest;
        let mut out = String::with_capacity(inner.len() + 2);
        let quote = self.rules.options.raw_quotes.then_some('\'');
        out.extend(quote);
        for c in inner.chars() {
            if scope.pattern && c == self.rules.escape {
                out.push(c);
            }
            out.push(c);
        }
        out.extend(quote);
        Ok(out)
    }

    /// Everything up to the next double quote; variables are expanded, and only `\"`, `\$` and `\\`
    /// are escapes.
    fn double_quoted(&mut self, scope: Scope) -> Result<String, ExpandError> {
        self.next();
        let escape = self.rules.escape;
        let raw_quotes = self.rules.options.raw_quotes;
        let mut out = String::new();
        out.extend(raw_quotes.then_some('"'));
        loop {
            match self.peek().ok_or(ExpandError::Quote { quote: '"' })? {
                '"' => {
                    self.next();
                    out.extend(raw_quotes.then_some('"'));
                    return Ok(out);
                }
                '$' => out.push_str(&self.dollar()?),
                c if c == escape => {
                    self.next();
                    match self.peek() {
                        None => {}
                        Some(next) if next == '"' || next == '$' || next == escape => {
                            out.extend(scope.raw_escapes.then_some(c));
                            out.push(next);
                            self.next();
                        }
                        Some(_) => {
                            let double = scope.raw_escapes && (!raw_quotes || scope.pattern);
                            out.extend(double.then_some(c));
                            out.push(c);
                        }
                    }
                }
                c => {
                    out.push(c);
                    self.next();
                }
            }
        }
    }

    /// A `$` and what belongs to it.
    fn dollar(&mut self) -> Result<String, ExpandError> {
        self.next();
        if !self.eat('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            let value = self.lookup(name)?;
            return Ok(self.or_written(value, || format!("${name}")));
        }
        match self.peek() {
            None => return Err(ExpandError::Brace),
            Some('{' | '}' | ':') => return Err(ExpandError::Substitution),
            Some(_) => {}
        }
        let name = self.name();
        match self.next().ok_or(ExpandError::Brace)? {
            '}' => {
                let value = self.lookup(name)?;
                Ok(self.or_written(value, || format!("${{{name}}}")))
            }
            '/' => self.replace(name),
            ':' => {
                let modifier = self.next().ok_or(ExpandError::Brace)?;
                if !matches!(modifier, '-' | '+' | '?') {
                    return Err(ExpandError::Modifier { modifier: format!(":{modifier}") });
                }
                self.modified(name, modifier, true)
            }
            c @ ('-' | '+' | '?' | '#' | '%') => self.modified(name, c, false),
            c => Err(ExpandError::Modifier { modifier: c.to_string() }),
        }
    }

    /// `${name-word}` and its relatives, from behind the modifier. `colon`: empty counts as unset.
    fn modified(&mut self, name: &str, modifier: char, colon: bool) -> Result<String, ExpandError> {
        let pattern = matches!(modifier, '#' | '%');
        let (word, _) = self.until(Some('}'), Scope { raw_escapes: pattern, pattern })?;
        let value = self.lookup(name)?;
        if value.is_none() && self.rules.options.skip_unset_env {
            let colon = if colon { ":" } else { "" };
            return Ok(format!("${{{name}{colon}{modifier}{word}}}"));
        }
        let set = value.is_some();
        let usable = |value: Option<String>| value.filter(|v| !(colon && v.is_empty()));
        match modifier {
            '-' => Ok(usable(value).unwrap_or(word)),
            '+' => Ok(usable(value).map(|_| word).unwrap_or_default()),
            '?' => usable(value).ok_or_else(|| {
                let default = if set { "is not allowed to be empty" } else { "is not allowed to be unset" };
                let message = if word.is_empty() { default.to_owned() } else { word };
                ExpandError::Required { name: name.to_owned(), message }
            }),
            _ => {
                let value = value.unwrap_or_default();
                let (pattern, greedy) = match word.strip_prefix(modifier) {
                    Some(rest) => (rest, true),
                    None => (word.as_str(), false),
                };
                let trimmed = if modifier == '%' {
                    glob::trim_suffix(pattern, &value, greedy, &mut self.steps)
                } else {
                    glob::trim_prefix(pattern, &value, greedy, &mut self.steps)
                };
                trimmed.map_err(|source| ExpandError::Pattern { pattern: pattern.to_owned(), source })
            }
        }
    }

    /// `${name/pattern/replacement}` from behind the first slash.
    fn replace(&mut self, name: &str) -> Result<String, ExpandError> {
        let all = self.eat('/');
        let (pattern, _) = self.until(Some('/'), Scope { raw_escapes: true, pattern: true })?;
        let (replacement, _) = self.until(Some('}'), Scope { raw_escapes: true, pattern: false })?;
        let value = self.lookup(name)?;
        if value.is_none() && self.rules.options.skip_unset_env {
            return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
        }
        let value = value.unwrap_or_default();
        let replaced = if all {
            glob::replace_all(&pattern, &value, &replacement, &mut self.steps)
        } else {
            glob::replace_first(&pattern, &value, &replacement, &mut self.steps)
        };
        let replaced = replaced.map_err(|source| ExpandError::Pattern { pattern, source })?;
        self.account(replaced.len())?;
        Ok(replaced)
    }

    /// A variable name: one special character, or digits, or letters, digits and `_`.
    fn name(&mut self) -> &'a str {
        let end = match self.peek() {
            Some(c) if c.is_ascii_digit() => self.rest.find(|c: char| !c.is_ascii_digit()),
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => Some(1),
            _ => self.rest.find(|c: char| !c.is_alphanumeric() && c != '_'),
        };
        let (name, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        name
    }

    fn lookup(&mut self, name: &str) -> Result<Option<String>, ExpandError> {
        let value = (self.rules.env)(name);
        let set = if value.is_some() { &mut self.found.matched } else { &mut self.found.unmatched };
        // Most are looked up again and again.
        if !set.contains(name) {
            set.insert(name.to_owned());
        }
        self.account(value.as_ref().map_or(0, String::len))?;
        Ok(value)
    }

    fn account(&mut self, bytes: usize) -> Result<(), ExpandError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MAX_VALUE_BYTES { Err(ExpandError::Size) } else { Ok(()) }
    }

    fn or_written(&self, value: Option<String>, written: impl Fn() -> String) -> String {
        match value {
            Some(value) => value,
            None if self.rules.options.skip_unset_env => written(),
            None => String::new(),
        }
    }
}

#[cfg(test)]
#[path = "expand_tests.rs"]
mod tests;
