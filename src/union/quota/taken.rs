//! What an upper may take, and what it takes.

/// What an upper may take; `None`: as much as there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bounds {
    /// Bytes on the disk.
    pub bytes: Option<u64>,
    /// Objects: files, directories, links, whiteouts.
    pub inodes: Option<u64>,
}

impl Bounds {
    /// Tells whether there is a limit.
    pub fn are_set(&self) -> bool {
        self.bytes.is_some() || self.inodes.is_some()
    }
}

/// So much is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Taken {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Objects.
    pub inodes: u64,
}

impl Taken {
    pub(super) fn add(&mut self, more: Taken) {
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.inodes = self.inodes.saturating_add(more.inodes);
    }

    pub(super) fn take(&mut self, less: Taken) {
        self.bytes = self.bytes.saturating_sub(less.bytes);
        self.inodes = self.inodes.saturating_sub(less.inodes);
    }

    pub(super) fn max(self, other: Taken) -> Taken {
        Taken { bytes: self.bytes.max(other.bytes), inodes: self.inodes.max(other.inodes) }
    }
}

/// How much larger something may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    /// Not at all, or by what the filesystem needs for itself.
    None,
    /// By what is written from there on, so many bytes.
    Range(u64, u64),
    /// The same, of what is read from another file, which may take as long as whoever answers for that one likes.
    Copied(u64, u64),
}
