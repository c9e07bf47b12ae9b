//! Whiteouts and opaque marks: the one place that knows their forms.
//!
//! A layer says "this name ends here" with a **whiteout** and "nothing below counts" with an **opaque** mark on a
//! directory. Both have several spellings, by who wrote the layer:
//!
//! | form | written by |
//! |---|---|
//! | character device 0:0 named NAME | the kernel's overlayfs, fuse-overlayfs, unionmount |
//! | empty file `.wh.NAME` | AUFS, OCI layer tars; fuse-overlayfs and unionmount where mknod is refused |
//! | empty file `.wh..wh..opq` inside the directory | AUFS, OCI layer tars |
//! | xattr `{trusted,user}.overlay.opaque` = `y` | the kernel's overlayfs, unionmount |
//! | xattr `user.fuseoverlayfs.opaque` = `y` | fuse-overlayfs 1.x |
//! | xattr `{trusted,user}.overlay.whiteout` on an empty regular file, in a directory whose `overlay.opaque` is `x` | composefs, nested overlays |
//!
//! Sources: the kernel's Documentation/filesystems/overlayfs.rst ("whiteouts and opaque directories"), the OCI image
//! specification, layer.md ("Whiteouts").

/// What an AUFS whiteout's name starts with; the rest is the name that it hides.
pub const WH_PREFIX: &[u8] = b".wh.";
/// The AUFS mark that makes the directory which holds it opaque.
pub const WH_OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS's own metadata (hardlink store and the like) starts with this; it never names an entry.
pub const WH_META_PREFIX: &[u8] = b".wh..wh.";

/// What the AUFS form of a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AufsName<'a> {
    /// `.wh..wh..opq`: the directory that holds it is opaque.
    Opaque,
    /// `.wh.NAME`: NAME is deleted here.
    Whiteout(&'a [u8]),
    /// `.wh..wh.*`: AUFS's private metadata, to be skipped.
    Meta,
    /// `.wh.`, `.wh..` or `.wh...`: hides nothing that can exist; malformed.
    Malformed,
    /// Not a marker.
    Plain,
}

/// Classifies a name by its AUFS form.
pub fn aufs_name(name: &[u8]) -> AufsName<'_> {
    if name == WH_OPAQUE {
        AufsName::Opaque
    } else if name.starts_with(WH_META_PREFIX) {
        AufsName::Meta
    } else if let Some(hidden) = name.strip_prefix(WH_PREFIX) {
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            AufsName::Malformed
        } else {
            AufsName::Whiteout(hidden)
        }
    } else {
        AufsName::Plain
    }
}

/// The two xattr namespaces in which overlay marks are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Namespace {
    /// `trusted.overlay.`: needs CAP_SYS_ADMIN in the initial user namespace, to read as to write.
    Trusted,
    /// `user.overlay.`: what the kernel uses with the mount option `userxattr`.
    User,
}

impl Namespace {
    /// The prefix of every overlay mark in this namespace.
    pub const fn prefix(self) -> &'static str {
        match self {
            Namespace::Trusted => "trusted.overlay.",
            Namespace::User => "user.overlay.",
        }
    }

    /// The full name of the overlay mark `mark` ("opaque", "redirect", …).
    pub fn name(self, mark: &str) -> String {
        format!("{}{mark}", self.prefix())
    }
}
