//! The Dockerfile language: lex, parse, expand, ignore file. Pure: text in, values out.
//!
//! [`Dockerfile::parse`] turns bytes into stages of typed [`Instruction`]s; variables stay as
//! written and are expanded by the builder with [`expand`] when it knows the environment.
//! [`ignore`] answers which paths of the build context are left out. Behaviour follows
//! BuildKit's Dockerfile frontend; the data in the conformance corpus is the arbiter.

pub mod directives;
mod dockerfile;
mod error;
pub mod expand;
mod expansion;
pub mod git;
mod glob;
mod heredoc;
pub mod ignore;
pub mod instruction;
mod json;
mod lex;
pub mod lint;
pub mod parse;
pub mod platform;
mod suggest;
mod text;
pub mod url;
mod words;

pub use directives::Directive;
pub use dockerfile::{Dockerfile, MetaArgs, Stage, parse_trigger};
pub use error::{LineRange, ParseError, ParseErrorKind};
pub use expand::{Expander, expand_heredoc, expand_word, expand_words};
pub use git::{GitRef, GitRefError};
pub use heredoc::{Heredoc, is_heredoc_word};
pub use ignore::IgnoreFile;
pub use instruction::{Instruction, InstructionKind, instruction_names};
pub use suggest::nearest;
