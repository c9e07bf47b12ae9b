//! How much of an object a change needs in the upper.

/// What of an object a change needs in the upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All but the data of a regular file, which may stay below.
    Metadata,
    /// The data as well, for a write: of a large file, blocks that aren't written to may stay below.
    Written,
    /// The data as well.
    Whole,
    /// The data as well, but only the first so many bytes, if it has more: it appears truncated, for a step that came after
    /// could fail.
    Beginning(u64),
}

impl Part {
    /// Tells whether data are wanted.
    pub fn has_data(self) -> bool {
        self != Part::Metadata
    }

    /// Returns how much of `size` bytes is wanted.
    pub(in crate::union) fn of(self, size: u64) -> u64 {
        match self {
            Part::Beginning(wanted) => wanted.min(size),
            Part::Metadata | Part::Written | Part::Whole => size,
        }
    }
}
