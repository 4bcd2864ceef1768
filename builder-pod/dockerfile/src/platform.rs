//! Names of build arguments that exist without an ARG instruction.

/// Proxy variables: a build argument of this name reaches RUN without ARG, in lower or upper case, and
/// is neither part of the history nor of the cache key.
pub const PROXY_ARGS: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// Arguments of the global scope that describe platform and target; a stage sees one after `ARG NAME`.
pub const GLOBAL_ARGS: [&str; 11] = [
    "BUILDPLATFORM",
    "BUILDOS",
    "BUILDOSVERSION",
    "BUILDARCH",
    "BUILDVARIANT",
    "TARGETPLATFORM",
    "TARGETOS",
    "TARGETOSVERSION",
    "TARGETARCH",
    "TARGETVARIANT",
    "TARGETSTAGE",
];

/// Whether `name` is one of [`PROXY_ARGS`] in any case.
#[must_use]
pub fn is_proxy_arg(name: &str) -> bool {
    PROXY_ARGS.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Whether `name` is one of [`GLOBAL_ARGS`].
#[must_use]
pub fn is_global_arg(name: &str) -> bool {
    GLOBAL_ARGS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases() {
        assert!(is_proxy_arg("http_proxy") && is_proxy_arg("NO_PROXY") && !is_proxy_arg("PROXY"));
        assert!(is_global_arg("TARGETARCH") && !is_global_arg("targetarch"));
    }
}
