//! BuildPolicies: which hold for a namespace, and what they say together.
//!
//! | module | does | IO |
//! |---|---|---|
//! | [`effective`] | the policies of a namespace and the operator's settings as one | no |
//! | [`check`] | a build's wishes against them: isolation, timeout, output | no |
//! | [`resources`], [`quantity`] | requests and limits against them | no |
//! | [`bases`] | the first base image against them, where the Dockerfile is at hand | no |
//! | [`known`] | the policies and the namespaces' labels, as the watches show them | no |
//! | [`watch`] | the watches | yes |

pub mod bases;
pub mod check;
pub mod effective;
pub mod known;
pub mod quantity;
pub mod resources;
pub mod watch;

pub use effective::Effective;
pub use known::Policies;
