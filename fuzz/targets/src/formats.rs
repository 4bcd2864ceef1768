//! References, journals and archives.

use kiln_api::reference::Reference;
use kiln_contract::call::{Call, Reply};
use kiln_contract::control::{Permit, Stop};
use kiln_contract::journal::{BuildState, Event, Line};
use kiln_contract::report::{MAX_REPORT, Outcome, Report};
use kiln_contract::request::BuildRequest;
use kiln_dockerfile::GitRef;
use kiln_registry::{ImageName, Platform, is_digest};

pub(crate) const REFERENCE_WORDS: &[&str] = &[
    "/",
    ":",
    "@",
    "@sha256:",
    ".",
    "..",
    "-",
    "__",
    "localhost",
    "docker.io/",
    "index.docker.io/",
    "[::1]",
    ":5000",
    "https://",
    "ssh://",
    "git@",
    ".git",
    "?",
    "#",
    "&",
    "ref=",
    "subdir=",
    "tag=",
    "%20",
    "%",
    "github.com/",
    "linux/",
    "/v8",
    "1h",
    "m",
    "s",
];

/// A name, as everything that takes one reads it: what is read and written is read the same again.
pub(crate) fn reference(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(found) = Reference::parse(&text) {
        let whole = found.to_string();
        assert_eq!(Reference::parse(&whole).ok(), Some(found), "{whole}");
    }
    if let Ok(found) = ImageName::parse(&text) {
        let whole = found.to_string();
        assert!(found.digest().is_none_or(is_digest), "{whole}");
        assert!(!whole.split('/').any(|part| part.is_empty() || part == ".."), "{whole}");
        assert_eq!(ImageName::parse(&whole).ok(), Some(found), "{whole}");
    }
    if let Ok(Some(found)) = GitRef::parse(&text) {
        // One of a query is as written, as with BuildKit; whoever uses it looks below the repository's root.
        let mut parts = found.subdir.iter().filter(|_| !text.contains('?')).flat_map(|dir| dir.split('/'));
        assert!(!parts.any(|part| part == ".."), "{found:?}");
        if let Ok(Some(again)) = GitRef::parse(&found.remote) {
            assert_eq!(again.remote, found.remote, "of {text:?}");
        }
    }
    if let Ok(found) = Platform::parse(&text) {
        assert_eq!(Platform::parse(&found.to_string()).ok(), Some(found), "{text:?}");
    }
    if let Ok(found) = kiln_api::duration::parse(&text) {
        let whole = kiln_api::duration::format(found.as_secs());
        assert_eq!(kiln_api::duration::parse(&whole).ok(), Some(found), "{whole}");
    }
}

pub(crate) const JOURNAL_WORDS: &[&str] = &[
    "\n",
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "1",
    "18446744073709551615",
    "-1",
    "1e9",
    "\"seq\":",
    "\"v\":1",
    "\"step\":",
    "{\"type\":\"checkpoint\",\"state\":",
    "\"steps\":[",
    "\"type\":\"planned\"",
    "\\u0000",
    "\"phase\":\"Running\"",
    "\"gap\":true",
];

/// Lines of a log: folding them twice is folding them once, and a checkpoint of the fold stands for it. Also all else that
/// the three programs tell each other.
pub(crate) fn journal(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<Line> = text.lines().filter_map(Line::parse).collect();
    let mut once = BuildState::default();
    for line in &lines {
        let before = once.seq;
        once.apply(line);
        assert!(once.seq >= before, "the number goes back");
    }
    let mut twice = once.clone();
    lines.iter().for_each(|line| twice.apply(line));
    assert_eq!(once, twice, "a log that is read again changes the state");
    // When the last line was written is no part of a checkpoint, which says it itself.
    once.at.clear();
    if let Some(seq) = once.seq.checked_add(1) {
        let event = Event::Checkpoint { state: Box::new(once.clone()) };
        let checkpoint = Line { v: kiln_contract::VERSION, seq, at: String::new(), event };
        let written = serde_json::to_string(&checkpoint).unwrap_or_default();
        let read = Line::parse(&written);
        assert_eq!(read.as_ref(), Some(&checkpoint), "a checkpoint does not read back: {written}");
        let mut late = BuildState::default();
        late.apply(&checkpoint);
        assert_eq!(late, BuildState { seq, gap: false, ..once.clone() }, "a checkpoint is not its state");
    }
    assert!(once.done() + once.running().len() <= once.steps.len(), "steps counted twice");

    for line in text.lines() {
        if let Ok(report) = serde_json::from_str::<Report>(line) {
            let bounded = report.attempt.len() <= 128
                && report.attempt.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
            if bounded && matches!(report.outcome, Outcome::Failed(_)) {
                let written = report.to_json();
                assert!(written.len() <= MAX_REPORT, "{} bytes of report", written.len());
                let fits = kiln_contract::reads(report.version);
                assert_eq!(Report::parse(&written, &report.attempt).is_some(), fits, "{written}");
            }
        }
        if let Ok(request) = BuildRequest::parse(line.as_bytes()) {
            let written = serde_json::to_vec(&request).unwrap_or_default();
            assert_eq!(BuildRequest::parse(&written).ok(), Some(request));
        }
        let _ = (serde_json::from_str::<Call>(line), serde_json::from_str::<Reply>(line));
        let _ = (serde_json::from_str::<Permit>(line), serde_json::from_str::<Stop>(line));
    }
}

pub(crate) const TAR_WORDS: &[&str] = &[
    "ustar\0",
    "ustar  \0",
    "\0\0\0\0\0\0\0\0",
    "30 mtime=1350244992.023960108\n",
    "12 path=a/b\n",
    "27 size=18446744073709551615\n",
    "../",
    "/",
    ".wh.",
    ".wh..wh..opq",
    "x",
    "L",
    "K",
    "g",
    "0000000\0",
    "7777777\0",
    "\x1f\u{8b}\x08",
    "BZh9",
    "PaxHeaders",
];

/// An archive, plain or compressed: every entry is read to its end, in bounds.
pub(crate) fn tar(bytes: &[u8]) {
    // A mutated header is nearly always one whose checksum is wrong; half of the inputs get it right.
    let mut fixed;
    let mut bytes = bytes;
    if bytes.len().is_multiple_of(2) {
        fixed = bytes.to_vec();
        for block in fixed.chunks_exact_mut(512).filter(|block| block.iter().any(|b| *b != 0)) {
            let sum: u32 = block
                .iter()
                .enumerate()
                .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) })
                .sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        bytes = &fixed;
    }
    if let Ok(found) = kiln_builder::tree::survey(bytes, MAX_UNPACKED) {
        assert!(found.entries <= found.bytes / 512 + 1, "{found:?}");
        assert!(found.longest_path <= 4096, "{found:?}");
    }
}

/// A megabyte of gzip holds a gigabyte of nothing, and reading that is no news.
const MAX_UNPACKED: u64 = 4 << 20;
