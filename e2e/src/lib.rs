//! What the end-to-end tests share. They run where the cluster and its registry can be reached (`e2e/cluster/in`), and
//! judge a build by what is in the registry and in the API, read with this crate's own small clients: never by Kiln's
//! own code.

pub mod cluster;
pub mod image;
pub mod operator;
pub mod process;
pub mod registry;
