//! The runtime directory, which holds the control sockets: `/run/unionmount` for root,
//! `$XDG_RUNTIME_DIR/unionmount` for others, and `/tmp/unionmount-UID` where there is neither.
//!
//! A socket is called after its mount's device number (`0:53.sock`): no two mounts of a machine have the same one at the
//! same time, in whatever namespaces they are. A daemon that is killed leaves its socket; the next mount that gets the
//! number takes the name over, and who asks about mounts sweeps. So a start costs the same however many mounts there are.

#![allow(clippy::disallowed_methods, reason = "the directory is its own")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

const NAME: &str = "unionmount";
/// What the names of sockets end in.
pub const SUFFIX: &str = ".sock";

/// Returns the directory of this process's own sockets, made if need be.
///
/// # Errors
/// When none of the places is safe or can be made; the message names them.
pub fn own() -> io::Result<(PathBuf, OwnedFd)> {
    let mut refusals = Vec::new();
    for place in places() {
        match open_safe(&place, true) {
            Ok(dir) => return Ok((place, dir)),
            Err(error) => refusals.push(format!("{}: {error}", place.display())),
        }
    }
    Err(io::Error::other(refusals.join("; ")))
}

/// Returns the name of a mount's socket.
pub fn socket_name(device: &str) -> String {
    format!("{device}{SUFFIX}")
}

/// Returns where the socket of a mount may be, for a client.
pub fn sockets_of(device: &str) -> Vec<PathBuf> {
    let name = socket_name(device);
    let mut dirs = places();
    dirs.push(Path::new("/run").join(NAME));
    if rustix::process::geteuid().is_root() {
        // Root may look into the directories of others.
        let users = std::fs::read_dir("/run/user").into_iter().flatten().flatten();
        dirs.extend(users.map(|user| user.path().join(NAME)));
        let tmp = std::fs::read_dir("/tmp").into_iter().flatten().flatten();
        let ours = tmp.filter(|e| e.file_name().to_string_lossy().starts_with(&format!("{NAME}-")));
        dirs.extend(ours.map(|entry| entry.path()));
    }
    let mut sockets: Vec<PathBuf> = dirs.into_iter().map(|dir| dir.join(&name)).collect();
    sockets.dedup();
    sockets
}

/// Returns the places for this user's directory, best first.
fn places() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if rustix::process::geteuid().is_root() {
        places.push(Path::new("/run").join(NAME));
    }
    if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute())
    {
        places.push(dir.join(NAME));
    }
    places.push(PathBuf::from(format!("/tmp/{NAME}-{}", outer_uid())));
    places
}

/// Returns the user's id outside of a user namespace that only maps it to root, so that both sides name one directory.
fn outer_uid() -> u32 {
    let uid = rustix::process::geteuid().as_raw();
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let outer = map.lines().find_map(|line| {
        let mut fields = line.split_whitespace().map(|field| field.parse::<u32>().ok());
        let (inside, outside, count) = (fields.next()??, fields.next()??, fields.next()??);
        let offset = uid.checked_sub(inside)?;
        (offset < count).then(|| outside.checked_add(offset)).flatten()
    });
    outer.unwrap_or(uid)
}

/// Opens a directory that nobody else could have prepared: this user's, and writable for nobody else.
fn open_safe(place: &Path, make: bool) -> io::Result<OwnedFd> {
    if make {
        match rustix::fs::mkdir(place, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(place, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&dir)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!("belongs to uid {}", stat.st_uid)));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(io::Error::other("others may write to it"));
    }
    Ok(dir)
}

/// Removes the sockets of daemons that were killed. Nobody listens on them any more.
pub fn sweep(place: &Path, dir: &OwnedFd) {
    let entries = match rustix::fs::Dir::read_from(dir) {
        Ok(entries) => entries,
        Err(errno) => return log::debug!("{}: {errno}", place.display()),
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_bytes().ends_with(SUFFIX.as_bytes()) {
            let path = place.join(name.to_string_lossy().as_ref());
            remove_if_stale(&path, dir, name);
        }
    }
}

fn remove_if_stale(path: &Path, dir: &OwnedFd, name: &std::ffi::CStr) {
    let is_socket = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket);
    if !is_socket {
        return;
    }
    if is_abandoned(path) {
        match rustix::fs::unlinkat(dir.as_fd(), name, AtFlags::empty()) {
            Ok(()) => log::info!("removed {}, left by a daemon that was killed", path.display()),
            Err(errno) => log::debug!("{}: {errno}", path.display()),
        }
    }
}

/// Returns whether nobody has that socket. Wakes nobody: a connection of another type than the socket's is refused by
/// the kernel, with another error where somebody has it (unix(7): EPROTOTYPE).
fn is_abandoned(path: &Path) -> bool {
    let asked = SocketAddrUnix::new(path).and_then(|address| {
        let datagrams = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        connect(&datagrams, &address)
    });
    asked == Err(Errno::CONNREFUSED)
}

/// A socket in this user's directory.
#[derive(Debug)]
pub struct Socket {
    /// Where it is.
    pub path: PathBuf,
    /// Its name, see [`socket_name`].
    pub name: String,
}

/// Returns the sockets in this user's directories, of daemons that live or were killed.
pub fn own_sockets() -> Vec<Socket> {
    let mut sockets = Vec::new();
    for place in places().into_iter().filter(|place| open_safe(place, false).is_ok()) {
        for entry in std::fs::read_dir(&place).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(SUFFIX) {
                sockets.push(Socket { path: entry.path(), name });
            }
        }
    }
    sockets
}

/// Sweeps this user's directory, if there is one.
pub fn sweep_own() {
    for place in places() {
        if let Ok(dir) = open_safe(&place, false) {
            sweep(&place, &dir);
        }
    }
}

/// Removes a socket that this process made, if it is still the one.
pub(super) fn remove_own(dir: &OwnedFd, name: &str, ino: u64) {
    let same = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| stat.st_ino == ino);
    if same && let Err(errno) = rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        log::debug!("control socket {name}: {errno}");
    }
}

/// Gives a socket that this process made another name, if it is still the one.
pub(super) fn rename_own(dir: &OwnedFd, (name, ino): (&str, u64), to: &str) -> io::Result<()> {
    if rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_ino != ino {
        return Err(io::Error::other("it is another's"));
    }
    Ok(rustix::fs::renameat(dir, name, dir, to)?)
}

/// Moves a socket that listens already to its final name, over a stale one.
pub(super) fn publish(dir: &OwnedFd, from: &str, to: &str) -> io::Result<u64> {
    rustix::fs::renameat(dir, from, dir, to)?;
    Ok(rustix::fs::statat(dir, to, AtFlags::SYMLINK_NOFOLLOW)?.st_ino)
}

/// Makes a file accessible for its owner alone.
pub(super) fn restrict(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::chmodat(CWD, path, Mode::RUSR | Mode::WUSR, AtFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn only_a_directory_of_ones_own_is_safe() {
        let top = tempfile::tempdir().unwrap();
        let place = top.path().join("unionmount");
        assert!(open_safe(&place, false).is_err(), "it is not made unasked");
        open_safe(&place, true).unwrap();
        assert_eq!(std::fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o700);
        symlink(&place, top.path().join("link")).unwrap();
        assert!(open_safe(&top.path().join("link"), true).is_err(), "somebody else's link");
        std::fs::set_permissions(&place, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(open_safe(&place, true).is_err(), "others may write to it");
        if rustix::process::geteuid().is_root() {
            std::fs::set_permissions(&place, PermissionsExt::from_mode(0o700)).unwrap();
            std::os::unix::fs::chown(&place, Some(4321), None).unwrap();
            assert!(open_safe(&place, true).is_err(), "it is another user's");
        }
    }

    #[test]
    fn stale_sockets_go_and_others_stay() {
        let top = tempfile::tempdir().unwrap();
        let place = top.path().to_owned();
        let dir = open_safe(&place, true).unwrap();
        let live = std::os::unix::net::UnixListener::bind(place.join("0:1.sock")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(place.join("0:2.sock")).unwrap());
        std::fs::write(place.join("0:3.sock"), "no socket").unwrap();
        sweep(&place, &dir);
        let mut names: Vec<_> =
            std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["0:1.sock", "0:3.sock"]);
        // Nobody was woken to find out.
        live.set_nonblocking(true).unwrap();
        assert_eq!(live.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
