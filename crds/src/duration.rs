//! Durations as users write them: a subset of Go's (`1h30m`, `90s`), whole seconds.

use std::time::Duration;

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a duration like 90s, 30m or 1h30m, found '{found}'")]
pub struct InvalidDuration {
    /// What was found.
    pub found: String,
}

/// Reads hours, minutes and seconds, in this order, each at most once and at least one of them.
///
/// # Errors
/// Another form, or a number that does not fit.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let invalid = || InvalidDuration { found: text.to_owned() };
    let mut rest = text;
    let mut seconds = 0u64;
    for (unit, factor) in [('h', 3600u64), ('m', 60), ('s', 1)] {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if digits > 0 && rest[digits..].starts_with(unit) {
            let number: u64 = rest[..digits].parse().map_err(|_| invalid())?;
            seconds = number.checked_mul(factor).and_then(|n| seconds.checked_add(n)).ok_or_else(invalid)?;
            rest = &rest[digits + 1..];
        }
    }
    if text.is_empty() || !rest.is_empty() { Err(invalid()) } else { Ok(Duration::from_secs(seconds)) }
}

/// Writes whole seconds the same way (`1h2m3s`, `0s`).
pub fn format(seconds: u64) -> String {
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (h, m) {
        (0, 0) => format!("{s}s"),
        (0, _) => format!("{m}m{s}s"),
        _ => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_pattern_allows() {
        let seconds = |text| parse(text).map(|d| d.as_secs()).ok();
        assert_eq!(seconds("90s"), Some(90));
        assert_eq!(seconds("1h30m"), Some(5400));
        assert_eq!(seconds("1h2m3s"), Some(3723));
        assert_eq!(seconds("0s"), Some(0));
        for bad in ["", "1", "h", "1s1m", "-1s", "1.5h", "1d", "99999999999999999999s", "1h "] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn writes_back() {
        for text in ["0s", "59s", "1m0s", "1h0m1s"] {
            assert_eq!(parse(text).map(|d| format(d.as_secs())), Ok(text.to_owned()));
        }
    }
}
