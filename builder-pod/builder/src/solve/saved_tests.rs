//! What caches of steps hold, from build to build, over a fake engine and a fake courier.

use kiln_contract::cache::CacheEntry;

use super::*;
use crate::engine::CACHE_MOUNT;

const ONE: &str = "FROM alpine\nRUN --mount=type=cache,target=/c one\n";

/// A rig whose caches hold something when its build is over.
fn holding(what: &str) -> Rig {
    let mut rig = Rig { cache: true, ..Rig::default() };
    what.clone_into(&mut rig.engine.holds);
    rig
}

/// A later build elsewhere.
fn later(before: Rig, what: &str) -> Rig {
    before.courier.notes.clear();
    Rig { courier: before.courier, ..holding(what) }
}

/// What was done with caches.
fn done(rig: &Rig) -> Vec<String> {
    let mut all = rig.engine.notes.of(&["unpack k", "make_tree k", "remove k", "archive"]);
    all.extend(rig.courier.notes.of(&["keep_mount"]));
    all
}

fn told(rig: &Rig) -> Vec<&str> {
    let words = ["note: ", "warning: "];
    rig.log.0.iter().map(String::as_str).filter(|l| words.iter().any(|w| l.starts_with(w))).collect()
}

#[test]
fn a_later_build_finds_what_an_earlier_one_left() {
    let mut rig = holding("one");
    rig.build(ONE).unwrap();
    assert_eq!(done(&rig), ["make_tree k1 755 0:0", "archive k1", "keep_mount file"]);
    let looked = "note: The image is ready. Cache mounts are looked at: /c";
    assert!(told(&rig)[0] == looked && told(&rig)[1].ends_with(" bytes saved"), "{:?}", rig.log.0);
    let at = |words: &str| rig.log.0.iter().position(|line| line.starts_with(words)).unwrap();
    assert!(at("tagged") < at("note: The image is ready"), "{:?}", rig.log.0);

    // Another step, so that it runs, and what it leaves is what it found.
    let mut rig = later(rig, "one");
    rig.build("FROM alpine\nRUN --mount=type=cache,target=/c two\n").unwrap();
    assert_eq!(done(&rig), ["unpack k1 one", "archive k1"]);
    assert!(
        told(&rig)[0].starts_with("note: Cache mount /c: ") && told(&rig)[0].ends_with(" from the cache")
    );

    let mut rig = later(rig, "three");
    rig.build("FROM alpine\nRUN --mount=type=cache,target=/c three\n").unwrap();
    assert_eq!(done(&rig), ["unpack k1 one", "archive k1", "archive k1", "keep_mount file"]);

    let mut rig = later(rig, "");
    rig.build("FROM alpine\nRUN --mount=type=cache,target=/c four\n").unwrap();
    assert_eq!(done(&rig)[0], "unpack k1 three");

    // Where no step wants it, it is neither asked for nor saved.
    let mut rig = later(rig, "");
    rig.build("FROM alpine\nRUN --mount=type=cache,target=/c four\n").unwrap();
    assert!(done(&rig).is_empty() && told(&rig).is_empty(), "{:?} {:?}", done(&rig), rig.log.0);
}

#[test]
fn caches_are_apart_by_what_names_them() {
    let mut rig = holding("one");
    rig.build(ONE).unwrap();
    for mount in ["target=/d", "target=/c,uid=7", "target=/c,mode=0700"] {
        let mut rig = later(std::mem::take(&mut rig), "");
        rig.build(&format!("FROM alpine\nRUN --mount=type=cache,{mount} two\n")).unwrap();
        assert!(done(&rig)[0].starts_with("make_tree k1"), "{mount}: {:?}", done(&rig));
    }
}

#[test]
fn one_copy_of_a_cache_is_saved_and_none_over_files() {
    let mut rig = holding("one");
    rig.at_a_time = 2;
    rig.engine.meets = (vec!["one", "two"], std::time::Duration::from_secs(60));
    rig.build(
        "FROM alpine AS a\nRUN --mount=type=cache,target=/c,sharing=private one\n\
         FROM alpine AS b\nRUN --mount=type=cache,target=/c,sharing=private two\n\
         FROM alpine\nRUN --mount=type=cache,target=/d,from=a --mount=from=b,target=/b three\n",
    )
    .unwrap();
    assert_eq!(rig.engine.notes.of(&["make_tree k"]).len(), 2, "each has its own");
    assert_eq!(rig.engine.notes.of(&["archive"]).len(), 1);
    assert_eq!(rig.courier.notes.of(&["keep_mount"]).len(), 1);
}

#[test]
fn nothing_is_saved_of_a_build_that_fails_nor_without_a_cache_nor_beside_a_directory() {
    let mut rig = holding("one");
    rig.engine.codes.insert("two".into(), 1);
    rig.build("FROM alpine\nRUN --mount=type=cache,target=/c one\nRUN two\n").unwrap_err();
    assert_eq!(done(&rig), ["make_tree k1 755 0:0"]);

    let mut rig = Rig::default();
    "one".clone_into(&mut rig.engine.holds);
    rig.build(ONE).unwrap();
    assert!(rig.courier.notes.of(&["cache_get", "keep_mount"]).is_empty());
    assert_eq!(done(&rig), ["make_tree k1 755 0:0"]);

    let mut rig = holding("one");
    rig.engine.keeps_caches = true;
    rig.build(ONE).unwrap();
    assert_eq!(done(&rig), ["make_tree k1 755 0:0"]);
    assert!(told(&rig).is_empty());

    // There is nothing in it.
    let mut rig = holding("");
    rig.build(ONE).unwrap();
    assert!(rig.courier.notes.of(&["keep_mount"]).is_empty());
}

type Change = fn(&mut CacheEntry, &mut String);

/// What a first build has saved, changed by somebody.
fn damaged(change: Change) -> Rig {
    let mut rig = holding("one");
    rig.build(ONE).unwrap();
    for entry in rig.courier.entries.lock().unwrap().values_mut() {
        if entry.layer.media_type == CACHE_MOUNT {
            let mut blobs = rig.courier.blobs.lock().unwrap();
            let mut bytes = blobs[&entry.layer.digest].clone();
            change(entry, &mut bytes);
            blobs.insert(entry.layer.digest.clone(), bytes);
        }
    }
    later(rig, "two")
}

#[test]
fn what_is_damaged_is_left_aside_and_replaced() {
    let changes: [(&str, Change); 5] = [
        ("incomplete frame", |_, bytes| bytes.truncate(6)),
        ("does not hold together", |entry, _| entry.diff_id = id("other")),
        ("expected application/vnd.kiln.cache.mount", |entry, _| entry.layer.media_type = "x".into()),
        ("bytes, and at most", |entry, _| entry.layer.size = 3 << 30),
        ("no sha256 digest", |entry, _| entry.diff_id = "x".into()),
    ];
    for (words, change) in changes {
        let mut rig = damaged(change);
        rig.build("FROM alpine\nRUN --mount=type=cache,target=/c two\n").unwrap();
        let told = told(&rig);
        assert!(told[0].starts_with("warning: the cache mount /c begins empty: "), "{told:?}");
        assert!(told[0].contains(words), "{words}: {told:?}");
        assert_eq!(told.iter().filter(|line| line.starts_with("warning")).count(), 1, "{told:?}");
        let done = done(&rig);
        let last: Vec<_> = done.iter().map(String::as_str).rev().take(4).collect();
        assert_eq!(last, ["keep_mount file", "archive k1", "make_tree k1 755 0:0", "remove k1"], "{words}");
    }
}

#[test]
fn a_registry_that_fails_costs_a_warning() {
    let two = "FROM alpine\nRUN --mount=type=cache,target=/c --mount=type=cache,target=/d one\n";
    let mut rig = holding("one");
    rig.courier.fail.lock().unwrap().insert("keep_mount", registry_failure());
    rig.build(two).unwrap();
    let warnings: Vec<_> = told(&rig).into_iter().filter(|line| line.starts_with("warning")).collect();
    assert_eq!(warnings, ["warning: the cache mount /c was not saved: registry.example does not answer"]);
    assert!(rig.courier.committed.lock().unwrap().is_some());
    // Whatever the engine says.
    let mut rig = holding("one");
    let full = EngineError { kind: EngineErrorKind::Space, message: "no space".into() };
    rig.engine.fail.insert("archive", full);
    rig.build(two).unwrap();
    let warnings: Vec<_> = told(&rig).into_iter().filter(|line| line.starts_with("warning")).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[1].contains("/d was not saved: no space"), "{warnings:?}");
}
