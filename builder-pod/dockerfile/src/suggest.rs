//! "Did you mean": the nearest known word, for hints in errors.

/// Words further away than this are not offered: a wrong hint is worse than none.
const MAX_DISTANCE: usize = 2;

/// Longest word looked at. Instruction, flag and key names are far shorter; a longer one is no typo.
const MAX_LENGTH: usize = 64;

/// The option nearest to `word` by edit distance, ignoring case, or `None` when none is within two
/// edits or when one is equal (then the word was not the fault).
#[must_use]
pub fn nearest<'a>(word: &str, options: &[&'a str]) -> Option<&'a str> {
    let wanted: Vec<char> = word.to_lowercase().chars().take(MAX_LENGTH + 1).collect();
    if wanted.len() > MAX_LENGTH {
        return None;
    }
    let mut best = None;
    let mut bound = MAX_DISTANCE + 1;
    for option in options {
        let candidate: Vec<char> = option.to_lowercase().chars().collect();
        let distance = edit_distance(&wanted, &candidate);
        if distance == 0 {
            return None;
        }
        if distance < bound {
            bound = distance;
            best = Some(*option);
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
    }
}
