//! Whether a pod was changed on its way into the cluster, where that matters. Pure.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kiln_contract::paths;

/// How a pod that the API server made differs from the one that was asked for, where that matters: an admission webhook
/// gave `build` or `git` something that it should not have, or the pod another container.
pub fn deviation(asked: &Pod, made: &Pod) -> Option<String> {
    let (asked, made) = (asked.spec.as_ref()?, made.spec.as_ref()?);
    let names = |spec: &PodSpec| -> Vec<String> { all(spec).map(|c| c.name.clone()).collect() };
    if names(asked) != names(made) {
        return Some(format!(
            "its containers are {}, expected {}",
            names(made).join(", "),
            names(asked).join(", ")
        ));
    }
    if made.host_network == Some(true) || made.host_pid == Some(true) || made.host_ipc == Some(true) {
        return Some("it shares a namespace of the node".to_owned());
    }
    if made.share_process_namespace == Some(true) {
        return Some("its containers share one process namespace".to_owned());
    }
    if made.host_users.unwrap_or(true) != asked.host_users.unwrap_or(true) {
        return Some(format!("hostUsers is {:?}, expected {:?}", made.host_users, asked.host_users));
    }
    // Both work on what strangers wrote.
    let bare = [paths::BUILD_CONTAINER, paths::GIT_CONTAINER];
    all(asked).filter(|c| bare.contains(&c.name.as_str())).find_map(|asked| {
        let made = all(made).find(|c| c.name == asked.name)?;
        changed(asked, made)
    })
}

fn all(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// How a container that is to hold nothing differs from what was asked for.
fn changed(asked: &Container, made: &Container) -> Option<String> {
    let name = &asked.name;
    let mounts = |c: &Container| -> Vec<(String, String)> {
        c.volume_mounts.iter().flatten().map(|m| (m.name.clone(), m.mount_path.clone())).collect()
    };
    if let Some((volume, path)) = mounts(made).iter().find(|m| !mounts(asked).contains(m)) {
        return Some(format!("container {name} has the volume {volume} at {path}"));
    }
    if let Some(variable) = made.env.iter().flatten().next() {
        return Some(format!("container {name} has the environment variable {}", variable.name));
    }
    if made.env_from.iter().flatten().next().is_some() {
        return Some(format!("container {name} has an environment from elsewhere (envFrom)"));
    }
    if made.image != asked.image || made.command != asked.command {
        return Some(format!("container {name} runs another program"));
    }
    let security = |c: &Container| {
        let s = c.security_context.clone().unwrap_or_default();
        (s.privileged.unwrap_or(false), s.capabilities, s.run_as_user)
    };
    (security(asked) != security(made)).then(|| format!("container {name} has another security context"))
}
