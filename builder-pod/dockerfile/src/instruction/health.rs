//! HEALTHCHECK: the test and its durations in Go's notation.

use thiserror::Error;

/// Why a duration is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DurationError {
    /// Not in Go's notation.
    #[error("expected a duration such as 30s or 1m30s, found {value:?}")]
    Syntax {
        /// The value as written.
        value: String,
    },
    /// A number without unit.
    #[error("missing unit in duration {value:?}: expected one of ns us ms s m h")]
    Unit {
        /// The value as written.
        value: String,
    },
    /// Larger than 64 bits of nanoseconds.
    #[error("duration {value:?} is too large")]
    Range {
        /// The value as written.
        value: String,
    },
    /// Neither 0 nor at least a millisecond.
    #[error("{value:?} cannot be less than 1ms, except 0")]
    TooShort {
        /// The value as written.
        value: String,
    },
}

/// The health check of an image. Durations are nanoseconds, 0 for "not set".
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", ...]` or `["CMD-SHELL", text]`.
    pub test: Vec<String>,
    /// `--interval`
    pub interval_ns: i64,
    /// `--timeout`
    pub timeout_ns: i64,
    /// `--start-period`
    pub start_period_ns: i64,
    /// `--start-interval`
    pub start_interval_ns: i64,
    /// `--retries`, 0 for "not set".
    pub retries: u32,
}

/// Units with their nanoseconds, longer names first where one begins another.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads the value of a duration flag; an empty one is 0.
pub(crate) fn interval(value: &str) -> Result<i64, DurationError> {
    if value.is_empty() {
        return Ok(0);
    }
    let nanoseconds = duration(value)?;
    if nanoseconds != 0 && nanoseconds < 1_000_000 {
        return Err(DurationError::TooShort { value: value.to_owned() });
    }
    Ok(nanoseconds)
}

/// `[+-](digits[.digits]unit)+` or `0`, as `time.ParseDuration` of Go reads it.
fn duration(value: &str) -> Result<i64, DurationError> {
    let syntax = || DurationError::Syntax { value: value.to_owned() };
    let range = || DurationError::Range { value: value.to_owned() };
    let (negative, mut rest) = match value.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, value.strip_prefix('+').unwrap_or(value)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(syntax());
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = after.strip_prefix('.').map_or(("", after), digits);
        if whole.is_empty() && fraction.is_empty() {
            return Err(syntax());
        }
        let unit_end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let missing = || DurationError::Unit { value: value.to_owned() };
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(missing)?;
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| range())? };
        let nanoseconds = whole.checked_mul(*scale).ok_or_else(range)?;
        let part = fraction_of(fraction, *scale);
        total = nanoseconds.checked_add(part).and_then(|n| total.checked_add(n)).ok_or_else(range)?;
        rest = after;
    }
    let total = i64::try_from(total).map_err(|_| range())?;
    Ok(if negative { -total } else { total })
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// Nanoseconds of the digits behind the point, rounded down.
fn fraction_of(digits: &str, scale: u64) -> u64 {
    // More digits than this are below a nanosecond of an hour.
    const USED: usize = 18;
    let used = &digits[..digits.len().min(USED)];
    let value: u128 = used.parse().unwrap_or(0);
    let divisor = 10u128.pow(u32::try_from(used.len()).unwrap_or(0));
    u64::try_from(value * u128::from(scale) / divisor).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(interval("1m30s"), Ok(90_000_000_000));
        assert_eq!(interval("1.5h"), Ok(5_400_000_000_000));
        assert_eq!(interval("0"), Ok(0));
        assert_eq!(interval("0s"), Ok(0));
        assert_eq!(interval(".5ms").ok(), None);
        assert_eq!(interval("+2us1ms"), Ok(1_002_000));
        for bad in ["5", "s", "-1s", "1x", "9999999999h", "1ms ", ".s", "-"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
