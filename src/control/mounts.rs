//! The mounts of this machine as the kernel lists them, and which of them a path is in.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, statx};
use rustix::io::Errno;

use super::protocol::About;
use crate::sys::mountinfo::{Entry, Table};
use crate::union::escaped_path::EscapedPath;

/// A mount of unionmount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's id of the mount.
    pub id: u64,
    /// Where it is.
    pub point: PathBuf,
    /// The directory of the filesystem that is seen there: `/`, unless a part of it was bind-mounted.
    pub root: PathBuf,
    /// `MAJOR:MINOR` of its device number: the filesystem's name while it is mounted.
    pub device: String,
    /// What was given as its source.
    pub source: String,
    /// Who mounted it.
    pub owner: Option<u32>,
    /// Its options, as the kernel lists them: of the mount, then of the filesystem.
    pub options: String,
}

/// What is known of a mount's daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It answers.
    Alive,
    /// It has ended, and the mount is still there.
    Dead,
    /// It says nothing, or this process may not ask.
    Unknown,
}

impl Mount {
    /// Returns a mount of the kernel's table; `None` for other filesystems.
    fn of(entry: Entry<'_>) -> Option<Mount> {
        if entry.kind != "fuse.unionmount" {
            return None;
        }
        let path = |bytes: Cow<'_, [u8]>| PathBuf::from(OsString::from_vec(bytes.into_owned()));
        let options = &entry.filesystem_options;
        let owner = options.split(',').find_map(|option| option.strip_prefix("user_id=")?.parse().ok());
        Some(Mount {
            id: entry.id,
            owner,
            options: format!("{},{options}", entry.options),
            point: path(entry.point),
            root: path(entry.root),
            device: entry.device.into_owned(),
            source: String::from_utf8_lossy(&entry.source).into_owned(),
        })
    }

    /// Returns whether this process may ask it: it is root's or this user's, and not made to hold somebody up or to mislead.
    pub fn is_trusted(&self) -> bool {
        let us = rustix::process::geteuid().as_raw();
        self.owner.is_some_and(|owner| owner == us || owner == 0)
    }

    /// Returns whether another user's daemon serves it, root's aside. One that is seen in no table of mounts was found by a
    /// socket of this user's.
    pub fn is_of_another(&self) -> bool {
        self.owner.is_some() && !self.is_trusted()
    }

    /// Returns whether its daemon lives, asked through the mount for at most `patience`.
    ///
    /// The kernel lets nobody go whose question a daemon has read, SIGKILL or not. So the daemons of other users, root's
    /// aside, are never asked.
    pub fn life(&self, patience: Duration) -> Life {
        if !self.is_trusted() {
            return Life::Unknown;
        }
        let ask = |point: &Path| {
            let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
            statx(CWD, point, flags, StatxFlags::BASIC_STATS).map(drop)
        };
        let (point, (tell, told)) = (self.point.clone(), mpsc::channel());
        let asking = std::thread::Builder::new().name("ask".into()).spawn(move || {
            // Nobody listens any more when patience was short.
            tell.send(ask(&point)).unwrap_or_default();
        });
        let said = match asking {
            Ok(thread) => {
                let said = told.recv_timeout(patience).ok();
                // It has nothing more to do, and whoever forks afterwards must be alone.
                if said.is_some() && thread.join().is_err() {
                    log::debug!("the thread that asked has panicked");
                }
                said
            }
            // Without a thread to spare there is no patience either.
            Err(_) => Some(ask(&self.point)),
        };
        match said {
            Some(Err(Errno::NOTCONN | Errno::CONNABORTED)) => Life::Dead,
            Some(Ok(())) => Life::Alive,
            _ => Life::Unknown,
        }
    }

    /// Returns a mount that this process doesn't see, by what its daemon says.
    pub fn elsewhere(about: &About) -> Mount {
        Mount {
            id: 0,
            point: about.mount_point.as_path().to_owned(),
            root: "/".into(),
            device: about.device.clone(),
            source: String::new(),
            owner: None,
            options: String::new(),
        }
    }
}

/// Returns the mounts of unionmount that this process sees, oldest first.
///
/// # Errors
/// Those of reading /proc/self/mountinfo.
pub fn all() -> io::Result<Vec<Mount>> {
    Ok(Table::read()?.entries().filter_map(Mount::of).collect())
}

/// Returns the mount of unionmount that is on top at `point`, an absolute path without symlinks. Asks the mount
/// nothing.
///
/// # Errors
/// Those of [`all`].
pub fn at(point: &Path) -> io::Result<Option<Mount>> {
    Ok(all()?.into_iter().rev().find(|mount| mount.point == point))
}

/// Returns the `MAJOR:MINOR` of what is mounted at `point`. Asks the mount nothing.
///
/// # Errors
/// Those of statx(2).
pub fn device_at(point: &Path) -> io::Result<String> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = statx(CWD, point, flags, StatxFlags::empty())?;
    Ok(format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor))
}

/// Why a path is in no mount of unionmount.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// It is elsewhere.
    #[error(
        "{}: not in a mount of unionmount; `unionmount status` lists the mounts",
        EscapedPath::from(.0.as_path())
    )]
    Elsewhere(PathBuf),
    /// It leads through `..` of what doesn't exist.
    #[error("{}: leads through something that doesn't exist; give a path without `..`", EscapedPath::from(.0.as_path()))]
    Unclear(PathBuf),
    /// It can't be looked at.
    #[error("{}: {error}", EscapedPath::from(.path.as_path()))]
    Io {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Returns the mount that a path is in, and the path from the root of the filesystem. The path need not exist; its last
/// component is not followed if it is a symbolic link.
///
/// # Errors
/// See [`NotFound`].
pub fn of(path: &Path) -> Result<(Mount, Vec<u8>), NotFound> {
    let io = |error: io::Error| NotFound::Io { path: path.to_owned(), error };
    let (anchor, rest) = anchor(path).map_err(io)?;
    if rest.iter().any(|name| name == "..") {
        return Err(NotFound::Unclear(path.to_owned()));
    }
    let stat = statx(CWD, &anchor, AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID)
        .map_err(|errno| io(errno.into()))?;
    let mount = all().map_err(io)?.into_iter().find(|mount| mount.id == stat.stx_mnt_id);
    let mount = mount.ok_or_else(|| NotFound::Elsewhere(path.to_owned()))?;
    let below = anchor.strip_prefix(&mount.point).unwrap_or(Path::new(""));
    let mut full = mount.root.join(below);
    full.extend(rest);
    let full = full.as_os_str().as_bytes();
    let relative = full.strip_prefix(b"/").unwrap_or(full).to_vec();
    Ok((mount, relative))
}

/// Returns the deepest directory on the path that exists, without symbolic links, and what follows.
fn anchor(path: &Path) -> io::Result<(PathBuf, Vec<OsString>)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // A name that ends in a slash or a dot is followed, as everywhere.
    if rustix::fs::open(path, flags, Mode::empty()).is_ok() {
        return Ok((std::fs::canonicalize(path)?, Vec::new()));
    }
    let mut rest = Vec::new();
    let mut at = path.to_owned();
    loop {
        let name = match at.components().next_back() {
            Some(Component::Normal(name)) => name.to_owned(),
            Some(Component::ParentDir) => "..".into(),
            _ => {
                return Ok((
                    std::fs::canonicalize(if at.as_os_str().is_empty() { Path::new(".") } else { &at })?,
                    reversed(rest),
                ));
            }
        };
        rest.push(name);
        at = at.parent().map(Path::to_owned).unwrap_or_default();
        let parent = if at.as_os_str().is_empty() { Path::new(".") } else { &at };
        match std::fs::canonicalize(parent) {
            // Asks nothing of a mount on it, which may be dead.
            Ok(found) if rustix::fs::open(&found, flags, Mode::empty()).is_ok() => {
                return Ok((found, reversed(rest)));
            }
            Ok(_) => {}
            // A symbolic link that leads nowhere, too.
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                // In a mount whose daemon has ended only its root is still found.
                Some(Errno::NOTCONN | Errno::CONNABORTED) => {}
                _ => return Err(error),
            },
        }
    }
}

fn reversed(mut names: Vec<OsString>) -> Vec<OsString> {
    names.reverse();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_other_filesystems_are_none_of_ours() {
        let entry = |kind: &'static str| Entry {
            id: 97,
            parent: 1,
            device: "0:53".into(),
            root: b"/sub"[..].into(),
            point: b"/mnt"[..].into(),
            options: "rw,relatime".into(),
            kind: kind.into(),
            source: b"none"[..].into(),
            filesystem_options: "rw,user_id=1000,group_id=1000".into(),
        };
        let mount = Mount::of(entry("fuse.unionmount")).unwrap();
        assert_eq!((mount.owner, &mount.options[..17]), (Some(1000), "rw,relatime,rw,us"));
        assert_eq!(Mount::of(entry("ext4")), None);
    }

    #[test]
    fn the_deepest_directory_is_found() {
        let top = tempfile::tempdir().unwrap();
        let real = top.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("d")).unwrap();
        std::os::unix::fs::symlink("d", real.join("link")).unwrap();
        std::fs::write(real.join("f"), "").unwrap();
        for (path, found, rest) in [
            ("d", "d", &[][..]),
            ("link", "", &["link"]),
            ("link/x/y", "d", &["x", "y"]),
            ("f/x", "", &["f", "x"]),
            ("none", "", &["none"]),
        ] {
            let (anchor, names) = anchor(&real.join(path)).unwrap();
            assert_eq!(anchor, if found.is_empty() { real.clone() } else { real.join(found) }, "{path}");
            assert_eq!(names, rest, "{path}");
        }
    }
}
