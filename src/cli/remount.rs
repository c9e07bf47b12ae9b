//! `mount -o remount,…`: what of a mount can be changed while it is there, which is whether it can be written to.
//!
//! mount(8) calls its helper with all options that it knows of the mount, from /etc/fstab and from the kernel, and those
//! of its own command line. What is as it was is no change; any change but `ro` and `rw` is refused by name.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::mount::{MountFlags, mount_remount};

use super::Failure;
use super::options::{Options, split};
use crate::control::client::Client;
use crate::control::mounts::{self, Mount};
use crate::control::protocol::Status;
use crate::union::escaped_path::EscapedPath;

/// Tells whether these option strings ask for a change of a mount that is there.
pub(super) fn is_asked(options: &[OsString]) -> bool {
    options.iter().any(|text| split(text.as_bytes()).contains(&&b"remount"[..]))
}

/// Changes the mount on `point`.
///
/// # Errors
/// When there is none of unionmount, when something else than `ro` or `rw` is to be changed, and the kernel's.
pub(super) fn run(options: &[OsString], point: &Path) -> Result<(), Failure> {
    let failed =
        |error: &dyn std::fmt::Display| Failure::failed(format!("{}: {error}", EscapedPath::from(point)));
    let found =
        std::fs::canonicalize(point).and_then(|point| mounts::at(&point)).map_err(|error| failed(&error))?;
    let mount = found.ok_or_else(|| failed(&"remount: no mount of unionmount"))?;
    let status = Client::connect(&mount).and_then(|mut daemon| daemon.status()).map_err(Failure::failed)?;
    let asked: Vec<&[u8]> = options.iter().flat_map(|text| split(text.as_bytes())).collect();
    if let Some(change) = asked.iter().find(|option| !stays(option, &mount, &status)) {
        let name = change.split(|&byte| byte == b'=').next().unwrap_or(change);
        let name = EscapedPath::from(name);
        return Err(failed(&format!(
            "remount: {name} can't be changed while it is mounted, only ro and rw can; unmount it and mount again"
        )));
    }
    let read_only = asked.iter().rev().find_map(|option| match *option {
        b"ro" => Some(true),
        b"rw" => Some(false),
        _ => None,
    });
    let Some(read_only) = read_only else { return Ok(()) };
    let upper = status.layers.first().filter(|layer| layer.layer == 0);
    if upper.is_none() && !read_only {
        return Err(failed(
            &"remount: it has no upper layer, or was mounted with ro, so it can't be made writable",
        ));
    }
    let kept = flags(&mount);
    let flags = if read_only { kept | MountFlags::RDONLY } else { kept };
    mount_remount(&mount.point, flags, c"").map_err(|errno| match errno {
        rustix::io::Errno::BUSY => failed(&"remount: files are open for writing in it"),
        rustix::io::Errno::PERM => failed(&"remount: only root may do that"),
        errno => failed(&format!("remount: {}", std::io::Error::from(errno))),
    })?;
    match upper.filter(|_| read_only) {
        Some(upper) => sync(upper.directory.as_path()),
        None => Ok(()),
    }
}

/// Makes what was written durable, as filesystems do that become read-only.
fn sync(upper: &Path) -> Result<(), Failure> {
    let synced = File::open(upper).and_then(|dir| Ok(crate::sys::filesystem::sync(&dir)?));
    synced.map_err(|error| {
        Failure::failed(format!("{}: read-only now, but cannot sync it: {error}", EscapedPath::from(upper)))
    })
}

/// Tells whether the mount is as this option says, or the option says nothing of the mount.
fn stays(option: &[u8], mount: &Mount, status: &Status) -> bool {
    let has = |name: &[u8]| mount.options.split(',').any(|known| known.as_bytes() == name);
    match option {
        b"remount" | b"ro" | b"rw" | b"defaults" | b"relatime" => return true,
        // Each undoes another.
        b"suid" | b"dev" | b"exec" | b"atime" | b"diratime" => return !has(&[b"no", option].concat()),
        b"async" => return !has(b"sync"),
        _ => {}
    }
    // What the kernel or mount(8) shows of it, and what it was mounted with.
    let given = status.about.options.iter().any(|known| known.0 == option);
    if has(option) || given {
        return true;
    }
    match option.splitn(2, |&byte| byte == b'=').collect::<Vec<_>>()[..] {
        [b"fsname" | b"source" | b"subtype", _] => true,
        _ => Options::means_nothing(OsStr::from_bytes(option)),
    }
}

/// Returns the flags of the mount, which a remount would take away.
fn flags(mount: &Mount) -> MountFlags {
    let named = [
        ("nosuid", MountFlags::NOSUID),
        ("nodev", MountFlags::NODEV),
        ("noexec", MountFlags::NOEXEC),
        ("noatime", MountFlags::NOATIME),
        ("nodiratime", MountFlags::NODIRATIME),
        ("relatime", MountFlags::RELATIME),
        ("sync", MountFlags::SYNCHRONOUS),
        ("dirsync", MountFlags::DIRSYNC),
    ];
    let known = |name: &str| mount.options.split(',').any(|option| option == name);
    named.into_iter().filter(|(name, _)| known(name)).map(|(_, flag)| flag).collect()
}
