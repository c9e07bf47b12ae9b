//! What a change finds that needed an object in the upper.

use std::os::fd::OwnedFd;

use crate::union::nodes::generation::Generation;
use crate::union::nodes::node::InodeId;

/// Who tells the kernel the attributes that a copy-up leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::union) enum Told {
    /// Nothing does: it is told to ask.
    ByNothing,
    /// The answer to the request that needs the copy; where it is an error, whoever answers has it ask.
    ByAnswer,
}

/// What a change finds that needed an object in the upper.
#[derive(Debug)]
pub(in crate::union) struct Brought {
    /// Whether it was truncated by that.
    pub(in crate::union) is_cut: bool,
    /// The file, if it was copied up just now.
    pub(in crate::union) made: Option<MadeCopy>,
}

/// A file that was copied up just now, open, and what the node's object is by that.
#[derive(Debug)]
pub(in crate::union) struct MadeCopy {
    pub(in crate::union) file: OwnedFd,
    pub(in crate::union) real: (InodeId, Generation),
}
