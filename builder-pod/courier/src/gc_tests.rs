//! What goes and what stays.

use kiln_registry::Blob;

use super::*;

const DAY: i64 = 24 * 3600;

fn at(day: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + day * DAY).expect("a time")
}

/// An entry of that day whose layer, of that name, has so many bytes.
fn entry(tag: &str, day: i64, layer: &str, size: u64) -> Kept {
    let layer = Blob { media_type: "m".into(), digest: format!("sha256:{layer}"), size };
    Kept {
        tag: tag.into(),
        digest: format!("sha256:of-{tag}"),
        kind: KeptKind::Entry,
        created: at(day).to_string(),
        layer: Some(layer),
    }
}

fn record(tag: &str, day: i64, wants: &[&str]) -> Kept {
    let wants = wants.iter().map(|tag| (*tag).to_owned()).collect();
    Kept { kind: KeptKind::Record(wants), layer: None, ..entry(tag, day, "", 0) }
}

/// Tags that go on day 100, in order.
fn gone(all: &[Kept], max_age: Option<i64>, max_size: Option<u64>) -> (Vec<String>, u64) {
    let limits = Limits { max_age: max_age.map(|days| SignedDuration::from_secs(days * DAY)), max_size };
    let swept = choose(all, 0, limits, at(100));
    (swept.removed.into_iter().map(|(kept, ..)| kept.tag).collect(), swept.left)
}

fn tags(all: &[&str]) -> Vec<String> {
    all.iter().map(|tag| (*tag).to_owned()).collect()
}

#[test]
fn age_counts_from_the_last_build_that_wanted_it() {
    let all = [
        entry("old", 10, "a", 1),
        entry("wanted", 10, "b", 2),
        entry("fresh", 95, "c", 4),
        record("last", 99, &["wanted", "gone"]),
        record("forgotten", 10, &["old"]),
    ];
    assert_eq!(gone(&all, Some(30), None), (tags(&["forgotten", "old"]), 6));
    assert_eq!(gone(&all, None, None), (vec![], 7), "without limits nothing goes");
    assert_eq!(gone(&all, Some(91), None), (vec![], 7));
    // To the day: what is just as old as allowed stays.
    assert_eq!(gone(&all[..1], Some(90), None), (vec![], 1));
    assert_eq!(gone(&all[..1], Some(89), None), (tags(&["old"]), 0));
}

#[test]
fn of_what_is_too_much_the_longest_unused_goes_first() {
    let all = [
        entry("b", 20, "b", 10),
        entry("a", 10, "a", 10),
        entry("c", 30, "c", 10),
        record("r", 90, &["a"]),
        record("s", 5, &[]),
    ];
    assert_eq!(gone(&all, None, Some(30)), (vec![], 30));
    assert_eq!(gone(&all, None, Some(29)), (tags(&["b"]), 20), "a build wanted a later");
    assert_eq!(gone(&all, None, Some(10)), (tags(&["b", "c"]), 10));
    assert_eq!(gone(&all, None, Some(0)), (tags(&["b", "c", "a"]), 0), "records weigh nothing and stay");
    // What goes by age makes room.
    assert_eq!(gone(&all, Some(75), Some(20)), (tags(&["s", "b"]), 20));
}

#[test]
fn a_layer_that_others_keep_as_well_is_counted_once_and_wins_nothing() {
    let all = [entry("a", 1, "same", 10), entry("b", 2, "same", 10), entry("c", 3, "other", 5)];
    assert_eq!(gone(&all, None, Some(15)), (vec![], 15));
    assert_eq!(gone(&all, None, Some(14)), (tags(&["a", "b"]), 5), "both, for one alone frees nothing");
}

#[test]
fn what_has_no_time_is_old_and_what_is_of_the_future_is_of_now() {
    let timeless = Kept { created: "yesterday".into(), ..entry("a", 1, "a", 1) };
    assert_eq!(gone(&[timeless], Some(1000), None).0, tags(&["a"]));
    assert_eq!(gone(&[entry("a", 900, "a", 1)], Some(1), None).0, Vec::<String>::new());
    let limits = Limits { max_age: None, max_size: Some(0) };
    let swept = choose(&[entry("a", 900, "a", 1)], 0, limits, at(100));
    assert_eq!(swept.removed[0].1, at(100));
}

#[test]
fn the_table_says_what_and_why() {
    let all = [entry(&"0a".repeat(32), 10, "a", 3 << 20), record(&"0b".repeat(32), 10, &[])];
    let limits = Limits { max_age: Some(SignedDuration::from_secs(DAY)), max_size: None };
    let swept = choose(&all, 2, limits, at(100));
    assert_eq!(
        swept.shown("r.x/cache", at(100), true),
        "TAG           KIND          SIZE      UNUSED  WHY\n\
         0a0a0a0a0a0a  result     3.0 MiB        90 d  age\n\
         0b0b0b0b0b0b  record           -        90 d  age\n\
         r.x/cache: would remove 2 of 2; layers 3.0 MiB before, 0 B after; 2 other tags left alone\n"
    );
    let nothing = choose(&[], 0, limits, at(0)).shown("r.x/cache", at(0), false);
    assert_eq!(nothing, "r.x/cache: removed 0 of 0; layers 0 B before, 0 B after; 0 other tags left alone\n");
}

#[test]
fn limits_are_read_as_people_write_them() {
    for (text, seconds) in [("14d", 14 * DAY), ("36h", 36 * 3600), ("1h30m", 5400), ("90s", 90)] {
        assert_eq!(parse_age(text), Ok(SignedDuration::from_secs(seconds)), "{text}");
    }
    for bad in ["", "0h", "14", "d", "1w", "-1h", "99999999999999999d", "1.5h"] {
        assert!(parse_age(bad).is_err(), "{bad}");
    }
    let sizes = [("0", 0), ("20Gi", 20 << 30), ("20GiB", 20 << 30), ("500M", 500_000_000), ("1kB", 1000)];
    for (text, bytes) in sizes {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
    for bad in ["", "Gi", "1.5Gi", "-1", "1Xi", "99999999999Ti"] {
        assert!(parse_size(bad).is_err(), "{bad}");
    }
}
