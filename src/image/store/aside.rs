//! Setting aside: what is broken leaves its place, and is kept until the user has seen it.
//!
//! Nothing that an image names is deleted because it looks broken: it goes to `damaged/` by one rename, under a name that
//! tells what it was. Whoever has it open or mounted goes on with it.

#![allow(clippy::disallowed_methods, reason = "the store is its own")]

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, RenameFlags, linkat, renameat_with};
use rustix::io::Errno;

use super::{Store, make_dir, sync_dir};
use crate::image::error::{Result, StoreError};

impl Store {
    /// Returns where broken things are kept.
    pub fn damaged_dir(&self) -> PathBuf {
        self.root().join("damaged")
    }

    /// Moves what is broken out of its place, durably; returns where it is now.
    ///
    /// # Errors
    /// When it can't be moved; it is where it was then.
    pub fn set_aside(&self, path: &Path) -> Result<PathBuf> {
        self.aside(path, "set it aside", |aside| renameat_with(CWD, path, CWD, aside, RenameFlags::NOREPLACE))
    }

    /// Does as [`Store::set_aside`], of a file that is about to be replaced: until then it stays in its place as well,
    /// so that there is one there at every moment, whatever fails.
    ///
    /// # Errors
    /// When it can't be kept.
    pub fn keep_aside(&self, path: &Path) -> Result<PathBuf> {
        self.aside(path, "keep it aside", |aside| linkat(CWD, path, CWD, aside, AtFlags::empty()))
    }

    fn aside(
        &self,
        path: &Path,
        what: &'static str,
        put: impl Fn(&Path) -> rustix::io::Result<()>,
    ) -> Result<PathBuf> {
        let dir = self.damaged_dir();
        make_dir(&dir)?;
        let within = path.strip_prefix(self.root()).unwrap_or(path);
        let parts: Vec<_> = within.iter().map(|part| part.to_string_lossy()).collect();
        let name = parts.join("-");
        for attempt in 0..u32::MAX {
            let aside = match attempt {
                0 => dir.join(&name),
                _ => dir.join(format!("{name}.{attempt}")),
            };
            match put(&aside) {
                Ok(()) => {
                    sync_dir(&dir)?;
                    return Ok(aside);
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(StoreError::io(what, path)(errno)),
            }
        }
        Err(StoreError::io(what, path)(Errno::EXIST))
    }

    /// Returns how many things have been set aside.
    pub(super) fn set_aside_count(&self) -> usize {
        fs::read_dir(self.damaged_dir()).map_or(0, Iterator::count)
    }
}
