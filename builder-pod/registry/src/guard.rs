//! Where a registry may send us: an http(s) URL without user info, never a link-local or metadata address.
//!
//! A registry is named by whoever writes the Dockerfile; its realms, redirects and names must not reach the services
//! that only exist inside the node (cloud metadata, node-local agents).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::Url;

/// Whether an address may be talked to. Loopback and private ranges may: registries live there.
pub(crate) fn address_allowed(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4_allowed(v4),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4_allowed(v4),
            None => v6_allowed(v6),
        },
    }
}

fn v4_allowed(v4: Ipv4Addr) -> bool {
    // 100.100.100.200 is a metadata service outside the link-local range.
    !(v4.is_link_local()
        || v4.is_unspecified()
        || v4.is_broadcast()
        || v4.is_multicast()
        || v4 == Ipv4Addr::new(100, 100, 100, 200))
}

fn v6_allowed(v6: Ipv6Addr) -> bool {
    // fd00:ec2::254 is a metadata service on a unique local address.
    !(v6.is_unicast_link_local()
        || v6.is_unspecified()
        || v6.is_multicast()
        || v6 == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254))
}

/// Why a URL may not be asked; nothing when it may. Names are checked again once they are resolved.
pub(crate) fn objection(url: &Url) -> Option<String> {
    if !matches!(url.scheme(), "http" | "https") {
        return Some(format!("its scheme is {:?}, expected https", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Some("it carries user info".to_owned());
    }
    let host = url.host_str()?;
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok()?;
    (!address_allowed(literal)).then(|| format!("{literal} is a link-local, metadata or broadcast address"))
}

/// Whether two URLs have scheme, host and port in common.
pub(crate) fn same_origin(a: &Url, b: &Url) -> bool {
    a.origin() == b.origin()
}

/// A URL for messages: without its query, which may carry a signature.
pub(crate) fn shown(url: &Url) -> String {
    let port = url.port().map(|p| format!(":{p}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_addresses_are_out_in_every_spelling() {
        for bad in [
            "http://169.254.169.254/latest",
            "http://[fe80::1]/",
            "http://[::ffff:169.254.169.254]/",
            "http://0xa9fea9fe/",
            "http://2852039166/",
            "http://0.0.0.0/",
            "http://[fd00:ec2::254]/",
            "file:///etc/passwd",
            "ftp://x/",
            "https://u:p@x/",
        ] {
            let url = Url::parse(bad).expect("a URL");
            assert!(objection(&url).is_some(), "{bad}");
        }
        for good in [
            "https://auth.docker.io/token",
            "http://127.0.0.1:5000/",
            "http://10.0.0.1/",
            "https://[fd00::1]/",
        ] {
            let url = Url::parse(good).expect("a URL");
            assert_eq!(objection(&url), None, "{good}");
        }
    }

    #[test]
    fn shown_urls_keep_signatures_to_themselves() {
        let url = Url::parse("https://cdn.example:8443/blob?sig=secret#x").expect("a URL");
        assert_eq!(shown(&url), "https://cdn.example:8443/blob");
    }
}
