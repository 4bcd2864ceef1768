//! What the Helm chart renders and what it refuses. Needs helm in PATH (`scripts/chart-test` sees to that) and no cluster.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use kiln_api::v1alpha1::ImageBuild;
use kiln_operator::config::Config;
use serde_json::{Value, json};

#[path = "chart/cache_gc.rs"]
mod cache_gc;
#[path = "chart/rights.rs"]
mod rights;

/// The oldest Kubernetes that the chart takes. helm, without a cluster, has to be told one.
const KUBERNETES: &str = "1.33.0";
/// Where the chart is installed in these tests.
const NAMESPACE: &str = "kiln-system";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn chart() -> PathBuf {
    repository().join("charts/kiln")
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(repository().join(path)).with_context(|| path.to_owned())
}

/// helm's output, or an error with what it said.
fn helm(command: &str, chart: &Path, arguments: &[&str]) -> Result<String> {
    let mut words = vec![command];
    words.extend((command == "template").then_some("kiln"));
    let done = Command::new("helm")
        .args(words)
        .arg(chart)
        .args(["--namespace", NAMESPACE, "--kube-version", KUBERNETES])
        .args(arguments)
        .env_remove("KUBECONFIG")
        .output()
        .context("helm can't be started; `make chart-test` builds it where it is missing")?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(
        done.status.success(),
        "helm {command} {arguments:?}: {}{said}",
        String::from_utf8_lossy(&done.stdout)
    );
    Ok(String::from_utf8(done.stdout)?)
}

/// The objects of a rendered chart.
struct Rendered(Vec<Value>);

fn rendered(chart: &Path, arguments: &[&str]) -> Result<Rendered> {
    let documents: Vec<Option<Value>> = serde_saphyr::from_multiple(&helm("template", chart, arguments)?)?;
    Ok(Rendered(documents.into_iter().flatten().collect()))
}

/// Rendered with these `--set` values.
fn render(values: &[&str]) -> Result<Rendered> {
    let arguments: Vec<&str> = values.iter().flat_map(|value| ["--set", value]).collect();
    rendered(&chart(), &arguments)
}

/// Rendered with a values file of this content.
fn render_file(values: &Value) -> Result<Rendered> {
    let file = tempfile::NamedTempFile::new()?;
    // JSON is YAML.
    std::fs::write(file.path(), values.to_string())?;
    rendered(&chart(), &["--values", file.path().to_str().context("a path in UTF-8")?])
}

impl Rendered {
    fn all(&self, kind: &str) -> Vec<&Value> {
        self.0.iter().filter(|object| object["kind"] == kind).collect()
    }

    /// The only object of a kind whose name ends so.
    fn one(&self, kind: &str, ending: &str) -> Result<&Value> {
        let named = |o: &&Value| o["metadata"]["name"].as_str().is_some_and(|name| name.ends_with(ending));
        match self.all(kind).into_iter().filter(named).collect::<Vec<_>>()[..] {
            [object] => Ok(object),
            ref found => bail!("expected one {kind} …{ending}, found {}", found.len()),
        }
    }

    /// The operator's settings, read by the operator's own parser.
    fn config(&self) -> Result<Config> {
        let text =
            self.one("ConfigMap", "-config")?["data"]["config.yaml"].as_str().context("config.yaml")?;
        Config::parse(text)
            .map_err(|error| anyhow::anyhow!("the operator refuses its settings: {error}\n{text}"))
    }
}

/// What NOTES.txt tells with these values: rendered as a ConfigMap, because `helm template` leaves it out.
fn notes(values: &[&str]) -> Result<String> {
    let copy = tempfile::tempdir()?;
    let status = Command::new("cp").arg("-r").arg(chart()).arg(copy.path().join("kiln")).status()?;
    ensure!(status.success());
    let templates = copy.path().join("kiln/templates");
    let text = std::fs::read_to_string(templates.join("NOTES.txt"))?;
    let wrapped = format!(
        "{{{{- define \"test.notes\" -}}}}\n{text}{{{{- end }}}}\napiVersion: v1\nkind: ConfigMap\n\
         metadata: {{name: test-notes}}\ndata: {{text: {{{{ include \"test.notes\" . | toJson }}}}}}\n"
    );
    std::fs::write(templates.join("test-notes.yaml"), wrapped)?;
    let arguments: Vec<&str> = values.iter().flat_map(|value| ["--set", value]).collect();
    let rendered = rendered(&copy.path().join("kiln"), &arguments)?;
    let text = rendered.one("ConfigMap", "test-notes")?["data"]["text"].as_str().context("the notes")?;
    Ok(text.to_owned())
}

#[test]
fn it_lints_strictly() -> Result<()> {
    let cluster = repository().join("e2e/values.yaml");
    for arguments in [vec![], vec!["--values", cluster.to_str().context("a path in UTF-8")?]] {
        let arguments = [vec!["--strict"], arguments].concat();
        ensure!(helm("lint", &chart(), &arguments)?.contains("1 chart(s) linted, 0 chart(s) failed"));
    }
    Ok(())
}

#[test]
fn an_old_kubernetes_is_refused() -> Result<()> {
    let error = helm("template", &chart(), &["--kube-version", "1.32.9"]).map(drop).unwrap_err().to_string();
    ensure!(error.contains("requires kubeVersion"), "{error}");
    Ok(())
}

#[test]
fn the_crd_is_that_of_the_api_and_stays() -> Result<()> {
    for name in ["imagebuilds.kiln.build", "buildpolicies.kiln.build"] {
        let mut crd = render(&[])?.one("CustomResourceDefinition", name)?.clone();
        let annotations =
            crd["metadata"].as_object_mut().and_then(|m| m.remove("annotations")).unwrap_or_default();
        ensure!(annotations == json!({"helm.sh/resource-policy": "keep"}), "{annotations}");
        let of_the_api: Value = serde_saphyr::from_str(&read(&format!("crds/{name}.yaml"))?)?;
        ensure!(crd == of_the_api, "the chart's CRD differs from crds/{name}.yaml; run `make crds`");
    }
    ensure!(render(&["crds.install=false"])?.all("CustomResourceDefinition").is_empty());
    Ok(())
}

/// What holds for every container of the chart: nothing to write to, no capability, no way to more rights.
fn is_locked_down(container: &Value) -> Result<()> {
    let wanted = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    });
    ensure!(container["securityContext"] == wanted, "{}", container["securityContext"]);
    Ok(())
}

#[test]
fn the_operator_runs_without_rights_on_its_node() -> Result<()> {
    let rendered = render(&[])?;
    let pod = &rendered.one("Deployment", "-operator")?["spec"]["template"]["spec"];
    let user = json!({"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"}});
    ensure!(pod["securityContext"] == user, "{}", pod["securityContext"]);
    for key in ["hostNetwork", "hostPID", "hostIPC", "initContainers"] {
        ensure!(pod[key].is_null(), "{key}: {}", pod[key]);
    }
    let containers = pod["containers"].as_array().context("containers")?;
    ensure!(containers.len() == 1);
    is_locked_down(&containers[0])?;
    let volumes = pod["volumes"].as_array().context("volumes")?;
    ensure!(volumes.len() == 1 && volumes[0]["configMap"]["name"] == "kiln-config", "{volumes:?}");
    Ok(())
}

#[test]
fn the_node_agent_is_root_of_one_directory_only() -> Result<()> {
    let rendered = render(&["builder.seccomp.directory=/data/kubelet/seccomp"])?;
    let pod = &rendered.one("DaemonSet", "-node")?["spec"]["template"]["spec"];
    ensure!(pod["automountServiceAccountToken"] == false && pod["serviceAccountName"].is_null());
    ensure!(pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault");
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        ensure!(pod[key].is_null(), "{key}: {}", pod[key]);
    }
    let containers = pod["containers"].as_array().context("containers")?;
    ensure!(containers.len() == 1);
    is_locked_down(&containers[0])?;
    let host: Vec<_> = pod["volumes"]
        .as_array()
        .context("volumes")?
        .iter()
        .filter_map(|v| v["hostPath"]["path"].as_str())
        .collect();
    ensure!(host == ["/data/kubelet/seccomp"], "{host:?}");
    // The profile arrives as it lies in the chart, at the place that the operator's settings name.
    let profile =
        rendered.one("ConfigMap", "-seccomp")?["data"]["build.json"].as_str().context("build.json")?;
    ensure!(profile.trim() == read("charts/kiln/files/seccomp-build.json")?.trim());
    ensure!(serde_json::from_str::<Value>(profile)?["defaultAction"] == "SCMP_ACT_ERRNO");
    let named = rendered.config()?.seccomp_profile.context("seccompProfile")?;
    let to = json!(["--profile", "/profile/build.json", "--to", format!("/seccomp/{named}")]);
    ensure!(containers[0]["args"] == to, "{}", containers[0]["args"]);
    Ok(())
}

#[test]
fn without_its_install_the_profile_is_left_to_the_user() -> Result<()> {
    let rendered = render(&["builder.seccomp.install=false"])?;
    ensure!(rendered.all("DaemonSet").is_empty() && rendered.one("ConfigMap", "-seccomp").is_err());
    ensure!(rendered.config()?.seccomp_profile.as_deref() == Some("kiln/build.json"), "it is still used");
    let without = render(&["builder.seccomp.profile="])?;
    ensure!(without.all("DaemonSet").is_empty() && without.config()?.seccomp_profile.is_none());
    let said = "kiln/build.json is not installed";
    ensure!(notes(&["builder.seccomp.install=false"])?.contains(said) && !notes(&[])?.contains(said));
    Ok(())
}

#[test]
fn the_operator_reads_its_settings() -> Result<()> {
    let rendered = render(&[])?;
    let config = rendered.config()?;
    ensure!(config.builder_image == "kiln.local/kiln-builder:0.1.0", "{}", config.builder_image);
    ensure!(config.source_image.as_deref() == Some("kiln.local/kiln-source:0.1.0"), "{config:?}");
    ensure!(render(&["source.image.repository="])?.config()?.source_image.is_none());
    ensure!(config.isolation.as_str() == "UserNamespace" && config.allowed_isolations.len() == 2);
    ensure!(config.proc_mount_unmasked && config.watch_namespaces.is_empty());
    ensure!(config.max_concurrent_builds_per_namespace == 0);
    ensure!(config.max_concurrent_builds == 20 && config.defaults.timeout.seconds() == 3600);
    ensure!(config.pod_start_grace.seconds() == 600 && config.defaults.work_size_limit == "50Gi");
    // The pod is told where they are, and starts anew when they change.
    let template = &rendered.one("Deployment", "-operator")?["spec"]["template"];
    let container = &template["spec"]["containers"][0];
    let mount = container["volumeMounts"][0]["mountPath"].as_str().context("mountPath")?;
    ensure!(
        container["args"] == json!(["--config", format!("{mount}/config.yaml")]),
        "{}",
        container["args"]
    );
    let checksum = |r: &Rendered| -> Result<Value> {
        let annotations = &r.one("Deployment", "-operator")?["spec"]["template"]["metadata"]["annotations"];
        Ok(annotations["kiln.build/config-checksum"].clone())
    };
    ensure!(checksum(&rendered)?.is_string() && checksum(&rendered)? == checksum(&render(&[])?)?);
    ensure!(checksum(&rendered)? != checksum(&render(&["maxConcurrentBuilds=3"])?)?);
    Ok(())
}

#[test]
fn every_setting_reaches_the_operator() -> Result<()> {
    let digest = format!("sha256:{}", "a".repeat(64));
    let config = render_file(&json!({
        "builder": {
            "image": {"repository": "registry.example.com:5000/kiln/builder", "tag": "2", "digest": digest, "pullPolicy": "Always"},
            "isolation": "HostRange", "allowedIsolations": ["HostRange"], "procMountUnmasked": false,
            "seccomp": {"profile": "team/a.json"}, "appArmor": {"profile": "team-a"},
        },
        "source": {"image": {"repository": "registry.example.com:5000/kiln/source", "tag": "3"}},
        "registries": {
            "mirrors": [{"registry": "docker.io", "mirrors": ["mirror.example.com/hub", "[::1]:5000"]}],
            "insecure": ["[::1]:5000"],
        },
        "defaults": {
            "timeout": "1h30m",
            "resources": {"requests": {"cpu": 0.5, "memory": 5_000_000_000_u64}, "limits": {"cpu": 2, "memory": "4Gi"}},
            "workSizeLimit": "1.5Ti",
        },
        "maxConcurrentBuilds": 1_000_000,
        "maxConcurrentBuildsPerNamespace": 3_000_000,
        "watchNamespaces": ["1", "team-a"],
        "podStartGrace": "90s",
    }))?
    .config()?;
    ensure!(config.builder_image == format!("registry.example.com:5000/kiln/builder@{digest}"), "{config:?}");
    ensure!(config.source_image.as_deref() == Some("registry.example.com:5000/kiln/source:3"), "{config:?}");
    ensure!(config.image_pull_policy.as_str() == "Always");
    ensure!(config.isolation.as_str() == "HostRange" && config.allowed_isolations == [config.isolation]);
    ensure!(!config.proc_mount_unmasked && config.seccomp_profile.as_deref() == Some("team/a.json"));
    ensure!(config.app_armor_profile.as_deref() == Some("team-a"));
    let mirror = &config.registries.mirrors[0];
    ensure!(mirror.registry == "docker.io" && mirror.mirrors == ["mirror.example.com/hub", "[::1]:5000"]);
    ensure!(config.registries.insecure == ["[::1]:5000"]);
    ensure!(config.defaults.timeout.seconds() == 5400 && config.pod_start_grace.seconds() == 90);
    let quantities =
        serde_json::to_value((&config.defaults.resources.requests, &config.defaults.resources.limits))?;
    let wanted = json!([{"cpu": "0.5", "memory": "5000000000"}, {"cpu": "2", "memory": "4Gi"}]);
    ensure!(quantities == wanted, "{quantities}");
    ensure!(config.defaults.work_size_limit == "1.5Ti" && config.max_concurrent_builds == 1_000_000);
    ensure!(config.watch_namespaces == ["1", "team-a"], "{:?}", config.watch_namespaces);
    ensure!(config.max_concurrent_builds_per_namespace == 3_000_000, "{config:?}");
    ensure!(render(&["maxConcurrentBuilds=0"])?.config()?.max_concurrent_builds == 0);
    let cluster: Value = serde_saphyr::from_str(&read("e2e/values.yaml")?)?;
    ensure!(render_file(&cluster)?.config()?.registries.insecure.len() == 2);
    Ok(())
}

#[test]
fn metrics_dashboards_and_traces_are_there_when_asked_for() -> Result<()> {
    let plain = render(&[])?;
    let environment = |rendered: &Rendered| -> Result<Value> {
        Ok(rendered.one("Deployment", "-operator")?["spec"]["template"]["spec"]["containers"][0]["env"]
            .clone())
    };
    ensure!(plain.one("ConfigMap", "-dashboard").is_err() && plain.all("PrometheusRule").is_empty());
    ensure!(!environment(&plain)?.to_string().contains("OTEL"));
    let rendered = render_file(&json!({
        "metrics": {"dashboard": true, "rules": true},
        "traces": {"endpoint": "http://collector.observability:4318"},
        "operator": {"extraEnv": [{"name": "OTEL_EXPORTER_OTLP_HEADERS", "value": "x=y"}]},
    }))?;
    let dashboard = rendered.one("ConfigMap", "-dashboard")?;
    ensure!(dashboard["metadata"]["labels"]["grafana_dashboard"] == "1");
    let text = dashboard["data"]["kiln.json"].as_str().context("kiln.json")?;
    let same: Value = serde_json::from_str(text)?;
    ensure!(same == serde_json::from_str::<Value>(&read("charts/kiln/files/dashboard.json")?)?);
    ensure!(rendered.one("PrometheusRule", "kiln")?["spec"]["groups"][0]["rules"].is_array());
    let environment = environment(&rendered)?;
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.observability:4318"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x=y"),
    ] {
        let wanted = json!({"name": name, "value": value});
        ensure!(environment.as_array().is_some_and(|env| env.contains(&wanted)), "{environment}");
    }
    ensure!(render(&["traces.endpoint=collector:4318"]).is_err(), "an endpoint is a URL");
    Ok(())
}

#[test]
fn unknown_values_are_refused_by_name() -> Result<()> {
    for (value, word) in [
        ("operatr.replicas=1", "operatr"),
        ("builder.isolaton=HostRange", "isolaton"),
        ("builder.seccomp.instal=false", "instal"),
        ("operator.image.tga=1", "tga"),
        ("operator.resources.limit.memory=1Gi", "limit"),
        ("defaults.resources.request.memory=1Gi", "request"),
        ("registries.mirrors[0].registry=docker.io,registries.mirrors[0].mirror=a.example.com", "mirror"),
        ("builder.isolation=None", "isolation"),
        ("builder.seccomp.profile=../../etc/passwd", "profile"),
        ("watchNamespaces=team-a", "watchNamespaces"),
        ("defaults.timeout=soon", "timeout"),
        ("cacheGC.maxAge=soon", "maxAge"),
        ("cacheGC.maxSize=50GB", "maxSize"),
        ("cacheGC.repositories={cache}", "repositories"),
        ("maxConcurrentBuilds=-1", "maxConcurrentBuilds"),
        ("maxConcurrentBuildsPerNamespace=some", "maxConcurrentBuildsPerNamespace"),
    ] {
        let Err(error) = render(&[value]) else { bail!("{value} was taken") };
        let error = error.to_string();
        ensure!(
            error.contains("values don't meet the specifications") && error.contains(word),
            "{value}: {error}"
        );
    }
    for value in ["global.x=1", "global.imageRegistry.host=registry.example.com"] {
        render(&[value])?;
    }
    Ok(())
}

/// Whether all of `part` is in `whole`.
fn holds(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, part)| whole.get(key).is_some_and(|whole| holds(whole, part)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| holds(whole, part))
        }
        _ => whole == part,
    }
}

/// An ImageBuild that the API takes, with no field that it does not know.
fn image_build(yaml: &str) -> Result<ImageBuild> {
    let object: Value = serde_saphyr::from_str(yaml)?;
    let crd = &render(&[])?.one("CustomResourceDefinition", "imagebuilds.kiln.build")?["spec"]["versions"][0]
        .clone();
    let schema = jsonschema::validator_for(&crd["schema"]["openAPIV3Schema"])?;
    schema.validate(&object).map_err(|error| anyhow::anyhow!("{error}"))?;
    let build: ImageBuild = serde_json::from_value(object.clone())?;
    ensure!(holds(&serde_json::to_value(&build)?, &object), "a field is unknown in {object}");
    Ok(build)
}

#[test]
fn the_notes_name_the_next_command() -> Result<()> {
    for (values, namespace) in [(vec![], "default"), (vec!["watchNamespaces={team-a,team-b}"], "team-a")] {
        let notes = notes(&values)?;
        let (_, rest) = notes.split_once("kubectl apply -f - <<'EOF'\n").context("the command")?;
        let (object, rest) = rest.split_once("\n  EOF").context("its end")?;
        ensure!(image_build(object)?.metadata.namespace.as_deref() == Some(namespace), "{notes}");
        let wait = format!("kubectl wait imagebuild/hello -n {namespace} --for=condition=Ready");
        ensure!(rest.contains(&wait), "{notes}");
        ensure!(notes.starts_with("Kiln 0.1.0 is installed in kiln-system."), "{notes}");
    }
    ensure!(notes(&["watchNamespaces={team-a,team-b}"])?.contains("It builds in: team-a, team-b."));
    Ok(())
}

#[test]
fn the_examples_are_image_builds() -> Result<()> {
    for name in ["seed", "debian-redis"] {
        let build = image_build(&read(&format!("examples/{name}.yaml"))?)?;
        ensure!(build.metadata.name.as_deref() == Some(name));
    }
    Ok(())
}

/// Compares the names in `values` with those in the schema, and tells what is on one side only.
fn compare(path: &str, values: &Value, schema: &Value, root: &Value, found: &mut Vec<String>) {
    let reference = schema["$ref"].as_str().and_then(|r| root.pointer(r.trim_start_matches('#')));
    let schema = reference.unwrap_or(schema);
    let Some(known) = schema["properties"].as_object() else { return };
    if schema["additionalProperties"] != false {
        found.push(format!("{path}: the schema lets unknown names through"));
    }
    let Some(given) = values.as_object() else {
        found.push(format!("{path}: the schema has an object, values.yaml has not"));
        return;
    };
    let place = |key: &String| format!("{path}.{key}").trim_start_matches('.').to_owned();
    found
        .extend(given.keys().filter(|k| !known.contains_key(*k)).map(|k| place(k) + " is not in the schema"));
    for (key, schema) in known {
        match given.get(key) {
            Some(value) => compare(&place(key), value, schema, root, found),
            None => found.push(place(key) + " is not in values.yaml"),
        }
    }
}

#[test]
fn values_and_schema_have_the_same_names() -> Result<()> {
    let values: Value = serde_saphyr::from_str(&read("charts/kiln/values.yaml")?)?;
    let schema: Value = serde_json::from_str(&read("charts/kiln/values.schema.json")?)?;
    let mut found = Vec::new();
    compare("", &values, &schema, &schema, &mut found);
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}
