//! Extended attributes as the merged view shows them.
//!
//! The union's own marks are hidden. An overlay that is mounted on top of this one writes marks of the same names; they
//! are kept escaped (`trusted.overlay.x` becomes `trusted.overlay.overlay.x`; kernel: overlayfs.rst, "Nested overlayfs
//! mounts") and shown as they were written. `override_stat` is hidden where it is made use of (see [`super::owners`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::XattrFlags;

use super::acl;
use super::events::What;
use super::marker::{self, Namespace};
use super::node::Node;
use super::{Union, facts};
use crate::error::{FsError, Result};
use crate::sys::xattr;

/// The name under which a layer keeps the attribute that the merged view calls `shown`; `None` if it may not be kept.
fn stored_name(shown: &[u8]) -> Option<Vec<u8>> {
    for ns in [Namespace::Trusted, Namespace::User] {
        if let Some(mark) = shown.strip_prefix(ns.prefix().as_bytes()) {
            return Some([ns.prefix().as_bytes(), b"overlay.", mark].concat());
        }
    }
    (!marker::is_private_xattr(shown)).then(|| shown.to_vec())
}

/// The name that the merged view shows for an attribute of a layer; `None` for what it hides.
fn shown_name(stored: &[u8]) -> Option<Vec<u8>> {
    for ns in [Namespace::Trusted, Namespace::User] {
        if let Some(mark) = stored.strip_prefix(ns.prefix().as_bytes()) {
            return mark.strip_prefix(b"overlay.").map(|m| [ns.prefix().as_bytes(), m].concat());
        }
    }
    (!marker::is_private_xattr(stored)).then(|| stored.to_vec())
}

impl Union {
    /// The value of an attribute.
    pub fn getxattr(&self, node: &Node, name: &[u8]) -> Result<Vec<u8>> {
        if let Some(fact) = name.strip_prefix(facts::PREFIX) {
            return self.fact(node, fact);
        }
        let stored = self.stored(name)?.ok_or(FsError::NoXattr)?;
        let mut value =
            self.with_object(node, |at, _| self.owners.get_xattr(at, &stored)?.ok_or(FsError::NoXattr))?;
        if acl::is_acl(name) {
            acl::drop_unmapped(&mut value);
            let owners = &self.owners;
            acl::map_ids(&mut value, |id| Ok(owners.shown_uid(id)), |id| Ok(owners.shown_gid(id)))?;
        }
        Ok(value)
    }

    /// The name under which a layer keeps an attribute, if it may be named.
    fn stored(&self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        if self.no_acl && acl::is_acl(name) {
            return Err(FsError::Unsupported("ACLs on this mount"));
        }
        Ok(stored_name(name).filter(|_| !self.owners.is_private(name)))
    }

    /// The names of all attributes, each ended by a zero byte.
    pub fn listxattr(&self, node: &Node) -> Result<Vec<u8>> {
        let names = self.with_object(node, |at, _| Ok(xattr::list(at)?))?;
        let mut shown = Vec::new();
        for stored in &names {
            let kept = self.owners.kept_name(stored);
            let Some(name) = shown_name(kept.unwrap_or(stored)) else { continue };
            if self.owners.is_private(&name) || self.no_acl && acl::is_acl(&name) {
                continue;
            }
            shown.extend_from_slice(&name);
            shown.push(0);
        }
        Ok(shown)
    }

    /// Sets an attribute. `flags` as of setxattr(2).
    pub fn setxattr(&self, node: &Arc<Node>, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        let stored = self.stored(name)?.ok_or(FsError::PrivateXattr)?;
        if !self.in_upper(node) {
            // What must fail shall not copy up first.
            let there = self.with_object(node, |at, _| Ok(self.owners.get_xattr(at, &stored)?.is_some()))?;
            if flags.contains(XattrFlags::CREATE) && there {
                return Err(FsError::Exists);
            }
            if flags.contains(XattrFlags::REPLACE) && !there {
                return Err(FsError::NoXattr);
            }
        }
        let mut mapped = Vec::new();
        let value = if acl::is_acl(name) {
            mapped.extend_from_slice(value);
            let owners = &self.owners;
            acl::map_ids(&mut mapped, |id| owners.uid_on_disk(id), |id| owners.gid_on_disk(id))?;
            &mapped
        } else {
            value
        };
        self.with_upper(node, |object| self.owners.set_xattr(object, &stored, value, flags))?;
        self.forget_default_acl(node, name);
        Ok(())
    }

    /// Removes an attribute.
    pub fn removexattr(&self, node: &Arc<Node>, name: &[u8]) -> Result<()> {
        let stored = self.stored(name)?.ok_or(FsError::PrivateXattr)?;
        let there = self.with_object(node, |at, _| Ok(self.owners.get_xattr(at, &stored)?.is_some()))?;
        if !there {
            return Err(FsError::NoXattr);
        }
        self.with_upper(node, |object| self.owners.remove_xattr(object, &stored))?;
        self.forget_default_acl(node, name);
        Ok(())
    }

    fn forget_default_acl(&self, node: &Node, name: &[u8]) {
        if name == acl::DEFAULT
            && let Some(dir) = &node.dir
        {
            *dir.default_acl.lock() = None;
        }
        self.counters.setxattrs.fetch_add(1, Ordering::Relaxed);
        self.events.tell(|| What::Xattr { path: self.path_of(node).into(), name: name.into() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nested_overlays_are_escaped_and_shown_as_written() {
        for name in ["trusted.overlay.opaque", "user.overlay.overlay.opaque", "user.x", "security.capability"]
        {
            let stored = stored_name(name.as_bytes()).unwrap();
            assert_eq!(shown_name(&stored).unwrap(), name.as_bytes());
        }
        assert_eq!(stored_name(b"trusted.overlay.opaque").unwrap(), b"trusted.overlay.overlay.opaque");
    }

    #[test]
    fn own_marks_are_hidden_and_refused() {
        assert_eq!(shown_name(b"trusted.overlay.opaque"), None);
        assert_eq!(shown_name(b"user.fuseoverlayfs.opaque"), None);
        assert_eq!(stored_name(b"user.fuseoverlayfs.opaque"), None);
    }
}
