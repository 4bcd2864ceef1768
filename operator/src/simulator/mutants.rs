//! Faults that are put into the operator on purpose, one at a time, to see that the simulator finds each.
//!
//! Code under test asks with [`mutant!`](crate::mutant) whether its fault is in force; outside tests that is `false`.

use std::cell::Cell;

/// A fault of the operator, and the invariant that it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The permit is written without a look at the object as it is now.
    PermitWithoutLook,
    /// Leave to tag is given to an attempt that is cancelled, suspended or superseded.
    PermitUnwanted,
    /// The status is written whatever was stored since it was read.
    StatusWithoutVersion,
    /// A pod of the attempt's name is taken over whoever owns it.
    AdoptForeignPod,
    /// The next attempt does not wait for the pods of earlier ones.
    IgnoreLivePods,
    /// A permit is good for an hour, and operators wait a minute for its end.
    EndlessPermit,
    /// A fault of the API server ends the build.
    ApiFaultIsFinal,
    /// Faults of the author are tried again.
    RetryEverything,
    /// There is no end to attempts.
    RetryForever,
    /// What is pushed counts as tagged.
    PushedIsTagged,
    /// A pod that is gone counts as success.
    GoneIsSuccess,
    /// An edit is not seen once the build has ended.
    EditIgnored,
    /// A pod is deleted to stop it.
    DeleteToStop,
    /// Nothing wakes the object when its back-off is over.
    ForgetToLookAgain,
    /// The status differs each time it is computed.
    RestlessStatus,
    /// A run that has ended is decided again.
    EndedRunDecidedAgain,
    /// A missing pod is made again under the same name.
    PodMadeTwice,
    /// The conditions say that all is well while the next run is under way.
    ReadyTooEarly,
    /// A pod that the watch shows comes on record before it was looked at.
    UncheckedPod,
    /// Pods are stopped and deleted without a look at the object as it is now.
    StopWithoutLook,
}

/// All of them.
pub const ALL: [Mutant; 20] = [
    Mutant::PermitWithoutLook,
    Mutant::PermitUnwanted,
    Mutant::StatusWithoutVersion,
    Mutant::AdoptForeignPod,
    Mutant::IgnoreLivePods,
    Mutant::EndlessPermit,
    Mutant::ApiFaultIsFinal,
    Mutant::RetryEverything,
    Mutant::RetryForever,
    Mutant::PushedIsTagged,
    Mutant::GoneIsSuccess,
    Mutant::EditIgnored,
    Mutant::DeleteToStop,
    Mutant::ForgetToLookAgain,
    Mutant::RestlessStatus,
    Mutant::EndedRunDecidedAgain,
    Mutant::PodMadeTwice,
    Mutant::ReadyTooEarly,
    Mutant::UncheckedPod,
    Mutant::StopWithoutLook,
];

thread_local! {
    static IN_FORCE: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Whether that fault is in force on this thread.
pub fn is_on(mutant: Mutant) -> bool {
    IN_FORCE.get() == Some(mutant)
}

/// Puts a fault into the operator, or takes it out.
pub fn set(mutant: Option<Mutant>) {
    IN_FORCE.set(mutant);
}
