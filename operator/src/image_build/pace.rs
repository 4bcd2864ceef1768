//! How often a status is written where nothing has changed that anybody waits for. Pure.
//!
//! Steps, progress and where a pod stands are for people who look on: at most one write a second, and fewer the more builds run
//! and the longer the API server takes for one, so that looking on costs the same whatever their number and keeps nobody from a
//! pod. What begins, ends or decides something is written at once.

use kiln_api::ImageBuildStatus;
use kiln_api::v1alpha1::condition;

use super::conditions::{self, reasons};

/// Such writes in a second, of all builds together.
const WRITES_A_SECOND: usize = 50;
/// Seconds between two of one build at most.
const LONGEST: usize = 15;
/// Milliseconds that a write takes where the API server has nothing to wait for; ten times that is usual at its limit.
const PROMPT: usize = 25;

/// How much is going on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Builds that run.
    pub running: usize,
    /// Milliseconds that writes of a status took lately.
    pub write_millis: usize,
}

/// Seconds until `after` is to be written in place of `before`; 0 for now. `since` is how long ago the object was last written, if
/// it was by this process.
pub fn wait(before: &ImageBuildStatus, after: &ImageBuildStatus, since: Option<i64>, load: Load) -> i64 {
    let slow = (load.write_millis / PROMPT).max(1);
    let pause = load.running.saturating_mul(slow) / WRITES_A_SECOND;
    let pause = i64::try_from(pause.clamp(1, LONGEST)).unwrap_or(1);
    match since {
        _ if before == after => 0,
        // A clock that went back is no reason to wait longer.
        Some(since) if (0..pause).contains(&since) && is_minor(before, after) => pause - since,
        _ => 0,
    }
}

/// Whether only steps, progress, place in the queue and where the pod stands differ.
fn is_minor(before: &ImageBuildStatus, after: &ImageBuildStatus) -> bool {
    let pod = |s: &ImageBuildStatus| s.attempts.last().and_then(|a| a.pod_uid.clone());
    let tagging = conditions::find(after, condition::READY).is_some_and(|c| c.reason == reasons::TAGGING);
    // Only a pod that is on record gets its permit.
    let needed = tagging && pod(before) != pod(after);
    !needed && essence(before) == essence(after)
}

fn essence(status: &ImageBuildStatus) -> ImageBuildStatus {
    let mut status = ImageBuildStatus {
        steps: Vec::new(),
        progress: None,
        warnings: None,
        pod_ref: None,
        ..status.clone()
    };
    if let Some(attempt) = status.attempts.last_mut() {
        attempt.pod_uid = None;
    }
    if let Some(queue) = status.queue.as_mut().filter(|q| q.position > 0) {
        queue.position = 1;
        queue.reason.clear();
    }
    for condition in &mut status.conditions {
        condition.reason.clear();
        condition.message.clear();
    }
    status
}

#[cfg(test)]
mod tests {
    use kiln_api::v1alpha1::RunResult;
    use kiln_contract::journal::Event;

    use super::*;
    use crate::image_build::decide::Slot;
    use crate::image_build::testing::{World, finished, journal, plan, pushed, queued};

    /// How long a change waits, the object having been written just now.
    fn waits(world: &mut World, running: usize) -> i64 {
        let before = world.status.clone();
        world.decide();
        assert_ne!(before, world.status, "something changed");
        wait(&before, &world.status, Some(0), prompt(running))
    }

    fn prompt(running: usize) -> Load {
        Load { running, write_millis: 8 }
    }

    #[test]
    fn what_begins_or_ends_is_written_at_once_and_the_rest_as_load_allows() {
        let mut world = World::new();
        world.slot = queued(5);
        assert_eq!(waits(&mut world, 0), 0, "a run begins");
        world.slot = queued(4);
        assert_eq!((waits(&mut world, 0), world.status.queue.is_some()), (1, true), "another place");
        world.slot = Slot::Granted;
        assert_eq!(waits(&mut world, 0), 0, "an attempt begins");
        world.run_pod();
        world.journal = Some(journal(&world, vec![plan(), Event::StepStarted { step: 1 }]));
        assert_eq!([waits(&mut world, 99), world.status.steps.len() as i64], [1, 2], "a step begins");
        let before = world.status.clone();
        world.journal =
            Some(journal(&world, vec![plan(), Event::StepDone { step: 1, cached: false, cache_miss: None }]));
        world.decide();
        let after = world.status.clone();
        assert_eq!([0, 100, 250, 100_000].map(|n| wait(&before, &after, Some(0), prompt(n))), [1, 2, 5, 15]);
        let slow = |running, write_millis| wait(&before, &after, Some(0), Load { running, write_millis });
        assert_eq!([slow(20, 400), slow(100, 49), slow(100, 100), slow(300, 200)], [6, 2, 8, 15]);
        let ago = [Some(0), Some(3), Some(5), Some(-3), None];
        assert_eq!(ago.map(|since| wait(&before, &after, since, prompt(250))), [5, 2, 0, 0, 0]);
        world.cancel = Some(1);
        assert_eq!(waits(&mut world, 1000), 0, "it is told to stop");
        let (mut was, is) = (finished(RunResult::Succeeded), finished(RunResult::Succeeded));
        was.completion_time = None;
        assert_eq!(wait(&was, &is, Some(0), prompt(1000)), 0, "a run ends");
        assert_eq!(wait(&is, &is, Some(0), prompt(1000)), 0, "there is nothing to write");
    }

    #[test]
    fn a_pod_that_asks_for_its_permit_is_put_on_record_at_once() {
        let mut world = World::new();
        world.decide();
        let before = world.status.clone();
        world.run_pod();
        world.journal = Some(journal(&world, vec![plan(), Event::ReadyToTag { image: pushed() }]));
        world.decide();
        assert!(before.attempts[0].pod_uid.is_none() && world.status.attempts[0].pod_uid.is_some());
        assert_eq!(wait(&before, &world.status, Some(0), prompt(1000)), 0);
        let mut recorded = before.clone();
        recorded.attempts[0].pod_uid.clone_from(&world.status.attempts[0].pod_uid);
        assert_eq!(wait(&recorded, &world.status, Some(0), prompt(1000)), 15);
    }
}
