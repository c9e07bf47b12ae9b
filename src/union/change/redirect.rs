//! Redirects: the mark by which a renamed directory tells where the lowers have its lower part (kernel: overlayfs.rst,
//! "Renaming directories").

use std::sync::Arc;

use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::nodes::node::{DirPart, Node, NodePlace};
use crate::union::options::RedirectDir;

/// The longest redirect that is written. ext4 keeps all attributes of an inode in one block of, as a rule, 4 KiB.
pub(in crate::union) const LONGEST_REDIRECT: usize = 3072;

impl Union {
    /// Refuses to move a directory that lowers contribute to, unless redirects are made: programs copy and remove then.
    pub(in crate::union) fn check_redirect(&self, node: &Node) -> Result<()> {
        let merged = node.dir.as_ref().is_some_and(|part| !part.lowers.is_empty());
        if merged && self.redirects != RedirectDir::On { Err(FsError::Os(Errno::XDEV)) } else { Ok(()) }
    }

    /// Marks a directory that lowers contribute to, so that they are found where it goes: under another name of the same
    /// directory (`beside`), or anywhere.
    ///
    /// # Errors
    /// `EXDEV` where the mark would be too long: as with the kernel, programs then copy and remove.
    pub(in crate::union) fn mark_redirect(
        &self,
        node: &Arc<Node>,
        part: &DirPart,
        beside: Option<&[u8]>,
    ) -> Result<()> {
        let real = part.upper_dir().ok_or(FsError::Stale)?;
        let fd = self.upper_fd(&real)?;
        let known = self.marks_in(&real, fd.itself().at())?.redirect;
        let redirect = match (known, beside) {
            (Some(path), _) if path.starts_with(b"/") => return Ok(()),
            (known, Some(name)) => known.unwrap_or_else(|| name.to_vec()),
            (_, None) => self.lower_path(node)?,
        };
        let too_far = || FsError::Os(Errno::XDEV);
        if redirect.len() > LONGEST_REDIRECT {
            return Err(too_far());
        }
        self.upper()?.set_mark(fd.itself(), "redirect", &redirect).map_err(|e| match e.errno() {
            Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::OPNOTSUPP => too_far(),
            _ => e,
        })?;
        self.changed_by_itself(node);
        Ok(())
    }

    /// Returns the path under which the lowers alone show a directory: its own names, but for redirects on the way.
    pub(in crate::union) fn lower_path(&self, node: &Arc<Node>) -> Result<Vec<u8>> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut at = node.clone();
        loop {
            let (parent, name) = match &*at.place.read() {
                NodePlace::Named { parent, entry } => (parent.clone(), entry.name().to_vec()),
                NodePlace::Root | NodePlace::Pinned { .. } => break,
            };
            let redirect = match self.dir_part(&at)?.upper_dir() {
                Some(real) => self.marks_in(&real, self.upper_fd(&real)?.itself().at())?.redirect,
                None => None,
            };
            match redirect {
                Some(path) if path.starts_with(b"/") => {
                    names.push(path[1..].to_vec());
                    break;
                }
                Some(other) => names.push(other),
                None => names.push(name.to_vec()),
            }
            at = parent;
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        Ok(path)
    }
}
