//! Tests of expansion that the corpus has no cases for.

use super::*;

fn env(name: &str) -> Option<String> {
    match name {
        "v" => Some("foo.bar".to_owned()),
        "e" => Some(String::new()),
        "s" => Some("a b".to_owned()),
        _ => None,
    }
}

#[test]
fn modifiers() {
    let cases = [
        ("$v-${v}", "foo.bar-foo.bar"),
        ("${u:-x${v}}", "xfoo.bar"),
        ("${e-x}|${e:-x}|${e+x}|${e:+x}", "|x|x|"),
        ("${v#*.}|${v%.*}|${v/o/0}|${v//o/0}", "bar|foo|f0o.bar|f00.bar"),
        (r#"'$v' "\$v" \$v"#, "$v $v $v"),
        ("$1x$", "x$"),
    ];
    for (word, wanted) in cases {
        assert_eq!(expand_word(word, &env, '\\').as_deref(), Ok(wanted), "{word}");
    }
}

#[test]
fn errors() {
    for word in ["${", "${}", "${v", "${v:=x}", "'a", "\"a", "${u?}", "${e:?}", "${v/a}", "${v#\\f}"] {
        assert!(expand_word(word, &env, '\\').is_err(), "{word}");
    }
}

#[test]
fn words_split_after_expansion() {
    assert_eq!(expand_words("x$s \"$s\" c", &env, '\\').unwrap(), ["xa", "b", "a b", "c"]);
}

#[test]
fn limits_hold() {
    let deep = "${a:-".repeat(10_000) + &"}".repeat(10_000);
    assert_eq!(expand_word(&deep, &env, '\\'), Err(ExpandError::Depth));
    let large = |_: &str| Some("x".repeat(1 << 20));
    assert_eq!(expand_word(&"$a".repeat(20), &large, '\\'), Err(ExpandError::Size));
}

#[test]
fn heredoc_bodies_keep_quotes() {
    assert_eq!(expand_heredoc("\"$v\" '$v' \\$v", &env).unwrap(), "\"foo.bar\" 'foo.bar' $v");
}
