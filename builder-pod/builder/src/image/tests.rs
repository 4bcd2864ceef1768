//! Image configs: what a base hands down, and what comes out.

use kiln_contract::Descriptor;

use super::*;

fn id(n: u32) -> String {
    format!("sha256:{n:064x}")
}

fn resolved(config: &Value, layers: u32) -> ResolvedImage {
    let layer = |n| Descriptor { media_type: "m".into(), digest: id(100 + n), size: 1 };
    ResolvedImage {
        reference: "docker.io/library/base:latest".into(),
        pinned: format!("docker.io/library/base@{}", id(9)),
        digest: id(9),
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        config: config.to_string(),
        layers: (0..layers).map(layer).collect(),
    }
}

fn base() -> Value {
    json!({
        "architecture": "amd64", "os": "linux", "created": "2020-01-01T00:00:00Z", "author": "a",
        "docker_version": "1", "container": "c", "moby.buildkit.cache.v0": "x",
        "config": {
            "Env": ["A=1"], "Cmd": ["sh"], "Labels": null, "Volumes": null, "Hostname": "", "Custom": {"x": [1]},
            "OnBuild": null, "Healthcheck": {"Test": ["CMD", "x"], "Interval": 5},
        },
        "rootfs": {"type": "layers", "diff_ids": [id(1), id(2)]},
        "history": [{"created_by": "one", "created": "2020-01-01T00:00:00Z"}, {"created_by": "e", "empty_layer": true}],
    })
}

fn finished(image: &Image, diff_ids: &[String], labels: &[(&str, &str)]) -> Value {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let text = image.finish(
        diff_ids,
        &labels,
        &|step| format!("2026-01-01T00:00:{step:02}Z"),
        "2026-01-01T00:01:00Z",
    );
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_base_hands_down_its_config_and_not_how_it_was_made() {
    let mut image = Image::from_base(&resolved(&base(), 2), "linux/amd64").unwrap();
    image.commit(2, "RUN x # buildkit".into(), true);
    image.commit(3, "CMD []".into(), false);
    let out = finished(&image, &[id(3)], &[("l", "v")]);
    assert_eq!(
        out,
        json!({
            "architecture": "amd64", "os": "linux", "author": "a", "created": "2026-01-01T00:01:00Z",
            "config": {
                "Env": ["A=1", format!("PATH={DEFAULT_PATH}")], "Cmd": ["sh"], "Labels": {"l": "v"},
                "Hostname": "", "Custom": {"x": [1]}, "Healthcheck": {"Test": ["CMD", "x"], "Interval": 5},
            },
            "rootfs": {"type": "layers", "diff_ids": [id(1), id(2), id(3)]},
            "history": [
                {"created_by": "one", "created": "2020-01-01T00:00:00Z"},
                {"created_by": "e", "empty_layer": true},
                {"comment": "buildkit.exporter.image.v0"},
                {"created": "2026-01-01T00:00:02Z", "created_by": "RUN x # buildkit", "comment": "buildkit.dockerfile.v0"},
                {"created": "2026-01-01T00:00:03Z", "created_by": "CMD []", "comment": "buildkit.dockerfile.v0",
                 "empty_layer": true},
            ],
        })
    );
}

#[test]
fn the_bytes_are_the_same_each_time_and_sorted() {
    let image = Image::from_base(&resolved(&base(), 2), "linux/amd64").unwrap();
    let text = |image: &Image| image.finish(&[], &BTreeMap::new(), &|_| String::new(), "t");
    assert_eq!(text(&image), text(&image.clone()));
    assert!(text(&image).starts_with(r#"{"architecture":"amd64","author":"a","config":{"#));
}

#[test]
fn scratch_has_a_path_and_a_directory() {
    let out = finished(&Image::scratch("linux/arm/v7"), &[], &[]);
    assert_eq!(out["config"], json!({"Env": [format!("PATH={DEFAULT_PATH}")], "WorkingDir": "/"}));
    assert_eq!(
        (&out["os"], &out["architecture"], &out["variant"]),
        (&json!("linux"), &json!("arm"), &json!("v7"))
    );
    assert_eq!(out["rootfs"], json!({"type": "layers", "diff_ids": []}));
}

#[test]
fn a_history_that_tells_of_too_many_layers_is_dropped() {
    let mut config = base();
    config["rootfs"]["diff_ids"] = json!([id(1)]);
    config["history"] = json!([{"created_by": "one"}, {"created_by": "two"}]);
    let image = Image::from_base(&resolved(&config, 1), "linux/amd64").unwrap();
    assert_eq!(finished(&image, &[], &[])["history"], json!([{"comment": "buildkit.exporter.image.v0"}]));
}

#[test]
fn a_base_that_does_not_hold_together_is_refused() {
    let refused =
        |config: &Value, layers| Image::from_base(&resolved(config, layers), "linux/amd64").unwrap_err();
    assert!(refused(&base(), 1).problem.contains("names 2 layers, its manifest 1"));
    assert!(refused(&json!([]), 0).problem.contains("not an image config"));
    assert!(
        refused(&json!({"rootfs": {"diff_ids": ["sha256:../.."]}}), 1).problem.contains("no sha256 diff ID")
    );
    assert!(
        refused(&json!({"config": {"Env": "A"}, "rootfs": {}}), 0).problem.contains("not an image config")
    );
}

#[test]
fn environment_variables_keep_their_place() {
    let mut config = RunConfig { env: Some(vec!["A=1".into(), "AB=2".into()]), ..RunConfig::default() };
    config.set_env("A", "3");
    config.set_env("C", "=4");
    assert_eq!(config.env.as_deref().unwrap(), ["A=3", "AB=2", "C==4"]);
    assert_eq!((config.env("AB"), config.env("C"), config.env("B")), (Some("2"), Some("=4"), None));
}
