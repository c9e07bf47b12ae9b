//! A stack that nobody has mounted, and its paths.

use std::path::{Path, PathBuf};

use super::inspector::Inspector;
use crate::error::{FsError, Result};
use crate::sys::object::Kind;
use crate::union::stack::layer::{LowerSource, Role, Stack, StackError, StackOptions};
use crate::union::{Limits, Union};

/// A stack, opened to be looked at: every layer is only read, the upper too, and nothing is locked or made.
#[derive(Debug)]
pub struct View {
    union: Union,
    upper: bool,
}

impl View {
    /// Opens these layers, topmost first. `upper`: a writable layer on top of them.
    ///
    /// # Errors
    /// As for a mount: a directory that is missing, no directory or given twice.
    pub fn open(lowers: &[PathBuf], upper: Option<&Path>) -> std::result::Result<View, StackError> {
        View::of_sources(LowerSource::directories(lowers.iter().cloned()), upper)
    }

    /// Does as [`View::open`], of lowers that may be archives.
    ///
    /// # Errors
    /// Those of [`View::open`].
    pub fn of_sources(
        lowers: Vec<LowerSource>,
        upper: Option<&Path>,
    ) -> std::result::Result<View, StackError> {
        let upper_first = upper.map(|path| LowerSource::from(path.to_owned()));
        let options = StackOptions {
            lowers: upper_first.into_iter().chain(lowers).collect(),
            top_is_upper: upper.is_some(),
            ..StackOptions::default()
        };
        let stack = Stack::open(&options)?;
        let first = options.lowers.first().map(|lower| lower.path().to_owned()).unwrap_or_default();
        let union = Union::new(stack, Limits::of_process()).map_err(|error| StackError::Io {
            role: Role::Lower(1),
            path: first,
            what: "read the layers",
            errno: error.errno(),
        })?;
        Ok(View { union, upper: upper.is_some() })
    }

    /// Returns what answers.
    pub fn inspector(&self) -> Inspector<'_> {
        Inspector { union: &self.union, upper: self.upper }
    }

    /// Returns the path with symbolic links on the way replaced by where they lead in the merged view, as the kernel
    /// does it on a mount. The last component is not followed, and what follows something that doesn't exist stays as
    /// it is.
    ///
    /// # Errors
    /// `ELOOP`; those of reading the layers.
    pub fn follow_links(&self, path: &[u8]) -> Result<Vec<u8>> {
        /// MAXSYMLINKS of the kernel.
        const MOST: usize = 40;
        let split = |path: &[u8]| -> Vec<Vec<u8>> {
            let names = path.split(|&b| b == b'/').filter(|name| !name.is_empty() && *name != b".");
            names.map(<[u8]>::to_vec).rev().collect()
        };
        let mut rest = split(path);
        let mut at = vec![(self.union.root().clone(), Vec::new())];
        let mut links = 0;
        while let Some(name) = rest.pop() {
            let Some((node, _)) = at.last() else { break };
            if name == b".." {
                at.truncate((at.len() - 1).max(1));
                continue;
            }
            let last = rest.is_empty();
            let child = match self.union.lookup(node, &name) {
                Ok(Some((child, _))) if !last => child,
                Ok(_) | Err(FsError::NotADirectory) => {
                    rest.push(name);
                    break;
                }
                Err(e) => return Err(e),
            };
            if child.kind != Kind::Symlink {
                at.push((child, name));
                continue;
            }
            links += 1;
            if links > MOST {
                return Err(FsError::Os(rustix::io::Errno::LOOP));
            }
            let target = self.union.readlink(&child)?;
            if target.starts_with(b"/") {
                at.truncate(1);
            }
            rest.extend(split(&target));
        }
        let names = at.into_iter().skip(1).map(|(_, name)| name).chain(rest.into_iter().rev());
        Ok(names.collect::<Vec<_>>().join(&b'/'))
    }
}
