//! Plans of whole Dockerfiles. Expected texts and configs are those of BuildKit.

use std::cell::RefCell;
use std::collections::BTreeMap;

use kiln_contract::image::ResolvedImage;
use kiln_contract::request::NamedContext;
use kiln_contract::{Descriptor, reason};
use kiln_dockerfile::lint::Findings;
use kiln_dockerfile::{Dockerfile, IgnoreFile};
use serde_json::{Value, json};

use super::*;
use crate::chmod::Chmod;

mod warnings;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn id(n: usize) -> String {
    format!("sha256:{n:064x}")
}

/// Every image has two layers, and a config of its own where the name says so.
fn resolve(reference: &str) -> ResolvedImage {
    let config = match reference {
        "conf" => json!({"Env": [PATH, "ONE=1"], "Cmd": ["base"], "Entrypoint": ["/e"], "WorkingDir": "/srv",
                         "User": "daemon", "Shell": ["/bin/ash", "-ec"], "Labels": {"a": "base"}}),
        "onbuild" => json!({"Env": [PATH], "OnBuild": ["COPY . /src", "RUN make", "ENV DONE=1"]}),
        "onbuild-from" => json!({"OnBuild": ["COPY --from=elsewhere /x /y"]}),
        "onbuild-mount" => json!({"OnBuild": ["RUN --mount=from=elsewhere,target=/m true"]}),
        "onbuild-bad" => json!({"OnBuild": ["RUN --network=host true"]}),
        _ => json!({"Env": [PATH], "Cmd": ["sh"]}),
    };
    let config = json!({"os": "linux", "architecture": "amd64", "config": config,
                        "rootfs": {"type": "layers", "diff_ids": [id(1), id(2)]}, "history": []});
    let layer = |n| Descriptor { media_type: "m".into(), digest: id(n), size: 1 };
    ResolvedImage {
        reference: reference.into(),
        pinned: format!("pinned/{}", reference.trim_end_matches(":again")),
        digest: id(9),
        media_type: "m".into(),
        config: config.to_string(),
        layers: vec![layer(3), layer(4)],
    }
}

fn plan_with(text: &str, stage: Option<&str>, args: &[(&str, &str)]) -> Result<Plan, PlanError> {
    plan_noting(text, stage, args, &RefCell::default())
}

fn plan_noting(
    text: &str,
    stage: Option<&str>,
    args: &[(&str, &str)],
    found: &RefCell<Findings>,
) -> Result<Plan, PlanError> {
    let file = Dockerfile::parse(text.as_bytes()).unwrap();
    let args: BTreeMap<String, String> =
        args.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let syntax = kiln_dockerfile::directives::detect_syntax(text.as_bytes());
    let contexts = BTreeMap::from([
        ("dir".to_owned(), NamedContext::Directory("/d".to_owned())),
        ("other".to_owned(), NamedContext::Image("conf".to_owned())),
    ]);
    let ignore = IgnoreFile::parse("secret\n").unwrap();
    let target = Target {
        platform: "linux/amd64",
        machine: "linux/amd64",
        stage,
        args: &args,
        contexts: &contexts,
        entitlements: &[],
    };
    let images = |outline: &Outline<'_>| -> Vec<ResolvedImage> {
        outline.images().iter().map(|image| resolve(&image.reference)).collect()
    };
    let outline = Outline::new(&file, syntax.as_deref(), target)?;
    let triggers = outline.triggers(&images(&outline));
    let outline = Outline::with_triggers(&file, syntax.as_deref(), target, &triggers)?;
    let check = check(&file, &args)?;
    let lint = Lint { check: &check, ignore: &ignore, found };
    outline.plan(&images(&outline), lint)
}

fn plan(text: &str) -> Plan {
    plan_with(text, None, &[]).unwrap()
}

fn refused(text: &str) -> (&'static str, Option<u32>, String) {
    let error = plan_with(text, None, &[]).unwrap_err();
    (error.reason, error.line, error.message)
}

/// The final image's `config` and the texts of its history, `-` in front of those without a layer.
fn image(plan: &Plan) -> (Value, Vec<String>) {
    let stage = plan.stages.last().unwrap();
    let text = stage.image.finish(&[], &BTreeMap::new(), &|_| "t".into(), "t");
    let config: Value = serde_json::from_str(&text).unwrap();
    let history = stage.image.entries().iter();
    let history = history.map(|e| format!("{}{}", if e.empty_layer { "-" } else { "" }, e.created_by));
    (config["config"].clone(), history.collect())
}

fn history(text: &str) -> Vec<String> {
    image(&plan(text)).1
}

#[test]
fn the_seed_has_four_steps_and_two_layers() {
    let plan =
        plan("FROM alpine\nRUN apk add --update redis\nRUN apk add --update gcc\nCMD [\"redis-server\"]\n");
    let texts: Vec<_> = plan.steps.iter().map(|s| (s.line, s.stage.as_str(), s.text.as_str())).collect();
    assert_eq!(
        texts,
        [
            (1, "0", "FROM alpine"),
            (2, "0", "RUN apk add --update redis"),
            (3, "0", "RUN apk add --update gcc"),
            (4, "0", "CMD [\"redis-server\"]"),
        ]
    );
    let stage = &plan.stages[0];
    assert_eq!((stage.steps.clone(), stage.base, stage.ops.len()), (1..=4, Base::Image(0), 2));
    assert!(stage.publish);
    let Action::Run { argv, cwd, user, env, network, .. } = &stage.ops[0].action else { panic!() };
    assert_eq!(argv, &["/bin/sh", "-c", "apk add --update redis"]);
    assert_eq!(
        (cwd.as_str(), user.as_str(), env.as_slice(), network),
        ("/", "0", &[PATH.to_owned()][..], &true)
    );
    let (config, history) = image(&plan);
    assert_eq!(config, json!({"Env": [PATH], "Cmd": ["redis-server"], "ArgsEscaped": true}));
    assert_eq!(
        history,
        [
            "RUN /bin/sh -c apk add --update redis # buildkit",
            "RUN /bin/sh -c apk add --update gcc # buildkit",
            "-CMD [\"redis-server\"]",
        ]
    );
}

#[test]
fn only_what_the_target_needs_is_planned() {
    let text = "ARG V=1\nFROM a AS one\nRUN 1\nFROM b AS two\nRUN 2\nFROM c\nCOPY --from=ONE /x /\nFROM d AS last\nCOPY --from=2 /x /y\n";
    let plan_of = |stage| {
        let plan = plan_with(text, stage, &[]).unwrap();
        let names: Vec<_> = plan.stages.iter().map(|s| s.name.clone()).collect();
        let images: Vec<_> = plan.images.iter().map(|i| i.resolved.reference.clone()).collect();
        (names, images, plan)
    };
    let (names, images, plan) = plan_of(None);
    assert_eq!((names.join(" "), images.join(" ")), ("one 2 last".into(), "a c d".into()));
    assert_eq!(plan.steps[0].text, "ARG V=1");
    assert_eq!(plan.stages.iter().map(|s| s.steps.clone()).collect::<Vec<_>>(), [2..=3, 4..=5, 6..=7]);
    assert_eq!(plan.stages.iter().map(|s| s.publish).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(plan_of(Some("TWO")).0, ["two"]);
    let error = plan_with(text, Some("lsat"), &[]).unwrap_err();
    assert_eq!((error.reason, error.line), (reason::NOT_FOUND, None));
    assert!(error.message.contains("did you mean last?"), "{}", error.message);
    assert!(plan_with(text, Some("1"), &[]).is_err(), "a target is a name, not a number");
}

#[test]
fn stages_build_on_stages() {
    let plan = plan("FROM a AS base\nENV A=1\nARG B=2\nFROM base AS mid\nRUN x\nFROM mid\nCMD y\n");
    assert_eq!(plan.stages[2].base, Base::Stage(1));
    assert!(plan.stages.iter().all(|s| s.publish));
    let Action::Run { env, .. } = &plan.stages[1].ops[0].action else { panic!() };
    assert_eq!(env, &[PATH, "A=1", "B=2"]);
    let copied = self::plan("FROM a AS s\nFROM b\nFROM scratch\nCOPY --from=s /x /\nCOPY --from=img /y /\n");
    let images: Vec<_> = copied.images.iter().map(|i| i.resolved.reference.as_str()).collect();
    assert_eq!(images, ["a", "img"]);
    assert!(matches!(copied.stages[1].ops[1].action, Action::Copy { from: CopyFrom::Image(1), .. }));
}

#[test]
fn one_manifest_under_two_names_is_one_image() {
    let plan = plan("FROM a AS x\nRUN 1\nFROM a:again\nCOPY --from=x / /\n");
    assert_eq!(plan.images.len(), 1);
    assert_eq!(plan.stages[1].base, Base::Image(0));
}

#[test]
fn arguments_and_environment() {
    // Each line: build arguments, Dockerfile, texts of the history.
    type Case = (&'static [(&'static str, &'static str)], &'static str, &'static [&'static str]);
    let cases: &[Case] = &[
        (
            &[("A", "cli")],
            "FROM b\nARG A=arg\nENV A=env\nRUN x",
            &["-ARG A=cli", "-ENV A=env", "RUN |1 A=env /bin/sh -c x # buildkit"],
        ),
        (
            &[("A", "cli")],
            "FROM b\nENV A=env\nARG A=arg\nENV B=$A",
            &["-ENV A=env", "-ARG A=cli", "-ENV B=cli"],
        ),
        (
            &[],
            "ARG G=g\nFROM b\nRUN x\nARG G\nRUN y",
            &["RUN /bin/sh -c x # buildkit", "-ARG G=g", "RUN |1 G=g /bin/sh -c y # buildkit"],
        ),
        (
            &[("B", "over"), ("U", "x")],
            "FROM b\nARG A=def B\nARG C\nRUN x",
            &["-ARG A=def B=over", "-ARG C", "RUN |3 A=def B=over C= /bin/sh -c x # buildkit"],
        ),
        (
            &[],
            "FROM b\nENV abc=hello\nENV abc=bye def=$abc\nENV ghi=$abc",
            &["-ENV abc=hello", "-ENV abc=bye def=hello", "-ENV ghi=bye"],
        ),
        (
            &[],
            "FROM b\nARG A=\"a b\" B='c d'\nRUN [\"e\",\"$A\"]",
            &["-ARG A=a b B=c d", "RUN |2 A=a b B=c d e $A # buildkit"],
        ),
        (&[], "FROM conf\nLABEL v=$ONE s='$ONE'", &["-LABEL v=1 s=$ONE"]),
        (
            &[("TARGETARCH", "x")],
            "FROM b\nARG TARGETARCH TARGETOS BUILDPLATFORM TARGETVARIANT",
            &["-ARG TARGETARCH=x TARGETOS=linux BUILDPLATFORM=linux/amd64 TARGETVARIANT="],
        ),
        (&[("http_proxy", "p")], "FROM b\nRUN x", &["RUN /bin/sh -c x # buildkit"]),
    ];
    for (args, text, expected) in cases {
        let plan = plan_with(text, None, args).unwrap();
        assert_eq!(image(&plan).1, *expected, "{text}");
    }
    let proxied = plan_with("FROM b\nENV HTTP_PROXY=mine\nRUN x", None, &[("http_proxy", "p")]).unwrap();
    let Action::Run { env, .. } = &proxied.stages[0].ops[0].action else { panic!() };
    assert_eq!(env, &["HTTP_PROXY=mine", "http_proxy=p", PATH]);
    let unused =
        plan_with("ARG V\nFROM b\nARG X", None, &[("V", ""), ("X", ""), ("Y", ""), ("no_proxy", "")])
            .unwrap();
    assert_eq!(unused.unused_args, ["Y"]);
}

#[test]
fn every_instruction_has_its_text() {
    let text = r#"FROM busybox
WORKDIR /w
WORKDIR sub
WORKDIR /
USER 5
EXPOSE 80 443
EXPOSE 7000-7001/udp
VOLUME /v /u
STOPSIGNAL 9
SHELL ["/bin/ash","-c"]
CMD ["c","d e"]
ENTRYPOINT e f
HEALTHCHECK --interval=5m --retries=4 CMD h
ONBUILD RUN o
MAINTAINER m
COPY --chown=1:2 --chmod=644 a.txt sub /z/
ADD b.tar /b
RUN ["true","x"]
"#;
    let (config, history) = image(&plan(text));
    assert_eq!(
        history,
        [
            "WORKDIR /w",
            "WORKDIR /w/sub",
            "-WORKDIR /",
            "-USER 5",
            "-EXPOSE [443/tcp 80/tcp]",
            "-EXPOSE [7000/udp 7001/udp]",
            "-VOLUME [/v /u]",
            "-STOPSIGNAL 9",
            "-SHELL [/bin/ash -c]",
            "-CMD [\"c\" \"d e\"]",
            "-ENTRYPOINT [\"/bin/ash\" \"-c\" \"e f\"]",
            "-HEALTHCHECK {Test:[CMD-SHELL h] Interval:5m0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:4}",
            "-MAINTAINER m",
            "COPY --chown=1:2 --chmod=644 a.txt sub /z/ # buildkit",
            "ADD b.tar /b # buildkit",
            "RUN true x # buildkit",
        ]
    );
    assert_eq!(
        config,
        json!({
            "User": "5", "WorkingDir": "/", "Env": [PATH], "Cmd": ["c", "d e"], "ArgsEscaped": true,
            "Entrypoint": ["/bin/ash", "-c", "e f"], "Shell": ["/bin/ash", "-c"], "StopSignal": "9",
            "ExposedPorts": {"443/tcp": {}, "80/tcp": {}, "7000/udp": {}, "7001/udp": {}},
            "Volumes": {"/u": {}, "/v": {}}, "OnBuild": ["RUN o"],
            "Healthcheck": {"Test": ["CMD-SHELL", "h"], "Interval": 300_000_000_000_i64, "Retries": 4},
        })
    );
}

#[test]
fn documents_flags_and_their_text() {
    let text = "FROM a\nENV V=w\nRUN cat <<E\n$V\nE\nCOPY --link --parents --exclude=*.o x <<\"F\" <<G /d/\n$V\nF\n$V\nG\n\
                ADD --link --chmod=go=u --keep-git-dir=true y z\n";
    let plan = plan(text);
    let Action::Run { argv, script, .. } = &plan.stages[0].ops[0].action else { panic!() };
    assert_eq!((argv[2].as_str(), script), ("cat <<E\n$V\nE", &None));
    let Action::Copy { items, link, unpack, .. } = &plan.stages[0].ops[1].action else { panic!() };
    let [Item::Files(files), Item::Inline(raw), Item::Inline(expanded)] = items.as_slice() else { panic!() };
    assert_eq!(
        (files.parents, files.excludes.as_slice(), link, unpack),
        (true, &["*.o".to_owned()][..], &true, &Some(false))
    );
    assert_eq!((raw.name.as_str(), raw.data.as_str(), expanded.data.as_str()), ("F", "$V\n", "w\n"));
    let Action::Copy { mode, link, unpack, .. } = &plan.stages[0].ops[2].action else { panic!() };
    assert_eq!((mode, link, unpack), (&Chmod::parse("go=u").ok(), &false, &None));
    let created: Vec<_> = plan.stages[0].ops.iter().map(|op| op.created_by.as_str()).collect();
    assert_eq!(
        created,
        [
            "RUN /bin/sh -c cat <<E\n$V\nE # buildkit",
            "COPY --parents x <<F <<G /d/ # buildkit",
            "ADD --chmod=go=u y z # buildkit"
        ]
    );
}

#[test]
fn what_a_base_hands_down() {
    let (config, _) = image(&plan("FROM conf\nENTRYPOINT [\"/x\"]\nWORKDIR rel\n"));
    assert_eq!(config.get("Cmd"), None, "ENTRYPOINT drops the base's CMD");
    assert_eq!(config["WorkingDir"], "/srv/rel");
    let (config, _) = image(&plan("FROM conf\nCMD [\"mine\"]\nENTRYPOINT [\"/x\"]\n"));
    assert_eq!(config["Cmd"], json!(["mine"]));
    assert_eq!(history("FROM conf\nCMD hi"), ["-CMD [\"/bin/ash\" \"-ec\" \"hi\"]"]);
    let plan = plan("FROM conf\nRUN x\nWORKDIR /new\nCOPY a b/\n");
    let actions: Vec<_> = plan.stages[0].ops.iter().map(|op| &op.action).collect();
    assert!(matches!(actions[0], Action::Run { user, cwd, .. } if user == "daemon" && cwd == "/srv"));
    assert!(matches!(actions[1], Action::Workdir { user: Some(user), .. } if user == "daemon"));
    assert!(matches!(actions[2], Action::Copy { dest, chown: None, .. } if dest == "/new/b/"));
}

#[test]
fn triggers_of_a_base_are_steps() {
    let plan = plan("FROM onbuild\nRUN after\n");
    let steps: Vec<_> = plan.stages[0].ops.iter().map(|op| op.step).collect();
    assert_eq!((plan.steps.len(), steps), (5, vec![2, 3, 5]));
    assert_eq!((plan.steps[1].text.as_str(), plan.steps[1].line), ("COPY . /src", 1));
    let (config, history) = image(&plan);
    assert_eq!(config.get("OnBuild"), None);
    assert_eq!(history[0], "COPY . /src # buildkit");
    assert_eq!(history[2], "-ENV DONE=1");

    let staged = self::plan("FROM a AS src\nFROM b AS p\nONBUILD COPY --from=src /s /t\nFROM p\nFROM 2\n");
    assert_eq!(staged.stages.len(), 1, "2 is an image, not a stage");
    let staged =
        self::plan("FROM a AS src\nFROM b AS p\nONBUILD COPY --from=src /s /t\nFROM p AS q\nFROM q\n");
    assert!(matches!(staged.stages[2].ops[0].action, Action::Copy { from: CopyFrom::Stage(0), .. }));
    assert_eq!(image(&staged).1.len(), 1, "children of children do not do it again");
    let further = self::plan("FROM scratch\nFROM onbuild-from\n");
    assert_eq!(further.images[1].resolved.reference, "elsewhere");
    let (reason, line, message) = refused("FROM scratch\nFROM onbuild-bad\n");
    assert_eq!((reason, line), (reason::NOT_SUPPORTED, Some(2)));
    assert!(message.contains("RUN --network=host") && message.contains("ONBUILD"), "{message}");
}

#[test]
fn a_stage_may_be_of_another_platform() {
    let text = "FROM --platform=linux/arm64/v8 a AS x\nFROM x\nCOPY --from=a / /x\n";
    let file = Dockerfile::parse(text.as_bytes()).unwrap();
    let (args, contexts) = (BTreeMap::new(), BTreeMap::new());
    let target = Target {
        platform: "linux/amd64",
        machine: "linux/amd64",
        stage: None,
        args: &args,
        contexts: &contexts,
        entitlements: &[],
    };
    let outline = Outline::new(&file, None, target).unwrap();
    let images: Vec<_> =
        outline.images().iter().map(|i| (i.reference.as_str(), i.platform.as_str())).collect();
    assert_eq!(images, [("a", "linux/arm64"), ("a", "linux/amd64")]);
    let plan = plan("FROM --platform=linux/arm64 scratch AS x\nFROM x\nCOPY a b\n");
    let text = plan.stages[1].image.finish(&[], &BTreeMap::new(), &|_| "t".into(), "t");
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["architecture"], "arm64");
}

#[test]
fn named_contexts_go_before_stages_and_images() {
    let plan = plan(
        "FROM dir AS d\nFROM a AS other\nRUN false\nFROM docker.io/library/other:latest\nCOPY --from=1 x y\nCOPY --from=dir . /\n",
    );
    assert_eq!(plan.stages.len(), 1);
    assert_eq!(plan.images[0].resolved.reference, "conf");
    let from = |op: usize| match &plan.stages[0].ops[op].action {
        Action::Copy { from, .. } => *from,
        action => panic!("{action:?}"),
    };
    assert_eq!(
        (from(0), from(1), plan.contexts[0].as_str()),
        (CopyFrom::Image(0), CopyFrom::Named(0), "dir")
    );
    let based = self::plan("FROM dir\nRUN x\n");
    assert_eq!((based.stages[0].base, based.stages[0].ops.len()), (Base::Scratch, 2));
}

#[test]
fn what_is_not_implemented_is_refused_by_name_with_its_line() {
    for (line, word) in [
        ("RUN --network=host true", "RUN --network=host"),
        ("RUN --security=insecure true", "RUN --security=insecure"),
    ] {
        let (reason, at, message) = refused(&format!("FROM a\n{line}\n"));
        assert_eq!((reason, at), (reason::NOT_SUPPORTED, Some(2)), "{line}: {message}");
        assert!(message.contains(word), "{line}: {message}");
    }
    assert_eq!(refused("# syntax=other/frontend\nFROM a\n").0, reason::NOT_SUPPORTED);
    // Not in a stage that nobody needs, and not what says the default.
    plan("FROM a\nRUN --network=host true\nFROM b\nRUN --network=default --security=sandbox x\n");
    plan("# syntax=docker/dockerfile:1.7\nFROM --platform=$BUILDPLATFORM a\nCOPY --link=false a b\n");
    let quiet = plan("FROM a\nRUN --network=none x\n");
    assert!(matches!(quiet.stages[0].ops[0].action, Action::Run { network: false, .. }));
}

#[test]
fn what_can_not_be_is_refused_with_its_line() {
    for (text, line, word) in [
        ("FROM a AS me\nCOPY --from=me /x /y\n", Some(2), "needs itself"),
        ("FROM a AS x\nCOPY --from=y /x /y\nFROM b AS y\nCOPY --from=x /x /y\n", Some(2), "needs itself"),
        ("FROM a\nCOPY --from=4 /x /y\n", Some(2), "no stage 4"),
        ("ARG IMG\nFROM $IMG\n", Some(2), "name is empty"),
        ("ARG S=a\nFROM a AS s\nFROM scratch\nCOPY --from=$S /x /\n", Some(4), "not expanded in --from"),
        ("FROM a\nENV A=${}\n", Some(2), "can't be expanded"),
        ("FROM a\nEXPOSE 90-80\n", Some(2), "90-80"),
        ("FROM a\nSTOPSIGNAL NOPE\n", Some(2), "NOPE"),
        ("FROM a\nCOPY --chmod=888 a b\n", Some(2), "888"),
        ("FROM a\nCOPY --chmod=u+q a b\n", Some(2), "u+q"),
        ("FROM a\nADD --checksum=sha256:00 git@h:r b", Some(2), "hexadecimal"),
        ("FROM a\nADD https://h/r.git?tag=a&branch=b b", Some(2), "not both"),
        ("FROM a\nADD --checksum=sha256:00 https://x/a b", Some(2), "64 hexadecimal digits"),
        (
            "FROM a\nADD --checksum=sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa a b",
            Some(2),
            "downloaded",
        ),
        ("FROM a\nCOPY https://x/y /z\n", Some(2), "for ADD"),
        ("FROM --platform=a/b/c/d x\n", Some(1), "a/b/c/d"),
        ("ARG SOURCE_DATE_EPOCH=soon\nFROM a\n", None, "soon"),
    ] {
        let (_, at, message) = refused(text);
        assert_eq!(at, line, "{text}: {message}");
        assert!(message.contains(word), "{text}: {message}");
    }
}

#[test]
fn a_copy_may_take_from_a_later_stage_and_the_last_of_a_name_counts() {
    let plan = plan(
        "FROM a\nCOPY --from=late /x /y\nFROM b AS late\nFROM c AS late\nFROM scratch\nCOPY --from=0 / /\n",
    );
    let names: Vec<_> = plan.images.iter().map(|i| i.resolved.reference.as_str()).collect();
    assert_eq!(names, ["c", "a"]);
    assert_eq!(plan.stages.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["late", "0", "3"]);
}

#[test]
fn too_many_steps_are_refused() {
    let text = format!("FROM a\n{}", "RUN x\n".repeat(200));
    let (reason, _, message) = refused(&text);
    assert_eq!(reason, reason::NOT_SUPPORTED);
    assert!(message.contains("201 steps"), "{message}");
}

#[path = "mount_tests.rs"]
mod mounts;
