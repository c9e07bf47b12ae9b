//! Taking mounts away whose daemon has ended.

use std::path::Path;
use std::time::Duration;

use super::Failure;
use crate::control::mounts::{self, Life};
use crate::fuse::mount::Mounted;

/// How long the daemon of a mount that may be dead has to say otherwise.
const PATIENCE: Duration = Duration::from_secs(2);

/// Takes dead mounts of unionmount away from `point`, which this user or root has mounted. Nobody can use them any more.
/// Returns whether there was one.
///
/// # Errors
/// When the table of mounts can't be read, or one can't be unmounted.
pub(super) fn take_away(point: &Path) -> Result<bool, Failure> {
    // A mount point that doesn't exist has no mount; whoever needs it says so.
    let Ok(point) = std::fs::canonicalize(point) else { return Ok(false) };
    let mut any = false;
    loop {
        let mount = mounts::at(&point).map_err(|e| Failure::failed(format!("/proc/self/mountinfo: {e}")))?;
        match mount {
            Some(mount) if mount.life(PATIENCE) == Life::Dead => {
                Mounted::found(&point).unmount(true).map_err(Failure::failed)?;
                any = true;
            }
            _ => return Ok(any),
        }
    }
}
