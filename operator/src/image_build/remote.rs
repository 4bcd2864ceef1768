//! Sources that the builder pod fetches: from the object's words to the request's, with the grammar checked. Pure.

use kiln_api::v1alpha1::{FluxSource, Source as Spec};
use kiln_contract::request::Source;
use kiln_contract::source::{Git, Http, Oci};
use kiln_contract::{Failure, FailureClass, is_sha256_digest, reason};
use serde_json::Value;

use super::digest::Fields;

/// A source that is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// As the request has it.
    pub source: Source,
    /// The Secret with its credentials.
    pub secret: Option<String>,
    /// What is known of it before it is fetched: a Flux artifact's revision.
    pub revision: Option<String>,
    /// A Flux artifact's digest, or the checksum that the object names.
    pub digest: Option<String>,
}

/// Reads `git`, `http` and `oci` of a source; `None` when it is none of them.
pub fn read(spec: &Spec) -> Option<Result<Remote, Failure>> {
    let invalid = |text: String| Failure::new(FailureClass::User, reason::INVALID_SPEC, text);
    if let Some(git) = &spec.git {
        let source = Git {
            url: git.url.clone(),
            reference: git.reference.clone(),
            commit: git.commit.clone(),
            depth: u32::try_from(git.depth).unwrap_or(1),
            submodules: git.submodules,
            lfs: git.lfs,
            ..Git::default()
        };
        return Some(match source.check() {
            Err(text) => Err(invalid(format!("spec.source.git: {text}"))),
            Ok(_) => Ok(Remote {
                source: Source::Git(source),
                secret: git.secret_name.clone(),
                revision: None,
                digest: None,
            }),
        });
    }
    if let Some(http) = &spec.http {
        let source = Http { url: http.url.clone(), sha256: http.sha256.clone(), revision: None };
        return Some(match source.check() {
            Err(text) => Err(invalid(format!("spec.source.http: {text}"))),
            Ok(()) => Ok(Remote {
                digest: http.sha256.as_ref().map(|sum| format!("sha256:{sum}")),
                source: Source::Http(source),
                secret: http.secret_name.clone(),
                revision: None,
            }),
        });
    }
    let oci = spec.oci.as_ref()?;
    Some(match kiln_api::reference::Reference::parse(oci.image.split('@').next().unwrap_or_default()) {
        Err(e) => Err(invalid(format!("spec.source.oci.image: {e}"))),
        Ok(_) => Ok(Remote {
            source: Source::Oci(Oci { image: oci.image.clone() }),
            secret: None,
            revision: None,
            digest: None,
        }),
    })
}

/// Reads the artifact of a Flux object.
///
/// # Errors
/// `Err(true, …)` when there is none yet, `Err(false, …)` when there is one that can't be used.
pub fn of_flux(named: &FluxSource, object: &Value) -> Result<Remote, (bool, Failure)> {
    let what = format!("{} {} (spec.source.flux)", named.kind.as_str(), named.name);
    let text = |name: &str| object["status"]["artifact"][name].as_str().map(str::to_owned);
    let (Some(url), Some(digest)) = (text("url"), text("digest")) else {
        let failure = Failure::new(
            FailureClass::Source,
            reason::SOURCE_NOT_FOUND,
            format!("{what} has no artifact yet; its own conditions say why"),
        );
        return Err((true, failure));
    };
    let invalid = |why: String| {
        let failure = Failure::new(
            FailureClass::Source,
            reason::SOURCE_INVALID,
            format!("the artifact of {what}: {why}"),
        );
        (false, failure)
    };
    if !is_sha256_digest(&digest) {
        return Err(invalid(format!("expected a sha256 digest, found {digest}")));
    }
    let revision = text("revision").map(|r| kiln_contract::text::truncate(&r, MAX_REVISION));
    let sha256 = digest.strip_prefix("sha256:").map(str::to_owned);
    let source = Http { url, sha256, revision: revision.clone() };
    source.check().map_err(invalid)?;
    Ok(Remote { source: Source::Http(source), secret: None, revision, digest: Some(digest) })
}

/// Bytes of a revision at most: a reference and a hash.
const MAX_REVISION: usize = 512;

impl Remote {
    /// What the input digest has of it: all that names the files, and the Secret, so that another one is tried at once. Of a
    /// Flux artifact only the digest counts: the same bytes under another address or name are the same source.
    pub fn key(&self, from_flux: bool) -> String {
        let mut fields = Fields::new("kiln remote source v1");
        match &self.source {
            Source::Http(_) if from_flux => {
                fields.text("flux");
                fields.option(self.digest.as_deref());
            }
            Source::Git(git) => {
                fields.text("git");
                fields.text(&git.url);
                fields.option(git.reference.as_deref());
                fields.option(git.commit.as_deref());
                fields.count(git.depth as usize);
                fields.count(usize::from(git.submodules));
                fields.count(usize::from(git.lfs));
            }
            Source::Http(http) => {
                fields.text("http");
                fields.text(&http.url);
                fields.option(http.sha256.as_deref());
            }
            Source::Oci(oci) => {
                fields.text("oci");
                fields.text(&oci.image);
            }
            Source::Files(_) | Source::Directory(_) => fields.text("local"),
        }
        fields.option(self.secret.as_deref());
        fields.hex()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_api::v1alpha1::{FluxKind, GitSource, HttpSource, OciSource};
    use serde_json::json;

    fn git(change: impl FnOnce(&mut GitSource)) -> Spec {
        let mut git = GitSource { url: "https://h/a".into(), depth: 1, ..GitSource::default() };
        change(&mut git);
        Spec { git: Some(git), ..Spec::default() }
    }

    fn flux(artifact: &Value) -> Result<Remote, (bool, Failure)> {
        let named = FluxSource { kind: FluxKind::GitRepository, name: "app".into() };
        of_flux(&named, &json!({"status": {"artifact": artifact}}))
    }

    #[test]
    fn what_is_fetched_is_what_was_written() {
        let spec = git(|g| (g.reference, g.secret_name) = (Some("main".into()), Some("s".into())));
        let remote = read(&spec).expect("git").expect("good");
        assert_eq!(remote.secret.as_deref(), Some("s"));
        assert!(
            matches!(&remote.source, Source::Git(g) if g.reference.as_deref() == Some("main") && g.depth == 1)
        );
        assert!(read(&Spec::default()).is_none());
        for bad in [
            git(|g| g.url = "--upload-pack=x".into()),
            git(|g| g.reference = Some("-x".into())),
            Spec {
                http: Some(HttpSource { url: "http://h/x".into(), ..Default::default() }),
                ..Spec::default()
            },
            Spec { oci: Some(OciSource { image: "A b".into() }), ..Spec::default() },
        ] {
            let failure = read(&bad).expect("some").expect_err("bad");
            assert!(
                failure.reason == reason::INVALID_SPEC && failure.message.starts_with("spec.source."),
                "{failure}"
            );
        }
    }

    #[test]
    fn another_source_or_secret_is_another_input() {
        let key = |change: fn(&mut GitSource)| read(&git(change)).expect("git").expect("good").key(false);
        let keys = [
            key(|_| {}),
            key(|g| g.url = "https://h/b".into()),
            key(|g| g.reference = Some("a".into())),
            key(|g| g.commit = Some("0a".repeat(20))),
            key(|g| g.depth = 0),
            key(|g| g.submodules = true),
            key(|g| g.lfs = true),
            key(|g| g.secret_name = Some("s".into())),
        ];
        assert_eq!(std::collections::BTreeSet::from(keys.clone()).len(), keys.len());
        // Promised: another value would rebuild every image from git in every cluster on an upgrade.
        assert_eq!(keys[0], "8edb7e39e6aafd9fb7b6d7f3062d3768c069473ad3d31faa6c1cb60fcee395eb");
    }

    #[test]
    fn a_flux_artifact_is_an_archive_with_its_checksum() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let artifact = |url: &str| json!({"url": url, "digest": digest, "revision": "main@sha1:aa"});
        let remote = flux(&artifact("http://source-controller.flux-system.svc.cluster.local./x.tar.gz"))
            .expect("good");
        assert_eq!(
            (remote.revision.as_deref(), remote.digest.as_deref()),
            (Some("main@sha1:aa"), Some(digest.as_str()))
        );
        assert!(matches!(&remote.source, Source::Http(h) if h.sha256.as_deref() == Some(&digest[7..])));
        let moved = flux(&artifact("http://elsewhere/x.tar.gz")).expect("good");
        assert_eq!(moved.key(true), remote.key(true));
        let (yet, failure) = flux(&Value::Null).expect_err("none");
        assert!(
            yet && failure.reason == reason::SOURCE_NOT_FOUND
                && failure.message.contains("GitRepository app")
        );
        for bad in [
            json!({"url": "file:///x", "digest": digest}),
            json!({"url": "http://h/x", "digest": "sha512:00"}),
        ] {
            assert!(!flux(&bad).expect_err("bad").0);
        }
    }
}
