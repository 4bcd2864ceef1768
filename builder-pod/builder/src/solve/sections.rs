//! The log of stages that are gone through at the same time. A person reads one step after another, so one stage is told of
//! as it happens, and what the others have to tell is held back until it is their turn: in the order of the plan, unless
//! more would be held than there is room for, or the stage that is told of has been silent while another has news.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::log::{Entry, Log};

/// Bytes that are held back, of all stages together: more is of no use to somebody who waits for it.
const MAX_HELD: usize = 1 << 20;
/// What an entry costs beside its text.
const OVERHEAD: usize = 64;
/// A stage that has been silent for so long makes room for one that has news (BuildKit's plain progress does as well).
const QUIET: Duration = Duration::from_secs(5);

/// Takes what all stages of a build have to tell.
pub(super) struct Sections<'a>(Mutex<State<'a>>);

struct State<'a> {
    log: &'a mut dyn Log,
    sections: Vec<Section>,
    /// The stage that is told of as it happens.
    shown: usize,
    /// When it told something, or began to be shown.
    heard: Instant,
    /// Bytes that are held back.
    held: usize,
}

#[derive(Default)]
struct Section {
    held: Vec<Held>,
    bytes: usize,
    /// The step that was told of last, unless it was done: its number, and of how many.
    open: Option<(u32, u32)>,
    /// Nothing more comes.
    ended: bool,
    failed: bool,
}

/// An entry that waits.
enum Held {
    Step { number: u32, total: u32, text: String },
    Running { id: String },
    Output { bytes: Vec<u8> },
    NotCached { why: String },
    Cached,
    Done { id: String },
    Note { text: String },
    Warning { text: String },
    CommandFailed { command: String, code: i32 },
}

impl Held {
    /// `None` for what no step tells.
    fn new(entry: Entry<'_>) -> Option<Self> {
        Some(match entry {
            Entry::Step { number, total, text } => Self::Step { number, total, text: text.to_owned() },
            Entry::Running { id } => Self::Running { id: id.to_owned() },
            Entry::Output { bytes } => Self::Output { bytes: bytes.to_vec() },
            Entry::NotCached { why } => Self::NotCached { why: why.to_owned() },
            Entry::Cached => Self::Cached,
            Entry::Done { id } => Self::Done { id: id.to_owned() },
            Entry::Note { text } => Self::Note { text: text.to_owned() },
            Entry::Warning { text } => Self::Warning { text: text.to_owned() },
            Entry::CommandFailed { command, code } => {
                Self::CommandFailed { command: command.to_owned(), code }
            }
            Entry::Resumed { .. }
            | Entry::Stopped
            | Entry::Built { .. }
            | Entry::Tagged { .. }
            | Entry::Failed { .. } => return None,
        })
    }

    fn entry(&self) -> Entry<'_> {
        match self {
            Self::Step { number, total, text } => Entry::Step { number: *number, total: *total, text },
            Self::Running { id } => Entry::Running { id },
            Self::Output { bytes } => Entry::Output { bytes },
            Self::NotCached { why } => Entry::NotCached { why },
            Self::Cached => Entry::Cached,
            Self::Done { id } => Entry::Done { id },
            Self::Note { text } => Entry::Note { text },
            Self::Warning { text } => Entry::Warning { text },
            Self::CommandFailed { command, code } => Entry::CommandFailed { command, code: *code },
        }
    }

    fn bytes(&self) -> usize {
        OVERHEAD
            + match self {
                Self::Step { text, .. } | Self::Note { text } | Self::Warning { text } => text.len(),
                Self::Output { bytes } => bytes.len(),
                Self::CommandFailed { command, .. } => command.len(),
                Self::Running { .. } | Self::NotCached { .. } | Self::Cached | Self::Done { .. } => 0,
            }
    }
}

impl<'a> Sections<'a> {
    /// For so many stages.
    pub fn new(log: &'a mut dyn Log, stages: usize) -> Self {
        let sections = std::iter::repeat_with(Section::default).take(stages.max(1)).collect();
        Self(Mutex::new(State { log, sections, shown: 0, heard: Instant::now(), held: 0 }))
    }

    fn lock(&self) -> MutexGuard<'_, State<'a>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log of a stage.
    pub fn of(&self, stage: usize) -> StageLog<'_, 'a> {
        StageLog { sections: self, stage }
    }

    /// Tells what is held back of a build that failed, the failed step last: the failure follows. Stages whose steps wrote
    /// nothing have nothing to tell.
    pub fn finish(self) {
        let mut state = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let failed = state.sections.iter().any(|section| section.failed);
        let mut order: Vec<usize> = (0..state.sections.len()).collect();
        order.sort_by_key(|stage| (state.sections[*stage].failed, *stage));
        // What is in the middle of something is told to its end first.
        if !state.sections[state.shown].failed {
            order.sort_by_key(|stage| *stage != state.shown);
        }
        for stage in order {
            let section = &state.sections[stage];
            let news = |held: &Held| matches!(held, Held::Output { .. } | Held::CommandFailed { .. });
            if stage == state.shown || section.held.iter().any(news) {
                state.show(stage);
            }
            let section = &state.sections[stage];
            if failed && !section.failed && !section.ended && section.open.is_some() && stage == state.shown {
                state.log.entry(Entry::Stopped);
            }
        }
    }
}

/// Takes what one stage has to tell.
pub(super) struct StageLog<'s, 'a> {
    sections: &'s Sections<'a>,
    stage: usize,
}

impl Log for StageLog<'_, '_> {
    fn entry(&mut self, entry: Entry<'_>) {
        self.sections.lock().take(self.stage, entry, Instant::now());
    }
}

impl StageLog<'_, '_> {
    /// The stage was gone through.
    pub fn end(&self) {
        self.sections.lock().end(self.stage, Instant::now());
    }

    /// The build fails by this stage's step.
    pub fn fail(&self) {
        self.sections.lock().sections[self.stage].failed = true;
    }
}

impl State<'_> {
    fn take(&mut self, stage: usize, entry: Entry<'_>, now: Instant) {
        if stage == self.shown {
            self.heard = now;
            return self.tell(stage, entry);
        }
        let Some(held) = Held::new(entry) else { return self.log.entry(entry) };
        let news = matches!(held, Held::Output { .. });
        self.hold(stage, held);
        if self.held > MAX_HELD {
            let most = (0..self.sections.len()).max_by_key(|stage| self.sections[*stage].bytes);
            self.switch(most.unwrap_or(stage), now);
        } else if news && now.saturating_duration_since(self.heard) >= QUIET {
            self.switch(stage, now);
        }
    }

    fn hold(&mut self, stage: usize, held: Held) {
        let section = &mut self.sections[stage];
        let before = section.bytes;
        match (section.held.last_mut(), held) {
            (Some(Held::Output { bytes }), Held::Output { bytes: more }) => {
                bytes.extend_from_slice(&more);
                section.bytes += more.len();
            }
            (_, held) => {
                section.bytes += held.bytes();
                section.held.push(held);
            }
        }
        self.held += section.bytes - before;
    }

    fn tell(&mut self, stage: usize, entry: Entry<'_>) {
        match entry {
            Entry::Step { number, total, .. } => self.sections[stage].open = Some((number, total)),
            Entry::Done { .. } => self.sections[stage].open = None,
            _ => {}
        }
        self.log.entry(entry);
    }

    fn switch(&mut self, stage: usize, now: Instant) {
        self.heard = now;
        self.show(stage);
    }

    /// Tells what is held back of a stage, and from now on what it has to tell.
    fn show(&mut self, stage: usize) {
        let back = stage != self.shown;
        self.shown = stage;
        let section = &mut self.sections[stage];
        self.held -= std::mem::take(&mut section.bytes);
        let held = std::mem::take(&mut section.held);
        if let Some((number, total)) = section.open.filter(|_| back && !held.is_empty()) {
            self.log.entry(Entry::Resumed { number, total });
        }
        for held in &held {
            self.tell(stage, held.entry());
        }
    }

    fn end(&mut self, stage: usize, now: Instant) {
        self.sections[stage].ended = true;
        if stage != self.shown {
            return;
        }
        // All that ended in the meantime, up to the first one that did not.
        while let Some(next) = self.next() {
            self.switch(next, now);
            if !self.sections[next].ended {
                return;
            }
        }
    }

    /// The first stage of which something is to be told yet.
    fn next(&self) -> Option<usize> {
        self.sections.iter().position(|section| !section.ended || !section.held.is_empty())
    }
}

#[cfg(test)]
#[path = "sections_tests.rs"]
mod tests;
