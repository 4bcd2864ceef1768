//! Logs: JSON lines on stderr, level by `RUST_LOG` (`info` when unset).

use tracing_subscriber::EnvFilter;

/// Starts logging. Call once, at start.
pub fn init() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .init();
}
