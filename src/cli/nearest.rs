//! Words that are written almost alike: what somebody may have meant.

/// Returns the candidate that takes the fewest slips (a letter too many, too few, another, or two exchanged) to come to
/// from `word`: one, or two of a word that is long enough to be known by the rest.
pub(super) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = if word.chars().count() >= 5 { 2 } else { 1 };
    candidates
        // Of two letters, one slip leaves nothing, unless it is one behind them.
        .filter(|candidate| candidate.len() > 2 || word.starts_with(candidate))
        .map(|candidate| (strsim::osa_distance(word, candidate), candidate))
        .filter(|(slips, _)| (1..=most).contains(slips))
        // Among those, what begins like the word: slips are seldom at the beginning.
        .min_by_key(|(slips, candidate)| {
            (*slips, !candidate.starts_with(word), candidate.chars().next() != word.chars().next())
        })
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_like_it_was_meant() {
        let verbs = ["run", "ps", "cp", "rm", "ls", "prune", "images", "image", "explain"];
        for (word, meant) in [
            ("prun", Some("prune")),
            ("rum", Some("run")),
            ("lss", Some("ls")),
            ("imags", Some("images")),
            ("explian", Some("explain")),
            ("px", None),
            ("xs", None),
            ("frobnicate", None),
        ] {
            assert_eq!(nearest(word, verbs.into_iter()), meant, "{word}");
        }
    }
}
