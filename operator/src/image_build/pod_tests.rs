//! Tests of the pod: who gets what, and what admission may not change.

use super::*;
use crate::image_build::deviation::deviation;
use crate::image_build::testing::{blueprint, desired};
use crate::image_build::validate::Buildable;

fn make(isolation: Isolation, more: &str, secrets: &[String]) -> (Pod, ConfigMap) {
    let mut desired = desired("v1:a");
    desired.isolation = isolation;
    make_for(&desired, more, secrets)
}

fn make_for(desired: &Desired, more: &str, secrets: &[String]) -> (Pod, ConfigMap) {
    let Buildable::Yes(build) = desired.buildable.clone() else { panic!("not buildable") };
    let config = Config::parse(&format!("builderImage: b:1\n{more}")).expect("it is good");
    let owner = OwnerReference { uid: "u".into(), name: "app".into(), ..OwnerReference::default() };
    let blueprint = Blueprint { secrets, ..blueprint(desired, &build, &owner, &config) };
    (blueprint.pod(), blueprint.request())
}

fn spec(pod: &Pod) -> &PodSpec {
    pod.spec.as_ref().expect("a spec")
}

#[test]
fn the_build_container_holds_nothing() {
    let (pod, request) = make(Isolation::UserNamespace, "seccompProfile: kiln/build.json", &["s".into()]);
    let build = &spec(&pod).containers[0];
    let security = build.security_context.as_ref().expect("a security context");
    let capabilities = security.capabilities.as_ref().expect("capabilities");
    assert_eq!(capabilities.add, Some(vec!["SETUID".to_owned(), "SETGID".to_owned()]));
    assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]));
    assert_eq!((security.privileged, security.proc_mount.as_deref()), (None, Some("Unmasked")));
    assert!(build.env.is_none() && build.env_from.is_none());
    let mounts: Vec<_> = build.volume_mounts.iter().flatten().map(|m| m.name.as_str()).collect();
    assert_eq!(mounts, ["request", "socket", "work"]);
    assert_eq!(spec(&pod).automount_service_account_token, Some(false));
    assert_eq!(spec(&pod).host_users, Some(false));
    assert_eq!(request.immutable, Some(true));
    assert_eq!(request.metadata.owner_references, pod.metadata.owner_references);
}

#[test]
fn a_claim_is_the_build_containers_alone() {
    let mut desired = desired("v1:a");
    let Buildable::Yes(build) = &mut desired.buildable else { panic!("not buildable") };
    build.cache_claim = Some("caches".into());
    let (pod, _) = make_for(&desired, "", &["s".into()]);
    let spec = spec(&pod);
    let has = |c: &Container| c.volume_mounts.iter().flatten().any(|m| m.name == "cache-mounts");
    let with: Vec<_> =
        spec.init_containers.iter().flatten().chain(&spec.containers).filter(|c| has(c)).collect();
    let names: Vec<_> = with.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, [paths::BUILD_CONTAINER]);
    let mounted = with[0].volume_mounts.iter().flatten().find(|m| m.name == "cache-mounts").expect("mounted");
    assert_eq!((mounted.mount_path.as_str(), mounted.read_only), (paths::CACHE_MOUNTS_DIR, None));
    let volume = spec.volumes.iter().flatten().find(|v| v.name == "cache-mounts").expect("a volume");
    let claim = volume.persistent_volume_claim.as_ref().expect("a claim");
    assert_eq!((claim.claim_name.as_str(), claim.read_only), ("caches", None));
    // Nobody else may be given it, and no other one.
    let mut made = pod.clone();
    let courier = &mut made.spec.as_mut().expect("a spec").init_containers.as_mut().expect("containers")[0];
    assert_eq!(courier.name, paths::COURIER_CONTAINER);
    assert_eq!(deviation(&pod, &made), None);
    let (without, _) = make(Isolation::UserNamespace, "", &["s".into()]);
    assert!(deviation(&without, &pod).expect("another volume").contains("cache-mounts"));
}

#[test]
fn host_range_never_unmasks_proc_and_shares_the_nodes_users() {
    let (pod, _) = make(Isolation::HostRange, "", &[]);
    let security = spec(&pod).containers[0].security_context.clone().expect("a security context");
    assert_eq!((spec(&pod).host_users, security.proc_mount), (Some(true), None));
    assert_eq!(security.seccomp_profile, None, "unset: the kubelet decides");
}

#[test]
fn an_app_armor_profile_is_named_or_left_to_the_runtime() {
    let profile = |more: &str| {
        let (pod, _) = make(Isolation::UserNamespace, more, &[]);
        let security = spec(&pod).containers[0].security_context.clone().expect("a security context");
        security.app_armor_profile.map(|p| (p.type_, p.localhost_profile))
    };
    assert_eq!(profile(""), None);
    assert_eq!(profile("appArmorProfile: Unconfined"), Some(("Unconfined".into(), None)));
    assert_eq!(profile("appArmorProfile: kiln"), Some(("Localhost".into(), Some("kiln".into()))));
}

#[test]
fn secrets_are_the_couriers_alone() {
    let (pod, _) = make(Isolation::UserNamespace, "", &["a".into(), "b".into()]);
    let courier = &spec(&pod).init_containers.as_ref().expect("init containers")[0];
    let auth: Vec<_> =
        courier.volume_mounts.iter().flatten().filter(|m| m.name.starts_with("auth-")).collect();
    assert_eq!(
        auth.iter().map(|m| m.mount_path.as_str()).collect::<Vec<_>>(),
        ["/kiln/auth/0", "/kiln/auth/1"]
    );
    assert_eq!(courier.restart_policy.as_deref(), Some("Always"));
    let volumes = spec(&pod).volumes.as_ref().expect("volumes");
    assert_eq!(volumes.iter().filter(|v| v.secret.is_some()).count(), 2);
}

#[test]
fn what_steps_are_given_is_the_couriers_alone() {
    let mut desired = desired("v1:a");
    let given = |id: &str| Given { id: id.into(), secret: format!("s-{id}"), key: "k".into() };
    if let Buildable::Yes(build) = &mut desired.buildable {
        build.secrets = vec![given("npm"), given("pip.conf")];
        build.ssh = vec![given("default")];
    }
    let (pod, request) = make_for(&desired, "", &[]);
    let courier = &spec(&pod).init_containers.as_ref().expect("init containers")[0];
    let mounts = |c: &Container| -> Vec<String> {
        c.volume_mounts.iter().flatten().map(|m| format!("{} {:?}", m.mount_path, m.read_only)).collect()
    };
    let asked = mounts(courier);
    assert!(asked.contains(&"/kiln/secrets Some(true)".to_owned()), "{asked:?}");
    assert!(asked.contains(&"/kiln/ssh Some(true)".to_owned()), "{asked:?}");
    assert!(mounts(&spec(&pod).containers[0]).iter().all(|m| !m.contains("secrets") && !m.contains("ssh")));
    let volumes = serde_json::to_value(&spec(&pod).volumes).expect("JSON");
    let found = volumes.as_array().expect("a list").iter().find(|v| v["name"] == "secrets").expect("it");
    assert_eq!(
        found["projected"]["sources"][1]["secret"],
        serde_json::json!({"name": "s-pip.conf", "optional": false, "items": [{"key": "k", "path": "pip.conf"}]})
    );
    let request = request.data.expect("data").remove("request.json").expect("the request");
    assert!(!request.contains("s-npm"), "the builder need not know");
}

#[test]
fn what_admission_may_not_change_is_found() {
    let (asked, _) = make(Isolation::UserNamespace, "", &[]);
    assert_eq!(deviation(&asked, &asked), None);
    type Change = fn(&mut PodSpec);
    let changes: [(Change, &str); 7] = [
        (|s| s.containers[0].env = Some(vec![Default::default()]), "environment"),
        (|s| s.containers[0].env_from = Some(vec![Default::default()]), "envFrom"),
        (|s| s.containers.push(Container { name: "proxy".into(), ..Default::default() }), "proxy"),
        (|s| s.containers[0].volume_mounts.get_or_insert_default().push(mount("t", "/var/run")), "/var/run"),
        (|s| s.host_users = None, "hostUsers"),
        (|s| s.share_process_namespace = Some(true), "process namespace"),
        (|s| s.containers[0].security_context.get_or_insert_default().privileged = Some(true), "security"),
    ];
    for (change, word) in changes {
        let mut made = asked.clone();
        change(made.spec.as_mut().expect("a spec"));
        let found = deviation(&asked, &made).unwrap_or_default();
        assert!(found.contains(word), "{word}: {found}");
    }
    // What admission may add: defaults, tolerations, a node selector.
    let mut made = asked.clone();
    let spec = made.spec.as_mut().expect("a spec");
    spec.node_selector = Some(BTreeMap::from([("a".to_owned(), "b".to_owned())]));
    assert_eq!(deviation(&asked, &made), None);
}
