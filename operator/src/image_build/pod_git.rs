//! The container that checks git repositories out for ADD, where a build may ask for that. It holds no credential. Pure.

use k8s_openapi::api::core::v1::{Container, ResourceRequirements, Volume};
use kiln_contract::paths;
use kiln_contract::request::{Content, Source};
use kiln_dockerfile::{Dockerfile, GitRef, Instruction, InstructionKind, parse_trigger};

use super::pod::{Blueprint, mount, nobody, quantities, scratch};
use super::validate::{Build, dockerfile_path, file_at};

impl Blueprint<'_> {
    /// Its image, where the pod has the container.
    fn git_image(&self) -> Option<&String> {
        self.config.source_image.as_ref().filter(|_| may_add_git(self.build))
    }

    /// Whether the pod has it.
    pub(super) fn has_git(&self) -> bool {
        self.git_image().is_some()
    }

    /// The container: a native sidecar, which ends when it is told to.
    pub(super) fn git(&self) -> Option<Container> {
        Some(Container {
            name: paths::GIT_CONTAINER.to_owned(),
            image: Some(self.git_image()?.clone()),
            image_pull_policy: Some(self.config.image_pull_policy.as_str().to_owned()),
            command: Some(vec!["/kiln-source".to_owned(), "--serve-git".to_owned()]),
            restart_policy: Some("Always".to_owned()),
            security_context: Some(nobody()),
            resources: Some(ResourceRequirements {
                // It waits, as a rule.
                requests: Some(quantities(&[("cpu", "10m"), ("memory", "16Mi")])),
                // git indexes a pack in memory, as in the container `source`.
                limits: Some(quantities(&[("memory", "1Gi")])),
                ..ResourceRequirements::default()
            }),
            volume_mounts: Some(vec![mount("git", paths::GIT_DIR), mount("git-work", paths::GIT_WORK_DIR)]),
            termination_message_policy: Some("File".to_owned()),
            ..Container::default()
        })
    }

    /// Its volumes: the socket that only the courier has, too, and where it works. kiln-git's limit is lower.
    pub(super) fn git_volumes(&self) -> Vec<Volume> {
        if self.has_git() { vec![scratch("git", "1Mi"), scratch("git-work", "9Gi")] } else { Vec::new() }
    }
}

/// Whether an ADD may name a git repository. Of a Dockerfile that is fetched nothing is known before the build.
fn may_add_git(build: &Build) -> bool {
    let Source::Files(files) = &build.source else { return true };
    let found = dockerfile_path(&build.context_dir, &build.dockerfile).and_then(|path| file_at(files, &path));
    let Some(Content::Text(text)) = found.map(|file| &file.content) else { return false };
    let Ok(dockerfile) = Dockerfile::parse(text.as_bytes()) else { return false };
    dockerfile.stages.iter().flat_map(|stage| &stage.instructions).any(adds_git)
}

fn adds_git(instruction: &Instruction) -> bool {
    match &instruction.kind {
        InstructionKind::Add(add) => add.files.sources.iter().any(|source| may_be_git(source)),
        // A later stage that begins with this one runs it.
        InstructionKind::Onbuild(text) => parse_trigger(text).is_ok_and(|trigger| adds_git(&trigger)),
        _ => false,
    }
}

/// Variables are expanded in the build; what they stand for depends on base images, too.
fn may_be_git(source: &str) -> bool {
    // What is no reference at all fails in the build, with its line.
    source.contains('$') || GitRef::parse(source).is_ok_and(|git| git.is_some_and(|git| !git.local_lookalike))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    use kiln_contract::request::File;
    use kiln_contract::source::Git;
    use serde_json::json;

    use super::*;
    use crate::config::Config;
    use crate::image_build::deviation::deviation;
    use crate::image_build::testing::{blueprint, desired};
    use crate::image_build::validate::Buildable;

    fn spec(source: Source, config: &str) -> PodSpec {
        let mut desired = desired("v1:a");
        let Buildable::Yes(build) = &mut desired.buildable else { panic!("not buildable") };
        (build.source, build.source_secret) = (source, Some("git-login".into()));
        let build = build.clone();
        let config = Config::parse(config).expect("it is good");
        blueprint(&desired, &build, &OwnerReference::default(), &config).pod().spec.expect("a spec")
    }

    const CONFIG: &str = "builderImage: b:1\nsourceImage: s:1";

    fn dockerfile(text: &str) -> Source {
        Source::Files(vec![File { path: "./Dockerfile".into(), content: Content::Text(text.into()) }])
    }

    fn containers(spec: &PodSpec) -> Vec<&str> {
        spec.init_containers.iter().flatten().map(|c| c.name.as_str()).collect()
    }

    #[test]
    fn it_is_there_only_where_an_add_may_need_it() {
        for (text, needed) in [
            ("FROM a\nADD https://h/r.git#v1 /src", true),
            ("FROM a\nADD git@h:a/r.git /src", true),
            ("FROM a AS b\nADD x https://h/r.git /src/\nFROM c\nRUN x", true),
            ("FROM a\nARG WHERE\nADD ${WHERE} /src", true),
            ("FROM a AS b\nONBUILD ADD https://h/r.git /src\nFROM b", true),
            ("FROM a\nADD https://h/r.tar.gz /src", false),
            ("FROM a\nADD github.com/a/b /src", false),
            ("FROM a\nCOPY $x /src\nRUN echo https://h/r.git", false),
            ("FROM a\nADD x", false),
        ] {
            assert_eq!(containers(&spec(dockerfile(text), CONFIG)).contains(&"git"), needed, "{text}");
        }
        let fetched = || Source::Git(Git { url: "https://h/x".into(), ..Git::default() });
        assert_eq!(containers(&spec(fetched(), CONFIG)), ["courier", "source", "git"]);
        let without = spec(dockerfile("FROM a\nADD https://h/r.git /src"), "builderImage: b:1");
        assert_eq!(containers(&without), ["courier"], "there is no image for it");
    }

    #[test]
    fn it_holds_no_credential_and_the_build_can_not_reach_it() {
        let spec = spec(Source::Git(Git { url: "https://h/x".into(), ..Git::default() }), CONFIG);
        let value = serde_json::to_value(&spec).expect("JSON");
        let mounts = |container: &serde_json::Value| -> Vec<String> {
            let all = container["volumeMounts"].as_array().cloned().unwrap_or_default();
            all.iter().map(|m| m["name"].as_str().unwrap_or_default().to_owned()).collect()
        };
        let (courier, git) = (&value["initContainers"][0], &value["initContainers"][2]);
        assert_eq!(mounts(git), ["git", "git-work"]);
        assert!(mounts(courier).contains(&"git".to_owned()));
        assert!(!mounts(courier).contains(&"git-work".to_owned()));
        for other in [&value["containers"][0], &value["initContainers"][1]] {
            assert!(mounts(other).iter().all(|name| !name.starts_with("git")), "{other:#}");
        }
        assert_eq!((&git["restartPolicy"], &git["image"]), (&json!("Always"), &json!("s:1")));
        assert_eq!(git["securityContext"], value["initContainers"][1]["securityContext"]);
        assert!(git["env"].is_null() && git["envFrom"].is_null());
    }

    #[test]
    fn admission_may_give_it_nothing() {
        let made_of = |change: fn(&mut Container)| {
            let asked = spec(dockerfile("FROM a\nADD https://h/r.git /src"), CONFIG);
            let mut made = asked.clone();
            let git = made.init_containers.iter_mut().flatten().find(|c| c.name == "git").expect("there");
            change(git);
            let pod = |spec| k8s_openapi::api::core::v1::Pod { spec: Some(spec), ..Default::default() };
            deviation(&pod(asked), &pod(made))
        };
        assert_eq!(made_of(|_| {}), None);
        let token = made_of(|c| c.volume_mounts.get_or_insert_default().push(mount("auth-0", "/x")));
        assert_eq!(token.as_deref(), Some("container git has the volume auth-0 at /x"));
        let env = made_of(|c| c.env = Some(vec![Default::default()])).unwrap_or_default();
        assert!(env.starts_with("container git has the environment variable"), "{env}");
        let program = made_of(|c| c.command = Some(vec!["/bin/sh".into()])).unwrap_or_default();
        assert!(program.contains("another program"), "{program}");
    }
}
