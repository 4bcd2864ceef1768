//! Whether a pod was changed on its way into the cluster, where that matters. Pure.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

/// How a pod that the API server made differs from the one that was asked for, where that matters: an admission webhook
/// gave `build` something that it should not have, or a neighbour.
pub fn deviation(asked: &Pod, made: &Pod) -> Option<String> {
    let (asked, made) = (asked.spec.as_ref()?, made.spec.as_ref()?);
    let names = |spec: &PodSpec| -> Vec<String> {
        let all = spec.init_containers.iter().flatten().chain(&spec.containers);
        all.map(|c| c.name.clone()).collect()
    };
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
    let (asked, made) = (asked.containers.first()?, made.containers.first()?);
    let mounts = |c: &Container| -> Vec<(String, String)> {
        c.volume_mounts.iter().flatten().map(|m| (m.name.clone(), m.mount_path.clone())).collect()
    };
    if let Some((name, path)) = mounts(made).iter().find(|m| !mounts(asked).contains(m)) {
        return Some(format!("container build has the volume {name} at {path}"));
    }
    if let Some(variable) = made.env.iter().flatten().next() {
        return Some(format!("container build has the environment variable {}", variable.name));
    }
    if made.env_from.iter().flatten().next().is_some() {
        return Some("container build has an environment from elsewhere (envFrom)".to_owned());
    }
    if made.image != asked.image || made.command != asked.command {
        return Some("container build runs another program".to_owned());
    }
    let security = |c: &Container| {
        let s = c.security_context.clone().unwrap_or_default();
        (s.privileged.unwrap_or(false), s.capabilities, s.run_as_user)
    };
    (security(asked) != security(made)).then(|| "container build has another security context".to_owned())
}
