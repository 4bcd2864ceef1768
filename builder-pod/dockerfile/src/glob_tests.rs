//! Patterns of substitutions: what they trim and replace, beside a plain matcher, and what they cost.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn trim_prefix(pattern: &str, value: &str, greedy: bool) -> Result<String, PatternError> {
    super::trim_prefix(pattern, value, greedy, &mut MAX_STEPS.clone())
}

fn trim_suffix(pattern: &str, value: &str, greedy: bool) -> Result<String, PatternError> {
    super::trim_suffix(pattern, value, greedy, &mut MAX_STEPS.clone())
}

fn replace_first(pattern: &str, value: &str, replacement: &str) -> Result<String, PatternError> {
    super::replace_first(pattern, value, replacement, &mut MAX_STEPS.clone())
}

fn replace_all(pattern: &str, value: &str, replacement: &str) -> Result<String, PatternError> {
    super::replace_all(pattern, value, replacement, &mut MAX_STEPS.clone())
}

#[test]
fn prefixes_and_suffixes() {
    let v = "foo.bar.tar.gz";
    assert_eq!(trim_prefix("*.", v, false).unwrap(), "bar.tar.gz");
    assert_eq!(trim_prefix("*.", v, true).unwrap(), "gz");
    assert_eq!(trim_suffix(".*", v, false).unwrap(), "foo.bar.tar");
    assert_eq!(trim_suffix(".*", v, true).unwrap(), "foo");
    assert_eq!(trim_suffix("\\*c", "ab*c", false).unwrap(), "ab");
    assert_eq!(trim_prefix("x", v, false).unwrap(), v);
    assert!(trim_prefix("\\f", v, false).is_err());
}

#[test]
fn replacements() {
    assert_eq!(replace_first("b*", "abab", "X").unwrap(), "aX");
    assert_eq!(replace_all("b", "abab", "<$0>").unwrap(), "a<b>a<b>");
    assert_eq!(replace_all("*", "abab", "q").unwrap(), "q");
    assert_eq!(replace_all("", "ab", "-").unwrap(), "-a-b-");
    assert_eq!(replace_all("?", "abc", "q").unwrap(), "qqq");
}

#[test]
fn a_pattern_of_more_states_than_a_word_has_bits() {
    let long: String = ('a'..='z').cycle().take(200).collect();
    let value = format!("{long}{long}-{long}");
    assert_eq!(trim_prefix(&long, &value, true).unwrap(), format!("{long}-{long}"));
    assert_eq!(trim_suffix(&format!("?{long}"), &value, false).unwrap(), format!("{long}{long}"));
    assert_eq!(trim_prefix(&format!("{long}*{long}"), &value, true).unwrap(), "");
    assert_eq!(trim_prefix(&format!("{long}*{long}"), &value, false).unwrap(), format!("-{long}"));
    assert_eq!(replace_all(&long, &value, "x").unwrap(), "xx-x");
    let questions = "?".repeat(130);
    assert_eq!(replace_all(&questions, &value, "<$0").unwrap().matches('<').count(), 601 / 130);
}

#[test]
fn work_is_bounded_and_what_is_usual_goes_through() {
    let value = "a".repeat(20_000);
    let pattern = "*a".repeat(500) + "b";
    assert_eq!(trim_prefix(&pattern, &value, true).unwrap().len(), 20_000);
    // Stars beside one another are one.
    assert_eq!(trim_prefix(&"*".repeat(60_000), &value, true).unwrap(), "");
    assert_eq!(trim_prefix(&"*a".repeat(60_000), &value, true), Err(PatternError::TooLong));
    assert_eq!(replace_first(&"?".repeat(60_000), &value, ""), Err(PatternError::TooLong));
}

/// Where matches of `pattern` at the start of `value` end, by trying all ways.
fn all_ends(pattern: &[Token], value: &[char]) -> BTreeSet<usize> {
    let further = |pattern: &[Token]| match value {
        [c, rest @ ..] => all_ends(pattern, rest).into_iter().map(|end| (*c, end + 1)).collect(),
        [] => Vec::new(),
    };
    let ends = |found: Vec<(char, usize)>, fits: &dyn Fn(char) -> bool| -> BTreeSet<usize> {
        found.into_iter().filter(|(c, _)| fits(*c)).map(|(_, end)| end).collect()
    };
    match pattern {
        [] => BTreeSet::from([0]),
        [Token::Literal(wanted), rest @ ..] => ends(further(rest), &|c| c == *wanted),
        [Token::Any, rest @ ..] => ends(further(rest), &|c| c != '\n'),
        [Token::Star, rest @ ..] => &all_ends(rest, value) | &ends(further(pattern), &|c| c != '\n'),
    }
}

/// The leftmost longest match at or behind `from`.
fn first_match(pattern: &[Token], value: &[char], from: usize) -> Option<(usize, usize)> {
    (from..=value.len()).find_map(|at| Some((at, at + all_ends(pattern, &value[at..]).pop_last()?)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn is_what_trying_all_ways_finds(
        pattern in "[ab*?\n\u{e9}]{0,7}",
        value in "[ab\n\u{e9}]{0,9}",
        // More states than a word has bits, without more ways to try.
        long in prop::bool::weighted(0.3),
    ) {
        let filler = if long { "x".repeat(63) } else { String::new() };
        let (pattern, value) = (format!("{filler}{pattern}"), format!("{filler}{value}"));
        let parsed = tokens(pattern.chars()).unwrap();
        let chars: Vec<char> = value.chars().collect();
        let text = |chars: &[char]| chars.iter().collect::<String>();

        let ends = all_ends(&parsed, &chars);
        let (shortest, longest) = (ends.first().copied().unwrap_or(0), ends.last().copied().unwrap_or(0));
        prop_assert_eq!(trim_prefix(&pattern, &value, false).unwrap(), text(&chars[shortest..]));
        prop_assert_eq!(trim_prefix(&pattern, &value, true).unwrap(), text(&chars[longest..]));

        let starts: Vec<usize> =
            (0..=chars.len()).filter(|at| all_ends(&parsed, &chars[*at..]).contains(&(chars.len() - at))).collect();
        let (furthest, nearest) = (starts.first().copied(), starts.last().copied());
        prop_assert_eq!(trim_suffix(&pattern, &value, true).unwrap(), text(&chars[..furthest.unwrap_or(chars.len())]));
        prop_assert_eq!(trim_suffix(&pattern, &value, false).unwrap(), text(&chars[..nearest.unwrap_or(chars.len())]));

        let found = first_match(&parsed, &chars, 0);
        let expected = found.map_or(value.clone(), |(s, e)| text(&chars[..s]) + "-" + &text(&chars[e..]));
        prop_assert_eq!(replace_first(&pattern, &value, "-").unwrap(), expected);

        let (mut out, mut copied, mut search) = (String::new(), 0, 0);
        while let Some((start, end)) = first_match(&parsed, &chars, search) {
            out += &text(&chars[copied..start]);
            if end > copied || start == 0 {
                out += "-";
            }
            copied = end;
            search = end.max(search + 1);
        }
        out += &text(&chars[copied.min(chars.len())..]);
        prop_assert_eq!(replace_all(&pattern, &value, "-").unwrap(), out);
    }
}
