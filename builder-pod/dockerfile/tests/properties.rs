//! Properties of the language: nothing panics, positions are in the source, and the matchers agree with naive ones.

use std::path::Path;

use kiln_dockerfile::expand::{ExpandOptions, Expander};
use kiln_dockerfile::ignore::Matched;
use kiln_dockerfile::{
    Dockerfile, GitRef, IgnoreFile, directives, expand_heredoc, expand_word, parse, parse_trigger,
};
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Dockerfiles that the fuzzer begins with, too.
fn seeds() -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/parse");
    let list = std::fs::read_dir(dir).expect("the seeds are there");
    let mut files: Vec<_> = list.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files.iter().map(|file| std::fs::read(file).expect("a seed")).collect()
}

/// What must hold of any source.
fn check(source: &[u8]) -> Result<(), TestCaseError> {
    let text = String::from_utf8_lossy(source);
    let count = source.split(|b| *b == b'\n').count();
    let in_order = |lines: &[kiln_dockerfile::LineRange]| {
        lines.iter().all(|l| l.first >= 1 && l.first <= l.last && l.last as usize <= count)
            && lines.windows(2).all(|pair| pair[0].last < pair[1].first)
    };
    if let Ok(syntax) = parse::parse(source) {
        let lines: Vec<_> = syntax.nodes.iter().map(|n| n.lines).collect();
        prop_assert!(in_order(&lines), "{:?} of {}", lines, count);
    }
    match Dockerfile::parse(source) {
        Ok(file) => {
            let again = Dockerfile::parse(source);
            prop_assert_eq!(again.as_ref(), Ok(&file));
            for stage in &file.stages {
                let lines: Vec<_> =
                    [stage.lines].into_iter().chain(stage.instructions.iter().map(|i| i.lines)).collect();
                prop_assert!(in_order(&lines));
            }
        }
        Err(error) => {
            let (line, column) = error.position(&text);
            prop_assert!(line >= 1 && column.is_none_or(|c| c >= 1));
            prop_assert!(error.lines.last as usize <= count);
            let shown = error.render("Dockerfile", &text);
            prop_assert!(shown.starts_with("Dockerfile:"));
        }
    }
    let _ = directives::list(source);
    let _ = directives::detect_syntax(source);
    let _ = parse_trigger(&text);
    Ok(())
}

/// Lines that look like a Dockerfile's, and pieces that they trip over.
fn line() -> impl Strategy<Value = String> {
    let first = select(vec![
        "FROM a",
        "FROM a AS b",
        "from",
        "RUN",
        "run x",
        "CMD",
        "ENTRYPOINT",
        "ENV a=b",
        "ENV a b",
        "LABEL",
        "ARG",
        "ARG a=1 b",
        "COPY a b",
        "COPY --from=x",
        "ADD",
        "ADD --checksum=",
        "ONBUILD RUN",
        "ONBUILD ONBUILD",
        "HEALTHCHECK CMD",
        "HEALTHCHECK --interval=1s",
        "SHELL [\"a\"]",
        "EXPOSE 80",
        "VOLUME",
        "USER u",
        "WORKDIR /",
        "STOPSIGNAL 9",
        "MAINTAINER m",
        "#",
        "# escape=`",
        "# syntax=a/b",
        "#!",
        "EOF",
        "\tEOF",
        "NOPE",
        "",
        "{",
        "\u{feff}",
    ]);
    let piece = select(vec![
        " ",
        "\\",
        "`",
        "\t",
        "\r",
        " \\ ",
        "<<EOF",
        "<<-EOF",
        "<<'EOF'",
        "3<<\"E F\"",
        "<<",
        "$x",
        "${x:-y}",
        "${",
        "}",
        "--mount=type=cache,target=/x",
        "--mount=\"type=secret,id=a\"",
        "--link",
        "--",
        "--x",
        "=",
        "\"",
        "'",
        "[\"a\",",
        "\"b\"]",
        "[",
        "]",
        "{\"a\":1}",
        "\u{a0}",
        "ü",
        "\u{fffd}",
        "a",
        "b=c",
        ":",
        "#",
        "\0",
        "\\u00e9",
        "1h2m",
        "-1",
    ]);
    (first, prop::collection::vec(piece, 0..8)).prop_map(|(first, rest)| format!("{first} {}", rest.concat()))
}

#[derive(Debug, Clone)]
enum Change {
    Set(Index, u8),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    Copy(Index, Index, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let word =
        select(vec!["\\\n", "\n", " ", "<<A\n", "${", "\"", "#", "ONBUILD ", "\u{feff}", "\r\n", "--", "["]);
    prop_oneof![
        any::<(Index, u8)>().prop_map(|(at, value)| Change::Set(at, value)),
        (any::<Index>(), 1usize..40).prop_map(|(at, n)| Change::Remove(at, n)),
        (any::<Index>(), word).prop_map(|(at, word)| Change::Insert(at, word.into())),
        (any::<(Index, Index)>(), 1usize..200).prop_map(|((to, from), n)| Change::Copy(to, from, n)),
    ]
}

fn changed(mut text: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let spot = |index: &Index, text: &[u8]| index.index(text.len() + 1);
        match change {
            Change::Set(at, value) => {
                let at = spot(at, &text);
                if let Some(byte) = text.get_mut(at) {
                    *byte = *value;
                }
            }
            Change::Remove(at, n) => {
                let at = spot(at, &text);
                text.drain(at..text.len().min(at + n));
            }
            Change::Insert(at, word) => {
                let at = spot(at, &text);
                text.splice(at..at, word.iter().copied());
            }
            Change::Copy(to, from, n) => {
                let (to, from) = (spot(to, &text), spot(from, &text));
                let piece = text[from..text.len().min(from + n)].to_vec();
                text.splice(to..to, piece);
            }
        }
    }
    text
}

fn env(name: &str) -> Option<String> {
    match name {
        "a" => Some("aabab".to_owned()),
        "b" => Some("x y\nz".to_owned()),
        "e" => Some(String::new()),
        _ => None,
    }
}

/// A pattern's match of a whole text, by trying everything.
fn glob(pattern: &[char], text: &[char]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, rest) => rest.is_none(),
        (Some(('*', rest)), _) => {
            glob(rest, text) || text.split_first().is_some_and(|(c, more)| *c != '\n' && glob(pattern, more))
        }
        (Some((p, rest)), Some((c, more))) => {
            (if *p == '?' { *c != '\n' } else { p == c }) && glob(rest, more)
        }
        (Some(_), None) => false,
    }
}

/// An ignore pattern's match of a whole path, by trying everything.
fn naive(p: &[char], t: &[char], first: bool) -> bool {
    match p {
        [] => t.is_empty(),
        ['*', '*', rest @ ..] => {
            let (slash, rest) = match rest {
                ['/', rest @ ..] => (true, rest),
                rest => (false, rest),
            };
            let anything = rest.is_empty() || (first && !slash);
            (0..=t.len()).any(|i| {
                (anything || i == 0 || t[i - 1] == '/') && (rest.is_empty() || naive(rest, &t[i..], false))
            })
        }
        ['*', rest @ ..] => {
            let most = t.iter().position(|c| *c == '/').unwrap_or(t.len());
            (0..=most).any(|i| naive(rest, &t[i..], false))
        }
        ['[', '^', a, '-', b, ']', rest @ ..] => {
            t.split_first().is_some_and(|(c, t)| !(a..=b).contains(&c) && naive(rest, t, false))
        }
        ['[', a, b, ']', rest @ ..] => {
            t.split_first().is_some_and(|(c, t)| (a == c || b == c) && naive(rest, t, false))
        }
        ['?', rest @ ..] => t.split_first().is_some_and(|(c, t)| *c != '/' && naive(rest, t, false)),
        ['\\', p, rest @ ..] | [p, rest @ ..] => {
            t.split_first().is_some_and(|(c, t)| p == c && naive(rest, t, false))
        }
    }
}

fn naive_ignored(patterns: &[String], path: &str) -> bool {
    let chars = |text: &str| text.chars().collect::<Vec<_>>();
    let mut excluded = false;
    for pattern in patterns {
        let (again, pattern) = pattern.strip_prefix('!').map_or((false, pattern.as_str()), |p| (true, p));
        let ends = path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0).chain([path.len()]);
        if ends.into_iter().any(|end| naive(&chars(pattern), &chars(&path[..end]), true)) {
            excluded = !again;
        }
    }
    excluded
}

fn ignore_line() -> impl Strategy<Value = String> {
    let piece = select(vec![
        "a", "b", "/", "/", "*", "**", "**/", "?", "[ab]", "[^a-b]", "\\*", "..", ".", "/**", "ab", "\\b",
    ]);
    (any::<bool>(), prop::collection::vec(piece, 1..7))
        .prop_map(|(again, pieces)| format!("{}{}", if again { "!" } else { "" }, pieces.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_a_dockerfile_or_an_error(bytes: Vec<u8>) {
        check(&bytes)?;
    }

    #[test]
    fn any_lines_are_a_dockerfile_or_an_error(lines in prop::collection::vec(line(), 0..12)) {
        check(lines.join("\n").as_bytes())?;
    }

    #[test]
    fn any_change_of_a_dockerfile_is_survived(seed: Index, changes in prop::collection::vec(change(), 0..12)) {
        let seeds = seeds();
        check(&changed(seed.get(&seeds).clone(), &changes))?;
    }

    #[test]
    fn any_word_expands_or_is_an_error(
        word in "([$]|[{]|[}]|[:]|[-+?#%/\\\\'\"]|[abeu ]|[*\n<])*|\\PC*",
        options in any::<[bool; 4]>(),
        escape in select(vec!['\\', '`']),
    ) {
        let [raw_quotes, raw_escapes, skip_process_quotes, skip_unset_env] = options;
        let options = ExpandOptions { raw_quotes, raw_escapes, skip_process_quotes, skip_unset_env };
        if let Ok(found) = Expander::new(&env, escape).options(options).expand(&word) {
            prop_assert!(found.matched.is_disjoint(&found.unmatched));
            prop_assert!(found.matched.iter().all(|name| env(name).is_some()));
        }
        let _ = expand_heredoc(&word, &env);
    }

    #[test]
    fn what_is_quoted_stays(text in "[^'\u{feff}]*") {
        let expanded = expand_word(&format!("'{text}'"), &env, '\\');
        prop_assert_eq!(expanded.as_deref(), Ok(text.as_str()));
    }

    #[test]
    fn patterns_agree_with_a_naive_matcher(pattern in "[ab*?\n]{0,6}", value in "[abc\n]{0,8}") {
        let get = |name: &str| (name == "v").then(|| value.clone());
        let (p, v): (Vec<char>, Vec<char>) = (pattern.chars().collect(), value.chars().collect());
        let starts: Vec<usize> = (0..=v.len()).filter(|n| glob(&p, &v[..*n])).collect();
        let ends: Vec<usize> = (0..=v.len()).filter(|n| glob(&p, &v[v.len() - n..])).collect();
        let without_start = |n: Option<&usize>| v[n.copied().unwrap_or(0)..].iter().collect::<String>();
        let without_end = |n: Option<&usize>| v[..v.len() - n.copied().unwrap_or(0)].iter().collect::<String>();
        // A pattern in the word must not begin with the modifier's own sign.
        for (word, wanted) in [
            (format!("${{v#{pattern}}}"), without_start(starts.first())),
            (format!("${{v##{pattern}}}"), without_start(starts.last())),
            (format!("${{v%{pattern}}}"), without_end(ends.first())),
            (format!("${{v%%{pattern}}}"), without_end(ends.last())),
        ] {
            prop_assert_eq!(expand_word(&word, &get, '\\'), Ok(wanted), "{:?} of {:?}", word, value);
        }
        let found = (0..=v.len()).find_map(|from| {
            (from..=v.len()).rev().find(|to| glob(&p, &v[from..*to])).map(|to| (from, to))
        });
        if !pattern.is_empty() {
            let wanted = found.map_or(value.clone(), |(from, to)| {
                format!("{}-{}", v[..from].iter().collect::<String>(), v[to..].iter().collect::<String>())
            });
            prop_assert_eq!(expand_word(&format!("${{v/{pattern}/-}}"), &get, '\\'), Ok(wanted));
        }
    }

    #[test]
    fn ignoring_agrees_with_a_naive_matcher(
        lines in prop::collection::vec(ignore_line(), 1..5),
        paths in prop::collection::vec("[ab*]{1,3}(/[ab]{1,2}){0,3}", 1..6),
    ) {
        let Ok(file) = IgnoreFile::parse(&lines.join("\n")) else { return Ok(()) };
        let patterns = file.patterns();
        for path in &paths {
            prop_assert_eq!(file.matches(path), naive_ignored(&patterns, path), "{:?} {}", patterns, path);
            // Without exceptions a walk comes to the same.
            let mut above = Matched::default();
            let mut excluded = false;
            for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
                (excluded, above) = file.walk(&path[..at], &above);
            }
            if patterns.iter().all(|p| !p.starts_with('!')) {
                prop_assert_eq!(excluded, file.matches(path), "{:?} {}", patterns, path);
            }
        }
    }

    #[test]
    fn any_text_is_an_ignore_file_or_an_error(text: String, path in "\\PC{0,20}") {
        if let Ok(file) = IgnoreFile::parse(&text) {
            file.matches(&path);
            file.walk(&path, &Matched::default());
            file.may_include_below(&path);
        }
    }

    #[test]
    fn a_remote_is_its_own_remote(
        text in "(https?://|git://|ssh://|github.com/|git@)?[a-z@:/.%20?&=#]{0,12}(h:8/)?[a-z%/. ü]{0,8}(.git)?[?#:&=a-z%]{0,12}|\\PC*",
    ) {
        if let Ok(Some(found)) = GitRef::parse(&text)
            && let Ok(Some(again)) = GitRef::parse(&found.remote)
        {
            prop_assert_eq!(again.remote, found.remote);
            prop_assert!(found.subdir.is_none_or(|d| d.trim_start_matches('/') != ".."));
        }
    }
}
