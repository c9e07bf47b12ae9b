//! Real directories: the directories of the layers, and the descriptors by which they are reached.
//!
//! Every access to a layer of the host is a directory descriptor and one name. (The directories of a [`Tree`] are reached by
//! their numbers, at no cost.) A union may know far more directories than a
//! process may have descriptors, so the descriptors live in a bounded cache ([`DirFds`]) and a cold one is opened
//! again, from the nearest ancestor that is still open or from the layer's root, by the names on the way.
//!
//! A directory of a lower never moves. One of the upper moves when the merged tree is renamed; then only its own
//! location changes, so a rename costs the same however much lies below.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use crate::error::{FsError, Result};
use crate::sys::dir::open_beneath;
use crate::sys::object::{At, Stat};
use crate::sys::own::is_own;
use crate::union::lookup::belief::Belief;
use crate::union::lookup::marker::MarkerForms;
use crate::union::nodes::generation::{Generation, Generations, Key};
use crate::union::second_chance::{SecondChance, Since};
use crate::union::stack::access::{LayerAt, LayerObject};
use crate::union::stack::directory::Layer;
use crate::union::stack::lower::{Lower, TreeLayer};
use crate::union::stack::tree::Tree;

/// A layer's place in the stack: 0 is the topmost.
pub type LayerIndex = u16;

/// The longest path given to one system call; longer ones are walked in pieces (PATH_MAX is 4096).
const PATH_PIECE: usize = 3800;

/// One directory of one layer.
#[derive(Debug)]
pub struct RealDir {
    /// The layer that holds it.
    pub layer: LayerIndex,
    /// Whose marks are believed in it.
    pub belief: Belief,
    /// Device and inode number: what the directory is, wherever it is moved.
    pub id: (u64, u64),
    /// Which of the directories that have had the number. Not asked of a layer's root, which is never opened again.
    generation: Generation,
    /// Its `st_size` when it was found: a hint of how many entries it has.
    pub size_hint: u64,
    /// Whether empty regular files in it may be whiteouts by their xattr (its `overlay.opaque` is `x`).
    pub xattr_whiteouts: AtomicBool,
    /// Whether it may hold entries that were copied up from elsewhere.
    pub impure: AtomicBool,
    /// Whether it shows what it holds.
    veil: Veil,
    /// Whether nothing can be mounted in its layer, which is a mount that nobody else sees.
    sealed: bool,
    /// The tree that it is a directory of, if it is none of the host.
    tree: Option<Arc<Tree>>,
    /// Whether its filesystem tells all that there is without asking anybody.
    local: AtomicBool,
    location: RwLock<Location>,
    fd: Mutex<Option<Arc<OwnedFd>>>,
    used: AtomicBool,
    forms: AtomicU8,
    region: AtomicU16,
    trust: AtomicU8,
}

/// Whether a real directory shows what it holds; see `veil`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Veil {
    /// It does.
    None,
    /// It is a directory of this mount's own (an upper, a workdir) that lies in a lower: it shows nothing.
    Part,
    /// In its place is a mount that must not be entered. The descriptor is one of another directory, that stands for it.
    Mount,
}

/// Where a real directory is.
#[derive(Debug, Clone)]
enum Location {
    /// The root of its layer, whose descriptor never leaves the cache.
    Root,
    /// An entry of another real directory.
    Child { parent: Arc<RealDir>, name: Box<[u8]> },
    /// Removed, but still in use by somebody.
    Removed,
}

impl RealDir {
    /// Returns the root of a layer.
    pub fn root(layer: LayerIndex, fd: OwnedFd, stat: &Stat, belief: Belief) -> Arc<RealDir> {
        Arc::new(RealDir::new(layer, stat, belief, Location::Root, Some(Arc::new(fd))))
    }

    /// Returns the root of a layer that nobody else sees, so that nothing can be mounted in it.
    pub fn sealed_root(layer: LayerIndex, fd: OwnedFd, stat: &Stat, belief: Belief) -> Arc<RealDir> {
        let root = RealDir::new(layer, stat, belief, Location::Root, Some(Arc::new(fd)));
        Arc::new(RealDir { sealed: true, ..root })
    }

    /// Returns the root of a lower, with what stat tells of it.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn of_lower(layer: LayerIndex, lower: Lower, belief: Belief) -> Result<(Arc<RealDir>, Stat)> {
        match lower {
            Lower::Directory(Layer { root, sealed, .. }) => {
                let stat = At::Fd(root.as_fd()).stat()?;
                Ok(match sealed {
                    true => (RealDir::sealed_root(layer, root, &stat, belief), stat),
                    false => (RealDir::root(layer, root, &stat, belief), stat),
                })
            }
            Lower::Tree(TreeLayer { tree, .. }) => {
                let stat = LayerObject::Tree(tree.root()).at().stat()?;
                let root = RealDir::new(layer, &stat, belief, Location::Root, None);
                Ok((Arc::new(RealDir { tree: Some(tree), sealed: true, ..root }), stat))
            }
        }
    }

    /// Returns the directory `name` of `parent`.
    pub fn child(parent: &Arc<RealDir>, name: &[u8], stat: &Stat, generation: Generation) -> Arc<RealDir> {
        Arc::new(RealDir { generation, ..RealDir::beneath(parent, name, stat) })
    }

    /// Returns the same of one that shows nothing. `fd`: the directory that stands for it, where it is a mount.
    pub(super) fn veiled(
        parent: &Arc<RealDir>,
        name: &[u8],
        stat: &Stat,
        fd: Option<Arc<OwnedFd>>,
    ) -> Arc<RealDir> {
        let veil = if fd.is_some() { Veil::Mount } else { Veil::Part };
        let child = RealDir { veil, ..RealDir::beneath(parent, name, stat) };
        child.set_forms(MarkerForms::default());
        *child.fd.lock() = fd;
        Arc::new(child)
    }

    /// Returns a directory that was removed, and is reached by this descriptor alone.
    ///
    /// # Errors
    /// Those of stat(2).
    pub(in crate::union) fn of_removed(
        layer: LayerIndex,
        fd: Arc<OwnedFd>,
        belief: Belief,
        region: u16,
    ) -> std::io::Result<Arc<RealDir>> {
        let stat = At::Fd(fd.as_fd()).stat()?;
        let real = RealDir::new(layer, &stat, belief, Location::Removed, Some(fd));
        real.set_region(region);
        Ok(Arc::new(real))
    }

    fn beneath(parent: &Arc<RealDir>, name: &[u8], stat: &Stat) -> RealDir {
        let location = Location::Child { parent: parent.clone(), name: name.into() };
        let child = RealDir::new(parent.layer, stat, parent.belief, location, None);
        child.set_region(parent.region());
        child.trust.store(parent.trust.load(Ordering::Relaxed), Ordering::Relaxed);
        child.local.store(parent.local.load(Ordering::Relaxed), Ordering::Relaxed);
        RealDir { sealed: parent.sealed, tree: parent.tree.clone(), ..child }
    }

    fn new(
        layer: LayerIndex,
        stat: &Stat,
        belief: Belief,
        location: Location,
        fd: Option<Arc<OwnedFd>>,
    ) -> RealDir {
        RealDir {
            layer,
            belief,
            id: (stat.dev, stat.ino),
            generation: Generation::UNKNOWN,
            size_hint: stat.size,
            xattr_whiteouts: AtomicBool::new(false),
            impure: AtomicBool::new(false),
            veil: Veil::None,
            sealed: false,
            tree: None,
            local: AtomicBool::new(false),
            location: RwLock::new(location),
            fd: Mutex::new(fd),
            used: AtomicBool::new(true),
            forms: AtomicU8::new(0),
            region: AtomicU16::new(0),
            trust: AtomicU8::new(Trust::All as u8),
        }
    }

    /// Returns the index of the region that it lies in: that of its parent, unless it was told another.
    pub fn region(&self) -> u16 {
        self.region.load(Ordering::Relaxed)
    }

    /// Tells that it begins a region.
    pub fn set_region(&self, region: u16) {
        self.region.store(region, Ordering::Relaxed);
    }

    /// Returns how far its listings are to be trusted.
    pub(in crate::union) fn listing_trust(&self) -> Trust {
        Trust::unpack(self.trust.load(Ordering::Relaxed))
    }

    /// Tells whether what is in it was born when its filesystem says so. overlayfs tells it of its own layers' files: a file that is
    /// changed there seems to be born anew.
    pub(in crate::union) fn keeps_births(&self) -> bool {
        self.listing_trust() != Trust::None
    }

    /// Tells on what kind of filesystem it is (statfs(2), `f_type`).
    pub(in crate::union) fn set_filesystem(&self, kind: u64) {
        self.trust.store(Trust::of_type(kind) as u8, Ordering::Relaxed);
        self.local.store(is_local(kind), Ordering::Relaxed);
    }

    /// Returns the tree that it is a directory of, if it is none of the host.
    pub(in crate::union) fn tree(&self) -> Option<&Arc<Tree>> {
        self.tree.as_ref()
    }

    /// Tells whether it is reached through a mount that nobody else sees.
    pub(in crate::union) fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Returns whether it shows what it holds.
    pub fn veil(&self) -> Veil {
        self.veil
    }

    /// Returns the directory and the name by which it was found in its layer; `None` for a root.
    pub(in crate::union) fn found_at(&self) -> Option<(Arc<RealDir>, Box<[u8]>)> {
        match &*self.location.read() {
            Location::Child { parent, name } => Some((parent.clone(), name.clone())),
            Location::Root | Location::Removed => None,
        }
    }

    /// Tells whether another that was found is the same directory, at the same place of the same layer.
    pub(super) fn is_same_place(&self, other: &RealDir) -> bool {
        let same_name = || match (&*self.location.read(), &*other.location.read()) {
            (Location::Child { parent, name }, Location::Child { parent: above, name: known }) => {
                Arc::ptr_eq(parent, above) && name == known
            }
            _ => false,
        };
        (self.layer, self.id) == (other.layer, other.id) && (same_name() || self.path() == other.path())
    }

    /// Forgets which forms of markers it holds.
    pub(super) fn forget_forms(&self) {
        if self.veil == Veil::None {
            self.forms.store(0, Ordering::Relaxed);
        }
    }

    /// Returns the stat of what is found in it, which never waits for this process itself.
    ///
    /// # Errors
    /// `EBUSY` for what is in a mount of this process's own, and those of statx(2).
    pub fn stat_in(&self, at: LayerAt<'_>) -> rustix::io::Result<Stat> {
        let known = self.first_look(at)?;
        if self.is_mounted(&known) && is_own(known.dev) {
            return Err(rustix::io::Errno::BUSY);
        }
        self.look_again(at, known)
    }

    /// Returns what can be told of something that is found in it without asking whoever answers for it.
    pub(in crate::union) fn first_look(&self, at: LayerAt<'_>) -> rustix::io::Result<Stat> {
        if self.sealed { at.stat() } else { at.stat_as_known() }
    }

    /// Tells whether what was seen is on another filesystem, or another mount.
    pub(in crate::union) fn is_mounted(&self, known: &Stat) -> bool {
        known.mount_root || known.dev != self.id.0
    }

    /// Returns the attributes of what may be asked for them.
    pub(in crate::union) fn look_again(&self, at: LayerAt<'_>, known: Stat) -> rustix::io::Result<Stat> {
        let complete = self.sealed || !self.is_mounted(&known) && self.local.load(Ordering::Relaxed);
        if complete { Ok(known) } else { at.stat() }
    }

    /// Returns which forms of markers the directory is known to hold, or `None` before it was scanned.
    pub fn forms(&self) -> Option<MarkerForms> {
        MarkerForms::unpack(self.forms.load(Ordering::Relaxed))
    }

    /// Remembers which forms of markers the directory holds.
    pub fn set_forms(&self, forms: MarkerForms) {
        self.forms.store(forms.pack(), Ordering::Relaxed);
    }

    /// Returns its path below the layer's root, for messages and for redirects. Empty for the root.
    pub fn path(&self) -> Vec<u8> {
        let mut names = Vec::new();
        let mut location = self.location.read().clone();
        while let Location::Child { parent, name } = location {
            names.push(name);
            location = parent.location.read().clone();
        }
        names.reverse();
        names.join(&b'/')
    }

    /// Records that the directory was renamed.
    pub fn moved(&self, parent: &Arc<RealDir>, name: &[u8]) {
        *self.location.write() = Location::Child { parent: parent.clone(), name: name.into() };
    }

    /// Records that the directory was removed. `fd` keeps it reachable for those who still use it.
    pub fn removed(&self, fd: Option<Arc<OwnedFd>>) {
        *self.location.write() = Location::Removed;
        *self.fd.lock() = fd;
    }

    fn cached(&self) -> Option<Arc<OwnedFd>> {
        let fd = self.fd.lock().clone();
        if fd.is_some() {
            self.used.store(true, Ordering::Relaxed);
        }
        fd
    }

    /// Closes the descriptor, unless it is by now one that the cache may not close.
    pub(in crate::union) fn close(&self) {
        let mut slot = self.fd.lock();
        let closed = if self.closable() { slot.take() } else { None };
        drop(slot);
        drop(closed);
    }

    /// Tells whether the descriptor is one that the cache may close.
    fn closable(&self) -> bool {
        self.veil != Veil::Mount && matches!(*self.location.read(), Location::Child { .. })
    }
}

/// Tells whether a filesystem of that type knows all attributes by itself. One that isn't listed is asked, which costs
/// a call.
fn is_local(kind: u64) -> bool {
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    const TMPFS: u64 = 0x0102_1994;
    const F2FS: u64 = 0xf2f5_2010;
    const SQUASHFS: u64 = 0x7371_7368;
    const EROFS: u64 = 0xe0f5_e1e2;
    matches!(kind, EXT | XFS | BTRFS | TMPFS | F2FS | SQUASHFS | EROFS)
}

/// The bounded cache of descriptors of real directories.
#[derive(Debug)]
pub struct DirFds {
    generations: Generations,
    open: SecondChance<Weak<RealDir>>,
}

impl DirFds {
    /// Makes a cache that keeps about `limit` descriptors.
    pub fn new(limit: usize) -> DirFds {
        DirFds::telling(limit, Generations::default())
    }

    /// Returns the same, where `generations` tell inodes apart.
    pub fn telling(limit: usize, generations: Generations) -> DirFds {
        DirFds { generations, open: SecondChance::new(limit) }
    }

    /// Returns what tells inodes apart.
    pub fn generations(&self) -> &Generations {
        &self.generations
    }

    /// Makes its numbers of generations those of another mount, which goes on.
    pub fn set_generations_key(&mut self, key: Key) {
        self.generations.set_key(key);
    }

    /// Returns what `dir` is reached by: the directory itself, held.
    ///
    /// # Errors
    /// Those of [`DirFds::host`].
    pub fn get(&self, dir: &Arc<RealDir>) -> Result<LayerObject> {
        match &dir.tree {
            None => self.host(dir).map(LayerObject::Host),
            Some(tree) => Ok(LayerObject::Tree(tree.object(dir.id.1))),
        }
    }

    /// Returns a descriptor of `dir`, from the cache or opened now.
    ///
    /// # Errors
    /// `ESTALE` where another directory has taken its place in the layer behind the mount's back, and for a directory that
    /// is none of the host.
    pub fn host(&self, dir: &Arc<RealDir>) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = dir.cached() {
            return Ok(fd);
        }
        let mut waited = false;
        loop {
            match self.open_cold(dir) {
                Ok(fd) => return Ok(self.keep(dir, fd)),
                // A rename of an ancestor may be between its system call and its record. Its record is written
                // under the location's lock, so once each was read-locked the next walk sees the new names.
                Err(_) if !waited => {
                    waited = true;
                    let mut location = dir.location.read().clone();
                    while let Location::Child { parent, .. } = location {
                        location = parent.location.read().clone();
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Walks from the nearest open ancestor.
    fn open_cold(&self, dir: &Arc<RealDir>) -> Result<OwnedFd> {
        let mut names: Vec<Box<[u8]>> = Vec::new();
        let mut at = dir.clone();
        let start = loop {
            let location = at.location.read().clone();
            if let Some(fd) = at.cached() {
                break fd;
            }
            match location {
                Location::Child { parent, name } => {
                    names.push(name);
                    at = parent;
                }
                Location::Root | Location::Removed => return Err(FsError::Stale),
            }
        };
        let mut walked: Option<OwnedFd> = None;
        while !names.is_empty() {
            let mut piece = Vec::new();
            while let Some(name) = names.last() {
                if !piece.is_empty() && piece.len() + name.len() >= PATH_PIECE {
                    break;
                }
                if !piece.is_empty() {
                    piece.push(b'/');
                }
                piece.extend_from_slice(name);
                names.pop();
            }
            let from = walked.as_ref().map_or(start.as_fd(), |fd| fd.as_fd());
            walked = Some(open_beneath(from, &piece)?);
        }
        let fd = walked.ok_or(FsError::Stale)?;
        let at = LayerAt::Host(At::Fd(fd.as_fd()));
        let stat = dir.stat_in(at)?;
        let same = (stat.dev, stat.ino) == dir.id && self.generations.is(dir.generation, at, &stat);
        if same { Ok(fd) } else { Err(FsError::Stale) }
    }

    /// Puts a descriptor into the cache and lets go of those that are too many.
    fn keep(&self, dir: &Arc<RealDir>, fd: OwnedFd) -> Arc<OwnedFd> {
        let fd = {
            let mut slot = dir.fd.lock();
            if let Some(raced) = &*slot {
                return raced.clone();
            }
            slot.insert(Arc::new(fd)).clone()
        };
        dir.used.store(true, Ordering::Relaxed);
        let over = self.open.add(Arc::downgrade(dir), |oldest| match oldest.upgrade() {
            Some(oldest) if oldest.used.swap(false, Ordering::Relaxed) => Since::Used,
            Some(oldest) if oldest.closable() => Since::Idle,
            _ => Since::Gone,
        });
        for dir in over.iter().filter_map(Weak::upgrade) {
            dir.close();
        }
        fd
    }
}

/// How far the inode numbers of a filesystem's listings are those that stat tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Trust {
    /// All of them.
    All,
    /// All but those of directories: btrfs lists a subvolume by its own number and not by that of its root.
    NoDirectories,
    /// None of them: an overlay of several filesystems.
    None,
}

impl Trust {
    pub(in crate::union) fn unpack(byte: u8) -> Trust {
        match byte {
            0 => Trust::All,
            1 => Trust::NoDirectories,
            _ => Trust::None,
        }
    }

    /// Returns what is known of a filesystem of that type (statfs(2), `f_type`).
    pub(in crate::union) fn of_type(kind: u64) -> Trust {
        const BTRFS: u64 = 0x9123_683e;
        const OVERLAYFS: u64 = 0x794c_7630;
        match kind {
            BTRFS => Trust::NoDirectories,
            OVERLAYFS => Trust::None,
            _ => Trust::All,
        }
    }
}
