//! Docker's capabilities for a step: 14 at most, and none by inheritance.

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::fault::{At as _, Fault, Stage};

/// What root in a docker container has (docker's documentation, "Runtime privilege and Linux capabilities"). All of them
/// count only in the step's own user namespace.
pub const DOCKER: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// Takes every other capability from the bounding set: no program started from here on can have it, setuid or not.
///
/// # Errors
/// [`Stage::Capabilities`].
pub fn limit() -> Result<(), Fault> {
    // 64 is what the set's type holds; the kernel says which numbers it does not know.
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if DOCKER.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Err(rustix::io::Errno::INVAL) => break,
            result => result.at(Stage::Capabilities, || {
                format!("cannot take capability {number} from the step's bounding set")
            })?,
        }
    }
    Ok(())
}

/// Sets the process's own sets: docker's for root, none for anybody else (as after docker's change of the user).
///
/// # Errors
/// [`Stage::Capabilities`].
pub fn settle(root: bool) -> Result<(), Fault> {
    let own = if root { DOCKER } else { CapabilitySet::empty() };
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: own, permitted: own, inheritable: CapabilitySet::empty() },
    )
    .at(Stage::Capabilities, || "cannot set the step's capabilities".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_fourteen() {
        assert_eq!(DOCKER.bits(), 0x0000_0000_a804_25fb, "CapBnd of a process in a docker container");
        assert_eq!(DOCKER.bits().count_ones(), 14);
    }
}
