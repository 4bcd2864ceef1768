//! What makes a difference for a step's key, and what makes none.

use std::collections::BTreeMap;

use crate::solve::tests::{plan, plan_with};

use super::*;

/// Digests of what was asked; a context has what `context` says, a missing file is missing.
struct Fake {
    context: &'static str,
    url: Option<&'static str>,
}

impl Facts for Fake {
    fn context(&self, name: Option<&str>, what: &Selection) -> Option<String> {
        let known = !what.sources.iter().any(|source| source == "missing");
        known.then(|| format!("{name:?} {} {}", what.sources.join(","), self.context))
    }

    fn url(&self, _: &str) -> Option<String> {
        self.url.map(str::to_owned)
    }

    fn commit(&self, _: &Git) -> Option<String> {
        Some("0".repeat(40))
    }
}

const FACTS: Fake = Fake { context: "1", url: Some("d") };

/// The keys of all operations, stage by stage.
fn keys(text: &str) -> Vec<Option<String>> {
    Keys::new(&plan(text), "", &FACTS).ops.concat()
}

fn with_args(text: &str, args: &[(&str, &str)]) -> Vec<Option<String>> {
    let args: BTreeMap<_, _> = args.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Keys::new(&plan_with(text, &args), "", &FACTS).ops.concat()
}

#[test]
fn keys_are_pinned() {
    let text = "FROM alpine\nWORKDIR /w\nCOPY a b\nRUN make\n";
    let first = keys(text);
    assert!(first.iter().flatten().all(|key| kiln_contract::cache::is_key(key)));
    // All that was ever kept is lost when this changes, and has to be when the meaning or bytes of a layer do.
    let pinned = [
        "d702b1259baf66385ebf7ab53b1c29bd9895b007e6a105e1b8edbcc2c6a5a949",
        "962c944186d0e04716c2a3a17ed49f8fc05453bc52ad175f8da4a7f64dcbf3b2",
        "bcee54a67e20f9e473092ae26f29e535d134bc2f833b2a39736e43780b8fa45e",
    ];
    assert_eq!(first.iter().flatten().map(String::as_str).collect::<Vec<_>>(), pinned);
}

#[test]
fn what_a_step_sees_makes_a_difference() {
    let variants = [
        "FROM alpine\nRUN make\n",
        "FROM alpine:3\nRUN make\n",
        "FROM scratch\nRUN make\n",
        "FROM alpine\nRUN [\"make\"]\n",
        "FROM alpine\nRUN mak e\n",
        "FROM alpine\nSHELL [\"/bin/bash\", \"-c\"]\nRUN make\n",
        "FROM alpine\nENV A=1\nRUN make\n",
        "FROM alpine\nARG B=1\nRUN make\n",
        "FROM alpine\nUSER 1\nRUN make\n",
        "FROM alpine\nRUN --network=none make\n",
        "FROM alpine\nRUN --mount=target=/x make\n",
        "FROM alpine\nRUN --mount=target=/x,source=y make\n",
        "FROM alpine\nRUN --mount=target=/x,rw make\n",
        "FROM alpine\nRUN --mount=type=cache,target=/x make\n",
        "FROM alpine\nRUN --mount=type=tmpfs,target=/x make\n",
        "FROM alpine\nRUN --mount=type=secret,id=x make\n",
        "FROM alpine\nRUN --mount=type=ssh make\n",
        "FROM alpine\nRUN --mount=from=tools,target=/x make\n",
        "FROM alpine\nRUN <<E\nmake\nE\n",
        "ARG SOURCE_DATE_EPOCH=1\nFROM alpine\nRUN make\n",
        "FROM alpine\nCOPY a /b\n",
        "FROM alpine\nCOPY a /c\n",
        "FROM alpine\nCOPY c /b\n",
        "FROM alpine\nCOPY a c /b/\n",
        "FROM alpine\nCOPY --chown=1 a /b\n",
        "FROM alpine\nCOPY --chmod=1 a /b\n",
        "FROM alpine\nCOPY --chmod=u=r a /b\n",
        "FROM alpine\nCOPY --link a /b\n",
        "FROM alpine\nCOPY --from=tools a /b\n",
        "FROM alpine\nCOPY --from=tools --exclude=x a /b\n",
        "FROM alpine\nCOPY --from=tools --parents a /b\n",
        "FROM alpine\nADD a /b\n",
        "FROM alpine\nADD https://x/y /b\n",
        "FROM alpine\nADD https://x/z /b\n",
        "FROM alpine\nADD --unpack=true https://x/y /b\n",
        "FROM alpine\nADD https://x/y.git /b\n",
        "FROM alpine\nCOPY <<a /b\nc\na\n",
        "FROM alpine\nCOPY <<a /b\nd\na\n",
        "FROM alpine\nWORKDIR /b\n",
        "FROM alpine\nUSER 1\nWORKDIR /b\n",
    ];
    let mut seen = BTreeMap::new();
    for text in variants {
        let key = keys(text).pop().flatten().expect("a key");
        if let Some(other) = seen.insert(key, text) {
            panic!("{text:?} and {other:?} have one key");
        }
    }
}

#[test]
fn what_a_step_does_not_see_makes_none() {
    let last = |text: &str| keys(text).pop().flatten().expect("a key");
    for (one, other) in [
        ("FROM alpine\nRUN make\n", "FROM alpine AS x\nLABEL a=b\nEXPOSE 1\nCMD y\nRUN make\n"),
        ("FROM alpine\nCOPY a /b\n", "FROM alpine\nENV A=1\nARG C=1\nUSER 7\nCOPY a /b\n"),
        (
            "FROM alpine\nRUN --mount=type=cache,target=/x make\n",
            "FROM alpine\nRUN --mount=type=cache,target=/x,id=z,sharing=locked make\n",
        ),
        ("FROM alpine\nCOPY a b\n", "FROM alpine\nCOPY a /b\n"),
        (
            "FROM alpine\nRUN make\nFROM scratch\nCOPY --from=0 /a /b\n",
            "FROM tools AS t\nRUN y\nFROM alpine AS z\nRUN make\nFROM scratch\nCOPY --from=z /a /b\nCOPY --from=t / /t\n",
        ),
    ] {
        if one.contains("--from=0") {
            assert_eq!(keys(one)[1], keys(other)[2], "{one:?} {other:?}");
        } else {
            assert_eq!(last(one), last(other), "{one:?} {other:?}");
        }
    }
}

#[test]
fn what_is_below_counts() {
    let last = |text: &str| keys(text).pop().flatten().expect("a key");
    for step in ["RUN make", "COPY a /b", "WORKDIR /w", "ADD https://x/y /b"] {
        let bases =
            ["FROM alpine", "FROM alpine:3", "FROM scratch", "FROM alpine\nRUN x", "FROM alpine\nRUN y"];
        let keys: std::collections::BTreeSet<_> =
            bases.iter().map(|base| last(&format!("{base}\n{step}\n"))).collect();
        assert_eq!(keys.len(), bases.len(), "{step}");
    }
    // A layer that is made on nothing is the same on all of them, and what follows is not.
    let linked = |base: &str| keys(&format!("{base}\nCOPY --link a /b\nRUN z\n"));
    let (one, other) = (linked("FROM alpine"), linked("FROM alpine:3"));
    assert_eq!((one[0] == other[0], one[1] == other[1]), (true, false));
}

#[test]
fn proxies_count_only_where_the_dockerfile_speaks_of_them() {
    let silent = "FROM alpine\nRUN make\n";
    let one = with_args(silent, &[("HTTP_PROXY", "http://a")]);
    assert_eq!(one, with_args(silent, &[("http_proxy", "http://b"), ("NO_PROXY", "c")]));
    assert_eq!(one, with_args(silent, &[]));
    let speaks = "FROM alpine\nARG HTTP_PROXY\nRUN make\n";
    assert_ne!(
        with_args(speaks, &[("HTTP_PROXY", "http://a")]),
        with_args(speaks, &[("HTTP_PROXY", "http://b")])
    );
}

#[test]
fn an_argument_counts_from_where_it_is_declared() {
    let text = "FROM alpine\nRUN one\nARG V\nCOPY a /b\nRUN two\n";
    let (one, two) = (with_args(text, &[("V", "1")]), with_args(text, &[("V", "2")]));
    assert_eq!(one[..2], two[..2]);
    assert_ne!(one[2], two[2]);
}

#[test]
fn other_files_other_downloads_and_other_settings_count() {
    let text = "FROM alpine\nCOPY a /b\nADD https://x/y /y\nRUN make\n";
    let of = |facts: &Fake, alike: &str| Keys::new(&plan(text), alike, facts).ops.concat();
    let first = of(&FACTS, "");
    let files = of(&Fake { context: "2", ..FACTS }, "");
    assert!(first.iter().zip(&files).all(|(a, b)| a != b), "all that follows stands on it");
    let download = of(&Fake { url: Some("e"), ..FACTS }, "");
    assert_eq!((first[0] == download[0], first[1] == download[1]), (true, false));
    let alike = of(&FACTS, "no network");
    assert_eq!((first[..2] == alike[..2], first[2] == alike[2]), (true, false));
}

#[test]
fn what_can_not_be_told_has_no_key_and_nothing_after_it_has() {
    let text = "FROM alpine\nRUN one\nCOPY missing /b\nRUN two\nFROM scratch\nCOPY --from=0 /b /\n";
    let known: Vec<bool> = keys(text).iter().map(Option::is_some).collect();
    assert_eq!(known, [true, false, false, false]);
    // A download that has a checksum need not be looked at.
    let text = "FROM alpine\nADD --checksum=sha256:0000000000000000000000000000000000000000000000000000000000000000 https://x/y /\nADD https://x/y /\n";
    let facts = Fake { url: None, ..FACTS };
    let known: Vec<bool> =
        Keys::new(&plan(text), "", &facts).ops.concat().iter().map(Option::is_some).collect();
    assert_eq!(known, [true, false]);
}
