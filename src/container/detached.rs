//! A stack's tree without a place: a mount that is on no directory. Nobody finds it, nothing keeps it from going, and with the
//! process that made it, whatever ends that, it goes.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::error::{ContainerError, Result};
use super::mounting;

const DEVICE: &str = "/dev/fuse";
/// S_IFDIR, as the kernel's FUSE wants it.
const ROOT_MODE: &str = "40000";

/// The writable layer of a stack.
#[derive(Debug, Clone, Copy)]
pub struct Written<'a> {
    /// Its directory.
    pub upper: &'a Path,
    /// Its workdir.
    pub work: &'a Path,
    /// What it is mounted with (`-o`).
    pub options: &'a str,
}

/// Mounts a stack on nothing and returns its root; `written`: what receives changes. `id` and `hold` as of
/// [`mounting::mount`]. This process must be root, of the machine or of a user namespace. Setuid programs and devices have no
/// effect in it.
///
/// # Errors
/// The message of the daemon, and those of mounting.
pub fn open(lowers: &[PathBuf], written: Option<Written<'_>>, id: &str, hold: &[&Path]) -> Result<OwnedFd> {
    let failed = |what: &'static str| ContainerError::io::<rustix::io::Errno>(what, DEVICE);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(failed("open it"))?;
    let source = mounting::source(id);
    let mount = mount(&device, &source).map_err(failed("mount by it"))?;
    // The daemon finds it by its number. No other thread starts a program meanwhile.
    fcntl_setfd(&device, FdFlags::empty()).map_err(failed("hand it on"))?;
    let mut command = mounting::stacked(lowers, written.map(|to| (to.upper, to.work)), hold);
    if let Some(to) = written {
        command.arg("-o").arg(to.options);
    }
    command.arg(source).arg(format!("/dev/fd/{}", device.as_raw_fd()));
    mounting::started(&mut command)?;
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&mount, ".", directory, Mode::empty()).map_err(failed("open what is mounted by it"))
}

fn mount(device: &OwnedFd, source: &str) -> rustix::io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |fs: BorrowedFd<'_>, key: &str, value: &str| rustix::mount::fsconfig_set_string(fs, key, value);
    let as_borrowed = std::os::fd::AsFd::as_fd(&fs);
    set(as_borrowed, "source", source)?;
    set(as_borrowed, "subtype", "unionmount")?;
    set(as_borrowed, "fd", &device.as_raw_fd().to_string())?;
    set(as_borrowed, "rootmode", ROOT_MODE)?;
    set(as_borrowed, "user_id", &rustix::process::getuid().as_raw().to_string())?;
    set(as_borrowed, "group_id", &rustix::process::getgid().as_raw().to_string())?;
    rustix::mount::fsconfig_set_flag(as_borrowed, "default_permissions")?;
    rustix::mount::fsconfig_create(as_borrowed)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(as_borrowed, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
