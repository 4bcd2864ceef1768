//! Tests of the values and names of metrics.

use super::*;
use crate::image_build::lifecycle::{Finish, begin_attempt, finish_run};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kiln_contract::{Failure, report::Pushed};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("a time")
}

fn running() -> ImageBuildStatus {
    ImageBuildStatus { run: Some(1), start_time: Some(Time(at(0))), ..ImageBuildStatus::default() }
}

fn pushed() -> Finish {
    Finish::Succeeded(Pushed { reference: "r.x/a:1".into(), digest: "sha256:1".into(), size: 7 })
}

fn failed() -> Finish {
    Finish::Failed(Failure::new(kiln_contract::FailureClass::User, "AnyWord", "m"))
}

fn lines(metrics: &Metrics) -> String {
    metrics.encode().expect("text")
}

#[test]
fn what_is_there_from_the_start() {
    let metrics = Metrics::new();
    metrics.set_leader(true);
    metrics.set_queue_depth(3);
    metrics.set_followers(2);
    metrics.wrote(Write::Pod);
    let text = lines(&metrics);
    for line in [
        "# TYPE kiln_build info",
        concat!("kiln_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        "# TYPE kiln_builds gauge",
        "kiln_builds{phase=\"pending\"} 0",
        "kiln_builds{phase=\"failed\"} 0",
        "kiln_reconciles_total{result=\"ok\"} 0",
        "kiln_attempts_total{kind=\"retry\"} 0",
        "kiln_api_writes_total{kind=\"pod\"} 1",
        "kiln_api_writes_total{kind=\"status\"} 0",
        "kiln_runs_total{result=\"Failed\",class=\"Timeout\"} 0",
        "# UNIT kiln_run_duration_seconds seconds",
        "# UNIT kiln_reconcile_duration_seconds seconds",
        "kiln_queue_depth 3",
        "kiln_journal_followers 2",
        "kiln_leader 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line:?} is not in:\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn reconciles_runs_and_attempts_are_counted() {
    let metrics = Metrics::new();
    metrics.reconciled(Ok(()), Duration::from_millis(2));
    metrics.reconciled(Err(&ReconcileError::Conflict), Duration::from_secs(1));
    metrics.waited(Kind::First, Duration::from_millis(50));
    let mut status = running();
    for (number, finish) in [(1, None), (2, Some(pushed()))] {
        let before = status.clone();
        begin_attempt(&mut status, format!("pod-{number}"), at(0));
        metrics.stored(&before, &status);
        let before = status.clone();
        if let Some(finish) = finish {
            finish_run(&mut status, finish, "ns", at(90));
        }
        metrics.stored(&before, &status);
        metrics.stored(&status, &status);
    }
    let mut ended = running();
    finish_run(&mut ended, failed(), "ns", at(5));
    metrics.stored(&running(), &ended);
    let mut late = running();
    let timeout = Failure::new(kiln_contract::FailureClass::Timeout, "TimedOut", "m");
    finish_run(&mut late, Finish::Failed(timeout), "ns", at(5));
    metrics.stored(&running(), &late);
    conditions::set(&mut status, &conditions::Phase::Finished, 1, at(90));
    metrics.show_builds(at(100), [&status, &running(), &running()]);
    let text = lines(&metrics);
    for line in [
        "kiln_reconciles_total{result=\"ok\"} 1",
        "kiln_reconciles_total{result=\"error\"} 1",
        "kiln_reconcile_errors_total{class=\"conflict\"} 1",
        "kiln_reconcile_duration_seconds_bucket{le=\"0.003\"} 1",
        "kiln_reconcile_duration_seconds_count 2",
        "kiln_reconcile_wait_seconds_bucket{le=\"0.03\",kind=\"first\"} 0",
        "kiln_reconcile_wait_seconds_bucket{le=\"0.1\",kind=\"first\"} 1",
        "kiln_reconcile_wait_seconds_count{kind=\"other\"} 0",
        "kiln_builds{phase=\"pending\"} 2",
        "kiln_builds{phase=\"succeeded\"} 1",
        "kiln_oldest_run_seconds{phase=\"pending\"} 100",
        "kiln_oldest_run_seconds{phase=\"building\"} 0",
        "kiln_runs_total{result=\"Succeeded\",class=\"None\"} 1",
        "kiln_runs_total{result=\"Failed\",class=\"User\"} 1",
        "kiln_run_failures_total{reason=\"TimedOut\"} 1",
        "kiln_run_failures_total{reason=\"Unknown\"} 1",
        "kiln_run_failures_total{reason=\"StepFailed\"} 0",
        "kiln_run_duration_seconds_bucket{le=\"60.0\",result=\"Succeeded\"} 0",
        "kiln_run_duration_seconds_bucket{le=\"120.0\",result=\"Succeeded\"} 1",
        "kiln_run_duration_seconds_sum{result=\"Succeeded\"} 90.0",
        "kiln_attempts_total{kind=\"first\"} 1",
        "kiln_attempts_total{kind=\"retry\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line:?} is not in:\n{text}");
    }
}

#[test]
fn phases_follow_the_conditions() {
    use crate::image_build::conditions::{Phase, set};
    let phase = |mut status: ImageBuildStatus, phase: &Phase| {
        set(&mut status, phase, 1, at(0));
        BuildPhase::of(&status)
    };
    let fresh = ImageBuildStatus::default;
    assert_eq!(BuildPhase::of(&fresh()), BuildPhase::Pending);
    assert_eq!(phase(fresh(), &Phase::active(reasons::QUEUED, "")), BuildPhase::Queued);
    assert_eq!(phase(fresh(), &Phase::active(reasons::TAGGING, "")), BuildPhase::Building);
    assert_eq!(phase(fresh(), &Phase::active(reasons::UNSCHEDULABLE, "")), BuildPhase::Pending);
    assert_eq!(phase(fresh(), &Phase::Suspended { stopping: false }), BuildPhase::Suspended);
    let cancelled = |failure| if let Finish::Failed(f) = failure { Finish::Cancelled(f) } else { failure };
    for (finish, expected) in [
        (pushed(), BuildPhase::Succeeded),
        (failed(), BuildPhase::Failed),
        (cancelled(failed()), BuildPhase::Failed),
    ] {
        let mut status = running();
        finish_run(&mut status, finish, "ns", at(1));
        assert_eq!(phase(status, &Phase::Finished), expected);
    }
    assert!(BuildPhase::ALL.iter().enumerate().all(|(n, phase)| *phase as usize == n));
}

#[test]
fn builds_that_wait_are_counted_by_what_they_wait_for() {
    use crate::image_build::conditions::{Phase, set};
    let waits = |reason: &str, queue: Option<&str>| {
        let mut status = running();
        status.queue =
            queue.map(|reason| kiln_api::v1alpha1::QueueStatus { position: 1, reason: reason.to_owned() });
        set(&mut status, &Phase::active(reason, ""), 1, at(0));
        status
    };
    let mut ended = waits(reasons::UNSCHEDULABLE, None);
    let lost = Failure::new(kiln_contract::FailureClass::Infrastructure, reasons::UNSCHEDULABLE, "m");
    finish_run(&mut ended, Finish::Failed(lost), "ns", at(9));
    set(&mut ended, &Phase::Finished, 1, at(9));
    let all = [
        waits(reasons::QUEUED, Some("Namespace")),
        waits(reasons::QUEUED, Some("Namespace")),
        waits(reasons::QUEUED, Some("Quota")),
        waits(reasons::UNSCHEDULABLE, None),
        waits(reasons::BUILDING, None),
        ended,
    ];
    let metrics = Metrics::new();
    metrics.show_builds(at(10), &all);
    let text = lines(&metrics);
    let waiting: Vec<_> =
        text.lines().filter(|l| l.starts_with("kiln_builds_waiting{") && !l.ends_with(" 0")).collect();
    assert_eq!(waiting.len(), 3, "{text}");
    for line in [
        "kiln_builds_waiting{reason=\"Namespace\"} 2",
        "kiln_builds_waiting{reason=\"Quota\"} 1",
        "kiln_builds_waiting{reason=\"Unschedulable\"} 1",
    ] {
        assert!(waiting.contains(&line), "{line:?} is not in:\n{text}");
    }
    metrics.show_builds(at(10), &[]);
    assert!(
        lines(&metrics).contains("kiln_builds_waiting{reason=\"Namespace\"} 0\n"),
        "nobody waits any more"
    );
}

#[test]
fn phases_and_steps_of_a_run_are_counted_once_it_has_ended() {
    let metrics = Metrics::new();
    let mut status = running();
    begin_attempt(&mut status, "pod-1".into(), at(40));
    let step = |state: &str, from: i64, to: i64| {
        serde_json::from_value(
            serde_json::json!({"index": 1, "stage": "0", "line": 1, "instruction": "RUN a",
            "state": state, "startedAt": MicroTime(at(from)), "finishedAt": MicroTime(at(to))}),
        )
        .expect("a step")
    };
    status.steps = vec![step("Cached", 45, 45), step("Done", 45, 75)];
    metrics.stored(&running(), &status);
    assert!(lines(&metrics).contains("kiln_steps_total{result=\"cached\"} 0\n"), "it has not ended");
    let before = status.clone();
    finish_run(&mut status, pushed(), "ns", at(85));
    metrics.stored(&before, &status);
    metrics.stored(&status, &status);
    let text = lines(&metrics);
    for line in [
        "kiln_run_phase_duration_seconds_sum{phase=\"queue\"} 40.0",
        "kiln_run_phase_duration_seconds_sum{phase=\"start\"} 5.0",
        "kiln_run_phase_duration_seconds_sum{phase=\"build\"} 30.0",
        "kiln_run_phase_duration_seconds_sum{phase=\"push\"} 10.0",
        "kiln_run_phase_duration_seconds_count{phase=\"push\"} 1",
        "kiln_steps_total{result=\"cached\"} 1",
        "kiln_steps_total{result=\"executed\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line:?} is not in:\n{text}");
    }
}

/// Names of series that a query asks for.
fn named(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c)))
        .filter(|word| word.starts_with("kiln_"))
}

#[test]
fn rules_and_dashboard_ask_for_series_that_there_are() {
    let metrics = Metrics::new();
    metrics.reconciled(Err(&ReconcileError::Conflict), Duration::ZERO);
    let text = lines(&metrics);
    let series: std::collections::BTreeSet<&str> =
        text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| named(l).next()).collect();
    let files = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/kiln/files");
    let rules = std::fs::read_to_string(files.join("rules.yaml")).expect("the rules");
    let dashboard = std::fs::read_to_string(files.join("dashboard.json")).expect("the dashboard");
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).expect("JSON");
    let queries: Vec<&str> = dashboard["panels"]
        .as_array()
        .expect("panels")
        .iter()
        .map(|panel| panel["targets"][0]["expr"].as_str().expect("a query"))
        .collect();
    assert!(queries.len() > 10 && named(&rules).count() > 10);
    for name in queries.iter().flat_map(|query| named(query)).chain(named(&rules)) {
        assert!(series.contains(name), "{name} is no series of the operator: {series:?}");
    }
}
