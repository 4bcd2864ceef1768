//! Which ids of the pod (or the host) a step's ids are. Pure, except for [`current`].
//!
//! The builder's own uid is never mapped: then a step's root is not the builder's user, and `CAP_SETFCAP` is not needed
//! (kernels from 5.12 on want it for a map of the parent's uid 0).

use std::fmt::Write as _;

use kiln_contract::request::Isolation;
use serde::{Deserialize, Serialize};

use crate::engine::{EngineError, EngineErrorKind};

/// First host id of a step in mode `HostRange`; far above the ids that people, services and the usual `/etc/subuid`
/// ranges (from 100000) use. Overridable by [`crate::helper::Options`].
pub const HOST_RANGE_BASE: u32 = 1_000_000;

/// As many ids as an image may use: 16 bits, as docker's documentation promises for user namespaces.
pub const FULL: u32 = 65536;

/// Fewest ids with which a usual image works: everything but 65535, which is no valid id for 16-bit system calls.
const LEAST: u32 = FULL - 1;

/// Ids `0..count` of a step are `outer..outer+count` of the builder's user namespace; the same for users and groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First id as the builder sees it.
    pub outer: u32,
    /// How many.
    pub count: u32,
}

impl IdMap {
    /// The line that `uid_map` and `gid_map` take.
    pub fn line(self) -> String {
        format!("0 {} {}\n", self.outer, self.count)
    }

    /// The id that the builder sees for a step's id; `None` when the step has no such id.
    pub fn outside(self, inner: u32) -> Option<u32> {
        (inner < self.count).then(|| self.outer.checked_add(inner)).flatten()
    }
}

/// One line of a `uid_map`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Reads a `uid_map` or `gid_map`; lines that are no three numbers are left out.
pub fn parse(text: &str) -> Vec<Extent> {
    text.lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse::<u32>);
            let (inside, outside, count) =
                (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
            Some(Extent { inside, outside, count })
        })
        .collect()
}

/// Whether this is the map of the host's own user namespace.
pub fn is_initial(extents: &[Extent]) -> bool {
    extents == [Extent { inside: 0, outside: 0, count: u32::MAX }]
}

/// How many ids from 0 on have an id outside, without a gap (however many lines that takes).
fn contiguous(extents: &[Extent]) -> u32 {
    let mut sorted: Vec<_> = extents.to_vec();
    sorted.sort_by_key(|extent| extent.inside);
    sorted.iter().fold(0, |reach, extent| {
        if extent.inside <= reach { reach.max(extent.inside.saturating_add(extent.count)) } else { reach }
    })
}

/// Chooses the map for `isolation` under the builder's own maps.
///
/// # Errors
/// Kind `Isolation`, naming the setting that is missing.
pub fn choose(
    isolation: Isolation,
    uid_map: &[Extent],
    gid_map: &[Extent],
    host_base: u32,
) -> Result<IdMap, EngineError> {
    let available = contiguous(uid_map).min(contiguous(gid_map));
    match isolation {
        Isolation::UserNamespace if is_initial(uid_map) => Err(unavailable(
            "isolation UserNamespace needs a pod with a user namespace of its own, but the builder's uid_map is the \
             host's (0 0 4294967295): the pod needs hostUsers: false, a kubelet and a runtime that support it, or \
             spec.isolation: HostRange",
        )),
        Isolation::UserNamespace if available >= 2 * FULL => Ok(IdMap { outer: FULL, count: FULL }),
        Isolation::UserNamespace if available > LEAST => {
            Ok(IdMap { outer: 1, count: (available - 1).min(FULL) })
        }
        Isolation::UserNamespace => Err(unavailable(&format!(
            "isolation UserNamespace needs at least 65536 ids in the builder's user namespace, but it has {available}: \
             the kubelet's userNamespaces.idsPerPod (on a plain machine the range in /etc/subuid and /etc/subgid) is \
             too small"
        ))),
        Isolation::HostRange if host_base == 0 => Err(unavailable(
            "isolation HostRange must not map the host's root: the first id has to be above 0",
        )),
        Isolation::HostRange if available < FULL || available - FULL < host_base => {
            Err(unavailable(&format!(
                "isolation HostRange needs the ids {host_base} to {} of the host, but the builder has only ids below \
             {available}: the pod must not have hostUsers: false, or use spec.isolation: UserNamespace",
                u64::from(host_base) + u64::from(FULL) - 1,
            )))
        }
        Isolation::HostRange => Ok(IdMap { outer: host_base, count: FULL }),
    }
}

/// Chooses the map from this process's own maps.
///
/// # Errors
/// As [`choose`]; kind `Internal` when `/proc` can't be read.
pub fn current(isolation: Isolation, host_base: u32) -> Result<IdMap, EngineError> {
    let read = |path: &str| {
        std::fs::read_to_string(path).map_err(|error| EngineError {
            kind: EngineErrorKind::Internal,
            message: format!("cannot read {path}: {error}"),
        })
    };
    choose(isolation, &parse(&read("/proc/self/uid_map")?), &parse(&read("/proc/self/gid_map")?), host_base)
}

/// A map in words, for messages.
pub fn describe(extents: &[Extent]) -> String {
    extents.iter().fold(String::new(), |mut text, extent| {
        let _ = write!(
            text,
            "{}{} {} {}",
            if text.is_empty() { "" } else { ", " },
            extent.inside,
            extent.outside,
            extent.count
        );
        text
    })
}

fn unavailable(message: &str) -> EngineError {
    EngineError { kind: EngineErrorKind::Isolation, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(isolation: Isolation, map: &str) -> Result<IdMap, String> {
        let extents = parse(map);
        choose(isolation, &extents, &extents, HOST_RANGE_BASE).map_err(|error| {
            assert_eq!(error.kind, EngineErrorKind::Isolation);
            error.message
        })
    }

    #[test]
    fn the_map_follows_the_ids_of_the_pod() {
        use Isolation::{HostRange, UserNamespace};
        let host = "         0          0 4294967295\n";
        for (isolation, map, expected) in [
            (UserNamespace, "0 2147483648 65536\n", Ok((1, 65535))),
            (UserNamespace, "0 2147483648 131072\n", Ok((65536, 65536))),
            // A plain machine: one's own id and a subordinate range.
            (UserNamespace, "0 1000 1\n1 100000 65536\n", Ok((1, 65536))),
            (UserNamespace, host, Err("hostUsers: false")),
            (UserNamespace, "0 1000 1\n", Err("idsPerPod")),
            (UserNamespace, "0 1000 1\n2 100000 65536\n", Err("idsPerPod")),
            (HostRange, host, Ok((1_000_000, 65536))),
            (HostRange, "0 2147483648 65536\n", Err("hostUsers: false")),
        ] {
            match (pick(isolation, map), expected) {
                (Ok(found), Ok((outer, count))) => assert_eq!(found, IdMap { outer, count }, "{map}"),
                (Err(message), Err(word)) => assert!(message.contains(word), "{message}"),
                (found, expected) => panic!("{map}: {found:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn root_of_the_host_is_never_mapped() {
        let host = parse("0 0 4294967295");
        assert!(choose(Isolation::HostRange, &host, &host, 0).is_err());
        assert!(choose(Isolation::HostRange, &host, &host, u32::MAX - 10).is_err());
    }

    #[test]
    fn ids_are_translated() {
        let map = IdMap { outer: 1, count: 65535 };
        assert_eq!(map.line(), "0 1 65535\n");
        assert_eq!(map.outside(0), Some(1));
        assert_eq!(map.outside(65534), Some(65535));
        assert_eq!(map.outside(65535), None);
    }

    #[test]
    fn strange_maps_are_read_as_far_as_they_make_sense() {
        assert_eq!(parse("0 x 1\n\n1 2\n"), []);
        assert_eq!(describe(&parse("0 1000 1\n1 100000 65536")), "0 1000 1, 1 100000 65536");
    }
}
