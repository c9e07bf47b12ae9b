//! Names whose entries are to be removed or renamed, and what whoever serves the union knows of them.
//!
//! The kernel judges a removal or a rename by the object that it knows under the name; the request has only the name. So
//! what is found there must be something that the kernel was told of, under this name ([`Union::check_judged`]): else it is
//! `ESTALE`, upon which the kernel looks the name up and judges anew. The files of a filesystem may have several names; all
//! that are known of one count.
//!
//! A directory can be moved to another one only by who may write to it, as its `..` changes. Names are not numbers, and who
//! owns the directory around it can have two directories looked up under one name in turn, so that it isn't known which of them
//! the kernel judged. So it is remembered of the names of directories whether they have meant two ([`ToldDirs`]); what has is
//! moved by no rename: `EXDEV`, upon which programs copy and remove.
//!
//! See [`verified`](crate::union::nodes::verified) for what remains between the look and the system call.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::Kind;
use crate::union::Union;
use crate::union::change::upper::UpperFd;
use crate::union::nodes::node::{InodeId, Node, NodePlace};

/// So many names may have the same place in the table before the one that wasn't asked for longest goes.
const WAYS: usize = 4;
const BUCKETS: usize = 1024;

/// Which directories names were told to be. It is bounded: a name that it doesn't have is looked up again.
#[derive(Debug, Default)]
pub(in crate::union) struct ToldDirs {
    key: RandomState,
    buckets: OnceLock<Box<[Mutex<[Slot; WAYS]>]>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Slot {
    /// Of a directory's number and a name; 0 in a free slot.
    name: u64,
    /// Which object it is; `None` where two were told.
    object: Option<InodeId>,
}

/// What is known of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ToldAs {
    /// This alone.
    It,
    /// Not this alone.
    Others,
    /// Nothing.
    Unknown,
}

impl ToldDirs {
    fn with<R>(&self, parent: &Node, name: &[u8], f: impl FnOnce(&mut [Slot; WAYS], u64) -> R) -> R {
        let hash = self.key.hash_one((parent.ino, name)).max(1);
        let buckets = self.buckets.get_or_init(|| (0..BUCKETS).map(|_| Mutex::default()).collect());
        f(&mut buckets[hash as usize % BUCKETS].lock(), hash)
    }

    /// Notes that the name is told to be that directory.
    pub(in crate::union) fn tell(&self, parent: &Node, name: &[u8], object: InodeId) {
        self.with(parent, name, |slots, name| {
            let known = slots.iter().position(|slot| slot.name == name);
            let at = known.unwrap_or(WAYS - 1);
            let object = match known {
                Some(at) if slots[at].object != Some(object) => None,
                _ => Some(object),
            };
            slots[..=at].rotate_right(1);
            slots[0] = Slot { name, object };
        });
    }

    /// Forgets what had the name: it was removed from it, or moved away, by who serves the union.
    pub(in crate::union) fn forget(&self, parent: &Node, name: &[u8]) {
        self.with(parent, name, |slots, name| {
            slots.iter_mut().filter(|slot| slot.name == name).for_each(|slot| *slot = Slot::default());
        });
    }

    fn ask(&self, parent: &Node, name: &[u8], object: InodeId) -> ToldAs {
        self.with(parent, name, |slots, name| match slots.iter().find(|slot| slot.name == name) {
            Some(slot) if slot.object == Some(object) => ToldAs::It,
            Some(_) => ToldAs::Others,
            None => ToldAs::Unknown,
        })
    }
}

impl Union {
    /// Checks that what was found under a name, of `nlink` names, and is to be removed or renamed is `node`, as the
    /// kernel knows it.
    ///
    /// # Errors
    /// `ESTALE` if not.
    pub(in crate::union) fn check_judged(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        node: Option<&Arc<Node>>,
        nlink: u64,
    ) -> Result<()> {
        if !self.stale.is_watched() {
            return Ok(());
        }
        let judged = node.is_some_and(|node| {
            // A directory goes only where it is empty, and keeps its name in the union wherever it is moved in its layer.
            node.lookups() > 0 && (nlink > 1 || node.dir.is_some() || self.has_name(node, parent, name))
        });
        if judged { Ok(()) } else { Err(self.stale_name(parent, name)) }
    }

    /// Checks that the node, which is to be moved to another directory, is known to be the one that the kernel judged.
    ///
    /// # Errors
    /// `ESTALE` if the kernel must be asked again, `EXDEV` if it can't be known.
    pub(in crate::union) fn check_moves(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
    ) -> Result<()> {
        if node.dir.is_none() || !self.stale.is_watched() {
            return Ok(());
        }
        match self.told_dirs.ask(parent, name, node.real()) {
            ToldAs::It => Ok(()),
            ToldAs::Others => Err(FsError::Os(Errno::XDEV)),
            ToldAs::Unknown => Err(self.stale_name(parent, name)),
        }
    }

    /// Tells whether that is a name under which the node is known. One that has none is known by its number alone.
    fn has_name(&self, node: &Node, parent: &Arc<Node>, name: &[u8]) -> bool {
        let placed = match &*node.place.read() {
            NodePlace::Named { parent: p, entry } => Arc::ptr_eq(p, parent) && entry.name() == name,
            NodePlace::Root | NodePlace::Pinned { .. } => true,
        };
        placed || self.is_remembered(node, parent, name)
    }

    /// Checks that nothing, or a whiteout, is under a name that the index has as hidden, before something is put there.
    ///
    /// # Errors
    /// `ESTALE` where somebody has put something else there in the layer; the index is read anew then.
    pub(in crate::union) fn check_whiteout(&self, parent: &Node, dir: &UpperFd, name: &[u8]) -> Result<()> {
        let stat = dir.entry(name).stat();
        // The forms that aren't devices are empty files.
        let hides = stat.is_ok_and(|s| s.is_whiteout_device() || s.kind() == Kind::File && s.size == 0);
        if hides { Ok(()) } else { Err(self.index_is_wrong(parent, name)) }
    }

    /// Returns the error of a name under which there is what the index of its directory doesn't know.
    pub(in crate::union) fn index_is_wrong(&self, parent: &Node, name: &[u8]) -> FsError {
        if let Some(dir) = &parent.dir {
            dir.index.lock().upper = None;
        }
        self.stale_name(parent, name)
    }

    /// Checks two entries that have changed places. If one of them was a directory that isn't the one that was meant,
    /// they change back.
    pub(in crate::union) fn check_exchanged(
        &self,
        (a, b): (&Node, &Node),
        old: (&UpperFd, &[u8]),
        new: (&UpperFd, &[u8]),
    ) -> Result<()> {
        let is = |node: &Node, (dir, name): (&UpperFd, &[u8])| {
            let Some(real) = node.dir.as_ref().and_then(|dir| dir.upper_dir()) else { return true };
            seen_after(dir, name).is_none_or(|found| found == real.id)
        };
        if old.0.is(new.0) || is(a, new) && is(b, old) {
            return Ok(());
        }
        self.upper()?.rename(old, new, false, RenameFlags::EXCHANGE)?;
        Err(FsError::Stale)
    }

    /// Checks a directory that was moved between two others, by its names. If it was another that had the name at that
    /// moment, it goes back. `below`: lowers have something under the new name, which must be hidden as before.
    pub(in crate::union) fn check_moved(
        &self,
        node: &Node,
        (from, from_name): (&UpperFd, &[u8]),
        (to, to_name): (&UpperFd, &[u8]),
        below: bool,
    ) -> Result<()> {
        let real = node.dir.as_ref().and_then(|dir| dir.upper_dir()).filter(|_| !from.is(to));
        let Some(real) = real else { return Ok(()) };
        if seen_after(to, to_name).is_none_or(|found| found == real.id) {
            return Ok(());
        }
        let upper = self.upper()?;
        let back = ((to, to_name), (from, from_name));
        let whiteout = from.entry(from_name).stat().is_ok_and(|stat| stat.is_whiteout_device());
        let done = if whiteout {
            upper.rename_directory_over_whiteout(back.0, back.1, below)
        } else {
            upper.rename(back.0, back.1, below, RenameFlags::NOREPLACE)
        };
        if let Err(e) = done {
            log::warn!("a directory that somebody put in another's place during its rename was moved: {e}");
        }
        Err(FsError::Stale)
    }
}

/// Returns what has a name after a rename. `None`: it can't be seen, and the rename is done all the same; whoever uses
/// what it moved verifies it.
fn seen_after(dir: &UpperFd, name: &[u8]) -> Option<(u64, u64)> {
    match dir.entry(name).stat() {
        Ok(found) => Some((found.dev, found.ino)),
        Err(e) => {
            log::warn!("{}: {e} after a rename", String::from_utf8_lossy(name));
            None
        }
    }
}

#[cfg(test)]
mod tests {

    use crate::union::bed::{Bed, look_up};
    use crate::union::change::create::Create;
    use crate::union::change::rename::RenameMode;
    use crate::union::change::staged::New;

    /// Copied up, forgotten by the kernel and looked up again, a directory is the one that it was.
    #[test]
    fn a_directory_that_was_copied_up_and_forgotten_moves_on() {
        let bed = Bed::new(1);
        bed.file("0/d/f").dir("0/to");
        let union = bed.open();
        union.on_stale(Box::new(|_, _| {}));
        let root = union.root();
        let d = look_up(&union, "d").unwrap();
        let create = Create { new: New::File, mode: 0o644, umask: 0, caller: union.own };
        let (new, _) = union.create(&d, b"new", create).unwrap();
        for node in [new, d] {
            let ino = node.ino;
            drop(node);
            union.forget(ino, 1);
        }
        assert_eq!(union.known_nodes(), 1, "the root");
        let (to, _) = (look_up(&union, "to").unwrap(), look_up(&union, "d").unwrap());
        assert_eq!(union.rename((root, b"d"), (&to, b"d"), RenameMode::Replace), Ok(()));
    }
    /// A name that a directory gave to a file is free for another directory.
    #[test]
    fn a_name_that_was_exchanged_for_a_files_means_one_directory_again() {
        let bed = Bed::new(1);
        bed.file("0/d/f").file("0/file").dir("0/to");
        let union = bed.open();
        union.on_stale(Box::new(|_, _| {}));
        let root = union.root();
        for name in ["d", "file"] {
            look_up(&union, name).unwrap();
        }
        union.rename((root, b"file"), (root, b"d"), RenameMode::Exchange).unwrap();
        union.unlink(root, b"d").unwrap();
        let create = Create { new: New::Directory, mode: 0o755, umask: 0, caller: union.own };
        union.create(root, b"d", create).unwrap();
        let to = look_up(&union, "to").unwrap();
        assert_eq!(union.rename((root, b"d"), (&to, b"d"), RenameMode::Replace), Ok(()));
    }
}
