//! Link counts and origins as they are kept with a copy: the names of the attributes, and what their values say.

use crate::sys::object::Time;

/// The mark that keeps a copy's origin.
pub(in crate::union) const ORIGIN: &str = "unionmount.origin";
/// The mark of a copy in this program's index that tells which inode it was copied from, and when that was made.
pub(in crate::union) const ORIGINAL: &str = "unionmount.original";
/// The mark of a copy in the index that no name leads to yet.
pub(in crate::union) const UNPUBLISHED: &str = "unionmount.unpublished";
/// The mark that keeps the link count of a copy in the index.
pub(in crate::union) const NLINK: &str = "nlink";

/// Names of a lower's file that are hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hidden {
    /// How many.
    pub count: u64,
    /// Which of the files it is that have had the number, by when it was made.
    pub born: Option<Time>,
}

/// Returns a time of birth as text.
pub(in crate::union) fn birth_text(born: Time) -> String {
    format!("{}.{}", born.sec, born.nsec)
}

/// Returns the reverse of [`birth_text`].
pub(in crate::union) fn parse_birth(text: &str) -> Option<Time> {
    let (sec, nsec) = text.split_once('.')?;
    Some(Time { sec: sec.parse().ok()?, nsec: nsec.parse().ok()? })
}

/// Returns the link count that an `overlay.nlink` of the form `=n` gives.
pub(in crate::union) fn absolute_nlink(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.strip_prefix('=')?.parse().ok()
}

/// Returns the link count that an `overlay.nlink` value and the copy's own count give. `None`: not a form that is
/// understood.
pub(in crate::union) fn parse_nlink(value: &[u8], own: u64) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    if let Some(absolute) = absolute_nlink(value) {
        return Some(absolute);
    }
    let difference: i64 = text.strip_prefix('U')?.parse().ok()?;
    own.checked_add_signed(difference)
}

/// Returns the `overlay.nlink` value of a file with `own` links that has `merged` names in the merged view.
pub(in crate::union) fn difference(merged: u64, own: u64) -> String {
    format!("U{:+}", merged.cast_signed() - own.cast_signed())
}

/// Tells whether the value says that no name is left of a file with `own` links.
pub(in crate::union) fn is_nameless(value: &[u8], own: u64) -> bool {
    let difference = std::str::from_utf8(value).ok().and_then(|v| v.strip_prefix('U')?.parse::<i64>().ok());
    difference.is_some_and(|d| own.cast_signed().saturating_add(d) <= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_link_count() {
        assert_eq!(parse_nlink(b"U+0", 2), Some(2));
        assert_eq!(parse_nlink(b"U-1", 3), Some(2));
        assert_eq!(parse_nlink(b"=5", 3), Some(5));
        for bad in [&b""[..], b"L+1", b"U", b"U-9", b"\xff"] {
            assert_eq!(parse_nlink(bad, 3), None, "{bad:?}");
        }
    }
}
