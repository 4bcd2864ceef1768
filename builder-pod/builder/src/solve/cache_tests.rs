//! Builds with a cache, over a fake engine and a fake courier.

use super::*;

#[test]
fn a_second_build_takes_all_and_makes_the_same_image() {
    let mut rig = Rig::with_cache();
    rig.build(SEED).unwrap();
    assert_eq!(rig.courier.notes.of(&["cache_put"]), ["cache_put output"; 2]);
    let first = rig.courier.committed.lock().unwrap().clone().unwrap();
    let mut rig = rig.again();
    rig.build(SEED).unwrap();
    assert_eq!(rig.courier.committed.lock().unwrap().clone().unwrap(), first);
    assert!(rig.engine.notes.all().is_empty(), "{:?}", rig.engine.notes.all());
    assert!(rig.courier.notes.of(&["read_blob", "put_blob", "cache_put"]).is_empty());
    assert_eq!(
        rig.courier.notes.of(&["event done", "event cached"]),
        ["event done 1", "event cached 2", "event cached 3", "event cached 4"]
    );
    assert_eq!(
        rig.log.0,
        [
            "Step 1/4 : FROM alpine",
            "---> 12",
            "Step 2/4 : RUN one",
            "cached",
            "---> 12",
            "Step 3/4 : RUN two",
            "cached",
            "---> 12",
            "Step 4/4 : CMD [\"x\"]",
            "cached",
            "---> 12",
            "Built",
            "tagged host/x:1"
        ]
    );
}

#[test]
fn what_runs_stands_on_what_is_unpacked_and_probing_goes_on() {
    let mut rig = Rig::with_cache();
    rig.build("FROM alpine\nRUN one\nRUN two\nRUN three\n").unwrap();
    // The second is lost.
    let lost = rig.courier.notes.of(&["cache_get"])[1].split_once(' ').unwrap().1.to_owned();
    let mut rig = rig.again();
    let gone = rig.courier.entries.lock().unwrap().remove(&lost).unwrap();
    let layer = rig.courier.blobs.lock().unwrap()[&gone.layer.digest].clone();
    let number = layer.trim_start_matches("layer s");
    rig.build("FROM alpine\nRUN one\nRUN two\nRUN three\n").unwrap();
    let ran = ["one", "two", "three"][number.parse::<usize>().unwrap() - 1];
    let runs = rig.engine.notes.of(&["run"]);
    assert!(runs.len() == 1 && runs[0].ends_with(ran), "{runs:?}");
    let (_, layers) = rig.courier.committed.lock().unwrap().clone().unwrap();
    assert_eq!(layers.len(), 5);
    assert_eq!(rig.courier.notes.of(&["cache_put"]), ["cache_put output"]);
}

#[test]
fn a_changed_last_step_pulls_what_is_below_it_once() {
    let mut rig = Rig::with_cache();
    rig.build("FROM alpine\nRUN one\nRUN two\nRUN three\n").unwrap();
    let mut rig = rig.again();
    rig.build("FROM alpine\nRUN one\nRUN two\nRUN other\n").unwrap();
    assert_eq!(rig.engine.notes.of(&["run"]), ["run b0-0,b0-1,c0-0,c0-1+s3 other"]);
    assert_eq!(rig.engine.notes.of(&["settle"]).last().unwrap(), "settle b0-0,b0-1,c0-0,c0-1");
    assert_eq!(rig.engine.notes.of(&["unpack c"]).len(), 2);
    assert!(rig.log.0.contains(&"not cached: the instruction changed".to_owned()));
}

const STAGES: &str = "FROM tools AS build\nCOPY src /src\nRUN make\nFROM alpine\nRUN setup\nCOPY --from=build /out /out\nCOPY a /a\n";

#[test]
fn stages_are_kept_and_skipped() {
    let mut rig = Rig::with_cache();
    rig.build(STAGES).unwrap();
    let mut puts = rig.courier.notes.of(&["cache_put"]);
    puts.sort();
    assert_eq!(
        puts,
        ["cache_put file", "cache_put file", "cache_put output", "cache_put output", "cache_put output"]
    );
    // Layers of the stage that is not part of the image never get to the output.
    assert_eq!(rig.courier.notes.of(&["put_blob"]).len(), 3);
    let mut rig = rig.again();
    rig.build(&STAGES.replace("COPY a /a", "COPY b /a")).unwrap();
    assert_eq!(rig.engine.notes.of(&["run"]), Vec::<String>::new());
    assert_eq!(rig.engine.notes.of(&["copy_"]), ["copy_stream s5 b -> /a"]);
    // The base of the image, and its two cached layers, are looked at; nothing of the stage.
    assert_eq!(rig.engine.notes.of(&["unpack", "index"]), Vec::<String>::new());
    assert_eq!(rig.engine.notes.of(&["skeleton"]).len(), 4);
    let read = rig.courier.notes.of(&["read_blob"]);
    assert_eq!(read.len(), 4, "indexes, {read:?}");
    assert_eq!(rig.courier.notes.of(&["cache_get"]).len(), 3 + 4 + 1, "steps, indexes, and the new layer's");
    let cached = rig.courier.notes.of(&["event cached"]);
    assert_eq!(cached, ["event cached 2", "event cached 3", "event cached 5", "event cached 6"]);
    let mut rig = rig.again();
    rig.build(&STAGES.replace("COPY src /src", "COPY other /src")).unwrap();
    assert_eq!(rig.engine.notes.of(&["run"]).len(), 1, "make, and not setup");
}

#[test]
fn an_entry_that_does_not_hold_is_made_anew_with_a_warning() {
    let mut rig = Rig::with_cache();
    rig.build(STAGES).unwrap();
    let mut rig = rig.again();
    // The bytes of every cached layer are others than they were.
    for text in rig.courier.blobs.lock().unwrap().values_mut() {
        text.push('!');
    }
    rig.build(&STAGES.replace("COPY a /a", "COPY b /a")).unwrap();
    let warnings =
        rig.log.0.iter().filter(|line| line.starts_with("warning: the cached result of step")).count();
    assert_eq!(warnings, 2, "{:#?}", rig.log.0);
    let runs = rig.engine.notes.of(&["run", "copy_tree"]);
    assert_eq!(runs.len(), 3, "setup, and make for what is copied: {runs:?}");
    let (config, layers) = rig.courier.committed.lock().unwrap().clone().unwrap();
    assert_eq!((layers.len(), config["rootfs"]["diff_ids"].as_array().unwrap().len()), (5, 5));
    // Layers and diff IDs go together.
    for (layer, diff_id) in layers.iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap()).skip(2) {
        let entries = rig.courier.entries.lock().unwrap();
        let entry = entries.values().find(|entry| entry.layer.digest == layer.digest).expect("kept");
        assert_eq!(diff_id, entry.diff_id.as_str());
    }
}

#[test]
fn a_cache_that_does_not_answer_is_done_without() {
    for call in ["cache_get", "cache_put"] {
        let mut rig = Rig::with_cache();
        rig.courier.fail.lock().unwrap().insert(call, registry_failure());
        rig.build(SEED).unwrap();
        assert_eq!(rig.engine.notes.of(&["run"]).len(), 2, "{call}");
        let warnings: Vec<_> = rig.log.0.iter().filter(|line| line.starts_with("warning:")).collect();
        assert!(
            warnings.len() == 1 && warnings[0].contains("registry.example does not answer"),
            "{warnings:?}"
        );
        if call == "cache_put" {
            assert!(warnings[0].contains("2 of 2 results"), "{warnings:?}");
        }
    }
}

#[test]
fn an_entry_whose_layer_the_output_does_not_get_is_none() {
    let mut rig = Rig::with_cache();
    rig.build("FROM scratch\nCOPY a /a\nRUN one\n").unwrap();
    let mut rig = rig.again();
    let gone = Failure::new(FailureClass::User, reason::BASE_IMAGE_INVALID, "there is no such blob");
    rig.courier.fail.lock().unwrap().insert("put_base_blob", gone);
    rig.build("FROM scratch\nCOPY a /a\nRUN one\n").unwrap();
    assert_eq!(rig.engine.notes.of(&["run", "copy"]).len(), 2);
    assert!(
        rig.log.0.iter().any(|line| line.contains("is not usable: there is no such blob")),
        "{:#?}",
        rig.log.0
    );
}

#[test]
fn downloads_are_made_once() {
    let text = "FROM scratch\nADD https://x/y /y\n";
    let mut rig = Rig::with_cache();
    rig.build(text).unwrap();
    assert_eq!(rig.courier.notes.of(&["fetch"]).len(), 1);
    let mut rig = rig.again();
    rig.build(text).unwrap();
    assert!(rig.engine.notes.all().is_empty());
}
