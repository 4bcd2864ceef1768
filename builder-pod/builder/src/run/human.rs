//! The log that a person reads: as classic `docker build` writes it, plain text without colours.

use std::io::Write;

use kiln_contract::text::printable;

use crate::solve::log::{Entry, Log};

/// Writes the log. What can't be written is lost, and the build goes on.
#[derive(Debug)]
pub struct Human<W> {
    out: W,
    /// The last byte of a command's output was no newline.
    open_line: bool,
}

impl<W: Write + Send> Human<W> {
    /// A log to `out`.
    pub fn new(out: W) -> Self {
        Self { out, open_line: false }
    }

    fn line(&mut self, text: &str) {
        let gap = if std::mem::take(&mut self.open_line) { "\n" } else { "" };
        let _ = writeln!(self.out, "{gap}{}", printable(text));
    }
}

impl<W: Write + Send> Log for Human<W> {
    fn entry(&mut self, entry: Entry<'_>) {
        match entry {
            Entry::Step { number, total, text } => self.line(&format!("Step {number}/{total} : {text}")),
            Entry::Running { id } => self.line(&format!(" ---> Running in {id}")),
            Entry::Resumed { number, total } => self.line(&format!(" ---> Step {number}/{total} goes on")),
            Entry::Stopped => self.line(" ---> Stopped: another step failed"),
            Entry::Output { bytes } => {
                let _ = self.out.write_all(bytes);
                self.open_line = bytes.last().map_or(self.open_line, |last| *last != b'\n');
            }
            Entry::NotCached { why } => self.line(&format!(" ---> Not in the cache: {why}")),
            Entry::Cached => self.line(" ---> Using cache"),
            Entry::Done { id } => self.line(&format!(" ---> {id}")),
            Entry::Note { text } => self.line(&format!(" ---> {text}")),
            Entry::Warning { text } => self.line(&format!("[Warning] {text}")),
            Entry::Built { id } => self.line(&format!("Successfully built {id}")),
            Entry::Tagged { reference } => self.line(&format!("Successfully tagged {reference}")),
            Entry::CommandFailed { command, code } => {
                self.line(&format!("The command '{command}' returned a non-zero code: {code}"));
            }
            Entry::Failed { failure, excerpt } => {
                self.line(&format!("error: {failure}"));
                if let Some(excerpt) = excerpt {
                    self.line(excerpt);
                }
            }
        }
        let _ = self.out.flush();
    }
}

#[cfg(test)]
mod tests {
    use kiln_contract::{Failure, FailureClass, reason};

    use super::*;

    #[test]
    fn it_reads_like_docker_build() {
        let mut out = Vec::new();
        let mut log = Human::new(&mut out);
        let failure =
            Failure::new(FailureClass::User, reason::STEP_FAILED, "the command failed").at("Dockerfile", 2);
        for entry in [
            Entry::Step { number: 1, total: 2, text: "FROM alpine" },
            Entry::Done { id: "4f3a1b2c3d4e" },
            Entry::Step { number: 2, total: 2, text: "RUN echo \u{1b}[31mhi" },
            Entry::Running { id: "1a2b3c4d5e6f" },
            Entry::Output { bytes: b"one\ntw" },
            Entry::Output { bytes: b"o" },
            Entry::Output { bytes: b"" },
            Entry::Resumed { number: 2, total: 2 },
            Entry::Stopped,
            Entry::CommandFailed { command: "/bin/sh -c x", code: 3 },
            Entry::Failed { failure: &failure, excerpt: Some(" 2 | RUN x") },
            Entry::Built { id: "0123456789ab" },
            Entry::Tagged { reference: "host/x:1" },
            Entry::Note { text: "n" },
            Entry::Warning { text: "w" },
        ] {
            log.entry(entry);
        }
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "Step 1/2 : FROM alpine\n ---> 4f3a1b2c3d4e\nStep 2/2 : RUN echo \u{fffd}[31mhi\n ---> Running in 1a2b3c4d5e6f\n\
             one\ntwo\n ---> Step 2/2 goes on\n ---> Stopped: another step failed\nThe command '/bin/sh -c x' returned a non-zero code: 3\n\
             error: Dockerfile:2: the command failed\n 2 | RUN x\nSuccessfully built 0123456789ab\n\
             Successfully tagged host/x:1\n ---> n\n[Warning] w\n"
        );
    }
}
