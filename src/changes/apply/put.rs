//! Attributes as the union shows them, given to an object of the target or of the stage.

use std::sync::Arc;

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::{ApplyError, Result};
use crate::image::layer::LayerError;
use crate::image::layer::merged::of_union;
use crate::sys::namespace::is_privileged;
use crate::sys::object::{At, Kind, SetTime, Stat, Time, Writable};
use crate::sys::xattr;
use crate::union::Union;
use crate::union::nodes::node::Node;

/// What an object is to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner and group; `None`: those that it has.
    pub owner: Option<(u32, u32)>,
    /// Last access and last change.
    pub times: [(i64, u32); 2],
    /// Extended attributes and ACLs, sorted.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

fn pair(time: Time) -> (i64, u32) {
    (time.sec, time.nsec)
}

/// Tells attributes that are carried from those that the host sets by itself.
fn is_carried(name: &[u8]) -> bool {
    name != b"security.selinux" && name != b"security.ima" && name != b"security.evm"
}

impl Attributes {
    /// Reads those that the union shows.
    ///
    /// # Errors
    /// Those of reading the layers.
    pub(super) fn shown(union: &Union, node: &Arc<Node>, stat: &Stat, path: &[u8]) -> Result<Attributes> {
        let mut xattrs = Vec::new();
        for name in union.listxattr(node).map_err(of_union(path))?.split(|&byte| byte == 0) {
            if !name.is_empty() && is_carried(name) {
                xattrs.push((name.to_vec(), union.getxattr(node, name).map_err(of_union(path))?));
            }
        }
        Ok(Attributes::of(stat, xattrs))
    }

    /// Reads those of an object of the target.
    ///
    /// # Errors
    /// Those of the system calls.
    pub(super) fn read(at: At<'_>, stat: &Stat, path: &[u8]) -> Result<Attributes> {
        let failed = || LayerError::os(path, "read its attributes");
        let mut xattrs = Vec::new();
        for name in xattr::list(at).map_err(failed())? {
            if is_carried(&name)
                && let Some(value) = xattr::get(at, &name).map_err(failed())?
            {
                xattrs.push((name, value));
            }
        }
        Ok(Attributes::of(stat, xattrs))
    }

    fn of(stat: &Stat, mut xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Attributes {
        xattrs.sort();
        Attributes {
            mode: stat.mode & 0o7777,
            // An ordinary user gives nothing away.
            owner: is_privileged().then_some((stat.uid, stat.gid)),
            times: [pair(stat.atime), pair(stat.mtime)],
            xattrs,
        }
    }

    /// Returns whether they are the same but for times.
    pub(super) fn is_like(&self, other: &Attributes) -> bool {
        let owner = self.owner.zip(other.owner).is_none_or(|(one, other)| one == other);
        owner && self.mode == other.mode && self.xattrs == other.xattrs
    }

    /// Returns whether these may be those of an object on its way from one to another. Setuid goes with the owner, and an ACL and
    /// the mode change each other: what differs in these alone is no matter.
    pub(super) fn is_between(&self, one: &Attributes, other: &Attributes) -> bool {
        const PLAIN: u32 = 0o1707;
        let ends = [one, other];
        let owner = |end: &&Attributes| end.owner.zip(self.owner).is_none_or(|(end, now)| end == now);
        let known = |xattr: &(Vec<u8>, Vec<u8>)| {
            xattr.0 == b"system.posix_acl_access" || ends.iter().any(|end| end.xattrs.contains(xattr))
        };
        ends.iter().any(|end| end.mode & PLAIN == self.mode & PLAIN)
            && ends.iter().any(owner)
            && self.xattrs.iter().all(known)
    }

    /// Gives them to an object: owner, mode, extended attributes, times, since each changes what comes after it. Returns
    /// whether all could be set.
    pub(super) fn put(&self, object: Writable<'_>, kind: Kind, path: &[u8]) -> Result<bool> {
        let link = kind == Kind::Symlink;
        if let Some((uid, gid)) = self.owner {
            object.chown(Some(uid), Some(gid)).map_err(ApplyError::at(path, "set its owner"))?;
        }
        if !link {
            object.chmod(self.mode).map_err(ApplyError::at(path, "set its mode"))?;
        }
        let mut whole = self.put_xattrs(object, path)?;
        // An ACL's mask is seen as the group's bits; and setuid goes when an ordinary user changes an ACL.
        if !link && self.mode & 0o6000 != 0 {
            object.chmod(self.mode).map_err(ApplyError::at(path, "set its mode"))?;
        }
        let [atime, mtime] = self.times.map(|(sec, nsec)| Some(SetTime::At(Time { sec, nsec })));
        object.utimens(atime, mtime).map_err(ApplyError::at(path, "set its times"))?;
        if kind == Kind::File && self.owner.is_none() {
            // A group that the user isn't in takes the bit, without a word.
            let now = object.at().stat().map_err(ApplyError::at(path, "look at it"))?;
            whole &= now.mode & 0o7777 == self.mode;
        }
        Ok(whole)
    }

    fn put_xattrs(&self, object: Writable<'_>, path: &[u8]) -> Result<bool> {
        let mut whole = true;
        for old in xattr::list(object.at()).map_err(ApplyError::at(path, "read its attributes"))? {
            if is_carried(&old) && !self.xattrs.iter().any(|(name, _)| *name == old) {
                match object.remove_xattr(&old) {
                    Ok(()) | Err(Errno::NODATA) => {}
                    Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => whole = false,
                    Err(errno) => return Err(ApplyError::at(path, "remove an attribute of it")(errno)),
                }
            }
        }
        for (name, value) in &self.xattrs {
            match object.set_xattr(name, value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => whole = false,
                Err(errno) => return Err(ApplyError::at(path, "set an attribute of it")(errno)),
            }
        }
        Ok(whole)
    }
}
