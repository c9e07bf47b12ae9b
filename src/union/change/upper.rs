//! The upper layer: the only part of the union that can write.
//!
//! Whatever is to appear in the upper is made in the staging directory of the workdir first, with owner, mode,
//! attributes and data, and then **published**: one rename or link makes it visible whole. So a crash at any instant
//! leaves the old state or the new one, and the staging directory is emptied by the next mount.
//!
//! A deletion that must leave a whiteout is one step too: the whiteout is renamed over the removed entry.

#![allow(
    clippy::disallowed_methods,
    reason = "what it makes is its own, and what it holds was held against what the kernel knows"
)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use dashmap::DashMap;
use parking_lot::Mutex;
use rustix::fs::{self, AtFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::error::Result;
use crate::sys::descriptors::Outgoing;
use crate::sys::object::{At, Writable};
use crate::sys::{copy, filesystem};
use crate::union::change::failpoint::{self, Failpoint};
use crate::union::change::lend::with_rights;
use crate::union::change::new::New;
use crate::union::escaped_path::EscapedPath;
use crate::union::hardlinks::counts::Hidden;
use crate::union::hardlinks::link_index::{LinkIndex, Mending};
use crate::union::lookup::marker::{MarkerForms, WH_OPAQUE};
use crate::union::lookup::private::Namespace;
use crate::union::lookup::realdir::RealDir;
use crate::union::nodes::node::InodeId;
use crate::union::nodes::region::Regions;
use crate::union::quota::mark::{Mark, QUOTA};
use crate::union::quota::state::QuotaTaken;
use crate::union::quota::taken::{Bounds, Growth};
use crate::union::quota::{Quota, WatchedDir};
use crate::union::stack::layer::state::UpperState;
use crate::union::stack::layer::{UpperCaps, UpperLayer};

/// The descriptor of a directory of the upper.
#[derive(Debug, Clone)]
pub struct UpperFd {
    fd: Arc<OwnedFd>,
    real: Arc<RealDir>,
    /// Has it counted anew in the end, where there is a quota.
    _watched: Option<Arc<WatchedDir>>,
}

impl UpperFd {
    /// Returns the descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Returns the descriptor, to be kept.
    pub fn shared(&self) -> Arc<OwnedFd> {
        self.fd.clone()
    }

    /// Notes that the directory holds a whiteout of AUFS's form from now on.
    pub(in crate::union) fn note_aufs_whiteout(&self) {
        self.real.set_forms(MarkerForms { aufs_whiteouts: true, ..self.real.forms().unwrap_or_default() });
    }

    /// Returns the entry `name`, whatever it is: to be looked at. What is changed comes as an
    /// [`Object`](crate::union::nodes::verified::Object).
    pub fn entry<'a>(&'a self, name: &'a [u8]) -> At<'a> {
        At::Name(self.fd(), name)
    }

    /// Returns whether it is that directory as well.
    pub(in crate::union) fn is(&self, other: &UpperFd) -> bool {
        Arc::ptr_eq(&self.real, &other.real)
    }

    /// Returns the directory itself.
    pub fn itself(&self) -> Writable<'_> {
        Writable::held(self.fd())
    }
}

/// What a name of the upper is taken from.
#[derive(Debug, Clone, Copy)]
pub enum Present<'a> {
    /// Anything but a directory. (A directory in its place is never taken for one.)
    Leaf,
    /// A directory that was just made, with nothing in it.
    Empty,
    /// That directory.
    Directory(&'a RealDir),
}

/// The upper layer and its workdir.
#[derive(Debug)]
pub struct Upper {
    pub(in crate::union) layer: UpperLayer,
    /// fsync nothing: the user said that the upper need not survive a crash.
    pub(in crate::union::change) volatile: bool,
    pub(in crate::union::change) one_journal: bool,
    has_journal: bool,
    closed: AtomicBool,
    /// Something in the hardlink index is to be mended once no other one has it in use.
    to_mend: AtomicBool,
    /// How many changes that hide or exchange something were begun and ended on a filesystem without one journal, and how
    /// many had ended when all was last written to the disk; see [`Upper::hiding`].
    hiding_begun: AtomicU64,
    hiding_ended: AtomicU64,
    hidden_on_disk: AtomicU64,
    pub(in crate::union::change) regions: Arc<Regions>,
    pub(in crate::union::change) next: AtomicU64,
    /// The name, in the staging directory, of the whiteout that all others are links to.
    pub(in crate::union::change) whiteout: Mutex<Option<Vec<u8>>>,
    pub(in crate::union::change) links: LinkIndex,
    pub(in crate::union::change) quota: Option<Arc<Quota>>,
    /// Whether files of its own filesystem can share extents with it, once that was tried.
    shares: OnceLock<bool>,
    /// Whether each change has a time of its own, once that was tried.
    tells_changes_apart: OnceLock<bool>,
}

impl Upper {
    /// Takes the layer over. Reads the hardlink index; nothing in it is changed as long as another one has it in use. `roots`: of a layer on each filesystem. `bounds`: what it may take.
    pub fn new(
        mut layer: UpperLayer,
        regions: Arc<Regions>,
        roots: Vec<Option<Arc<OwnedFd>>>,
        bounds: Bounds,
    ) -> Result<Upper> {
        let (volatile, closed) = (layer.work.volatile(), AtomicBool::new(layer.is_of_another));
        let links = LinkIndex::of(&layer, roots)?;
        let mending = if layer.is_of_another { Mending::Later } else { Mending::AtOnce };
        let to_mend = AtomicBool::new(links.read(&layer, &regions, mending)?);
        let has_journal = filesystem::has_journal(layer.layer.root.as_fd());
        let told = layer.counted.take();
        let quota = counted(&layer, told, bounds)?;
        let one_journal = has_one_journal(fs::fstatfs(&layer.layer.root)?.f_type as u64);
        Ok(Upper {
            layer,
            volatile,
            one_journal,
            has_journal,
            closed,
            to_mend,
            hiding_begun: AtomicU64::new(0),
            hiding_ended: AtomicU64::new(0),
            hidden_on_disk: AtomicU64::new(0),
            regions,
            next: AtomicU64::new(0),
            whiteout: Mutex::new(None),
            links,
            quota,
            shares: OnceLock::new(),
            tells_changes_apart: OnceLock::new(),
        })
    }

    /// Tells whether a copy of a file on that device can share its extents, so that it needs no data of its own.
    pub(in crate::union) fn shares_with(&self, device: u64) -> Result<bool> {
        // Tests of a unit are there to have files half-copied, wherever they run.
        if cfg!(test) || device != At::Fd(self.root()).stat()?.dev {
            return Ok(false);
        }
        Ok(*self.shares.get_or_init(|| self.can_share().unwrap_or(false)))
    }

    /// Tries whether two files of its filesystem can share extents. What is so made goes at once.
    fn can_share(&self) -> Result<bool> {
        let [from, to] = [self.unnamed_file(0o600)?, self.unnamed_file(0o600)?];
        copy::write_all_at(from.as_fd(), &[1], 0)?;
        Ok(copy::share(from.as_fd(), to.as_fd(), 1)?)
    }

    /// Tells whether each change of an object, after a look at it, has a change time of its own.
    pub(in crate::union) fn tells_changes_apart(&self) -> bool {
        *self.tells_changes_apart.get_or_init(|| filesystem::tells_changes_apart(self.staging()))
    }

    /// Returns what the upper's filesystem can do.
    pub fn caps(&self) -> &UpperCaps {
        &self.layer.caps
    }

    /// Tells whether changes need not survive a crash.
    pub fn is_volatile(&self) -> bool {
        self.volatile
    }

    /// Tells whether an fsync of one object writes all changes of names that came before it.
    pub(in crate::union) fn has_one_journal(&self) -> bool {
        self.one_journal
    }

    /// Tells whether a new object's attributes are on the disk before its name is, without a sync.
    pub(in crate::union) fn orders_names(&self) -> bool {
        self.has_journal
    }

    /// Declares a descriptor to be one of a directory of the upper.
    pub(in crate::union) fn own(&self, fd: Arc<OwnedFd>, dir: Arc<RealDir>) -> UpperFd {
        let watched = self.quota().map(|quota| Arc::new(quota.watch(fd.clone())));
        UpperFd { fd, real: dir, _watched: watched }
    }

    /// Returns the regions of the stack.
    pub(in crate::union) fn regions(&self) -> &Regions {
        &self.regions
    }

    /// Returns the hardlink index.
    pub(in crate::union) fn links(&self) -> &LinkIndex {
        &self.links
    }

    /// Returns the directory of the hardlink index.
    pub(in crate::union) fn index_dir(&self) -> BorrowedFd<'_> {
        self.layer.work.index.as_fd()
    }

    /// Returns the root of the upper.
    pub(in crate::union) fn root(&self) -> BorrowedFd<'_> {
        self.layer.layer.root.as_fd()
    }

    pub(in crate::union) fn staging(&self) -> BorrowedFd<'_> {
        self.layer.work.staging.as_fd()
    }

    pub(in crate::union::change) fn fresh_name(&self) -> Vec<u8> {
        format!("#{:x}", self.next.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }

    /// Makes a change that hides what a lower has, or moves what hides it.
    ///
    /// On btrfs an fsync writes a log of single objects: replayed after a power failure, it can take a name away because its
    /// object is elsewhere now, and not bring the whiteout that took the name, and the lower's object would show through.
    /// So the first sync after such a change, of whatever object, writes all that the filesystem holds back.
    pub(in crate::union::change) fn hiding<R>(&self, change: impl FnOnce() -> R) -> R {
        let note = |counter: &AtomicU64| {
            if !self.one_journal {
                counter.fetch_add(1, Ordering::AcqRel);
            }
        };
        note(&self.hiding_begun);
        let done = change();
        note(&self.hiding_ended);
        done
    }

    /// Writes what was published to disk, unless the upper need not survive a crash.
    pub fn sync(&self, fd: BorrowedFd<'_>, data_only: bool) -> Result<()> {
        if self.volatile {
            return Ok(());
        }
        // Each sync sees to it itself: one that relied on another's would return before that is done.
        // What has begun and not ended may be done already: it counts as not written.
        let ended = self.hiding_ended.load(Ordering::Acquire);
        if self.hidden_on_disk.load(Ordering::Acquire) < self.hiding_begun.load(Ordering::Acquire) {
            // Names are the journal's, which is written.
            #[expect(clippy::disallowed_methods, reason = "whether data are flushed is for the fsync below")]
            fs::syncfs(fd)?;
            self.hidden_on_disk.fetch_max(ended, Ordering::AcqRel);
        }
        Ok(if data_only { fs::fdatasync(fd) } else { fs::fsync(fd) }?)
    }

    /// Writes all that the upper's filesystem holds back, unless the upper need not survive a crash.
    pub fn sync_all(&self) -> Result<()> {
        if self.volatile {
            return Ok(());
        }
        let ended = self.hiding_ended.load(Ordering::Acquire);
        let staging = At::Fd(self.staging()).open_directory()?;
        filesystem::sync(staging)?;
        self.hidden_on_disk.fetch_max(ended, Ordering::AcqRel);
        Ok(())
    }

    /// Returns an unnamed file in the upper's filesystem (O_TMPFILE), to be linked later or never, with these permission bits as
    /// far as the daemon's umask leaves them.
    pub fn unnamed_file(&self, mode: u32) -> Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        Ok(fs::openat(self.staging(), ".", flags, Mode::from_raw_mode(mode))?)
    }

    /// Declares an open file that was made here to be one of the upper.
    pub(in crate::union) fn own_file<'a>(&self, file: BorrowedFd<'a>) -> Writable<'a> {
        Writable::held(file)
    }

    /// Returns the full name of an overlay mark in the upper's namespace.
    pub fn mark_name(&self, mark: &str) -> Vec<u8> {
        self.caps().namespace.name(mark).into_bytes()
    }

    /// Sets an overlay mark.
    pub fn set_mark(&self, object: Writable<'_>, mark: &str, value: &[u8]) -> Result<()> {
        let name = self.mark_name(mark);
        self.growing(object.at(), Growth::None, || {
            with_rights(object, 0o200, || object.set_xattr(&name, value, XattrFlags::empty()))
        })?;
        changed();
        Ok(())
    }

    /// Takes an overlay mark away, if it is there.
    pub(in crate::union) fn drop_mark(&self, object: Writable<'_>, mark: &str) -> Result<()> {
        let name = self.mark_name(mark);
        let removed = self
            .growing(object.at(), Growth::None, || with_rights(object, 0o200, || object.remove_xattr(&name)));
        match removed {
            Ok(()) | Err(Errno::NODATA) => changed(),
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    /// Makes a directory opaque: what lies below it doesn't count.
    pub fn make_opaque(&self, directory: Writable<'_>) -> Result<()> {
        if self.caps().xattr {
            return self.set_mark(directory, "opaque", b"y");
        }
        let pin = directory.at().pin()?;
        match self.make_in_any_case(pin.as_fd(), WH_OPAQUE, New::File, 0o600) {
            // Whatever it is that has the name, the directory is opaque by it.
            Ok(_) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        changed();
        Ok(())
    }

    /// Does as [`Upper::set_mark`], for a mark that the tree is right without: the kernel allows `user.` attributes
    /// only on regular files and directories.
    pub fn set_mark_if_allowed(&self, object: Writable<'_>, mark: &str, value: &[u8]) -> Result<()> {
        let set = || object.set_xattr(&self.mark_name(mark), value, XattrFlags::empty());
        match self.growing(object.at(), Growth::None, set) {
            Err(Errno::PERM) if self.caps().namespace == Namespace::User => Ok(()),
            Err(_) if !self.caps().xattr => Ok(()),
            other => Ok(other?),
        }
    }

    /// Takes the workdir over from the upper before this one, of the same mount: that one leaves it alone from here on.
    pub(in crate::union) fn take_over(&self, before: &Upper) {
        before.closed.store(true, Ordering::SeqCst);
        before.remove_whiteout();
        self.next.store(before.next.load(Ordering::Relaxed), Ordering::Relaxed);
        self.doubt_what_is_hidden();
        self.closed.store(false, Ordering::SeqCst);
        self.mend();
    }

    /// Returns how many names of lower files with several are hidden.
    ///
    /// # Errors
    /// Those of reading the hardlink index.
    pub(in crate::union) fn read_hidden_links(&self) -> Result<DashMap<InodeId, Hidden>> {
        let of_another = self.closed.load(Ordering::SeqCst);
        let (hidden, has_left) =
            self.hidden_links(if of_another { Mending::Later } else { Mending::AtOnce })?;
        self.to_mend.fetch_or(has_left, Ordering::AcqRel);
        Ok(hidden)
    }

    /// Mends what was left in the hardlink index while another one had it in use. Nobody asks meanwhile. What can't be mended stays to
    /// be, and holds the rest up in nothing.
    fn mend(&self) {
        if !self.to_mend.swap(false, Ordering::AcqRel) {
            return;
        }
        let copies = self.links.read(&self.layer, &self.regions, Mending::AtOnce).map(drop);
        let hidden = self.hidden_links(Mending::AtOnce).map(drop);
        for e in [copies, hidden].into_iter().filter_map(Result::err) {
            self.to_mend.store(true, Ordering::Release);
            log::error!(
                "something in the hardlink index can't be mended, and will be refused by the next mount: {e}"
            );
        }
    }

    /// Returns what another process goes on with.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(in crate::union) fn state(&self, fds: &mut Outgoing) -> std::io::Result<UpperState> {
        let whiteout = self.whiteout.lock().clone().map(EscapedPath);
        let quota = self.quota.as_ref().map(|quota| quota.state(fds)).transpose()?;
        Ok(UpperState { next: self.next.load(Ordering::Relaxed), whiteout, quota, ..self.layer.state(fds)? })
    }

    /// Goes on with what another process has in the staging directory.
    pub(in crate::union) fn stage_on(&self, next: u64, whiteout: Option<Vec<u8>>) {
        self.next.store(next, Ordering::Relaxed);
        *self.whiteout.lock() = whiteout;
        self.doubt_what_is_hidden();
    }

    /// Takes what was hidden before for not written: the next sync writes it, whoever hid it.
    fn doubt_what_is_hidden(&self) {
        if !self.one_journal {
            [&self.hiding_begun, &self.hiding_ended].iter().for_each(|count| {
                count.fetch_add(1, Ordering::AcqRel);
            });
        }
    }

    /// Makes the workdir this process's to close: another one had it in use, and doesn't go on.
    pub(in crate::union) fn go_on(&self) {
        self.layer.go_on();
        self.closed.store(false, Ordering::SeqCst);
        self.mend();
    }

    /// Removes the whiteout that all others are links to.
    fn remove_whiteout(&self) {
        if let Some(name) = self.whiteout.lock().take()
            && let Err(e) = self.remove_name(self.staging(), &name, AtFlags::empty())
        {
            log::warn!("workdir: {}: {e}", String::from_utf8_lossy(&name));
        }
    }

    /// Leaves nothing in the workdir but what the next mount needs: a clean unmount. `served`: somebody may change something still.
    pub fn close(&self, served: bool) {
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        self.remove_whiteout();
        self.close_quota(served);
        if let Err(e) = self.layer.work.close() {
            log::error!("{e}");
        }
    }
}

impl Drop for Upper {
    fn drop(&mut self) {
        // It has descriptors of lowers.
        self.links.close();
        self.close(false);
    }
}

/// Counts what an upper takes, where it may take so much only. Where there is no limit nobody counts, and what was counted is
/// forgotten. `told`: what another process has counted of it.
fn counted(layer: &UpperLayer, told: Option<QuotaTaken>, bounds: Bounds) -> Result<Option<Arc<Quota>>> {
    let root = layer.layer.root.as_fd();
    let name = layer.caps.xattr.then(|| layer.caps.namespace.name(QUOTA).into_bytes());
    let mark = Mark::new(root, layer.work.root.as_fd(), name, !layer.work.volatile())?;
    if let Some(told) = told {
        return Ok(Some(Arc::new(Quota::of_state(told, mark, root, bounds)?)));
    }
    if !bounds.are_set() {
        return mark.take().map(|_| None).map_err(Into::into);
    }
    Ok(Some(Arc::new(Quota::open(mark, root, bounds)?)))
}

/// Tells whether a filesystem of this type (`f_type`, see statfs(2)) commits changes of directories in the order in
/// which they were made, each with all that came before: ext4 (the ordered and writeback modes differ in data only) and
/// XFS.
fn has_one_journal(filesystem: u64) -> bool {
    const EXT4: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    matches!(filesystem, EXT4 | XFS)
}

pub(in crate::union) fn changed() {
    failpoint::reached(Failpoint::Changed);
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::union::bed::{Bed, look_up};
    use crate::union::data::file::Write;
    use crate::union::stack::layer::{Stack, StackOptions, XattrChoice};
    use crate::union::{Limits, Union};

    /// Makes a union whose upper is said to be on a filesystem without one journal, as btrfs is.
    fn without_journal(bed: &Bed) -> Union {
        let mut union = bed.open();
        union.upper.as_mut().unwrap().one_journal = false;
        union
    }

    fn on_disk(upper: &Upper) -> (u64, u64) {
        (upper.hiding_begun.load(Ordering::Relaxed), upper.hidden_on_disk.load(Ordering::Relaxed))
    }

    #[test]
    fn the_first_sync_after_something_was_hidden_writes_all() {
        let bed = Bed::new(1);
        bed.file("0/f").file("0/g");
        let union = without_journal(&bed);
        let upper = union.upper.as_ref().unwrap();
        union.unlink(union.root(), b"f").unwrap();
        let (begun, written) = on_disk(upper);
        assert!(begun > written, "{begun} {written}");
        let file = upper.unnamed_file(0o600).unwrap();
        upper.sync(file.as_fd(), true).unwrap();
        assert_eq!(on_disk(upper), (begun, begun));
    }

    #[test]
    fn what_is_being_hidden_during_a_sync_is_left_to_the_next() {
        let bed = Bed::new(1);
        let union = without_journal(&bed);
        let upper = union.upper.as_ref().unwrap();
        let file = upper.unnamed_file(0o600).unwrap();
        upper.hiding(|| {
            upper.sync(file.as_fd(), false).unwrap();
            upper.sync_all().unwrap();
            assert_eq!(on_disk(upper), (1, 0), "it may not be there yet");
        });
        upper.sync_all().unwrap();
        assert_eq!(on_disk(upper), (1, 1));
    }

    #[test]
    fn one_journal_needs_none_of_that() {
        let bed = Bed::new(1);
        bed.file("0/f");
        let mut union = bed.open();
        union.upper.as_mut().unwrap().one_journal = true;
        union.unlink(union.root(), b"f").unwrap();
        assert_eq!(on_disk(union.upper.as_ref().unwrap()), (0, 0));
        let ext4_xfs_btrfs = [0xef53, 0x5846_5342, 0x9123_683e].map(has_one_journal);
        assert_eq!(ext4_xfs_btrfs, [true, true, false]);
    }

    #[test]
    fn what_cannot_be_mended_holds_nothing_else_up_and_is_tried_again() {
        let index = ".upper.work/index.unionmount";
        let bed = Bed::new(1);
        bed.file("0/f");
        std::fs::hard_link(bed.at("0/f"), bed.at("0/f2")).unwrap();
        let mut options =
            StackOptions { upper: Some(bed.at("upper")), xattr: XattrChoice::User, ..Default::default() };
        options.lowers = vec![bed.at("0").into()];
        let union = Union::new(Stack::open(&options).unwrap(), Limits::default()).unwrap();
        let upper = union.upper().unwrap();
        if !upper.caps().xattr {
            return support::skipped("the filesystem of the scratch directories keeps no marks");
        }
        let node = look_up(&union, "f").unwrap();
        union.write(&node, 0, b"X", Write::default()).unwrap();
        let [entry] = bed.names(index).try_into().unwrap();
        let (region, _) = entry.split_once('-').unwrap();
        // Of a copy without names, which can't go as a copy does.
        let stuck = bed.at(index).join(format!("{region}-1"));
        std::fs::create_dir(&stuck).unwrap();
        fs::setxattr(&stuck, "user.overlay.nlink", b"=0", XattrFlags::empty()).unwrap();
        // And of what was never hidden.
        let mend = || {
            upper.links.indexed.write().clear();
            std::fs::write(bed.at(index).join(format!("{region}-5.hiding")), "").unwrap();
            upper.to_mend.store(true, Ordering::Relaxed);
            upper.mend();
            assert!(upper.has_index(), "what can be read is known");
            assert!(!bed.names(index).iter().any(|name| name.ends_with(".hiding")));
            upper.to_mend.load(Ordering::Relaxed)
        };
        assert!(mend(), "it is to be tried again");
        std::fs::remove_dir(&stuck).unwrap();
        assert!(!mend());
    }

    #[test]
    fn a_directory_is_opaque_by_a_file_where_attributes_are_missing() {
        let bed = Bed::new(1);
        bed.file("0/d/below").dir("upper/d").file("0/e/below").dir("upper/e");
        for (dir, attributes) in [("d", true), ("e", false)] {
            let mut union = bed.open();
            union.upper.as_mut().unwrap().layer.caps.xattr &= attributes;
            let at = std::fs::File::open(bed.at("upper").join(dir)).unwrap();
            union.upper.as_ref().unwrap().make_opaque(Writable::held(at.as_fd())).unwrap();
            // Twice is as good as once.
            union.upper.as_ref().unwrap().make_opaque(Writable::held(at.as_fd())).unwrap();
            drop(union);
            let union = bed.open();
            let node = crate::union::bed::look_up(&union, dir).unwrap();
            assert!(union.lookup(&node, b"below").unwrap().is_none(), "{dir}");
        }
        assert_eq!(bed.names("upper/e"), [".wh..wh..opq"]);
    }

    #[test]
    fn what_is_staged_has_a_name_of_its_own_and_nothing_is_left() {
        let bed = Bed::new(1);
        bed.file("0/f");
        let union = bed.open();
        let upper = union.upper.as_ref().unwrap();
        assert_ne!(upper.fresh_name(), upper.fresh_name());
        union.unlink(union.root(), b"f").unwrap();
        drop(upper.unnamed_file(0o600).unwrap());
        let work = bed.at(".upper.work");
        assert!(work.join("work").is_dir());
        drop(union);
        assert!(!work.exists(), "the shared whiteout went, and the workdir with it");
    }
}
