//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Watches ImageBuilds, creates builder pods, writes status.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "kiln-operator", version)]
pub struct Args {
    /// The cluster's settings, YAML.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    pub admin_address: SocketAddr,
    /// Namespace of the leader's lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Name of this instance in the lease and in events; must differ between instances.
    #[arg(long, env = "POD_NAME", default_value = "kiln-operator")]
    pub identity: String,
}
