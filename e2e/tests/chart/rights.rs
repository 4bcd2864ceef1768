//! What the chart's roles let the operator do, and where.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{NAMESPACE, render};

/// Why a rule of a role leads to the content of Secrets; `None` when it does not.
fn leads_to_secrets(rule: &Value) -> Option<String> {
    // Ways to a Secret besides reading it: a shell in a pod that mounts it, a token, rights of somebody else's.
    const DETOURS: [&str; 5] =
        ["pods/exec", "pods/attach", "pods/ephemeralcontainers", "serviceaccounts/token", "nodes/proxy"];
    let words = |key: &str| -> Vec<String> {
        let list = rule[key].as_array().cloned().unwrap_or_default();
        list.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let (groups, resources, verbs) = (words("apiGroups"), words("resources"), words("verbs"));
    let bad = |resource: &String| {
        resource.starts_with("secrets") || resource.contains('*') || DETOURS.contains(&resource.as_str())
    };
    let bad_verb = |verb: &String| ["*", "impersonate", "escalate", "bind"].contains(&verb.as_str());
    let reached = resources.iter().find(|r| bad(r)).or_else(|| verbs.iter().find(|v| bad_verb(v)));
    reached.or_else(|| groups.iter().find(|g| *g == "*")).cloned()
}

#[test]
fn no_role_leads_to_secrets() -> Result<()> {
    for values in
        [vec![], vec!["watchNamespaces={a,b}"], vec!["builder.seccomp.install=false", "crds.install=false"]]
    {
        let rendered = render(&values)?;
        let roles = [rendered.all("Role"), rendered.all("ClusterRole")].concat();
        ensure!(roles.len() == 5, "leader, operator (2), view and edit, found {}", roles.len());
        for role in roles {
            let rules = role["rules"].as_array().context("rules")?;
            ensure!(!rules.is_empty());
            for rule in rules {
                ensure!(leads_to_secrets(rule).is_none(), "{} in {}", rule, role["metadata"]["name"]);
            }
        }
    }
    Ok(())
}

/// The service account that a binding names, as `namespace/name`.
fn subject(binding: &Value) -> String {
    let subject = &binding["subjects"][0];
    format!("{}/{}", subject["namespace"].as_str().unwrap_or("-"), subject["name"].as_str().unwrap_or("-"))
}

#[test]
fn watch_namespaces_narrow_the_operators_rights() -> Result<()> {
    let everywhere = render(&[])?;
    ensure!(everywhere.one("ClusterRoleBinding", "-operator")?["roleRef"]["name"] == "kiln-operator");
    ensure!(everywhere.all("RoleBinding").len() == 1, "that of the lease");

    let narrow = render(&["watchNamespaces={team-a,team-b}"])?;
    // What is in no namespace, and nothing else; of namespaces only these.
    let wide: Vec<_> =
        narrow.all("ClusterRoleBinding").iter().map(|b| b["roleRef"]["name"].clone()).collect();
    ensure!(wide == ["kiln-operator-cluster"], "{wide:?}");
    let rules = &narrow.one("ClusterRole", "-operator-cluster")?["rules"];
    let kinds: Vec<_> = rules.as_array().into_iter().flatten().map(|r| r["resources"].clone()).collect();
    let wanted = [json!(["priorityclasses"]), json!(["buildpolicies"]), json!(["namespaces"])];
    ensure!(kinds == wanted, "{kinds:?}");
    ensure!(rules[2]["resourceNames"] == json!(["team-a", "team-b"]), "{rules}");
    let all = &everywhere.one("ClusterRole", "-operator-cluster")?["rules"][2]["resourceNames"];
    ensure!(all.is_null(), "{all}");
    let bindings: Vec<String> = narrow
        .all("RoleBinding")
        .iter()
        .map(|b| {
            let (name, namespace) = (&b["roleRef"]["name"], &b["metadata"]["namespace"]);
            format!("{} in {}", name.as_str().unwrap_or("-"), namespace.as_str().unwrap_or("-"))
        })
        .collect();
    ensure!(
        bindings == ["kiln-operator in team-a", "kiln-operator in team-b", "kiln-leader in kiln-system"],
        "{bindings:?}"
    );
    ensure!(narrow.config()?.watch_namespaces == ["team-a", "team-b"]);

    let named = render(&["serviceAccount.name=builder-boss", "watchNamespaces={team-a}"])?;
    for rendered in [&everywhere, &narrow, &named] {
        let account = rendered.all("ServiceAccount")[0];
        let expected = format!("{NAMESPACE}/{}", account["metadata"]["name"].as_str().context("a name")?);
        for binding in [rendered.all("ClusterRoleBinding"), rendered.all("RoleBinding")].concat() {
            ensure!(subject(binding) == expected, "{binding}");
        }
        let pod = &rendered.one("Deployment", "-operator")?["spec"]["template"]["spec"];
        ensure!(pod["serviceAccountName"] == account["metadata"]["name"]);
    }
    Ok(())
}
