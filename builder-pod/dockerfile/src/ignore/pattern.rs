//! One pattern of an ignore file, as a small automaton: no pattern makes matching take more than the product of twice the
//! path's length and the path's length, however long the pattern is.

/// Longest path there is (`PATH_MAX`): what needs more characters never matches.
const MAX_PATH: usize = 4096;

/// A pattern, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    /// As cleaned.
    pub text: String,
    /// `!`: what it matches is taken in again.
    pub again: bool,
    /// The characters before the first wildcard.
    pub fixed: String,
    parts: Vec<Part>,
    /// Characters that a match has at least.
    least: usize,
}

/// What each piece of a pattern matches.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Char(char),
    /// `?`: one character but `/`.
    One,
    /// `*`: any number of characters but `/`.
    Some,
    /// `**` at the end, or `**text` at the start: anything.
    All,
    /// `**` before something: nothing, or anything up to a `/`. [`Part::Inside`] follows.
    Dirs,
    /// The anything of the above.
    Inside,
    /// `[...]`, the ranges in order and apart.
    Class {
        not: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Pattern {
    /// Reads a cleaned pattern; `None` for one that Go's `filepath.Match` refuses.
    pub fn new(text: &str, again: bool) -> Option<Self> {
        let parts = compile(text)?;
        let chars = parts.iter().map_while(|part| match part {
            Part::Char(c) => Some(*c),
            _ => None,
        });
        let fixed = chars.collect();
        let single = |part: &&Part| matches!(part, Part::Char(_) | Part::One | Part::Class { .. });
        let least = parts.iter().filter(single).count();
        Some(Self { text: text.to_owned(), again, fixed, parts, least })
    }

    /// Whether it has more than fixed characters.
    pub fn is_wild(&self) -> bool {
        self.fixed.len() < self.text.len()
    }

    /// Whether the whole of `path` matches or, with `parents`, a directory above it: one pass answers for all of them.
    pub fn matches(&self, path: &str, parents: bool) -> bool {
        // Bytes are never fewer than characters.
        if self.least > path.len().min(MAX_PATH) {
            return false;
        }
        let end = self.parts.len();
        let mut here = Places::new(end);
        let mut next = Places::new(end);
        here.add(0, &self.parts);
        for (at, c) in path.char_indices() {
            if here.list.is_empty() {
                return false;
            }
            if parents && at > 0 && c == '/' && here.seen[end] {
                return true;
            }
            for place in here.list.iter().copied() {
                let Some(part) = self.parts.get(place) else { continue };
                match part {
                    Part::Some if c != '/' => next.add(place, &self.parts),
                    Part::All => next.add(place, &self.parts),
                    Part::Inside => {
                        next.add(place, &self.parts);
                        if c == '/' {
                            next.add(place + 1, &self.parts);
                        }
                    }
                    part if part.takes(c) => next.add(place + 1, &self.parts),
                    _ => {}
                }
            }
            std::mem::swap(&mut here, &mut next);
            next.clear();
        }
        here.seen[end]
    }
}

/// Where in a pattern a match can stand, each place once.
struct Places {
    list: Vec<usize>,
    seen: Vec<bool>,
}

impl Places {
    fn new(end: usize) -> Self {
        Self { list: Vec::new(), seen: vec![false; end + 1] }
    }

    fn clear(&mut self) {
        for place in self.list.drain(..) {
            self.seen[place] = false;
        }
    }

    /// Adds a place, and those that it leads to without a character.
    fn add(&mut self, mut place: usize, parts: &[Part]) {
        while !self.seen[place] {
            self.seen[place] = true;
            self.list.push(place);
            match parts.get(place) {
                Some(Part::Some | Part::All) => place += 1,
                Some(Part::Dirs) => {
                    // `Inside`, which leads nowhere without a character, and what comes after it.
                    if !std::mem::replace(&mut self.seen[place + 1], true) {
                        self.list.push(place + 1);
                    }
                    place += 2;
                }
                _ => return,
            }
        }
    }
}

impl Part {
    /// Whether this part is exactly one character, and `c` is one.
    fn takes(&self, c: char) -> bool {
        match self {
            Self::Char(wanted) => c == *wanted,
            Self::One => c != '/',
            Self::Class { not, ranges } => {
                let at = ranges.partition_point(|(_, high)| *high < c);
                ranges.get(at).is_some_and(|(low, _)| *low <= c) != *not
            }
            _ => false,
        }
    }
}

/// Cuts a pattern into parts. Wildcards in a row that say no more than one of them are one, so that the parts are at most
/// four for each character that a match needs, and two more.
fn compile(pattern: &str) -> Option<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    let mut chars = pattern.chars().peekable();
    let mut first = true;
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.peek() == Some(&'*') => {
                chars.next();
                let slash = chars.next_if_eq(&'/').is_some();
                let any = chars.peek().is_none() || (first && !slash);
                match parts.last() {
                    Some(Part::All) => {}
                    Some(Part::Inside) if !any => {}
                    _ if any => parts.push(Part::All),
                    _ => parts.extend([Part::Dirs, Part::Inside]),
                }
            }
            '*' if matches!(parts.last(), Some(Part::Some | Part::All)) => {}
            '*' => parts.push(Part::Some),
            '?' => parts.push(Part::One),
            '\\' => parts.push(Part::Char(escaped(chars.next()?))),
            '[' => parts.push(class(&mut chars)?),
            c => parts.push(Part::Char(c)),
        }
        first = false;
    }
    Some(parts)
}

/// What an escaped character stands for. The reference hands escapes on to a regular expression, where some letters name
/// a control character.
fn escaped(c: char) -> char {
    match c {
        'a' => '\u{7}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        c => c,
    }
}

fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Part> {
    let not = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    let one = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| match chars.next()? {
        '\\' => chars.next(),
        '-' | ']' => None,
        c => Some(c),
    };
    loop {
        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
            return Some(Part::Class { not, ranges: apart(ranges) });
        }
        let low = one(chars)?;
        let high = if chars.next_if_eq(&'-').is_some() { one(chars)? } else { low };
        ranges.push((low, high));
    }
}

/// The same ranges in order, those that overlap made one, so that a character is looked up and not tried with each.
fn apart(mut ranges: Vec<(char, char)>) -> Vec<(char, char)> {
    // A range that ends before it begins holds nothing.
    ranges.retain(|(low, high)| low <= high);
    ranges.sort_unstable();
    let mut out: Vec<(char, char)> = Vec::new();
    for (low, high) in ranges {
        match out.last_mut() {
            Some((_, last)) if low <= *last => *last = high.max(*last),
            _ => out.push((low, high)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Pattern::new(pattern, false).unwrap().matches(path, false)
    }

    #[test]
    fn wildcards_in_a_row_are_one() {
        for (pattern, parts) in
            [("**/**/**/x", 3), ("a********b", 4), ("a****/***b", 5), ("***", 1), ("**", 1)]
        {
            assert_eq!(compile(pattern).unwrap().len(), parts, "{pattern}");
        }
        assert!(matches("**/**/x", "x") && matches("**/**/x", "a/b/x") && !matches("**/**/x", "ax"));
        assert!(matches("a****b", "ab") && matches("a****b", "ac/b") && !matches("a****b", "acb"));
    }

    #[test]
    fn classes_are_looked_up() {
        let wide = format!("[{}]", "abcdxyz".repeat(100_000));
        assert_eq!(apart(vec![('x', 'z'), ('a', 'c'), ('b', 'd'), ('z', 'a')]), [('a', 'd'), ('x', 'z')]);
        assert!(matches(&wide, "d") && !matches(&wide, "e") && matches("[^b-d]", "e"));
        // No character is in a range that ends before it begins; its opposite has all.
        assert!(!matches("[z-a]", "m") && matches("[^z-a]", "m"));
    }

    #[test]
    fn what_needs_more_than_the_longest_path_is_not_tried() {
        let path = "a/".repeat(2048);
        assert!(!matches(&"*a".repeat(500_000), &path));
        assert!(matches(&("**/".repeat(350_000) + "a/"), &path));
    }
}
