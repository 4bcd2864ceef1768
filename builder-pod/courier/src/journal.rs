//! The journal's writer: numbers, times and bounds events, and keeps the state that a reader of them would have.

use kiln_contract::journal::{BuildState, CHECKPOINT_EVERY, Event, Line, MAX_JOURNAL};

/// Takes the lines; on a pod this is stdout. Called with one line, without its line feed.
pub type Sink = Box<dyn FnMut(&str) -> std::io::Result<()> + Send>;

/// Writes the journal.
pub struct Journal {
    sink: Sink,
    state: BuildState,
    written: usize,
    since_checkpoint: usize,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("seq", &self.state.seq).finish_non_exhaustive()
    }
}

impl Journal {
    /// A journal that goes on from `state` (the default one for a fresh attempt).
    pub fn new(sink: Sink, state: BuildState) -> Self {
        Self { sink, state, written: 0, since_checkpoint: 0 }
    }

    /// The state up to here.
    pub fn state(&self) -> &BuildState {
        &self.state
    }

    /// Writes an event. Past the bound only what a reader can't do without is written.
    ///
    /// # Errors
    /// The sink's.
    pub fn write(&mut self, event: Event) -> std::io::Result<()> {
        let needed = matches!(
            event,
            Event::Heartbeat
                | Event::Checkpoint { .. }
                | Event::ReadyToTag { .. }
                | Event::Succeeded { .. }
                | Event::Failed { .. }
        );
        let line = Line { v: kiln_contract::VERSION, seq: self.state.seq + 1, at: now(), event };
        self.state.apply(&line);
        if needed || self.written < MAX_JOURNAL {
            let text = serde_json::to_string(&line)?;
            self.written += text.len() + 1;
            self.since_checkpoint += text.len() + 1;
            (self.sink)(&text)?;
        }
        if self.since_checkpoint >= CHECKPOINT_EVERY {
            self.since_checkpoint = 0;
            self.write(Event::Checkpoint { state: Box::new(self.state.clone()) })?;
            self.since_checkpoint = 0;
        }
        Ok(())
    }
}

/// RFC 3339, UTC, microseconds.
fn now() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use kiln_contract::journal::PlannedStep;

    #[test]
    fn lines_read_back_to_the_same_state_and_checkpoints_come() {
        let lines = Arc::new(Mutex::new(Vec::<String>::new()));
        let seen = lines.clone();
        let sink = Box::new(move |l: &str| {
            seen.lock().expect("not poisoned").push(l.to_owned());
            Ok(())
        });
        let mut journal = Journal::new(sink, BuildState::default());
        journal.write(Event::CourierStarted { attempt: "a".into() }).expect("written");
        let step = PlannedStep { stage: "0".into(), line: 1, instruction: "RUN x".repeat(20) };
        journal.write(Event::Planned { steps: vec![step; 100] }).expect("written");
        for _ in 0..600 {
            journal.write(Event::StepStarted { step: 1 }).expect("written");
            journal.write(Event::StepDone { step: 1, cached: false }).expect("written");
        }
        let lines = lines.lock().expect("not poisoned");
        let parsed: Vec<Line> = lines.iter().map(|l| Line::parse(l).expect("a line")).collect();
        let checkpoints = parsed.iter().filter(|l| matches!(l.event, Event::Checkpoint { .. })).count();
        assert!(checkpoints >= 1, "{} bytes", lines.iter().map(String::len).sum::<usize>());
        let mut state = BuildState::default();
        parsed.iter().for_each(|l| state.apply(l));
        assert_eq!(&state, journal.state());
        assert!(!state.gap);
    }
}
