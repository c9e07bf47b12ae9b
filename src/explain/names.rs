//! Names and sizes as a person reads them.
//!
//! A name in a layer is any bytes: it can hold sequences that move a terminal's cursor, or characters that turn the
//! direction of writing. None of them reaches a terminal or a page.

use crate::sys::object::Kind;
use crate::union::escaped_path::EscapedPath;

/// Returns a name as text, see [`EscapedPath`].
///
/// ```
/// use unionmount::explain::names::readable;
/// assert_eq!(readable(b"caf\xc3\xa9"), "café");
/// assert_eq!(readable(b"caf\xe9 \x1b[2J"), r"caf\xe9 \u{1b}[2J");
/// ```
pub fn readable(name: &[u8]) -> String {
    EscapedPath::from(name).to_string()
}

/// Returns a number of bytes as it is told everywhere: `15 B`, `1.20 MiB`, in powers of 1024.
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// Returns a share in percent, with one decimal place.
pub fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64 * 1000.0).round() / 10.0 }
}

/// Returns a share in whole percent, as `45`; all of it only where nothing is missing.
pub fn whole_percent(part: u64, whole: u64) -> String {
    (u128::from(part) * 100 / u128::from(whole.max(1))).min(100).to_string()
}

/// Returns what an object is called.
pub fn kind(kind: Option<Kind>) -> &'static str {
    match kind {
        None => "whiteout",
        Some(Kind::File) => "file",
        Some(Kind::Directory) => "directory",
        Some(Kind::Symlink) => "symlink",
        Some(Kind::Fifo) => "fifo",
        Some(Kind::Socket) => "socket",
        Some(Kind::CharDevice) => "character device",
        Some(Kind::BlockDevice) => "block device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_acts_on_a_terminal_comes_through() {
        for byte in 0..=255u8 {
            assert!(!readable(&[b'a', byte]).chars().any(char::is_control), "{byte}");
        }
        assert_eq!(readable("a\u{202e}b".as_bytes()), "a\\u{202e}b");
        assert_eq!(readable("名前".as_bytes()), "名前");
    }

    /// One image was 4.98MB here and 4.75 MiB there.
    #[test]
    fn bytes_are_told_by_one_function() {
        let mut todo = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(path) = todo.pop() {
            if path.is_dir() {
                todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else if !path.ends_with("explain/names.rs")
                && path.extension().is_some_and(|kind| kind == "rs" || kind == "toml")
            {
                let text = std::fs::read_to_string(&path).unwrap();
                for other in ["HumanBytes", "BinaryBytes", "DecimalBytes", "decimal_bytes", " MB"] {
                    let said = text
                        .lines()
                        .find(|line| line.contains(other) && !line.trim_start().starts_with("//"));
                    assert_eq!(said, None, "{}: explain::names::bytes tells how much it is", path.display());
                }
            }
        }
    }

    #[test]
    fn shares_of_nothing_are_nothing() {
        assert_eq!(percent(0, 0), 0.0);
        assert_eq!(percent(1, 3), 33.3);
    }
}
