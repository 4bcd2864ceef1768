//! Fetches a build's source into a directory that the build then reads: the `source` container, between courier and build.
//! It holds the source's credentials and nothing else, and tells the courier what it found.
//!
//! | module | does | IO |
//! |---|---|---|
//! | [`fetch`] | one source into one directory | yes |
//! | [`git`] | a commit of a repository, by `kiln-git` | yes |
//! | [`http`] | an archive from a web server | yes |
//! | [`oci`] | an artifact or an image, through the courier | yes |
//! | [`archive`] | tar and zip -> tree | yes |
//! | [`secrets`] | the keys of the Secret | reading |
//! | [`courier`] | the courier's socket | yes |
//! | [`error`] | what can go wrong | no |

pub mod archive;
pub mod courier;
pub mod error;
pub mod git;
pub mod http;
pub mod oci;
pub mod secrets;

use std::path::{Path, PathBuf};

use kiln_contract::policy::Network;
use kiln_contract::request::Source;
use kiln_contract::source::Fetched;

pub use courier::Courier;
pub use error::Fault;
pub use kiln_git::{finish, limits};
pub use secrets::Secrets;

/// Where a fetch works, and how it reaches servers.
#[derive(Debug, Clone)]
pub struct Places {
    /// The files go there; it is made.
    pub tree: PathBuf,
    /// For what is needed only while fetching.
    pub work: PathBuf,
    /// The platform's proxy and authorities.
    pub network: Network,
}

/// Fetches a source. `courier` is asked for what is in a registry.
///
/// # Errors
/// Why there is none, in the class that decides who has to act.
pub fn fetch(
    source: &Source,
    platform: &str,
    secrets: &Secrets,
    places: &Places,
    courier: &Courier,
) -> Result<Fetched, Fault> {
    make(&places.tree)?;
    make(&places.work)?;
    match source {
        Source::Git(git) => git::fetch(git, secrets, places),
        Source::Http(http) => http::fetch(http, secrets, places),
        Source::Oci(oci) => oci::fetch(oci, platform, places, courier),
        Source::Files(_) | Source::Directory(_) => {
            Err(Fault::internal("this source needs no fetching; expected git, http or oci"))
        }
    }
}

/// Makes an empty directory; what an earlier try left is removed.
fn make(dir: &Path) -> Result<(), Fault> {
    let failed = |e: std::io::Error| Fault::internal(format!("making {}: {e}", dir.display()));
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    std::fs::create_dir_all(dir).map_err(failed)
}
