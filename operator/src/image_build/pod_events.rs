//! Reads the Events about a pod that doesn't start: lists, no watch, of one pod, and seldom.

use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use kiln_contract::text::truncate;
use kube::api::{Api, ListParams};

use super::context::Context;
use super::error::timed;
use super::kubelet::{LOOK_EVERY, Warning};
use super::observe::PodView;

/// Events that are read of one pod: one says enough, repeated ones are counted in it.
const MAX_EVENTS: u32 = 50;
/// Between two lists, of whichever pods.
const APART: Duration = Duration::from_millis(200);
/// Bytes of a note that are kept; the API server allows 1 KiB.
const MAX_NOTE: usize = 1024;

/// The warnings about a pod, the newest first; as they were a moment ago where they were read then.
///
/// A list that fails costs the reason of the wait and nothing else, so that it is told and no error.
pub async fn warnings(ctx: &Context, owner: &str, pod: &PodView) -> Vec<Warning> {
    if let Some(known) = ctx.warnings(owner, &pod.uid, Duration::from_secs(LOOK_EVERY.unsigned_abs())) {
        return known;
    }
    // Where all pods are slow to start, nothing is gained by asking of each why.
    if !ctx.may_list_events(APART) {
        return ctx.warnings(owner, &pod.uid, Duration::MAX).unwrap_or_default();
    }
    let api: Api<Event> = Api::namespaced(ctx.client.clone(), &pod.namespace);
    let params =
        ListParams::default().fields(&format!("regarding.uid={},type=Warning", pod.uid)).limit(MAX_EVENTS);
    let found = match timed("list events", api.list(&params)).await {
        Ok(list) => sorted(list.items),
        Err(error) => {
            tracing::warn!(namespace = pod.namespace, pod = pod.name, %error, "can't read why a pod doesn't start");
            Vec::new()
        }
    };
    ctx.warned(owner, &pod.uid, found.clone());
    found
}

fn sorted(mut events: Vec<Event>) -> Vec<Warning> {
    events.sort_by_key(|event| std::cmp::Reverse(seen(event)));
    let warning = |event: Event| Warning {
        reason: event.reason.unwrap_or_default(),
        note: truncate(&event.note.unwrap_or_default(), MAX_NOTE),
    };
    events.into_iter().map(warning).collect()
}

/// When it was seen last. The kubelet writes Events of the old kind, whose times have other names here.
fn seen(event: &Event) -> Option<jiff::Timestamp> {
    let series = event.series.as_ref().map(|s| s.last_observed_time.0);
    let old = event.deprecated_last_timestamp.as_ref().map(|t| t.0);
    series.or(old).or(event.event_time.as_ref().map(|t| t.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_comes_first_whatever_its_kind() {
        let event = |json: serde_json::Value| serde_json::from_value::<Event>(json).expect("an Event");
        let events = vec![
            event(
                serde_json::json!({"eventTime": "2026-01-01T00:00:02.000000Z", "reason": "b", "note": "2"}),
            ),
            event(
                serde_json::json!({"eventTime": null, "deprecatedLastTimestamp": "2026-01-01T00:00:03Z", "reason": "a", "note": "3"}),
            ),
            event(serde_json::json!({"eventTime": "2026-01-01T00:00:00.000000Z", "reason": "c", "note": "1",
                "series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}})),
        ];
        let reasons: Vec<String> = sorted(events).into_iter().map(|w| w.reason).collect();
        assert_eq!(reasons, ["a", "b", "c"]);
    }
}
