//! What a search refuses of the marks that it meets, and what is told of them.

use rustix::io::Errno;

use std::sync::Arc;

use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::lookup::belief;
use crate::union::lookup::marker::Marks;
use crate::union::lookup::realdir::RealDir;
use crate::union::options::RedirectDir;

impl Union {
    /// Refuses a redirect with `redirect_dir=nofollow`, as the kernel does: what lies below it is not shown, and its
    /// upper part alone would be wrong.
    pub(super) fn check_follow(&self, dir: &RealDir, name: &[u8]) -> Result<()> {
        if self.redirects == RedirectDir::NoFollow {
            // Logs which; programs get the kernel's number.
            drop(self.layer_form(dir, name, "a redirect, refused by redirect_dir=nofollow"));
            return Err(FsError::Os(Errno::PERM));
        }
        Ok(())
    }

    /// Warns of a mark that isn't believed.
    pub(super) fn tell_unbelieved(&self, marks: &Marks, dir: &RealDir, name: &[u8]) {
        if let Some(mark) = &marks.unbelieved {
            let path = [&dir.path(), name].join(&b'/');
            belief::warn_unbelieved(mark, &self.layers[usize::from(dir.layer)].path, &path);
        }
    }

    /// Returns the error of a mark that leads to what its owner may not read.
    pub(super) fn leads_too_far(&self, dir: &RealDir, name: &[u8]) -> FsError {
        // Logs which; programs get the number that the kernel's overlayfs has for what isn't followed.
        drop(self.layer_form(dir, name, "a user.overlay mark that leads to what its owner may not read"));
        FsError::Os(Errno::PERM)
    }

    /// Refuses a redirect that no overlay writes: it could lead out of the layer.
    pub(super) fn check_component(&self, component: &[u8], dir: &Arc<RealDir>) -> Result<()> {
        if matches!(component, b"" | b"." | b"..") || component.contains(&b'/') || component.contains(&0) {
            return Err(self.layer_form(dir, b"", "a redirect that is neither a name nor an absolute path"));
        }
        Ok(())
    }

    /// Returns an error that names the layer and the path in it.
    pub(in crate::union) fn layer_form(&self, dir: &RealDir, name: &[u8], what: &str) -> FsError {
        let mut path = dir.path();
        if !path.is_empty() && !name.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let error = FsError::LayerForm {
            layer: self.layers[usize::from(dir.layer)].path.display().to_string(),
            path: String::from_utf8_lossy(&path).into_owned(),
            what: what.to_owned(),
        };
        log::error!("{error}");
        error
    }
}
