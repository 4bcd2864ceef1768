//! Tests of `validate`: what becomes a request, and what is refused with which words.

use super::*;
use kiln_api::v1alpha1;

fn config(more: &str) -> Config {
    Config::parse(&format!("builderImage: b\n{more}")).expect("it is good")
}

fn spec() -> ImageBuildSpec {
    ImageBuildSpec {
        output: v1alpha1::Output {
            image: "reg.x:5000/a".into(),
            tags: vec!["v1".into()],
            insecure: true,
            source_date_epoch: None,
        },
        ..ImageBuildSpec::default()
    }
}

fn files(list: &[(&str, &str)]) -> Dereferenced {
    let file = |(path, text): &(&str, &str)| File {
        path: (*path).to_owned(),
        content: Content::Text((*text).to_owned()),
    };
    Dereferenced::Files(list.iter().map(file).collect())
}

fn refused(spec: &ImageBuildSpec, found: &Dereferenced, config: &Config) -> Failure {
    match validate(spec, found, config).buildable {
        Buildable::No(failure) => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_good_object_becomes_a_request() {
    let desired =
        validate(&spec(), &files(&[("Dockerfile", "FROM scratch\n")]), &config("defaults: {timeout: 5m}"));
    assert_eq!((desired.timeout_seconds, desired.pod_ttl_seconds, desired.retries), (300, 86_400, 2));
    let Buildable::Yes(build) = &desired.buildable else { panic!("{desired:?}") };
    let (request, json) = build.request("u-1-1", desired.isolation, desired.timeout_seconds);
    assert_eq!(BuildRequest::parse(json.as_bytes()), Ok(request.clone()));
    assert_eq!(
        request.output,
        Output::Registry {
            references: vec!["reg.x:5000/a:latest".into(), "reg.x:5000/a:v1".into()],
            permit: true
        }
    );
    assert_eq!(request.registries.insecure, ["reg.x:5000"]);
    assert!(request.platform.starts_with("linux/"));
}

#[test]
fn an_epoch_is_a_build_argument() {
    let mut spec = spec();
    spec.output.source_date_epoch = Some(7);
    let found = files(&[("Dockerfile", "FROM scratch\n")]);
    let Buildable::Yes(build) = validate(&spec, &found, &config("")).buildable else {
        panic!("not buildable")
    };
    assert_eq!(build.args[EPOCH], "7");
    spec.args = vec![v1alpha1::BuildArg { name: EPOCH.into(), value: "8".into() }];
    assert!(refused(&spec, &found, &config("")).message.contains("sourceDateEpoch"));
}

#[test]
fn the_dockerfile_is_looked_for_where_the_spec_says() {
    let mut spec = spec();
    spec.context_dir = "./sub/".into();
    spec.dockerfile = "build//Dockerfile".into();
    let found = files(&[("sub/build/Dockerfile", "FROM scratch\n")]);
    assert!(matches!(validate(&spec, &found, &config("")).buildable, Buildable::Yes(_)));
    let failure = refused(&spec, &files(&[("Dockerfile", "")]), &config(""));
    assert_eq!(failure.reason, reason::DOCKERFILE_NOT_FOUND);
    assert!(failure.message.contains("sub/build/Dockerfile"), "{failure}");
}

#[test]
fn a_fault_in_the_dockerfile_is_named_with_its_line() {
    let failure = refused(&spec(), &files(&[("Dockerfile", "FROM scratch\nRUNN x\n")]), &config(""));
    assert_eq!((failure.reason.as_str(), failure.line), (reason::DOCKERFILE_INVALID, Some(2)));
    assert!(failure.to_string().starts_with("Dockerfile:2: "), "{failure}");
    assert!(failure.message.contains("did you mean RUN"), "{failure}");
}

#[test]
fn what_the_cluster_forbids_or_the_spec_garbles_is_refused() {
    let found = files(&[("Dockerfile", "FROM scratch\n")]);
    let mut spec = spec();
    spec.isolation = Some(v1alpha1::Isolation::HostRange);
    let failure = refused(&spec, &found, &config("allowedIsolations: [UserNamespace]"));
    assert_eq!(failure.class, FailureClass::Policy);
    spec.isolation = None;
    spec.timeout = Some("soon".into());
    assert!(refused(&spec, &found, &config("")).message.contains("spec.timeout"));
    spec.timeout = None;
    for ids in [&["../x"][..], &["a", "a"], &[""]] {
        let one = |id: &&str| v1alpha1::BuildSecret { id: (*id).into(), ..Default::default() };
        spec.secrets = ids.iter().map(one).collect();
        assert!(refused(&spec, &found, &config("")).message.contains("spec.secrets"), "{ids:?}");
    }
    spec.secrets.clear();
    spec.output.image = "A b".into();
    assert!(refused(&spec, &found, &config("")).message.contains("spec.output.image"));
}

#[test]
fn a_source_that_escapes_past_a_config_map_is_refused() {
    let quotes = "\"".repeat(600 << 10);
    let found = files(&[("Dockerfile", "FROM scratch\n"), ("q", &quotes)]);
    assert_eq!(refused(&spec(), &found, &config("")).reason, reason::SOURCE_INVALID);
}

#[test]
fn a_source_that_is_fetched_needs_the_image_for_it() {
    let mut spec = spec();
    let git = v1alpha1::GitSource { url: "https://h/a".into(), depth: 1, ..Default::default() };
    spec.source = v1alpha1::Source { git: Some(git), ..Default::default() };
    let remote = super::super::remote::read(&spec.source).expect("git").expect("good");
    let found = Dereferenced::Remote(Box::new(remote), false);
    let failure = refused(&spec, &found, &config(""));
    assert!(failure.reason == reason::NOT_SUPPORTED && failure.message.contains("sourceImage"), "{failure}");
    let desired = validate(&spec, &found, &config("sourceImage: s"));
    let Buildable::Yes(build) = &desired.buildable else { panic!("{desired:?}") };
    assert!(matches!(&build.source, Source::Git(git) if git.url == "https://h/a"));
    assert_eq!(desired.source, None, "known once it is fetched");
    spec.context_dir = "../x".into();
    assert_eq!(refused(&spec, &found, &config("sourceImage: s")).reason, reason::INVALID_SPEC);
}

#[test]
fn the_size_of_a_request_is_counted_to_the_byte() {
    let odd = "FROM scratch\n# \"quotes\" \\ \t \u{1} \u{7f} \u{e4} \u{1f980}\n";
    let found = files(&[("Dockerfile", odd), ("a \"b\"/c", "\r\n\0")]);
    let Buildable::Yes(build) = validate(&spec(), &found, &config("")).buildable else {
        panic!("not buildable")
    };
    assert_eq!(build.request_size(), build.request("", Isolation::UserNamespace, 0).1.len());
}

#[test]
fn a_request_may_have_all_that_is_allowed_and_no_byte_more() {
    let with = |length: usize| {
        let found = files(&[("Dockerfile", "FROM scratch\n"), ("f", &"x".repeat(length))]);
        validate(&spec(), &found, &config("")).buildable
    };
    let Buildable::Yes(empty) = with(0) else { panic!("not buildable") };
    let room = MAX_REQUEST - 256 - empty.request("", Isolation::UserNamespace, 0).1.len();
    let Buildable::Yes(full) = with(room) else { panic!("expected {room} bytes to fit") };
    // Whatever the attempt is called, the builder takes it.
    let (_, json) = full.request(&"a".repeat(128), Isolation::UserNamespace, i64::MAX);
    assert!(json.len() <= MAX_REQUEST && BuildRequest::parse(json.as_bytes()).is_ok(), "{}", json.len());
    let Buildable::No(failure) = with(room + 1) else { panic!("one byte too many is taken") };
    assert_eq!(failure.reason, reason::SOURCE_INVALID);
    assert!(failure.message.contains(&(MAX_REQUEST + 1).to_string()), "{failure}");
}
