//! The build: source -> parse -> resolve -> plan -> solve -> commit -> report.
//!
//! | module | does | IO |
//! |---|---|---|
//! | [`engine`] | the seam between deciding what to do and doing it: plain data and one trait | no |
//! | [`plan`] | Dockerfile and base configs -> stages, steps, operations | no |
//! | [`image`] | image config and history, instruction by instruction | no |
//! | [`chmod`] | `--chmod` | no |
//! | [`solve`] | carries out a plan over the engine and the courier | through traits |
//! | [`tree`] | layer trees through directory handles: unpack, diff, copy, users | yes |
//! | [`layer`] | tar stream -> diff ID -> compressed blob -> digest | yes |
//! | [`sandbox`] | namespaces, mounts, seccomp: one process per step | yes |
//! | [`helper`] | the process in a sibling user namespace that owns the layer trees | yes |
//! | [`courier`] | calls to the courier over its socket | yes |
//! | [`run`] | the program: request in, exit code out | yes |

pub mod chmod;
pub mod courier;
pub mod engine;
pub mod helper;
pub mod image;
pub mod layer;
pub mod plan;
pub mod run;
pub mod sandbox;
pub mod solve;
pub mod tree;
