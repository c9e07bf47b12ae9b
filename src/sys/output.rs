//! Files that are written to by a path that somebody gave.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Component, Path};

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;

use super::object::{At, Kind, Stat};

/// Opens a file to add to it, and makes it with mode 0644 (less the umask) where there is none.
///
/// In a directory in which others than root and this user can make names (/tmp, somebody's home), what has the name must be
/// a regular file of root's or of this user's, with no other name, and no symbolic link: anything else may have been put
/// there by somebody to have another file written to, or to have this process wait.
///
/// # Errors
/// Those of opening it, and `PermissionDenied` that says why for what isn't written to.
pub fn open_to_append(path: &Path) -> io::Result<File> {
    let (dir, name) = match (path.parent(), path.components().next_back()) {
        (Some(dir), Some(Component::Normal(name))) => (dir, name),
        _ => return Err(Errno::ISDIR.into()),
    };
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = fs::open(dir, flags, Mode::empty())?;
    let shared = !is_own(&At::Fd(dir.as_fd()).stat()?);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOCTTY;
    let flags = flags | OFlags::NONBLOCK | if shared { OFlags::NOFOLLOW } else { OFlags::empty() };
    let file = match fs::openat(&dir, name, flags, Mode::from_raw_mode(0o644)) {
        Err(Errno::LOOP) if shared => return Err(refused("a symbolic link")),
        Err(Errno::NXIO) if shared => return Err(refused("no regular file")),
        // The kernel has the same rule for sticky directories (fs.protected_*), and doesn't say which.
        Err(Errno::ACCESS) if shared => return Err(refused("not to be opened, or no file of one's own")),
        other => other?,
    };
    if shared {
        check(&At::Fd(file.as_fd()).stat()?)?;
    }
    wait_to_write(file.as_fd())?;
    Ok(file.into())
}

/// Returns whether only root and this user can make names in it.
fn is_own(dir: &Stat) -> bool {
    is_trusted(dir.uid) && dir.mode & 0o022 == 0
}

fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

fn check(stat: &Stat) -> io::Result<()> {
    if stat.kind() != Kind::File {
        return Err(refused("no regular file"));
    }
    if !is_trusted(stat.uid) {
        return Err(refused("a file of another user"));
    }
    if stat.nlink > 1 {
        return Err(refused("a file with other names"));
    }
    Ok(())
}

fn refused(what: &str) -> io::Error {
    let why =
        format!("it is {what} in a directory that others can write to; name one in a directory of your own");
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

/// Lets writing wait from here on, as for any log.
fn wait_to_write(file: BorrowedFd<'_>) -> io::Result<()> {
    let flags = fs::fcntl_getfl(file)?;
    Ok(fs::fcntl_setfl(file, flags - OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn dir(mode: u32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        dir
    }

    #[test]
    fn a_file_of_ones_own_is_added_to_anywhere() {
        for mode in [0o700, 0o1777] {
            let dir = dir(mode);
            for _ in 0..2 {
                open_to_append(&dir.path().join("log")).unwrap().write_all(b"x").unwrap();
            }
            assert_eq!(std::fs::read(dir.path().join("log")).unwrap(), b"xx");
        }
    }

    #[test]
    fn links_and_fifos_are_followed_in_ones_own_directory_only() {
        let (own, shared) = (dir(0o755), dir(0o1777));
        std::fs::write(own.path().join("target"), "").unwrap();
        for dir in [&own, &shared] {
            symlink(own.path().join("target"), dir.path().join("link")).unwrap();
            std::fs::hard_link(own.path().join("target"), dir.path().join("second")).unwrap();
            fs::mknodat(fs::CWD, dir.path().join("fifo"), fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                .unwrap();
        }
        open_to_append(&own.path().join("link")).unwrap();
        open_to_append(&own.path().join("second")).unwrap();
        assert!(open_to_append(&own.path().join("fifo")).is_err(), "nobody reads it, and nobody waits");
        for name in ["link", "second", "fifo"] {
            let error = open_to_append(&shared.path().join(name)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{name}");
        }
    }
}
