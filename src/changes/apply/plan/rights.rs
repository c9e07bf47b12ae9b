//! What a user may change.

use std::os::fd::BorrowedFd;

use rustix::fs::{self, Access, AtFlags};

use crate::changes::apply::beneath::look;
use crate::changes::apply::error::{ApplyError, Result};
use crate::sys::namespace::is_privileged;
use crate::sys::object::{At, Kind};
use crate::union::escaped_path::EscapedPath;

/// Checks that this user may replace or remove an entry of a directory, before anything is begun: what fails half-way is a
/// nuisance to all.
pub(super) fn may_change(dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
    if is_privileged() {
        return Ok(());
    }
    let refused = || {
        Err(ApplyError::Refused(format!(
            "{}: this user may not change it; apply it as somebody who may, or as root",
            EscapedPath::from(path)
        )))
    };
    let own = rustix::process::geteuid().as_raw();
    let may =
        |at: BorrowedFd<'_>, name: &[u8], access| fs::accessat(at, name, access, AtFlags::EACCESS).is_ok();
    if !may(dir, b".", Access::WRITE_OK | Access::EXEC_OK) {
        return refused();
    }
    let around = At::Fd(dir).stat().map_err(ApplyError::at(path, "look at it"))?;
    let Some(stat) = look(dir, name, path)? else { return Ok(()) };
    let sticky = around.mode & 0o1000 != 0 && stat.uid != own && around.uid != own;
    // To move a directory elsewhere changes it.
    let fixed = stat.kind() == Kind::Directory && !may(dir, name, Access::WRITE_OK);
    if sticky || fixed { refused() } else { Ok(()) }
}
