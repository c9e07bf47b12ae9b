//! Objects of layers, verified: the one way from a node to what it stands for.
//!
//! The kernel judges by the attributes that it keeps of a node, and the layers are reached by names. Who owns a directory
//! of a layer can put anything else under a name in it, at any moment. So what is found under a node's name is **verified**
//! before it is read, changed or copied: it must be the inode that the node was made for (device, number, generation; see
//! [`crate::union::nodes::generation`]), which a descriptor then holds. An [`Object`] is such a descriptor, and only this module makes
//! one. What isn't that inode is `ESTALE`, and whoever serves the union is told of the name ([`Union::on_stale`]), so that
//! the kernel looks it up again.
//!
//! The descriptor that does the work is the one that is verified: O_PATH, or for data the open file itself. All are opened
//! without following links and without waiting. (What a lower holds that isn't a directory of the host is reached by numbers,
//! which stay with their objects.)
//!
//! # What is done by name
//!
//! unlinkat(2) and renameat2(2) take names alone. What is found under one is held against what the kernel knows right before
//! (see `judged`), and another object can come to be there between that look and the call. The kernel's overlayfs locks the
//! directory meanwhile, as a program can't. What is in the window for whom:
//!
//! - Who owns the directory can remove and move what is in it in any case, on the disk. Directories alone he can't move
//!   out of it if they aren't his: what was moved is looked at afterwards, and goes back if it is another.
//! - In a directory where everybody can make names and nobody removes another's (sticky), he can take his own away, and
//!   somebody else must then make the same name in the layer, within the microsecond. Then that goes.
//!
//! What is looked at by name decides only what the owner of the directory could have there anyway. Where a mark of his may
//! lead elsewhere ([`Belief::is_guarded`](crate::union::lookup::belief::Belief::is_guarded)), the object is held by a descriptor, and judged
//! and read by that.

#![allow(clippy::disallowed_methods, reason = "here objects are verified")]

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::{At, Kind, Stat, Writable, unnoticed};
use crate::sys::verity;
use crate::union::Union;
use crate::union::change::copy_up::brought::{Brought, MadeCopy, Told};
use crate::union::change::lend::open_owned;
use crate::union::change::part::Part;
use crate::union::lookup::found::DataAt;
use crate::union::lookup::realdir::RealDir;
use crate::union::nodes::generation::{Generation, Sighting};
use crate::union::nodes::node::{InodeId, Name, Node, NodePlace, NodeSource};
use crate::union::options::Verity;
use crate::union::quota::taken::Growth;
use crate::union::stack::access::{LayerAt, LayerData, LayerObject};

/// What is told which entry (number of the directory's node, name) is not what the kernel knows it as.
pub type OnStale = Box<dyn Fn(u64, &[u8]) + Send + Sync>;

/// What a node stands for, held by a descriptor.
#[derive(Debug)]
pub struct Object {
    held: LayerObject,
    stat: Option<Stat>,
    upper: bool,
    /// One of a lower: by what it was found, the directory and the name there.
    entry: Option<(LayerObject, Name)>,
}

impl Object {
    /// Returns the object.
    pub fn at(&self) -> LayerAt<'_> {
        self.held.at()
    }

    /// Returns the object of the host.
    ///
    /// # Errors
    /// `ESTALE` for one that is none.
    pub fn host(&self) -> Result<At<'_>> {
        self.at().host().ok_or(FsError::Stale)
    }

    /// Returns its stat, of when it was verified.
    pub fn stat(&self) -> Result<Stat> {
        self.stat.map_or_else(|| Ok(self.at().stat()?), Ok)
    }

    /// Returns whether it is in the upper.
    pub fn in_upper(&self) -> bool {
        self.upper
    }

    /// Returns the object, to be changed.
    ///
    /// # Errors
    /// `ESTALE` for one of a lower.
    pub fn writable(&self) -> Result<Writable<'_>> {
        match &self.held {
            LayerObject::Host(fd) if self.upper => Ok(Writable::held(fd.as_fd())),
            _ => Err(FsError::Stale),
        }
    }

    /// Returns what holds it, to be kept.
    pub fn into_held(self) -> LayerObject {
        self.held
    }

    /// Returns the same, of an object that is still needed.
    pub fn held(&self) -> LayerObject {
        self.held.clone()
    }
}

/// The entry of a directory that a node's name is.
struct Entry<'a> {
    dir: Dir<'a>,
    /// The directory, or for one of an index the root of the upper, whose filesystem it is on.
    real: Arc<RealDir>,
    name: Name,
    upper: bool,
}

enum Dir<'a> {
    Layer(LayerObject),
    Index(BorrowedFd<'a>),
}

impl Entry<'_> {
    fn at(&self) -> LayerAt<'_> {
        match &self.dir {
            Dir::Layer(dir) => dir.entry(&self.name),
            Dir::Index(fd) => LayerAt::Host(At::Name(*fd, &self.name)),
        }
    }
}

impl Union {
    /// Has `told` be told of entries that are not what the kernel knows them as. Once; later calls change nothing.
    pub fn on_stale(&self, told: OnStale) {
        // Only the one that serves the union calls this.
        drop(self.stale.0.set(told));
    }

    /// Calls `f` with the node's object, which keeps its place meanwhile.
    ///
    /// # Errors
    /// `ESTALE` where something else has taken its place in the layer, and those of `f`.
    pub(in crate::union) fn with_object<R>(
        &self,
        node: &Node,
        f: impl FnOnce(&Object) -> Result<R>,
    ) -> Result<R> {
        if let Some(dir) = &node.dir {
            // Verified when it was opened.
            let top = dir.top().ok_or(FsError::Stale)?;
            let held = self.fds.get(&top)?;
            return f(&Object { held, stat: None, upper: self.is_upper(top.layer), entry: None });
        }
        let place = node.place.read();
        f(&self.object_at(node, &place)?)
    }

    /// Does the same for who asks for more of it than its attributes of stat(2): a lower's file is open for reading then, where
    /// that may be.
    pub(in crate::union) fn with_open_object<R>(
        &self,
        node: &Node,
        f: impl FnOnce(&Object) -> Result<R>,
    ) -> Result<R> {
        if node.kind != Kind::File {
            return self.with_object(node, f);
        }
        let place = node.place.read();
        let hold = |entry: &Entry<'_>| match entry.at().host().filter(|_| !entry.upper) {
            // By a descriptor that only holds it, its extended attributes are reached over procfs alone.
            Some(at) => at.open_read().map_or_else(|_| entry.at().hold(), |file| Ok(file.into())),
            None => entry.at().hold(),
        };
        f(&self.object_held_by(node, &place, hold)?)
    }

    /// Calls `f` with the node's object in the upper, copied up first if need be. The data of a file may stay below.
    pub(in crate::union) fn with_upper<R>(
        &self,
        node: &Arc<Node>,
        f: impl FnOnce(&Object, Writable<'_>) -> Result<R>,
    ) -> Result<R> {
        let brought = self.bring_up(node, Part::Metadata, Told::ByNothing)?;
        self.with_brought(node, brought, f)
    }

    /// Does the same with an object that was brought into the upper for this.
    pub(in crate::union) fn with_brought<R>(
        &self,
        node: &Arc<Node>,
        brought: Brought,
        f: impl FnOnce(&Object, Writable<'_>) -> Result<R>,
    ) -> Result<R> {
        let change = |object: &Object| {
            let writable = object.writable()?;
            self.upper()?.growing(writable.at(), Growth::None, || f(object, writable))
        };
        // While names come up into a directory it is changed by nobody else: see `unseen_in`.
        let _names = node.dir.as_ref().map(|dir| dir.names.read());
        if let Some(MadeCopy { file, real }) = brought.made {
            let place = node.place.read();
            // It is verified by having been made, and as long as it is held its number is no other's.
            if (node.real(), node.generation()) == real && self.is_in_upper_place(&place) {
                return change(&Object { held: file.into(), stat: None, upper: true, entry: None });
            }
        }
        self.with_object(node, change)
    }

    /// Returns the object of a node that isn't a directory, whose place the caller has locked.
    pub(in crate::union) fn object_at(&self, node: &Node, place: &NodePlace) -> Result<Object> {
        self.object_held_by(node, place, |entry| entry.at().hold())
    }

    fn object_held_by(
        &self,
        node: &Node,
        place: &NodePlace,
        hold: impl FnOnce(&Entry<'_>) -> rustix::io::Result<LayerObject>,
    ) -> Result<Object> {
        if let NodePlace::Pinned { fd, upper } = place {
            return Ok(Object { held: fd.held(), stat: None, upper: *upper, entry: None });
        }
        if let Some(object) = self.open_object(node, place) {
            return Ok(object);
        }
        let entry = self.entry_at(node, place)?;
        let held = hold(&entry).map_err(|e| self.absent(node, place, e))?;
        let stat = entry.real.stat_in(held.at())?;
        self.verify(node, place, &entry, held.at(), &stat)?;
        let Entry { dir, name, upper, .. } = entry;
        let entry = match dir {
            Dir::Layer(dir) if !upper => Some((dir, name)),
            _ => None,
        };
        Ok(Object { held, stat: Some(stat), upper, entry })
    }

    /// Returns the object of a file whose data are open, which was verified then.
    fn open_object(&self, node: &Node, place: &NodePlace) -> Option<Object> {
        if node.kind != Kind::File || self.metacopies.contains_key(&node.ino) {
            return None;
        }
        let held = LayerObject::Host(self.files.get(node.ino, false)?.host()?.clone());
        Some(Object { held, stat: None, upper: self.is_in_upper_place(place), entry: None })
    }

    /// Returns what the layer keeps of a node's object. Where it keeps all in the stat, that is all that is asked for.
    pub(in crate::union) fn kept_of(&self, node: &Node) -> Result<Stat> {
        if node.dir.is_some() || self.owners.override_real() {
            return self.with_object(node, |object| self.kept_object(object));
        }
        let place = node.place.read();
        let counted = self.is_in_upper_place(&place) && self.upper()?.has_index();
        if counted || matches!(*place, NodePlace::Pinned { .. }) {
            return self.kept_object(&self.object_at(node, &place)?);
        }
        if let Some(object) = self.open_object(node, &place) {
            return self.kept_object(&object);
        }
        let entry = self.entry_at(node, &place)?;
        let stat = entry.at().stat().map_err(|e| self.absent(node, &place, e))?;
        self.verify(node, &place, &entry, entry.at(), &stat)?;
        self.owners.kept(entry.at(), stat, entry.upper)
    }

    /// Does as [`Union::kept_of`], of an object at hand.
    pub(in crate::union) fn kept_object(&self, object: &Object) -> Result<Stat> {
        let stat = self.kept_without_links(object)?;
        if object.upper { self.counted(object.at(), stat) } else { Ok(stat) }
    }

    /// Returns the same, with the link count as it is on disk.
    pub(in crate::union) fn kept_without_links(&self, object: &Object) -> Result<Stat> {
        let stat = object.stat()?;
        // The owner of a link may be noted on the directory that holds it.
        let at = match &object.entry {
            Some((dir, name)) if stat.kind() == Kind::Symlink => dir.entry(name),
            _ => object.at(),
        };
        self.owners.kept(at, stat, object.upper)
    }

    /// Opens the data of a regular file, whose place the caller has locked. `write`: for writing as well, and then only
    /// one of the upper. Tells whether it may be written to.
    pub(in crate::union) fn open_data(
        &self,
        node: &Node,
        place: &NodePlace,
        write: bool,
    ) -> Result<(LayerData, bool)> {
        let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
        if matches!(place, NodePlace::Named { .. }) {
            let entry = self.entry_at(node, place)?;
            if write && !entry.upper {
                return Err(FsError::Stale);
            }
            if let Some(at) = entry.at().host() {
                let opened = match entry.upper {
                    true if self.no_atime => unnoticed(|noatime| at.open_to_verify(flags | noatime)),
                    true => at.open_to_verify(flags),
                    false => at.open_read(),
                };
                if let Ok(fd) = opened {
                    let at = At::Fd(fd.as_fd());
                    self.verify(node, place, &entry, at.into(), &at.stat()?)?;
                    return Ok((fd.into(), write));
                }
                // Whatever it is that can't be opened so, it may not be the file.
            }
        }
        let object = self.object_at(node, place)?;
        if write {
            return Ok((open_owned(object.writable()?, write, self.no_atime)?.into(), true));
        }
        match object.at().open() {
            Err(Errno::ACCESS) if object.upper => {
                Ok((open_owned(object.writable()?, write, self.no_atime)?.into(), false))
            }
            other => Ok((other?, false)),
        }
    }

    /// Returns the copy of a lower file in a hardlink index.
    ///
    /// # Errors
    /// `ESTALE` if it has none, or something else is in its place.
    pub(in crate::union) fn indexed_object(&self, origin: InodeId) -> Result<Object> {
        let (dir, known) = self.upper()?.indexed_under(origin)?;
        let fd = match At::Name(dir, known.name()).pin() {
            Err(Errno::NOENT) => return Err(FsError::Stale),
            other => other?,
        };
        let stat = At::Fd(fd.as_fd()).stat()?;
        if (stat.dev, stat.ino) != known.id {
            return Err(FsError::Stale);
        }
        Ok(Object { held: fd.into(), stat: Some(stat), upper: true, entry: None })
    }

    /// Opens the data of a file that has them elsewhere.
    pub(in crate::union) fn open_data_elsewhere(&self, data: &DataAt) -> Result<LayerData> {
        let dir = self.fds.get(&data.dir)?;
        let named = dir.entry(&data.name);
        let opened = match named.open() {
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Err(FsError::Stale),
            other => other?,
        };
        // What is open is what is looked at, where something else may come to be under the name.
        let at = opened.host().map_or(named, |fd| LayerAt::Host(At::Fd(fd.as_fd())));
        let stat = at.stat()?;
        let same = (stat.dev, stat.ino) == data.id && self.fds.generations().is(data.generation, at, &stat);
        if !same {
            return Err(FsError::Stale);
        }
        match &data.digest {
            Some((algorithm, digest)) if self.verity != Verity::Off => match Self::measured(&opened) {
                Ok(Some(found)) if found == (*algorithm, digest.clone()) => Ok(opened),
                found => Err(self.unverified(data, &format!("{found:?}"))),
            },
            None if self.verity == Verity::Require => Err(self.unverified(data, "a mark without a digest")),
            _ => Ok(opened),
        }
    }

    /// Returns the fs-verity digest that a filesystem keeps of data.
    fn measured(data: &LayerData) -> rustix::io::Result<Option<(u16, Vec<u8>)>> {
        data.host().map_or(Ok(None), |fd| verity::measure(fd.as_fd()))
    }

    /// Makes the error of data that aren't those of which a mark has the digest.
    fn unverified(&self, data: &DataAt, found: &str) -> FsError {
        drop(self.layer_form(&data.dir, &data.name, &format!("data that fail the option verity: {found}")));
        FsError::Os(Errno::IO)
    }

    /// Returns where a named node that isn't a directory lies. What is there now is not verified.
    fn entry_at(&self, node: &Node, place: &NodePlace) -> Result<Entry<'_>> {
        let NodePlace::Named { parent, entry } = place else { return Err(FsError::IsADirectory) };
        let dir = self.dir_part(parent)?;
        let name = || Name::from_slice(entry.name());
        Ok(match entry.source() {
            NodeSource::Upper => {
                let real = dir.upper_dir().ok_or(FsError::Stale)?;
                Entry { dir: Dir::Layer(self.fds.get(&real)?), real, name: name(), upper: true }
            }
            NodeSource::Lower(at) => {
                let real = dir.lowers.get(usize::from(at)).ok_or(FsError::Stale)?;
                Entry { dir: Dir::Layer(self.fds.get(real)?), real: real.clone(), name: name(), upper: false }
            }
            NodeSource::Index => {
                let origin = self.hardlinks.origin(node.ino).ok_or(FsError::Stale)?;
                let (dir, known) = self.upper()?.indexed_under(origin)?;
                let real = self.layers[0].root.clone();
                Entry { dir: Dir::Index(dir), real, name: Name::from_slice(known.name()), upper: true }
            }
        })
    }

    /// Checks that the object, whose stat is given, is the one that the node was made for.
    fn verify(
        &self,
        node: &Node,
        place: &NodePlace,
        entry: &Entry<'_>,
        at: LayerAt<'_>,
        stat: &Stat,
    ) -> Result<()> {
        let found = match entry.upper {
            true => self.id_in(&entry.real, stat),
            false => self.lower_leaf_id(&entry.real, &entry.name, &mut stat.clone()),
        };
        let known = node.generation();
        let seen = self.fds.generations().look_again(Sighting::default(), known, at, stat);
        if found != node.real() || !seen.fits(known) {
            return Err(self.stale_at(node, place));
        }
        if let Some(settled) = seen.settled(known, stat) {
            node.settle_generation(known, settled);
        }
        Ok(())
    }

    /// Makes the error of an object that can't be reached under its name.
    fn absent(&self, node: &Node, place: &NodePlace, errno: Errno) -> FsError {
        if errno == Errno::NOENT { self.stale_at(node, place) } else { errno.into() }
    }

    fn stale_at(&self, node: &Node, place: &NodePlace) -> FsError {
        match place {
            NodePlace::Named { parent, entry } => {
                log::debug!("{:#x}: something else has its name in the layer", node.ino);
                self.stale_name(parent, entry.name())
            }
            NodePlace::Root | NodePlace::Pinned { .. } => FsError::Stale,
        }
    }

    /// Returns the error of a name that isn't what the kernel knows it as.
    pub(in crate::union) fn stale_name(&self, parent: &Node, name: &[u8]) -> FsError {
        let shown = String::from_utf8_lossy(name);
        log::debug!("{} in {:#x} is not what it is known as", shown.escape_debug(), parent.ino);
        if let Some(told) = self.stale.0.get() {
            told(parent.ino, name);
        }
        FsError::Stale
    }

    /// Looks at an object that was just found or made, to remember its generation.
    pub(in crate::union) fn see<'a>(&self, at: impl Into<LayerAt<'a>>, stat: &Stat) -> Sighting {
        self.fds.generations().see(at, stat)
    }

    /// Returns the generation of an object that was just made.
    pub(in crate::union) fn generation_of<'a>(&self, at: impl Into<LayerAt<'a>>, stat: &Stat) -> Generation {
        self.see(at, stat).generation()
    }
}

/// Where it is kept who is to be told.
#[derive(Default)]
pub(in crate::union) struct Stale(std::sync::OnceLock<OnStale>);

impl Stale {
    /// Tells whether somebody serves the union, who judges by what he was told.
    pub(in crate::union) fn is_watched(&self) -> bool {
        self.0.get().is_some()
    }
}

impl std::fmt::Debug for Stale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stale")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::error::FsError;
    use crate::union::bed::{Bed, look_up};
    use crate::union::change::failpoint::hook;
    use crate::union::change::rename::RenameMode;

    /// Exchanges, as the owner of the upper, a directory that shows nothing for one that isn't his to delete, when it
    /// has been found to show nothing.
    #[test]
    fn a_directory_that_was_exchanged_is_not_removed() {
        for replaced in [false, true] {
            let bed = Bed::new(1);
            bed.file("0/d/f").dir("0/new").file("upper/important/file");
            let union = bed.open();
            let d = look_up(&union, "d").unwrap();
            union.unlink(&d, b"f").unwrap();
            let upper = bed.at("upper");
            let swap = hook::once(move || {
                fs::rename(upper.join("d"), upper.join("away")).unwrap();
                fs::rename(upper.join("important"), upper.join("d")).unwrap();
            });
            let done = hook::during(swap, || {
                if replaced {
                    let root = union.root();
                    union.rename((root, b"new"), (root, b"d"), RenameMode::Replace)
                } else {
                    union.rmdir(union.root(), b"d")
                }
            });
            let kept = ["d", "important"].iter().any(|at| bed.at("upper").join(at).join("file").exists());
            assert!(kept, "{replaced}: {done:?}");
            if !replaced {
                assert_eq!(done, Err(FsError::Stale));
            }
        }
    }

    #[test]
    fn a_file_in_anothers_place_is_stale() {
        let bed = Bed::new(1);
        let union = bed.file("0/f").file("0/other").open();
        let told = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
        let tell = told.clone();
        union.on_stale(Box::new(move |parent, name| tell.lock().push((parent, name.to_vec()))));
        let f = look_up(&union, "f").unwrap();
        fs::rename(bed.at("0/other"), bed.at("0/f")).unwrap();
        assert_eq!(union.getattr(&f).map(drop), Err(FsError::Stale));
        assert_eq!(union.read(&f, 0, &mut [0; 9]), Err(FsError::Stale));
        assert_eq!(union.listxattr(&f), Err(FsError::Stale));
        assert_eq!(union.open(&f, rustix::fs::OFlags::WRONLY, false), Err(FsError::Stale));
        assert!(
            told.lock().iter().all(|entry| *entry == (union.root().ino, b"f".to_vec()))
                && !told.lock().is_empty()
        );
        fs::remove_file(bed.at("0/f")).unwrap();
        assert_eq!(union.getattr(&f).map(drop), Err(FsError::Stale));
    }
}
