//! Which inode an object really is, and in which part of a layer's tree it lies.
//!
//! A layer is a tree of the host, and other filesystems may be mounted inside it, or parts of it a second time
//! (`mount --bind`); a btrfs has subvolumes. An inode number means something in one filesystem only, and what is seen at
//! two places is two things to the merged view, whatever the device says: a change at one place is copied up to that
//! place. So a layer's tree is cut into **regions**, and identities are of a region and an inode number:
//!
//! - the root of a layer begins one; roots on the same filesystem share it, so that names of one file in several layers
//!   stay one file;
//! - a directory begins one where it is the root of a mount, is on another device than its parent, or is the root of
//!   another layer.
//!
//! A region has an id that is the same in every run: that of its filesystem as statfs(2) tells it and, where it doesn't
//! begin with a layer, the path at which it begins. One whose id is only its device's number (XFS) is told by its UUID; one
//! without either (FUSE, NFS) by its type and by the place of its layer, counted from the lowest.
//!
//! Two kinds of objects have no identity that lasts: those with an inode number that leaves no room for the region
//! beside it, and single files on another device than their directory (mounted files; overlays of several
//! filesystems). They get one of their own while the mount lives, and where such a file of a lower has several names, each is a
//! file by itself: nothing could lead from one name to the copy of another in the next run.

pub(in crate::union) mod state;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use parking_lot::RwLock;
use rustix::fs::{fstatfs, fstatvfs};

use crate::error::{FsError, Result};
use crate::sys::handle;
use crate::sys::mountinfo::Table;
use crate::sys::object::{Kind, Stat};
use crate::union::Union;
use crate::union::lookup::realdir::{DirFds, RealDir, Trust, Veil};
use crate::union::nodes::generation::Generation;
use crate::union::stack::access::LayerAt;
use crate::union::{LAYER_WAY_OUT, OpenLayer};

/// Which inode an object really is: the index of its region among those of the stack, and its number there, in one
/// word. It is also the node's number by the rule (the kernel's "xino"): the inode number, with the region's index in
/// the bits above.
///
/// What has no identity of this form is *interned*: it gets an identity, and so a number, of its own that isn't the
/// same after a remount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InodeId(u64);

/// Bits of an identity that hold the inode number; the index of the region goes above them.
const INO_BITS: u32 = 48;
/// How many regions there can be: few enough that no number has the bit [`SPARE`].
const REGIONS: u16 = 1 << 13;
/// A bit that no node's number has, neither by the rule nor one that was given out: who has a second name for a node can
/// make it of the number and this.
pub const SPARE: u64 = 1 << 61;
/// The device of a region whose layers are gone.
const NOWHERE: u64 = u64::MAX;
/// Identities from here up are interned.
const INTERNED: u64 = 1 << 63 | 1 << 62;

impl InodeId {
    /// Makes the identity of an inode, where it fits: a region below 2^13, an inode number below 2^48.
    pub fn new(region: u16, ino: u64) -> Option<InodeId> {
        (ino >> INO_BITS == 0 && region < REGIONS).then_some(InodeId(u64::from(region) << INO_BITS | ino))
    }

    /// Returns the reverse of [`InodeId::to_bits`].
    pub(in crate::union) fn from_bits(bits: u64) -> InodeId {
        InodeId(bits)
    }

    /// Returns it as one word, which is also the number by the rule.
    pub(in crate::union) fn to_bits(self) -> u64 {
        self.0
    }

    /// Returns whether it is the same after a remount.
    pub fn is_lasting(self) -> bool {
        self.0 < INTERNED
    }

    /// Returns the index of its region; `None` for an interned one.
    pub(in crate::union) fn region(self) -> Option<u16> {
        self.is_lasting().then(|| u16::try_from(self.0 >> INO_BITS).ok()).flatten()
    }

    /// Returns it as text that means the same in another stack: `REGION INO`, hexadecimal. `None` for an interned one.
    pub fn to_text(self, separator: char, regions: &Regions) -> Option<String> {
        let ino = self.0 & ((1 << INO_BITS) - 1);
        Some(format!("{:x}{separator}{ino:x}", regions.id(self.region()?)?))
    }

    /// Returns the reverse of [`InodeId::to_text`]. `None` for another text.
    pub fn from_text(text: &[u8], separator: char, regions: &Regions) -> Option<InodeId> {
        let (id, ino) = std::str::from_utf8(text).ok()?.split_once(separator)?;
        let region = regions.index_of(u64::from_str_radix(id, 16).ok()?)?;
        InodeId::new(region, u64::from_str_radix(ino, 16).ok()?)
    }
}

/// What has an interned identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Unruly {
    /// An inode of a device that isn't that of its region, or with too large a number.
    Inode { region: u16, dev: u64, ino: u64 },
    /// The entry of a directory.
    Entry { dir: InodeId, name: Box<[u8]> },
}

/// A region that begins with a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Root {
    /// Its device number, while it is mounted.
    dev: u64,
    /// Its id.
    id: u64,
    /// Whether no region before it has a filesystem of the same id. Two such (copies of one image) can't be told apart
    /// by what the filesystem says of itself.
    unique: bool,
}

/// The regions of a stack, as far as they are known.
#[derive(Debug, Default)]
pub struct Regions {
    /// Those that begin with a layer, in the order of the layers: their position is their index.
    roots: Vec<Root>,
    /// Those that begin with a layer and whose index was told before the layer came, by a mark of an origin in its filesystem: the
    /// index is the one that [`Regions::nested`] knows.
    told_before: HashMap<u16, Root>,
    /// Device and inode number of the layers' roots.
    root_ids: HashSet<(u64, u64)>,
    /// Ids of the others, by their index: the hash of the id, or the next that was free.
    nested: RwLock<HashMap<u16, u64>>,
    /// The places of the layers, by device and inode number of their roots: how many lay below each when it came to the stack, itself
    /// counted. Layers that come later have the next ones, wherever they come.
    places: HashMap<(u64, u64), u64>,
    /// The last place that was given. None is given twice: a filesystem that is known by its type and its place would be taken for
    /// one that is gone.
    last_place: u64,
    interned: DashMap<Unruly, InodeId>,
    next_interned: AtomicU64,
    /// The last names of all mount points of the host: what a listing tells of such an entry may be of what is covered.
    mount_names: RwLock<HashSet<Box<[u8]>>>,
}

impl Regions {
    /// Returns the regions that begin with the layers, each of which is told its own. `before`: those of the union whose mount is taken
    /// over, whose layers may be others. What stays has the index and the id that it had, for numbers are made of them.
    ///
    /// # Errors
    /// Those of fstatfs(2).
    pub fn of_layers(layers: &[OpenLayer], before: Option<&Regions>) -> Result<Regions> {
        let mut regions = before.map_or_else(Regions::default, |before| before.handed_on(layers));
        let mut ids: HashSet<u64> = regions
            .begun()
            .filter(|(_, root)| root.unique && root.dev != NOWHERE)
            .map(|(_, root)| root.id)
            .collect();
        regions.place(layers);
        for at in 0..layers.len() {
            regions.add_layer(layers, at, &mut ids).map_err(|e| e.of(&layers[at], LAYER_WAY_OUT))?;
        }
        *regions.mount_names.write() = mount_names();
        Ok(regions)
    }

    /// Returns what the union that takes over knows from the beginning.
    fn handed_on(&self, layers: &[OpenLayer]) -> Regions {
        let is_there = |dev: u64| layers.iter().any(|layer| layer.root.id.0 == dev);
        // The device's number may be another filesystem's by the time that it comes again.
        let stays = |root: &Root| if is_there(root.dev) { *root } else { Root { dev: NOWHERE, ..*root } };
        Regions {
            roots: self.roots.iter().map(stays).collect(),
            told_before: self
                .told_before
                .iter()
                .filter(|(_, root)| is_there(root.dev))
                .map(|(index, root)| (*index, *root))
                .collect(),
            places: self.places.clone(),
            last_place: self.last_place,
            nested: RwLock::new(self.nested.read().clone()),
            ..Regions::default()
        }
    }

    /// Gives the layers their places.
    fn place(&mut self, layers: &[OpenLayer]) {
        let is_there = |id: &(u64, u64)| layers.iter().any(|layer| layer.root.id == *id);
        self.places.retain(|id, _| is_there(id));
        for layer in layers.iter().rev() {
            if let Entry::Vacant(free) = self.places.entry(layer.root.id) {
                self.last_place += 1;
                free.insert(self.last_place);
            }
        }
    }

    /// Returns the regions that begin with a layer, by their indexes.
    fn begun(&self) -> impl Iterator<Item = (usize, &Root)> {
        let told_before = self.told_before.iter().map(|(index, root)| (usize::from(*index), root));
        self.roots.iter().enumerate().chain(told_before)
    }

    /// Returns the place of the layer that has that root.
    fn place_of(&self, root: &RealDir) -> u64 {
        self.places.get(&root.id).copied().unwrap_or_default()
    }

    /// Adds the region of a layer, if it is new. `ids`: those of the filesystems so far.
    fn add_layer(&mut self, layers: &[OpenLayer], at: usize, ids: &mut HashSet<u64>) -> Result<()> {
        let root = &layers[at].root;
        self.root_ids.insert(root.id);
        let dev = root.id.0;
        let known = self.begun().find(|(_, known)| known.dev == dev).map(|(index, _)| index);
        let index = match known {
            Some(known) => known,
            None => {
                let from_lowest = self.place_of(root);
                let own = match root.tree() {
                    Some(tree) => FilesystemId::Own(hashed(tree.id(), 0, b"tree")),
                    None => filesystem_id(DirFds::new(0).host(root)?.as_fd(), dev)?,
                };
                let (own, unique) = match own {
                    FilesystemId::Own(id) => (id, ids.insert(id)),
                    FilesystemId::Type(kind) => (hashed(kind, from_lowest, b""), true),
                };
                let id = if unique { own } else { hashed(own, from_lowest, b"") };
                self.begin(Root { dev, id, unique })
            }
        };
        // Of more filesystems than there are indexes, the rest have none, as those within layers.
        root.set_region(u16::try_from(index).unwrap_or(REGIONS));
        if root.tree().is_none() {
            root.set_filesystem(filesystem_type(DirFds::new(0).host(root)?.as_fd())?);
        }
        Ok(())
    }

    /// Adds a region that begins with a layer. Returns its index.
    fn begin(&mut self, root: Root) -> usize {
        // One that was there before, and comes again.
        if let Some(gone) = self
            .roots
            .iter()
            .position(|known| known.dev == NOWHERE && known.id == root.id && known.unique == root.unique)
        {
            self.roots[gone] = root;
            return gone;
        }
        let nested = self.nested.get_mut();
        // One whose files an origin's mark has told of: they have numbers with that index.
        if let Some((index, _)) = nested.iter().find(|(_, id)| **id == root.id) {
            let index = *index;
            self.told_before.insert(index, root);
            return usize::from(index);
        }
        // A region that doesn't begin with a layer may have the next index.
        while let Some(id) = u16::try_from(self.roots.len()).ok().and_then(|index| nested.remove(&index)) {
            self.roots.push(Root { dev: NOWHERE, id, unique: false });
        }
        self.roots.push(root);
        self.roots.len() - 1
    }

    /// Makes, for tests, the regions of those filesystems' ids.
    #[cfg(test)]
    pub(in crate::union) fn of_ids(ids: &[u64]) -> Regions {
        let root = |(dev, id): (usize, &u64)| Root { dev: dev as u64, id: *id, unique: true };
        Regions { roots: ids.iter().enumerate().map(root).collect(), ..Regions::default() }
    }

    /// Notes that something is mounted at an entry of that name.
    pub(in crate::union) fn note_mount(&self, name: &[u8]) {
        if !self.mount_names.read().contains(name) {
            self.mount_names.write().insert(name.into());
        }
    }

    /// Returns for each region that begins with a layer, such a layer's root; `None` where the filesystem's id isn't
    /// enough to know it again.
    pub(in crate::union) fn sources(
        &self,
        layers: &[OpenLayer],
    ) -> Result<Vec<Option<Arc<std::os::fd::OwnedFd>>>> {
        let fds = DirFds::new(0);
        let source = |root: &Root| {
            let layer = layers.iter().find(|layer| root.unique && layer.root.id.0 == root.dev);
            let of_host = layer.filter(|layer| layer.root.tree().is_none());
            of_host.map(|layer| fds.host(&layer.root)).transpose()
        };
        let length = self.begun().map(|(index, _)| index + 1).max().unwrap_or_default();
        let mut sources = vec![None; length];
        for (index, root) in self.begun() {
            sources[index] = source(root)?;
        }
        Ok(sources)
    }

    fn id(&self, region: u16) -> Option<u64> {
        match self.roots.get(usize::from(region)) {
            Some(root) => Some(root.id),
            None => self.nested.read().get(&region).copied(),
        }
    }

    /// Returns the index of the region with that id, which may be one that nobody has come to yet. `None`: there are
    /// too many.
    fn index_of(&self, id: u64) -> Option<u16> {
        if let Some(root) = self.roots.iter().position(|root| root.id == id) {
            return u16::try_from(root).ok();
        }
        let first = u16::try_from(self.roots.len()).ok()?;
        let room = REGIONS.checked_sub(first).filter(|room| *room > 0)?;
        let mut nested = self.nested.write();
        let start = (id ^ id >> 32) % u64::from(room);
        let at = |step: u16| first + ((start + u64::from(step)) % u64::from(room)) as u16;
        if nested.get(&at(0)) == Some(&id) {
            return Some(at(0));
        }
        // It collided, or was found when fewer began with layers.
        if let Some((known, _)) = nested.iter().find(|(_, known)| **known == id) {
            return Some(*known);
        }
        let index = (0..room).map(at).find(|index| !nested.contains_key(index))?;
        nested.insert(index, id);
        Some(index)
    }

    /// Returns the identity of an inode of a region; `fits`: it is on the region's own device.
    pub fn identity(&self, region: u16, fits: bool, dev: u64, ino: u64) -> InodeId {
        fits.then(|| InodeId::new(region, ino))
            .flatten()
            .unwrap_or_else(|| self.intern(Unruly::Inode { region, dev, ino }))
    }

    /// Tells whether anything has an identity that is given out as it is met.
    pub(in crate::union) fn interns(&self) -> bool {
        !self.interned.is_empty()
    }

    /// Returns the identity of a name by itself.
    fn of_entry(&self, dir: InodeId, name: &[u8]) -> InodeId {
        self.intern(Unruly::Entry { dir, name: name.into() })
    }

    fn intern(&self, key: Unruly) -> InodeId {
        let next = || InodeId(INTERNED | self.next_interned.fetch_add(1, Ordering::Relaxed));
        *self.interned.entry(key).or_insert_with(next)
    }

    /// Tells whether the inode number that a listing tells of an entry belongs to what a lookup finds.
    pub(in crate::union) fn trusts_listing(&self, dir: &RealDir, name: &[u8], kind: Option<Kind>) -> bool {
        match dir.listing_trust() {
            Trust::All => {}
            Trust::NoDirectories if kind == Some(Kind::Directory) => return false,
            Trust::NoDirectories => {}
            Trust::None => return false,
        }
        let names = self.mount_names.read();
        names.is_empty() || !names.contains(name)
    }
}

enum FilesystemId {
    Own(u64),
    /// It has none; its type.
    Type(u64),
}

fn filesystem_type(fd: BorrowedFd<'_>) -> Result<u64> {
    #[allow(clippy::unnecessary_cast)] // its width differs by architecture
    Ok(fstatfs(fd)?.f_type as u64 & 0xffff_ffff)
}

/// Returns the id of a filesystem; `dev`: the filesystem's device number.
fn filesystem_id(fd: BorrowedFd<'_>, dev: u64) -> Result<FilesystemId> {
    let id = fstatvfs(fd)?.f_fsid;
    if id != 0 && id != dev {
        return Ok(FilesystemId::Own(id));
    }
    // XFS and others tell their device's number, which the same disk may not have the next time.
    Ok(match handle::filesystem_uuid(fd).filter(|uuid| id != 0 && *uuid != [0; 16]) {
        Some(uuid) => FilesystemId::Own(hashed(0, 0, &uuid)),
        None => FilesystemId::Type(filesystem_type(fd)?),
    })
}

/// Makes an id of an id (or a type, and the place of a layer) and a path. FNV-1a over fixed bytes, for it is written to
/// disk.
fn hashed(id: u64, place: u64, path: &[u8]) -> u64 {
    let bytes = id.to_le_bytes().into_iter().chain(place.to_le_bytes()).chain(path.iter().copied());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Returns the last names of the mount points of this mount namespace; none where they can't be read.
fn mount_names() -> HashSet<Box<[u8]>> {
    match Table::read() {
        Ok(table) => {
            let last = |point: &[u8]| point.rsplit(|&byte| byte == b'/').next().map(Into::into);
            table.entries().filter_map(|mount| last(&mount.point)).collect()
        }
        Err(e) => {
            log::info!(
                "/proc/self/mountinfo: {e}: numbers of mount points inside layers may be listed wrongly"
            );
            HashSet::new()
        }
    }
}

impl Union {
    /// Returns the real directory `name` of `dir`, which was found at `at`, in its region.
    pub(in crate::union) fn child_dir(
        &self,
        dir: &Arc<RealDir>,
        name: &[u8],
        at: LayerAt<'_>,
        (stat, generation): (&Stat, Generation),
    ) -> Result<Arc<RealDir>> {
        let child = RealDir::child(dir, name, stat, generation);
        let id = (stat.dev, stat.ino);
        if !stat.mount_root && stat.dev == dir.id.0 && !self.regions.root_ids.contains(&id) {
            return Ok(child);
        }
        // Nothing is mounted in a tree.
        let Some(at) = at.host() else { return Ok(child) };
        let fd = at.pin()?;
        child.set_filesystem(filesystem_type(fd.as_fd())?);
        let path = child.path();
        let id = match filesystem_id(fd.as_fd(), stat.dev)? {
            FilesystemId::Own(id) => hashed(id, 0, &path),
            FilesystemId::Type(kind) => {
                let layer = self.layers.get(usize::from(dir.layer)).ok_or(FsError::Stale)?;
                hashed(kind, self.regions.place_of(&layer.root), &path)
            }
        };
        match self.regions.index_of(id) {
            Some(region) => child.set_region(region),
            // Without an index, its inodes are identified by device alone; see [`Union::id_in`].
            None => child.set_region(REGIONS),
        }
        if stat.mount_root {
            self.regions.note_mount(name);
        }
        Ok(child)
    }

    /// Returns which inode a directory is.
    pub(in crate::union) fn dir_id(&self, dir: &RealDir) -> InodeId {
        if dir.veil() == Veil::Mount
            && let Some((parent, name)) = dir.found_at()
        {
            // What stands for it may stand for others too.
            return self.regions.of_entry(self.dir_id(&parent), &name);
        }
        self.regions.identity(dir.region(), true, dir.id.0, dir.id.1)
    }

    /// Returns which inode an object is that isn't a directory and was found in `dir`.
    pub(in crate::union) fn id_in(&self, dir: &RealDir, stat: &Stat) -> InodeId {
        self.regions.identity(dir.region(), stat.dev == dir.id.0 && !stat.mount_root, stat.dev, stat.ino)
    }

    /// Returns which inode an object of the upper is, in its workdir or in a directory.
    pub(in crate::union) fn upper_id(&self, stat: &Stat) -> InodeId {
        self.id_in(&self.layers[0].root, stat)
    }

    /// Tells which object a lower's entry that isn't a directory is. If it has several names and nothing leads from one
    /// to the copy of another in the next run (no identity that lasts, or an upper that can't hold where a copy is
    /// from), it is a file by itself under each, and `stat` is changed to say so.
    pub(in crate::union) fn lower_leaf_id(&self, dir: &RealDir, name: &[u8], stat: &mut Stat) -> InodeId {
        let id = self.id_in(dir, stat);
        let one_file = id.is_lasting() && self.remembers_origins();
        if one_file || stat.nlink < 2 && (id.is_lasting() || !stat.mount_root) {
            return id;
        }
        stat.nlink = 1;
        self.regions.of_entry(self.dir_id(dir), name)
    }

    /// Tells whether a copy can tell of which file it is. Without an upper there are none.
    fn remembers_origins(&self) -> bool {
        self.upper.as_ref().is_none_or(|upper| upper.caps().xattr)
    }

    /// Returns the identity of an entry that a listing tells of, where that is enough to know it.
    pub(in crate::union) fn listed_id(&self, dir: &RealDir, kind: Kind, ino: u64) -> Option<InodeId> {
        let id = self.regions.identity(dir.region(), true, dir.id.0, ino);
        let alone = id.is_lasting() && self.remembers_origins();
        (alone || kind == Kind::Directory || self.is_upper(dir.layer)).then_some(id)
    }
}

/// Checks, with `xino=on`, that each layer's numbers are shown such that they last.
pub(in crate::union) fn check_xino(layers: &[OpenLayer]) -> Result<()> {
    for layer in layers {
        if InodeId::new(layer.root.region(), layer.root.id.1).is_none() {
            return Err(FsError::LayerForm {
                layer: layer.path.display().to_string(),
                path: "/".into(),
                what: "xino=on: its inode numbers can't be kept apart from others; use xino=auto".into(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_survive_as_text_whatever_the_order_of_the_filesystems() {
        let one = Regions::of_ids(&[0xaa, 0xbb]);
        let text = InodeId::new(1, 0xdead).unwrap().to_text(':', &one).unwrap();
        assert_eq!(text, "bb:dead");
        let other = Regions::of_ids(&[0xbb, 0xaa]);
        assert_eq!(InodeId::from_text(text.as_bytes(), ':', &other), InodeId::new(0, 0xdead));
        assert_eq!(InodeId::from_text(b"3", ':', &one), None);
    }

    #[test]
    fn a_region_has_its_index_before_anybody_comes_to_it() {
        let regions = Regions::of_ids(&[0xaa]);
        let read = InodeId::from_text(b"1234567:5", ':', &regions).unwrap();
        assert_eq!(regions.index_of(0x123_4567), read.region());
        assert_eq!(read.to_text(':', &regions).unwrap(), "1234567:5");
        let again = Regions::of_ids(&[0xaa]);
        again.index_of(0x99);
        assert_eq!(again.index_of(0x123_4567), read.region(), "whatever was found before");
    }

    #[test]
    fn regions_whose_ids_collide_are_apart_and_there_may_be_too_many() {
        let regions = Regions::of_ids(&[0xaa]);
        let room = u64::from(REGIONS - 1);
        assert_ne!(regions.index_of(7), regions.index_of(7 + room));
        for id in 0..room {
            regions.index_of(id << 32 | id);
        }
        assert_eq!(regions.index_of(u64::MAX), None);
    }

    #[test]
    fn what_is_known_keeps_its_index_when_filesystems_come_and_go() {
        let before = Regions::of_ids(&[0xaa, 0xbb]);
        // Its index is the one that the next filesystem would have.
        let nested = u64::from(REGIONS - 2) * 5;
        assert_eq!(before.index_of(nested), Some(2));
        let other = before.index_of(0x77).unwrap();
        let root = |dev, id| Root { dev, id, unique: true };
        let mut after = before.handed_on(&[]);
        after.roots[1].dev = 1;
        assert_eq!(after.begin(root(9, 0xcc)), 3);
        assert_eq!([after.index_of(0xaa), after.index_of(0xbb), after.index_of(0xcc)], [0, 1, 3].map(Some));
        assert_eq!([after.index_of(nested), after.index_of(0x77)], [Some(2), Some(other)]);
        assert_eq!(after.begin(root(5, 0xaa)), 0, "it comes again, as another device");
    }

    #[test]
    fn a_layer_that_comes_has_the_index_that_a_mark_of_its_filesystem_was_read_with() {
        let before = Regions::of_ids(&[0xaa]);
        let marked = InodeId::from_text(b"cc:5", ':', &before).unwrap();
        let mut after = before.handed_on(&[]);
        let index = after.begin(Root { dev: 9, id: 0xcc, unique: true });
        assert_eq!(InodeId::new(index as u16, 5), Some(marked));
        assert_eq!(InodeId::from_text(b"cc:5", ':', &after), Some(marked));
        assert_eq!(marked.to_text(':', &after).unwrap(), "cc:5");
        // It is known by its device, as long as that is there.
        assert_eq!(after.begun().find(|(_, root)| root.dev == 9).map(|(at, _)| at), Some(index));
        let mut gone = after.handed_on(&[]);
        assert!(gone.begun().all(|(_, root)| root.dev != 9));
        assert_eq!(gone.begin(Root { dev: 7, id: 0xcc, unique: true }), index, "it comes again");
    }

    #[test]
    fn a_place_that_became_free_is_given_to_nobody_else() {
        let top = tempfile::tempdir().unwrap();
        let layer = |name: &str| {
            let path = top.path().join(name);
            std::fs::create_dir(&path).unwrap();
            let fd = std::os::fd::OwnedFd::from(std::fs::File::open(&path).unwrap());
            let stat = crate::sys::object::At::Fd(fd.as_fd()).stat().unwrap();
            let belief = crate::union::lookup::belief::Belief::of_process();
            OpenLayer { path, place: Vec::new(), root: RealDir::root(0, fd, &stat, belief) }
        };
        let (mut layers, coming) = (vec![layer("a"), layer("b")], layer("c"));
        let mut regions = Regions::default();
        regions.place(&layers);
        assert_eq!([&layers[0], &layers[1]].map(|layer| regions.place_of(&layer.root)), [2, 1]);
        let gone = layers.remove(0);
        let mut regions = regions.handed_on(&layers);
        regions.place(&layers);
        layers.insert(0, coming);
        let mut regions = regions.handed_on(&layers);
        regions.place(&layers);
        assert_eq!([&layers[0], &layers[1]].map(|layer| regions.place_of(&layer.root)), [3, 1]);
        assert_eq!(regions.place_of(&gone.root), 0);
    }

    #[test]
    fn the_spare_bit_is_in_no_identity() {
        let last = InodeId::new(REGIONS - 1, (1 << INO_BITS) - 1).unwrap();
        assert!(InodeId::new(REGIONS, 0).is_none());
        let interned = Regions::of_ids(&[0xaa]).identity(0, true, 1, u64::MAX);
        for id in [last, interned] {
            assert_eq!(id.to_bits() & SPARE, 0, "{id:?}");
        }
    }

    #[test]
    fn what_does_not_fit_has_an_identity_while_the_mount_lives() {
        let regions = Regions::of_ids(&[0xaa]);
        let large = regions.identity(0, true, 1, 1 << 48);
        assert!(!large.is_lasting());
        assert_eq!(regions.identity(0, true, 1, 1 << 48), large);
        assert_ne!(regions.identity(0, false, 2, 5), regions.identity(0, true, 1, 5));
        assert_ne!(regions.of_entry(large, b"a"), regions.of_entry(large, b"b"));
        assert_eq!(large.to_text(':', &regions), None);
    }

    #[test]
    fn mount_points_are_read_by_their_last_names() {
        assert!(!mount_names().is_empty());
    }
}
