//! Port specifications of EXPOSE: `[[address:]host:]port[-last][/protocol]` (Docker `nat.ParsePortSpec`); only what is
//! inside the container counts.

/// The `port/protocol` words that a specification stands for.
///
/// # Errors
/// What was expected and found.
pub(super) fn parse(spec: &str) -> Result<Vec<String>, String> {
    let (ports, protocol) = match spec.split_once('/') {
        None => (spec, "tcp".to_owned()),
        Some((ports, protocol)) => (ports, protocol.to_ascii_lowercase()),
    };
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("EXPOSE {spec}: expected protocol tcp, udp or sctp, found {protocol:?}"));
    }
    let inside = ports.rsplit_once(':').map_or(ports, |(_, inside)| inside);
    let refuse =
        || format!("EXPOSE {spec}: expected a port or a range of ports from 0 to 65535, found {inside:?}");
    let number = |text: &str| -> Result<u16, String> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|_| digits).ok_or_else(refuse)
    };
    let (first, last) = match inside.split_once('-') {
        None => (number(inside)?, number(inside)?),
        Some((first, last)) => (number(first)?, number(last)?),
    };
    if last < first {
        return Err(refuse());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn ports() {
        for (spec, expected) in [
            ("80", &["80/tcp"][..]),
            ("53/UDP", &["53/udp"]),
            ("7000-7002/tcp", &["7000/tcp", "7001/tcp", "7002/tcp"]),
            ("8080:80", &["80/tcp"]),
            ("127.0.0.1:8080:80/sctp", &["80/sctp"]),
        ] {
            assert_eq!(parse(spec).unwrap(), expected, "{spec}");
        }
        for bad in ["", "90-80", "70000", "80/icmp", "x", "+80", "80-", "80/"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
