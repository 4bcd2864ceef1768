//! What operator, builder and courier say to one another. Plain data and pure functions; no IO.
//!
//! | module | from | to | how it travels |
//! |---|---|---|---|
//! | [`request`] | operator or CLI | courier, builder | immutable ConfigMap mounted at [`paths::REQUEST`] |
//! | [`source`] | operator | `source` | part of the request |
//! | [`policy`] | operator | courier, `source` | part of the request |
//! | [`call`] | builder, `source` | courier | Unix socket at [`paths::SOCKET`] |
//! | [`cache`] | both of them | | in calls and replies |
//! | [`journal`] | courier | operator | the courier's stdout, one JSON event per line |
//! | [`control`] | operator | courier | pod annotations seen through a downwardAPI volume |
//! | [`report`] | courier | operator | the courier's termination message |

pub mod cache;
pub mod call;
pub mod control;
pub mod failure;
pub mod image;
pub mod journal;
pub mod paths;
pub mod policy;
pub mod report;
pub mod request;
pub mod source;
pub mod text;

pub use failure::{Failure, FailureClass, reason};
pub use image::{Descriptor, is_sha256_digest};

/// Version of everything in this crate, as this release writes it. It changes when a reader that passes over what it does not
/// know would do something wrong; what is merely added does not change it (docs/compatibility.md).
pub const VERSION: u32 = 1;
/// The oldest version that this release reads: what the release before it writes.
pub const OLDEST_VERSION: u32 = 1;

/// Whether this release reads what is written in `version`. A peer that speaks another one is refused by name, never guessed
/// at.
pub fn reads(version: u32) -> bool {
    (OLDEST_VERSION..=VERSION).contains(&version)
}
