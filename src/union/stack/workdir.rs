//! The workdir: where an upper's objects are prepared before one rename or link publishes them.
//!
//! # On disk
//!
//! ```text
//! WORKDIR/                    given with --work, or made beside the upper as `.NAME.work`
//!   work/                     staging. Emptied at mount; removed at a clean unmount
//!     incompat/volatile/      there while the upper is mounted volatile (the kernel's path, with its `dirty` inside)
//!       dirty
//!       clean                 boot id of a machine on which a volatile mount ended in order; ours
//!   index.unionmount/         one link for each copied-up inode that has several names below; removed when empty
//!   index/                    the same in the kernel's form (index=on), which root uses; removed when empty
//!   quota.unionmount          about how much the upper takes, while it is mounted with a limit
//! ```
//!
//! A workdir that the kernel's overlayfs or fuse-overlayfs has used is taken over; fuse-overlayfs 2 leaves objects with
//! numbers for names in WORKDIR itself, which are left alone. Anything else is foreign, and the mount refused, for the
//! user has named the wrong directory.
//!
//! # volatile
//!
//! With `volatile` nothing is synced, so that after a crash of the machine the upper may be torn. The kernel therefore
//! leaves `work/incompat/volatile` for good, and refuses the upper while it is there; containers/storage removes that
//! directory before it mounts. We mark likewise, refuse likewise, and add to it what lets an honest remount pass: a
//! clean unmount notes the boot id, and a mount in the same boot takes the upper over, since all that was written is in
//! the page cache at least. (If that next mount is not volatile, it syncs the filesystem once, and the mark goes.)

#![allow(clippy::disallowed_methods, reason = "the workdir is its own")]

pub(in crate::union) mod state;

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, fchmod, fremovexattr, fstat, mkdirat, openat, statat, unlinkat};
use rustix::io::Errno;

use crate::sys::filesystem;
use crate::sys::process;
use crate::sys::remove;
use crate::union::frozen::mark;
use crate::union::quota::mark::NOTE;
use crate::union::stack::directory::Layer;
use crate::union::stack::lock::DirLock;
use crate::union::stack::nesting::{Member, locate};
use crate::union::stack::place::parent_and_name;
use crate::union::stack::stack_error::{Role, StackError};

const STAGING: &str = "work";
const INDEX: &str = "index.unionmount";
/// The kernel's hardlink index.
pub(in crate::union) const KERNEL_INDEX: &str = "index";
const INCOMPAT: &str = "incompat";
const VOLATILE: &str = "volatile";
const DIRTY: &str = "dirty";
const CLEAN: &str = "clean";

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The directories that serve an upper. Dropping it closes it, see [`Workdir::close`].
#[derive(Debug)]
pub struct Workdir {
    /// As given or chosen; for messages only.
    pub path: PathBuf,
    /// The directory that was given as workdir.
    pub root: OwnedFd,
    /// `work/`: where objects are made before they are published. Ours alone, mode 0700, without default ACL. The name
    /// `incompat` in it is taken.
    pub staging: OwnedFd,
    /// `index.unionmount/`: the hardlink index. Kept from mount to mount.
    pub index: OwnedFd,
    /// Parent and name of a workdir that nobody named: it goes when it is empty.
    beside: Option<(OwnedFd, OsString)>,
    volatile: bool,
    closed: AtomicBool,
    _locks: [DirLock; 2],
}

/// A workdir that has been found or made, but not yet looked into.
pub(in crate::union) struct WorkdirPlace {
    pub path: PathBuf,
    pub root: OwnedFd,
    beside: Option<(OwnedFd, OsString)>,
    made: Undo,
}

fn member_of<'w>(root: &'w OwnedFd, path: &'w Path) -> Result<Member<'w>, StackError> {
    let at = locate(root.as_fd())
        .map_err(|errno| crate::union::stack::stack_error::open_error(Role::Work, path, errno))?;
    Ok(Member { role: Role::Work, path, id: at.id, fd: root.as_fd() })
}

/// Removes the directories that were made, last first, unless the mount has come about.
#[derive(Default)]
struct Undo(Vec<(OwnedFd, OsString)>);

impl Drop for Undo {
    fn drop(&mut self) {
        for (parent, name) in self.0.drain(..).rev() {
            if let Ok(dir) = openat(&parent, &name, DIR, Mode::empty())
                && let Err(error) = remove::empty(dir.as_fd(), &[])
            {
                log::warn!("cannot remove {}: {}", error.name.display(), error.errno);
            }
            if let Err(errno) = unlinkat(&parent, &name, AtFlags::REMOVEDIR) {
                log::warn!(
                    "cannot remove the directory {} that was made for the mount: {errno}",
                    name.display()
                );
            }
        }
    }
}

impl Undo {
    fn add(&mut self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
        self.0.push((
            parent.try_clone_to_owned().map_err(crate::union::stack::nesting::errno_of)?,
            name.to_owned(),
        ));
        Ok(())
    }
}

fn io(path: &Path, what: &'static str) -> impl Fn(Errno) -> StackError {
    let path = path.to_owned();
    move |errno| match errno {
        Errno::ROFS => StackError::ReadOnly { role: Role::Work, path: path.clone() },
        errno => StackError::Io { role: Role::Work, path: path.clone(), what, errno },
    }
}

impl WorkdirPlace {
    /// Returns its part among the directories of a mount.
    pub(in crate::union) fn member(&self) -> Result<Member<'_>, StackError> {
        member_of(&self.root, &self.path)
    }

    /// Opens the workdir that was named, and makes it if only its last component is missing.
    pub(in crate::union) fn named(path: &Path) -> Result<WorkdirPlace, StackError> {
        let mut made = Undo::default();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdir(path, Mode::RWXU).map_err(|errno| match errno {
                    Errno::NOENT => StackError::Missing { role: Role::Work, path: path.to_owned() },
                    errno => io(path, "make it")(errno),
                })?;
                let root = rustix::fs::open(path, flags, Mode::empty()).map_err(io(path, "open it"))?;
                let (parent, name) = parent_and_name(root.as_fd(), path)
                    .map_err(|why| StackError::NoDefaultWork { path: path.to_owned(), why })?;
                made.add(parent.as_fd(), &name).map_err(io(path, "open its parent"))?;
                Ok(root)
            }
            other => other,
        };
        let root =
            root.map_err(|errno| crate::union::stack::stack_error::open_error(Role::Work, path, errno))?;
        Ok(WorkdirPlace { path: path.to_owned(), root, beside: None, made })
    }

    /// Finds or makes `.NAME.work` beside the upper.
    pub(in crate::union) fn beside(upper: &Layer) -> Result<WorkdirPlace, StackError> {
        let no = |why| StackError::NoDefaultWork { path: upper.path.clone(), why };
        let (parent, upper_name) = parent_and_name(upper.root.as_fd(), &upper.path).map_err(no)?;
        let name = default_name(&upper_name, upper.ino);
        let path = upper.path.parent().unwrap_or(Path::new("")).join(&name);
        let mut made = Undo::default();
        match mkdirat(&parent, &name, Mode::RWXU) {
            Ok(()) => made.add(parent.as_fd(), &name).map_err(io(&path, "open its parent"))?,
            Err(Errno::EXIST) => {}
            Err(Errno::ACCESS | Errno::PERM) => {
                return Err(no("the directory that holds it is not writable"));
            }
            Err(errno) => return Err(io(&path, "make it")(errno)),
        }
        let root = openat(&parent, &name, DIR, Mode::empty())
            .map_err(|e| crate::union::stack::stack_error::open_error(Role::Work, &path, e))?;
        // In a shared directory such as /tmp somebody may have been there first, to see and change what is staged.
        let stat = fstat(&root).map_err(io(&path, "stat it"))?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(no("a directory of another user has its name"));
        }
        Ok(WorkdirPlace { path, root, beside: Some((parent, name)), made })
    }

    /// Locks the workdir, checks and cleans what is in it, and makes it ready. `upper` is locked already.
    pub(in crate::union) fn prepare(
        self,
        upper: &Layer,
        wait: std::time::Duration,
    ) -> Result<Prepared, StackError> {
        let WorkdirPlace { path, root, beside, mut made } = self;
        same_filesystem(root.as_fd(), &path, upper)?;
        let lock = DirLock::acquire(root.as_fd(), Role::Work, &path, wait)?;
        refuse_foreign(root.as_fd(), &path)?;
        let index = private_dir(root.as_fd(), INDEX, &path, &mut made)?;
        let index_lock = DirLock::acquire(index.as_fd(), Role::Work, &path, wait)?;
        let mark = take_over(root.as_fd(), &path, upper)?;

        sweep_staging(root.as_fd(), &path, mark)?;
        let staging = private_dir(root.as_fd(), STAGING, &path, &mut made)?;
        only_ours(staging.as_fd(), &path)?;
        let workdir = Workdir {
            path,
            root,
            staging,
            index,
            beside,
            volatile: false,
            // Until `begin`, dropping leaves the clean-up to `made`.
            closed: AtomicBool::new(true),
            _locks: [lock, index_lock],
        };
        Ok(Prepared { workdir, made, mark })
    }
}

/// A workdir ready for use, which undoes itself unless it is begun.
pub(in crate::union) struct Prepared {
    // Order matters: `made` is undone first, under the lock that `workdir` holds.
    made: Undo,
    pub workdir: Workdir,
    mark: Mark,
}

impl Prepared {
    /// Sets or clears the volatile mark; from here on the workdir is in use.
    pub(in crate::union) fn begin(mut self, volatile: bool) -> Result<Workdir, StackError> {
        let path = self.workdir.path.clone();
        let staging = self.workdir.staging.as_fd();
        if volatile {
            set_volatile(staging).map_err(io(&path, "mark it volatile"))?;
        } else if self.mark == Mark::CleanThisBoot {
            filesystem::sync(&self.workdir.root)
                .map_err(io(&path, "sync what an earlier volatile mount wrote"))?;
            // Only now: until it is on the disk, the mark is what says that it may not be.
            remove::entry(staging, INCOMPAT.as_bytes())
                .map_err(io(&path, "remove the mark of an earlier volatile mount"))?;
        }
        self.made.0.clear();
        self.workdir.volatile = volatile;
        self.workdir.closed = AtomicBool::new(false);
        Ok(self.workdir)
    }
}

impl Workdir {
    /// Returns the directory that was given as workdir, to be compared with others.
    pub(in crate::union) fn member(&self) -> Result<Member<'_>, StackError> {
        member_of(&self.root, &self.path)
    }

    /// Returns whether the upper is used without syncing.
    pub fn volatile(&self) -> bool {
        self.volatile
    }

    /// Leaves the workdir clean at the end of a mount: staging goes, an empty index goes, and with them a workdir that
    /// nobody named. After a volatile mount the mark stays, with the note that this mount ended in order.
    ///
    /// Works once; later calls do nothing. The locks are kept until the stack is dropped.
    pub fn close(&self) -> Result<(), StackError> {
        if self.closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let keep: &[&str] = if self.volatile { &[INCOMPAT] } else { &[] };
        remove::empty(self.staging.as_fd(), keep).map_err(|e| leftover(&self.path, Path::new(STAGING), e))?;
        if self.volatile {
            note_clean(self.staging.as_fd()).map_err(io(&self.path, "note the clean unmount"))?;
        } else {
            rmdir_if_empty(self.root.as_fd(), OsStr::new(STAGING))
                .map_err(io(&self.path, "remove work in it"))?;
        }
        self.remove_empty_indexes().map_err(io(&self.path, "remove the index in it"))?;
        if let Some((parent, name)) = &self.beside {
            rmdir_if_empty(parent.as_fd(), name).map_err(io(&self.path, "remove it"))?;
        }
        Ok(())
    }
}

impl Workdir {
    /// Removes the indexes that are empty. The one of the program's own form stays where it says of which upper the other one is.
    fn remove_empty_indexes(&self) -> rustix::io::Result<()> {
        rmdir_if_empty(self.root.as_fd(), OsStr::new(KERNEL_INDEX))?;
        let says_whose = || Ok::<_, Errno>(!mark::values(self.index.as_fd(), mark::OF_INDEX)?.is_empty());
        match statat(&self.root, KERNEL_INDEX, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
            Ok(_) if says_whose()? => return Ok(()),
            Ok(_) => {}
        }
        rmdir_if_empty(self.root.as_fd(), OsStr::new(INDEX))
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            log::error!("{error}");
        }
    }
}

/// Returns `.NAME.work`, or for a name too long for that, one made of the upper's inode number.
fn default_name(upper: &OsStr, ino: u64) -> OsString {
    const NAME_MAX: usize = 255;
    let mut name = OsString::from(".");
    name.push(upper);
    name.push(".work");
    if name.len() > NAME_MAX { OsString::from(format!(".unionmount-{ino:x}.work")) } else { name }
}

fn same_filesystem(root: BorrowedFd<'_>, path: &Path, upper: &Layer) -> Result<(), StackError> {
    let elsewhere =
        |what| StackError::WorkElsewhere { path: path.to_owned(), upper: upper.path.clone(), what };
    let work = locate(root).map_err(io(path, "stat it"))?;
    let upper_at = locate(upper.root.as_fd()).map_err(io(&upper.path, "stat it"))?;
    if work.id.dev != upper_at.id.dev {
        return Err(elsewhere("filesystem"));
    }
    // Two mounts of one filesystem: rename(2) between them fails with EXDEV all the same.
    if work.mount != upper_at.mount {
        return Err(elsewhere("mount"));
    }
    Ok(())
}

fn refuse_foreign(root: BorrowedFd<'_>, path: &Path) -> Result<(), StackError> {
    for name in remove::names(root).map_err(io(path, "list it"))? {
        let bytes = name.as_bytes();
        let known = [STAGING, INDEX, KERNEL_INDEX, NOTE].iter().any(|known| known.as_bytes() == bytes);
        if !known && !bytes.iter().all(u8::is_ascii_digit) {
            return Err(StackError::WorkForeign {
                path: path.to_owned(),
                name: OsStr::from_bytes(bytes).to_owned(),
            });
        }
    }
    Ok(())
}

/// What an earlier mount has left to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// Nothing.
    None,
    /// It was volatile, and ended in order since the machine was started.
    CleanThisBoot,
}

/// Reads `work/incompat`, and refuses what must not be taken over.
fn take_over(root: BorrowedFd<'_>, path: &Path, upper: &Layer) -> Result<Mark, StackError> {
    let marker = Path::new(STAGING).join(INCOMPAT);
    let look = |dir: BorrowedFd<'_>, name: &str, shown: &Path| match remove::enter(dir, &c_name(name)) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            Err(StackError::WorkForeign { path: path.to_owned(), name: shown.into() })
        }
        Err(errno) => Err(StackError::Leftover { path: path.to_owned(), name: shown.into(), errno }),
    };
    let Some(staging) = look(root, STAGING, Path::new(STAGING))? else { return Ok(Mark::None) };
    let Some(incompat) = look(staging.as_fd(), INCOMPAT, &marker)? else { return Ok(Mark::None) };
    for name in remove::names(incompat.as_fd()).map_err(io(path, "list its incompat marks"))? {
        if name.as_bytes() != VOLATILE.as_bytes() {
            return Err(StackError::Incompatible {
                path: path.to_owned(),
                feature: OsStr::from_bytes(name.as_bytes()).to_owned(),
            });
        }
    }
    let marker = marker.join(VOLATILE);
    let Some(volatile) = look(incompat.as_fd(), VOLATILE, &marker)? else { return Ok(Mark::None) };
    let noted = read_small(volatile.as_fd(), CLEAN);
    match (noted, process::boot_id()) {
        (Some(noted), Some(now)) if noted == now => Ok(Mark::CleanThisBoot),
        _ => Err(StackError::Volatile { path: upper.path.clone(), marker: path.join(marker) }),
    }
}

/// Removes what an earlier mount has staged, but not its mark.
fn sweep_staging(root: BorrowedFd<'_>, path: &Path, mark: Mark) -> Result<(), StackError> {
    let failed = |errno| StackError::Leftover { path: path.to_owned(), name: STAGING.into(), errno };
    let keep: &[&str] = if mark == Mark::CleanThisBoot { &[INCOMPAT] } else { &[] };
    match remove::enter(root, &c_name(STAGING)) {
        Ok(old) => remove::empty(old.as_fd(), keep).map_err(|e| leftover(path, Path::new(STAGING), e))?,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed(errno)),
    }
    if keep.is_empty() { unlinkat(root, STAGING, AtFlags::REMOVEDIR).map_err(failed) } else { Ok(()) }
}

fn leftover(path: &Path, within: &Path, error: remove::Leftover) -> StackError {
    StackError::Leftover { path: path.to_owned(), name: within.join(error.name), errno: error.errno }
}

/// Makes (or opens) a directory that only this process's user may enter, and whose children inherit nothing.
fn private_dir(
    root: BorrowedFd<'_>,
    name: &str,
    path: &Path,
    made: &mut Undo,
) -> Result<OwnedFd, StackError> {
    match mkdirat(root, name, Mode::RWXU) {
        Ok(()) => made.add(root, OsStr::new(name)).map_err(io(path, "open it"))?,
        Err(Errno::EXIST) => {}
        Err(errno) => return Err(io(path, "make directories in it")(errno)),
    }
    let dir = remove::enter(root, &c_name(name)).map_err(io(path, "open a directory in it"))?;
    match fremovexattr(&dir, "system.posix_acl_default") {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
        Err(errno) => return Err(io(path, "remove the default ACL of a directory in it")(errno)),
    }
    // Also takes the setgid bit that the workdir may have handed down.
    fchmod(&dir, Mode::RWXU).map_err(io(path, "set the mode of a directory in it"))?;
    Ok(dir)
}

/// Checks that what is staged is out of everybody else's reach. Who owns the workdir may have put a directory there
/// that was made by somebody else.
fn only_ours(staging: BorrowedFd<'_>, path: &Path) -> Result<(), StackError> {
    let stat = fstat(staging).map_err(io(path, "stat a directory in it"))?;
    if stat.st_uid == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(StackError::Io {
        role: Role::Work,
        path: path.to_owned(),
        what: "prepare changes in it: somebody else keeps putting directories there",
        errno: Errno::PERM,
    })
}

fn set_volatile(staging: BorrowedFd<'_>) -> Result<(), Errno> {
    let directory = |within: BorrowedFd<'_>, name: &str| match mkdirat(within, name, Mode::RWXU) {
        // Of a volatile mount that ended in order.
        Ok(()) | Err(Errno::EXIST) => openat(within, name, DIR, Mode::empty()),
        Err(errno) => Err(errno),
    };
    let incompat = directory(staging, INCOMPAT)?;
    let volatile = directory(incompat.as_fd(), VOLATILE)?;
    match unlinkat(&volatile, CLEAN, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let dirty = openat(&volatile, DIRTY, flags, Mode::RUSR | Mode::WUSR)?;
    // The one thing that is synced: data that is torn must not outlive the mark that says so.
    rustix::fs::fsync(&dirty)?;
    for dir in [&volatile, &incompat] {
        rustix::fs::fsync(dir)?;
    }
    rustix::fs::fsync(staging)
}

fn note_clean(staging: BorrowedFd<'_>) -> Result<(), Errno> {
    let Some(boot) = process::boot_id() else { return Ok(()) };
    let volatile = match openat(staging, format!("{INCOMPAT}/{VOLATILE}"), DIR, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()), // the engine has removed the mark under us: nothing to vouch for
        other => other?,
    };
    let flags = OFlags::WRONLY
        | OFlags::CREATE
        | OFlags::TRUNC
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let file = openat(&volatile, CLEAN, flags, Mode::RUSR | Mode::WUSR)?;
    let mut rest = boot.as_slice();
    while !rest.is_empty() {
        let n = rustix::io::write(&file, rest)?;
        rest = &rest[n..];
    }
    Ok(())
}

fn read_small(dir: BorrowedFd<'_>, name: &str) -> Option<Vec<u8>> {
    let file = openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    let mut buffer = [0u8; 128];
    let n = rustix::io::read(&file, &mut buffer).ok()?;
    Some(buffer[..n].to_vec())
}

fn rmdir_if_empty(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn c_name(name: &str) -> std::ffi::CString {
    // The names are this file's constants, none of which holds a NUL.
    std::ffi::CString::new(name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use tempfile::TempDir;

    use crate::union::stack::lock::LOCK_WAIT;

    /// Makes an upper, and the directory `work` for it.
    fn place() -> (TempDir, PathBuf) {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("upper")).unwrap();
        let work = top.path().join("work");
        (top, work)
    }

    fn prepared(top: &TempDir, work: &Path) -> Result<Prepared, StackError> {
        let upper = Layer::open(Role::Upper, &top.path().join("upper"))?;
        // A program that another test starts has its lock until it is another program.
        WorkdirPlace::named(work)?.prepare(&upper, LOCK_WAIT)
    }

    fn begun(top: &TempDir, work: &Path, volatile: bool) -> Result<Workdir, StackError> {
        prepared(top, work)?.begin(volatile)
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn it_is_made_for_the_mount_and_what_was_made_goes_when_the_mount_does_not_come_about() {
        let (top, work) = place();
        drop(prepared(&top, &work).unwrap());
        assert!(!work.exists());
        fs::create_dir(&work).unwrap();
        drop(prepared(&top, &work).unwrap());
        assert_eq!(names(&work), [""; 0], "the directory that was given stays");
        let missing = WorkdirPlace::named(&top.path().join("no/work")).map(drop);
        assert!(matches!(missing, Err(StackError::Missing { role: Role::Work, .. })), "{missing:?}");
    }

    #[test]
    fn only_its_owner_enters_it_and_nothing_is_inherited() {
        let (top, work) = place();
        fs::create_dir(&work).unwrap();
        fs::set_permissions(&work, fs::Permissions::from_mode(0o2777)).unwrap();
        let workdir = begun(&top, &work, false).unwrap();
        for name in [STAGING, INDEX] {
            assert_eq!(fs::metadata(work.join(name)).unwrap().permissions().mode() & 0o7777, 0o700, "{name}");
        }
        workdir.close().unwrap();
        assert_eq!(names(&work), [""; 0]);
    }

    #[test]
    fn what_a_killed_mount_has_left_is_swept_and_what_another_program_keeps_stays() {
        let (top, work) = place();
        // Of the kernel's overlayfs, and of fuse-overlayfs.
        for dir in ["work/#1", "work/deep/er", "index"] {
            fs::create_dir_all(work.join(dir)).unwrap();
        }
        for file in ["work/#1/data", "work/#2", "index/00fb", "17"] {
            fs::write(work.join(file), "x").unwrap();
        }
        let workdir = begun(&top, &work, false).unwrap();
        assert_eq!(names(&work.join("work")), [""; 0]);
        workdir.close().unwrap();
        assert_eq!(names(&work), ["17", "index"]);
    }

    #[test]
    fn a_directory_with_anything_else_in_it_is_not_touched() {
        let (top, work) = place();
        fs::create_dir_all(work.join("work")).unwrap();
        fs::write(work.join("work/precious"), "x").unwrap();
        fs::write(work.join("thesis.tex"), "x").unwrap();
        let refused = prepared(&top, &work).map(drop);
        assert!(
            matches!(&refused, Err(StackError::WorkForeign { name, .. }) if name == "thesis.tex"),
            "{refused:?}"
        );
        assert!(work.join("work/precious").exists());
        // A symlink in place of the staging directory leads nowhere.
        fs::remove_file(work.join("thesis.tex")).unwrap();
        fs::rename(work.join("work"), top.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(top.path().join("elsewhere"), work.join("work")).unwrap();
        let refused = prepared(&top, &work).map(drop);
        assert!(matches!(refused, Err(StackError::WorkForeign { .. })), "{refused:?}");
        assert!(top.path().join("elsewhere/precious").exists());
    }

    #[test]
    fn a_second_mount_is_refused_and_leaves_the_first_ones_things() {
        let (top, work) = place();
        let workdir = begun(&top, &work, false).unwrap();
        fs::write(work.join("work/#1"), "x").unwrap();
        let second = prepared(&top, &work).map(drop);
        assert!(matches!(second, Err(StackError::InUse { .. })), "{second:?}");
        assert!(work.join("work/#1").exists());
        drop(workdir);
        prepared(&top, &work).map(drop).unwrap();
    }

    #[test]
    fn a_volatile_mount_that_did_not_end_in_order_is_refused_for_good() {
        let (top, work) = place();
        let workdir = begun(&top, &work, true).unwrap();
        // Killed: nothing is closed.
        std::mem::forget(workdir);
        let (other, copy) = place();
        fs::create_dir_all(copy.join("work/incompat/volatile")).unwrap();
        assert!(work.join("work/incompat/volatile/dirty").exists());
        for _ in 0..2 {
            let refused = prepared(&other, &copy).map(drop);
            assert!(matches!(refused, Err(StackError::Volatile { .. })), "{refused:?}");
        }
    }

    #[test]
    fn a_volatile_mount_that_ended_in_order_is_taken_over_in_the_same_boot_alone() {
        let (top, work) = place();
        begun(&top, &work, true).unwrap().close().unwrap();
        let clean = work.join("work/incompat/volatile/clean");
        let boot = fs::read(&clean).unwrap();
        assert!(!boot.is_empty());
        fs::write(&clean, "another boot").unwrap();
        let refused = prepared(&top, &work).map(drop);
        assert!(matches!(refused, Err(StackError::Volatile { .. })), "{refused:?}");
        fs::write(&clean, &boot).unwrap();
        // A mount that doesn't come about, volatile or not, leaves it: nothing was synced.
        drop(prepared(&top, &work).unwrap());
        assert_eq!(fs::read(&clean).unwrap(), boot);
        let again = begun(&top, &work, true).unwrap();
        assert!(!clean.exists(), "while it is mounted nothing is in order");
        drop(again);
        assert!(clean.exists());
        begun(&top, &work, false).unwrap().close().unwrap();
        assert_eq!(names(&work), [""; 0], "it was synced, and the mark is gone");
    }

    #[test]
    fn a_mark_of_a_feature_that_is_not_known_here_is_refused() {
        let (top, work) = place();
        fs::create_dir_all(work.join("work/incompat/novelty")).unwrap();
        let refused = prepared(&top, &work).map(drop);
        assert!(
            matches!(&refused, Err(StackError::Incompatible { feature, .. }) if feature == "novelty"),
            "{refused:?}"
        );
    }

    #[test]
    fn the_one_beside_the_upper_is_named_after_it_and_goes_with_the_mount() {
        let (top, _) = place();
        let upper = Layer::open(Role::Upper, &top.path().join("upper")).unwrap();
        let beside = WorkdirPlace::beside(&upper).unwrap();
        assert_eq!(beside.path, top.path().join(".upper.work"));
        let workdir = beside.prepare(&upper, LOCK_WAIT).unwrap().begin(false).unwrap();
        workdir.close().unwrap();
        assert_eq!(names(top.path()), ["upper"]);
        let long = "n".repeat(251);
        assert_eq!(default_name(OsStr::new(&long), 0xab), ".unionmount-ab.work");
        assert_eq!(default_name(OsStr::new("rw"), 0xab), ".rw.work");
    }

    #[test]
    fn an_index_that_is_in_use_is_kept() {
        let (top, work) = place();
        let workdir = begun(&top, &work, false).unwrap();
        fs::write(work.join(INDEX).join("1"), "x").unwrap();
        drop(workdir);
        assert_eq!(names(&work), [INDEX]);
        fs::write(work.join(INDEX).join("2"), "x").unwrap();
        begun(&top, &work, false).unwrap().close().unwrap();
        assert_eq!(names(&work.join(INDEX)), ["1", "2"]);
    }
}
