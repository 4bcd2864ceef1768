//! Texts of the history that need more than a line to write.

use kiln_dockerfile::instruction::Healthcheck;

use crate::image::{duration, list};

/// `A=1 B=2`.
pub(super) fn join_pairs(pairs: &[(String, String)]) -> String {
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// Go's `%+v` of Docker's `HealthcheckConfig`.
pub(super) fn health_text(check: &Healthcheck) -> String {
    format!(
        "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        list(&check.test),
        duration(check.interval_ns),
        duration(check.timeout_ns),
        duration(check.start_period_ns),
        duration(check.start_interval_ns),
        check.retries
    )
}
