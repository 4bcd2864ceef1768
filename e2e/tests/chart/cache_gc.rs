//! The CronJob that looks after caches of steps.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Rendered, is_locked_down, render};

/// What `cacheGC` renders with these values beside its being there.
fn cache_gc(values: &[&str]) -> Result<Rendered> {
    let mut all = vec!["cacheGC.enabled=true", "cacheGC.repositories={registry.example.com/a/cache}"];
    all.extend(values);
    render(&all)
}

#[test]
fn the_cache_is_looked_after_when_asked_for() -> Result<()> {
    ensure!(render(&[])?.all("CronJob").is_empty());
    let rendered = cache_gc(&[
        "cacheGC.repositories[1]=registry.example.com:5000/b/cache",
        "cacheGC.maxSize=50Gi",
        "cacheGC.dryRun=true",
        "cacheGC.authSecret=logins",
        "cacheGC.caConfigMap=authorities",
        "registries.insecure={registry.example.com:5000}",
    ])?;
    let job = rendered.one("CronJob", "-cache-gc")?;
    ensure!(job["spec"]["schedule"] == "17 3 * * *" && job["spec"]["concurrencyPolicy"] == "Forbid");
    let pod = &job["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    ensure!(pod["automountServiceAccountToken"] == false && pod["restartPolicy"] == "Never");
    ensure!(pod["securityContext"]["runAsNonRoot"] == true);
    let container = &pod["containers"][0];
    is_locked_down(container)?;
    ensure!(container["command"] == json!(["/kiln-courier", "cache-gc"]), "{}", container["command"]);
    let args = json!([
        "--max-age=30d",
        "--max-size=50Gi",
        "--dry-run",
        "--insecure=registry.example.com:5000",
        "registry.example.com/a/cache",
        "registry.example.com:5000/b/cache"
    ]);
    ensure!(container["args"] == args, "{}", container["args"]);
    ensure!(container["env"] == json!([{"name": "SSL_CERT_FILE", "value": "/kiln/ca/ca.crt"}]));
    // Where the program looks for logins, under the name that it knows (kiln_contract::paths).
    let auth = json!({"name": "auth", "secret": {"secretName": "logins", "defaultMode": 0o440,
        "items": [{"key": ".dockerconfigjson", "path": "config.json"}]}});
    ensure!(pod["volumes"][0] == auth, "{}", pod["volumes"]);
    let mounted = container["volumeMounts"][0]["mountPath"].as_str().context("a path")?;
    ensure!(Path::new(mounted).parent() == Some(Path::new("/kiln/auth")), "{mounted}");
    // What says nothing renders nothing.
    let plain = cache_gc(&[])?;
    let job = plain.one("CronJob", "-cache-gc")?;
    let pod = &job["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    ensure!(pod["volumes"].is_null() && pod["containers"][0]["env"].is_null(), "{pod}");
    for (values, words) in [
        (vec!["cacheGC.enabled=true"], "cacheGC.repositories is empty"),
        (vec!["cacheGC.enabled=true", "cacheGC.repositories={r.x/c}", "cacheGC.maxAge="], "without a limit"),
    ] {
        let error = render(&values).map(drop).unwrap_err().to_string();
        ensure!(error.contains(words), "{error}");
    }
    Ok(())
}
