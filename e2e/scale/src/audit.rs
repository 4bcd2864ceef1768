//! Counts what the operator has written, by the API server's own audit log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// Writes by what was done: `patch imagebuilds/status`, `create pods`, ...
pub type Writes = BTreeMap<String, u64>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    verb: String,
    object_ref: Option<ObjectRef>,
    response_status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ObjectRef {
    resource: Option<String>,
    subresource: Option<String>,
}

#[derive(Deserialize)]
struct Status {
    code: Option<u16>,
}

/// Reads the log. The policy lets only the operator's writes into it. Refused ones are counted apart.
///
/// # Errors
/// It can't be read.
pub fn writes(log: &Path) -> Result<Writes> {
    let file = File::open(log).with_context(|| log.display().to_string())?;
    let mut writes = Writes::new();
    for line in BufReader::new(file).lines() {
        // The last line may be half written.
        if let Ok(entry) = serde_json::from_str::<Entry>(&line?) {
            count(&mut writes, entry);
        }
    }
    Ok(writes)
}

fn count(writes: &mut Writes, entry: Entry) {
    let Some(object) = entry.object_ref else { return };
    let resource = object.resource.unwrap_or_default();
    if resource == "leases" {
        return;
    }
    let sub = object.subresource.map(|s| format!("/{s}")).unwrap_or_default();
    let code = entry.response_status.and_then(|s| s.code).unwrap_or_default();
    let refused = if code >= 400 { format!(" ({code})") } else { String::new() };
    *writes.entry(format!("{} {resource}{sub}{refused}", entry.verb)).or_default() += 1;
}

/// Writes that are not the making of the build's pod and request.
pub fn beside_pod_and_request(writes: &Writes) -> u64 {
    let own = ["create pods", "create configmaps"];
    writes.iter().filter(|(what, _)| !own.contains(&what.as_str())).map(|(_, n)| n).sum()
}

/// What came between two counts.
pub fn since(before: &Writes, after: &Writes) -> Writes {
    let new = after.iter().map(|(what, n)| (what.clone(), n - before.get(what).unwrap_or(&0)));
    new.filter(|(_, n)| *n > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_counted_by_what_was_done() {
        let mut writes = Writes::new();
        for text in [
            r#"{"verb":"patch","objectRef":{"resource":"imagebuilds","subresource":"status"},"responseStatus":{"code":200}}"#,
            r#"{"verb":"patch","objectRef":{"resource":"imagebuilds","subresource":"status"},"responseStatus":{"code":409}}"#,
            r#"{"verb":"create","objectRef":{"resource":"pods"},"responseStatus":{"code":201}}"#,
            r#"{"verb":"update","objectRef":{"resource":"leases"},"responseStatus":{"code":200}}"#,
        ] {
            count(&mut writes, serde_json::from_str(text).expect("an entry"));
        }
        let known: Vec<&str> = writes.keys().map(String::as_str).collect();
        assert_eq!(known, ["create pods", "patch imagebuilds/status", "patch imagebuilds/status (409)"]);
        assert_eq!(beside_pod_and_request(&writes), 2);
        let first = Writes::from([("create pods".to_owned(), 1)]);
        assert_eq!(beside_pod_and_request(&since(&first, &writes)), 2);
        assert!(!since(&first, &writes).contains_key("create pods"));
    }
}
