//! Rollbacks: what is in the upper is thrown away, and an empty one on a frozen layer takes its place.

use std::os::fd::{AsFd, OwnedFd};

use crate::union::frozen::below::is_frozen;
use crate::union::frozen::held::{GONE, Held, Writing};
use crate::union::frozen::keeping;
use crate::union::frozen::mark::Head;
use crate::union::frozen::root;
use crate::union::frozen::snapshot::{Target, settle_new};
use crate::union::frozen::unfit::{self, SnapshotError};
use crate::union::stack::stack_error::StackError;

/// What a rollback did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolledBack {
    /// The name of the snapshot on which the upper lies now; `0` for none.
    pub to: String,
    /// What is still there of what was thrown away, and why.
    pub left: Option<String>,
}

/// An upper that is about to take the place of one that is thrown away.
#[derive(Debug)]
pub(in crate::union) struct Back {
    /// The name of the snapshot that it lies on.
    pub to: String,
    /// The new upper, which lies under [`GONE`].
    pub new: OwnedFd,
}

/// Goes back to a snapshot, to the last one that the upper lies on if none is named.
///
/// # Errors
/// When it can't be done; then nothing is changed.
pub fn rollback(target: &Target, name: Option<&str>) -> Result<RolledBack, StackError> {
    let held = target.hold()?;
    let writing = writing(&held)?;
    let back = prepare(&held, &writing, name)?;
    held.sync()?;
    held.exchange(&writing.layers, GONE).map_err(SnapshotError::from)?;
    settle_new(&held, back.new.as_fd());
    Ok(throw_away(&writing, back.to))
}

/// Opens the record of an upper that has snapshots, and that nobody reads.
pub(in crate::union) fn writing(held: &Held) -> unfit::Result<Writing> {
    match held.existing()? {
        Some(writing) if held.head()?.is_some() => {
            keeping::is_read_by_nobody(&writing.layers)?;
            Ok(writing)
        }
        _ => {
            let why = "has no snapshots; unionmount discard throws away all that is in it";
            Err(SnapshotError::refused(&held.upper.path, why))
        }
    }
}

/// Makes the upper that is to be there. Nothing that is shown has changed by it.
pub(in crate::union) fn prepare(held: &Held, writing: &Writing, name: Option<&str>) -> unfit::Result<Back> {
    let (path, layers) = (&held.upper.path, &writing.layers);
    let to = match name {
        None => held.head()?.map_or(0, |head| head.layer),
        Some(name) => layers.record.find(name).ok_or_else(|| {
            SnapshotError::refused(
                path,
                format!("no snapshot of it is called {name}; unionmount snapshots lists them"),
            )
        })?,
    };
    let model = if to == 0 { None } else { layers.layer(to)? };
    if to != 0 && !is_frozen(layers, to)? {
        return Err(SnapshotError::damaged(layers.place(to), "is missing"));
    }
    let head = Head::new(to).map_err(SnapshotError::io("make a mark for the new upper of", path))?;
    let model = model.as_ref().map_or(held.upper.root.as_fd(), AsFd::as_fd);
    let new = root::make((layers.dir.as_fd(), GONE, &layers.path), model, &head)?;
    let to = layers.record.layer(to).map_or_else(|| "0".to_owned(), |layer| layer.name.clone());
    Ok(Back { to, new })
}

/// Removes what was thrown away, now that another upper has its place.
pub(in crate::union) fn throw_away(writing: &Writing, to: String) -> RolledBack {
    // It is done: what isn't removed now, the next call removes.
    let left = writing.remove(GONE).err().map(|error| error.to_string());
    RolledBack { to, left }
}
