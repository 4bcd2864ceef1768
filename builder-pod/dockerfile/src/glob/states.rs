//! A pattern as an automaton whose states are the bits of a few words, so that a character of the value moves 64 of them at
//! once and none is tried twice. Wildcards do not match a line feed.

use super::Token;

/// Bits of one word.
const BITS: usize = u64::BITS as usize;

/// State `n` is active when the first `n` single characters of the pattern match what was read last.
pub(super) struct States {
    /// Characters of the pattern, stars left out: the number of the state in which all of it matches.
    last: usize,
    /// States before a `?`.
    any: Vec<u64>,
    /// States at a `*`: they stay active.
    stay: Vec<u64>,
    /// States before each literal, for literals that are in the pattern often; those before a `?` are among them.
    often: Vec<(char, Vec<u64>)>,
    /// The same as numbers, for literals that are in it seldom: a table for each would be as large as pattern times alphabet.
    /// By literal and state.
    seldom: Vec<(char, usize)>,
    now: Vec<u64>,
    next: Vec<u64>,
}

impl States {
    pub(super) fn new(tokens: &[Token]) -> Self {
        let last = tokens.iter().filter(|token| **token != Token::Star).count();
        let words = last / BITS + 1;
        let empty = || vec![0u64; words];
        let (mut any, mut stay) = (empty(), empty());
        let mut literals = Vec::with_capacity(last);
        let mut state = 0;
        for token in tokens {
            match token {
                Token::Star => set(&mut stay, state),
                Token::Any => set(&mut any, state),
                Token::Literal(c) => literals.push((*c, state)),
            }
            state += usize::from(*token != Token::Star);
        }
        literals.sort_unstable();
        let (mut often, mut seldom) = (Vec::new(), Vec::new());
        for group in literals.chunk_by(|a, b| a.0 == b.0) {
            if group.len() <= words {
                seldom.extend_from_slice(group);
                continue;
            }
            let mut table = if group[0].0 == '\n' { empty() } else { any.clone() };
            group.iter().for_each(|(_, state)| set(&mut table, *state));
            often.push((group[0].0, table));
        }
        Self { last, any, stay, often, seldom, now: empty(), next: empty() }
    }

    /// Words that a character of the value goes through.
    pub(super) fn cost(&self) -> usize {
        self.now.len()
    }

    /// The length of the longest prefix of `value` that matches; `first`: of the shortest.
    pub(super) fn longest(&mut self, value: &[char], first: bool) -> Option<usize> {
        self.now.fill(0);
        set(&mut self.now, 0);
        let mut found = self.matched().then_some(0);
        for (at, c) in value.iter().enumerate() {
            if first && found.is_some() || !self.read(*c) {
                break;
            }
            if self.matched() {
                found = Some(at + 1);
            }
        }
        found
    }

    /// For each number of characters that were read, 0 included, whether a match that began anywhere ends there.
    pub(super) fn ends_anywhere(&mut self, value: impl ExactSizeIterator<Item = char>) -> Vec<bool> {
        let mut out = Vec::with_capacity(value.len() + 1);
        self.now.fill(0);
        set(&mut self.now, 0);
        out.push(self.matched());
        for c in value {
            self.read(c);
            set(&mut self.now, 0);
            out.push(self.matched());
        }
        out
    }

    fn matched(&self) -> bool {
        has(&self.now, self.last)
    }

    /// Reads a character. `false` when no state is left.
    fn read(&mut self, c: char) -> bool {
        let wild = c != '\n';
        let found = self.often.binary_search_by_key(&c, |(literal, _)| *literal);
        let table = found.map_or(wild.then_some(&self.any), |at| Some(&self.often[at].1));
        let (mut carry, mut left) = (0, 0);
        for word in 0..self.now.len() {
            let moved = self.now[word] & table.map_or(0, |table| table[word]);
            let stayed = if wild { self.now[word] & self.stay[word] } else { 0 };
            self.next[word] = moved << 1 | carry | stayed;
            left |= self.next[word];
            carry = moved >> (BITS - 1);
        }
        let from = self.seldom.partition_point(|(literal, _)| *literal < c);
        for (_, state) in self.seldom[from..].iter().take_while(|(literal, _)| *literal == c) {
            if has(&self.now, *state) {
                set(&mut self.next, state + 1);
                left = 1;
            }
        }
        std::mem::swap(&mut self.now, &mut self.next);
        left != 0
    }
}

fn set(words: &mut [u64], state: usize) {
    words[state / BITS] |= 1 << (state % BITS);
}

fn has(words: &[u64], state: usize) -> bool {
    words[state / BITS] >> (state % BITS) & 1 == 1
}
