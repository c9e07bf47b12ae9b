//! One directory of a stack, opened.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, Mode, OFlags, accessat};
use rustix::io::Errno;

use crate::sys::object::proc_path;
use crate::union::lookup::belief::Belief;
use crate::union::stack::nesting::{self, Member, locate};
use crate::union::stack::stack_error::{Role, StackError, denied, open_error};

/// An open layer.
#[derive(Debug)]
pub struct Layer {
    /// As given; for messages only.
    pub path: PathBuf,
    /// Where it was when it was opened, from the root and without links; empty without /proc. For messages only.
    pub place: Vec<u8>,
    /// Its root, opened with O_PATH. Every access starts here.
    pub root: OwnedFd,
    /// `st_dev` of the root.
    pub dev: u64,
    /// `st_ino` of the root.
    pub ino: u64,
    /// Whose marks in it are believed.
    pub belief: Belief,
    /// Whether it is reached through a mount that nobody else sees, so that nothing can be mounted in it.
    pub sealed: bool,
}

/// Returns where a layer is: the place that it was found at when it was opened, or else the path that was given.
pub(in crate::union) fn place_of(place: &[u8], path: &Path) -> PathBuf {
    if place.is_empty() { path.to_owned() } else { OsStr::from_bytes(place).into() }
}

impl Layer {
    /// Returns where it is, from the root and without links where that is known.
    pub(in crate::union) fn place(&self) -> PathBuf {
        place_of(&self.place, &self.path)
    }

    /// Opens a directory by a path that the kernel resolves.
    pub(in crate::union) fn open(role: Role, path: &Path) -> Result<Layer, StackError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| open_error(role, path, e))?;
        let id = locate(root.as_fd()).map_err(|e| open_error(role, path, e))?.id;
        let place = rustix::fs::readlinkat(rustix::fs::CWD, proc_path(root.as_fd()), Vec::new());
        let place = place.map(std::ffi::CString::into_bytes).unwrap_or_default();
        let belief = Belief::of_process();
        Ok(Layer { path: path.to_owned(), place, root, dev: id.dev, ino: id.ino, belief, sealed: false })
    }

    pub(in crate::union) fn may(
        &self,
        role: Role,
        access: Access,
        needs: &'static str,
    ) -> Result<(), StackError> {
        match accessat(&self.root, c".", access, AtFlags::EACCESS) {
            Ok(()) => Ok(()),
            Err(Errno::ACCESS | Errno::PERM) => Err(denied(role, &self.path, needs)),
            Err(Errno::ROFS) => Err(StackError::ReadOnly { role, path: self.path.clone() }),
            Err(errno) => Err(open_error(role, &self.path, errno)),
        }
    }

    pub(in crate::union) fn member(&self, role: Role) -> Member<'_> {
        let id = nesting::DirId { dev: self.dev, ino: self.ino };
        Member { role, path: &self.path, id, fd: self.root.as_fd() }
    }
}
