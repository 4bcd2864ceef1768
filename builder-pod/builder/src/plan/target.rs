//! Platforms, and the arguments of the global scope that follow from what is asked for.

use std::collections::BTreeMap;

use super::Env;

/// A platform in its usual spelling (`linux/x86_64` is `linux/amd64`, `linux/arm64/v8` is `linux/arm64`); an architecture
/// alone is one of Linux (containerd `platforms.Parse`). `None` for what is no platform.
pub fn normalize(platform: &str) -> Option<String> {
    let parts: Vec<String> = platform.split('/').map(str::to_ascii_lowercase).collect();
    let word = |part: &String| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
    };
    if !parts.iter().all(word) {
        return None;
    }
    let (os, arch, variant) = match parts.as_slice() {
        [arch] if arch != "linux" => ("linux", arch.as_str(), ""),
        [os, arch] => (os.as_str(), arch.as_str(), ""),
        [os, arch, variant] => (os.as_str(), arch.as_str(), variant.as_str()),
        _ => return None,
    };
    let (arch, variant) = match (arch, variant) {
        ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", v) => ("amd64", v),
        ("aarch64" | "arm64", "" | "8" | "v8") => ("arm64", ""),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        ("i386" | "i486" | "i586" | "i686", _) => ("386", ""),
        other => other,
    };
    Some(if variant.is_empty() { format!("{os}/{arch}") } else { format!("{os}/{arch}/{variant}") })
}

/// `TARGET…` (what is built for) and `BUILD…` (this machine) of the global scope; a build argument of the same name wins.
pub(super) fn platform_args(
    machine: &str,
    platform: &str,
    stage: &str,
    args: &BTreeMap<String, String>,
) -> Env {
    let mut env = Env::default();
    for (side, platform) in [("BUILD", machine), ("TARGET", platform)] {
        let mut parts = platform.splitn(3, '/');
        let mut part = || parts.next().unwrap_or_default();
        let (os, arch, variant) = (part(), part(), part());
        for (name, value) in
            [("PLATFORM", platform), ("OS", os), ("OSVERSION", ""), ("ARCH", arch), ("VARIANT", variant)]
        {
            env.set(&format!("{side}{name}"), value);
        }
    }
    env.set("TARGETSTAGE", stage);
    let names: Vec<String> = env.iter().map(|(name, _)| name.to_owned()).collect();
    for name in names {
        if let Some(value) = args.get(&name) {
            env.set(&name, value);
        }
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_have_one_spelling() {
        for (written, expected) in [
            ("linux/amd64", Some("linux/amd64")),
            ("Linux/X86_64", Some("linux/amd64")),
            ("linux/arm64/v8", Some("linux/arm64")),
            ("arm64", Some("linux/arm64")),
            ("linux/arm", Some("linux/arm/v7")),
            ("linux/386", Some("linux/386")),
            ("foo/bar/baz/qux", None),
            ("linux/", None),
            ("linux", None),
            ("", None),
        ] {
            assert_eq!(normalize(written).as_deref(), expected, "{written}");
        }
    }

    #[test]
    fn arguments_of_the_request_win() {
        let args = BTreeMap::from([("TARGETARCH".to_owned(), "other".to_owned())]);
        let env = platform_args("linux/amd64", "linux/arm/v7", "final", &args);
        assert_eq!(env.get("TARGETARCH"), Some("other"));
        assert_eq!(env.get("BUILDARCH"), Some("amd64"));
        assert_eq!(env.get("TARGETVARIANT"), Some("v7"));
        assert_eq!(env.get("TARGETSTAGE"), Some("final"));
    }
}
