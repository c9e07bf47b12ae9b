//! A snapshot of a mount: its upper is frozen, and a new one goes on top.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::fsync;

use crate::union::Union;
use crate::union::frozen::branch::{self, Place};
use crate::union::frozen::held::{Held, Writing};
use crate::union::frozen::linking::{self, IndexState};
use crate::union::frozen::record::FrozenLayer;
use crate::union::frozen::root;
use crate::union::frozen::snapshot::{self, Prepared};
use crate::union::frozen::unfit::SnapshotError;
use crate::union::live::Unchanged;
use crate::union::live::succession::{self, How, Successor};
use crate::union::nodes::skeleton::OfUpper;
use crate::union::stack::layer::LowerSource;
use crate::union::stack::stack_error::StackError;

/// A snapshot that is about to be taken. Nothing of it is seen yet.
pub struct Freezing {
    held: Held,
    writing: Writing,
    prepared: Prepared,
    successor: Successor,
    /// Of which files a name is hidden in the layers, so that the upper can't have it.
    lacking: BTreeSet<Vec<u8>>,
}

impl Freezing {
    /// Prepares a snapshot of the upper at a path, which is that of a mount, while that is used. `lowers`: what it was mounted over.
    ///
    /// # Errors
    /// When there can be none.
    pub fn prepare(
        union: &Union,
        upper: &Path,
        lowers: &[LowerSource],
        name: Option<&str>,
    ) -> Result<Freezing, StackError> {
        if let Some(name) = name {
            snapshot::may_be_called(upper, name)?;
        }
        let held = succession::held(union, upper)?;
        let mut writing = held.writing()?;
        // What takes long is done now, and little is left for the moment when nobody may ask.
        let state = with_all_names(union, &held, &BTreeSet::new())?;
        let lacking = state.lacking;
        held.sync()?;
        if !held.is_containers
            && let Some(lowers) = snapshot::recorded(lowers)
        {
            writing.layers.record.lowers = lowers;
        }
        let made = snapshot::prepare(&held, &mut writing, state.hidden, name)
            .map_err(StackError::from)
            .and_then(|prepared| Ok((Successor::new(&held.upper, prepared.new.as_fd())?, prepared)));
        match made {
            Ok((successor, prepared)) => Ok(Freezing { held, writing, prepared, successor, lacking }),
            Err(error) => {
                gave_up(writing);
                Err(error)
            }
        }
    }

    /// Takes it. Nobody may ask the union meanwhile. Returns the union that takes over.
    ///
    /// # Errors
    /// See [`Unchanged`].
    pub fn take(&mut self, union: &Union, how: &How) -> Result<Union, Unchanged<StackError>> {
        let skeleton = self.bring_up_to_date(union).map_err(Unchanged::AsBefore).and_then(|()| {
            union
                .skeleton(OfUpper::Frozen)
                .map_err(|why| Unchanged::AsBefore(SnapshotError::refused(&self.held.upper.path, why).into()))
        })?;
        let exchanged = (&self.held, &self.writing.layers, &*self.prepared.place());
        succession::exchange(union, exchanged, &self.successor, (how, skeleton))
    }

    /// Writes to the disk what was written between the preparation and the exchange, now that it was taken.
    ///
    /// # Errors
    /// Those of syncfs(2).
    pub fn sync(&self) -> Result<(), SnapshotError> {
        self.held.sync()
    }

    /// Makes a branch over the layer, now that it was taken.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn stand_on(&self, place: &Place) -> Result<(), SnapshotError> {
        branch::stand_on(&self.held, &self.writing, place)
    }

    /// Gives it up: what was prepared is removed.
    pub fn give_up(self) {
        gave_up(self.writing);
    }

    /// Tells whether files have names that a layer hides: from the snapshot on their counts of names are of those that are shown.
    pub fn lacks_names(&self) -> bool {
        !self.lacking.is_empty()
    }

    /// Returns the layer.
    pub fn layer(&self) -> &FrozenLayer {
        &self.prepared.layer
    }

    /// Brings what was prepared up to date with what was done since.
    fn bring_up_to_date(&mut self, union: &Union) -> Result<(), StackError> {
        let state = with_all_names(union, &self.held, &self.lacking)?;
        let (path, new) = (&self.held.upper.path, self.prepared.new.as_fd());
        root::be_like(new, self.held.upper.root.as_fd())
            .map_err(SnapshotError::io("give the new upper the attributes of", path))?;
        // Where it isn't in the same journal as the exchange.
        if union.upper.as_ref().is_none_or(|upper| !upper.has_one_journal()) {
            fsync(new).map_err(SnapshotError::io("sync the new upper of", path))?;
        }
        if state.hidden != self.prepared.layer.hidden {
            self.prepared.layer.hidden.clone_from(&state.hidden);
            if let Some(layer) = self.writing.layers.record.layers.last_mut() {
                layer.hidden = state.hidden;
            }
            self.writing.layers.write()?;
        }
        Ok(())
    }
}

/// Makes a branch of the upper at a path, which is that of a mount, unless something in it is to be frozen for that: then `false`.
///
/// # Errors
/// When it can't be made.
pub fn branch_at_once(union: &Union, upper: &Path, place: &Place) -> Result<bool, StackError> {
    let held = succession::held(union, upper)?;
    let writing = held.writing()?;
    if branch::needs_snapshot(&held, &writing)? {
        return Ok(false);
    }
    branch::stand_on(&held, &writing, place)?;
    Ok(true)
}

/// Removes what was prepared. What can't be removed now is by whoever changes the record next.
fn gave_up(mut writing: Writing) {
    if let Err(error) = writing.recover() {
        log::warn!("what was prepared for a snapshot is left, and removed with the next: {error}");
    }
}

/// Returns what the hardlink index says once the upper has all names of its files that can be asked for. `lacking`: of what it has
/// them already, as far as they can.
fn with_all_names(union: &Union, held: &Held, lacking: &BTreeSet<Vec<u8>>) -> Result<IndexState, StackError> {
    let path = &held.upper.path;
    let read = || {
        linking::read(&held.work).map_err(SnapshotError::io("read the hardlink index in", &held.work.path))
    };
    let state = read()?;
    if state.lacking.is_subset(lacking) {
        return Ok(state);
    }
    union.link_all_names().map_err(|error| {
        SnapshotError::refused(path, format!("the names of its files can't be gone through: {error}"))
    })?;
    // These are the layers of the mount: a name that isn't found in them now is hidden, and can't be asked for.
    Ok(read()?)
}
