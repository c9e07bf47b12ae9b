//! What is asked for, what is done, and what is told of it: the terms in which the others speak.

use std::os::fd::{AsFd, BorrowedFd};

use serde::{Deserialize, Serialize};

use super::beneath::{Dir, Seen, find_dir, name_of};
use super::error::{ApplyError, Result};
use super::put::Attributes;
use crate::sys::object::At;
use crate::union::escaped_path::EscapedPath;

/// What is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// What becomes of conflicts.
    pub policy: Policy,
    /// Only tell what would be done.
    pub dry_run: bool,
    /// Owners and groups of what is there stay: the upper couldn't hold them.
    pub keep_owners: bool,
}

/// What becomes of conflicts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// The conflicts are told, and nothing is touched.
    #[default]
    Refuse,
    /// The upper's version replaces the target's.
    Force,
    /// The target's version stays, and the rest is applied.
    Theirs,
}

/// Something of the target that is in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Relative to the target.
    pub path: Vec<u8>,
    /// What the upper does there.
    pub does: Does,
    /// Why it is a conflict.
    pub why: Why,
}

/// What the upper does with an entry of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// It replaces it.
    Replaces,
    /// It deletes it.
    Deletes,
    /// It gives a directory other attributes.
    Alters,
}

/// Why something is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It was changed.
    Changed,
    /// It can't be known whether it was.
    Unknown,
}

/// What goes, as the plan judged it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goes {
    /// Which it is.
    pub seen: Seen,
    /// Since when it has been hidden: what is younger in it was never seen.
    pub since: Option<(i64, u32)>,
}

/// What comes to a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// What the union shows there, made anew in the stage.
    New,
    /// The directory that an earlier step has taken out, by its number.
    Moved(usize, Seen),
    /// One more name of what another step puts, by its number.
    Link(usize),
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Act {
    /// A directory is taken out of its place, to come to another.
    Take {
        /// The directory.
        seen: Seen,
    },
    /// It goes.
    Remove {
        /// What goes.
        goes: Goes,
    },
    /// Something comes there.
    Put {
        /// What.
        what: What,
        /// What was there.
        replaces: Option<Goes>,
        /// The object that was made for it, once it is.
        made: Option<Seen>,
    },
    /// A directory that stays gets other attributes.
    Alter {
        /// The directory.
        seen: Seen,
        /// What it had.
        known: Attributes,
        /// What it is to have.
        attributes: Attributes,
    },
}

/// A step, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Relative to the target.
    pub path: EscapedPath,
    /// The directory that holds it; of [`Act::Alter`] the directory itself.
    pub dir: Dir,
    /// Which stage is on its filesystem.
    pub stage: usize,
    /// What is done.
    pub act: Act,
}

impl Step {
    /// Returns its name in its directory.
    pub fn name(&self) -> &[u8] {
        name_of(&self.path.0)
    }
}

/// Something that was not applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Relative to the target.
    pub path: EscapedPath,
    /// What about it, as a part of a sentence.
    pub what: String,
}

impl Left {
    pub(super) fn new(path: &[u8], what: &str) -> Left {
        Left { path: path.into(), what: what.to_owned() }
    }
}

/// A renamed directory that was brought to its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brought {
    /// Where the target had it.
    pub from: EscapedPath,
    /// Where it is.
    pub to: EscapedPath,
    /// Which it is.
    pub seen: Seen,
    /// Whose changes it belongs to.
    pub upper: Seen,
}

impl Brought {
    /// Returns whether it is there.
    pub(super) fn has_come(&self, target: BorrowedFd<'_>) -> Result<bool> {
        let Some(dir) = find_dir(target, &self.to.0)? else { return Ok(false) };
        let stat = At::Fd(dir.as_fd()).stat().map_err(ApplyError::at(&self.to.0, "look at it"))?;
        Ok(self.seen.is_same(&stat))
    }
}
