//! `RUN --mount` in plans.

use kiln_dockerfile::instruction::Sharing;

use super::*;
use crate::engine::Owner;

/// The mounts of the last RUN, its environment and working directory.
fn mounts(text: &str) -> (Vec<Mount>, Vec<String>) {
    let plan = plan(text);
    let action = plan.stages.last().unwrap().ops.last().unwrap().action.clone();
    let Action::Run { mounts, env, .. } = action else { panic!("no RUN") };
    (mounts, env)
}

fn mount(flag: &str) -> Mount {
    mounts(&format!("FROM a AS one\nRUN x\nFROM b\nARG V=var\nWORKDIR /w\nRUN --mount={flag} x\n"))
        .0
        .remove(0)
}

fn files(target: &str, read_only: bool, from: Option<CopyFrom>, path: &str) -> Mount {
    Mount::Files { target: target.into(), read_only, from, path: path.into() }
}

fn cache(target: &str, id: &str, from: Option<CopyFrom>, root: Option<(u32, u32, u32)>, path: &str) -> Mount {
    Mount::Cache {
        target: target.into(),
        read_only: false,
        cache: Cache { id: id.into(), from, root },
        path: path.into(),
        sharing: Sharing::Shared,
    }
}

#[test]
fn binds_and_caches() {
    let context = Some(CopyFrom::Context);
    for (flag, expected) in [
        ("target=/m", files("/m", true, context, "/")),
        ("type=bind,src=/a/../b/,dst=m/,rw", files("/w/m", false, context, "/b")),
        ("source=../../x,target=../m", files("/m", true, context, "/x")),
        ("from=ONE,source=$V,target=/${V}", files("/var", true, Some(CopyFrom::Stage(0)), "/var")),
        ("from=img,target=/m", files("/m", true, Some(CopyFrom::Image(1)), "/")),
        ("from=0,target=/m", files("/m", true, Some(CopyFrom::Image(1)), "/")),
        ("from=scratch,target=/m", files("/m", true, None, "/")),
        ("type=cache,target=/c//d/", cache("/c/d", "//c/d", None, None, "/")),
        ("type=cache,target=c,id=x", cache("/w/c", "/x", None, None, "/")),
        ("type=cache,target=./c/../d", cache("/w/d", "/d", None, None, "/")),
        ("type=cache,target=/c,uid=5", cache("/c", "//c", None, Some((0o755, 5, 0)), "/")),
        ("type=cache,target=/c,mode=0700,source=s", cache("/c", "//c", None, None, "/s")),
        ("type=cache,target=/c,from=one", cache("/c", "//c", Some(CopyFrom::Stage(0)), None, "/")),
        (
            "type=tmpfs,target=/t,size=1m",
            Mount::Memory { target: "/t".into(), read_only: false, size: 1 << 20 },
        ),
    ] {
        assert_eq!(mount(flag), expected, "{flag}");
    }
    let args = [("BUILDKIT_CACHE_MOUNT_NS", "ns")];
    let plan = plan_with("FROM a\nRUN --mount=type=cache,target=/c x\n", None, &args).unwrap();
    let Action::Run { mounts, .. } = &plan.stages[0].ops[0].action else { panic!("no RUN") };
    assert_eq!(mounts[0], cache("/c", "ns//c", None, None, "/"));
}

#[test]
fn secrets_and_agents() {
    let root = Owner::default();
    let secret = |id: &str, target: Option<&str>, env: Option<&str>| Mount::Secret {
        id: id.into(),
        target: target.map(str::to_owned),
        env: env.map(str::to_owned),
        mode: 0o400,
        owner: root,
        required: false,
    };
    for (flag, expected) in [
        ("type=secret,id=a/b", secret("a/b", Some("/run/secrets/b"), None)),
        ("type=secret,source=s", secret("s", Some("/run/secrets/s"), None)),
        ("type=secret,target=/etc/x.ini", secret("x.ini", Some("/etc/x.ini"), None)),
        ("type=secret,id=s,target=x", secret("s", Some("/x"), None)),
        ("type=secret,id=s,env=S", secret("s", None, Some("S"))),
        ("type=secret,id=s,env=", secret("s", None, Some("s"))),
        ("type=secret,id=s,env=S,target=/s", secret("s", Some("/s"), Some("S"))),
    ] {
        assert_eq!(mount(flag), expected, "{flag}");
    }
    assert_eq!(
        mount("type=secret,id=s,required,mode=0444,uid=1,gid=2"),
        Mount::Secret {
            id: "s".into(),
            target: Some("/run/secrets/s".into()),
            env: None,
            mode: 0o444,
            owner: Owner { uid: 1, gid: 2 },
            required: true
        }
    );
    let agent = |id: &str, target: &str| Mount::Agent {
        id: id.into(),
        target: target.into(),
        mode: 0o600,
        owner: root,
        required: false,
    };
    let (found, env) = mounts("FROM a\nRUN --mount=type=ssh --mount=type=ssh,id=x x\n");
    assert_eq!(
        found,
        [agent("default", "/run/buildkit/ssh_agent.0"), agent("x", "/run/buildkit/ssh_agent.1")]
    );
    assert!(env.contains(&"SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0".to_owned()), "{env:?}");
    let (_, env) = mounts("FROM a\nENV SSH_AUTH_SOCK=/mine\nRUN --mount=type=ssh,target=/s x\n");
    assert!(env.contains(&"SSH_AUTH_SOCK=/mine".to_owned()), "{env:?}");
    let (config, history) = image(&plan("FROM a\nRUN --mount=type=ssh --mount=type=secret,id=s,env=S x\n"));
    assert_eq!(config["Env"], json!([PATH]));
    assert_eq!(history, ["RUN /bin/sh -c x # buildkit"]);
}

#[test]
fn what_is_mounted_is_needed() {
    let plan = plan(
        "FROM a AS one\nRUN x\nFROM b AS two\nFROM c AS three\nFROM d\nRUN --mount=from=two,target=/m --mount=from=e,target=/n x\n",
    );
    let names: Vec<_> = plan.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(names, ["two", "3"]);
    let images: Vec<_> = plan.images.iter().map(|i| i.resolved.reference.as_str()).collect();
    assert_eq!(images, ["b", "d", "e"]);
}

#[test]
fn without_a_target_the_working_directory_is_mounted_over() {
    let (found, _) = mounts("FROM a\nWORKDIR /src\nRUN --mount=type=bind --mount=target=sub x\n");
    let context = |target: &str| files(target, true, Some(CopyFrom::Context), "/");
    assert_eq!(found, [context("/src"), context("/src/sub")]);
}

#[test]
fn bad_mounts_are_refused_with_their_line() {
    for (flag, word) in [
        ("type=nope,target=/x", "invalid value \"nope\""),
        ("type=bind", "nothing can be mounted at /"),
        ("type=cache,target=/", "nothing can be mounted at /"),
        ("type=tmpfs,target=/a/../proc/sys", "nothing can be mounted at /proc/sys"),
        ("type=secret,target=/", "no name"),
        ("type=secret,id=s,env=A=B", "name of a variable"),
        ("type=ssh,source=x", "no source"),
        ("type=$V,target=/x", "invalid value \"var\""),
        ("from=last,target=/x", "has to be defined before"),
        ("from=two,target=/x", "has to be defined before"),
    ] {
        let text = format!(
            "FROM a\nRUN x\nFROM b AS two\nARG V=var\nRUN --mount={flag} x\nFROM c AS last\nCOPY --from=two / /\n"
        );
        let (reason, line, message) = refused(&text);
        assert_eq!(line, Some(5), "{flag}: {message}");
        assert!(message.contains(word) && message.contains("RUN --mount="), "{flag}: {message}");
        assert!([reason::DOCKERFILE_INVALID, reason::NOT_FOUND].contains(&reason), "{flag}: {reason}");
    }
}

#[test]
fn mounts_go_with_documents_triggers_and_named_contexts() {
    let staged = plan(
        "FROM a AS src\nFROM b AS base\nONBUILD RUN --mount=from=src,target=/m <<E\n#!/bin/x\ny\nE\nFROM base\nRUN --mount=from=dir,target=/d --mount=from=other,target=/o --mount=from=img,target=/i x\n",
    );
    let ops = &staged.stages.last().unwrap().ops;
    let Action::Run { mounts, script, argv, .. } = &ops[0].action else { panic!("no RUN") };
    assert_eq!(mounts[..], [files("/m", true, Some(CopyFrom::Stage(0)), "/")]);
    assert_eq!((argv.last().unwrap().as_str(), script.is_some()), ("/dev/pipes/E", true));
    let Action::Run { mounts, .. } = &ops[1].action else { panic!("no RUN") };
    let images = staged.images.iter().map(|image| image.resolved.reference.as_str());
    let image = |name: &str| images.clone().position(|image| image == name).map(CopyFrom::Image);
    assert_eq!(
        mounts[..],
        [
            files("/d", true, Some(CopyFrom::Named(0)), "/"),
            files("/o", true, image("conf"), "/"),
            files("/i", true, image("img"), "/")
        ]
    );
    assert_eq!(staged.stages.len(), 3, "what a trigger mounts is built");

    let base = plan("FROM scratch AS early\nFROM onbuild-mount\n");
    let Action::Run { mounts, .. } = &base.stages.last().unwrap().ops[0].action else { panic!("no RUN") };
    let CopyFrom::Image(found) = mounts[0].from().unwrap() else { panic!("no image") };
    assert_eq!(base.images[found].resolved.reference, "elsewhere");
}
