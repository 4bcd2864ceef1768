//! Reads what the object names: the ConfigMap of its source.

use base64::Engine as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kiln_api::ImageBuildSpec;
use kiln_contract::request::{Content, File};
use kiln_contract::{Failure, FailureClass, reason};
use kube::Api;

use super::error::{ReconcileError, timed};

/// The source's files, or why there are none.
#[derive(Debug, Clone, PartialEq)]
pub enum Dereferenced {
    /// These.
    Files(Vec<File>),
    /// What is named does not exist (yet).
    Missing(Failure),
    /// It exists and can't be used.
    Unusable(Failure),
}

/// Reads the source.
///
/// # Errors
/// The API server did not answer; a missing ConfigMap is no error.
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
    let Some(named) = &spec.source.config_map else {
        return Ok(Dereferenced::Unusable(Failure::new(
            FailureClass::User,
            reason::INVALID_SPEC,
            "spec.source: expected inline or configMap, found neither",
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
