//! Patterns of COPY and ADD: Go's `filepath.Match` for one component of a source, and the matcher of `--exclude` and
//! `--parents` (moby/patternmatcher: `**`, `!`, a matched directory matches what is in it).

use super::TreeError;

/// Whether a path has wildcards (`*`, `?`, `[`), escaped ones apart.
pub(super) fn has_wildcards(path: &[u8]) -> bool {
    let mut bytes = path.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
            }
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// Go's `filepath.Match` of one path component: `*`, `?`, `[a-z]`, `[^a-z]`, `\x`. A malformed pattern matches nothing.
/// Time is bounded by the product of the lengths: only the last `*` is ever tried again.
pub(super) fn match_component(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            retry = Some((p, n));
            continue;
        }
        if p == pattern.len() && n == name.len() {
            return true;
        }
        let step = if n < name.len() { one(&pattern[p..], &name[n..]) } else { None };
        if let Some((pattern_used, name_used)) = step {
            p += pattern_used;
            n += name_used;
            continue;
        }
        match retry {
            Some((after, from)) if from < name.len() => {
                let next = from + char_len(&name[from..]);
                retry = Some((after, next));
                (p, n) = (after, next);
            }
            _ => return false,
        }
    }
}

/// Matches one character: how many bytes of the pattern and of the name it takes.
fn one(pattern: &[u8], name: &[u8]) -> Option<(usize, usize)> {
    let (c, len) = first(name)?;
    match pattern.first()? {
        b'?' => Some((1, len)),
        b'[' => class(pattern, c).map(|used| (used, len)),
        b'\\' => {
            let (p, used) = first(&pattern[1..])?;
            (p == c).then_some((1 + used, len))
        }
        _ => {
            let (p, used) = first(pattern)?;
            (p == c).then_some((used, len))
        }
    }
}

/// Matches `[...]` at the start of `pattern`; how many bytes it is long.
fn class(pattern: &[u8], c: u32) -> Option<usize> {
    let mut at = 1;
    let negated = pattern.get(at) == Some(&b'^');
    if negated {
        at += 1;
    }
    let bound = |at: &mut usize| -> Option<u32> {
        match pattern.get(*at)? {
            b'-' | b']' => return None,
            b'\\' => *at += 1,
            _ => {}
        }
        let (c, used) = first(pattern.get(*at..)?)?;
        *at += used;
        Some(c)
    };
    let mut found = false;
    let mut ranges = 0;
    loop {
        if pattern.get(at) == Some(&b']') && ranges > 0 {
            return (found != negated).then_some(at + 1);
        }
        let low = bound(&mut at)?;
        let mut high = low;
        if pattern.get(at) == Some(&b'-') {
            at += 1;
            high = bound(&mut at)?;
        }
        found |= (low..=high).contains(&c);
        ranges += 1;
    }
}

fn char_len(text: &[u8]) -> usize {
    first(text).map_or(1, |(_, len)| len)
}

/// The first character and its length; a byte that is no UTF-8 counts as a character that equals only itself.
fn first(text: &[u8]) -> Option<(u32, usize)> {
    let chunk = text[..text.len().min(4)].utf8_chunks().next()?;
    Some(match chunk.valid().chars().next() {
        Some(c) => (c.into(), c.len_utf8()),
        // Beyond Unicode, so that it is no character of a pattern.
        None => (0x11_0000 + u32::from(text[0]), 1),
    })
}

/// A list of patterns.
#[derive(Debug, Default)]
pub(super) struct Patterns(Vec<Pattern>);

#[derive(Debug)]
struct Pattern {
    negated: bool,
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Char(u32),
    /// `?`
    NotSlash,
    /// `[…]`, as written.
    Class(Vec<u8>),
    /// `*`
    Star,
    /// `**` at the end.
    All,
    /// `**` or `**/` elsewhere: nothing, or anything up to a slash. It is followed by [`Token::Directories`].
    Optional,
    /// The anything of the above.
    Directories,
}

/// Which patterns matched a directory: what is in it need not be looked at for those.
#[derive(Debug, Clone, Default)]
pub(super) struct Matched(Vec<bool>);

impl Patterns {
    /// Of `patterns` as written, relative to the source; a leading `!` takes back.
    ///
    /// # Errors
    /// [`TreeError::User`] for a pattern that is not well formed.
    pub fn new(patterns: &[String]) -> Result<Self, TreeError> {
        let mut list = Vec::new();
        for written in patterns {
            let pattern = written.trim();
            let (negated, pattern) = match pattern.strip_prefix('!') {
                Some("") => {
                    return Err(TreeError::user(
                        "the pattern \"!\" takes nothing back: name a path after it",
                    ));
                }
                Some(rest) => (true, rest),
                None => (false, pattern),
            };
            let clean = super::at::clean(pattern.as_bytes());
            // The root itself: a source as a whole is never left out.
            if clean.is_empty() {
                continue;
            }
            let tokens = compile(&clean).ok_or_else(|| {
                TreeError::user(format!("the pattern {written:?} has a `[` without its `]`"))
            })?;
            list.push(Pattern { negated, tokens });
        }
        Ok(Self(list))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether some pattern takes back.
    pub fn takes_back(&self) -> bool {
        self.0.iter().any(|pattern| pattern.negated)
    }

    /// Whether `path` matches, given what its directory matched.
    pub fn matches(&self, path: &[u8], parent: &Matched) -> (bool, Matched) {
        let mut matched = false;
        let mut each = Vec::with_capacity(self.0.len());
        for (i, pattern) in self.0.iter().enumerate() {
            let inherited = parent.0.get(i).copied().unwrap_or(false);
            // A pattern that can't change the answer is not looked at.
            let hit = inherited || (pattern.negated == matched && pattern.run(path).last() == Some(&true));
            each.push(hit);
            if hit {
                matched = !pattern.negated;
            }
        }
        (matched, Matched(each))
    }

    /// Whether something below the directory `path` may match.
    pub fn may_match_below(&self, path: &[u8]) -> bool {
        let inside = [path, b"/"].concat();
        self.0.iter().any(|pattern| pattern.run(&inside).contains(&true))
    }
}

fn compile(mut pattern: &[u8]) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    while let Some((c, mut used)) = first(pattern) {
        match pattern {
            [b'*', b'*'] => {
                used = 2;
                tokens.push(Token::All);
            }
            [b'*', b'*', rest @ ..] => {
                used = if rest.first() == Some(&b'/') { 3 } else { 2 };
                tokens.extend(if used == pattern.len() {
                    vec![Token::All]
                } else {
                    vec![Token::Optional, Token::Directories]
                });
            }
            [b'*', ..] => tokens.push(Token::Star),
            [b'?', ..] => tokens.push(Token::NotSlash),
            [b'[', ..] => {
                // As long as it is for the character that it names first; which one does not matter here.
                used = (2..pattern.len()).find(|at| pattern[*at] == b']' && pattern[*at - 1] != b'\\')? + 1;
                tokens.push(Token::Class(pattern[..used].to_vec()));
            }
            [b'\\', escaped @ ..] if !escaped.is_empty() => {
                let (c, len) = first(escaped)?;
                used = 1 + len;
                tokens.push(Token::Char(c));
            }
            _ => tokens.push(Token::Char(c)),
        }
        pattern = &pattern[used..];
    }
    Some(tokens)
}

impl Pattern {
    /// Which positions in the tokens the whole of `path` leads to; the last: it matches. Every position is held at most
    /// once, so time is bounded by the product of the lengths whatever the pattern is.
    fn run(&self, path: &[u8]) -> Vec<bool> {
        let end = self.tokens.len();
        let mut here = vec![false; end + 1];
        here[0] = true;
        self.skip(&mut here);
        let mut rest = path;
        while let Some((c, len)) = first(rest) {
            let slash = c == u32::from(b'/');
            let mut next = vec![false; end + 1];
            for (i, token) in self.tokens.iter().enumerate().filter(|(i, _)| here[*i]) {
                match token {
                    Token::Char(wanted) => next[i + 1] |= *wanted == c,
                    Token::NotSlash => next[i + 1] |= !slash,
                    Token::Class(written) => next[i + 1] |= class(written, c).is_some(),
                    Token::Star => next[i] |= !slash,
                    Token::All => next[i] = true,
                    Token::Optional => {}
                    Token::Directories => {
                        next[i] = true;
                        next[i + 1] |= slash;
                    }
                }
            }
            here = next;
            self.skip(&mut here);
            rest = &rest[len..];
        }
        here
    }

    /// Adds the positions that take no character to reach.
    fn skip(&self, here: &mut [bool]) {
        for (i, token) in self.tokens.iter().enumerate() {
            if !here[i] {
                continue;
            }
            match token {
                Token::Star | Token::All => here[i + 1] = true,
                Token::Optional => {
                    here[i + 1] = true;
                    here[i + 2] = true;
                }
                _ => {}
            }
        }
    }
}
