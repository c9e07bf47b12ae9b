//! Opening a stack: its layers, each an open directory, and what the upper's filesystem can do.
//!
//! Everything that can be wrong with the directories of a mount is found here, before anything is mounted, and told in
//! one message ([`StackError`]). What was made on the way is removed again when a later check fails.
//!
//! The order matters: paths are resolved by the kernel, once; identities are compared; the upper is locked before its
//! workdir is looked for, since the daemon of an earlier mount removes a default workdir before it lets the upper go.

pub(in crate::union) mod state;

pub use crate::union::stack::directory::Layer;
pub use crate::union::stack::lower::{Lower, LowerSource, TreeLayer};
use crate::union::stack::stack_error::open_error;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{Access, AtFlags, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::Errno;

use crate::sys::filesystem;
use crate::sys::mount::without_access_times;
use crate::sys::mountinfo::Table;
use crate::union::frozen::below::{self, Below};
use crate::union::frozen::settle;
use crate::union::lookup::belief::Belief;
use crate::union::lookup::private::Namespace;
use crate::union::quota::state::QuotaTaken;
use crate::union::stack::alone::lock_upper;
use crate::union::stack::lock::{DirLock, LOCK_WAIT};
use crate::union::stack::nesting::{self, HeldDirs, Member, locate};
use crate::union::stack::probe;
pub use crate::union::stack::probe::{UpperCaps, WhiteoutForm};
pub use crate::union::stack::stack_error::{Role, Said, Shown, StackError, TakeAway};
use crate::union::stack::tree::Tree;
pub use crate::union::stack::workdir::Workdir;
use crate::union::stack::workdir::WorkdirPlace;

/// Where overlay marks are kept in the upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XattrChoice {
    /// `trusted.overlay.` where this process may, else `user.overlay.`.
    #[default]
    Auto,
    /// `user.overlay.` always (mount option `userxattr`).
    User,
}

/// What a stack is made of. Paths are resolved by the kernel, relative to the current directory.
#[derive(Debug, Clone)]
pub struct StackOptions {
    /// The read-only layers, topmost first. What was frozen below the upper is added above them; where none are named, those
    /// that were recorded lie below.
    pub lowers: Vec<LowerSource>,
    /// Layers below them that hold data alone, which absolute redirects of metacopies lead to.
    pub data_only: Vec<PathBuf>,
    /// Whether the first of them is an upper that is only read. Messages call it so then.
    pub top_is_upper: bool,
    /// The writable layer; without, the mount is read-only.
    pub upper: Option<PathBuf>,
    /// The workdir; without, one is made beside the upper.
    pub work: Option<PathBuf>,
    /// Where the merged tree will be mounted, to be checked against the layers.
    pub mount_point: Option<PathBuf>,
    /// Nothing is synced to disk; the upper is marked so, see [`crate::union::stack::workdir`].
    pub volatile: bool,
    /// Where overlay marks are kept.
    pub xattr: XattrChoice,
    /// How long to wait for another mount to let go of the upper.
    pub lock_wait: Duration,
}

impl Default for StackOptions {
    fn default() -> Self {
        StackOptions {
            lowers: Vec::new(),
            data_only: Vec::new(),
            top_is_upper: false,
            upper: None,
            work: None,
            mount_point: None,
            volatile: false,
            xattr: XattrChoice::Auto,
            lock_wait: LOCK_WAIT,
        }
    }
}

impl StackOptions {
    /// Returns the same with what was frozen above the lowers; with those that were recorded, where none are named.
    fn over(&self, below: Option<&Below>) -> StackOptions {
        let mut over = self.clone();
        let Some(below) = below else { return over };
        let named = if self.lowers.is_empty() {
            LowerSource::directories(below.lowers.iter().cloned())
        } else {
            self.lowers.clone()
        };
        over.lowers = LowerSource::directories(below.layers.iter().cloned());
        over.lowers.extend(named);
        over
    }

    /// Returns what the lower at that place is called.
    fn role(&self, at: usize) -> Role {
        match (self.top_is_upper, at) {
            (true, 0) => Role::Upper,
            (true, at) => Role::Lower(at),
            (false, at) => Role::Lower(at + 1),
        }
    }
}

/// The writable layer, locked for this mount.
#[derive(Debug)]
pub struct UpperLayer {
    // Order matters: the workdir is closed before the lock on the upper goes.
    /// Where its objects are prepared.
    pub work: Arc<Workdir>,
    /// The layer.
    pub layer: Layer,
    /// What its filesystem can do.
    pub caps: UpperCaps,
    /// Whether what lies right below was frozen.
    pub lies_on_frozen: bool,
    /// Whether the workdir is still that of the upper before this one, of the same mount.
    pub is_of_another: bool,
    /// What another process has counted of it.
    pub(in crate::union) counted: Option<QuotaTaken>,
    lock: DirLock,
    // After the lock, for which the next mount may wait.
    sync: Option<Arc<SyncAtEnd>>,
}

impl UpperLayer {
    /// Makes it this process's: another one had it in use, and doesn't go on.
    pub(in crate::union) fn go_on(&self) {
        self.work.go_on();
        if let Some(sync) = &self.sync {
            sync.is_armed.store(true, Ordering::Release);
        }
    }

    /// Returns the same upper, for the union that takes its mount over; or without `serves` for one that only looks.
    pub(in crate::union) fn again(&self, layer: Layer, serves: bool) -> UpperLayer {
        let (lock, lies_on_frozen) = (self.lock.clone(), self.lies_on_frozen);
        let (work, caps) = (self.work.clone(), self.caps);
        // By the last of those that have served.
        let sync = self.sync.clone().filter(|_| serves);
        UpperLayer { work, layer, caps, lies_on_frozen, is_of_another: true, counted: None, lock, sync }
    }

    /// Returns the upper that takes the place of this one in its mount, with the same workdir. `lock` is its own.
    pub(in crate::union) fn succeeded_by(
        &self,
        layer: Layer,
        lock: DirLock,
        lies_on_frozen: bool,
    ) -> Result<UpperLayer, StackError> {
        let sync = Some(Arc::new(SyncAtEnd::of(&layer)?));
        let (work, caps) = (self.work.clone(), self.caps);
        Ok(UpperLayer { work, layer, caps, lies_on_frozen, is_of_another: true, counted: None, lock, sync })
    }
}

/// Syncs the upper's filesystem when a mount ends: what was written is on the disk then, as after an unmount of the
/// kernel's overlayfs.
#[derive(Debug)]
struct SyncAtEnd {
    upper: OwnedFd,
    path: PathBuf,
    /// Whether the mount is this process's.
    is_armed: AtomicBool,
}

impl SyncAtEnd {
    fn of(upper: &Layer) -> Result<SyncAtEnd, StackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(&upper.root, c".", flags, Mode::empty());
        let upper_fd = opened.map_err(|errno| open_error(Role::Upper, &upper.path, errno))?;
        Ok(SyncAtEnd { upper: upper_fd, path: upper.path.clone(), is_armed: AtomicBool::new(true) })
    }
}

impl Drop for SyncAtEnd {
    fn drop(&mut self) {
        if !*self.is_armed.get_mut() {
            return;
        }
        if let Err(errno) = filesystem::sync(&self.upper) {
            log::error!(
                "upper layer {}: what was written last may not be on the disk: {errno}",
                self.path.display()
            );
        }
    }
}

/// The layers of a mount, open and checked.
#[derive(Debug)]
pub struct Stack {
    /// The read-only layers, topmost first; at least one.
    pub lowers: Vec<Lower>,
    /// So many of them, the last, hold data alone.
    pub data_only: usize,
    /// So many of them, the first, are what snapshots froze of earlier uppers.
    pub frozen: usize,
    /// The writable layer.
    pub upper: Option<UpperLayer>,
    /// Whose marks are believed.
    pub belief: Belief,
    /// What the lowers hold of this mount itself.
    pub veils: Veils,
}

impl Stack {
    /// Returns the same, read as somebody else reads it: the mount that serves the layers.
    pub fn believing(mut self, belief: Belief) -> Stack {
        self.belief = belief;
        self.lowers.iter_mut().for_each(|lower| lower.set_belief(belief));
        if let Some(upper) = &mut self.upper {
            upper.layer.belief = belief;
        }
        self
    }
}

/// What lowers hold of this mount itself, and don't show; see `union::lookup::veil`.
#[derive(Debug, Default)]
pub struct Veils {
    /// Device and inode number of its directories.
    pub parts: Vec<(u64, u64)>,
    /// The directory that the mount covers, where it lies in a lower.
    pub covered: Option<Arc<OwnedFd>>,
    /// The lowers in which it lies; the topmost is 0.
    pub holders: Vec<usize>,
}

impl Stack {
    /// Opens and checks all directories, locks the upper and its workdir, and makes the workdir ready.
    ///
    /// # Errors
    ///
    /// One [`StackError`] for the first thing that is wrong; nothing that was made is left.
    pub fn open(options: &StackOptions) -> Result<Stack, StackError> {
        if options.upper.is_none() && options.work.is_some() {
            return Err(StackError::WorkWithoutUpper);
        }
        if options.upper.is_none() && options.lowers.is_empty() {
            return Err(StackError::NoLowers);
        }
        // Before the lock, which the mount that is there already has.
        let mount_point = options.mount_point.as_deref().map(open_mount_point).transpose()?;
        // Before the lowers, for what lies below it is told by what is beside it.
        let locked = options.upper.as_deref().map(|path| lock_upper(path, options.lock_wait)).transpose()?;
        let below = match &locked {
            Some((upper, _)) => below::of(upper.root.as_fd(), &upper.path)?,
            None => None,
        };
        let frozen = below.as_ref().map_or(0, |below| below.layers.len());
        let options = &options.over(below.as_ref());
        if options.lowers.len() == frozen {
            return Err(if frozen == 0 { StackError::NoLowers } else { StackError::NoLowersBelow });
        }
        let belief = Belief::decide(options.xattr == XattrChoice::User);
        let mut lowers = open_lowers(options)?;
        lowers.iter_mut().for_each(|lower| lower.set_belief(belief));
        let upper = locked.as_ref().map(|(upper, _)| upper);
        let held = nesting::check(&members(options, &lowers, upper, None, mount_point.as_ref()))?;
        let Some((upper, lock)) = locked else {
            let veils = veils(&held, mount_point, options);
            let (lowers, data_only) = (unchanged_by_reading(lowers), options.data_only.len());
            return Ok(Stack { lowers, data_only, frozen, upper: None, belief, veils });
        };
        let place = match &options.work {
            Some(path) => WorkdirPlace::named(path)?,
            None => WorkdirPlace::beside(&upper)?,
        };
        let held = nesting::check(&members(
            options,
            &lowers,
            Some(&upper),
            Some(place.member()?),
            mount_point.as_ref(),
        ))?;
        let veils = veils(&held, mount_point, options);
        let mut upper = open_workdir(options, upper, place, lock, belief)?;
        upper.lies_on_frozen = frozen > 0;
        if let Some(below) = &below {
            settle::index(&upper.work, upper.layer.root.as_fd(), below)?;
        }
        let belief = belief.kept_in(upper.caps.namespace);
        let (lowers, data_only) = (unchanged_by_reading(lowers), options.data_only.len());
        let stack = Stack { lowers, data_only, frozen, upper: Some(upper), belief, veils };
        Ok(stack.believing(belief))
    }

    /// Leaves the workdir clean at the end of the mount; see [`Workdir::close`]. Dropping the stack does so too, but
    /// can only log what goes wrong.
    pub fn close(&self) -> Result<(), StackError> {
        self.upper.as_ref().map_or(Ok(()), |upper| upper.work.close())
    }
}

/// Makes the workdir of an upper ready, and finds out what their filesystem can do.
fn open_workdir(
    options: &StackOptions,
    upper: Layer,
    place: WorkdirPlace,
    lock: DirLock,
    belief: Belief,
) -> Result<UpperLayer, StackError> {
    let prepared = place.prepare(&upper, options.lock_wait)?;
    let caps = probe::probe(prepared.workdir.staging.as_fd(), belief.namespace == Namespace::User)
        .map_err(|errno| StackError::Io {
            role: Role::Work,
            path: prepared.workdir.path.clone(),
            what: "try out what its filesystem can do",
            errno,
        })?
        .map_err(|unfit| StackError::unfit(unfit, &upper.path))?;
    let work = prepared.begin(options.volatile)?;
    let sync = if options.volatile { None } else { Some(Arc::new(SyncAtEnd::of(&upper)?)) };
    tell_limits(&upper, &caps, belief);
    let work = Arc::new(work);
    let (lies_on_frozen, is_of_another) = (false, false);
    Ok(UpperLayer { work, layer: upper, caps, lies_on_frozen, is_of_another, counted: None, lock, sync })
}

/// Warns of what the upper's filesystem can't do.
fn tell_limits(upper: &Layer, caps: &UpperCaps, belief: Belief) {
    log::debug!("upper {}: {caps:?}", upper.path.display());
    if !caps.xattr {
        log::warn!(
            "upper layer {}: its filesystem holds no extended attributes: copies have none, and inode numbers and hard links of theirs don't last; directories of lowers can't be renamed",
            Shown(&upper.path)
        );
    }
    if caps.xattr && caps.namespace != belief.namespace {
        log::warn!(
            "upper layer {}: its filesystem keeps no {}*: marks are kept in {}*, as with the option userxattr",
            Shown(&upper.path),
            belief.namespace.prefix(),
            caps.namespace.prefix()
        );
    }
}

/// Returns the directories of the host that a mount is made of.
fn members<'a>(
    options: &StackOptions,
    lowers: &'a [Lower],
    upper: Option<&'a Layer>,
    work: Option<Member<'a>>,
    mount_point: Option<&'a Layer>,
) -> Vec<Member<'a>> {
    let of_lower =
        |(at, lower): (usize, &'a Lower)| lower.directory().map(|layer| layer.member(options.role(at)));
    let mut members: Vec<Member<'_>> = lowers.iter().enumerate().filter_map(of_lower).collect();
    members.extend(upper.map(|layer| layer.member(Role::Upper)));
    members.extend(work);
    members.extend(mount_point.map(|dir| dir.member(Role::MountPoint)));
    members
}

fn open_lowers(options: &StackOptions) -> Result<Vec<Lower>, StackError> {
    let open = |(at, source): (usize, &LowerSource)| match source {
        LowerSource::Directory(path) => {
            let role = options.role(at);
            let layer = Layer::open(role, path)?;
            layer.may(role, Access::READ_OK | Access::EXEC_OK, "read and search permission on it")?;
            Ok(Lower::Directory(layer))
        }
        LowerSource::Tree { path, tree } => Ok(Lower::Tree(TreeLayer {
            path: path.clone(),
            tree: Tree::new(tree.clone()),
            belief: Belief::of_process(),
        })),
    };
    let data_only = LowerSource::directories(options.data_only.iter().cloned());
    options.lowers.iter().chain(&data_only).enumerate().map(open).collect()
}

/// Returns what the lowers are not to show.
fn veils(held: &[HeldDirs], mount_point: Option<Layer>, options: &StackOptions) -> Veils {
    let mut parts: Vec<_> = held.iter().map(|held| (held.id.dev, held.id.ino)).collect();
    parts.dedup();
    let holds = |at: &usize| {
        let role = options.role(*at);
        held.iter().any(|held| held.role == Role::MountPoint && held.by == role)
    };
    let holders: Vec<usize> = (0..options.lowers.len() + options.data_only.len()).filter(holds).collect();
    let covered = mount_point.filter(|_| !holders.is_empty()).map(|dir| Arc::new(dir.root));
    Veils { parts, covered, holders }
}

/// Returns the lowers, as root through mounts of this process's own, so that reading changes no access times in them
/// (the kernel's overlayfs does likewise). Last of all, since such a mount has no place in the tree that could be
/// compared.
///
/// A lower inside which others are mounted stays as it is, so that these are seen and can be unmounted; there, and
/// without privileges, files and directories are opened with O_NOATIME where that is allowed.
pub(in crate::union) fn unchanged_by_reading(mut lowers: Vec<Lower>) -> Vec<Lower> {
    if !rustix::process::geteuid().is_root() {
        return lowers;
    }
    let Ok(mounts) = Table::read() else { return lowers };
    let mounted: Vec<_> = mounts.entries().map(|mount| mount.point).collect();
    for lower in &mut lowers {
        let Lower::Directory(layer) = lower else { continue };
        let place = &layer.place[..];
        let holds_mounts =
            mounted.iter().any(|at| at.strip_prefix(place).is_some_and(|rest| rest.starts_with(b"/")));
        if holds_mounts || place == b"/" || place.is_empty() {
            continue;
        }
        match without_access_times(layer.root.as_fd()) {
            Ok(root) => {
                layer.root = root;
                layer.sealed = true;
            }
            Err(errno) => {
                log::debug!("lower {}: access times may change by reading: {errno}", layer.path.display());
            }
        }
    }
    lowers
}

fn open_mount_point(path: &Path) -> Result<Layer, StackError> {
    let layer = Layer::open(Role::MountPoint, path)?;
    let at = locate(layer.root.as_fd()).map_err(|e| open_error(Role::MountPoint, path, e))?;
    let kind = if at.mount_root { mount_type(at.mount) } else { None };
    if kind.as_deref().is_some_and(|kind| kind.starts_with("fuse")) {
        // Asks the daemon, which no other check here does, and whatever the kernel remembers of its answers.
        let ask = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        match statx(&layer.root, c"", ask, StatxFlags::BASIC_STATS) {
            Err(Errno::NOTCONN | Errno::CONNABORTED) => {
                return Err(StackError::DeadMount { path: path.to_owned() });
            }
            Err(errno) => return Err(open_error(Role::MountPoint, path, errno)),
            Ok(_) => {}
        }
    }
    if kind.as_deref() == Some("fuse.unionmount") {
        return Err(StackError::AlreadyMounted { path: path.to_owned() });
    }
    Ok(layer)
}

/// Returns the filesystem type of a mount of this process's mount namespace.
fn mount_type(mount: u64) -> Option<String> {
    Table::read().ok()?.entries().find(|entry| entry.id == mount).map(|entry| entry.kind.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::TempDir;

    /// Makes two lowers `a` and `b`, an upper `up`, a mount point `mnt`.
    fn tree() -> TempDir {
        let top = tempfile::tempdir().unwrap();
        for dir in ["a", "b", "up", "mnt", "up/in", "a/in"] {
            fs::create_dir(top.path().join(dir)).unwrap();
        }
        top
    }

    fn options(top: &TempDir, lowers: &[&str], upper: Option<&str>) -> StackOptions {
        StackOptions {
            lowers: lowers.iter().map(|l| top.path().join(l).into()).collect(),
            upper: upper.map(|u| top.path().join(u)),
            mount_point: Some(top.path().join("mnt")),
            // A test beside this one may just start a program, which holds copies of all locks until its exec.
            lock_wait: Duration::from_secs(1),
            ..StackOptions::default()
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Checks that opening fails with a message that holds `text`, and leaves the directory as it was.
    fn refused(top: &TempDir, options: &StackOptions, text: &str) {
        let before = names(top.path());
        let error = Stack::open(options).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(text), "expected {text:?} in: {error}");
        assert!(!error.contains('\n'), "more than a line: {error}");
        assert_eq!(names(top.path()), before, "{text}");
    }

    #[test]
    fn a_default_workdir_comes_and_goes() {
        let top = tree();
        let stack = Stack::open(&options(&top, &["a", "b"], Some("up"))).unwrap();
        assert_eq!(stack.lowers[0].path(), top.path().join("a"));
        assert_eq!(names(&top.path().join(".up.work")), ["index.unionmount", "work"]);
        let upper = stack.upper.as_ref().unwrap();
        assert!(names(&top.path().join(".up.work/work")).is_empty(), "probes are cleaned");
        assert_eq!(upper.caps.privileged, rustix::process::geteuid().is_root());
        fs::write(top.path().join(".up.work/work/staged"), "x").unwrap();
        stack.close().unwrap();
        assert_eq!(names(top.path()), ["a", "b", "mnt", "up"]);
        drop(stack);
        assert_eq!(names(top.path()), ["a", "b", "mnt", "up"]);
    }

    #[test]
    fn an_index_in_use_keeps_the_default_workdir() {
        let top = tree();
        let stack = Stack::open(&options(&top, &["a"], Some("up"))).unwrap();
        fs::write(top.path().join(".up.work/index.unionmount/x"), "x").unwrap();
        drop(stack);
        assert_eq!(names(&top.path().join(".up.work")), ["index.unionmount"]);
        let stack = Stack::open(&options(&top, &["a"], Some("up"))).unwrap();
        assert_eq!(names(&top.path().join(".up.work/index.unionmount")), ["x"]);
        drop(stack);
    }

    #[test]
    fn what_is_missing_or_no_directory_is_named() {
        let top = tree();
        fs::write(top.path().join("file"), "x").unwrap();
        refused(&top, &options(&top, &[], None), "no lower layer given");
        refused(&top, &options(&top, &["a", "nix"], Some("up")), "lower layer 2 ");
        refused(&top, &options(&top, &["a", "nix"], Some("up")), "nix: no such directory");
        refused(&top, &options(&top, &["file"], Some("up")), "file: not a directory");
        refused(&top, &options(&top, &["a"], Some("nix")), "upper layer");
        let gone = StackOptions { mount_point: Some("/nix\n/da".into()), ..options(&top, &["a"], None) };
        refused(&top, &gone, r#"mount point "/nix\n/da": no such directory"#);
        let lone = StackOptions { work: Some(top.path().join("b")), ..options(&top, &["a"], None) };
        refused(&top, &lone, "only with an upper");
    }

    #[test]
    fn a_directory_given_twice_is_found_by_identity() {
        let top = tree();
        symlink("a", top.path().join("link")).unwrap();
        refused(
            &top,
            &options(&top, &["a", "b", "b/../link"], None),
            "is the same directory as lower layer 1",
        );
        refused(&top, &options(&top, &["a"], Some("a")), "upper layer");
        let on_top =
            StackOptions { mount_point: Some(top.path().join("up")), ..options(&top, &["a"], Some("up")) };
        refused(&top, &on_top, "mount point");
    }

    #[test]
    fn paths_are_resolved_by_the_kernel() {
        let top = tree();
        fs::create_dir_all(top.path().join("deep/er")).unwrap();
        symlink("../deep/er", top.path().join("b/jump")).unwrap();
        // By the letter this is b/../a; b/jump/.. is deep.
        fs::create_dir(top.path().join("deep/a")).unwrap();
        let stack = Stack::open(&options(&top, &["b/jump/../a"], None)).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!(
            stack.lowers[0].directory().unwrap().ino,
            fs::metadata(top.path().join("deep/a")).unwrap().ino()
        );
    }

    #[test]
    fn nesting_is_refused_where_it_would_loop() {
        let top = tree();
        refused(&top, &options(&top, &["up/in"], Some("up")), "lies inside upper layer");
        let at = top.path().join("up/in");
        let inside = StackOptions { mount_point: Some(at.clone()), ..options(&top, &["a"], Some("up")) };
        refused(&top, &inside, "lies inside upper layer");
        let work = StackOptions { work: Some(at.clone()), ..options(&top, &["a"], Some("up")) };
        refused(&top, &work, "workdir");
        let made = StackOptions { work: Some(at.join("new")), ..options(&top, &["a"], Some("up")) };
        refused(&top, &made, "workdir");
        assert!(names(&at).is_empty());
        let around = StackOptions { work: Some(top.path().into()), ..options(&top, &["a"], Some("up")) };
        refused(&top, &around, "lies inside workdir");
        // Harmless: both are only read; and layers may lie below the mount point.
        Stack::open(&options(&top, &["a/in", "a"], None)).unwrap();
        let below =
            StackOptions { mount_point: Some(top.path().into()), ..options(&top, &["a"], Some("up")) };
        Stack::open(&below).unwrap();
    }

    #[test]
    fn a_lower_may_hold_all_else_and_does_not_show_it() {
        let top = tree();
        for dir in ["a/in/up", "a/in/work", "a/in/mnt"] {
            fs::create_dir(top.path().join(dir)).unwrap();
        }
        let id = |dir: &str| locate(fs::File::open(top.path().join(dir)).unwrap().as_fd()).unwrap().id;
        let inside = StackOptions {
            work: Some(top.path().join("a/in/work")),
            mount_point: Some(top.path().join("a/in/mnt")),
            ..options(&top, &["b", "a"], Some("a/in/up"))
        };
        let veils = Stack::open(&inside).unwrap().veils;
        assert_eq!(veils.holders, [1]);
        assert_eq!(veils.parts, ["a/in/up", "a/in/work", "a/in/mnt"].map(|dir| (id(dir).dev, id(dir).ino)));
        let outside = Stack::open(&options(&top, &["b", "a"], Some("up"))).unwrap().veils;
        assert!(outside.parts.is_empty() && outside.holders.is_empty() && outside.covered.is_none());
    }

    #[test]
    fn an_upper_and_a_workdir_serve_one_mount_at_a_time() {
        let top = tree();
        let first = Stack::open(&options(&top, &["a"], Some("up"))).unwrap();
        refused(&top, &options(&top, &["b"], Some("up")), "upper layer");
        refused(&top, &options(&top, &["b"], Some("up")), "in use by another mount");
        fs::create_dir(top.path().join("up2")).unwrap();
        let shared =
            StackOptions { work: Some(top.path().join(".up.work")), ..options(&top, &["a"], Some("up2")) };
        refused(&top, &shared, "workdir");
        // Read-only mounts share freely.
        Stack::open(&options(&top, &["b"], None)).unwrap();
        drop(first);
        Stack::open(&options(&top, &["b"], Some("up"))).unwrap();
    }

    #[test]
    fn a_new_mount_waits_for_the_old_daemon() {
        let top = tree();
        let first = Stack::open(&options(&top, &["a"], Some("up"))).unwrap();
        let (go, gone) = std::sync::mpsc::channel();
        let ending = std::thread::spawn(move || {
            gone.recv().unwrap();
            drop(first);
        });
        go.send(()).unwrap();
        let patient =
            StackOptions { lock_wait: Duration::from_secs(60), ..options(&top, &["a"], Some("up")) };
        let second = Stack::open(&patient).unwrap();
        ending.join().unwrap();
        assert_eq!(names(&top.path().join(".up.work")), ["index.unionmount", "work"]);
        drop(second);
    }

    fn with_work(top: &TempDir) -> StackOptions {
        StackOptions { work: Some(top.path().join("w")), ..options(top, &["a"], Some("up")) }
    }

    #[test]
    fn a_named_workdir_is_made_and_stays() {
        let top = tree();
        drop(Stack::open(&with_work(&top)).unwrap());
        assert!(names(&top.path().join("w")).is_empty());
        let deep = StackOptions { work: Some(top.path().join("no/w")), ..with_work(&top) };
        refused(&top, &deep, "no such directory");
    }

    #[test]
    fn foreign_things_in_the_workdir_are_refused_and_untouched() {
        let top = tree();
        fs::create_dir(top.path().join("w")).unwrap();
        fs::write(top.path().join("w/thesis.tex"), "x").unwrap();
        refused(&top, &with_work(&top), "holds thesis.tex");
        assert_eq!(names(&top.path().join("w")), ["thesis.tex"]);
        fs::remove_file(top.path().join("w/thesis.tex")).unwrap();
        fs::write(top.path().join("w/work"), "x").unwrap();
        refused(&top, &with_work(&top), "holds work");
    }

    #[test]
    fn what_other_overlays_leave_is_taken_over() {
        let top = tree();
        // fuse-overlayfs 2, the kernel (mode 0, a crash's leftovers), the kernel's index.
        fs::create_dir_all(top.path().join("w/work/#1a/x")).unwrap();
        fs::create_dir_all(top.path().join("w/work/incompat")).unwrap();
        fs::create_dir_all(top.path().join("w/index")).unwrap();
        fs::write(top.path().join("w/index/00fb"), "x").unwrap();
        fs::write(top.path().join("w/17"), "x").unwrap();
        fs::set_permissions(top.path().join("w/work"), fs::Permissions::from_mode(0o0)).unwrap();
        let stack = Stack::open(&with_work(&top)).unwrap();
        assert!(names(&top.path().join("w/work")).is_empty());
        assert_eq!(fs::metadata(top.path().join("w/work")).unwrap().permissions().mode() & 0o7777, 0o700);
        drop(stack);
        assert_eq!(names(&top.path().join("w")), ["17", "index"]);
    }

    #[test]
    fn staging_inherits_no_setgid_bit() {
        let top = tree();
        fs::create_dir(top.path().join("w")).unwrap();
        fs::set_permissions(top.path().join("w"), fs::Permissions::from_mode(0o2755)).unwrap();
        let _stack = Stack::open(&with_work(&top)).unwrap();
        assert_eq!(fs::metadata(top.path().join("w/work")).unwrap().permissions().mode() & 0o7777, 0o700);
    }

    #[test]
    fn a_volatile_mount_that_did_not_end_is_refused() {
        let top = tree();
        let volatile = StackOptions { volatile: true, ..with_work(&top) };
        let marker = top.path().join("w/work/incompat/volatile");
        let stack = Stack::open(&volatile).unwrap();
        assert_eq!(names(&marker), ["dirty"]);
        // As if killed: the locks go, nothing is closed.
        let upper = stack.upper.unwrap();
        std::mem::forget(upper.work);
        drop((upper.layer, upper.lock));
        fs::rename(top.path().join("w"), top.path().join("w-locked")).unwrap();
        fs::create_dir_all(&marker).unwrap();
        fs::write(marker.join("dirty"), "").unwrap();
        for options in [&volatile, &with_work(&top)] {
            refused(&top, options, "volatile and not unmounted cleanly");
            refused(&top, options, &format!("remove {}", marker.display()));
        }
        fs::remove_dir_all(&marker).unwrap();
        drop(Stack::open(&volatile).unwrap());
        assert_eq!(names(&marker), ["clean", "dirty"]);
    }

    #[test]
    fn a_volatile_mount_that_ended_is_taken_over_in_the_same_boot_only() {
        let top = tree();
        let volatile = StackOptions { volatile: true, ..with_work(&top) };
        let marker = top.path().join("w/work/incompat/volatile");
        drop(Stack::open(&volatile).unwrap());
        drop(Stack::open(&volatile).unwrap());
        fs::write(marker.join("clean"), "another boot").unwrap();
        refused(&top, &volatile, "not unmounted cleanly");
        fs::remove_dir_all(&marker).unwrap();
        drop(Stack::open(&volatile).unwrap());
        // Not volatile: synced once, and the mark goes.
        drop(Stack::open(&with_work(&top)).unwrap());
        assert!(names(&top.path().join("w")).is_empty());
    }

    #[test]
    fn an_unknown_incompatible_feature_is_refused() {
        let top = tree();
        fs::create_dir_all(top.path().join("w/work/incompat/future")).unwrap();
        refused(&top, &with_work(&top), "overlay feature future");
    }

    #[test]
    fn marks_can_be_kept_in_the_user_namespace() {
        let top = tree();
        let user = StackOptions { xattr: XattrChoice::User, ..options(&top, &["a"], Some("up")) };
        let stack = Stack::open(&user).unwrap();
        assert_eq!(stack.upper.as_ref().unwrap().caps.namespace, Namespace::User);
    }

    #[test]
    fn six_hundred_layers_open() {
        let top = tree();
        let lowers: Vec<String> = (0..600).map(|i| format!("l{i}")).collect();
        for dir in &lowers {
            fs::create_dir(top.path().join(dir)).unwrap();
        }
        let lowers: Vec<&str> = lowers.iter().map(String::as_str).collect();
        let stack = Stack::open(&options(&top, &lowers, Some("up"))).unwrap();
        assert_eq!(stack.lowers.len(), 600);
    }

    #[test]
    fn a_long_name_still_gets_a_workdir() {
        let top = tree();
        let long = "n".repeat(255);
        fs::create_dir(top.path().join(&long)).unwrap();
        let stack = Stack::open(&options(&top, &["a"], Some(&long))).unwrap();
        assert!(names(top.path()).iter().any(|n| n.starts_with(".unionmount-") && n.ends_with(".work")));
        drop(stack);
        assert_eq!(names(top.path()), ["a", "b", "mnt", &long, "up"]);
    }
}
