//! `--chmod`: an octal mode, or symbolic changes as chmod(1) has them (`u=rwX,go=rX`), resolved file by file. Pure.
//!
//! Rules: BSD `setmode`, which BuildKit's library follows. Without `u`, `g`, `o` or `a` a change is one for all.

use serde::{Deserialize, Serialize};

/// Permission bits with setuid, setgid and sticky.
const ALL: u32 = 0o7777;
/// What `a` stands for: all but the sticky bit, which only `t` names.
const STANDARD: u32 = 0o6777;
/// Longest text: a change to every class fits many times.
const MAX_TEXT: usize = 256;

/// What `--chmod` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Chmod {
    /// The mode itself.
    Octal(u32),
    /// Changes, one after another.
    Symbolic(Vec<Change>),
}

/// One change: an operation on some bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Bits that it may touch.
    who: u32,
    /// `+`, `-` or `=`.
    op: char,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum What {
    /// These bits, as far as `who` has them.
    Bits(u32),
    /// Execute, if it is a directory or anybody may execute it.
    SearchOrExecute,
    /// The permissions of a class, by how far they are shifted.
    CopyOf(u32),
}

impl Chmod {
    /// Reads a `--chmod`.
    ///
    /// # Errors
    /// What was expected, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fault = || {
            format!("expected an octal mode from 0 to 7777, or changes such as u=rwX,go=rX; found {text:?}")
        };
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= ALL);
            return mode.map(Self::Octal).ok_or_else(fault);
        }
        if text.is_empty() || text.len() > MAX_TEXT {
            return Err(fault());
        }
        let mut changes = Vec::new();
        for clause in text.split(',') {
            clause_into(clause, &mut changes).ok_or_else(fault)?;
        }
        Ok(Self::Symbolic(changes))
    }

    /// The mode of what had `mode`.
    pub fn apply(&self, mode: u32, directory: bool) -> u32 {
        let changes = match self {
            Self::Octal(mode) => return *mode,
            Self::Symbolic(changes) => changes,
        };
        let may_execute = directory || mode & 0o111 != 0;
        let mut now = mode & ALL;
        for change in changes {
            let bits = match change.what {
                What::Bits(bits) => bits,
                What::SearchOrExecute => {
                    if may_execute {
                        0o111
                    } else {
                        0
                    }
                }
                What::CopyOf(shift) => {
                    let class = (now >> shift) & 0o7;
                    class << 6 | class << 3 | class
                }
            } & change.who;
            match change.op {
                '+' => now |= bits,
                '-' => now &= !bits,
                // Only the first of a `=` clears; see `clause_into`.
                _ => now = now & !(change.who & STANDARD) | bits,
            }
        }
        now
    }
}

/// `[ugoa...][+-=][rwxXstugo...]...`
fn clause_into(clause: &str, changes: &mut Vec<Change>) -> Option<()> {
    let ops = |c: char| matches!(c, '+' | '-' | '=');
    let first = clause.find(ops)?;
    let (classes, mut actions) = clause.split_at(first);
    let mut who = if classes.is_empty() { STANDARD } else { 0 };
    for class in classes.chars() {
        who |= match class {
            'u' => 0o4700,
            'g' => 0o2070,
            'o' => 0o0007,
            'a' => STANDARD,
            _ => return None,
        };
    }
    while !actions.is_empty() {
        let op = actions.chars().next().filter(|c| ops(*c))?;
        let end = actions[1..].find(ops).map_or(actions.len(), |at| at + 1);
        let (mut bits, mut others) = (0, Vec::new());
        for permission in actions[1..end].chars() {
            match permission {
                'r' => bits |= 0o444,
                'w' => bits |= 0o222,
                'x' => bits |= 0o111,
                's' => bits |= 0o6000,
                't' => bits |= 0o1000,
                'X' => others.push(What::SearchOrExecute),
                'u' => others.push(What::CopyOf(6)),
                'g' => others.push(What::CopyOf(3)),
                'o' => others.push(What::CopyOf(0)),
                _ => return None,
            }
        }
        // What a class has is copied before `=` clears it.
        let copies = others.iter().any(|what| matches!(what, What::CopyOf(_)));
        let sticky = bits & 0o1000;
        let own = Change { who: who | sticky, op, what: What::Bits(bits) };
        match (op, others.as_slice()) {
            ('=', [only]) if copies && bits == 0 => changes.push(Change { who, op, what: *only }),
            _ => {
                changes.push(own);
                let op = if op == '=' { '+' } else { op };
                changes.extend(others.into_iter().map(|what| Change { who, op, what }));
            }
        }
        actions = &actions[end..];
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_modes() {
        assert_eq!(Chmod::parse("0755"), Ok(Chmod::Octal(0o755)));
        assert_eq!(Chmod::parse("7777").map(|mode| mode.apply(0, true)), Ok(0o7777));
        for bad in ["888", "10000", "64a", "", "u+q", "u", "+r,", "z=r", "rwx", "u+r-"] {
            let fine = ["u+r-"].contains(&bad);
            assert_eq!(Chmod::parse(bad).is_ok(), fine, "{bad}");
        }
    }

    #[test]
    fn changes() {
        for (text, mode, directory, expected) in [
            ("go=u", 0o775, false, 0o777),
            ("go=u", 0o664, false, 0o666),
            ("u=rwX,go=rX", 0o775, true, 0o755),
            ("u=rwX,go=rX", 0o664, false, 0o644),
            ("u=rwX,go=rX", 0o100, false, 0o755),
            ("a-w", 0o664, false, 0o444),
            ("+x", 0o644, false, 0o755),
            ("u+s,g+s", 0o755, false, 0o6755),
            ("u=rwx", 0o4755, false, 0o755),
            ("+t", 0o777, true, 0o1777),
            ("o=", 0o777, false, 0o770),
            ("u+x-w", 0o644, false, 0o544),
            ("g=o", 0o604, false, 0o644),
            ("u=g", 0o640, false, 0o440),
        ] {
            let chmod = Chmod::parse(text).unwrap();
            assert_eq!(chmod.apply(mode, directory), expected, "{text} {mode:o}");
        }
    }
}
