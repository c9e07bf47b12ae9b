//! A mount goes back to a snapshot: its upper is thrown away, and an empty one takes its place.

use std::os::fd::AsFd;
use std::path::Path;

use crate::union::Union;
use crate::union::frozen::held::{GONE, Held, Writing};
use crate::union::frozen::rollback::{self, Back, RolledBack};
use crate::union::frozen::unfit::SnapshotError;
use crate::union::live::Unchanged;
use crate::union::live::succession::{self, How, Successor};
use crate::union::nodes::skeleton::OfUpper;
use crate::union::stack::stack_error::StackError;

/// A rollback that is about to be done. Nothing of it is seen yet.
pub struct RollingBack {
    held: Held,
    writing: Writing,
    back: Back,
    successor: Successor,
}

impl RollingBack {
    /// Prepares to go back to a snapshot of the upper at a path, which is that of a mount, while that is used; to the last one that it
    /// lies on if none is named.
    ///
    /// # Errors
    /// When it can't be done.
    pub fn prepare(union: &Union, upper: &Path, name: Option<&str>) -> Result<RollingBack, StackError> {
        let held = succession::held(union, upper)?;
        let writing = rollback::writing(&held)?;
        let made = rollback::prepare(&held, &writing, name)
            .map_err(StackError::from)
            .and_then(|back| Ok((Successor::new(&held.upper, back.new.as_fd())?, back)));
        match made {
            Ok((successor, back)) => Ok(RollingBack { held, writing, back, successor }),
            Err(error) => {
                gave_up(&held, &writing);
                Err(error)
            }
        }
    }

    /// Does it. Nobody may ask the union meanwhile. Returns the union that takes over.
    ///
    /// # Errors
    /// See [`Unchanged`].
    pub fn go(&self, union: &Union, how: &How) -> Result<Union, Unchanged<StackError>> {
        let refused = |why: &str| SnapshotError::refused(&self.held.upper.path, why);
        let skeleton =
            union.skeleton(OfUpper::Gone).map_err(|why| Unchanged::AsBefore(refused(why).into()))?;
        let exchanged = (&self.held, &self.writing.layers, GONE);
        succession::exchange(union, exchanged, &self.successor, (how, skeleton))
    }

    /// Removes what was thrown away, now that it is done.
    pub fn end(self) -> RolledBack {
        rollback::throw_away(&self.writing, self.back.to)
    }

    /// Gives it up: what was prepared is removed.
    pub fn give_up(self) {
        gave_up(&self.held, &self.writing);
    }
}

/// Removes what was prepared. What can't be removed now is by whoever changes the record next.
fn gave_up(held: &Held, writing: &Writing) {
    if let Err(error) = held.give_up(writing, GONE) {
        log::warn!("what was prepared for a rollback is left: {error}");
    }
}
