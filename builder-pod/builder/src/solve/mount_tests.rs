//! What steps mount, over a fake engine and a fake courier.

use super::*;

fn mounted(rig: &Rig) -> Vec<String> {
    rig.engine.notes.of(&["mount", "make_tree", "copy_stream", "env", "remove"])
}

#[test]
fn trees_come_from_context_stages_images_and_caches() {
    let mut rig = Rig::default();
    rig.build(
        "FROM alpine AS a\nRUN one\nFROM alpine\n\
         RUN --mount=source=src,target=/s --mount=from=a,target=/a,rw --mount=from=tools,target=/t two\n\
         RUN --mount=target=/all --mount=source=src,target=/s --mount=type=cache,target=/c,uid=5 three\n\
         RUN --mount=source=x,target=/x --mount=type=cache,target=/c,uid=5 --mount=type=cache,target=/c2,id=/c four\n",
    )
    .unwrap();
    let trees = |lowers: &str, upper: &str, path: &str, name: &str| {
        let lowers: Vec<_> = lowers.split(',').filter(|l| !l.is_empty()).collect();
        let upper = (!upper.is_empty()).then_some(upper);
        format!("Trees {{ lowers: {lowers:?}, upper: {upper:?}, path: {path:?}, name: {name:?} }}")
    };
    let (context, image) = ("the build context", "image tools");
    let wanted = [
        "copy_stream x1 src -> /src".to_owned(),
        format!("mount /s true {}", trees("x1", "", "/src", context)),
        format!("mount /a false {}", trees("b0-0,b0-1,s1", "m2", "/", "stage a")),
        format!("mount /t true {}", trees("b1-0,b1-1", "", "/", image)),
        "remove m2".to_owned(),
        "make_tree k3 755 5:0".to_owned(),
        "copy_stream x4 . -> /".to_owned(),
        format!("mount /all true {}", trees("x4", "", "/", context)),
        format!("mount /s true {}", trees("x4", "", "/src", context)),
        format!("mount /c false {}", trees("", "k3", "/", "the cache c")),
        "make_tree k5 755 0:0".to_owned(),
        format!("mount /x true {}", trees("x4", "", "/x", context)),
        format!("mount /c false {}", trees("", "k3", "/", "the cache c")),
        format!("mount /c2 false {}", trees("", "k5", "/", "the cache c")),
    ];
    let found: Vec<_> = mounted(&rig).into_iter().filter(|note| !note.starts_with("env")).collect();
    assert_eq!(found, wanted);
}

#[test]
fn a_source_that_the_context_lacks_is_not_found() {
    let mut rig = Rig::default();
    let failure = rig.build("FROM alpine\nRUN --mount=source=missing,target=/m one\n").unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.line), (reason::NOT_FOUND, Some(2)), "{failure}");
    assert!(rig.engine.notes.of(&["run"]).is_empty());
}

#[test]
fn secrets_reach_their_step_and_nothing_else() {
    let mut rig = Rig::default();
    rig.courier.secrets = [("tok", "hush-hush\n".to_owned()), ("key", "PRIVATE".to_owned())].into();
    rig.build(
        "FROM alpine\nENV TOK=public\n\
         RUN --mount=type=secret,id=tok,env=TOK --mount=type=secret,id=key,mode=0440,uid=7 --mount=type=secret,id=none one hush-hush\n\
         RUN two hush-hush\n",
    )
    .unwrap();
    assert_eq!(
        mounted(&rig),
        [
            "mount /run/secrets/key true File { bytes: Secret(7 bytes), mode: 288, owner: Owner { uid: 7, gid: 0 } }",
            "env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TOK=hush-hush\n",
        ]
    );
    assert_eq!(rig.courier.notes.of(&["secret"]), ["secret tok", "secret key", "secret none"]);
    let log = rig.log.0.join("\n");
    assert!(log.contains("output of one ***") && log.contains("output of two ***"), "{log}");
    let committed = format!("{:?}", rig.courier.committed.lock().unwrap());
    assert!(!committed.contains("PRIVATE") && committed.contains("TOK=public"));
}

#[test]
fn a_failure_shows_no_secret() {
    let mut rig = Rig::default();
    rig.courier.secrets = [("tok", "hush-hush".to_owned())].into();
    rig.engine.codes.insert("cat hush-hush".into(), 1);
    let text = "FROM alpine\nRUN --mount=type=secret,id=tok cat hush-hush\n";
    let failure = rig.build(text).unwrap_err();
    assert_eq!(failure.log_tail.as_deref(), Some("output of cat ***"));
}

#[test]
fn a_secret_that_is_missing_or_no_text_is_told() {
    for (flags, words) in [
        ("id=none,required", "the secret none is required and was not given; add it to spec.secrets"),
        ("id=zero,env=Z", "the secret zero is no text"),
    ] {
        let mut rig = Rig::default();
        rig.courier.secrets = [("zero", "a\0b".to_owned())].into();
        let failure = rig.build(&format!("FROM alpine\nRUN --mount=type=secret,{flags} one\n")).unwrap_err();
        assert!(failure.message.contains(words) && failure.line == Some(2), "{failure:?}");
        assert_eq!(failure.class, FailureClass::User);
        assert!(rig.engine.notes.of(&["run"]).is_empty());
    }
    let mut rig = Rig::default();
    let long = "x".repeat(MAX_SECRETS / 2 + 1);
    rig.courier.secrets = [("a", long.clone()), ("b", long)].into();
    let text = "FROM alpine\nRUN --mount=type=secret,id=a --mount=type=secret,id=b one\n";
    assert!(rig.build(text).unwrap_err().message.contains("together more than"));
}

#[test]
fn agents_are_connected_to_while_the_step_runs() {
    let mut rig = Rig::default();
    rig.build("FROM alpine\nRUN --mount=type=ssh,uid=5 --mount=type=ssh,id=none one\n").unwrap();
    assert_eq!(
        rig.engine.notes.of(&["listen", "mount", "connected", "remove"]),
        [
            "listen a1 600 5:0",
            "mount /run/buildkit/ssh_agent.0 false Socket { name: \"a1\" }",
            "connected agent default",
            "remove a1",
        ]
    );
    assert_eq!(rig.courier.notes.of(&["find_agent", "serve_agent"]).len(), 3);
    let failure = Rig::default().build("FROM alpine\nRUN --mount=type=ssh,id=x,required one\n").unwrap_err();
    assert!(failure.message.contains("the ssh agent x is required"), "{failure}");
    assert_eq!((failure.line, failure.reason.as_str()), (Some(2), reason::NOT_FOUND));
}

#[test]
fn caches_that_outlast_the_build_are_had_only_while_a_step_uses_them() {
    let mut rig = Rig::default();
    rig.engine.keeps_caches = true;
    rig.engine.codes.insert("three".into(), 1);
    rig.build(
        "FROM alpine AS a\nRUN --mount=type=cache,target=/b,sharing=locked --mount=type=cache,target=/a,mode=0700,sharing=locked one\n\
         RUN --mount=type=cache,target=/b --mount=type=cache,target=/b2,id=/b two\nRUN --mount=type=cache,target=/b three\n",
    )
    .unwrap_err();
    assert_eq!(
        rig.engine.notes.of(&["take_cache", "make_tree", "run", "keep_cache"]),
        [
            "take_cache 700 0:0 //a k1 true",
            "make_tree k1 700 0:0",
            "take_cache  //b k2 true",
            "make_tree k2 755 0:0",
            "run b0-0,b0-1+s1 one",
            "keep_cache 700 0:0 //a",
            "keep_cache  //b",
            "take_cache  //b k3 false",
            "run b0-0,b0-1,s1+s2 two",
            "keep_cache  //b",
            "take_cache  //b k4 false",
            "run b0-0,b0-1,s1,s2+s3 three",
            "keep_cache  //b",
        ]
    );
    // Nor is one kept for ever when something else of the step is missing.
    let mut rig = Rig::default();
    rig.engine.keeps_caches = true;
    rig.build("FROM alpine\nRUN --mount=type=cache,target=/c --mount=source=missing,target=/m one\n")
        .unwrap_err();
    assert_eq!(rig.engine.notes.of(&["keep_cache"]), ["keep_cache  //c"]);
}
