//! One object of a layer: named by a directory and a name, or by a descriptor.

#![allow(clippy::disallowed_methods, reason = "here objects are changed, for all")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, ResolveFlags, StatxFlags, Timestamps, Uid, XattrFlags};
use rustix::io::{Errno, Result};

use super::own::is_own;
use super::xattr_changes;

/// Where an object is: what every call that acts on it takes.
#[derive(Debug, Clone, Copy)]
pub enum At<'a> {
    /// The entry `name` of the directory `dir`; a symbolic link is the object itself, never followed.
    Name(BorrowedFd<'a>, &'a [u8]),
    /// The object that the descriptor (O_PATH or open) stands for.
    Fd(BorrowedFd<'a>),
}

/// The type of an object. `repr(u8)` with the values of `d_type`, so that it fits beside other small fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum Kind {
    /// A named pipe.
    Fifo = 1,
    /// A character device.
    CharDevice = 2,
    /// A directory.
    Directory = 4,
    /// A block device.
    BlockDevice = 6,
    /// A regular file.
    File = 8,
    /// A symbolic link.
    Symlink = 10,
    /// A socket.
    Socket = 12,
}

impl Kind {
    /// Returns the kind that `st_mode` tells.
    pub fn of_mode(mode: u32) -> Kind {
        match mode & 0o170_000 {
            0o010_000 => Kind::Fifo,
            0o020_000 => Kind::CharDevice,
            0o040_000 => Kind::Directory,
            0o060_000 => Kind::BlockDevice,
            0o120_000 => Kind::Symlink,
            0o140_000 => Kind::Socket,
            _ => Kind::File,
        }
    }

    /// Returns the kind that a `d_type` tells, or `None` where the filesystem left it unknown.
    pub fn of_d_type(d_type: fs::FileType) -> Option<Kind> {
        Some(match d_type {
            fs::FileType::Fifo => Kind::Fifo,
            fs::FileType::CharacterDevice => Kind::CharDevice,
            fs::FileType::Directory => Kind::Directory,
            fs::FileType::BlockDevice => Kind::BlockDevice,
            fs::FileType::RegularFile => Kind::File,
            fs::FileType::Symlink => Kind::Symlink,
            fs::FileType::Socket => Kind::Socket,
            fs::FileType::Unknown => return None,
        })
    }

    /// Returns the type bits of `st_mode`.
    pub fn mode_bits(self) -> u32 {
        u32::from(self as u8) << 12
    }
}

/// A point in time as the kernel keeps it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize,
)]
pub struct Time {
    /// Seconds since the epoch; negative before it.
    pub sec: i64,
    /// Nanoseconds within the second, 0 to 999,999,999.
    pub nsec: u32,
}

/// What `stat` tells of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Device of the filesystem that holds it.
    pub dev: u64,
    /// Inode number there.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Number of names.
    pub nlink: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred block size.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the data.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Whether it is the root of a mount. Not known, and `false`, before Linux 5.8.
    pub mount_root: bool,
    /// When the inode was made, where the filesystem tells it. Nobody can set it.
    pub born: Option<Time>,
}

impl Stat {
    /// Returns the object's type.
    pub fn kind(&self) -> Kind {
        Kind::of_mode(self.mode)
    }

    /// Returns whether it is a character device 0:0, the kernel's form of a whiteout.
    pub fn is_whiteout_device(&self) -> bool {
        self.kind() == Kind::CharDevice && self.rdev == 0
    }
}

impl From<fs::Stat> for Stat {
    #[allow(clippy::unnecessary_cast)] // field widths differ by architecture
    fn from(s: fs::Stat) -> Self {
        Stat {
            dev: s.st_dev as u64,
            ino: s.st_ino as u64,
            mode: s.st_mode as u32,
            nlink: s.st_nlink as u64,
            uid: s.st_uid,
            gid: s.st_gid,
            rdev: s.st_rdev as u64,
            size: s.st_size as u64,
            blocks: s.st_blocks as u64,
            blksize: s.st_blksize as u32,
            atime: Time { sec: s.st_atime as i64, nsec: s.st_atime_nsec as u32 },
            mtime: Time { sec: s.st_mtime as i64, nsec: s.st_mtime_nsec as u32 },
            ctime: Time { sec: s.st_ctime as i64, nsec: s.st_ctime_nsec as u32 },
            mount_root: false,
            born: None,
        }
    }
}

impl From<fs::Statx> for Stat {
    fn from(s: fs::Statx) -> Self {
        let time = |t: fs::StatxTimestamp| Time { sec: t.tv_sec, nsec: t.tv_nsec };
        Stat {
            dev: fs::makedev(s.stx_dev_major, s.stx_dev_minor),
            ino: s.stx_ino,
            mode: s.stx_mode.into(),
            nlink: s.stx_nlink.into(),
            uid: s.stx_uid,
            gid: s.stx_gid,
            rdev: fs::makedev(s.stx_rdev_major, s.stx_rdev_minor),
            size: s.stx_size,
            blocks: s.stx_blocks,
            blksize: s.stx_blksize,
            atime: time(s.stx_atime),
            mtime: time(s.stx_mtime),
            ctime: time(s.stx_ctime),
            mount_root: s.stx_attributes.contains(fs::StatxAttributes::MOUNT_ROOT),
            born: (s.stx_mask & StatxFlags::BTIME.bits() != 0).then(|| time(s.stx_btime)),
        }
    }
}

/// Set once statx(2) was refused (ENOSYS before Linux 4.11, EPERM under old seccomp filters; it has no EPERM of its own).
static NO_STATX: AtomicBool = AtomicBool::new(false);

/// Returns the path of a descriptor in procfs: how an O_PATH descriptor is given to calls that take only paths.
pub fn proc_path(fd: BorrowedFd<'_>) -> Vec<u8> {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes()
}

/// Opens with O_NOATIME, which only a file's owner and CAP_FOWNER may have, and else without.
pub fn unnoticed(open: impl Fn(OFlags) -> Result<OwnedFd>) -> Result<OwnedFd> {
    match open(OFlags::NOATIME) {
        Err(Errno::PERM) => open(OFlags::empty()),
        other => other,
    }
}

/// Makes a descriptor one by which reading changes no access times, from now on.
///
/// # Errors
/// `EPERM` for who neither owns the file nor has CAP_FOWNER.
pub fn set_unnoticed(fd: BorrowedFd<'_>) -> Result<()> {
    fs::fcntl_setfl(fd, fs::fcntl_getfl(fd)? | OFlags::NOATIME)
}

/// Returns whether there is openat2(2): not before Linux 5.6, nor under old seccomp filters.
pub(super) fn has_openat2() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    // An EPERM of another call may be an answer about the file.
    *HAS.get_or_init(|| {
        fs::openat2(fs::CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty())
            .is_ok()
    })
}

/// Opens the entry `name` of a directory, unless that is in a mount of this process's own. Follows no link.
///
/// # Errors
/// Those of open(2), and `EBUSY` for one in a mount of this process's own.
pub(super) fn open_in(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if has_openat2() {
        match fs::openat2(dir, name, flags, Mode::empty(), ResolveFlags::NO_XDEV) {
            Err(Errno::XDEV) => {}
            other => return other,
        }
    }
    // Asks nobody, whatever is mounted there.
    let met = fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = At::Fd(met.as_fd()).stat_as_known()?;
    if is_own(stat.dev) {
        return Err(Errno::BUSY);
    }
    if !flags.contains(OFlags::PATH) {
        return match stat.kind() {
            Kind::Symlink => Err(Errno::LOOP),
            _ => fs::open(proc_path(met.as_fd()), flags.difference(OFlags::NOFOLLOW), Mode::empty()),
        };
    }
    match flags.contains(OFlags::DIRECTORY) && stat.kind() != Kind::Directory {
        true => Err(Errno::NOTDIR),
        false => Ok(met),
    }
}

impl At<'_> {
    /// Returns the path by which calls that take only a path reach the object. With [`At::Name`] the last component
    /// must not be followed, with [`At::Fd`] it must.
    pub(super) fn proc_path(&self) -> Vec<u8> {
        match self {
            At::Name(dir, name) => {
                let mut path = proc_path(*dir);
                path.push(b'/');
                path.extend_from_slice(name);
                path
            }
            At::Fd(fd) => proc_path(*fd),
        }
    }

    /// Stats it without following a symbolic link.
    pub fn stat(&self) -> Result<Stat> {
        self.stat_by(AtFlags::empty())
    }

    /// Returns the same, of what this kernel knows without asking anybody: a daemon of FUSE, a server. Local
    /// filesystems tell the same by both.
    pub fn stat_as_known(&self) -> Result<Stat> {
        self.stat_by(AtFlags::STATX_DONT_SYNC)
    }

    fn stat_by(&self, sync: AtFlags) -> Result<Stat> {
        let (dir, path, flags) = match self {
            At::Name(dir, name) => (*dir, *name, AtFlags::SYMLINK_NOFOLLOW),
            At::Fd(fd) => (*fd, &b""[..], AtFlags::EMPTY_PATH),
        };
        if !NO_STATX.load(Ordering::Relaxed) {
            let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
            match fs::statx(dir, path, flags | sync | AtFlags::NO_AUTOMOUNT, mask) {
                Err(Errno::NOSYS | Errno::PERM) => NO_STATX.store(true, Ordering::Relaxed),
                other => return other.map(Stat::from),
            }
        }
        fs::statat(dir, path, flags).map(Stat::from)
    }

    /// Returns a descriptor that stands for the object without opening it (O_PATH).
    pub fn pin(&self) -> Result<OwnedFd> {
        match self {
            At::Name(dir, name) => {
                fs::openat(*dir, *name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            }
            At::Fd(fd) => rustix::io::fcntl_dupfd_cloexec(*fd, 3),
        }
    }

    /// Does as [`At::pin`] by an opening of its own, which keeps no other one from ending.
    pub fn pin_apart(&self) -> Result<OwnedFd> {
        self.open(OFlags::PATH)
    }

    /// Opens a regular file for reading, which changes its access time only where the kernel insists.
    pub fn open_read(&self) -> Result<OwnedFd> {
        unnoticed(|noatime| self.open(OFlags::RDONLY | noatime))
    }

    /// Opens what is a regular file for reading; `None`: it is none. What its owner may have exchanged for a fifo or a device
    /// is not opened to find that out: to open a device can do something.
    ///
    /// # Errors
    /// Those of open(2), and `EBUSY` for one in a mount of this process's own.
    pub fn open_file(&self) -> Result<Option<OwnedFd>> {
        let pin = self.pin()?;
        let at = At::Fd(pin.as_fd());
        let stat = at.stat_as_known()?;
        if is_own(stat.dev) {
            return Err(Errno::BUSY);
        }
        match stat.kind() {
            Kind::File => at.open_read().map(Some),
            _ => Ok(None),
        }
    }

    /// Opens a regular file with these flags of open(2), to be verified before anything is done with it.
    pub(crate) fn open_to_verify(&self, flags: OFlags) -> Result<OwnedFd> {
        self.open(flags)
    }

    /// Opens a regular file for reading past the page cache.
    ///
    /// # Errors
    /// `EINVAL` where the filesystem has no such thing.
    pub fn open_direct(&self) -> Result<OwnedFd> {
        self.open(OFlags::RDONLY | OFlags::DIRECT)
    }

    /// Opens a directory for reading.
    pub fn open_directory(&self) -> Result<OwnedFd> {
        match self {
            At::Name(..) => self.open(OFlags::RDONLY | OFlags::DIRECTORY),
            At::Fd(fd) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                fs::openat(*fd, ".", flags, Mode::empty())
            }
        }
    }

    /// Opens it, and never waits, whatever is there: not for the other end of a fifo, not for who holds a lease of the
    /// file (`EAGAIN`), and not for this process itself (`EBUSY`).
    fn open(&self, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        match self {
            At::Name(dir, name) => open_in(*dir, name, flags),
            At::Fd(fd) => fs::open(proc_path(*fd), flags, Mode::empty()),
        }
    }

    /// Returns the target of a symbolic link.
    pub fn readlink(&self) -> Result<Vec<u8>> {
        let target = match self {
            At::Name(dir, name) => fs::readlinkat(*dir, *name, Vec::new()),
            At::Fd(fd) => fs::readlinkat(*fd, "", Vec::new()),
        }?;
        Ok(target.into_bytes())
    }
}

/// An object that may be changed. What makes these is closed to all (`disallowed-methods` in clippy.toml) but the few
/// places that say why they may, so that a change of a lower, or of what has come to be under a name, doesn't pass.
#[derive(Debug, Clone, Copy)]
pub struct Writable<'a>(At<'a>);

impl<'a> Writable<'a> {
    /// Returns the object that a descriptor holds, which nobody can exchange. Whoever calls this has verified it, or
    /// made it.
    pub(crate) fn held(fd: BorrowedFd<'a>) -> Writable<'a> {
        Writable(At::Fd(fd))
    }

    /// Returns an entry of a directory in which nobody but this process and root can exchange anything: of a workdir,
    /// or of a layer that is being made.
    pub(crate) fn entry_of_own(dir: BorrowedFd<'a>, name: &'a [u8]) -> Writable<'a> {
        Writable(At::Name(dir, name))
    }

    /// Returns the object, to be read.
    pub fn at(&self) -> At<'a> {
        self.0
    }

    /// Opens a regular file for I/O with these flags of open(2).
    pub fn open(&self, flags: OFlags) -> Result<OwnedFd> {
        self.0.open(flags)
    }

    /// Sets an extended attribute. `flags` as of setxattr(2).
    pub fn set_xattr(&self, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        match self.0 {
            At::Name(..) => fs::lsetxattr(&self.0.proc_path()[..], name, value, flags)?,
            At::Fd(fd) => by_descriptor(
                &mut (),
                |()| fs::fsetxattr(fd, name, value, flags),
                |()| fs::setxattr(&self.0.proc_path()[..], name, value, flags),
            )?,
        }
        xattr_changes::changed(|| self.0.stat().ok().map(|stat| stat.ino));
        Ok(())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `ENODATA` where it doesn't exist.
    pub fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        match self.0 {
            At::Name(..) => fs::lremovexattr(&self.0.proc_path()[..], name)?,
            At::Fd(fd) => by_descriptor(
                &mut (),
                |()| fs::fremovexattr(fd, name),
                |()| fs::removexattr(&self.0.proc_path()[..], name),
            )?,
        }
        xattr_changes::changed(|| self.0.stat().ok().map(|stat| stat.ino));
        Ok(())
    }

    /// Changes owner and group; `None` leaves as it is. Clears setuid and setgid of files, as chown(2) does.
    ///
    /// # Errors
    /// `EOVERFLOW` for -1, which nobody is: chown(2) would leave the owner as it is, which is root's for what was just
    /// made. The kernel tells this number for a caller that a mount with mapped ids (mount_setattr(2)) doesn't know.
    pub fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
            return Err(Errno::OVERFLOW);
        }
        let uid = uid.map(Uid::from_raw);
        let gid = gid.map(Gid::from_raw);
        match self.0 {
            At::Name(dir, name) => fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
            At::Fd(fd) => fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH),
        }
    }

    /// Changes the permission bits. Symbolic links have none: `EOPNOTSUPP`.
    pub fn chmod(&self, mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        match self.0 {
            // fchmodat follows a link, so the object is pinned first.
            At::Name(..) => Writable(At::Fd(self.0.pin()?.as_fd())).chmod(mode.as_raw_mode()),
            At::Fd(fd) => {
                match by_descriptor(&mut (), |()| fs::fchmod(fd, mode), |()| fs::chmod(proc_path(fd), mode)) {
                    // An O_PATH descriptor of a symbolic link.
                    Err(Errno::LOOP) => Err(Errno::OPNOTSUPP),
                    other => other,
                }
            }
        }
    }

    /// Links one more name to the object, in another directory.
    pub fn link_to(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        match self.0 {
            At::Name(from, old) => fs::linkat(from, old, dir, name, AtFlags::empty()),
            // ENOENT: only who may read everything may do it so, or before Linux 6.10.
            At::Fd(fd) => match fs::linkat(fd, "", dir, name, AtFlags::EMPTY_PATH) {
                Err(Errno::NOENT) => fs::linkat(fs::CWD, proc_path(fd), dir, name, AtFlags::SYMLINK_FOLLOW),
                other => other,
            },
        }
    }

    /// Sets access and modification times; `None` leaves one as it is.
    pub fn utimens(&self, atime: Option<SetTime>, mtime: Option<SetTime>) -> Result<()> {
        let times =
            Timestamps { last_access: SetTime::timespec(atime), last_modification: SetTime::timespec(mtime) };
        match self.0 {
            At::Name(dir, name) => fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW),
            At::Fd(fd) => match fs::utimensat(fd, "", &times, AtFlags::EMPTY_PATH) {
                // Kernels before 5.8 know no AT_EMPTY_PATH here.
                Err(Errno::INVAL) => fs::utimensat(fs::CWD, proc_path(fd), &times, AtFlags::empty()),
                other => other,
            },
        }
    }
}

/// Makes a call by a descriptor, and where that only holds the object (O_PATH) by its path in procfs, which takes several times as
/// long. Both are given `into`, for what they tell.
pub(super) fn by_descriptor<B: ?Sized, R>(
    into: &mut B,
    call: impl FnOnce(&mut B) -> Result<R>,
    by_path: impl FnOnce(&mut B) -> Result<R>,
) -> Result<R> {
    match call(into) {
        Err(Errno::BADF) => by_path(into),
        done => done,
    }
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The current time of the kernel.
    Now,
    /// This time.
    At(Time),
}

impl SetTime {
    fn timespec(time: Option<SetTime>) -> fs::Timespec {
        match time {
            None => fs::Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
            Some(SetTime::Now) => fs::Timespec { tv_sec: 0, tv_nsec: fs::UTIME_NOW },
            Some(SetTime::At(t)) => fs::Timespec { tv_sec: t.sec, tv_nsec: t.nsec.into() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_is_owns_nothing() {
        let file = tempfile::tempfile().unwrap();
        let object = Writable(At::Fd(file.as_fd()));
        assert_eq!(object.chown(Some(u32::MAX), None), Err(Errno::OVERFLOW));
        assert_eq!(object.chown(None, Some(u32::MAX)), Err(Errno::OVERFLOW));
        object.chown(None, None).unwrap();
    }

    #[test]
    fn what_is_no_file_is_not_opened_as_one() {
        let top = tempfile::tempdir().unwrap();
        let dir = std::fs::File::open(top.path()).unwrap();
        let open = |name: &str| At::Name(dir.as_fd(), name.as_bytes()).open_file();
        std::fs::write(top.path().join("file"), "x").unwrap();
        fs::mknodat(&dir, "fifo", fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        std::os::unix::fs::symlink("file", top.path().join("link")).unwrap();
        assert!(open("file").unwrap().is_some());
        for other in ["fifo", "link", "."] {
            assert!(open(other).unwrap().is_none(), "{other}");
        }
        assert_eq!(open("none").unwrap_err(), Errno::NOENT);
        let dev = std::fs::File::open("/dev").unwrap();
        assert!(At::Name(dev.as_fd(), b"null").open_file().unwrap().is_none());
    }
}
