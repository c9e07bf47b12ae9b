//! Whose a store is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::image::error::{Result, StoreError};
use crate::image::layer::Ownership;

/// Checks that nobody but this user, or root, can change what is in the store: who can, would choose what this user
/// mounts and runs, and where files are written. Every step of the way counts, for who owns a directory can put another in
/// the place of what is in it.
///
/// # Errors
/// When it belongs to somebody else, or others may write to it.
pub(crate) fn check(root: &Path) -> Result<()> {
    let own = rustix::process::geteuid();
    // An ordinary user, as root of a user namespace too, would hurt themselves alone.
    let namespace = "/proc/self/ns/user";
    let ownership = Ownership::ask().map_err(StoreError::io("look at it", namespace))?;
    if !own.is_root() || ownership != Ownership::Real {
        return Ok(());
    }
    for dir in root.ancestors() {
        let stat = fs::symlink_metadata(dir).map_err(StoreError::io("look at it", dir))?;
        // In a sticky directory such as /tmp nobody can exchange what belongs to somebody else.
        let others_write = stat.mode() & 0o022 != 0 && (dir == root || stat.mode() & 0o1000 == 0);
        let what = match (stat.uid() == own.as_raw(), others_write) {
            (true, false) => continue,
            (false, _) => format!("belongs to uid {}", stat.uid()),
            (true, true) => "can be written to by others".to_owned(),
        };
        return Err(StoreError::Refused(format!(
            "{}: root uses no store that others can change, and {} {what}; run as that user, or give another directory \
             with --root",
            root.display(),
            if dir == root { "it".to_owned() } else { dir.display().to_string() },
        )));
    }
    Ok(())
}
