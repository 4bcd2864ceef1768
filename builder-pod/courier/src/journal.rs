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
        let ends = matches!(event, Event::Succeeded { .. } | Event::Failed { .. });
        let line = Line { v: kiln_contract::VERSION, seq: self.state.seq + 1, at: now(), event };
        self.state.apply(&line);
        if needed || self.written < MAX_JOURNAL {
            let text = serde_json::to_string(&line)?;
            self.written += text.len() + 1;
            self.since_checkpoint += text.len() + 1;
            (self.sink)(&text)?;
        }
        // Whoever reads the log of an attempt that has ended may find no more than its end.
        if ends || self.since_checkpoint >= CHECKPOINT_EVERY {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Writes a sign of life: a checkpoint where as much was written since the last one as it has bytes, and always while the
    /// attempt waits for its permit. So the end of a log always holds the state, however small its node rotates logs, and an
    /// operator that comes late learns what is wanted of it.
    ///
    /// # Errors
    /// The sink's.
    pub fn beat(&mut self) -> std::io::Result<()> {
        let ended = self.state.succeeded.is_some() || self.state.failure.is_some();
        let waits = self.state.ready_to_tag.is_some() && !ended;
        if waits || self.since_checkpoint >= serde_json::to_string(&self.state)?.len() {
            self.checkpoint()
        } else {
            self.write(Event::Heartbeat)
        }
    }

    fn checkpoint(&mut self) -> std::io::Result<()> {
        self.since_checkpoint = 0;
        self.write(Event::Checkpoint { state: Box::new(self.state.clone()) })?;
        self.since_checkpoint = 0;
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
    use kiln_contract::report::Pushed;

    #[test]
    fn the_end_of_a_log_tells_the_state_and_what_is_waited_for() {
        let lines = Arc::new(Mutex::new(Vec::<Line>::new()));
        let seen = lines.clone();
        let sink = Box::new(move |l: &str| {
            seen.lock().expect("not poisoned").push(Line::parse(l).expect("a line"));
            Ok(())
        });
        let mut journal = Journal::new(sink, BuildState::default());
        let checkpoints = || {
            let lines = lines.lock().expect("not poisoned");
            lines.iter().filter(|l| matches!(l.event, Event::Checkpoint { .. })).count()
        };
        journal.write(Event::CourierStarted { attempt: "a".into() }).expect("written");
        let step = PlannedStep { stage: "0".into(), line: 1, instruction: "RUN x".into() };
        journal.write(Event::Planned { steps: vec![step; 9] }).expect("written");
        (0..100).for_each(|_| journal.beat().expect("written"));
        // It has some bytes for each of the steps, and a heartbeat has less than two of them.
        assert!((5..20).contains(&checkpoints()), "{}", checkpoints());
        let image = Pushed { reference: "r".into(), digest: "d".into(), size: 1 };
        journal.write(Event::ReadyToTag { image: image.clone() }).expect("written");
        let before = checkpoints();
        (0..3).for_each(|_| journal.beat().expect("written"));
        assert_eq!(checkpoints(), before + 3);
        let mut late = BuildState::default();
        late.apply(lines.lock().expect("not poisoned").last().expect("a line"));
        assert_eq!((late.ready_to_tag.as_ref(), late.steps.len(), late.gap), (Some(&image), 9, false));
        journal.write(Event::Succeeded { image }).expect("written");
        let mut late = BuildState::default();
        late.apply(lines.lock().expect("not poisoned").last().expect("a line"));
        assert!(late.succeeded.is_some() && late.steps.len() == 9, "{late:?}");
        let before = checkpoints();
        journal.beat().expect("written");
        assert_eq!(checkpoints(), before);
    }

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
            journal.write(Event::StepDone { step: 1, cached: false, cache_miss: None }).expect("written");
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
