//! The union filesystem itself: no FUSE, no command line and no images here, so that every rule of it can be tested
//! on plain temporary directories.
//!
//! [`Union`] is the merged view: a facade over rooms, each of which has one subject.
//!
//! | room | what it knows |
//! |---|---|
//! | [`stack`] | the layers and the workdir: opened, probed, locked |
//! | [`lookup`] | whiteouts, opaque marks, and which layer's entry a name stands for |
//! | [`nodes`] | the objects of the merged view, their numbers, their identity, how long they live |
//! | [`hardlinks`] | one file stays one file when it is copied up |
//! | [`data`] | descriptors of open files, half-copied files; what fsync promises |
//! | [`change`] | the upper, copy-up, create, remove, rename |
//! | [`view`] | attributes, owners, listings, extended attributes |
//! | [`events`], `telling`, [`escaped_path`] | what happens, told to whoever listens |
//! | [`options`] | what a user may choose about the view |
//! | `second_chance` | which descriptor a cache closes when they are too many |

#[cfg(test)]
mod bed;
pub mod change;
pub mod data;
pub mod escaped_path;
pub mod events;
pub mod hardlinks;
#[cfg(test)]
mod kills;
pub mod lookup;
pub mod nodes;
pub mod options;
mod second_chance;
pub mod stack;
mod telling;
pub mod view;

use std::fmt;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use parking_lot::Mutex;

use self::change::judged::ToldDirs;
use self::change::upper::{Upper, UpperFd};
use self::data::file::Files;
use self::data::halves::Halves;
use self::events::Events;
use self::hardlinks::links::OtherName;
use self::hardlinks::locks::HardlinkLocks;
use self::lookup::belief::Belief;
use self::lookup::found::{DataAt, Found};
use self::lookup::index::IndexCache;
use self::lookup::realdir::{DirFds, LayerIndex, RealDir};
use self::nodes::deferred_free::DeferredFrees;
use self::nodes::generation::Generations;
use self::nodes::node::{DirPart, InodeId, Node};
use self::nodes::notify::AttributeCache;
use self::nodes::pins::Pins;
use self::nodes::region::Regions;
use self::nodes::table::Table;
use self::nodes::verified::Stale;
use self::options::{FsOptions, Lazy, RedirectDir, Verity, Xino};
use self::stack::access::{LayerAt, LayerObject};
use self::stack::directory::Layer;
use self::stack::layer::{Lower, Stack, UpperLayer, Veils};
use self::view::attr::Attr;
use self::view::owners::Owners;
use crate::error::{FsError, Result};
use crate::sys::filesystem;
use crate::sys::object::Stat;
use crate::sys::process::nofile_limit;

/// Who makes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Effective user id for file access.
    pub uid: u32,
    /// Effective group id for file access.
    pub gid: u32,
}

/// What happened, counted.
#[derive(Debug, Default)]
pub struct Counters {
    /// Lookups that an index answered without any system call.
    pub index_answers: AtomicU64,
    /// Objects copied up.
    pub copy_ups: AtomicU64,
    /// Bytes of data that copy-ups moved.
    pub copied_bytes: AtomicU64,
    /// Whiteouts written.
    pub whiteouts: AtomicU64,
    /// Entries made.
    pub creates: AtomicU64,
    /// Entries renamed.
    pub renames: AtomicU64,
    /// Changes of attributes.
    pub setattrs: AtomicU64,
    /// Changes of extended attributes.
    pub setxattrs: AtomicU64,
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        write!(
            f,
            "copy-ups: {} ({} bytes moved), whiteouts: {}, created: {}, renamed: {}, lookups by index: {}",
            get(&self.copy_ups),
            get(&self.copied_bytes),
            get(&self.whiteouts),
            get(&self.creates),
            get(&self.renames),
            get(&self.index_answers)
        )
    }
}

/// What to do about a layer whose root can't be examined.
const LAYER_WAY_OUT: &str = "check that its filesystem is mounted and answers";

impl fmt::Display for OpenLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {}", self.path.display())
    }
}

/// One layer, opened.
#[derive(Debug)]
pub struct OpenLayer {
    /// Where it lies, for messages.
    pub path: PathBuf,
    /// The same from the root and without links, when it was opened; empty where that isn't known.
    pub place: Vec<u8>,
    /// Its root.
    pub root: Arc<RealDir>,
}

/// How much memory and how many descriptors a union may keep.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Descriptors of directories.
    pub dir_fds: usize,
    /// Descriptors of file data.
    pub data_fds: usize,
    /// Descriptors of what is deleted and still known.
    pub pinned_fds: usize,
    /// Bytes of directory indexes.
    pub index_bytes: usize,
}

impl Limits {
    /// As many as fit, with room to spare, into this process's limit of open files.
    pub fn of_process() -> Limits {
        Limits::within(nofile_limit())
    }

    /// As many as fit into so many descriptors; half of them stay for what is deleted and still open.
    pub fn within(descriptors: usize) -> Limits {
        let all = Limits::default();
        let quarter = descriptors / 4;
        let (dir_fds, data_fds) = (all.dir_fds.min(quarter), all.data_fds.min(quarter));
        Limits { dir_fds, data_fds, pinned_fds: descriptors - dir_fds - data_fds, ..all }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits { dir_fds: 256, data_fds: 256, pinned_fds: usize::MAX, index_bytes: 512 << 10 }
    }
}

/// The merged view of a stack of layers.
#[derive(Debug)]
pub struct Union {
    layers: Vec<OpenLayer>,
    /// So many of them, the last, hold data alone.
    data_only: usize,
    fds: DirFds,
    pins: Arc<Pins>,
    table: Table,
    root: Arc<Node>,
    files: Files,
    deferred: DeferredFrees,
    /// The parts of the layers in which inode numbers mean something.
    regions: Arc<Regions>,
    renames: Mutex<()>,
    /// Locks of files with several names; in the lock order between names and places.
    hardlink_locks: HardlinkLocks,
    /// Copy-ups that are under way, by node number.
    copying: DashMap<u64, Arc<Mutex<()>>>,
    /// Where the data of metacopy files are, by node number.
    metacopies: DashMap<u64, DataAt>,
    /// Those of them that have blocks of their own and are open, by node number.
    halves: Halves,
    /// Under which origin the copies of [`NodeSource::Index`](nodes::node::NodeSource::Index) nodes are in the hardlink index.
    index_origins: DashMap<u64, InodeId>,
    /// Further names that are known of files with several, by node number: when a file's first known name goes, the next
    /// leads to it, and no descriptor is needed.
    other_names: DashMap<u64, Vec<OtherName>>,
    /// Names that whiteouts took from lower files that were never copied up.
    hidden_links: DashMap<InodeId, u64>,
    index_cache: IndexCache,
    attribute_cache: AttributeCache,
    veils: Veils,
    owners: Owners,
    belief: Belief,
    redirects: RedirectDir,
    /// Are data left below as long as only attributes and names change?
    metacopy: bool,
    /// Are large files copied up block by block?
    block_wise: bool,
    verity: Verity,
    /// Attributes that the upper can't hold.
    left_out: change::carry::LeftOut,
    no_acl: bool,
    no_atime: bool,
    static_nlink: bool,
    stale: Stale,
    told_dirs: ToldDirs,
    /// What the daemon itself is: who it can create for without a change of owner.
    own: Caller,
    /// What happened.
    pub counters: Counters,
    /// What happens, for whoever listens.
    pub events: Arc<Events>,
    /// Dropped last: to leave the workdir clean and to sync takes a while, in which the lowers are closed already.
    upper: Option<Upper>,
}

impl Union {
    /// The merged view of a stack, with the usual options.
    ///
    /// # Errors
    /// Those of reading the roots of the layers and the hardlink index.
    pub fn new(stack: Stack, limits: Limits) -> Result<Union> {
        Union::with_options(stack, limits, &FsOptions::default())
    }

    /// The merged view of a stack.
    ///
    /// # Errors
    /// Those of [`Union::new`], and options that these layers can't be served with.
    pub fn with_options(stack: Stack, limits: Limits, options: &FsOptions) -> Result<Union> {
        let data_only = stack.data_only;
        let belief = stack.belief.with_permissions(options.xattr_permissions);
        let (layers, upper_layer) = open_layers(stack.upper, stack.lowers, belief)?;
        let regions = Arc::new(Regions::of_layers(&layers)?);
        let upper = match upper_layer {
            Some(layer) => Some(Upper::new(layer, regions.clone(), regions.sources(&layers)?)?),
            None => None,
        };
        let hidden_links = upper.as_ref().map(Upper::hidden_links).transpose()?.unwrap_or_default();
        let (dir, real) = merged_root(&layers[..layers.len() - data_only], upper.is_some())?;
        let fds = DirFds::telling(limits.dir_fds, Generations::new(lasting_handles(&layers)?));
        read_root_marks(&layers, &fds, belief, upper.is_some().then_some(&dir))?;
        let roots = layers.iter().map(|layer| fds.get(&layer.root)).collect::<Result<Vec<_>>>()?;
        let at_roots: Vec<LayerAt<'_>> = roots.iter().map(LayerObject::at).collect();
        let own_root =
            |upper: &Upper| Ok::<_, FsError>(upper.own(fds.host(&layers[0].root)?, layers[0].root.clone()));
        let upper_root = upper.as_ref().map(own_root).transpose()?;
        let owners = Owners::new(options, belief, &at_roots, upper_root.as_ref().map(|root| root.itself()))?;
        if options.xino == Xino::On {
            nodes::region::check_xino(&layers)?;
        }
        let block_wise = copies_blocks(options, upper.as_ref());
        let table = Table::new(options.ino32);
        let root = table.insert_root(dir, regions.identity(real.region(), true, real.id.0, real.id.1));
        let own =
            Caller { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        Ok(Union {
            layers,
            data_only,
            fds,
            pins: Pins::new(limits.pinned_fds),
            table,
            root,
            files: Files::new(limits.data_fds),
            deferred: DeferredFrees::default(),
            regions,
            renames: Mutex::new(()),
            hardlink_locks: HardlinkLocks::default(),
            copying: DashMap::new(),
            metacopies: DashMap::new(),
            halves: Halves::default(),
            index_origins: DashMap::new(),
            other_names: DashMap::new(),
            hidden_links,
            index_cache: IndexCache::new(limits.index_bytes),
            attribute_cache: AttributeCache::default(),
            veils: stack.veils,
            // ACLs are made of real permission bits.
            no_acl: options.no_acl || owners.override_real(),
            owners,
            no_atime: options.no_atime,
            belief,
            redirects: redirects_made(options.redirect_dir, upper.as_ref()),
            metacopy: options.metacopy,
            block_wise,
            verity: options.verity,
            left_out: change::carry::LeftOut::default(),
            static_nlink: options.static_nlink,
            stale: Stale::default(),
            told_dirs: ToldDirs::default(),
            own,
            counters: Counters::default(),
            events: Arc::default(),
            upper,
        })
    }

    /// The root of the merged tree.
    pub fn root(&self) -> &Arc<Node> {
        &self.root
    }

    /// The known node of that number.
    pub fn node(&self, ino: u64) -> Result<Arc<Node>> {
        self.table.get(ino).ok_or(FsError::Stale)
    }

    /// How many nodes are known.
    pub fn known_nodes(&self) -> usize {
        self.table.len()
    }

    /// The entry `name` of a directory. Its node counts one lookup more.
    pub fn lookup(&self, parent: &Arc<Node>, name: &[u8]) -> Result<Option<(Arc<Node>, Attr)>> {
        let dir = self.dir_part(parent)?;
        dir.progress.note_lookup();
        let _names = dir.names.read();
        let found = match self.events.listening() {
            true => self.resolve_and_tell(parent, name)?,
            false => self.resolve(parent, name)?,
        };
        let Some(found) = found else { return Ok(None) };
        let (node, stat) = self.node_held(parent, name, &found, 1)?;
        let attr = self.attr_of_found(&node, parent, name, &found, stat)?;
        Ok(Some((node.pass_on(), attr)))
    }

    /// The attributes of a node that was just found.
    fn attr_of_found(
        &self,
        node: &Node,
        parent: &Node,
        name: &[u8],
        found: &Found,
        stat: Stat,
    ) -> Result<Attr> {
        let stat = if self.is_upper(found.layer) && stat.nlink > 1 && node.dir.is_none() {
            let real = self.dir_part(parent)?.upper_dir().ok_or(FsError::Stale)?;
            self.counted(self.fds.get(&real)?.entry(name), stat)?
        } else {
            stat
        };
        Ok(self.attr(node, stat))
    }

    /// Clean unmount: nothing is left in the workdir.
    pub fn shut_down(&self) {
        if let Some(upper) = &self.upper {
            upper.close();
        }
    }

    /// Whose marks are believed.
    pub fn belief(&self) -> Belief {
        self.belief
    }

    /// Can the merged tree be changed?
    pub fn is_writable(&self) -> bool {
        self.upper.is_some()
    }

    /// Does fsync have nothing to do, ever?
    pub fn is_volatile(&self) -> bool {
        self.upper.as_ref().is_none_or(Upper::is_volatile)
    }

    /// Are there POSIX ACLs?
    pub fn has_acls(&self) -> bool {
        !self.no_acl
    }

    /// The upper, or "read-only".
    fn upper(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or(FsError::ReadOnly)
    }

    /// The layers that are merged, topmost first: without those that hold data alone.
    fn merged_layers(&self) -> &[OpenLayer] {
        &self.layers[..self.layers.len() - self.data_only]
    }

    /// Is that layer the upper?
    fn is_upper(&self, layer: LayerIndex) -> bool {
        layer == 0 && self.upper.is_some()
    }

    /// The descriptor of a directory of the upper.
    fn upper_fd(&self, dir: &Arc<RealDir>) -> Result<UpperFd> {
        if !self.is_upper(dir.layer) {
            return Err(FsError::Stale);
        }
        Ok(self.upper()?.own(self.fds.host(dir)?, dir.clone()))
    }

    /// Is what the caller makes owned by the caller without more ado?
    fn is_own_caller(&self, caller: Caller) -> bool {
        !self.owners.are_written() && self.owners.creator(caller) == self.own
    }
}

/// Opens the layers, the upper first if there is one.
fn open_layers(
    upper: Option<UpperLayer>,
    lowers: Vec<Lower>,
    belief: Belief,
) -> Result<(Vec<OpenLayer>, Option<UpperLayer>)> {
    let mut layers = Vec::new();
    let upper = match upper {
        Some(layer) => {
            let root = rustix::io::fcntl_dupfd_cloexec(&layer.layer.root, 3)?;
            let (path, place) = (layer.layer.path.clone(), layer.layer.place.clone());
            let opened = Lower::Directory(Layer { path, place, root, ..layer.layer });
            layers.push(open_layer(opened, 0, belief)?);
            Some(layer)
        }
        None => None,
    };
    for lower in lowers {
        let index = layers.len() as LayerIndex;
        layers.push(open_layer(lower, index, belief)?);
    }
    Ok((layers, upper))
}

/// Reads the marks on the layers' roots. `merged`: the root of the merged tree, where there is an upper.
fn read_root_marks(
    layers: &[OpenLayer],
    fds: &DirFds,
    belief: Belief,
    merged: Option<&DirPart>,
) -> Result<()> {
    for layer in layers {
        let marks = lookup::marker::read_marks(fds.get(&layer.root)?.at(), belief)
            .map_err(|e| FsError::from(e).of(layer, LAYER_WAY_OUT))?;
        layer.root.xattr_whiteouts.store(marks.xattr_whiteouts, Ordering::Relaxed);
        layer.root.impure.store(marks.impure, Ordering::Relaxed);
        if let Some(merged) = merged.filter(|_| layer.root.layer == 0) {
            merged.impure.store(marks.impure, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Are large files copied up block by block?
fn copies_blocks(options: &FsOptions, upper: Option<&Upper>) -> bool {
    if options.lazy == Lazy::Off {
        return false;
    }
    // Tests of a unit kill the process, and not the machine.
    let ordered = |upper: &Upper| cfg!(test) || filesystem::orders_data(upper.root());
    let can = upper.is_some_and(ordered);
    if !can {
        log::warn!(
            "option lazy: files are copied up whole, as the upper's filesystem isn't ext4 with data=ordered"
        );
    }
    can
}

/// What is done about redirects, as far as the upper can keep them.
fn redirects_made(asked: RedirectDir, upper: Option<&Upper>) -> RedirectDir {
    match asked {
        // There is nowhere to keep one.
        RedirectDir::On if upper.is_some_and(|upper| !upper.caps().xattr) => RedirectDir::Follow,
        asked => asked,
    }
}

/// The devices of the layers whose file handles mean the same as long as the inode lives.
fn lasting_handles(layers: &[OpenLayer]) -> Result<Vec<u64>> {
    const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;
    let fds = DirFds::new(0);
    let mut lasting = Vec::new();
    for layer in layers.iter().filter(|layer| layer.root.tree().is_none()) {
        let kind = rustix::fs::fstatfs(fds.host(&layer.root)?.as_fd())?.f_type;
        #[allow(clippy::unnecessary_cast)] // the type differs by architecture
        if kind as u64 & 0xffff_ffff != FUSE_SUPER_MAGIC && !lasting.contains(&layer.root.id.0) {
            lasting.push(layer.root.id.0);
        }
    }
    Ok(lasting)
}

fn open_layer(lower: Lower, index: LayerIndex, belief: Belief) -> Result<OpenLayer> {
    let path = lower.path().to_owned();
    let place = match lower.directory() {
        Some(layer) => layer.place.clone(),
        None => lower.path().as_os_str().as_bytes().to_vec(),
    };
    let (root, _) = RealDir::of_lower(index, lower, belief)
        .map_err(|e| e.of(format_args!("layer {}", path.display()), LAYER_WAY_OUT))?;
    Ok(OpenLayer { path, place, root })
}

/// The root of the merged tree, and which inode gives it its identity. As in the kernel, the roots of all layers are
/// merged whatever marks they carry: an opaque root would make the layers below it pointless.
fn merged_root(layers: &[OpenLayer], has_upper: bool) -> Result<(DirPart, Arc<RealDir>)> {
    let roots = || layers.iter().map(|l| l.root.clone());
    let upper = if has_upper { roots().next() } else { None };
    let lowers: Vec<_> = roots().skip(usize::from(has_upper)).collect();
    let real =
        lowers.first().or(upper.as_ref()).cloned().ok_or(FsError::Invalid("a stack without layers"))?;
    Ok((DirPart::new(upper, lowers), real))
}
