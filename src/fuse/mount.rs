//! Mounting and unmounting a FUSE filesystem.
//!
//! Root, of the machine or of a user namespace, uses mount(2); anybody else goes through the setuid fusermount3. Names
//! are bytes, and what the helper says is passed on.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::mount::{MountFlags as SysFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::sys::{fusermount, own};
use crate::union::stack::layer::{Said, Shown};

/// The filesystem type, as mount(8) and /proc/self/mountinfo show it.
pub const FS_TYPE: &str = "fuse.unionmount";
const SUBTYPE: &str = "unionmount";
const DEVICE: &str = "/dev/fuse";

/// What a mount is given, whatever the filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MountFlags {
    /// Nothing can be changed through it.
    pub read_only: bool,
    /// set-user-id and set-group-id bits have no effect.
    pub no_suid: bool,
    /// Device nodes cannot be opened.
    pub no_dev: bool,
    /// Nothing can be executed.
    pub no_exec: bool,
    /// Access times are not kept.
    pub no_atime: bool,
    /// Access times of directories are not kept.
    pub no_dir_atime: bool,
    /// All writing is synchronous.
    pub sync: bool,
    /// Changes of directories are synchronous.
    pub dir_sync: bool,
    /// Others than the mounting user may use it. Always so when root mounts, as users of mount(8) expect.
    pub allow_other: bool,
    /// Others may not, although root mounts.
    pub deny_other: bool,
    /// The mounting user and root may use it.
    pub allow_root: bool,
    /// The SELinux context of all its files; without SELinux it has no effect.
    pub context: Option<OsString>,
}

impl MountFlags {
    fn system(&self) -> SysFlags {
        let choices = [
            (self.read_only, SysFlags::RDONLY),
            (self.no_suid, SysFlags::NOSUID),
            (self.no_dev, SysFlags::NODEV),
            (self.no_exec, SysFlags::NOEXEC),
            (self.no_atime, SysFlags::NOATIME),
            (self.no_dir_atime, SysFlags::NODIRATIME),
            (self.sync, SysFlags::SYNCHRONOUS),
            (self.dir_sync, SysFlags::DIRSYNC),
        ];
        choices.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).collect()
    }

    /// Returns the words for fusermount3. It adds nosuid and nodev by itself.
    fn words(&self) -> Vec<&'static str> {
        let choices = [
            (self.read_only, "ro"),
            (self.no_exec, "noexec"),
            (self.no_atime, "noatime"),
            (self.no_dir_atime, "nodiratime"),
            (self.sync, "sync"),
            (self.dir_sync, "dirsync"),
        ];
        choices.into_iter().filter(|(set, _)| *set).map(|(_, word)| word).collect()
    }

    /// Returns whether the kernel lets all users in.
    fn open_to_others(&self) -> bool {
        // `allow_root` is not known to the kernel: it lets all in, and the session turns others away.
        !self.deny_other && (self.allow_other || self.allow_root || rustix::process::geteuid().is_root())
    }

    /// Returns whether users other than root and the mounting one must be turned away by the session.
    pub(super) fn only_owner_and_root(&self) -> bool {
        self.allow_root && !self.allow_other && !rustix::process::geteuid().is_root()
    }
}

/// Why a filesystem could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// No device.
    #[error(
        "{DEVICE} is missing; load the kernel's module with `modprobe fuse`, or start the container with --device {DEVICE}"
    )]
    NoDevice,
    /// It may not be opened.
    #[error(
        "{DEVICE} cannot be opened by uid {uid}: {}; let it with `chmod 666 {DEVICE}` or `setfacl -m u:{uid}:rw {DEVICE}` as root, or start the container with --device {DEVICE}",
        Said(*.errno)
    )]
    DeviceForbidden {
        /// The effective user id.
        uid: u32,
        /// What the kernel said.
        errno: Errno,
    },
    /// Any other failure to open it.
    #[error("{DEVICE} cannot be opened: {}", Said(*.0))]
    Device(Errno),
    /// mount(2) failed.
    #[error("cannot mount on {}: {}{hint}", Shown(.point), Said(*.errno))]
    Refused {
        /// The mount point.
        point: PathBuf,
        /// What the kernel said.
        errno: Errno,
        /// What may help; may be empty.
        hint: &'static str,
    },
    /// There is no fusermount3.
    #[error(
        "mounting as an ordinary user needs fusermount3, which cannot be run: {0}; install the package fuse3, or mount as root or within `unshare -Urm`"
    )]
    NoHelper(io::Error),
    /// fusermount3 refused.
    #[error("cannot mount on {}: {message}{hint}", Shown(.point))]
    Helper {
        /// The mount point.
        point: PathBuf,
        /// What fusermount3 said.
        message: String,
        /// What may help; may be empty.
        hint: &'static str,
    },
    /// Unmounting failed.
    #[error("cannot unmount {}: {message}", Shown(.point))]
    Unmount {
        /// The mount point.
        point: PathBuf,
        /// The kernel's or fusermount3's words.
        message: String,
        /// Files are open in it.
        busy: bool,
    },
    /// A path with a NUL byte, a socket that cannot be made.
    #[error("cannot mount on {}: {error}", Shown(.point))]
    Io {
        /// The mount point.
        point: PathBuf,
        /// The cause.
        error: io::Error,
    },
}

/// Opens /dev/fuse, or says what to do.
pub fn open_device() -> Result<OwnedFd, MountError> {
    rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => MountError::NoDevice,
        Errno::ACCESS | Errno::PERM => {
            MountError::DeviceForbidden { uid: rustix::process::geteuid().as_raw(), errno }
        }
        errno => MountError::Device(errno),
    })
}

/// Fails where nothing can be mounted: for want of the device, or of the helper that ordinary users need.
pub fn can_mount() -> Result<(), MountError> {
    open_device()?;
    if !rustix::process::geteuid().is_root() {
        let mut helper = fusermount::command().arg("-V").spawn().map_err(MountError::NoHelper)?;
        helper.wait().map_err(MountError::NoHelper)?;
    }
    Ok(())
}

/// A filesystem that is mounted, and how it is unmounted.
#[derive(Debug, Clone)]
pub struct Mounted {
    point: PathBuf,
    /// The device number of the filesystem, by which it is told from one that is mounted there later.
    device: Option<(u32, u32)>,
    /// It is neither known where it is, nor this process's to unmount.
    by_caller: bool,
}

/// Returns the device number of what is mounted at `point`, or of what holds it. Asks no daemon.
fn device_at(point: &Path) -> Option<(u32, u32)> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = statx(CWD, point, flags, StatxFlags::empty()).ok()?;
    Some((stat.stx_dev_major, stat.stx_dev_minor))
}

/// Mounts on `point`, an absolute path without symlinks, and returns the descriptor through which the kernel asks.
///
/// `source` is what mount(8) shows as the device.
pub fn mount(
    device: OwnedFd,
    point: &Path,
    source: &OsStr,
    flags: &MountFlags,
) -> Result<(OwnedFd, Mounted), MountError> {
    let mounted = || Mounted::found(point);
    match mount_directly(&device, point, source, flags) {
        Ok(()) => Ok((device, mounted())),
        Err(MountError::Refused { errno: Errno::PERM, .. }) => {
            drop(device);
            let device = mount_by_helper(point, source, flags)?;
            Ok((device, mounted()))
        }
        Err(error) => Err(error),
    }
}

fn mount_directly(
    device: &OwnedFd,
    point: &Path,
    source: &OsStr,
    flags: &MountFlags,
) -> Result<(), MountError> {
    const S_IFDIR: u32 = 0o040_000;
    let mut data = format!(
        "fd={},rootmode={S_IFDIR:o},user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    )
    .into_bytes();
    if flags.open_to_others() {
        data.extend_from_slice(b",allow_other");
    }
    if let Some(context) = selinux_context(flags) {
        data.extend_from_slice(b",context=\"");
        data.extend_from_slice(context.as_bytes());
        data.push(b'"');
    }
    let data =
        CString::new(data).map_err(|error| MountError::Io { point: point.into(), error: error.into() })?;
    rustix::mount::mount(source, point, FS_TYPE, flags.system(), data.as_c_str()).map_err(|errno| {
        let hint = match errno {
            Errno::BUSY => "; something is mounted on it already: unmount that first",
            Errno::NODEV => "; the kernel has no FUSE: load it with `modprobe fuse`",
            Errno::NOENT => "; it was removed meanwhile",
            _ => "",
        };
        MountError::Refused { point: point.into(), errno, hint }
    })
}

fn selinux_context(flags: &MountFlags) -> Option<&OsString> {
    // Without SELinux the kernel takes the word for an unknown option and refuses the mount.
    flags.context.as_ref().filter(|_| Path::new("/sys/fs/selinux/enforce").exists())
}

fn mount_by_helper(point: &Path, source: &OsStr, flags: &MountFlags) -> Result<OwnedFd, MountError> {
    let io = |error| MountError::Io { point: point.into(), error };
    let (ours, theirs) = UnixStream::pair().map_err(io)?;
    // The helper finds its end of the socket by number. There is no other thread yet that could start a program now.
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).map_err(|errno| io(errno.into()))?;

    let mut options = b"fsname=".to_vec();
    options.extend(source.as_bytes().iter().flat_map(|&byte| {
        let escape = matches!(byte, b',' | b'\\').then_some(b'\\');
        escape.into_iter().chain([byte])
    }));
    options.extend_from_slice(format!(",subtype={SUBTYPE},default_permissions").as_bytes());
    if flags.open_to_others() {
        options.extend_from_slice(b",allow_other");
    }
    for word in flags.words() {
        options.push(b',');
        options.extend_from_slice(word.as_bytes());
    }

    let mut child = fusermount::command()
        .arg("-o")
        .arg(OsString::from_vec(options))
        .arg("--")
        .arg(point)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .spawn()
        .map_err(MountError::NoHelper)?;
    drop(theirs);
    let device = receive_descriptor(&ours);
    drop(ours);
    let said = fusermount::says(&mut child).map_err(io)?;
    let status = child.wait().map_err(io)?;
    match device {
        Ok(Some(device)) if status.success() => Ok(device),
        Err(errno) => Err(io(errno.into())),
        Ok(_) => {
            let hint = helper_hint(&said);
            Err(MountError::Helper { point: point.into(), message: said, hint })
        }
    }
}

fn helper_hint(said: &str) -> &'static str {
    if said.contains("user_allow_other") {
        "; add the line user_allow_other to /etc/fuse.conf, or leave out allow_other"
    } else if said.contains("no write access") {
        "; choose a directory of your own"
    } else if said.contains(DEVICE) {
        "; let this user open /dev/fuse, as with `chmod 666 /dev/fuse`"
    } else if said.contains("mount failed: Operation not permitted") {
        "; fusermount3 must be setuid root, or mount as root or within `unshare -Urm`"
    } else {
        ""
    }
}

/// Takes the one descriptor that fusermount3 sends; `None` when it ends without.
fn receive_descriptor(socket: &UnixStream) -> Result<Option<OwnedFd>, Errno> {
    let mut byte = [0u8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            descriptor = descriptor.or(descriptors.next());
        }
    }
    Ok(descriptor)
}

impl Mounted {
    /// Returns what is mounted at `point`, an absolute path without symlinks.
    pub fn found(point: &Path) -> Mounted {
        Mounted { point: point.to_owned(), device: device_at(point), by_caller: false }
    }

    /// Returns what another process has mounted at `point`, and found to be of that device.
    pub(super) fn taken_over(point: &Path, device: Option<(u32, u32)>) -> Mounted {
        Mounted { point: point.to_owned(), device, by_caller: false }
    }

    /// Returns the device number of the filesystem, if it is known.
    pub(super) fn device(&self) -> Option<(u32, u32)> {
        self.device
    }

    /// Returns what somebody else has mounted, and unmounts.
    pub(super) fn by_caller() -> Mounted {
        Mounted { point: PathBuf::new(), device: None, by_caller: true }
    }

    /// Returns whether somebody else has mounted it.
    pub(super) fn is_by_caller(&self) -> bool {
        self.by_caller
    }

    /// Unmounts. `lazy` takes it out of the tree at once and lets those who use it finish.
    ///
    /// What somebody else has mounted there since stays.
    pub fn unmount(&self, lazy: bool) -> Result<(), MountError> {
        if self.by_caller {
            return Ok(());
        }
        if self.device.is_some() && device_at(&self.point).is_some_and(|now| Some(now) != self.device) {
            log::info!("{}: unmounted already", self.point.display());
            return Ok(());
        }
        let detach = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        match rustix::mount::unmount(&self.point, UnmountFlags::NOFOLLOW | detach) {
            Ok(()) => Ok(()),
            Err(Errno::PERM) => self.unmount_by_helper(lazy),
            Err(errno) => Err(self.failed(Said(errno).to_string(), errno == Errno::BUSY)),
        }
    }

    fn unmount_by_helper(&self, lazy: bool) -> Result<(), MountError> {
        match fusermount::unmount(&self.point, lazy).map_err(MountError::NoHelper)? {
            None => Ok(()),
            Some(said) => {
                let busy = said.contains("busy");
                Err(self.failed(said, busy))
            }
        }
    }

    fn failed(&self, message: String, busy: bool) -> MountError {
        MountError::Unmount { point: self.point.clone(), message, busy }
    }
}

/// Returns the device number of the filesystem that `device` serves; `None` where it can't be found out.
pub(super) fn device_number(device: impl AsFd, mounted: &Mounted) -> Option<u64> {
    let at_point = || {
        let (major, minor) = mounted.device?;
        let found = rustix::fs::makedev(major, minor);
        // Over `/` nothing that is mounted is found by its path.
        own::filesystem_type(found).is_some_and(|kind| kind.starts_with("fuse")).then_some(found)
    };
    own::device_of_connection(device).or_else(at_point)
}

/// Returns whether `device` is still that of a mounted filesystem.
pub(super) fn is_connected(device: impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&device, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        match poll(&mut fds, Some(&now)) {
            Err(Errno::INTR) => {}
            Err(_) => return false,
            Ok(_) => return !fds[0].revents().contains(PollFlags::ERR),
        }
    }
}
