//! Rollbacks: what is in the upper is thrown away, and an empty one on a frozen layer takes its place.

use std::os::fd::AsFd;

use crate::union::frozen::below::is_frozen;
use crate::union::frozen::held::{GONE, Held};
use crate::union::frozen::mark::Head;
use crate::union::frozen::root;
use crate::union::frozen::snapshot::{Target, settle_new};
use crate::union::frozen::unfit::SnapshotError;
use crate::union::stack::stack_error::StackError;

/// What a rollback did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolledBack {
    /// The name of the snapshot on which the upper lies now; `0` for none.
    pub to: String,
    /// What is still there of what was thrown away, and why.
    pub left: Option<String>,
}

/// Goes back to a snapshot, to the last one that the upper lies on if none is named.
///
/// # Errors
/// When it can't be done; then nothing is changed.
pub fn rollback(target: &Target, name: Option<&str>) -> Result<RolledBack, StackError> {
    let held = Held::begin(&target.upper, target.work.as_deref())?;
    let path = &target.upper;
    let writing = held.existing()?;
    let (Some(writing), Some(head)) = (writing, held.head()?) else {
        let why = "has no snapshots; unionmount discard throws away all that is in it";
        return Err(SnapshotError::refused(path, why).into());
    };
    let layers = &writing.layers;
    let to = match name {
        None => head.layer,
        Some(name) => layers.record.find(name).ok_or_else(|| {
            SnapshotError::refused(
                path,
                format!("no snapshot of it is called {name}; unionmount snapshots lists them"),
            )
        })?,
    };
    let model = if to == 0 { None } else { layers.layer(to)? };
    if to != 0 && !is_frozen(layers, to)? {
        return Err(SnapshotError::damaged(layers.place(to), "is missing").into());
    }
    let new = Head::new(to).map_err(SnapshotError::io("make a mark for the new upper of", path))?;
    let model = model.as_ref().map_or(held.upper.root.as_fd(), AsFd::as_fd);
    let made = root::make((layers.dir.as_fd(), GONE, &layers.path), model, &new)?;
    held.sync()?;
    held.exchange(layers, GONE)?;
    settle_new(&held, made.as_fd());
    // It is done: what isn't removed now, the next call removes.
    let left = writing.remove(GONE).err().map(|error| error.to_string());
    let to = layers.record.layer(to).map_or_else(|| "0".to_owned(), |layer| layer.name.clone());
    Ok(RolledBack { to, left })
}
