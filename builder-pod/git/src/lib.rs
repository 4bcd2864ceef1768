//! Files of a git repository, by the program `git`: for a build's source, and for ADD and named contexts. There is one list of
//! rules for what git may do, and it is here.
//!
//! | module | does | IO |
//! |---|---|---|
//! | [`repository`] | a commit into a directory | yes |
//! | [`environment`] | what git is started with: the rules, and what it may use | files |
//! | [`pack`] | a checkout as a tar | yes |
//! | [`added`] | what ADD asks for, here or by the container `git` | yes |
//! | [`finish`] | modes, times and a last count | yes |
//! | [`frame`] | frames and descriptors over a Unix socket | yes |
//! | [`limits`], [`error`] | numbers and their reasons; what can go wrong | no |

pub mod added;
pub mod environment;
pub mod error;
pub mod finish;
pub mod frame;
pub mod limits;
pub mod pack;
mod process;
pub mod repository;
mod words;

pub use added::Place;
pub use environment::{Access, Ssh};
pub use error::{Cause, Fault, Kind};
pub use repository::fetch;
