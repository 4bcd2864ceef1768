//! Requests and limits of the build container: what the build asks for, or the defaults, below the policies' ceilings. Pure.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kiln_api::v1alpha1::Resources;
use kiln_contract::{Failure, FailureClass, reason};

use super::effective::Effective;
use super::quantity;

/// Resources of which every container may use what it likes where it has no limit.
const BOUND: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// What the container gets.
///
/// # Errors
/// The build asks for more than a policy allows.
pub fn resources(asked: Option<&Resources>, policy: &Effective) -> Result<Resources, Failure> {
    let mut got = asked.unwrap_or(&policy.resources).clone();
    for (name, ceiling) in &policy.maximum {
        let most = quantity::parse(&ceiling.value);
        for (side, amounts) in [("requests", &mut got.requests), ("limits", &mut got.limits)] {
            let Some(amount) = amounts.get_mut(name) else { continue };
            let Some(value) = quantity::parse(amount) else {
                return Err(Failure::new(
                    FailureClass::User,
                    reason::INVALID_SPEC,
                    format!(
                        "spec.resources.{side}.{name}: expected a quantity like 500m or 2Gi, found '{}'",
                        quantity::shown(amount)
                    ),
                ));
            };
            if Some(value) <= most {
                continue;
            }
            if asked.is_some() {
                let text = format!(
                    "spec.resources.{side}.{name}: {} allows {}, found {}; ask for less, or ask the platform team to allow it",
                    ceiling.by,
                    quantity::shown(&ceiling.value),
                    quantity::shown(amount)
                );
                return Err(Failure::new(FailureClass::Policy, reason::POLICY_REFUSED, text));
            }
            amount.clone_from(&ceiling.value);
        }
        if BOUND.contains(&name.as_str()) && !got.limits.contains_key(name) {
            got.limits.insert(name.clone(), ceiling.value.clone());
            // Without a request the API server would take the limit for one, and set all of it aside.
            let usual = policy.resources.requests.get(name).filter(|r| quantity::parse(r) <= most);
            let usual = usual.cloned().unwrap_or(IntOrString::Int(0));
            got.requests.entry(name.clone()).or_insert(usual);
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::Config;
    use crate::policy::effective::Ruled;

    fn policy(defaults: Value, maximum: &[(&str, &str)]) -> Effective {
        let config = Config::parse("builderImage: b").expect("good");
        let mut policy = Effective::of_settings(&config, "ns");
        policy.resources = serde_json::from_value(defaults).expect("resources");
        let ruled = |v: &str| Ruled { by: "BuildPolicy p: f".into(), value: IntOrString::String(v.into()) };
        policy.maximum = maximum.iter().map(|(name, v)| ((*name).into(), ruled(v))).collect();
        policy
    }

    fn got(asked: Option<Value>, policy: &Effective) -> Result<Value, String> {
        let asked: Option<Resources> = asked.map(|v| serde_json::from_value(v).expect("resources"));
        let got = resources(asked.as_ref(), policy).map_err(|f| {
            assert_eq!((f.class, f.reason.as_str()), (FailureClass::Policy, reason::POLICY_REFUSED));
            f.message
        });
        got.map(|r| serde_json::to_value(r).expect("JSON"))
    }

    #[test]
    fn without_ceilings_it_is_what_was_asked_for_or_the_default() {
        let policy = policy(json!({"limits": {"memory": "4Gi"}}), &[]);
        assert_eq!(got(None, &policy), Ok(json!({"limits": {"memory": "4Gi"}})));
        assert_eq!(got(Some(json!({"requests": {"cpu": 9}})), &policy), Ok(json!({"requests": {"cpu": 9}})));
    }

    #[test]
    fn more_than_the_ceiling_is_refused_and_a_default_is_cut() {
        let defaults = json!({"requests": {"memory": "6Gi", "cpu": "500m"}, "limits": {"memory": "8Gi"}});
        let policy = policy(defaults, &[("memory", "4Gi"), ("nvidia.com/gpu", "1")]);
        let cut = json!({"requests": {"memory": "4Gi", "cpu": "500m"}, "limits": {"memory": "4Gi"}});
        assert_eq!(got(None, &policy), Ok(cut));
        let fits = json!({"limits": {"memory": "4096Mi"}});
        assert_eq!(got(Some(fits.clone()), &policy), Ok(fits));
        let more = got(Some(json!({"limits": {"memory": "4097Mi"}})), &policy).expect_err("refused");
        assert_eq!(
            more,
            "spec.resources.limits.memory: BuildPolicy p: f allows 4Gi, found 4097Mi; ask for less, or ask the platform team to allow it"
        );
        let request = got(Some(json!({"requests": {"nvidia.com/gpu": 2}})), &policy).expect_err("refused");
        assert!(request.starts_with("spec.resources.requests.nvidia.com/gpu"), "{request}");
    }

    #[test]
    fn who_names_no_limit_gets_the_ceiling_and_sets_no_more_aside() {
        let policy =
            policy(json!({"requests": {"cpu": "250m"}}), &[("cpu", "2"), ("memory", "1Gi"), ("x/y", "3")]);
        let got = got(Some(json!({"requests": {"memory": "1Mi"}})), &policy).expect("fine");
        assert_eq!(
            got,
            json!({"requests": {"memory": "1Mi", "cpu": "250m"}, "limits": {"cpu": "2", "memory": "1Gi"}})
        );
    }
}
