//! What a step may find and what it must be able to do.

use anyhow::{Result, ensure};
use kiln_e2e::cluster::{Sandbox, inline};
use kiln_e2e::{image, registry::Registry};

/// Looks for every credential, token, socket, descriptor and memory that a step should not reach. Each finding is a
/// line that begins with `FOUND`; the canary is the password of the registry Secret that the courier holds (the pattern
/// is written so that `grep` does not find its own command line).
const PROWLER: &str = r#"FROM busybox
COPY prowl.sh /prowl.sh
RUN sh /prowl.sh > /findings 2>&1; cat /findings
"#;

const PROWL: &str = r#"
found() { echo "FOUND $*"; }
[ -e /var/run/secrets/kubernetes.io/serviceaccount/token ] && found token
[ -e /kiln ] && found /kiln
for d in /kiln/request /kiln/socket /kiln/control /kiln/auth /kiln/state /kiln/work /run/kiln; do [ -e $d ] && found $d; done
find / -xdev -type s 2>/dev/null | while read -r s; do found socket "$s"; done
grep -a -l canary-012345678[9] /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | while read -r f; do found canary in "$f"; done
env | grep -i -E 'KUBERNETES|KILN|TOKEN|PASSWORD' | while read -r e; do found env "$e"; done
for p in /proc/[0-9]*; do
  pid=${p#/proc/}
  case $(readlink "/proc/$pid/root" 2>/dev/null) in ''|/) ;; *) found root of $pid ;; esac
  [ "$pid" = 1 ] || [ "$pid" = self ] || { grep -q -a kiln "/proc/$pid/comm" 2>/dev/null && dd if="/proc/$pid/mem" bs=1 count=1 >/dev/null 2>&1 && found memory of $pid; }
  grep -q -a -E '^kiln-(builder|courier)' "/proc/$pid/environ" 2>/dev/null && found environ of $pid
done
for fd in /proc/self/fd/*; do n=${fd##*/}; [ "$n" -gt 2 ] 2>/dev/null && case $(readlink "$fd") in *findings*|/proc/*|'') ;; *) found descriptor "$n" "$(readlink "$fd")" ;; esac; done
grep -E '/kiln|kubelet|termination-log|serviceaccount' /proc/self/mountinfo | while read -r m; do found mount "$m"; done
mount -t tmpfs none /mnt 2>/dev/null && found mount is allowed
unshare -m true 2>/dev/null && found unshare is allowed
echo 1 > /proc/sys/kernel/panic 2>/dev/null && found sysctl is writable
[ -w /sys/fs/cgroup/cgroup.procs ] && found cgroup is writable
dd if=/dev/kmsg of=/dev/null bs=1 count=1 2>/dev/null && found kmsg
kill -9 $(ls /proc | grep -E '^[0-9]+$' | grep -v -x -e $$ -e 1) 2>/dev/null
echo done
"#;

#[tokio::test]
async fn a_prowling_step_finds_nothing() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("prowl").await?;
    sandbox.registry_secret("canary", registry.host(), "canary-user", "canary-0123456789").await?;
    let mut spec = inline(PROWLER, &crate::target(&registry, &sandbox.name, "prowl"));
    let files = spec.pointer_mut("/source/inline/files").and_then(serde_json::Value::as_array_mut);
    files.into_iter().for_each(|f| f.push(serde_json::json!({"path": "prowl.sh", "content": PROWL})));
    sandbox.apply("prowl", &spec).await?;
    sandbox.succeeded("prowl", 120).await?;
    let found = image::read(&registry, &format!("{}/prowl", sandbox.name), "latest").await?;
    let findings = found.file("findings")?;
    ensure!(findings.contains("done"), "the prowler did not come to its end: {findings}");
    ensure!(!findings.contains("FOUND"), "{findings}");
    sandbox.remove().await
}

const COMFORTS: &str = "FROM debian\n\
    RUN apt-get update && apt-get install -y --no-install-recommends sudo psmisc\n\
    RUN useradd -m app && echo 'app ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/app\n\
    RUN sleep 1000 & until killall sleep; do :; done && echo killed > /killed\n\
    RUN install -d -o app -g app -m 2750 /srv/app && chown root:shadow /srv && stat -c '%U:%G %a' /srv/app /srv > /stat\n\
    USER app\n\
    RUN echo to-stdout > /dev/stdout && echo to-stderr > /dev/stderr\n\
    RUN sudo id -u > /tmp/id && id -un >> /tmp/id && sudo touch /root/by-sudo\n\
    RUN (sleep 2; touch /tmp/late) & true\n\
    RUN test ! -e /tmp/late && hostname > /tmp/hostname\n";

#[tokio::test]
async fn sudo_stdout_killall_and_owners_work_as_in_docker() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("comforts").await?;
    sandbox.apply("app", &inline(COMFORTS, &crate::target(&registry, &sandbox.name, "app"))).await?;
    sandbox.succeeded("app", 300).await?;
    let found = image::read(&registry, &format!("{}/app", sandbox.name), "latest").await?;
    ensure!(found.file("killed")? == "killed\n");
    ensure!(found.file("stat")? == "app:app 2750\nroot:shadow 755\n", "{}", found.file("stat")?);
    ensure!(found.file("tmp/id")? == "0\napp\n", "{}", found.file("tmp/id")?);
    ensure!(found.file("tmp/hostname")? == "buildkitsandbox\n");
    let files = found.files()?;
    ensure!(files.contains_key("root/by-sudo") && !files.contains_key("tmp/late"));
    ensure!(files["usr/bin/sudo"].mode & 0o4000 != 0, "sudo keeps its setuid bit");
    for stub in ["etc/resolv.conf", "etc/hosts"] {
        ensure!(
            files.get(stub).is_none_or(|e| !String::from_utf8_lossy(&e.content).contains("cluster.local")),
            "{stub}"
        );
    }
    let pod = sandbox.pods().await?.remove(0).metadata.name.unwrap_or_default();
    let log = sandbox.logs(&pod, "build").await?;
    ensure!(log.contains("\nto-stdout\n") && log.contains("\nto-stderr\n"), "{log}");
    sandbox.remove().await
}

#[tokio::test]
async fn host_range_builds_too() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("hostrange").await?;
    let dockerfile = "FROM busybox\nRUN id -u > /id && cat /proc/self/uid_map > /map && chown 33:33 /id\n";
    let mut spec = inline(dockerfile, &crate::target(&registry, &sandbox.name, "app"));
    spec["isolation"] = serde_json::json!("HostRange");
    sandbox.apply("app", &spec).await?;
    let build = sandbox.succeeded("app", 120).await?;
    ensure!(build["status"]["isolation"] == "HostRange");
    let found = image::read(&registry, &format!("{}/app", sandbox.name), "latest").await?;
    ensure!(found.file("id")? == "0\n" && found.files()?["id"].owner == (33, 33));
    let map = found.file("map")?;
    let outer: u64 = map.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or_default();
    ensure!(outer >= 65536, "the host's root is never mapped: {map}");
    sandbox.remove().await
}
