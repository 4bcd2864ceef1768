//! Kubernetes quantities, compared: `resource.Quantity` as apimachinery reads it. Pure.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What a number of one is, in the smallest unit there is (`n`).
const ONE: i128 = 1_000_000_000;

/// Billionths; what is too large for them counts as the largest. `None` for what is no quantity.
pub fn parse(value: &IntOrString) -> Option<i128> {
    match value {
        IntOrString::Int(number) => i128::from(*number).checked_mul(ONE),
        IntOrString::String(text) => parse_text(text),
    }
}

fn parse_text(text: &str) -> Option<i128> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + part.len() == 0 || part.contains('.') {
        return None;
    }
    // (factor, divisor) of one unit, in billionths.
    let (mut factor, mut divisor) = match suffix {
        "n" => (1, 1),
        "u" => (1_000, 1),
        "m" => (1_000_000, 1),
        "" => (ONE, 1),
        "k" => (ONE * 1_000, 1),
        "M" => (ONE * 1_000_000, 1),
        "G" => (ONE * 1_000_000_000, 1),
        "T" => (ONE * 1_000_000_000_000, 1),
        "P" => (ONE * 1_000_000_000_000_000, 1),
        "E" => (ONE * 1_000_000_000_000_000_000, 1),
        "Ki" => (ONE << 10, 1),
        "Mi" => (ONE << 20, 1),
        "Gi" => (ONE << 30, 1),
        "Ti" => (ONE << 40, 1),
        "Pi" => (ONE << 50, 1),
        "Ei" => (ONE << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs().min(27))?;
            if exponent < 0 { (ONE, power) } else { (ONE.saturating_mul(power), 1) }
        }
    };
    let mut digits: i128 = 0;
    for byte in whole.bytes() {
        digits = digits.saturating_mul(10).saturating_add(i128::from(byte - b'0'));
    }
    // Digits beyond the eighteenth are less than a billionth of the smallest unit.
    for byte in part.bytes().take(18) {
        digits = digits.saturating_mul(10).saturating_add(i128::from(byte - b'0'));
        divisor *= 10;
    }
    while factor % 10 == 0 && divisor % 10 == 0 {
        (factor, divisor) = (factor / 10, divisor / 10);
    }
    let value = digits.saturating_mul(factor);
    // Rounded up, as apimachinery does.
    let value = value / divisor + i128::from(value % divisor != 0);
    Some(if negative { -value } else { value })
}

/// As users write it.
pub fn shown(value: &IntOrString) -> String {
    match value {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(text) => text.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Option<i128> {
        parse(&IntOrString::String(text.into()))
    }

    #[test]
    fn one_amount_in_many_spellings() {
        for same in [
            ["1", "1000m", "1.0", "1e0", "1000000u"],
            ["1Gi", "1024Mi", "1073741824", "1048576Ki", "1.0Gi"],
            ["0.5", "500m", ".5", "5e-1", "500000000n"],
            ["1k", "1000", "1e3", "1E3", "0.001M"],
            ["0.1", "100m", "1e-1", "+0.1", "0.100"],
        ] {
            assert!(same.iter().all(|spelling| text(spelling) == text(same[0])), "{same:?}");
        }
        assert_eq!(parse(&IntOrString::Int(2)), text("2"));
        assert_eq!(text("1"), Some(ONE));
        assert_eq!(text("0.0000000001"), Some(1), "rounded up");
        assert_eq!(text("-1"), Some(-ONE));
    }

    #[test]
    fn order_is_that_of_the_amounts() {
        let amounts =
            ["-1", "0", "1n", "999m", "1", "1.5", "1k", "1Ki", "1M", "1Mi", "4Gi", "5G", "1Ti", "1Ei"];
        assert!(amounts.windows(2).all(|pair| text(pair[0]) < text(pair[1])), "{amounts:?}");
        assert!(text("99999999999999999999999999999999999999E") >= text("1E"), "too large is large");
    }

    #[test]
    fn what_is_none_is_none() {
        for bad in ["", ".", "m", "1.2.3", "4GiB", "1 Gi", "1e", "1ee3", "x", "--1", "1e99999999999"] {
            assert_eq!(text(bad), None, "{bad}");
        }
    }
}
