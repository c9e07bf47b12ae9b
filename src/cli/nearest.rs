//! Words that are written almost alike: what somebody may have meant.

/// Returns the candidate that takes the fewest slips (a letter too many, too few, another, or two exchanged) to come to
/// from `word`: one, or two of a word that is long enough to be known by the rest.
pub(super) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = if word.chars().count() >= 5 { 2 } else { 1 };
    candidates
        // Of two letters, one slip leaves nothing.
        .filter(|candidate| candidate.len() > 2)
        .map(|candidate| (strsim::osa_distance(word, candidate), candidate))
        .filter(|(slips, _)| (1..=most).contains(slips))
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}
