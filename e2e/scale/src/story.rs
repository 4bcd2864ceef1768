//! What the courier of a played builder pod writes: the events of a build that goes well, with the time before each. Pure.

use std::time::Duration;

use kiln_contract::VERSION;
use kiln_contract::journal::{Event, Line, PlannedStep};
use kiln_contract::report::{Outcome, Pushed, Report};

/// Steps of a played build.
pub const STEPS: u32 = 4;
/// The Dockerfile that it builds.
pub const DOCKERFILE: &str =
    "FROM alpine\nRUN apk add --update redis\nRUN apk add --update gcc\nCMD [\"redis-server\"]\n";

/// A build that is played.
#[derive(Debug, Clone)]
pub struct Story {
    /// The attempt.
    pub attempt: String,
    /// What is pushed.
    pub image: Pushed,
    /// How long it takes until it asks for its permit.
    pub takes: Duration,
}

impl Story {
    /// That of an attempt. Every attempt has a digest of its own, so that a wrong one is seen.
    pub fn of(attempt: &str, reference: &str, takes: Duration) -> Self {
        let image = Pushed { reference: reference.to_owned(), digest: digest(attempt), size: 4 << 20 };
        Self { attempt: attempt.to_owned(), image, takes }
    }

    /// All up to where the permit is needed, each with the time before it.
    pub fn until_permit(&self) -> Vec<(Duration, Event)> {
        let steps: Vec<PlannedStep> = (1..)
            .zip(DOCKERFILE.lines())
            .map(|(line, text)| PlannedStep { stage: "0".to_owned(), line, instruction: text.to_owned() })
            .collect();
        let now = Duration::ZERO;
        // FROM and CMD take no time.
        let share = self.takes / 2;
        let mut all = vec![
            (now, Event::CourierStarted { attempt: self.attempt.clone() }),
            (now, Event::BuilderStarted { isolation: "UserNamespace".to_owned() }),
            (now, Event::Planned { steps }),
        ];
        for step in 1..=STEPS {
            let runs = matches!(step, 2 | 3);
            all.push((now, Event::StepStarted { step }));
            all.push((
                if runs { share } else { now },
                Event::StepDone { step, cached: false, cache_miss: None },
            ));
            if runs {
                let digest = digest(&format!("{}/{step}", self.attempt));
                all.push((now, Event::Layer { step, digest, size: 1 << 20 }));
            }
        }
        all.push((now, Event::Pushing));
        all.push((now, Event::ReadyToTag { image: self.image.clone() }));
        all
    }

    /// The termination message.
    pub fn report(&self, outcome: Outcome) -> String {
        Report { version: VERSION, attempt: self.attempt.clone(), outcome }.to_json()
    }
}

/// A line of the log.
pub fn line(seq: u64, at: jiff::Timestamp, event: Event) -> String {
    let line = Line { v: VERSION, seq, at: format!("{at:.6}"), event };
    serde_json::to_string(&line).unwrap_or_default() + "\n"
}

/// `sha256:` and 64 digits that follow from the text. No hash: nothing is secured by it.
fn digest(text: &str) -> String {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    let mut digits = String::from("sha256:");
    for round in 0..4u8 {
        for byte in text.bytes().chain([round]) {
            state = (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        digits.push_str(&format!("{state:016x}"));
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_contract::journal::BuildState;

    #[test]
    fn the_operator_reads_a_played_journal_as_a_real_one() {
        let story = Story::of("u-1-1", "registry.example.com/a:1", Duration::from_secs(10));
        let events = story.until_permit();
        let total: Duration = events.iter().map(|(before, _)| *before).sum();
        assert_eq!(total, story.takes);
        let mut state = BuildState::default();
        for (seq, (_, event)) in (1..).zip(events) {
            let text = line(seq, jiff::Timestamp::UNIX_EPOCH, event);
            let read = Line::parse(&text).expect("a line of the journal");
            state.apply(&read);
        }
        assert!(!state.gap && state.pushing && state.done() == STEPS as usize);
        assert_eq!(state.attempt.as_deref(), Some("u-1-1"));
        assert_eq!(state.ready_to_tag, Some(story.image.clone()));
        let report = story.report(Outcome::Succeeded(story.image.clone()));
        assert!(Report::parse(&report, "u-1-1").is_some());
        assert_ne!(story.image.digest, Story::of("u-1-2", "r", story.takes).image.digest);
        assert_eq!(story.image.digest.len(), 71);
    }
}
