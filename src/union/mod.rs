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
//! | [`frozen`] | snapshots: uppers that were frozen, rollbacks, branches |
//! | [`live`] | a mount goes on over another upper |
//! | [`handover`] | a mount goes on with another process |
//! | [`hardlinks`] | one file stays one file when it is copied up |
//! | [`data`] | descriptors of open files, half-copied files; what fsync promises |
//! | [`change`] | the upper, copy-up, create, remove, rename |
//! | [`quota`] | what the upper may take, and what it takes |
//! | [`view`] | attributes, owners, listings, extended attributes |
//! | `opening`, [`current`] | a stack becomes a union; which one a mount shows now |
//! | [`events`], `telling`, [`escaped_path`] | what happens, told to whoever listens |
//! | [`options`] | what a user may choose about the view |
//! | `second_chance` | which descriptor a cache closes when they are too many |

#[cfg(test)]
mod bed;
pub mod change;
pub mod current;
pub mod data;
pub mod escaped_path;
pub mod events;
pub mod frozen;
pub mod handover;
pub mod hardlinks;
#[cfg(test)]
mod kills;
pub mod live;
pub mod lookup;
pub mod nodes;
mod opening;
pub mod options;
pub mod quota;
mod second_chance;
pub mod stack;
mod telling;
pub mod view;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use parking_lot::Mutex;

use self::change::copy_up::running::RunningCopies;
use self::change::judged::ToldDirs;
use self::change::sealing::background::Waiting;
use self::change::upper::{Upper, UpperFd};
use self::data::file::Files;
use self::data::halves::Halves;
use self::events::Events;
use self::hardlinks::kept::Hardlinks;
use self::lookup::belief::Belief;
use self::lookup::checked::Watched;
use self::lookup::found::{DataAt, Found};
use self::lookup::index::IndexCache;
use self::lookup::realdir::{DirFds, LayerIndex, RealDir};
use self::nodes::deferred_free::DeferredFrees;
use self::nodes::node::Node;
use self::nodes::notify::AttributeCache;
use self::nodes::pins::Pins;
use self::nodes::region::Regions;
use self::nodes::table::Table;
use self::nodes::verified::Stale;
use self::options::{RedirectDir, Verity};
use self::quota::{Quota, Taken};
use self::stack::directory::place_of;
use self::stack::layer::Veils;
use self::view::attr::Attr;
use self::view::held_times::HeldTimes;
use self::view::owners::Owners;
use crate::error::{FsError, Result};
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
    /// Files of the upper that got the data which they had left below.
    pub sealed: AtomicU64,
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

impl Counters {
    /// Returns all of them, in this order.
    fn all(&self) -> [&AtomicU64; 9] {
        let Counters {
            index_answers,
            copy_ups,
            copied_bytes,
            sealed,
            whiteouts,
            creates,
            renames,
            setattrs,
            setxattrs,
        } = self;
        [index_answers, copy_ups, copied_bytes, sealed, whiteouts, creates, renames, setattrs, setxattrs]
    }
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

impl OpenLayer {
    /// Returns where it is, from the root and without links where that is known.
    fn place(&self) -> PathBuf {
        place_of(&self.place, &self.path)
    }
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
    /// Returns as many as fit, with room to spare, into this process's limit of open files.
    pub fn of_process() -> Limits {
        Limits::within(nofile_limit())
    }

    /// Returns as many as fit into so many descriptors; half of them stay for what is deleted and still open.
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
    /// So many of them, below the upper, are what snapshots froze of earlier uppers.
    frozen: usize,
    fds: DirFds,
    pins: Arc<Pins>,
    table: Table,
    root: Arc<Node>,
    files: Files,
    deferred: DeferredFrees,
    /// The parts of the layers in which inode numbers mean something.
    regions: Arc<Regions>,
    renames: Mutex<()>,
    hardlinks: Hardlinks,
    /// Copy-ups that are under way, by node number.
    copying: DashMap<u64, Arc<Mutex<()>>>,
    /// Those of them that take long.
    running_copies: RunningCopies,
    /// Where the data of metacopy files are, by node number.
    metacopies: DashMap<u64, DataAt>,
    /// Those of them that have blocks of their own and are open, by node number.
    halves: Halves,
    /// Those that are to be sealed without being asked for, if any are.
    waiting: Waiting,
    index_cache: IndexCache,
    attribute_cache: AttributeCache,
    veils: Veils,
    owners: Owners,
    belief: Belief,
    redirects: RedirectDir,
    /// Whether data are left below as long as only attributes and names change.
    metacopy: bool,
    /// Whether large files are copied up block by block.
    block_wise: bool,
    verity: Verity,
    /// Attributes that the upper can't hold.
    left_out: change::carry::LeftOut,
    no_acl: bool,
    no_atime: bool,
    static_nlink: bool,
    /// Where others may change the lowers: which node stands for a directory of a layer. See [`lookup::checked`].
    watched: Option<Watched>,
    stale: Stale,
    told_dirs: ToldDirs,
    /// What is shown of directories in which only what nobody sees was changed.
    held_times: Arc<HeldTimes>,
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
    /// Returns the root of the merged tree.
    pub fn root(&self) -> &Arc<Node> {
        &self.root
    }

    /// Returns the known node of that number.
    pub fn node(&self, ino: u64) -> Result<Arc<Node>> {
        self.table.get(ino).map_or_else(|| self.come_to_life(ino), Ok)
    }

    /// Returns how many nodes are known.
    pub fn known_nodes(&self) -> usize {
        self.table.len()
    }

    /// Returns the entry `name` of a directory. Its node counts one lookup more.
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

    /// Returns the attributes of a node that was just found.
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

    /// Unmounts cleanly: nothing is left in the workdir.
    pub fn shut_down(&self) {
        self.close_upper(false);
    }

    /// Does as [`Union::shut_down`] while requests may still be answered, by a process that is about to end.
    pub fn abandon(&self) {
        self.close_upper(true);
    }

    fn close_upper(&self, served: bool) {
        if let Some(upper) = &self.upper {
            // What a filesystem sets aside for a file that is open is given back.
            self.files.close();
            upper.close(served);
        }
    }

    /// Returns what counts what the upper takes, where there is a limit.
    pub fn quota(&self) -> Option<&Arc<Quota>> {
        self.upper.as_ref().and_then(Upper::quota)
    }

    /// Counts the upper anew where nobody knows what it takes, as after a kill; see [`Quota::recount`].
    pub fn count_anew(&self) {
        if let Some(upper) = &self.upper
            && let Some(quota) = upper.quota()
        {
            match upper.tree() {
                Ok(tree) => quota.recount(tree),
                Err(e) => {
                    log::warn!("what the upper takes can't be counted anew, and is as it was noted: {e}")
                }
            }
        }
    }

    /// Counts what the upper takes, while nobody changes it; see [`Quota::measured`].
    ///
    /// # Errors
    /// Those of reading its directories.
    pub fn measured_upper(&self) -> Result<Option<Taken>> {
        let Some(upper) = &self.upper else { return Ok(None) };
        let Some(quota) = upper.quota() else { return Ok(None) };
        Ok(Some(quota.measured(&upper.tree()?)?))
    }

    /// Returns whose marks are believed.
    pub fn belief(&self) -> Belief {
        self.belief
    }

    /// Tells whether the merged tree can be changed.
    pub fn is_writable(&self) -> bool {
        self.upper.is_some()
    }

    /// Tells whether fsync has nothing to do, ever.
    pub fn is_volatile(&self) -> bool {
        self.upper.as_ref().is_none_or(Upper::is_volatile)
    }

    /// Tells whether there are POSIX ACLs.
    pub fn has_acls(&self) -> bool {
        !self.no_acl
    }

    /// Returns the upper, or "read-only".
    fn upper(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or(FsError::ReadOnly)
    }

    /// Returns the layers that are merged, topmost first: without those that hold data alone.
    fn merged_layers(&self) -> &[OpenLayer] {
        &self.layers[..self.layers.len() - self.data_only]
    }

    /// Tells whether that layer is the upper.
    fn is_upper(&self, layer: LayerIndex) -> bool {
        layer == 0 && self.upper.is_some()
    }

    /// Tells whether that layer is the upper, or was it until a snapshot froze it.
    fn is_own(&self, layer: LayerIndex) -> bool {
        self.upper.is_some() && usize::from(layer) <= self.frozen
    }

    /// Returns the descriptor of a directory of the upper.
    fn upper_fd(&self, dir: &Arc<RealDir>) -> Result<UpperFd> {
        if !self.is_upper(dir.layer) {
            return Err(FsError::Stale);
        }
        Ok(self.upper()?.own(self.fds.host(dir)?, dir.clone()))
    }

    /// Tells whether what the caller makes is owned by the caller without more ado.
    fn is_own_caller(&self, caller: Caller) -> bool {
        !self.owners.are_written() && self.owners.creator(caller) == self.own
    }
}
