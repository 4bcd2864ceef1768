//! `kiln build DIR`: the engine of the builder pod on a plain Linux machine, builder and courier in one process tree.

pub mod args;
pub mod given;
pub mod output;
pub mod run;
