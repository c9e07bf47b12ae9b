//! An entry that was just made in the upper, and goes again unless what comes after succeeds too.

use std::sync::Arc;

use crate::sys::object::Kind;
use crate::union::Union;
use crate::union::change::names::InUpper;
use crate::union::change::upper::{Present, UpperFd};
use crate::union::nodes::node::Node;

/// An entry that was made under its name. It is taken away again when this is dropped, unless it stays: who asked for it is
/// told an error then, and nothing is there.
pub(in crate::union) struct MadeEntry<'a> {
    union: &'a Union,
    parent: &'a Arc<Node>,
    dir: &'a UpperFd,
    name: &'a [u8],
    kind: Kind,
    /// What the upper had.
    before: InUpper,
    stays: bool,
}

impl<'a> MadeEntry<'a> {
    /// Makes one of the entry `name` of a directory, of that kind, and of what was there before.
    pub fn new(
        union: &'a Union,
        parent: &'a Arc<Node>,
        dir: &'a UpperFd,
        name: &'a [u8],
        (kind, before): (Kind, InUpper),
    ) -> MadeEntry<'a> {
        MadeEntry { union, parent, dir, name, kind, before, stays: false }
    }

    /// Lets the entry stay: all is well.
    pub fn stays(mut self) {
        self.stays = true;
    }
}

impl Drop for MadeEntry<'_> {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        let made = if self.kind == Kind::Directory { Present::Empty } else { Present::Leaf };
        let taken = self.union.upper().and_then(|upper| match self.before {
            InUpper::Whiteout => upper.whiteout(self.dir, self.name, Some(made)),
            InUpper::Free | InUpper::Present(_) => upper.remove(self.dir, self.name, made),
        });
        if let Err(e) = taken {
            let name = String::from_utf8_lossy(self.name);
            log::error!("{name}: made, but not told to who asked for it: {e}");
            if let Some(dir) = &self.parent.dir {
                dir.index.lock().upper = None; // read anew when it is asked
            }
        }
    }
}
