//! The rules of the layers: what a layer has under a name decides whether the layers below are asked, and for what.
//!
//! Lookup, the trace, what is told of a path and the survey of an image all go by this one function, each with its own way
//! of finding out what a layer has.
//!
//! Sources: the kernel's Documentation/filesystems/overlayfs.rst ("Whiteouts and opaque directories", "Renaming
//! directories"); the OCI image specification, layer.md ("Whiteouts").

/// What a layer has under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<'a> {
    /// Nothing.
    Nothing,
    /// A whiteout: the name ends here, deleted.
    Whiteout,
    /// Anything that is not a directory.
    Leaf,
    /// A directory.
    Directory {
        /// It is opaque.
        opaque: bool,
        /// A whiteout of its name lies beside it.
        beside: bool,
        /// Where its lower part is, if it was renamed: a name in the same directory, or a path from the layer's root.
        redirect: Option<&'a [u8]>,
    },
}

/// How a search goes on below a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next<'a> {
    /// The layers below are asked for the same name.
    Below,
    /// The layers below don't count.
    End,
    /// The layers below are asked for this name, in the same directory.
    Name(&'a [u8]),
    /// The layers below are asked for this path, from their roots.
    Path(&'a [u8]),
}

/// Returns how a search goes on below a layer that has `entry`.
///
/// An opaque directory ends it, whatever else it carries. A whiteout beside a directory hides what has its name below; a
/// redirect leads elsewhere, so the whiteout, which a rename left at the new name, says nothing about it.
pub fn next(entry: Entry<'_>) -> Next<'_> {
    match entry {
        Entry::Nothing => Next::Below,
        Entry::Whiteout | Entry::Leaf | Entry::Directory { opaque: true, .. } => Next::End,
        Entry::Directory { redirect: Some(path), .. } if path.starts_with(b"/") => Next::Path(path),
        Entry::Directory { redirect: Some(name), .. } => Next::Name(name),
        Entry::Directory { beside: true, .. } => Next::End,
        Entry::Directory { .. } => Next::Below,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_hides_ends_the_search() {
        let directory = |opaque, beside, redirect| Entry::Directory { opaque, beside, redirect };
        for (entry, expected) in [
            (Entry::Nothing, Next::Below),
            (Entry::Whiteout, Next::End),
            (Entry::Leaf, Next::End),
            (directory(false, false, None), Next::Below),
            (directory(true, false, None), Next::End),
            (directory(true, false, Some(b"n")), Next::End),
            (directory(false, true, None), Next::End),
            (directory(false, true, Some(b"n")), Next::Name(b"n")),
            (directory(false, false, Some(b"/a/b")), Next::Path(b"/a/b")),
        ] {
            assert_eq!(next(entry), expected, "{entry:?}");
        }
    }
}
