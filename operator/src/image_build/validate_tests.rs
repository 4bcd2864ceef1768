//! Tests of `validate`: what becomes a request, and what is refused with which words.

use super::*;
use kiln_api::v1alpha1;
use serde_json::{Value, json};

fn config(more: &str) -> Config {
    Config::parse(&format!("builderImage: b\n{more}")).expect("it is good")
}

fn spec() -> ImageBuildSpec {
    ImageBuildSpec {
        output: v1alpha1::Output {
            image: "reg.x:5000/a".into(),
            tags: vec!["v1".into()],
            insecure: false,
            source_date_epoch: None,
            compression: None,
        },
        ..ImageBuildSpec::default()
    }
}

/// What becomes of an object `app` in a namespace `team-a` without policies.
fn validate(spec: &ImageBuildSpec, found: &Dereferenced, config: &Config) -> Desired {
    super::validate("app", spec, found, config, &Effective::of_settings(config, "team-a"))
}

/// The same under one policy of that spec.
fn under(policy: Value, spec: &ImageBuildSpec) -> Buildable {
    let config = config("");
    let policies =
        BTreeMap::from([("tenants".to_owned(), serde_json::from_value(policy).map_err(|e| e.to_string()))]);
    let policy = Effective::merge(&config, "team-a", &BTreeMap::new(), &policies);
    let found = files(&[("Dockerfile", "FROM alpine\n")]);
    super::validate("app", spec, &found, &config, &policy).buildable
}

fn built(policy: Value, spec: &ImageBuildSpec) -> Build {
    match under(policy, spec) {
        Buildable::Yes(build) => *build,
        other => panic!("{other:?}"),
    }
}

fn forbidden(policy: Value, spec: &ImageBuildSpec) -> Failure {
    match under(policy, spec) {
        Buildable::No(failure) => {
            assert_eq!(
                (failure.class, failure.reason.as_str()),
                (FailureClass::Policy, reason::POLICY_REFUSED)
            );
            failure
        }
        other => panic!("{other:?}"),
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
    assert!(!json.contains("policy"), "nothing is said where nothing holds: {json}");
    assert!(request.platform.starts_with("linux/"));
}

#[test]
fn results_are_kept_for_the_namespace_alone_where_images_may_go() {
    let mut spec = spec();
    let found = files(&[("Dockerfile", "FROM scratch\n")]);
    spec.cache = Some(v1alpha1::Cache { repository: Some("reg.x:5000/cache".into()), mounts: None });
    let Buildable::Yes(build) = validate(&spec, &found, &config("")).buildable else {
        panic!("not buildable")
    };
    let cache = build.request("u", Isolation::UserNamespace, 1).0.cache.expect("a cache");
    assert_eq!((cache.repository.as_str(), cache.scope.as_str()), ("reg.x:5000/cache", "team-a"));
    let shared = json!({"cache": {"scope": "Policy"}});
    let cache = built(shared, &spec).request("u", Isolation::UserNamespace, 1).0.cache.expect("a cache");
    assert_eq!((cache.repository.as_str(), cache.scope.as_str()), ("reg.x:5000/cache", "policy/tenants"));
    for (bad, words) in [("reg.x/cache:tag", "without a tag"), ("reg.x/Cache", "lower-case")] {
        spec.cache = Some(v1alpha1::Cache { repository: Some(bad.into()), mounts: None });
        let failure = refused(&spec, &found, &config(""));
        assert!(
            failure.message.contains("spec.cache.repository") && failure.message.contains(words),
            "{failure}"
        );
    }
    spec.cache = Some(v1alpha1::Cache { repository: Some("reg.y/cache".into()), mounts: None });
    let policy = json!({"output": {"allowedRepositories": ["reg.x:5000"]}});
    let failure = forbidden(policy, &spec);
    assert!(failure.message.contains("spec.cache.repository: BuildPolicy"), "{failure}");
}

#[test]
fn a_claim_needs_no_repository_and_leaves_a_policys_in_force() {
    let mut spec = spec();
    let found = files(&[("Dockerfile", "FROM scratch\n")]);
    let mounts = v1alpha1::CacheMounts { claim_name: "caches".into() };
    spec.cache = Some(v1alpha1::Cache { repository: None, mounts: Some(mounts) });
    let Buildable::Yes(build) = validate(&spec, &found, &config("")).buildable else {
        panic!("not buildable")
    };
    assert_eq!((build.cache_claim.as_deref(), &build.cache), (Some("caches"), &None));
    let mut policy = Effective::of_settings(&config(""), "team-a");
    policy.cache = Some("reg.x:5000/all".into());
    let cache = check::cache(&spec, &policy).expect("it is allowed").expect("the policy's");
    assert_eq!(cache.repository, "reg.x:5000/all");
}

#[test]
fn layers_are_compressed_as_the_object_says() {
    let mut spec = spec();
    let found = files(&[("Dockerfile", "FROM scratch\n")]);
    for (said, compression) in [
        (None, Compression::Gzip),
        (Some(v1alpha1::Compression::Gzip), Compression::Gzip),
        (Some(v1alpha1::Compression::Zstd), Compression::Zstd),
    ] {
        spec.output.compression = said;
        let Buildable::Yes(build) = validate(&spec, &found, &config("")).buildable else {
            panic!("not buildable")
        };
        let request = build.request_of(build.source.clone(), "a", Isolation::HostRange, 1);
        assert_eq!(request.compression, compression, "{said:?}");
    }
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

#[test]
fn a_policy_refuses_by_its_name_and_field() {
    let with = |change: fn(&mut ImageBuildSpec)| {
        let mut spec = spec();
        change(&mut spec);
        spec
    };
    let limits =
        |memory: &str| serde_json::from_value(json!({"limits": {"memory": memory}})).expect("limits");
    let mut greedy = spec();
    greedy.resources = Some(limits("4Gi"));
    for (policy, spec, words) in [
        (
            json!({"output": {"allowedRepositories": ["r.x/{namespace}/*", "r.x/shared"]}}),
            spec(),
            "spec.output.image: BuildPolicy tenants: spec.output.allowedRepositories allows r.x/team-a/*, r.x/shared, found reg.x:5000/a; push to",
        ),
        (
            json!({"isolation": {"allowed": ["UserNamespace"]}}),
            with(|s| s.isolation = Some(v1alpha1::Isolation::HostRange)),
            "spec.isolation: BuildPolicy tenants: spec.isolation.allowed allows UserNamespace, found HostRange",
        ),
        (
            json!({"timeout": {"maximum": "90s"}}),
            with(|s| s.timeout = Some("2m".into())),
            "spec.timeout: BuildPolicy tenants: spec.timeout.maximum allows 1m30s, found 2m",
        ),
        (
            json!({"resources": {"maximum": {"memory": "2Gi"}}}),
            greedy,
            "spec.resources.limits.memory: BuildPolicy tenants: spec.resources.maximum.memory allows 2Gi, found 4Gi",
        ),
        (
            json!({"baseImages": {"allowedRepositories": ["r.x"]}}),
            spec(),
            "the base image alpine: BuildPolicy tenants: spec.baseImages.allowedRepositories allows r.x, found docker.io/library/alpine",
        ),
        (
            json!({}),
            with(|s| s.output.insecure = true),
            "spec.output.insecure: no BuildPolicy of this namespace allows plain HTTP (spec.output.allowInsecure)",
        ),
        (
            json!({"output": {"allowInsecure": false}}),
            with(|s| s.output.insecure = true),
            "spec.output.insecure: BuildPolicy tenants: spec.output.allowInsecure is false",
        ),
        (
            json!({"unknown": 1}),
            spec(),
            "BuildPolicy tenants can't be read by this operator: unknown field `unknown`",
        ),
    ] {
        let failure = forbidden(policy, &spec);
        assert!(failure.message.starts_with(words), "{failure}");
    }
    let base = forbidden(json!({"baseImages": {"allowedRepositories": ["r.x"]}}), &spec());
    assert_eq!((base.file.as_deref(), base.line), (Some("Dockerfile"), Some(1)));
}

#[test]
fn a_policy_gives_what_the_build_does_not_ask_for() {
    let policy = json!({
        "output": {"allowedRepositories": ["r.x/{namespace}/*"], "template": "r.x/{namespace}/{name}:1", "allowInsecure": true},
        "baseImages": {"allowedRepositories": ["docker.io/library/*"]},
        "entitlements": ["network.host"],
        "proxy": {"http": "http://p:3128", "https": "http://p:3128", "noProxy": [".svc", "10.0.0.0/8"]},
        "caBundle": "PEM",
    });
    let mut spec = spec();
    spec.output.image.clear();
    spec.output.insecure = true;
    let build = built(policy.clone(), &spec);
    assert_eq!(build.references, ["r.x/team-a/app:1", "r.x/team-a/app:v1"]);
    assert_eq!(build.registries.insecure, ["r.x"]);
    let request = build.request("a", Isolation::UserNamespace, 1).0;
    assert_eq!(request.entitlements, ["network.host"]);
    assert_eq!(request.policy.base_images[0].repositories, ["docker.io/library/*"]);
    assert_eq!(request.policy.network.ca_bundle.as_deref(), Some("PEM\n"));
    assert_eq!(request.args["https_proxy"], "http://p:3128");
    assert_eq!(request.args["no_proxy"], ".svc,10.0.0.0/8");
    // The author's word for RUN wins, in whatever case; registries and sources are the platform's business.
    spec.args = vec![v1alpha1::BuildArg { name: "HTTP_PROXY".into(), value: "mine".into() }];
    let build = built(policy, &spec);
    assert_eq!(
        (build.args.get("HTTP_PROXY").map(String::as_str), build.args.get("http_proxy")),
        (Some("mine"), None)
    );
    assert!(build.args.contains_key("https_proxy"));
    let proxy = build.policy.network.proxy.expect("a proxy");
    assert_eq!(proxy.http.as_deref(), Some("http://p:3128"));
    // Without a template somebody has to say it.
    let Buildable::No(failure) = under(json!({}), &spec) else { panic!("it goes nowhere") };
    assert!(
        failure.reason == reason::INVALID_SPEC && failure.message.contains("spec.output.template"),
        "{failure}"
    );
}

#[test]
fn policies_are_no_part_of_the_input() {
    let config = config("");
    let found = files(&[("Dockerfile", "FROM alpine\n")]);
    let digest = |policy: Value| {
        let read = serde_json::from_value(policy).map_err(|e| e.to_string());
        let policies = BTreeMap::from([("p".to_owned(), read)]);
        let policy = Effective::merge(&config, "a", &BTreeMap::new(), &policies);
        let desired = super::validate("app", &spec(), &found, &config, &policy);
        (desired.input_digest, desired.policy.digest)
    };
    let one = digest(json!({"proxy": {"http": "http://a"}, "timeout": {"default": "1m"}}));
    let other = digest(json!({"output": {"allowedRepositories": []}}));
    assert_eq!(one.0, other.0, "a policy that changes builds nothing");
    assert_ne!(one.1, other.1, "and is noticed where it refused");
}
