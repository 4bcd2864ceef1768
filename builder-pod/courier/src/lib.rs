//! The courier: the only process of a build that holds credentials. It serves the builder's calls over a Unix socket,
//! talks with registries for it under a rule, keeps the journal, waits for the permit to tag, and writes the report.
//!
//! | module | does |
//! |---|---|
//! | [`server`] | socket, connections, calls |
//! | [`session`] | what one attempt has done so far: images, blobs, outcome |
//! | [`commit`] | manifest, permit, tags |
//! | [`control`] | permit and stop, as the operator writes them |
//! | [`given`] | secrets and agents for steps |
//! | [`agent`] | the ssh agent's protocol, and keys |
//! | [`journal`] | events, numbered and timed |
//! | [`output`] | where blobs and manifests go: a registry, a layout, an archive |
//! | [`cache`] | entries of steps, and whose they are |
//! | [`gc`] | removing what the cache keeps beyond a limit; apart from builds |
//! | [`manifest`] | composing and checking a manifest; pure |
//! | [`failure`] | registry errors in the words of a build's failure; pure |

pub mod agent;
pub mod cache;
mod commit;
pub mod control;
pub mod failure;
pub mod gc;
pub mod gc_command;
pub mod given;
mod growing;
pub mod journal;
pub mod manifest;
pub mod output;
pub mod server;
pub mod session;
mod wire;

pub use given::Given;
pub use kiln_git::Place;
pub use server::{Options, Served, serve};
