//! What the text alone shows: casing, names of stages, comments, empty lines in continued ones.

use super::{Check, Findings, Rule, quoted};
use crate::instruction::{Instruction, InstructionKind};
use crate::text::{is_blank, split_first_blank};
use crate::{Dockerfile, Stage};

/// Names that mean something else in FROM and `--from`.
const RESERVED: [&str; 2] = ["context", "scratch"];

/// Findings of the text.
#[must_use]
pub fn written(file: &Dockerfile, check: &Check) -> Findings {
    let mut look = read(file, check);
    look.names(&file.stages);
    look.casing(&file.stages);
    look.found
}

/// Findings of what stands before an instruction that is none, as far as they do not depend on the rest. `file` is
/// [`Dockerfile::before`].
#[must_use]
pub fn before_fault(file: &Dockerfile, check: &Check) -> Findings {
    read(file, check).found
}

/// What is seen while instructions are read, one after the other.
fn read<'a>(file: &Dockerfile, check: &'a Check) -> Look<'a> {
    let mut look = Look { check, found: Findings::default() };
    for lines in &file.empty_continuations {
        look.found.add(check, Rule::NoEmptyContinuation, lines.last, &[], || {
            "an empty line inside a continued instruction; remove it, it will be refused one day".to_owned()
        });
    }
    for meta in &file.meta_args {
        let names: Vec<&str> = meta.args.iter().map(|arg| arg.key.as_str()).collect();
        look.description("ARG", &names, meta.lines.first, &meta.comments);
    }
    for stage in &file.stages {
        look.from(stage);
        for instruction in &stage.instructions {
            look.instruction(instruction);
        }
    }
    look
}

struct Look<'a> {
    check: &'a Check,
    found: Findings,
}

impl Look<'_> {
    fn from(&mut self, stage: &Stage) {
        let (check, line) = (self.check, stage.lines.first);
        // What follows the flags ends in AS and the name, as written.
        let mut words = stage.original.rsplit(is_blank).filter(|word| !word.is_empty());
        let Some((name, (written, keyword))) = stage.name.as_ref().zip(words.next().zip(words.next())) else {
            return;
        };
        if written != written.to_lowercase() {
            self.found.add(check, Rule::StageNameCasing, line, &stage.comments, || {
                format!("Stage name '{}' should be lowercase", quoted(written))
            });
        }
        let from = word(&stage.original);
        let differs = match Case::of(from) {
            Some(Case::Lower) => keyword != keyword.to_lowercase(),
            Some(Case::Upper) => keyword != keyword.to_uppercase(),
            // That FROM is in neither has a rule of its own.
            None => false,
        };
        if differs {
            self.found.add(check, Rule::FromAsCasing, line, &stage.comments, || {
                format!("'{keyword}' and '{from}' keywords' casing do not match")
            });
        }
        self.description("FROM", &[name.as_str()], line, &stage.comments);
    }

    fn instruction(&mut self, instruction: &Instruction) {
        let (check, line) = (self.check, instruction.lines.first);
        match &instruction.kind {
            InstructionKind::Maintainer(_) => {
                self.found.add(check, Rule::MaintainerDeprecated, line, &instruction.comments, || {
                    "Maintainer instruction is deprecated in favor of using label".to_owned()
                });
            }
            InstructionKind::Arg(args) => {
                let names: Vec<&str> = args.iter().map(|arg| arg.key.as_str()).collect();
                self.description("ARG", &names, line, &instruction.comments);
            }
            _ => {}
        }
    }

    /// The comment directly above ARG and FROM begins with the name.
    fn description(&mut self, instruction: &str, names: &[&str], line: u32, comments: &[String]) {
        let (Some(last), Some(first)) = (comments.last(), names.first()) else {
            return;
        };
        if names.contains(&last.split(' ').next().unwrap_or_default()) {
            return;
        }
        let name = if names.len() > 1 { "NAME" } else { first };
        self.found.add(self.check, Rule::InvalidDefinitionDescription, line, comments, || {
            format!(
                "the comment above {instruction} should be \"# {} …\"; put an empty line between if it is about something else",
                quoted(name)
            )
        });
    }

    fn names(&mut self, stages: &[Stage]) {
        let mut seen = std::collections::BTreeSet::new();
        for stage in stages {
            let Some(name) = &stage.name else { continue };
            let line = stage.lines.first;
            if RESERVED.contains(&name.as_str()) {
                self.found.add(self.check, Rule::ReservedStageName, line, &[], || {
                    format!("the stage is called {name:?}, which means something else in FROM and --from; choose another name")
                });
            }
            if !seen.insert(name) {
                self.found.add(self.check, Rule::DuplicateStageName, line, &[], || {
                    format!("an earlier stage is called {:?}, too; choose another name", quoted(name))
                });
            }
        }
    }

    /// All instructions in the case that most of them have.
    fn casing(&mut self, stages: &[Stage]) {
        let all = |stage: &Stage| {
            let from = (word(&stage.original).to_owned(), stage.lines.first);
            let rest = stage.instructions.iter().map(|i| (word(&i.original).to_owned(), i.lines.first));
            std::iter::once(from).chain(rest).collect::<Vec<_>>()
        };
        let all: Vec<(String, u32)> = stages.iter().flat_map(all).collect();
        let count = |case| all.iter().filter(|(word, _)| Case::of(word) == Some(case)).count();
        let lower = count(Case::Lower) > count(Case::Upper);
        for (word, line) in &all {
            let (right, case) = match lower {
                true => (word.to_lowercase(), "small letters"),
                false => (word.to_uppercase(), "capitals"),
            };
            if *word != right {
                self.found.add(self.check, Rule::ConsistentInstructionCasing, *line, &[], || {
                    format!("{word} should be {right}: most instructions of the file are in {case}")
                });
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Lower,
    Upper,
}

impl Case {
    /// `None`: neither.
    fn of(word: &str) -> Option<Self> {
        if word == word.to_lowercase() {
            Some(Self::Lower)
        } else {
            (word == word.to_uppercase()).then_some(Self::Upper)
        }
    }
}

/// An instruction's name as written.
fn word(original: &str) -> &str {
    split_first_blank(original).0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(&'static str, u32)> {
        let file = Dockerfile::parse(text.as_bytes()).unwrap();
        let check = Check::parse(file.check.as_ref().map_or("", |check| &check.value)).unwrap();
        written(&file, &check).kept.iter().map(|f| (f.rule.name(), f.line)).collect()
    }

    #[test]
    fn stages() {
        assert_eq!(
            found("FROM a as One\nFROM b AS one\nfrom c AS x\nFROM --platform=x d AS scratch\nFrom e aS z\n"),
            [
                ("StageNameCasing", 1),
                ("FromAsCasing", 1),
                ("FromAsCasing", 3),
                ("DuplicateStageName", 2),
                ("ReservedStageName", 4),
                ("ConsistentInstructionCasing", 3),
                ("ConsistentInstructionCasing", 5),
            ]
        );
    }

    #[test]
    fn casing_goes_by_the_majority() {
        assert_eq!(found("ARG a\nfrom x\nrun y\nCOPY a b\n"), [("ConsistentInstructionCasing", 4)]);
        assert_eq!(found("from x\nRUN y\n"), [("ConsistentInstructionCasing", 1)], "capitals when undecided");
    }

    #[test]
    fn old_words_and_empty_lines() {
        assert_eq!(
            found("FROM a\nMAINTAINER m\n# check=skip=MaintainerDeprecated\nMAINTAINER n\nRUN a \\\n\n  b\n"),
            [("NoEmptyContinuation", 7), ("MaintainerDeprecated", 2)]
        );
    }

    #[test]
    fn descriptions_only_where_asked_for() {
        let text =
            "# foo\nARG a\n# a is this\nARG a b\n# base\nFROM x AS base\n\n# no\n#\nARG c\n# bar\nARG d\n";
        assert_eq!(found(text), []);
        let asked = format!("# check=experimental=InvalidDefinitionDescription\n{text}");
        let rule = "InvalidDefinitionDescription";
        assert_eq!(found(&asked), [(rule, 3), (rule, 13)]);
        assert_eq!(found("# check=skip=all\nFROM a as B\n"), []);
    }
}
