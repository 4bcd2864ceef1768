//! `kiln build DIR`: the engine of the builder pod on a plain Linux machine, builder and courier in one process tree; and
//! `kiln cache`, which looks after what builds keep in a registry.

pub mod args;
pub mod cache;
pub mod given;
pub mod output;
pub mod run;
