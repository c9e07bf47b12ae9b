//! Mounts of containers and images.
//!
//! They are made by calling this very program again, with the command line that a person would use: nothing here is
//! linked to FUSE, and a mount outlives the command that made it.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::error::{ContainerError, Result};
use crate::control::mounts::{self, Mount};
use crate::sys::dir::open_named;
use crate::sys::flock::{Access, lock_until};
use crate::sys::fusermount;

/// How long a daemon may take to end after its mount has gone.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What a mount lets its users do beside what modes and owners say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rights {
    /// Setuid programs and file capabilities of the image have their effect.
    pub suid: bool,
    /// Its device nodes can be opened.
    pub dev: bool,
    /// Others than the mounting user may use it.
    pub others: bool,
}

impl Rights {
    /// What a running container needs: its programs are of many users, and its devices are not the image's.
    pub const OF_RUNNING: Rights = Rights { suid: true, dev: false, others: true };

    fn options(self) -> String {
        let word = |allowed: bool, yes: &'static str, no: &'static str| if allowed { yes } else { no };
        [
            word(self.suid, "suid", "nosuid"),
            word(self.dev, "dev", "nodev"),
            word(self.others, "allow_other", "noallow_other"),
        ]
        .join(",")
    }
}

/// Mounts a stack at `at`; `upper`: the writable layer and its workdir. `id`: the short one, which the
/// mount's source tells. `hold`: directories that the mount's daemon keeps from being removed by a shared lock. `options`: more
/// options.
///
/// # Errors
/// The message of the mount.
pub fn mount(
    lowers: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    at: &Path,
    id: &str,
    hold: &[&Path],
    (rights, options): (Rights, &str),
) -> Result<()> {
    let mut command = stacked(lowers, upper, hold);
    command.arg("-o").arg(rights.options());
    if !options.is_empty() {
        command.arg("-o").arg(options);
    }
    command.arg(self::source(id)).arg(at);
    started(&mut command)
}

/// Returns this program's command line for a stack, without where it is mounted.
pub(super) fn stacked(lowers: &[PathBuf], upper: Option<(&Path, &Path)>, hold: &[&Path]) -> Command {
    // The running binary, even if its file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("unionmount");
    for lower in lowers {
        command.arg("--lower").arg(escape_colons(lower));
    }
    if let Some((upper, work)) = upper {
        command.arg("--upper").arg(upper).arg("--work").arg(work);
    }
    for dir in hold {
        command.arg("--hold").arg(dir);
    }
    command
}

/// Runs a command that mounts; its daemon stays.
///
/// # Errors
/// Its message.
pub(super) fn started(command: &mut Command) -> Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let output =
        command.stderr(Stdio::piped()).output().map_err(ContainerError::io("run it", "/proc/self/exe"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        for line in said.lines() {
            log::warn!("{line}");
        }
        return Ok(());
    }
    let said = said.trim().strip_prefix("unionmount: ").unwrap_or(said.trim()).to_owned();
    Err(ContainerError::Refused(said))
}

fn escape_colons(path: &Path) -> OsString {
    let mut escaped = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte == b':' || byte == b'\\' {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    OsString::from_vec(escaped)
}

/// Returns the mounts of a container or an image by its short id, as far as this process sees. Whoever mounts chooses the
/// source, so those of others don't count, root's aside: they are asked nothing.
///
/// # Errors
/// When the table of mounts can't be read.
pub fn mounts_of(short_id: &str) -> Result<Vec<Mount>> {
    let source = source(short_id);
    let all = mounts::all().map_err(ContainerError::io("read it", "/proc/self/mountinfo"))?;
    Ok(all.into_iter().filter(|mount| mount.source == source && mount.is_trusted()).collect())
}

/// Returns what mount(8) shows as the source of the mounts of a container or an image.
pub fn source(short_id: &str) -> String {
    format!("unionmount-{short_id}")
}

/// Opens the root of a mount; `None` when it has gone meanwhile.
///
/// # Errors
/// When it can't be opened.
pub fn open_root(mount: &Mount) -> Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = match rustix::fs::open(&mount.point, flags, Mode::empty()) {
        Ok(root) => File::from(root),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(ContainerError::io("open it", &mount.point)(errno)),
    };
    let found = statx(&root, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID)
        .map_err(ContainerError::io("look at it", &mount.point))?;
    Ok((found.stx_mnt_id == mount.id).then_some(root))
}

/// Returns whether something is mounted right on that directory. Asks no daemon.
///
/// # Errors
/// When the directory can't be looked at.
pub fn is_mounted(at: &Path) -> Result<bool> {
    match statx(CWD, at, AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT, StatxFlags::TYPE) {
        Ok(found) => Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT) => Ok(false),
        // A mount whose daemon has gone.
        Err(Errno::NOTCONN | Errno::CONNABORTED) => Ok(true),
        Err(errno) => Err(ContainerError::io("look at it", at)(errno)),
    }
}

/// Unmounts.
///
/// # Errors
/// When it is in use, or of somebody else.
pub fn unmount(at: &Path) -> Result<()> {
    match rustix::mount::unmount(at, UnmountFlags::NOFOLLOW) {
        Ok(()) => return Ok(()),
        Err(Errno::PERM) => {}
        Err(Errno::BUSY) => {
            return Err(ContainerError::Refused(format!(
                "{}: is in use; end what uses it (fuser -m tells), then try again",
                at.display()
            )));
        }
        Err(errno) => return Err(ContainerError::io("unmount it", at)(errno)),
    }
    match fusermount::unmount(at, false).map_err(ContainerError::io("run it", fusermount::NAME))? {
        None => Ok(()),
        Some(said) => Err(ContainerError::Refused(format!("{}: cannot be unmounted: {said}", at.display()))),
    }
}

/// Ends a mount that nobody needs any more, in all mount namespaces: a copy of it is in each that was made meanwhile,
/// wherever on the machine, and would keep the daemon. The kernel takes them away with the directory on which they are,
/// which is made again. What has files open in it keeps what it has.
///
/// # Errors
/// When it can't be unmounted here.
pub fn detach(at: &Path) -> Result<()> {
    if is_mounted(at)? {
        match rustix::mount::unmount(at, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(Errno::PERM) => unmount(at)?,
            Err(errno) => return Err(ContainerError::io("unmount it", at)(errno)),
        }
    }
    match std::fs::remove_dir(at) {
        Ok(()) => {
            std::fs::DirBuilder::new().mode(0o700).create(at).map_err(ContainerError::io("create it", at))
        }
        // Mounted once more meanwhile, or with a container's root below it; then it stays.
        Err(error) => {
            log::info!("{}: copies of the mount may stay: {error}", at.display());
            Ok(())
        }
    }
}

/// Waits until no daemon has the upper: umount(2) returns before the daemon has seen its end. `false`: one still has it.
///
/// # Errors
/// When the upper can't be opened.
pub fn wait_for_end(upper: &Path, patience: Duration) -> Result<bool> {
    let dir = match open_named(upper) {
        Err(Errno::NOENT) => return Ok(true),
        dir => dir.map_err(ContainerError::io("open it", upper))?,
    };
    match lock_until(&dir, Access::Exclusive, Instant::now() + patience) {
        // On a filesystem that can't tell, it is taken for free.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(true),
        locked => locked.map_err(ContainerError::io("lock it", upper)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_whose_mount_has_gone_is_not_taken_for_it() {
        let top = tempfile::tempdir().unwrap();
        let found = statx(CWD, top.path(), AtFlags::empty(), StatxFlags::MNT_ID).unwrap().stx_mnt_id;
        let mount = |id: u64, point: PathBuf| Mount {
            id,
            point,
            root: "/".into(),
            device: "0:53".into(),
            source: source("0123"),
            owner: Some(0),
            options: String::new(),
        };
        assert!(open_root(&mount(found, top.path().to_owned())).unwrap().is_some());
        assert!(open_root(&mount(found + 1, top.path().to_owned())).unwrap().is_none());
        assert!(open_root(&mount(found, top.path().join("none"))).unwrap().is_none());
    }
}
