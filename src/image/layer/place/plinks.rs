//! Files with several names, as AUFS keeps them: `.wh..wh.plnk/NUMBER` is the file, and its names are hardlinks to that.
//!
//! Other engines unpack such files for as long as hardlinks may follow, and so does this.

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::{UnpackTarget, open_dir, split};
use crate::image::layer::LayerError;
use crate::sys::object::At;
use crate::sys::remove;

/// The directory in which AUFS keeps files with several names.
pub(in crate::image::layer) const PLINKS: &[u8] = b".wh..wh.plnk";

/// Returns whether that is a file in that directory.
pub(in crate::image::layer) fn is_plink(path: &[u8]) -> bool {
    path.strip_prefix(PLINKS).is_some_and(|rest| rest.starts_with(b"/"))
}

impl UnpackTarget<'_> {
    /// Returns whether the layer has something of this name, over no link.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn has(&mut self, path: &[u8]) -> Result<bool, LayerError> {
        let (parent, name) = split(path);
        self.work += super::steps(path);
        match open_dir(self.root, parent).and_then(|dir| At::Name(dir.as_fd(), name).stat()) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
            Err(errno) => Err(LayerError::os(path, "look at it")(errno)),
        }
    }

    /// Takes the directory away when all names have been made.
    pub(super) fn drop_plinks(&mut self) -> Result<(), LayerError> {
        if !self.has(PLINKS)? {
            return Ok(());
        }
        self.enter(b"", PLINKS)?;
        let (dir, _) = self.dir()?;
        remove::entry(dir, PLINKS).map_err(LayerError::os(PLINKS, "remove it"))?;
        self.implied = self.implied.saturating_sub(1);
        Ok(())
    }
}
