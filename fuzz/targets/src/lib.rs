//! What is fuzzed: one function for each format, that takes any bytes. It panics where a rule of the format does not hold;
//! errors are fine. `fuzz/fuzz_targets` hands these to libFuzzer, the program beside this to its own mutator.

mod formats;
mod language;

/// A format that is fuzzed.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, that of its folder in `fuzz/seeds` and of its file in `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
    /// How often that goes through the bytes: what a target may take is so many times what one reading may.
    pub passes: u32,
    /// Pieces of the format, for a mutator that does not learn them.
    pub words: &'static [&'static str],
}

/// All of them.
pub const TARGETS: [Target; 6] = [
    Target { name: "parse", run: language::parse, passes: 3, words: language::PARSE_WORDS },
    Target { name: "expand", run: language::expand, passes: 5, words: language::EXPAND_WORDS },
    Target { name: "ignore", run: language::ignore, passes: 15, words: language::IGNORE_WORDS },
    Target { name: "reference", run: formats::reference, passes: 5, words: formats::REFERENCE_WORDS },
    Target { name: "journal", run: formats::journal, passes: 8, words: formats::JOURNAL_WORDS },
    Target { name: "tar", run: formats::tar, passes: 1, words: formats::TAR_WORDS },
];

/// Runs the target of this name.
///
/// # Panics
/// When there is none, or when the bytes break a rule.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    assert!(target.is_some(), "no target {name:?}");
    target.into_iter().for_each(|target| (target.run)(bytes));
}
