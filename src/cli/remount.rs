//! `mount -o remount,…`: what of a mount can be changed while it is there, which is whether it can be written to, and its lowers.
//!
//! mount(8) calls its helper with all options that it knows of the mount, from /etc/fstab and from the kernel, and those
//! of its own command line. What is as it was is no change; any change but `ro`, `rw` and those of layers is refused by name.
//!
//! Layers are changed in the words of AUFS: `append:DIR`, `prepend:DIR`, `ins:N:DIR` (and `add:N:DIR`, its older form), `del:DIR`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::mount::{MountFlags, mount_remount};

use super::Failure;
use super::layers::change::{Verb, Where};
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
/// When there is none of unionmount, when something else than `ro`, `rw` or layers is to be changed, and the kernel's.
pub(super) fn run(options: &[OsString], point: &Path) -> Result<(), Failure> {
    let failed =
        |error: &dyn std::fmt::Display| Failure::failed(format!("{}: {error}", EscapedPath::from(point)));
    let found =
        std::fs::canonicalize(point).and_then(|point| mounts::at(&point)).map_err(|error| failed(&error))?;
    let mount = found.ok_or_else(|| failed(&"remount: no mount of unionmount"))?;
    let status = Client::connect(&mount).and_then(|mut daemon| daemon.status()).map_err(Failure::failed)?;
    let asked: Vec<&[u8]> = options.iter().flat_map(|text| split(text.as_bytes())).collect();
    let (of_layers, asked): (Vec<&[u8]>, Vec<&[u8]>) =
        asked.into_iter().partition(|option| is_of_layers(option));
    if let Some(change) = asked.iter().find(|option| !stays(option, &mount, &status)) {
        let name = change.split(|&byte| byte == b'=').next().unwrap_or(change);
        let name = EscapedPath::from(name);
        return Err(failed(&format!(
            "remount: {name} can't be changed while it is mounted, only ro and rw can, and layers; unmount it and mount again"
        )));
    }
    for option in of_layers {
        // As it is by now: another may have come before.
        let status =
            Client::connect(&mount).and_then(|mut daemon| daemon.status()).map_err(Failure::failed)?;
        let shown = EscapedPath::from(option);
        let change = layer_change(option, &mount.point, &status)
            .map_err(|why| failed(&format!("remount: {shown}: {why}")))?;
        change.run().map_err(|failure| Failure {
            message: format!("remount: {shown}: {}", failure.message),
            ..failure
        })?;
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

/// Tells whether an option changes the layers.
fn is_of_layers(option: &[u8]) -> bool {
    [&b"append:"[..], b"prepend:", b"ins:", b"add:", b"del:"].iter().any(|word| option.starts_with(word))
}

/// Reads an option that changes the layers. A branch of AUFS may say how it is to be used.
fn layer_change(option: &[u8], point: &Path, status: &Status) -> Result<Verb, String> {
    let colon = option.iter().position(|byte| *byte == b':').unwrap_or(option.len());
    let (word, rest) = (&option[..colon], option.get(colon + 1..).unwrap_or_default());
    if word == b"del" {
        return Ok(Verb::remove(String::from_utf8_lossy(rest).into_owned(), point));
    }
    let (number, rest) = match word {
        b"ins" | b"add" => {
            let colon = rest
                .iter()
                .position(|byte| *byte == b':')
                .ok_or("a number and a directory, as in ins:1:/dir")?;
            let number = std::str::from_utf8(&rest[..colon]).ok().and_then(|text| text.parse::<u16>().ok());
            (Some(number.ok_or("a number of a layer, as in ins:1:/dir")?), &rest[colon + 1..])
        }
        _ => (None, rest),
    };
    let (path, mode) = match rest.iter().rposition(|byte| *byte == b'=') {
        Some(at) if !rest[at..].contains(&b'/') => (&rest[..at], &rest[at + 1..]),
        _ => (rest, &b"ro"[..]),
    };
    if ![&b"ro"[..], b"rr", b"ro+wh", b"rr+wh"].contains(&mode) {
        return Err(format!("{} is no mode of a lower; only ro is", EscapedPath::from(mode)));
    }
    let last = status.layers.iter().map(|layer| layer.layer).max().unwrap_or_default();
    let place = match (word, number) {
        (b"append", _) => Where::Bottom,
        (b"prepend", _) => Where::Top,
        (_, Some(0)) => return Err("0 is the upper; the topmost lower is 1".to_owned()),
        (_, Some(number)) if number <= last => Where::Above(number),
        (_, Some(number)) if number == last + 1 => Where::Bottom,
        _ => return Err(format!("it has no layer {}", number.unwrap_or_default())),
    };
    Ok(Verb::add(OsStr::from_bytes(path).into(), place, point))
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
