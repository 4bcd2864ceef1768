//! The Dockerfile language: sources, words, ignore files.

use std::collections::HashMap;

use kiln_dockerfile::expand::{ExpandOptions, Expander};
use kiln_dockerfile::ignore::Matched;
use kiln_dockerfile::{
    Dockerfile, IgnoreFile, InstructionKind, LineRange, directives, expand_heredoc, parse as syntax,
    parse_trigger,
};

pub(crate) const PARSE_WORDS: &[&str] = &[
    "\\\n",
    "`\n",
    "\n",
    "\r\n",
    "FROM a\n",
    "RUN ",
    "COPY ",
    "ADD ",
    "ONBUILD ",
    "ARG ",
    "ENV ",
    "LABEL ",
    "CMD ",
    "HEALTHCHECK ",
    "SHELL ",
    "<<A",
    "<<-'A'",
    "\nA\n",
    "--mount=type=",
    "--interval=",
    "--from=",
    "[\"",
    "\"]",
    "\",\"",
    "${",
    "}",
    ":-",
    "# escape=`\n",
    "# syntax=",
    "#",
    "\u{feff}",
    "\t",
    "=",
    "\"",
    "'",
    "$",
    "\u{a0}",
    "required,",
    "1h",
];

/// A Dockerfile: reads or is an error, positions lie in the source, and what was read is read the same again.
pub(crate) fn parse(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let count = u32::try_from(bytes.split(|b| *b == b'\n').count()).unwrap_or(u32::MAX);
    let in_order = |lines: &[LineRange]| {
        lines.iter().all(|l| l.first >= 1 && l.first <= l.last && l.last <= count)
            && lines.windows(2).all(|pair| pair[0].last < pair[1].first)
    };
    if let Ok(found) = syntax::parse(bytes) {
        let lines: Vec<_> = found.nodes.iter().map(|node| node.lines).collect();
        assert!(in_order(&lines), "lines out of order: {lines:?} of {count}");
    }
    match Dockerfile::parse(bytes) {
        Ok(file) => {
            let mut inline = 0;
            for stage in &file.stages {
                let lines: Vec<_> =
                    [stage.lines].into_iter().chain(stage.instructions.iter().map(|i| i.lines)).collect();
                assert!(in_order(&lines), "lines out of order: {lines:?} of {count}");
                for instruction in &stage.instructions {
                    let files = match &instruction.kind {
                        InstructionKind::Copy(copy) => &copy.files,
                        InstructionKind::Add(add) => &add.files,
                        _ => continue,
                    };
                    // What repeats is bounded for each instruction, by 64 KiB.
                    inline += files.heredocs.iter().map(|h| h.data.len()).sum::<usize>();
                    inline = inline.saturating_sub(64 << 10);
                }
            }
            // A byte that is no UTF-8 becomes three.
            assert!(inline <= 3 * bytes.len(), "{inline} bytes of files from {} of source", bytes.len());
        }
        Err(error) => {
            let shown = error.render("Dockerfile", &text);
            assert!(shown.starts_with("Dockerfile:") && error.lines.last <= count, "{shown}");
        }
    }
    let _ = (directives::list(bytes), directives::detect_syntax(bytes), parse_trigger(&text));
}

pub(crate) const EXPAND_WORDS: &[&str] = &[
    "${", "}", "$", ":-", ":+", ":?", "-", "+", "?", "#", "##", "%", "%%", "/", "//", "*", "\\", "\"", "'",
    "`", "<<", "a", "a=b\n", "v=", "\n\0", "${a:-", "${a//", "$0", "${0}", "$$", " ", "\u{feff}",
];

/// Before the first NUL lines of `NAME=value`, after it a word.
pub(crate) fn expand(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (env, word) = text.split_once('\0').unwrap_or(("a=b", &text));
    let env: HashMap<&str, &str> = env.lines().filter_map(|line| line.split_once('=')).collect();
    let get = |name: &str| env.get(name).map(|value| (*value).to_owned());
    for (escape, n) in [('\\', 0u8), ('\\', 15), ('`', 6), ('\\', 9)] {
        let options = ExpandOptions {
            raw_quotes: n & 1 > 0,
            raw_escapes: n & 2 > 0,
            skip_process_quotes: n & 4 > 0,
            skip_unset_env: n & 8 > 0,
        };
        let Ok(found) = Expander::new(&get, escape).options(options).expand(word) else { continue };
        assert!(found.matched.iter().all(|name| env.contains_key(name.as_str())), "{:?}", found.matched);
        assert!(found.unmatched.iter().all(|name| !env.contains_key(name.as_str())), "{:?}", found.unmatched);
        assert!(found.words.iter().all(|word| !word.is_empty()), "an empty word");
        if !word.contains(['$', '\'', '"', '\\', '`', '\u{feff}']) {
            assert_eq!(found.text, word, "a word without anything special");
        }
    }
    let _ = expand_heredoc(word, &get);
}

pub(crate) const IGNORE_WORDS: &[&str] = &[
    "**", "**/", "/**", "*", "?", "[", "]", "[a-", "[^", "\\", "!", "\n", "../", "./", "//", "a", "a/", "\0",
    "#", "\u{feff}",
];

/// Before the first NUL an ignore file, after it paths in lines.
pub(crate) fn ignore(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (file, paths) = text.split_once('\0').unwrap_or((&text, "a/b\nc"));
    let Ok(file) = IgnoreFile::parse(file) else { return };
    let patterns = file.patterns();
    let exceptions = patterns.iter().any(|pattern| pattern.starts_with('!'));
    // Work is the product of both; paths are what a walk finds, so no longer than the system's.
    for path in paths.lines().filter(|path| !path.is_empty() && path.len() <= 4096).take(2) {
        let alone = file.matches(path);
        let mut above = Matched::default();
        let mut excluded = false;
        for (at, _) in path.match_indices('/').filter(|(at, _)| *at > 0).chain([(path.len(), "")]).take(5) {
            (excluded, above) = file.walk(&path[..at], &above);
        }
        if !exceptions && path.matches('/').count() < 4 {
            assert_eq!(alone, excluded, "{path:?} alone and in a walk");
        }
        let _ = file.may_include_below(path);
    }
}
