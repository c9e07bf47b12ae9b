//! Extended attributes as the merged view shows them.
//!
//! The union's own marks are hidden. An overlay that is mounted on top of this one writes marks of the same names; they
//! are kept escaped (`trusted.overlay.x` becomes `trusted.overlay.overlay.x`; kernel: overlayfs.rst, "Nested overlayfs
//! mounts") and shown as they were written. `override_stat` is hidden where it is made use of (see [`crate::union::view::owners`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::XattrFlags;

use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::change::copy_up::completion::CAPABILITIES;
use crate::union::events::EventKind;
use crate::union::lookup::belief::Belief;
use crate::union::lookup::private;
use crate::union::nodes::node::Node;
use crate::union::view::acl;

/// Returns the name under which a layer keeps the attribute that the merged view calls `shown`; `None` if it may not be
/// kept.
fn stored_name(belief: Belief, shown: &[u8]) -> Option<Vec<u8>> {
    if let Some(mark) = belief.mark(shown) {
        return Some([belief.namespace.prefix().as_bytes(), b"overlay.", mark].concat());
    }
    (!private::is_reserved(shown)).then(|| shown.to_vec())
}

/// Returns the name that the merged view shows for an attribute of a layer; `None` for what it hides.
fn shown_name(belief: Belief, stored: &[u8]) -> Option<Vec<u8>> {
    if let Some(mark) = belief.mark(stored) {
        return mark.strip_prefix(b"overlay.").map(|m| [belief.namespace.prefix().as_bytes(), m].concat());
    }
    (!private::is_reserved(stored)).then(|| stored.to_vec())
}

impl Union {
    /// Returns the value of an attribute.
    pub fn getxattr(&self, node: &Node, name: &[u8]) -> Result<Vec<u8>> {
        if let Some(fact) = name.strip_prefix(private::PREFIX) {
            return self.fact(node, fact);
        }
        let stored = self.stored(name)?.ok_or(FsError::NoXattr)?;
        let mut value =
            self.with_open_object(node, |o| self.owners.get_xattr(o.at(), &stored)?.ok_or(FsError::NoXattr))?;
        if acl::is_acl(name) {
            acl::drop_unmapped(&mut value);
            let owners = &self.owners;
            acl::map_ids(&mut value, |id| Ok(owners.shown_uid(id)), |id| Ok(owners.shown_gid(id)))?;
        }
        Ok(value)
    }

    /// Returns the name under which a layer keeps an attribute, if it may be named.
    fn stored(&self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        if self.no_acl && acl::is_acl(name) {
            return Err(FsError::Unsupported("ACLs on this mount"));
        }
        Ok(stored_name(self.belief, name))
    }

    /// Returns the names of all attributes, each ended by a zero byte.
    pub fn listxattr(&self, node: &Node) -> Result<Vec<u8>> {
        let names = self.with_open_object(node, |object| Ok(object.at().xattr_names()?))?;
        let mut shown = Vec::new();
        for stored in &names {
            let kept = self.owners.kept_name(stored);
            let Some(name) = shown_name(self.belief, kept.unwrap_or(stored)) else { continue };
            if self.no_acl && acl::is_acl(&name) {
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
            let there = self.with_object(node, |o| Ok(self.owners.get_xattr(o.at(), &stored)?.is_some()))?;
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
        if name == CAPABILITIES {
            self.ensure_upper(node)?;
        }
        self.with_upper(node, |there, object| {
            let upper = self.upper()?;
            let counted = upper.quota().is_some();
            let before = if counted { self.owners.get_xattr(there.at(), &stored)? } else { None };
            let set = || self.owners.set_xattr(object, &stored, value, flags);
            // An access control list changes the mode with it (acl(5)).
            let mode = object.at().stat().map(|stat| stat.mode & 0o7777).ok().filter(|_| counted);
            let take_back = || {
                match &before {
                    Some(before) => self.owners.set_xattr(object, &stored, before, XattrFlags::empty())?,
                    None => self.owners.remove_xattr(object, &stored)?,
                }
                match mode.filter(|_| name == acl::ACCESS) {
                    Some(mode) => Ok(object.chmod(mode)?),
                    None => Ok(()),
                }
            };
            upper.growing_a_little(object.at(), set, take_back)
        })?;
        self.forget_default_acl(node, name);
        Ok(())
    }

    /// Removes an attribute.
    pub fn removexattr(&self, node: &Arc<Node>, name: &[u8]) -> Result<()> {
        let stored = self.stored(name)?.ok_or(FsError::PrivateXattr)?;
        let there = self.with_object(node, |o| Ok(self.owners.get_xattr(o.at(), &stored)?.is_some()))?;
        if !there {
            return Err(FsError::NoXattr);
        }
        self.with_upper(node, |_, object| self.owners.remove_xattr(object, &stored))?;
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
        self.events.tell(|| EventKind::Xattr { path: self.path_of(node).into(), name: name.into() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_the_mounts_namespace_are_escaped_and_others_are_ordinary() {
        for user in [false, true] {
            let belief = Belief::decide(user);
            let own = belief.namespace.prefix();
            for name in
                ["trusted.overlay.opaque", "user.overlay.overlay.opaque", "user.x", "security.capability"]
            {
                let stored = stored_name(belief, name.as_bytes()).unwrap();
                assert_eq!(shown_name(belief, &stored).unwrap(), name.as_bytes());
                assert_eq!(name.starts_with(own), stored != name.as_bytes(), "{name}");
            }
            let mark = format!("{own}opaque");
            assert_eq!(
                stored_name(belief, mark.as_bytes()).unwrap(),
                format!("{own}overlay.opaque").into_bytes()
            );
            assert_eq!(shown_name(belief, mark.as_bytes()), None);
        }
    }

    #[test]
    fn private_marks_are_hidden_and_refused() {
        let belief = Belief::of_process();
        for name in [
            "user.fuseoverlayfs.opaque",
            "security.fuseoverlayfs.override_stat",
            "user.containers.override_stat",
            "user.unionmount.links",
            "user.unionmount.kept.security.capability",
        ] {
            assert_eq!(shown_name(belief, name.as_bytes()), None, "{name}");
            assert_eq!(stored_name(belief, name.as_bytes()), None, "{name}");
        }
    }
}
