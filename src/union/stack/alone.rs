//! The upper, opened and locked.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Access, StatVfsMountFlags, fstatvfs};

use crate::union::stack::directory::Layer;
use crate::union::stack::lock::DirLock;
use crate::union::stack::stack_error::{Role, StackError, open_error};

/// Opens and locks an upper.
///
/// # Errors
/// When it can't be one, or another has the lock for longer than `wait`.
pub(in crate::union) fn lock_upper(path: &Path, wait: Duration) -> Result<(Layer, DirLock), StackError> {
    loop {
        let upper = open_upper(path)?;
        let lock = DirLock::acquire(upper.root.as_fd(), Role::Upper, path, wait)?;
        // Who held the lock before may have frozen that directory, and put another one there.
        let now = open_upper(path)?;
        if (now.dev, now.ino) == (upper.dev, upper.ino) {
            return Ok((upper, lock));
        }
    }
}

fn open_upper(path: &Path) -> Result<Layer, StackError> {
    let layer = Layer::open(Role::Upper, path)?;
    let fs = fstatvfs(&layer.root).map_err(|e| open_error(Role::Upper, path, e))?;
    if fs.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(StackError::ReadOnly { role: Role::Upper, path: path.to_owned() });
    }
    let all = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    layer.may(Role::Upper, all, "read, write and search permission on it")?;
    Ok(layer)
}
