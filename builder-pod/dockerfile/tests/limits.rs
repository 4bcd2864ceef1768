//! Large inputs (a quarter of a megabyte; a megabyte where that is quick without optimisation) that would cost more than their length where work is not bounded: by its square, by its nesting, by
//! what it is multiplied with. The limit in seconds is a guard against hanging, far above what each takes.

use std::time::Duration;

use cpu_time::ThreadTime;
use kiln_dockerfile::expand::ExpandError;
use kiln_dockerfile::{Dockerfile, GitRef, IgnoreFile, ParseErrorKind, expand_word, expand_words};

const MB: usize = 1_000_000;
const LARGE: usize = MB / 4;

/// Measures what the thread had of the processor, so that a busy machine does not count.
fn guarded<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let began = ThreadTime::now();
    let result = work();
    let took = began.elapsed();
    println!("{what}: {took:?}");
    assert!(took < Duration::from_secs(20), "{what} took {took:?}");
    result
}

/// `piece` as often as it takes.
fn filled(piece: &str) -> String {
    piece.repeat(LARGE / piece.len())
}

fn numbered(piece: impl Fn(usize) -> String) -> String {
    let mut out = String::new();
    for n in 0.. {
        out.push_str(&piece(n));
        if out.len() > MB {
            break;
        }
    }
    out
}

#[test]
fn dockerfiles() {
    let sources = [
        ("continuations", format!("FROM a\nRUN x {}", filled("\\\n"))),
        ("long continuations", format!("FROM a\nRUN x {}", filled("abc def \\\n"))),
        ("comments in continuations", format!("FROM a\nRUN x \\\n{}y", filled("# c\n"))),
        ("comments", filled("# a\n") + "FROM a"),
        ("directives", filled("# escape=`\n")),
        ("instructions", filled("FROM a\n")),
        ("blank lines", filled("\n") + "FROM a"),
        ("ONBUILD in ONBUILD", filled("ONBUILD \\\n")),
        ("flags", format!("FROM a\nRUN {} x", filled("--mount=type=cache,target=/x \\\n"))),
        ("other flags", format!("FROM a\nCOPY {} x y", filled("--exclude=x \\\n"))),
        ("fields of a mount", format!("FROM a\nRUN --mount={} x", filled("target=/x,\\\n"))),
        ("ENV", format!("FROM a\nENV {}", filled("a=b \\\n"))),
        ("LABEL", format!("FROM a\nLABEL {}", filled("\"a b\"='c d' \\\n"))),
        ("open quotes", format!("FROM a\nENV a={}", filled("\"'\\\n"))),
        ("EXPOSE", format!("FROM a\nEXPOSE {}", filled("80 \\\n"))),
        ("words", format!("FROM a\nCOPY {} /", filled("a b c \\\n"))),
        ("JSON", format!("FROM a\nCMD [{}]", filled("\"a\",\\\n"))),
        ("nested JSON", format!("FROM a\nCMD {}", filled("[\\\n"))),
        ("nested JSON objects", format!("FROM a\nCMD [{}", filled("{\"a\":\\\n"))),
        ("a JSON file", filled("{\"a\":")),
        // Shown with its place, for which it is looked for in each of its lines.
        ("an unknown instruction", "RUNN\\\n".repeat(MB / 6)),
        ("a duration", format!("FROM a\nHEALTHCHECK --interval={} CMD x", filled("1h\\\n"))),
        ("substitutions beside a heredoc", format!("FROM a\nRUN <<A {}\nA", filled("${a:-b}\\\n"))),
        ("nested beside a heredoc", format!("FROM a\nRUN <<A {}\nA", filled("${a:-\\\n"))),
        ("one word", format!("FROM a\nCOPY <<{}", filled("x\\\n"))),
        ("heredocs without end", format!("FROM a\nCOPY {} /x", filled("<<A \\\n"))),
    ];
    for (what, source) in sources {
        guarded(what, || {
            if let Err(error) = Dockerfile::parse(source.as_bytes()) {
                let _ = error.render("Dockerfile", &source);
            }
        });
    }
    let broken: Vec<u8> = b"FROM a\nRUN ".iter().copied().chain(std::iter::repeat_n(0xff, 60_000)).collect();
    guarded("broken UTF-8", || Dockerfile::parse(&broken)).unwrap();
}

#[test]
fn a_comment_is_not_looked_for_by_each_argument() {
    let comments = numbered(|n| format!("#b{n} x\n"));
    let arguments = numbered(|n| format!("a{n} \\\n"));
    let source = format!("{comments}#a7 the seventh\n#a7 no\n#a8\nARG {arguments}\nFROM a");
    let file = guarded("ARG", || Dockerfile::parse(source.as_bytes())).unwrap();
    let docs: Vec<_> = file.meta_args[0].args.iter().filter_map(|a| a.doc.as_deref()).collect();
    assert_eq!(docs, ["the seventh"]);
}

#[test]
fn heredocs_are_found_by_name_and_not_multiplied() {
    let words: String = (0..60_000).map(|n| format!("<<a{n} \\\n")).collect();
    let bodies: String = (0..60_000).map(|n| format!("{n}\na{n}\n")).collect();
    let source = format!("FROM a\nCOPY {words} /x/\n{bodies}");
    guarded("heredocs", || Dockerfile::parse(source.as_bytes())).unwrap();

    // A hundred thousand files of 100 KB each would be 10 GB.
    let source = format!(
        "FROM a\nCOPY {} /x/\n{}{}\nA\n",
        "<<A \\\n".repeat(100_000),
        "A\n".repeat(99_999),
        "x".repeat(60_000)
    );
    let error = guarded("a heredoc named often", || Dockerfile::parse(source.as_bytes())).unwrap_err();
    assert!(matches!(error.kind, ParseErrorKind::HeredocRepeated { .. }), "{error}");
    // The last gives the content of both, as in the reference.
    let source = "FROM a\nCOPY <<A <<-A /x/\n1\nA\n\t2\nA\n";
    let file = Dockerfile::parse(source.as_bytes()).unwrap();
    let kiln_dockerfile::InstructionKind::Copy(copy) = &file.stages[0].instructions[0].kind else { panic!() };
    let data: Vec<_> = copy.files.heredocs.iter().map(|h| h.data.as_str()).collect();
    assert_eq!(data, ["\t2\n", "2\n"]);
}

#[test]
fn a_line_beyond_the_limits_is_not_taken_for_one_without_heredocs() {
    let source = format!("FROM a\nRUN <<A {}{}\nRUN\nA\n", "${a:-".repeat(200), "}".repeat(200));
    let error = Dockerfile::parse(source.as_bytes()).unwrap_err();
    assert!(error.to_string().contains("cannot be read"), "{error}");
}

#[test]
fn words() {
    let env = |name: &str| match name {
        "large" => Some("a".repeat(MB)),
        "a" => Some("a".to_owned()),
        _ => None,
    };
    let nested = |depth: usize, inner: &str| "${u:-".repeat(depth) + inner + &"}".repeat(depth);
    let inputs = [
        ("nested", filled("${u:-")),
        ("nested and closed", nested(100_000, "x")),
        ("text at a depth", nested(90, &"x ".repeat(80_000))),
        ("quotes", filled("\"a\" ")),
        ("an open quote", filled("'a' ") + "'"),
        ("escapes", filled("\\")),
        ("names", numbered(|n| format!("$a{n}"))),
        ("dollars", filled("$")),
        ("heredoc signs", filled("<< ")),
        ("patterns", filled("${a#*a*a*b}")),
        ("replacements", filled("${a//?/$0$0}")),
        ("one pattern", format!("${{large#{}}}", "*a".repeat(MB / 2))),
        ("replaced", format!("${{large//a/{}}}", "b".repeat(MB))),
        // Each of these has a cost that is small by itself.
        ("patterns of a large value", format!("${{large%%{}b}}", "*a".repeat(15)).repeat(100)),
        ("values at a depth", nested(99, &"$large".repeat(16))),
        ("a template", format!("${{a//a/{}}}", "$".repeat(MB))),
    ];
    for (what, word) in inputs {
        let found = guarded(what, || expand_word(&word, &env, '\\'));
        assert_eq!(found, guarded(what, || expand_words(&word, &env, '\\')).and(found.clone()));
    }
    assert_eq!(expand_word(&nested(99, &"$large".repeat(16)), &env, '\\'), Err(ExpandError::Size));
    // What is within the limits goes through.
    assert_eq!(expand_word(&nested(99, &"x".repeat(100_000)), &env, '\\').unwrap().len(), 100_000);
}

#[test]
fn ignore_files() {
    let path = "a/".repeat(2000) + "b";
    for (what, file) in [
        ("directories", filled("**/")),
        ("directories in lines", filled("**/a/**/b\n")),
        ("stars", filled("*")),
        ("stars and letters", filled("*a")),
        ("directories and letters", filled("**/a/")),
        ("question marks", filled("?")),
        ("a wide class", format!("[{}]", filled("abc"))),
        ("many classes", filled("[a-c]")),
        ("ranges", format!("[{}]", filled("a-c"))),
        ("ups", filled("../")),
        ("ups and downs", filled("a/../")),
        ("an open class", format!("[{}", filled("a"))),
        ("exceptions", filled("!a\na\n")),
    ] {
        guarded(what, || {
            if let Ok(file) = IgnoreFile::parse(&file) {
                file.matches(&path);
                file.may_include_below(&path);
            }
        });
    }
}

#[test]
fn git_references() {
    for (what, text) in [
        ("options", format!("https://h/r.git?{}", filled("ref=a&"))),
        ("unknown options", format!("https://h/r.git?{}", numbered(|n| format!("a{n}=b&")))),
        ("escapes", format!("https://h/{}.git", filled("%20"))),
        ("directories", format!("https://h/r.git#:{}", filled("a/../"))),
        ("signs", format!("https://{}", filled("@:?#/"))),
    ] {
        let _ = guarded(what, || GitRef::parse(&text));
    }
}
