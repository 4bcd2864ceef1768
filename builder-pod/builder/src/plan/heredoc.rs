//! RUN with here-documents: what is handed to the shell, or to the interpreter that the document names.

use kiln_dockerfile::instruction::CommandLine;
use kiln_dockerfile::is_heredoc_word;

use crate::engine::InlineFile;

/// Where a document that names its interpreter lies while it runs.
const PIPES: &str = "/dev/pipes";

/// The command with its documents put in place. One document alone is the script; a longer command gets them as the shell
/// reads them. Variables are the shell's to expand (BuildKit `dispatchRun`).
pub(super) fn command(written: &CommandLine) -> (CommandLine, Option<InlineFile>) {
    let (Some(first), [text]) = (written.heredocs.first(), written.args.as_slice()) else {
        return (written.clone(), None);
    };
    let with = |text: String| CommandLine { args: vec![text], heredocs: Vec::new(), ..written.clone() };
    if !is_heredoc_word(text) {
        let mut whole = text.clone();
        for document in &written.heredocs {
            whole.push_str(&format!("\n{}{}", document.content, document.name));
        }
        return (with(whole), None);
    }
    if first.text().starts_with("#!") {
        let script = InlineFile { name: first.name.clone(), data: first.text() };
        return (with(format!("{PIPES}/{}", first.name)), Some(script));
    }
    (with(first.text()), None)
}

#[cfg(test)]
mod tests {
    use kiln_dockerfile::{InstructionKind, parse_trigger};

    use super::*;

    fn read(text: &str) -> (String, Option<InlineFile>) {
        let InstructionKind::Run(run) = parse_trigger(text).unwrap().kind else { panic!("no RUN") };
        let (command, script) = command(&run.command);
        (command.args.join("|"), script)
    }

    #[test]
    fn documents_go_to_the_shell_or_are_run() {
        assert_eq!(read("RUN <<-E\n\ta $b\nE").0, "a $b\n");
        assert_eq!(read("RUN cat <<E 3<<F\na\nE\nb\nF").0, "cat <<E 3<<F\na\nE\nb\nF");
        let (text, script) = read("RUN <<'E'\n#!/bin/x\ny\nE");
        assert_eq!((text.as_str(), script.unwrap().data.as_str()), ("/dev/pipes/E", "#!/bin/x\ny\n"));
        assert_eq!(read("RUN [\"a\", \"<<E\"]").0, "a|<<E");
    }
}
