//! What the platform's policies say of a build, as far as the pod keeps it; and the grammar of repositories that they allow. Pure;
//! operator and courier both ask.

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, FailureClass, reason};

/// What the policies of the build's namespace say. `{namespace}` is filled in already.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Where base images may come from: each of these lists has to allow it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base_images: Vec<AllowList>,
    /// How servers are reached.
    #[serde(default, skip_serializing_if = "Network::is_empty")]
    pub network: Network,
}

/// How servers outside of the pod are reached: by courier, source and git.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Network {
    /// Through a proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    /// Certificates of authorities, PEM, that are trusted beside the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
}

/// A proxy, without user and password.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Proxy {
    /// URL of the proxy for plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// URL of the proxy for HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https: Option<String>,
    /// Hosts, domains, addresses and ranges that are reached without it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub no_proxy: Vec<String>,
}

/// A list of repositories, and whose it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AllowList {
    /// Policy and field, as a refusal names them.
    pub by: String,
    /// `host[:port]`, `host/path` or `host/path/*`.
    pub repositories: Vec<String>,
}

/// Patterns that a refusal shows.
const SHOWN: usize = 6;

impl Policy {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Network {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Proxy {
    /// The variables that programs read, and their values: `http_proxy`, `https_proxy`, `no_proxy`.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let mut all = Vec::new();
        all.extend(self.http.as_ref().map(|url| ("http_proxy", url.clone())));
        all.extend(self.https.as_ref().map(|url| ("https_proxy", url.clone())));
        if !self.no_proxy.is_empty() {
            all.push(("no_proxy", self.no_proxy.join(",")));
        }
        all
    }
}

impl AllowList {
    /// Whether it has `host[:port]/repository` in it.
    pub fn allows(&self, repository: &str) -> bool {
        self.repositories.iter().any(|pattern| matches(pattern, repository))
    }

    fn shown(&self) -> String {
        let more = self.repositories.len().saturating_sub(SHOWN);
        let list = self.repositories.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        match (self.repositories.is_empty(), more) {
            (true, _) => "none".to_owned(),
            (_, 0) => list,
            _ => format!("{list} and {more} more"),
        }
    }
}

/// Why none of the lists' owners lets a repository be used, in the words of a build's failure; `None` when all do. `what` names it
/// where it stands (`spec.output.image`), `remedy` says what to do.
pub fn refusal(lists: &[AllowList], what: &str, repository: &str, remedy: &str) -> Option<Failure> {
    let list = lists.iter().find(|list| !list.allows(repository))?;
    let text = format!(
        "{what}: {} allows {}, found {repository}; {remedy}, or ask the platform team to allow it",
        list.by,
        list.shown()
    );
    Some(Failure::new(FailureClass::Policy, reason::POLICY_REFUSED, text))
}

/// The same for a base image, named as the Dockerfile has it.
pub fn base_image_refusal(lists: &[AllowList], reference: &str, repository: &str) -> Option<Failure> {
    let what = format!("the base image {reference}");
    refusal(lists, &what, repository, "use a base image of such a repository")
}

/// Whether a pattern has `host[:port]/repository` in it: `host[:port]` is all of a registry, `host/path` one repository,
/// `host/path/*` all below it.
pub fn matches(pattern: &str, repository: &str) -> bool {
    let below = |prefix: &str| repository.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    match pattern.strip_suffix("/*") {
        Some(prefix) => below(prefix),
        None if pattern.contains('/') => pattern == repository,
        None => below(pattern),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_end_at_a_slash() {
        for (pattern, repository, fits) in [
            ("docker.io", "docker.io/library/alpine", true),
            ("docker.io/*", "docker.io/library/alpine", true),
            ("docker.io/library/*", "docker.io/library/alpine", true),
            ("docker.io/library/*", "docker.io/library", false),
            ("docker.io/library", "docker.io/library/alpine", false),
            ("docker.io/library/alpine", "docker.io/library/alpine", true),
            ("docker.io/library/alpine", "docker.io/library/alpine-evil", false),
            ("r.x/team-a/*", "r.x/team-a/b/c", true),
            ("r.x/team-a/*", "r.x/team-ab/c", false),
            ("r.x", "r.x:5000/a", false),
            ("r.x:5000", "r.x:5000/a", true),
            ("r.x", "r.x.evil/a", false),
            ("", "r.x/a", false),
            ("*", "r.x/a", false),
        ] {
            assert_eq!(matches(pattern, repository), fits, "{pattern} {repository}");
        }
    }

    #[test]
    fn each_list_has_to_allow_it_and_the_one_that_does_not_is_named() {
        let list = |by: &str, all: &[&str]| AllowList {
            by: by.into(),
            repositories: all.iter().map(|p| (*p).to_owned()).collect(),
        };
        let lists =
            [list("BuildPolicy all: f", &["docker.io", "r.x"]), list("BuildPolicy a: f", &["r.x/a/*"])];
        let refused = |repository: &str| refusal(&lists, "FROM", repository, "use another");
        assert_eq!(refused("r.x/a/b"), None);
        let failure = refused("docker.io/library/b").expect("refused");
        assert_eq!(
            failure.message,
            "FROM: BuildPolicy a: f allows r.x/a/*, found docker.io/library/b; use another, or ask the platform team to allow it"
        );
        assert_eq!((failure.class, failure.reason.as_str()), (FailureClass::Policy, "PolicyRefused"));
        assert!(refused("evil.x/a").expect("refused").message.contains("BuildPolicy all"));
        let none = refusal(&[list("x", &[])], "w", "r.x/a", "r").expect("refused");
        assert!(none.message.contains("x allows none, found"), "{none}");
        assert_eq!(refusal(&[], "w", "r.x/a", "r"), None);
        let many: Vec<String> = (0..9).map(|n| format!("r{n}.x")).collect();
        let many = AllowList { by: "x".into(), repositories: many };
        let said = refusal(&[many], "w", "r.x/a", "r").expect("refused").message;
        assert!(said.contains("r5.x and 3 more") && !said.contains("r6.x"), "{said}");
    }
}
