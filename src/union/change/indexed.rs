//! What the upper does in the hardlink indexes; how they are read when a stack is opened is told in
//! [`crate::union::hardlinks::link_index`].

use std::os::fd::BorrowedFd;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::handle;
use crate::sys::object::{At, Time, Writable};
use crate::union::change::failpoint::{self, Failpoint};
use crate::union::change::staged::Staged;
use crate::union::change::upper::Upper;
use crate::union::hardlinks::counts::ORIGINAL;
use crate::union::hardlinks::link_index::{Copied, IndexName, Indexed};
use crate::union::nodes::region::InodeId;
use crate::union::stack::access::LayerAt;

impl Upper {
    /// Tells whether the lower file has a copy in a hardlink index.
    pub fn is_indexed(&self, origin: InodeId) -> bool {
        let indexed = self.links().indexed.read();
        !indexed.is_empty() && indexed.contains_key(&origin)
    }

    /// Returns what is known of a lower file's copy, if it has one in a hardlink index.
    pub(in crate::union) fn indexed(&self, origin: InodeId) -> Option<Indexed> {
        self.links().indexed.read().get(&origin).cloned()
    }

    /// Takes a copy out of the index whose original is gone, and whose origin is another file now. Whatever comes of it, nothing
    /// leads to it by an origin then. The caller has the lock of the origin by which that was found: nobody copies the other file up
    /// meanwhile, which is to have the name.
    pub(in crate::union) fn disown(&self, known: &Indexed) {
        let is_known = {
            let mut indexed = self.links().indexed.write();
            let before = indexed.len();
            // The kernel's entries can have two origins.
            indexed.retain(|_, now| now.id != known.id);
            indexed.len() < before
        };
        if !is_known {
            return; // somebody else was here
        }
        self.has_data(known.id.1);
        let remove = |dir: BorrowedFd<'_>| {
            let found = At::Name(dir, known.name()).stat()?;
            // With its last link, what was written would go. And something else may have the name.
            match found.nlink > 1 && (found.dev, found.ino) == known.id {
                true => Ok(self.remove_name(dir, known.name(), AtFlags::empty())?),
                false => Ok(()),
            }
        };
        if let Err(error) = self.dir_of_index(&known.name).and_then(remove) {
            log::warn!("the hardlink index keeps a copy whose original is gone: {error}");
        }
        failpoint::reached(Failpoint::Changed);
    }

    /// Tells whether the copy in the index with that inode number is a metacopy.
    pub fn is_indexed_metacopy(&self, ino: u64) -> bool {
        self.links().metacopies.read().contains(&ino)
    }

    /// Notes that the copy with that inode number, which is about to be in the index, is a metacopy.
    pub(in crate::union) fn lacks_data(&self, ino: u64) {
        self.links().metacopies.write().insert(ino);
    }

    /// Notes that the file of the upper with that inode number has its data now.
    pub fn has_data(&self, ino: u64) {
        self.links().metacopies.write().remove(&ino);
    }

    /// Tells whether any lower file is in a hardlink index.
    pub fn has_index(&self) -> bool {
        !self.links().indexed.read().is_empty()
    }

    /// Returns where the copy of a lower file is: the directory of its index, and what is in it.
    ///
    /// # Errors
    /// `ESTALE` if it has none.
    pub(in crate::union) fn indexed_under(&self, origin: InodeId) -> Result<(BorrowedFd<'_>, Indexed)> {
        let known = self.links().indexed.read().get(&origin).cloned().ok_or(FsError::Stale)?;
        Ok((self.dir_of_index(&known.name)?, known))
    }

    fn dir_of_index(&self, name: &IndexName) -> Result<BorrowedFd<'_>> {
        match (name, &self.links().kernel) {
            (IndexName::Own(_), _) => Ok(self.index_dir()),
            (IndexName::Kernel(_), Some(kernel)) => kernel.dir()?.ok_or(FsError::Stale),
            (IndexName::Kernel(_), None) => Err(FsError::Stale),
        }
    }

    /// Takes the last link to a file out of its index: no name of it is left in the merged view.
    pub fn drop_index(&self, origin: InodeId) -> Result<()> {
        let (dir, known) = self.indexed_under(origin)?;
        self.remove_name(dir, known.name(), AtFlags::empty())?;
        failpoint::reached(Failpoint::Changed);
        self.links().indexed.write().remove(&origin);
        Ok(())
    }

    /// Gives a copy that is about to be published with [`Staged::link_index`] what its index needs, and tells its name
    /// there. The kernel knows the file that was copied up, `real`, and no `origin` of that. `born`: when that was made.
    pub(in crate::union) fn mark_for_index(
        &self,
        copy: Writable<'_>,
        (origin, real): (InodeId, InodeId),
        (lower, born): (LayerAt<'_>, Option<Time>),
    ) -> Result<IndexMark> {
        // An error means that nothing more is known of it, where lowers change.
        let handle = lower.host().and_then(|at| handle::of(at).ok().flatten());
        let of = Copied { real, handle, born };
        if let Some(kernel) = &self.links().kernel
            && let Some(name) = kernel.mark(copy, real, lower)?
        {
            return Ok(IndexMark { name: IndexName::Kernel(name), of });
        }
        // The kernel's name has the handle; this program's doesn't tell which of those it is that have had the number.
        if let Some(text) = of.text(self.regions()) {
            self.set_mark(copy, ORIGINAL, text.as_bytes())?;
        }
        let name = origin.to_text('-', self.regions()).unwrap_or_default().into_bytes();
        Ok(IndexMark { name: IndexName::Own(name), of })
    }
}

/// What a copy is to be in a hardlink index.
pub(in crate::union) struct IndexMark {
    name: IndexName,
    of: Copied,
}

impl Staged<'_> {
    /// Gives the object its name in a hardlink index.
    pub(in crate::union) fn link_index(&self, origin: InodeId, mark: IndexMark) -> Result<()> {
        let IndexMark { name, of } = mark;
        let upper = self.upper();
        let copy = self.place().at().stat()?;
        match (&name, &upper.links().kernel) {
            (IndexName::Kernel(name), Some(kernel)) => kernel.link(self.place(), name)?,
            _ => match self.place().link_to(upper.index_dir(), name.bytes()) {
                // Left by a crash between this link and the publishing: never visible, so it may go.
                Err(Errno::EXIST) if !upper.is_indexed(origin) => {
                    upper.remove_name(upper.index_dir(), name.bytes(), AtFlags::empty())?;
                    self.place().link_to(upper.index_dir(), name.bytes())?;
                }
                other => other?,
            },
        }
        failpoint::reached(Failpoint::Changed);
        let known = Indexed { name, id: (copy.dev, copy.ino), of: Some(of) };
        upper.links().indexed.write().insert(origin, known);
        Ok(())
    }
}
