//! Owner, mode, extended attributes and times: read from a layer's directory, put there.
//!
//! The order in which they are put is that of what undoes what: a change of owner clears setuid bits and capabilities, an
//! ACL follows the mode, and every one of them changes times: so owner, mode, attributes and ACLs, times.
//!
//! # Of an ordinary user
//!
//! Everything on disk belongs to the user, who must be able to read and change it; what an object really is stands in
//! `user.containers.override_stat` = `uid:gid:mode:type`, as containers/storage and fuse-overlayfs write it. Devices and
//! fifos, on which the kernel allows no `user.` attributes, are empty regular files there. Symbolic links allow none
//! either but must stay links: the owners of those that don't belong to 0:0 stand in their directory's
//! [`LINKS`] = `uid:gid:name\0…`. An attribute that the user may not set (`security.capability`) is kept under
//! `user.unionmount.kept.NAME`. So nothing of a tar is lost, and [`Attributes::read`] gives all of it back.

use rustix::fs::{XattrFlags, major, makedev, minor};
use rustix::io::Errno;

use super::LayerError;
use crate::sys::namespace;
use crate::sys::object::{At, Kind, SetTime, Stat, Time, Writable};
use crate::sys::xattr;
use crate::union::lookup::private;
use crate::union::lookup::private::Namespace;
use crate::union::stack::access::LayerAt;
use crate::union::view::override_stat::{Override, link_owner};

/// How owners, modes and devices are kept in a layer's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// As they are: needs root.
    Real,
    /// In `user.containers.override_stat`, by an ordinary user.
    OverrideStat,
}

impl Ownership {
    /// Returns what this process can do: real owners only where every id and every device can be made.
    pub fn of_this_process() -> Ownership {
        Ownership::ask().unwrap_or(Ownership::OverrideStat)
    }

    /// Does as [`Ownership::of_this_process`], for who asks first: from then on it is known.
    ///
    /// # Errors
    /// When it can't be found out.
    pub fn ask() -> std::io::Result<Ownership> {
        // Root of a user namespace has a part of the ids and no devices.
        Ok(match rustix::process::geteuid().is_root() && namespace::is_initial()? {
            true => Ownership::Real,
            false => Ownership::OverrideStat,
        })
    }
}

/// Where an ordinary user's owner, mode and type are kept.
pub const OVERRIDE_STAT: &[u8] = private::CONTAINERS.as_bytes();
/// What an attribute's name is prefixed by that an ordinary user can't set.
pub use crate::union::lookup::private::{KEPT, LINKS};

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
    /// Returns those of a directory that nobody described.
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

    /// Returns what `stat` says; extended attributes apart.
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

    /// Returns those of an object of a layer. The union's own marks are not among them.
    ///
    /// # Errors
    /// Those of the system calls, and an override_stat that can't be understood.
    pub fn read<'a>(
        at: impl Into<LayerAt<'a>>,
        path: &[u8],
        stat: &Stat,
        ownership: Ownership,
    ) -> Result<Attributes, LayerError> {
        let at = at.into();
        let err = || LayerError::os(path, "read its attributes");
        let mut xattrs = Vec::new();
        for name in at.xattr_names().map_err(err())? {
            let kept = ownership == Ownership::OverrideStat && name.starts_with(KEPT);
            let shown = if kept { Some(name.clone()) } else { shown_name(&name) };
            let Some(shown) = shown else { continue };
            // Gone between the two calls, on a layer that is in use.
            let Some(value) = at.xattr(&name).map_err(err())? else { continue };
            xattrs.push((shown, value));
        }
        Attributes::of_shown(stat, path, xattrs, ownership)
    }

    /// Makes them of a stat and of attributes by the names that programs see.
    pub(super) fn of_shown(
        stat: &Stat,
        path: &[u8],
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
        ownership: Ownership,
    ) -> Result<Attributes, LayerError> {
        let mut attributes = Attributes::of_stat(stat);
        if ownership == Ownership::OverrideStat && attributes.kind == Kind::Symlink {
            // What is on disk belongs to the user and says nothing.
            (attributes.uid, attributes.gid) = (0, 0);
        }
        for (name, value) in xattrs {
            if name == b"security.selinux" {
                continue; // a label of this host's policy, not of the layer
            }
            if ownership == Ownership::Real {
                attributes.xattrs.push((name, value));
            } else if name == OVERRIDE_STAT {
                let found = Override::parse(&value).ok_or_else(|| {
                    LayerError::entry(path, "its user.containers.override_stat can't be understood")
                })?;
                attributes.override_by(&found);
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

    /// Returns whether the object needs another form on disk than its own, as an ordinary user's does.
    pub fn is_kept_as_file(&self, ownership: Ownership) -> bool {
        ownership == Ownership::OverrideStat
            && match self.kind {
                Kind::File | Kind::Directory | Kind::Symlink => false,
                Kind::Fifo | Kind::CharDevice | Kind::BlockDevice | Kind::Socket => true,
            }
    }

    /// Gives an object these attributes, times last. `inherited_acl`: its directory has a default ACL. Returns the extended
    /// attributes that it can't have here.
    pub(super) fn put(
        &self,
        object: Writable<'_>,
        path: &[u8],
        ownership: Ownership,
        inherited_acl: bool,
    ) -> Result<Vec<LeftOut>, LayerError> {
        let link = self.kind == Kind::Symlink;
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
                let text = self.as_override().to_string();
                object
                    .set_xattr(OVERRIDE_STAT, text.as_bytes(), XattrFlags::empty())
                    .map_err(LayerError::os(path, "keep its owner in user.containers.override_stat"))?;
            }
        }
        let mut left_out = Vec::new();
        for (name, value) in &self.xattrs {
            let why = put_xattr(object, path, ownership, link, (name, value))?;
            left_out.extend(why.map(|why| LeftOut { name: name.clone(), why }));
        }
        let time = Some(SetTime::At(self.mtime));
        object.utimens(time, time).map_err(LayerError::os(path, "set its times"))?;
        Ok(left_out)
    }

    /// Gives the root of a new layer these attributes.
    ///
    /// # Errors
    /// The one that could not be set.
    pub fn put_on_root(&self, root: Writable<'_>, ownership: Ownership) -> Result<(), LayerError> {
        self.put(root, b"", ownership, false).map(|_| ())
    }
}

/// An extended attribute that an object can't have here.
#[derive(Debug)]
pub(super) struct LeftOut {
    /// Its name.
    pub name: Vec<u8>,
    /// The reason.
    pub why: Why,
}

/// Why an attribute is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It is a storage driver's own mark.
    Mark,
    /// The filesystem doesn't know it, or lets nobody set it on such an object.
    Refused(Errno),
}

/// Sets an extended attribute. What the filesystem refuses an ordinary user keeps under another name; what nobody can set,
/// as other systems' attributes and those of links, is no reason to give up the layer.
fn put_xattr(
    object: Writable<'_>,
    path: &[u8],
    ownership: Ownership,
    link: bool,
    (name, value): (&[u8], &[u8]),
) -> Result<Option<Why>, LayerError> {
    let Some(stored) = stored_name(name) else { return Ok(Some(Why::Mark)) };
    let refused = |errno: &Errno| matches!(*errno, Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP);
    let failed = |errno| LayerError::Entry {
        entry: path.to_vec(),
        what: format!("cannot set the attribute {}: {errno}", name.escape_ascii()),
    };
    match object.set_xattr(&stored, value, XattrFlags::empty()) {
        Ok(()) => return Ok(None),
        Err(errno) if !refused(&errno) => return Err(failed(errno)),
        Err(errno) if ownership == Ownership::Real || link => return Ok(Some(Why::Refused(errno))),
        Err(_) => {}
    }
    match object.set_xattr(&[KEPT, name].concat(), value, XattrFlags::empty()) {
        Ok(()) => Ok(None),
        // The name is too long with what goes before it.
        Err(errno) if refused(&errno) || errno == Errno::RANGE => Ok(Some(Why::Refused(errno))),
        Err(errno) => Err(failed(errno)),
    }
}

/// Returns the name under which a layer keeps an attribute of a tar; `None` for the marks of storage drivers. Marks of
/// the union are kept escaped, so that a tar can't speak to it.
fn stored_name(name: &[u8]) -> Option<Vec<u8>> {
    if private::is_override(name) || name.starts_with(KEPT) {
        return None;
    }
    match private::overlay_mark(name) {
        Some(mark) => Some([&name[..name.len() - mark.len()], b"overlay.", mark].concat()),
        None => (!private::is_private_xattr(name)).then(|| name.to_vec()),
    }
}

/// Returns the name that programs see for an attribute of a layer; `None` for the union's own marks.
fn shown_name(stored: &[u8]) -> Option<Vec<u8>> {
    match private::overlay_mark(stored) {
        Some(mark) => {
            let prefix = if stored.starts_with(b"trusted.") { Namespace::Trusted } else { Namespace::User };
            mark.strip_prefix(b"overlay.").map(|mark| [prefix.prefix().as_bytes(), mark].concat())
        }
        None => (!private::is_private_xattr(stored) && !stored.starts_with(KEPT)).then(|| stored.to_vec()),
    }
}

/// Notes the owner of a link in its directory.
pub(super) fn note_link_owner(
    dir: Writable<'_>,
    name: &[u8],
    path: &[u8],
    (uid, gid): (u32, u32),
) -> Result<(), LayerError> {
    let old = xattr::get(dir.at(), LINKS).map_err(LayerError::os(path, "read the owners of links"))?;
    if old.is_none() && (uid, gid) == (0, 0) {
        return Ok(());
    }
    let old = old.unwrap_or_default();
    let mut new = Vec::with_capacity(old.len() + name.len() + 16);
    for record in old.split_inclusive(|&b| b == 0).filter(|record| link_owner(record, name).is_none()) {
        new.extend_from_slice(record);
    }
    if (uid, gid) != (0, 0) {
        new.extend_from_slice(format!("{uid}:{gid}:").as_bytes());
        new.extend_from_slice(name);
        new.push(0);
    }
    dir.set_xattr(LINKS, &new, XattrFlags::empty())
        .map_err(LayerError::os(path, "keep the owner of the link"))
}

/// Returns the owner of a link, as its directory's [`LINKS`] tell it.
pub(super) fn noted_link_owner(
    dir: At<'_>,
    name: &[u8],
    path: &[u8],
) -> Result<Option<(u32, u32)>, LayerError> {
    let noted = xattr::get(dir, LINKS).map_err(LayerError::os(path, "read the owners of links"))?;
    Ok(noted.and_then(|all| all.split_inclusive(|&b| b == 0).find_map(|record| link_owner(record, name))))
}

impl Attributes {
    /// Returns the device number of a device node.
    pub(super) fn rdev(&self) -> u64 {
        makedev(self.device.0, self.device.1)
    }

    /// Returns what an ordinary user's file is marked with.
    fn as_override(&self) -> Override {
        let Attributes { kind, mode, uid, gid, .. } = *self;
        Override { uid, gid, mode, kind: Some(kind), rdev: self.rdev() }
    }

    fn override_by(&mut self, found: &Override) {
        (self.uid, self.gid, self.mode) = (found.uid, found.gid, found.mode);
        if let Some(kind) = found.kind {
            self.kind = kind;
            self.device = (major(found.rdev), minor(found.rdev));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tar_cannot_speak_to_the_union() {
        assert_eq!(stored_name(b"trusted.overlay.redirect").unwrap(), b"trusted.overlay.overlay.redirect");
        assert_eq!(stored_name(b"user.overlay.opaque").unwrap(), b"user.overlay.overlay.opaque");
        assert_eq!(stored_name(b"user.fuseoverlayfs.opaque"), None);
        assert_eq!(stored_name(OVERRIDE_STAT), None);
        assert_eq!(stored_name(b"user.unionmount.kept.security.capability"), None);
        assert_eq!(stored_name(LINKS), None);
        assert_eq!(stored_name(b"security.fuseoverlayfs.override_stat"), None);
        assert_eq!(shown_name(b"user.overlay.overlay.opaque").unwrap(), b"user.overlay.opaque");
        assert_eq!(shown_name(b"trusted.overlay.origin"), None);
        assert_eq!(shown_name(b"security.capability").unwrap(), b"security.capability");
    }
}
