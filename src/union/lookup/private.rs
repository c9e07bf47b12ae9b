//! The extended attributes that belong to union filesystems: by whom and in which namespace they are kept. Nobody sets
//! them through a mount, and nobody is shown them.

/// What the names of all these attributes start with.
pub const PREFIX: &[u8] = b"user.unionmount.";
/// The attribute of containers/storage, which `xattr_permissions=2` writes.
pub const CONTAINERS: &str = "user.containers.override_stat";
/// The attribute of fuse-overlayfs 1.x run by an ordinary user.
pub(in crate::union) const FUSE_OVERLAYFS: &str = "user.fuseoverlayfs.override_stat";
/// The attribute that only root can write, of `xattr_permissions=1`.
pub(in crate::union) const PRIVILEGED: &str = "security.fuseoverlayfs.override_stat";
/// All of them, in the order in which fuse-overlayfs looks for them.
pub(in crate::union) const NAMES: [&str; 3] = [PRIVILEGED, CONTAINERS, FUSE_OVERLAYFS];
/// What the name of an attribute is prefixed by, beside `override_stat`, that an ordinary user can't set.
pub const KEPT: &[u8] = b"user.unionmount.kept.";
/// The owners of an ordinary user's symbolic links, on the directory that holds them: `UID:GID:NAME`, ended by a zero
/// byte, for each link that doesn't belong to 0:0.
pub const LINKS: &[u8] = b"user.unionmount.links";

/// The two xattr namespaces in which overlay marks are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Namespace {
    /// `trusted.overlay.`: needs CAP_SYS_ADMIN in the initial user namespace, to read as to write.
    Trusted,
    /// `user.overlay.`: what the kernel uses with the mount option `userxattr`.
    User,
}

impl Namespace {
    /// Returns the prefix of every overlay mark in this namespace.
    pub const fn prefix(self) -> &'static str {
        match self {
            Namespace::Trusted => "trusted.overlay.",
            Namespace::User => "user.overlay.",
        }
    }

    /// Returns the full name of the overlay mark `mark` ("opaque", "redirect", …).
    pub fn name(self, mark: &str) -> String {
        format!("{}{mark}", self.prefix())
    }
}

/// Returns the name of the mark behind `trusted.overlay.` or `user.overlay.`, or `None` for every other attribute.
pub fn overlay_mark(name: &[u8]) -> Option<&[u8]> {
    [Namespace::Trusted, Namespace::User].into_iter().find_map(|ns| name.strip_prefix(ns.prefix().as_bytes()))
}

/// Tells whether the attribute is one of this union, of fuse-overlayfs or of containers/storage. Nobody sets these
/// through a mount, and nobody is shown them, whether they are believed or not. Those of overlays are told by
/// [`overlay_mark`].
pub fn is_reserved(name: &[u8]) -> bool {
    const FOREIGN: [&[u8]; 3] = [b"user.fuseoverlayfs.", b"security.fuseoverlayfs.", PREFIX];
    is_override(name) || FOREIGN.iter().any(|prefix| name.starts_with(prefix))
}

/// Tells whether the attribute is one that the union keeps to itself, in any of its spellings.
pub fn is_private_xattr(name: &[u8]) -> bool {
    overlay_mark(name).is_some()
        || name.starts_with(b"user.fuseoverlayfs.")
        || name.starts_with(PREFIX) && !name.starts_with(KEPT)
}

/// Tells whether that is one of the attributes that override a stat, in use or not.
pub fn is_override(attribute: &[u8]) -> bool {
    NAMES.iter().any(|name| name.as_bytes() == attribute)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_names_are_known_in_every_spelling() {
        for name in [
            "trusted.overlay.opaque",
            "user.overlay.redirect",
            "user.fuseoverlayfs.origin",
            "user.unionmount.layer",
        ] {
            assert!(is_private_xattr(name.as_bytes()), "{name}");
        }
        for name in ["user.overlayx", "trusted.x", "user.containers.override_stat", "user.unionmount.kept.x"]
        {
            assert!(!is_private_xattr(name.as_bytes()), "{name}");
        }
    }
}
