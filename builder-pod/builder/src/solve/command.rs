//! A RUN's command carried out: its output goes to the log without the build's secrets, and its end into the failure.

use kiln_contract::journal::steps;
use kiln_contract::{Failure, FailureClass, reason};

use super::failure::{Halt, of_engine};
use super::log::{Entry, Log};
use super::redact::Redactor;
use super::secrets::Secrets;
use super::short;
use super::step::{Steps, digest};
use crate::engine::Step as Command;
use crate::engine::{EngineError, Exit, Output};
use crate::plan::Action;

/// Bytes of a step's output that are kept for the failure: what `Failure::log_tail` shows, doubled, because control
/// characters and a torn first line go.
const TAIL: usize = 2 * kiln_contract::failure::MAX_LOG_TAIL;

impl Steps<'_> {
    /// Runs the command of a step.
    pub(super) fn command(
        &self,
        step: u32,
        command: &Command,
        log: &mut dyn Log,
    ) -> Result<Exit, CommandFault> {
        let id = digest(&[self.wishes.attempt, &command.view.upper]);
        log.entry(Entry::Running { id: short(&id) });
        let secrets = &self.mounted.secrets;
        let redactor = Redactor::new(secrets.needles(0));
        let mut output = StepOutput { log: &mut *log, secrets, redactor, tail: Vec::new() };
        self.running().insert(step);
        let ended = self.shared.engine.run(command, &mut output, self.shared.stop);
        let beside = {
            let mut running = self.running();
            running.remove(&step);
            running.iter().copied().collect()
        };
        output.finish();
        let tail = String::from_utf8_lossy(&output.tail).into_owned();
        let words = command.argv.join(" ");
        match ended {
            Ok(exit) if exit.code == 0 => Ok(exit),
            Ok(exit) => {
                log.entry(Entry::CommandFailed { command: &words, code: exit.code });
                Err(CommandFault::Exit { exit, words, tail, beside })
            }
            Err(error) => Err(CommandFault::Engine { error, tail }),
        }
    }
}

/// Why a command did not end well.
pub(super) enum CommandFault {
    /// `beside` are the steps that ran when it ended.
    Exit {
        exit: Exit,
        words: String,
        tail: String,
        beside: Vec<u32>,
    },
    Engine {
        error: EngineError,
        tail: String,
    },
}

impl CommandFault {
    pub(super) fn into_halt(self, action: &Action) -> Halt {
        match self {
            Self::Engine { error, tail } => of_engine(&error, Some(action))
                .map(|failure| if tail.is_empty() { failure } else { failure.with_log_tail(&tail) }),
            Self::Exit { exit, words, tail, beside } => {
                let code = exit.code;
                let mut failure = if exit.out_of_memory {
                    // Whose memory it was can't be told: the limit is that of all steps together.
                    let others = match beside[..] {
                        [] => String::new(),
                        _ => format!(", while {} ran beside it", steps(&beside)),
                    };
                    let message = format!(
                        "the command '{words}' ended with code {code} because memory ran out{others}; raise the build's memory limit"
                    );
                    Failure::new(FailureClass::OutOfMemory, reason::OUT_OF_MEMORY, message)
                } else {
                    let message = format!("the command '{words}' returned a non-zero code: {code}");
                    Failure::new(FailureClass::User, reason::STEP_FAILED, message)
                };
                failure.exit_code = Some(code);
                failure.with_log_tail(&tail).into()
            }
        }
    }
}

/// Hands a command's output, without the build's secrets, to the log and keeps its end.
struct StepOutput<'a> {
    log: &'a mut dyn Log,
    secrets: &'a Secrets,
    redactor: Redactor,
    tail: Vec<u8>,
}

impl Output for StepOutput<'_> {
    fn write(&mut self, bytes: &[u8]) {
        // Steps beside this one may get further ones meanwhile, and leave them in a cache that both have.
        self.redactor.add(self.secrets.needles(self.redactor.count()));
        let bytes = self.redactor.take(bytes);
        self.show(&bytes);
    }
}

impl StepOutput<'_> {
    /// The command has ended.
    fn finish(&mut self) {
        let bytes = self.redactor.finish();
        self.show(&bytes);
    }

    fn show(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.log.entry(Entry::Output { bytes });
        self.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL)..]);
        if self.tail.len() > 2 * TAIL {
            self.tail.drain(..self.tail.len() - TAIL);
        }
    }
}
