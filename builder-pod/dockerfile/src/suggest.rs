//! "Did you mean": the nearest known word, for hints in errors.

/// Words further away than this are not offered: a wrong hint is worse than none.
const MAX_DISTANCE: usize = 2;

/// Longest word looked at. Instruction, flag and key names are far shorter; a longer one is no typo.
const MAX_LENGTH: usize = 64;

/// The option nearest to `word` by edit distance, ignoring case, or `None` when none is within two
/// edits or when one is equal (then the word was not the fault).
#[must_use]
pub fn nearest<'a>(word: &str, options: &[&'a str]) -> Option<&'a str> {
    let lower = |text: &str| -> Vec<char> { text.to_lowercase().chars().take(MAX_LENGTH + 1).collect() };
    search(&lower(word), options.iter().map(|option| (*option, lower(option))))
}

/// The same with case as it stands, for names of variables.
pub(crate) fn nearest_exact<'a>(word: &str, options: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let letters = |text: &str| -> Vec<char> { text.chars().take(MAX_LENGTH + 1).collect() };
    search(&letters(word), options.map(|option| (option, letters(option))))
}

fn search<'a>(wanted: &[char], options: impl Iterator<Item = (&'a str, Vec<char>)>) -> Option<&'a str> {
    if wanted.len() > MAX_LENGTH {
        return None;
    }
    let mut best = None;
    let mut bound = MAX_DISTANCE + 1;
    for (option, candidate) in options {
        if candidate == wanted {
            return None;
        }
        if candidate.len() > MAX_LENGTH || candidate.len().abs_diff(wanted.len()) > MAX_DISTANCE {
            continue;
        }
        let distance = edit_distance(wanted, &candidate);
        if distance < bound {
            bound = distance;
            best = Some(option);
        }
    }
    best
}

/// Levenshtein distance with one row of memory.
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = i;
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        for (j, to) in b.iter().enumerate() {
            let above = row[j + 1];
            let replaced = diagonal + usize::from(from != to);
            row[j + 1] = replaced.min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row.last().copied().unwrap_or(a.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_nearest_within_two_edits() {
        assert_eq!(nearest("RUNN", &["FROM", "RUN", "COPY"]), Some("RUN"));
        assert_eq!(nearest("foo", &["FROM", "RUN"]), Some("FROM"));
        assert_eq!(nearest("zzzz", &["FROM", "RUN"]), None);
        assert_eq!(nearest("run", &["FROM", "RUN"]), None);
        assert_eq!(nearest_exact("U", ["PATH", "V", "W"].into_iter()), Some("V"));
        assert_eq!(nearest_exact("path", ["PATH"].into_iter()), None);
    }
}
