//! The container that fetches the source, between courier and build: it alone has the source's credentials. Pure.

use k8s_openapi::api::core::v1::{Container, ResourceRequirements, SecretVolumeSource, Volume};
use kiln_contract::paths;

use super::pod::{Blueprint, mount, nobody, quantities, read_only, scratch};

impl Blueprint<'_> {
    /// Whether the source is fetched.
    pub(super) fn fetches(&self) -> bool {
        self.build.source.is_fetched()
    }

    /// The container.
    pub(super) fn source(&self) -> Option<Container> {
        let image = self.config.source_image.as_ref().filter(|_| self.fetches())?;
        let mut mounts = vec![
            read_only("request", paths::REQUEST_DIR),
            // A socket can be connected to all the same, and not be replaced.
            read_only("socket", paths::SOCKET_DIR),
            mount("context", paths::CONTEXT_DIR),
            mount("fetch", paths::FETCH_DIR),
        ];
        if self.build.source_secret.is_some() {
            mounts.push(read_only("source-auth", paths::SOURCE_AUTH_DIR));
        }
        Some(Container {
            name: paths::SOURCE_CONTAINER.to_owned(),
            image: Some(image.clone()),
            image_pull_policy: Some(self.config.image_pull_policy.as_str().to_owned()),
            command: Some(vec!["/kiln-source".to_owned()]),
            security_context: Some(nobody()),
            resources: Some(ResourceRequirements {
                requests: Some(quantities(&[("cpu", "50m"), ("memory", "64Mi")])),
                // git indexes a pack in memory: some 500 MiB for the largest repositories known.
                limits: Some(quantities(&[("memory", "1Gi")])),
                ..ResourceRequirements::default()
            }),
            volume_mounts: Some(mounts),
            termination_message_policy: Some("File".to_owned()),
            ..Container::default()
        })
    }

    /// Its volumes. The limits of kiln-source are lower: it says what is wrong before the kubelet evicts the pod.
    pub(super) fn source_volumes(&self) -> Vec<Volume> {
        if !self.fetches() {
            return Vec::new();
        }
        let mut volumes = vec![scratch("context", "5Gi"), scratch("fetch", "9Gi")];
        volumes.extend(self.build.source_secret.as_ref().map(|secret| Volume {
            name: "source-auth".to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(secret.clone()),
                // A Secret that is not there keeps the pod from starting.
                optional: Some(false),
                default_mode: Some(0o444),
                items: None,
            }),
            ..Volume::default()
        }));
        volumes
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    use kiln_contract::request::Source;
    use kiln_contract::source::Oci;
    use serde_json::{Value, json};

    use crate::config::Config;
    use crate::image_build::testing::{blueprint, desired};
    use crate::image_build::validate::Buildable;

    #[test]
    fn credentials_are_the_source_containers_alone() {
        let mut desired = desired("v1:a");
        let Buildable::Yes(build) = &mut desired.buildable else { panic!("not buildable") };
        build.source = Source::Oci(Oci { image: "a/b".into() });
        build.source_secret = Some("git".into());
        let build = build.clone();
        let config = Config::parse("builderImage: b:1\nsourceImage: s:1").expect("it is good");
        let owner = OwnerReference::default();
        let blueprint = blueprint(&desired, &build, &owner, &config);
        let spec = serde_json::to_value(blueprint.pod().spec).expect("JSON");
        let mounts = |container: &Value| -> Vec<String> {
            let all = container["volumeMounts"].as_array().cloned().unwrap_or_default();
            all.iter()
                .map(|m| format!("{} {}", m["name"].as_str().unwrap_or_default(), m["readOnly"]))
                .collect()
        };
        let (courier, source) = (&spec["initContainers"][0], &spec["initContainers"][1]);
        assert_eq!((&source["name"], &source["image"]), (&json!("source"), &json!("s:1")));
        assert_eq!(
            mounts(source),
            ["request true", "socket true", "context null", "fetch null", "source-auth true"]
        );
        assert!(mounts(courier).iter().all(|m| !m.contains("source-auth") && !m.contains("context")));
        assert_eq!(
            mounts(&spec["containers"][0]),
            ["request true", "socket null", "work null", "context true"]
        );
        let security = &source["securityContext"];
        assert_eq!((&security["runAsUser"], &security["runAsNonRoot"]), (&json!(65532), &json!(true)));
        assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
        assert_eq!(security["readOnlyRootFilesystem"], json!(true));
        assert_eq!(security["seccompProfile"]["type"], json!("RuntimeDefault"));
    }
}
