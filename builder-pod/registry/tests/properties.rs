//! Names and platforms from outside: what is read is written back the same, nothing panics.

use kiln_registry::{ImageName, Platform, is_digest};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_name_that_is_read_reads_back(
        text in "([a-zA-Z0-9.:-]{0,12}/)?([a-z0-9]{1,4}[._/-]{0,2}){1,4}[a-z0-9](:[A-Za-z0-9._-]{0,6})?(@sha256:([0-9a-f]{64}|[0-9a-fA-F]{0,9}))?|\\PC*",
    ) {
        if let Ok(name) = ImageName::parse(&text) {
            let whole = name.to_string();
            let again = ImageName::parse(&whole).ok();
            prop_assert_eq!(again.as_ref(), Some(&name), "{}", whole);
            prop_assert!(name.tag().is_some() || name.digest().is_some());
            prop_assert!(name.digest().is_none_or(is_digest));
            prop_assert!(whole.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b)), "{}", whole);
            prop_assert!(!whole.split('/').any(|part| part.is_empty() || part == ".."), "{}", whole);
        }
    }

    #[test]
    fn a_platform_that_is_read_reads_back(text in "[a-zA-Z0-9_]{1,8}(/[a-zA-Z0-9]{0,6}){0,3}|(linux|LINUX)/(arm|arm64|amd64|x86_64|aarch64)(/v[0-9]{1,3})?|\\PC*") {
        if let Ok(platform) = Platform::parse(&text) {
            prop_assert_eq!(Platform::parse(&platform.to_string()).ok(), Some(platform));
        }
    }
}
