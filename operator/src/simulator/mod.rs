//! A deterministic simulator: the operator's own reconcile, its HTTP client included, against an API server, kubelets, a
//! registry and users in memory. A seed decides what happens next; the same seed makes the same happen again.
//!
//! Faults that it makes: any request refused, its answer lost, the request late or never carried out; an operator killed
//! between any two requests, and a second one that leads as well; events late, twice, in another order between kinds or
//! lost with the watch; lists that lag; clocks that are wrong by minutes; pods that get no node, are
//! preempted, evicted, killed, lost with their node; quota; admission that changes or refuses pods; people who edit, cancel, suspend, delete and make pods of that name.
//!
//! `scripts/simulate` runs 10,000 seeds, and every mutant; `SEED=n scripts/simulate` one, and prints what happened.

mod api;
mod calm;
mod gate;
mod invariants;
pub(crate) mod mutants;
mod node;
mod operator;
mod registry;
mod stories;
mod tests;
mod user;
mod world;
