//! Reads what the object names: the ConfigMap or the Flux object of its source.

use base64::Engine as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kiln_api::ImageBuildSpec;
use kiln_contract::request::{Content, File};
use kiln_contract::{Failure, FailureClass, reason};
use kube::Api;

use super::error::{ReconcileError, timed};
use super::{flux, remote, remote::Remote};

/// The source's files, or why there are none.
#[derive(Debug, Clone, PartialEq)]
pub enum Dereferenced {
    /// These.
    Files(Vec<File>),
    /// The builder pod fetches them; whether a Flux object named it.
    Remote(Box<Remote>, bool),
    /// What is named does not exist (yet).
    Missing(Failure),
    /// It exists and can't be used.
    Unusable(Failure),
}

/// Reads the source.
///
/// # Errors
/// The API server did not answer; a missing object is no error.
pub async fn dereference(
    client: &kube::Client,
    namespace: &str,
    spec: &ImageBuildSpec,
) -> Result<Dereferenced, ReconcileError> {
    if let Some(inline) = &spec.source.inline {
        let file = |f: &kiln_api::v1alpha1::InlineFile| File {
            path: f.path.clone(),
            content: Content::Text(f.content.clone()),
        };
        return Ok(Dereferenced::Files(inline.files.iter().map(file).collect()));
    }
    if let Some(read) = remote::read(&spec.source) {
        return Ok(match read {
            Ok(remote) => Dereferenced::Remote(Box::new(remote), false),
            Err(failure) => Dereferenced::Unusable(failure),
        });
    }
    if let Some(named) = &spec.source.flux {
        let found = flux::read(client, namespace, named.kind, &named.name).await?;
        let Some(object) = found.and_then(|object| serde_json::to_value(object).ok()) else {
            return Ok(Dereferenced::Missing(Failure::new(
                FailureClass::Source,
                reason::SOURCE_NOT_FOUND,
                format!(
                    "{} {} (spec.source.flux) is not in namespace {namespace}; create it",
                    named.kind.as_str(),
                    named.name
                ),
            )));
        };
        return Ok(match remote::of_flux(named, &object) {
            Ok(remote) => Dereferenced::Remote(Box::new(remote), true),
            Err((true, failure)) => Dereferenced::Missing(failure),
            Err((false, failure)) => Dereferenced::Unusable(failure),
        });
    }
    let Some(named) = &spec.source.config_map else {
        return Ok(Dereferenced::Unusable(Failure::new(
            FailureClass::User,
            reason::INVALID_SPEC,
            "spec.source: expected one of inline, configMap, git, http, oci and flux, found none",
        )));
    };
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    match timed("get configmap", api.get_opt(&named.name)).await? {
        Some(map) => Ok(files(&named.name, &map)),
        None => Ok(Dereferenced::Missing(Failure::new(
            FailureClass::Source,
            reason::SOURCE_NOT_FOUND,
            format!(
                "ConfigMap {} (spec.source.configMap) is not in namespace {namespace}; create it",
                named.name
            ),
        ))),
    }
}

/// The keys of a ConfigMap as files.
fn files(name: &str, map: &ConfigMap) -> Dereferenced {
    let text = map.data.iter().flatten();
    let text = text.map(|(k, v)| File { path: k.clone(), content: Content::Text(v.clone()) });
    let binary = map.binary_data.iter().flatten().map(|(k, v)| File {
        path: k.clone(),
        content: Content::Base64(base64::engine::general_purpose::STANDARD.encode(&v.0)),
    });
    let files: Vec<File> = text.chain(binary).collect();
    if files.is_empty() {
        return Dereferenced::Unusable(Failure::new(
            FailureClass::Source,
            reason::SOURCE_INVALID,
            format!("ConfigMap {name} (spec.source.configMap) has no keys; expected at least a Dockerfile"),
        ));
    }
    Dereferenced::Files(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_binary_keys_are_files() {
        let map: ConfigMap = serde_json::from_value(serde_json::json!({
            "data": {"Dockerfile": "FROM scratch"}, "binaryData": {"x": "AP8="}
        }))
        .expect("a ConfigMap");
        let Dereferenced::Files(files) = files("m", &map) else { panic!("no files") };
        assert_eq!(files[0].path, "Dockerfile");
        assert_eq!(files[1].content, Content::Base64("AP8=".into()));
        assert!(matches!(super::files("m", &ConfigMap::default()), Dereferenced::Unusable(_)));
    }
}
