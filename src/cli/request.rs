//! What a mount is to be.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use super::logging::LogOptions;
use crate::fuse::mount::MountFlags;
use crate::sys::namespace::is_privileged;
use crate::union::escaped_path::EscapedPath;
use crate::union::options::FsOptions;
use crate::union::stack::layer::StackOptions;

/// All that a mount is to be, whichever way it was said.
#[derive(Debug, Clone)]
pub struct MountRequest {
    /// The layers.
    pub stack: StackOptions,
    /// The `-o` options one by one, as given.
    pub given: Vec<EscapedPath>,
    /// What the mount itself is given.
    pub mount: MountFlags,
    /// What is believed of layers that anybody may have made.
    pub trust: AskedTrust,
    /// How the merged view behaves.
    pub fs: FsOptions,
    /// The open /dev/fuse that the caller has mounted already, by its number.
    pub device: Option<RawFd>,
    /// Where it is mounted, as given.
    pub mount_point: PathBuf,
    /// What mount(8) shows as the device.
    pub source: OsString,
    /// How many threads answer; `None`: as many as is good.
    pub threads: Option<usize>,
    /// Requests come over io_uring where the kernel offers it.
    pub uring: bool,
    /// Programs are served as pairs where they can be.
    pub pairing: bool,
    /// Stay in the foreground.
    pub foreground: bool,
    /// Directories that are locked (shared) while it is mounted.
    pub hold: Vec<PathBuf>,
    /// Check everything, mount nothing.
    pub fake: bool,
    /// A dead mount on the mount point is taken away first: who calls as mount(8) does can't do it.
    pub take_dead_away: bool,
    /// Messages.
    pub log: LogOptions,
    /// One line for each option that has no effect.
    pub warnings: Vec<String>,
}

/// Whether `suid` and `dev` were asked for, over layers that are not to be trusted so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct AskedTrust {
    /// `suid`.
    pub suid: bool,
    /// `dev`.
    pub dev: bool,
}

impl AskedTrust {
    /// Makes root's mount nosuid and nodev where others say what is setuid in it, and what a device.
    pub(super) fn mistrust(self, mount: &mut MountFlags) {
        if is_privileged() {
            mount.no_suid |= !self.suid;
            mount.no_dev |= !self.dev;
        }
    }
}
