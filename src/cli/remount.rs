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
    change_layers(&of_layers, &mount, point)?;
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

/// Does what options say of layers, one after the other. All are understood before anything is done.
fn change_layers(options: &[&[u8]], mount: &Mount, point: &Path) -> Result<(), Failure> {
    let failed = |option: &[u8], why: &dyn std::fmt::Display| {
        Failure::failed(format!(
            "{}: remount: {}: {why}",
            EscapedPath::from(point),
            EscapedPath::from(option)
        ))
    };
    let changes: Vec<LayerChange> = options
        .iter()
        .map(|option| layer_change(option).map_err(|why| failed(option, &why)))
        .collect::<Result<_, _>>()?;
    for (at, (change, option)) in changes.into_iter().zip(options).enumerate() {
        let shown = EscapedPath::from(*option);
        let before: Vec<String> =
            options[..at].iter().map(|done| EscapedPath::from(*done).to_string()).collect();
        let before = if at == 0 {
            String::new()
        } else {
            format!("; what was done before it stays: {}", before.join(", "))
        };
        // As it is by now: another may have come before.
        let status =
            Client::connect(mount).and_then(|mut daemon| daemon.status()).map_err(Failure::failed)?;
        let verb =
            change.verb(&mount.point, &status).map_err(|why| failed(option, &format!("{why}{before}")))?;
        verb.run().map_err(|failure| Failure {
            message: format!("remount: {shown}: {}{before}", failure.message),
            ..failure
        })?;
    }
    Ok(())
}

/// A change of the layers, as an option says it.
#[derive(Debug, PartialEq, Eq)]
enum LayerChange {
    Remove(OsString),
    /// The directory, and where it is to come.
    Add(OsString, Place),
}

/// Where a layer is to come, as an option says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Top,
    Bottom,
    /// As the layer of that number.
    As(u16),
}

impl LayerChange {
    /// Returns what does it to a mount as it is.
    fn verb(self, point: &Path, status: &Status) -> Result<Verb, String> {
        let (path, place) = match self {
            LayerChange::Remove(layer) => return Ok(Verb::remove(layer, point)),
            LayerChange::Add(path, place) => (path, place),
        };
        let last = status.layers.iter().map(|layer| layer.layer).max().unwrap_or_default();
        let place = match place {
            Place::Top => Where::Top,
            Place::Bottom => Where::Bottom,
            Place::As(number) if number <= last => Where::Above(number),
            Place::As(number) if number == last.saturating_add(1) => Where::Bottom,
            Place::As(number) => return Err(format!("it has no layer {number}")),
        };
        Ok(Verb::add(path.into(), place, point))
    }
}

/// Tells whether a word says how a branch of AUFS is to be used: `rw`, `ro` or `rr`, with attributes behind a plus.
fn is_mode(word: &[u8]) -> bool {
    [&b"rw"[..], b"ro", b"rr"].contains(&word.split(|byte| *byte == b'+').next().unwrap_or(word))
}

/// Reads an option that changes the layers. A branch of AUFS may say how it is to be used.
fn layer_change(option: &[u8]) -> Result<LayerChange, String> {
    let colon = option.iter().position(|byte| *byte == b':').unwrap_or(option.len());
    let (word, rest) = (&option[..colon], option.get(colon + 1..).unwrap_or_default());
    if word == b"del" {
        return Ok(LayerChange::Remove(OsStr::from_bytes(rest).into()));
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
        Some(at) if is_mode(&rest[at + 1..]) => (&rest[..at], &rest[at + 1..]),
        _ => (rest, &b"ro"[..]),
    };
    if ![&b"ro"[..], b"rr", b"ro+wh", b"rr+wh"].contains(&mode) {
        return Err(format!("{} is no mode of a lower; only ro is", EscapedPath::from(mode)));
    }
    let place = match number {
        None if word == b"append" => Place::Bottom,
        None => Place::Top,
        Some(0) => return Err("0 is the upper; the topmost lower is 1".to_owned()),
        Some(number) => Place::As(number),
    };
    Ok(LayerChange::Add(OsStr::from_bytes(path).into(), place))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_an_equals_sign_is_a_mode_only_where_it_is_one() {
        let add = |path: &[u8], place| Ok(LayerChange::Add(OsStr::from_bytes(path).into(), place));
        assert_eq!(layer_change(b"append:/a=ro"), add(b"/a", Place::Bottom));
        assert_eq!(layer_change(b"prepend:/a=rr+wh"), add(b"/a", Place::Top));
        assert_eq!(layer_change(b"ins:2:/x=1"), add(b"/x=1", Place::As(2)));
        assert_eq!(layer_change(b"add:2:/x=b/c=ro"), add(b"/x=b/c", Place::As(2)));
        assert!(layer_change(b"append:/a=rw").unwrap_err().contains("rw is no mode"));
        assert!(layer_change(b"append:/a=rw+nolwh").unwrap_err().contains("no mode"));
        assert_eq!(layer_change(b"del:/a\xff"), Ok(LayerChange::Remove(OsStr::from_bytes(b"/a\xff").into())));
    }
}
