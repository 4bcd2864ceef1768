//! How an attempt ended. A valid report decides; without one the journal, then the pod, then its containers. Pure.

use kiln_contract::journal::{BuildState, StepPhase, steps};
use kiln_contract::report::{Outcome, Report};
use kiln_contract::{Failure, FailureClass, reason};

use super::observe::{ContainerView, PodView};

/// How the attempt ended whose pod is terminal, gone (`None`) or lost.
pub fn outcome(attempt: &str, pod: Option<&PodView>, journal: Option<&BuildState>) -> Outcome {
    let journal = journal.filter(|j| j.attempt.as_deref() == Some(attempt));
    if let Some(report) = pod.and_then(|p| report(attempt, &p.courier)) {
        return match report {
            // The courier sees that the builder is gone; why, only the kubelet knows.
            Outcome::Failed(failure) if failure.class == FailureClass::Infrastructure => {
                Outcome::Failed(pod.and_then(|p| pod_fault(p, &failure, journal)).unwrap_or(failure))
            }
            decided => decided,
        };
    }
    if let Some(image) = journal.and_then(|j| j.succeeded.clone()) {
        return Outcome::Succeeded(image);
    }
    let lost = |what: &str, why: &str| {
        let failure = Failure::new(FailureClass::Infrastructure, what, why);
        match journal.and_then(|j| j.running().first().copied()) {
            Some(step) => failure.in_step(step),
            None => failure,
        }
    };
    if let Some(failure) = journal.and_then(|j| j.failure.clone()) {
        let refined = (failure.class == FailureClass::Infrastructure)
            .then(|| pod.and_then(|p| pod_fault(p, &failure, journal)))
            .flatten();
        return Outcome::Failed(refined.unwrap_or(failure));
    }
    Outcome::Failed(match pod {
        None => lost(reason::POD_DELETED, "the builder pod was deleted before it had reported"),
        Some(pod) => {
            let base = lost(reason::BUILDER_LOST, &ended_without_report(pod));
            pod_fault(pod, &base, journal).unwrap_or(base)
        }
    })
}

/// The courier's report. One from before a restart comes first: what follows only says that there was a restart.
fn report(attempt: &str, courier: &ContainerView) -> Option<Outcome> {
    [&courier.last, &courier.terminated]
        .into_iter()
        .flatten()
        .find_map(|ended| Report::parse(&ended.message, attempt))
        .map(|report| report.outcome)
}

/// Which steps ran at the end, if there were several: whose memory it was can't be told then.
fn together(journal: Option<&BuildState>) -> String {
    let ran = |phase| matches!(phase, StepPhase::Running | StepPhase::Failed);
    let all = journal.map_or(&[][..], |journal| &journal.steps);
    let numbers: Vec<u32> = (1..).zip(all).filter(|(_, step)| ran(step.phase)).map(|(n, _)| n).collect();
    if numbers.len() < 2 { String::new() } else { format!(" while {} were running", steps(&numbers)) }
}

/// What the pod and its containers say beyond `failure`: pod reason first, then container reasons.
fn pod_fault(pod: &PodView, failure: &Failure, journal: Option<&BuildState>) -> Option<Failure> {
    let refined = |class, reason: &str, message: &str| Failure {
        class,
        reason: reason.to_owned(),
        message: Failure::new(class, reason, message).message,
        ..failure.clone()
    };
    if let Some((why, words)) = &pod.reason {
        match why.as_str() {
            "Evicted" => {
                return Some(refined(
                    FailureClass::Evicted,
                    reason::EVICTED,
                    &format!("the kubelet evicted the builder pod: {words}"),
                ));
            }
            "DeadlineExceeded" => {
                return Some(refined(
                    FailureClass::Timeout,
                    reason::TIMED_OUT,
                    "the builder pod was active for longer than spec.timeout allows",
                ));
            }
            // Node shutdown, node affinity, an admission of the kubelet: all of the node.
            _ => {
                return Some(refined(
                    FailureClass::Infrastructure,
                    &failure.reason,
                    &format!("the builder pod ended as {why}: {words}"),
                ));
            }
        }
    }
    if pod.source.terminated.as_ref().is_some_and(|t| t.reason == "OOMKilled") {
        return Some(refined(
            FailureClass::Source,
            reason::SOURCE_TOO_LARGE,
            "fetching the source ran into its memory limit; make the repository or the archive smaller",
        ));
    }
    if [&pod.build, &pod.courier]
        .into_iter()
        .filter_map(|c| c.terminated.as_ref())
        .any(|t| t.reason == "OOMKilled")
    {
        return Some(refined(
            FailureClass::OutOfMemory,
            reason::OUT_OF_MEMORY,
            &format!(
                "the build ran into its memory limit{}; raise spec.resources.limits.memory",
                together(journal)
            ),
        ));
    }
    if let Some((why, words)) = &pod.disruption {
        return Some(refined(
            FailureClass::Evicted,
            reason::EVICTED,
            &format!("the builder pod was disrupted ({why}): {words}"),
        ));
    }
    None
}

fn ended_without_report(pod: &PodView) -> String {
    let said = |name: &str, c: &ContainerView| match &c.terminated {
        Some(t) => format!("{name} ended with code {} ({})", t.exit_code, t.reason),
        None if c.running => format!("{name} was running"),
        None => format!("{name} had not started"),
    };
    format!(
        "the builder pod ended without a report: {}, {}",
        said("courier", &pod.courier),
        said("build", &pod.build)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image_build::observe::Terminated;
    use kiln_contract::journal::{Event, Line, PlannedStep};
    use kiln_contract::report::Pushed;

    /// The image that was tagged.
    fn succeeded(outcome: &Outcome) -> Option<&Pushed> {
        match outcome {
            Outcome::Succeeded(image) => Some(image),
            Outcome::Failed(_) => None,
        }
    }

    fn pushed() -> Pushed {
        Pushed { reference: "r:1".into(), digest: "sha256:1".into(), size: 1 }
    }

    fn message(attempt: &str, outcome: Outcome) -> Option<Terminated> {
        let report = Report { version: kiln_contract::VERSION, attempt: attempt.into(), outcome };
        Some(Terminated { exit_code: 0, reason: "Completed".into(), message: report.to_json() })
    }

    fn failed(class: FailureClass, reason: &str) -> Outcome {
        Outcome::Failed(Failure::new(class, reason, "m").in_step(2))
    }

    fn with(change: impl FnOnce(&mut PodView)) -> PodView {
        let mut pod = PodView { terminal: true, ..PodView::default() };
        change(&mut pod);
        pod
    }

    fn end(pod: Option<&PodView>, journal: Option<&BuildState>) -> (FailureClass, String, Option<u32>) {
        match outcome("a", pod, journal) {
            Outcome::Failed(f) => (f.class, f.reason, f.step),
            Outcome::Succeeded(image) => panic!("{image:?}"),
        }
    }

    #[test]
    fn a_report_decides_whatever_else_is_there() {
        let pod = with(|p| {
            p.courier.terminated = message("a", Outcome::Succeeded(pushed()));
            p.reason = Some(("Evicted".into(), "disk".into()));
            p.build.terminated =
                Some(Terminated { exit_code: 137, reason: "OOMKilled".into(), ..Terminated::default() });
        });
        assert_eq!(succeeded(&outcome("a", Some(&pod), None)), Some(&pushed()));
        let pod = with(|p| {
            p.courier.last = message("a", Outcome::Succeeded(pushed()));
            p.courier.terminated = message("a", failed(FailureClass::Infrastructure, reason::BUILDER_LOST));
        });
        assert_eq!(succeeded(&outcome("a", Some(&pod), None)), Some(&pushed()), "from before a restart");
        let user = with(|p| {
            p.courier.terminated = message("a", failed(FailureClass::User, reason::STEP_FAILED));
            p.reason = Some(("DeadlineExceeded".into(), String::new()));
        });
        assert_eq!(end(Some(&user), None).1, reason::STEP_FAILED);
    }

    #[test]
    fn a_report_of_a_lost_builder_is_refined_by_the_kubelet() {
        let pod = with(|p| {
            p.courier.terminated = message("a", failed(FailureClass::Infrastructure, reason::BUILDER_LOST));
            p.build.terminated =
                Some(Terminated { exit_code: 137, reason: "OOMKilled".into(), ..Terminated::default() });
        });
        assert_eq!(end(Some(&pod), None), (FailureClass::OutOfMemory, reason::OUT_OF_MEMORY.into(), Some(2)));
    }

    #[test]
    fn memory_that_ran_out_is_that_of_all_steps_that_ran() {
        let pod = with(|p| {
            p.build.terminated =
                Some(Terminated { exit_code: 137, reason: "OOMKilled".into(), ..Terminated::default() });
        });
        let mut journal = BuildState { attempt: Some("a".into()), ..BuildState::default() };
        let step = |line| PlannedStep { stage: "0".into(), line, instruction: "RUN x".into() };
        let started = [1, 3].map(|step| Event::StepStarted { step });
        for (seq, event) in
            (1..).zip([Event::Planned { steps: (1..4).map(step).collect() }].into_iter().chain(started))
        {
            journal.apply(&Line { v: 1, seq, at: String::new(), event });
        }
        let message = |journal: &BuildState| match outcome("a", Some(&pod), Some(journal)) {
            Outcome::Failed(failure) => (failure.step, failure.message),
            Outcome::Succeeded(image) => panic!("{image:?}"),
        };
        let (step, text) = message(&journal);
        assert_eq!(step, Some(1));
        assert!(text.contains("its memory limit while steps 1 and 3 were running; raise"), "{text}");
        journal.steps.pop();
        assert!(message(&journal).1.contains("its memory limit; raise"));
    }

    #[test]
    fn another_attempts_report_is_none() {
        let pod = with(|p| p.courier.terminated = message("b", Outcome::Succeeded(pushed())));
        assert_eq!(end(Some(&pod), None).1, reason::BUILDER_LOST);
    }

    #[test]
    fn without_a_report_the_journal_then_the_pod() {
        let journal =
            BuildState { attempt: Some("a".into()), succeeded: Some(pushed()), ..BuildState::default() };
        assert_eq!(succeeded(&outcome("a", None, Some(&journal))), Some(&pushed()));
        let other = BuildState { attempt: Some("b".into()), ..journal };
        assert_eq!(end(None, Some(&other)), (FailureClass::Infrastructure, reason::POD_DELETED.into(), None));
        let cases: [(&str, FailureClass, &str); 3] = [
            ("Evicted", FailureClass::Evicted, reason::EVICTED),
            ("DeadlineExceeded", FailureClass::Timeout, reason::TIMED_OUT),
            ("NodeShutdown", FailureClass::Infrastructure, reason::BUILDER_LOST),
        ];
        for (why, class, word) in cases {
            let pod = with(|p| p.reason = Some((why.into(), "w".into())));
            assert_eq!(end(Some(&pod), None), (class, word.into(), None));
        }
        let pod = with(|p| p.disruption = Some(("PreemptionByScheduler".into(), String::new())));
        assert_eq!(end(Some(&pod), None).0, FailureClass::Evicted);
        // 137 alone says nothing.
        let pod = with(|p| {
            p.build.terminated =
                Some(Terminated { exit_code: 137, reason: "Error".into(), ..Terminated::default() });
        });
        assert_eq!(end(Some(&pod), None), (FailureClass::Infrastructure, reason::BUILDER_LOST.into(), None));
    }
}
