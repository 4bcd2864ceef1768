//! References and durations that users write: what is read is written back the same.

use kiln_api::duration;
use kiln_api::reference::{Reference, is_tag};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_reference_that_is_read_reads_back(
        text in "([a-zA-Z0-9.:\\[\\]+-]{0,12}/)?([a-z0-9]{1,4}[._/-]{0,2}){1,4}[a-z0-9](:[A-Za-z0-9._-]{0,6})?|\\PC*",
    ) {
        if let Ok(reference) = Reference::parse(&text) {
            let whole = reference.to_string();
            let again = Reference::parse(&whole);
            prop_assert_eq!(again.as_ref(), Ok(&reference), "{}", whole);
            prop_assert!(is_tag(&reference.tag) && !reference.registry.is_empty());
            // Nothing in it could mean something to a URL or a shell.
            prop_assert!(whole.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:[]".contains(&b)), "{}", whole);
            prop_assert!(!whole.split('/').any(|part| part.is_empty() || part == ".."), "{}", whole);
        }
    }

    #[test]
    fn a_duration_reads_back(seconds: u64, text in "([0-9]{1,21}[hms]?){0,4}|\\PC*") {
        prop_assert_eq!(duration::parse(&duration::format(seconds)).map(|d| d.as_secs()), Ok(seconds));
        if let Ok(read) = duration::parse(&text) {
            prop_assert_eq!(duration::parse(&duration::format(read.as_secs())), Ok(read));
        }
    }
}
