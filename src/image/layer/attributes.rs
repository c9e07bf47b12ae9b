//! Owner, mode, extended attributes and times: read from a layer's directory, put there.
//!
//! The order in which they are put is that of what undoes what: a change of owner clears setuid bits and capabilities, an
//! ACL follows the mode, and every one of them changes times (design.md §5).
//!
//! # Of an ordinary user
//!
//! Everything on disk belongs to the user, who must be able to read and change it; what an object really is stands in
//! `user.containers.override_stat` = `uid:gid:mode:type`, as containers/storage and fuse-overlayfs write it. Devices,
//! fifos and symbolic links of other owners than 0:0, on which the kernel allows no `user.` attributes, are regular
//! files there; a link's target is the file's content. An attribute that the user may not set (`security.capability`)
//! is kept under `user.unionmount.kept.NAME`. So nothing of a tar is lost, and [`Attributes::read`] gives all of it back.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{XattrFlags, major, makedev, minor};
use rustix::io::Errno;

use super::LayerError;
use crate::sys::object::{At, Kind, SetTime, Stat, Time, Writable};
use crate::sys::xattr;
use crate::union::marker::{self, Namespace};

/// How owners, modes and devices are kept in a layer's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// As they are: needs root.
    Real,
    /// In `user.containers.override_stat`, by an ordinary user.
    OverrideStat,
}

impl Ownership {
    /// What this process can do: real owners only where every id and every device can be made.
    pub fn of_this_process() -> Ownership {
        // Root of a user namespace has a part of the ids and no devices.
        let all_ids = std::fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|map| map.split_ascii_whitespace().eq(["0", "0", "4294967295"]));
        if rustix::process::geteuid().is_root() && all_ids {
            Ownership::Real
        } else {
            Ownership::OverrideStat
        }
    }
}

/// Where an ordinary user's owner, mode and type are kept.
pub const OVERRIDE_STAT: &[u8] = b"user.containers.override_stat";
/// What an attribute's name is prefixed by that an ordinary user can't set.
pub const KEPT: &[u8] = b"user.unionmount.kept.";

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// What an object is, save for its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Type.
    pub kind: Kind,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Last change of the data.
    pub mtime: Time,
    /// Extended attributes, sorted, with the names that programs see.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    /// Those of a directory that nobody described.
    pub fn of_implied_directory() -> Attributes {
        Attributes {
            kind: Kind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            device: (0, 0),
            mtime: Time::default(),
            xattrs: Vec::new(),
        }
    }

    /// What `stat` says; extended attributes apart.
    pub fn of_stat(stat: &Stat) -> Attributes {
        Attributes {
            kind: stat.kind(),
            mode: stat.mode & 0o7777,
            uid: stat.uid,
            gid: stat.gid,
            device: (major(stat.rdev), minor(stat.rdev)),
            mtime: stat.mtime,
            xattrs: Vec::new(),
        }
    }

    /// Those of an object of a layer. The union's own marks are not among them.
    ///
    /// # Errors
    /// Those of the system calls, and an override_stat that can't be understood.
    pub fn read(
        at: At<'_>,
        path: &[u8],
        stat: &Stat,
        ownership: Ownership,
    ) -> Result<Attributes, LayerError> {
        let err = || LayerError::os(path, "read its attributes");
        let mut xattrs = Vec::new();
        for name in xattr::list(at).map_err(err())? {
            let Some(shown) = shown_name(&name) else { continue };
            // Gone between the two calls, on a layer that is in use.
            let Some(value) = xattr::get(at, &name).map_err(err())? else { continue };
            xattrs.push((shown, value));
        }
        Attributes::of_shown(stat, path, xattrs, ownership)
    }

    /// From a stat and from attributes by the names that programs see.
    pub(super) fn of_shown(
        stat: &Stat,
        path: &[u8],
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
        ownership: Ownership,
    ) -> Result<Attributes, LayerError> {
        let mut attributes = Attributes::of_stat(stat);
        for (name, value) in xattrs {
            if ownership == Ownership::Real {
                attributes.xattrs.push((name, value));
            } else if name == OVERRIDE_STAT {
                let text = OverrideStat::parse(&value).ok_or_else(|| {
                    LayerError::entry(path, "its user.containers.override_stat can't be understood")
                })?;
                text.apply_to(&mut attributes);
            } else if let Some(kept) = name.strip_prefix(KEPT) {
                attributes.xattrs.push((kept.to_vec(), value));
            } else {
                attributes.xattrs.push((name, value));
            }
        }
        attributes.xattrs.sort();
        attributes.xattrs.dedup_by(|a, b| a.0 == b.0);
        Ok(attributes)
    }

    /// Does the object need another form on disk than its own, as an ordinary user's?
    pub fn is_kept_as_file(&self, ownership: Ownership) -> bool {
        ownership == Ownership::OverrideStat
            && match self.kind {
                Kind::File | Kind::Directory => false,
                Kind::Symlink => (self.uid, self.gid) != (0, 0),
                Kind::Fifo | Kind::CharDevice | Kind::BlockDevice | Kind::Socket => true,
            }
    }

    /// Gives an object these attributes, times last. `inherited_acl`: its directory has a default ACL.
    pub(super) fn put(
        &self,
        object: Writable<'_>,
        path: &[u8],
        ownership: Ownership,
        inherited_acl: bool,
    ) -> Result<(), LayerError> {
        let link = self.kind == Kind::Symlink && !self.is_kept_as_file(ownership);
        if inherited_acl && !link {
            for acl in [ACL_ACCESS, ACL_DEFAULT] {
                match object.remove_xattr(acl) {
                    Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                    Err(errno) => return Err(LayerError::os(path, "remove an inherited ACL")(errno)),
                }
            }
        }
        match ownership {
            Ownership::Real => {
                object
                    .chown(Some(self.uid), Some(self.gid))
                    .map_err(LayerError::os(path, "set its owner"))?;
                if !link {
                    object.chmod(self.mode).map_err(LayerError::os(path, "set its mode"))?;
                }
            }
            Ownership::OverrideStat if link => {}
            Ownership::OverrideStat => {
                let open = if self.kind == Kind::Directory { 0o700 } else { 0o600 };
                object.chmod(self.mode & 0o777 | open).map_err(LayerError::os(path, "set its mode"))?;
                let text = OverrideStat::of(self).to_string();
                object
                    .set_xattr(OVERRIDE_STAT, text.as_bytes(), XattrFlags::empty())
                    .map_err(LayerError::os(path, "keep its owner in user.containers.override_stat"))?;
            }
        }
        for (name, value) in &self.xattrs {
            self.put_xattr(object, path, ownership, link, name, value)?;
        }
        let time = Some(SetTime::At(self.mtime));
        object.utimens(time, time).map_err(LayerError::os(path, "set its times"))
    }

    fn put_xattr(
        &self,
        object: Writable<'_>,
        path: &[u8],
        ownership: Ownership,
        link: bool,
        name: &[u8],
        value: &[u8],
    ) -> Result<(), LayerError> {
        let Some(stored) = stored_name(name) else {
            log::warn!("{}: {} is a storage driver's own mark and is left out", shown(path), shown(name));
            return Ok(());
        };
        let failed = |errno| LayerError::Entry {
            entry: path.to_vec(),
            what: format!("cannot set the attribute {}: {errno}", shown(name)),
        };
        let errno = match object.set_xattr(&stored, value, XattrFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(errno) => errno,
        };
        let refused = matches!(errno, Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP);
        if ownership == Ownership::Real || !refused {
            return Err(failed(errno));
        }
        if link {
            return Err(LayerError::entry(
                path,
                format!("a symbolic link's attribute {} can only be kept by root", shown(name)),
            ));
        }
        object.set_xattr(&[KEPT, name].concat(), value, XattrFlags::empty()).map_err(failed)
    }
}

fn shown(bytes: &[u8]) -> std::path::Display<'_> {
    std::path::Path::new(OsStr::from_bytes(bytes)).display()
}

/// The name under which a layer keeps an attribute of a tar; `None` for the marks of storage drivers. Marks of the union
/// are kept escaped, so that a tar can't speak to it.
fn stored_name(name: &[u8]) -> Option<Vec<u8>> {
    if name == OVERRIDE_STAT || name.starts_with(KEPT) {
        return None;
    }
    match marker::overlay_mark(name) {
        Some(mark) => Some([&name[..name.len() - mark.len()], b"overlay.", mark].concat()),
        None => (!marker::is_private_xattr(name)).then(|| name.to_vec()),
    }
}

/// The name that programs see for an attribute of a layer; `None` for the union's own marks.
fn shown_name(stored: &[u8]) -> Option<Vec<u8>> {
    match marker::overlay_mark(stored) {
        Some(mark) => {
            let prefix = if stored.starts_with(b"trusted.") { Namespace::Trusted } else { Namespace::User };
            mark.strip_prefix(b"overlay.").map(|mark| [prefix.prefix().as_bytes(), mark].concat())
        }
        None => (!marker::is_private_xattr(stored)).then(|| stored.to_vec()),
    }
}

/// The value of `user.containers.override_stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverrideStat {
    kind: Option<Kind>,
    mode: u32,
    uid: u32,
    gid: u32,
    device: (u32, u32),
}

impl OverrideStat {
    /// That of an object.
    pub fn of(attributes: &Attributes) -> OverrideStat {
        let Attributes { kind, mode, uid, gid, device, .. } = *attributes;
        OverrideStat { kind: Some(kind), mode, uid, gid, device }
    }

    /// Reads `uid:gid:mode[:type]`.
    pub fn parse(value: &[u8]) -> Option<OverrideStat> {
        let text = std::str::from_utf8(value).ok()?;
        let mut fields = text.split(':');
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let mode = u32::from_str_radix(fields.next()?, 8).ok()? & 0o7777;
        let (kind, device) = match fields.next() {
            None => (None, (0, 0)),
            Some("dir") => (Some(Kind::Directory), (0, 0)),
            Some("file") => (Some(Kind::File), (0, 0)),
            Some("symlink") => (Some(Kind::Symlink), (0, 0)),
            Some("pipe") => (Some(Kind::Fifo), (0, 0)),
            Some("socket") => (Some(Kind::Socket), (0, 0)),
            Some(device) => {
                let mut parts = device.split('-');
                let kind = match parts.next()? {
                    "block" => Kind::BlockDevice,
                    "char" => Kind::CharDevice,
                    _ => return None,
                };
                (Some(kind), (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
            }
        };
        Some(OverrideStat { kind, mode, uid, gid, device })
    }

    fn apply_to(self, attributes: &mut Attributes) {
        attributes.uid = self.uid;
        attributes.gid = self.gid;
        attributes.mode = self.mode;
        if let Some(kind) = self.kind {
            attributes.kind = kind;
            attributes.device = self.device;
        }
    }
}

impl std::fmt::Display for OverrideStat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{:04o}", self.uid, self.gid, self.mode)?;
        let (major, minor) = self.device;
        match self.kind {
            None => Ok(()),
            Some(Kind::Directory) => f.write_str(":dir"),
            Some(Kind::File) => f.write_str(":file"),
            Some(Kind::Symlink) => f.write_str(":symlink"),
            Some(Kind::Fifo) => f.write_str(":pipe"),
            Some(Kind::Socket) => f.write_str(":socket"),
            Some(Kind::BlockDevice) => write!(f, ":block-{major}-{minor}"),
            Some(Kind::CharDevice) => write!(f, ":char-{major}-{minor}"),
        }
    }
}

impl Attributes {
    /// The device number of a device node.
    pub(super) fn rdev(&self) -> u64 {
        makedev(self.device.0, self.device.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn override_stat_reads_what_it_writes_and_what_others_write() {
        for text in [
            "0:0:0755:dir",
            "1:2:4755:file",
            "0:6:0660:block-8-1",
            "0:0:0666:char-1-3",
            "5:5:0777:symlink",
            "0:0:0600:pipe",
            "0:0:0600:socket",
        ] {
            assert_eq!(OverrideStat::parse(text.as_bytes()).unwrap().to_string(), text);
        }
        assert_eq!(OverrideStat::parse(b"1:2:755").unwrap().kind, None);
        for bad in ["", "1", "1:2", "a:2:0755:file", "1:2:0888:file", "1:2:0644:door", "1:2:0644:char-1"] {
            assert_eq!(OverrideStat::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_tar_cannot_speak_to_the_union() {
        assert_eq!(stored_name(b"trusted.overlay.redirect").unwrap(), b"trusted.overlay.overlay.redirect");
        assert_eq!(stored_name(b"user.overlay.opaque").unwrap(), b"user.overlay.overlay.opaque");
        assert_eq!(stored_name(b"user.fuseoverlayfs.opaque"), None);
        assert_eq!(stored_name(OVERRIDE_STAT), None);
        assert_eq!(shown_name(b"user.overlay.overlay.opaque").unwrap(), b"user.overlay.opaque");
        assert_eq!(shown_name(b"trusted.overlay.origin"), None);
        assert_eq!(shown_name(b"security.capability").unwrap(), b"security.capability");
    }
}
