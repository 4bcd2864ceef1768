//! Tables for the decision where it is about an attempt's pod: how it starts, ends, is stopped, kept and lost.

use kiln_api::v1alpha1::FailureClass as Class;
use kiln_contract::journal::{BuildState, Event};
use kiln_contract::report::Outcome;
use kiln_contract::{FailureClass, reason};

use super::decide::Action;
use super::testing::{World, at, desired, failed, journal, kinds, plan, pushed};

#[test]
fn no_permit_before_the_pod_is_on_record() {
    let mut w = World::new();
    w.decide();
    let pod = w.create_pod();
    (pod.node, pod.courier.running, pod.build.running) = (Some("n".into()), true, true);
    w.journal = Some(journal(&w, vec![plan(), Event::ReadyToTag { image: pushed() }]));
    assert!(kinds(&w.decide()).is_empty());
    assert_eq!(kinds(&w.decide()), ["permit"]);
}

#[test]
fn a_pod_that_only_the_watch_shows_is_looked_at_before_it_counts() {
    let mut w = World::new();
    w.decide();
    let uid = w.create_pod().uid.clone();
    w.report(Outcome::Succeeded(pushed()));
    for verified in [None, Some("another".to_owned())] {
        w.verified = verified;
        assert_eq!(kinds(&w.decide()), ["create"]);
        assert_eq!((w.ready().as_str(), &w.status.attempts[0].pod_uid), ("Unknown Starting", &None));
    }
    w.verified = Some(uid.clone());
    assert!(kinds(&w.decide()).is_empty());
    assert_eq!((w.ready().as_str(), &w.status.attempts[0].pod_uid), ("True ImagePushed", &Some(uid)));
    // Nobody wants it any more: it is ended as one that is left over.
    let mut w = World::new();
    w.decide();
    w.create_pod().node = Some("n".into());
    (w.verified, w.cancel) = (None, Some(1));
    w.decide();
    assert_eq!(w.ready(), "False Cancelled");
    assert_eq!(kinds(&w.decide()), ["stop", "kill"]);
}

#[test]
fn a_tagged_image_is_ready_before_its_pod_has_ended_and_the_pod_is_left_to_end() {
    let mut w = World::new();
    w.run_pod();
    w.journal = Some(journal(&w, vec![plan(), Event::Succeeded { image: pushed() }]));
    assert!(kinds(&w.decide()).is_empty());
    assert_eq!((w.ready().as_str(), w.kstatus()), ("True ImagePushed", "Current"));
    w.now += 60;
    assert!(kinds(&w.decide()).is_empty());
    // An edit waits for the pod, so that no two of one object run.
    w.desired = desired("v1:b");
    assert!(!kinds(&w.decide()).contains(&"create"));
    assert_eq!(w.ready(), "Unknown Stopping");
    w.pod_of("u-1-1").terminal = true;
    assert_eq!(kinds(&w.decide()), ["create"]);
    // With lines missing the report is waited for.
    let mut w = World::new();
    w.run_pod();
    w.journal =
        Some(BuildState { gap: true, ..journal(&w, vec![plan(), Event::Succeeded { image: pushed() }]) });
    w.decide();
    assert_eq!(w.ready(), "Unknown Building");
    // A pod that does not end is ended.
    let mut w = World::new();
    w.run_pod();
    w.journal = Some(journal(&w, vec![plan(), Event::Succeeded { image: pushed() }]));
    w.decide();
    w.now += 61;
    assert_eq!(kinds(&w.decide()), ["stop", "kill"]);
}

#[test]
fn infrastructure_faults_are_tried_again_with_a_pause_and_an_end() {
    let mut w = World::new();
    for (number, pause) in [(1, 10), (2, 30), (3, 0)] {
        w.run_pod();
        assert_eq!(w.status.attempts.last().map(|a| a.number), Some(number));
        w.pod().terminal = true;
        w.pod().reason = Some(("Evicted".into(), "disk".into()));
        w.decide();
        if pause > 0 {
            assert_eq!((w.ready().as_str(), w.kstatus()), ("Unknown Retrying", "InProgress"));
            w.now += pause - 1;
            assert!(kinds(&w.decide()).is_empty());
            w.now += 1;
        }
    }
    assert_eq!((w.ready().as_str(), w.status.attempts.len(), w.status.run), ("False Evicted", 3, Some(1)));
    assert!(w.status.failure.as_ref().is_some_and(|f| f.class == Class::Evicted && f.retryable));
    let names: std::collections::BTreeSet<_> = w.status.attempts.iter().map(|a| &a.pod_name).collect();
    assert_eq!(names.len(), 3);
}

#[test]
fn a_deleted_pod_is_made_again_and_waits_out_a_permit() {
    let mut w = World::new();
    w.run_pod();
    w.journal = Some(journal(&w, vec![plan(), Event::ReadyToTag { image: pushed() }]));
    w.pods.clear();
    w.decide();
    assert_eq!(w.status.attempts[0].reason.as_deref(), Some(reason::POD_DELETED));
    assert_eq!(w.status.attempts[0].class, Some(Class::Infrastructure));
    w.now += 89;
    assert!(kinds(&w.decide()).is_empty(), "the pod that nobody sees may hold a permit");
    w.now += 1;
    assert_eq!(w.decide().actions, [Action::CreatePod { attempt: 2 }]);
}

#[test]
fn a_pod_on_a_node_that_is_lost_is_looked_at_when_its_time_is_over() {
    let mut w = World::new();
    w.run_pod();
    let by = w.now + 60;
    w.pod().deletion = Some(at(by));
    assert_eq!(w.decide().again, Some(std::time::Duration::from_secs(120)), "no event will tell");
    w.now = by + 60;
    assert_eq!((w.decide().again, w.status.attempts.len()), (Some(std::time::Duration::from_secs(1)), 1));
    w.now += 1;
    w.decide();
    assert_eq!(w.status.attempts[0].class, Some(Class::Infrastructure));
}

#[test]
fn a_pod_that_does_not_end_is_given_up_once_it_can_not_tag() {
    let mut w = World::new();
    w.run_pod();
    w.pod().permit_until = Some(1140);
    w.desired = desired("v1:b");
    w.decide();
    w.now += 151;
    w.pod().active_deadline = Some(1);
    w.decide();
    assert_eq!(w.status.run, Some(1), "a permit is good until 1140, a clock may be 30 seconds off");
    w.now = 1171;
    w.decide();
    assert_eq!((w.status.run, w.ready().as_str()), (Some(2), "Unknown Stopping"));
    w.pod_gone();
    assert_eq!(kinds(&w.decide()), ["create"]);
}

impl World {
    /// The pod of that attempt, whichever is the latest.
    fn pod_of(&mut self, attempt: &str) -> &mut super::observe::PodView {
        self.pods.values_mut().find(|p| p.attempt.as_deref() == Some(attempt)).expect("its pod")
    }

    /// The node is gone, and with it all pods of it.
    fn pod_gone(&mut self) {
        self.pods.clear();
    }
}

#[test]
fn a_pod_that_does_not_start_says_why_at_once_and_fails_after_a_while() {
    let mut w = World::new();
    w.decide();
    w.create_pod().unschedulable = Some("0/2 nodes are available".into());
    w.decide();
    assert_eq!(w.ready(), "Unknown Unschedulable");
    w.now += 3000;
    w.decide();
    assert_eq!(w.ready(), "Unknown Unschedulable", "an autoscaler may be at work");
    let pod = w.pod();
    (pod.node, pod.scheduled) = (Some("n".into()), Some(at(4000)));
    pod.courier.waiting = Some(("ImagePullBackOff".into(), "not found".into()));
    w.decide();
    assert_eq!(w.ready(), "Unknown ImagePullBackOff");
    w.now = 4300;
    w.decide();
    assert_eq!((w.ready().as_str(), w.status.attempts.len()), ("False PodStartFailed", 1));
    assert_eq!(kinds(&w.decide()), ["stop", "kill"], "what is left of it is ended");
}

#[test]
fn an_attempt_that_nobody_ends_is_ended_from_here() {
    let mut w = World::new();
    w.run_pod();
    w.now += 3600 + 420;
    assert!(kinds(&w.decide()).is_empty());
    w.now += 1;
    assert_eq!(kinds(&w.decide()), ["stop"]);
    w.pod().terminal = true;
    w.decide();
    assert_eq!(w.ready(), "False TimedOut");
    // Without a node there is nobody to end it.
    let mut w = World::new();
    w.decide();
    w.create_pod();
    w.decide();
    w.now += 4021;
    assert_eq!(kinds(&w.decide()), ["delete"]);
    w.pods.clear();
    w.decide();
    assert_eq!(w.ready(), "False TimedOut");
}

#[test]
fn pods_are_kept_for_a_while_and_for_five_runs() {
    let mut w = World::new();
    for run in 1..=7 {
        w.desired = desired(&format!("v1:{run}"));
        w.run_pod();
        w.report(failed(FailureClass::User, reason::STEP_FAILED));
        let deleted = w.decide();
        assert_eq!(w.status.run, Some(run));
        for action in deleted.actions {
            if let Action::DeletePod { pod } = action {
                w.pods.remove(&pod.name);
            }
        }
    }
    w.decide().actions.iter().for_each(|a| {
        if let Action::DeletePod { pod } = a {
            w.pods.remove(&pod.name);
        }
    });
    assert_eq!((w.pods.len(), w.status.history.len()), (5, 5));
    w.now += 86_399;
    assert!(kinds(&w.decide()).is_empty());
    w.now += 1;
    assert_eq!(kinds(&w.decide()), ["delete"; 5]);
}
