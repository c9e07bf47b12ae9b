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

use crate::union::lookup::private::overlay_mark;
use rustix::io::Errno;

use crate::union::data::half_mark::{HALF, HalfMark};
use crate::union::lookup::belief::Belief;
use crate::union::stack::access::LayerAt;

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

/// In which form a whiteout was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhiteoutMark {
    /// A character device 0:0.
    Device,
    /// A file `.wh.NAME`.
    Aufs,
    /// An empty file with the attribute `overlay.whiteout`.
    Xattr,
}

/// Which uncommon forms of markers a scan of a directory found. Most directories hold none, and then a lookup need not
/// ask for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MarkerForms {
    /// The directory holds a `.wh.NAME`.
    pub aufs_whiteouts: bool,
    /// The directory holds `.wh..wh..opq`.
    pub aufs_opaque: bool,
}

impl MarkerForms {
    /// Returns it as one byte; 0 stands for "not scanned".
    pub(in crate::union) fn pack(self) -> u8 {
        1 | u8::from(self.aufs_whiteouts) << 1 | u8::from(self.aufs_opaque) << 2
    }

    /// Returns the reverse of [`MarkerForms::pack`].
    pub(in crate::union) fn unpack(byte: u8) -> Option<MarkerForms> {
        (byte != 0).then_some(MarkerForms { aufs_whiteouts: byte & 2 != 0, aufs_opaque: byte & 4 != 0 })
    }

    /// Takes note of one name of the directory.
    pub fn note(&mut self, name: &[u8]) {
        match aufs_name(name) {
            AufsName::Opaque => self.aufs_opaque = true,
            AufsName::Whiteout(_) => self.aufs_whiteouts = true,
            AufsName::Meta | AufsName::Malformed | AufsName::Plain => {}
        }
    }
}

/// What the extended attributes of a directory (or file) in a layer say to the union.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks {
    /// What lies below the directory doesn't count.
    pub opaque: bool,
    /// Empty regular files in the directory may be whiteouts by their xattr (`overlay.opaque` = `x`).
    pub xattr_whiteouts: bool,
    /// Where the layers below are to be asked instead of at the directory's own name.
    pub redirect: Option<Vec<u8>>,
    /// The directory may hold entries that were copied up from elsewhere: their origin must be read.
    pub impure: bool,
    /// The file's data lie in a layer below.
    pub metacopy: bool,
    /// The fs-verity digest that these must have, with its algorithm's number.
    pub digest: Option<(u16, Vec<u8>)>,
    /// Some of the file's blocks are its own.
    pub half: Option<HalfMark>,
    /// The object is a whiteout by its xattr.
    pub whiteout: bool,
    /// A mark that is there and isn't believed.
    pub unbelieved: Option<Vec<u8>>,
}

/// The marks that say what an object is, or hides.
const SAYING: [&[u8]; 4] = [b"opaque", b"redirect", b"metacopy", b"whiteout"];

/// The opaque attribute that fuse-overlayfs 1.x writes.
const FUSE_OVERLAYFS_OPAQUE: &[u8] = b"user.fuseoverlayfs.opaque";

/// Reads the marks of an object that are believed. One system call where it has no attributes.
pub fn read_marks<'a>(at: impl Into<LayerAt<'a>>, belief: Belief) -> rustix::io::Result<Marks> {
    let at = at.into();
    read_marks_by(at, belief, |name| at.xattr(name))
}

/// Does the same, with `value` to read the value of each that is there.
pub(in crate::union) fn read_marks_by(
    at: LayerAt<'_>,
    belief: Belief,
    value: impl Fn(&[u8]) -> rustix::io::Result<Option<Vec<u8>>>,
) -> rustix::io::Result<Marks> {
    let mut marks = Marks::default();
    for name in at.xattr_names()? {
        if name == FUSE_OVERLAYFS_OPAQUE && belief.foreign {
            marks.opaque |= opaque_value(value(&name))?.as_deref() == Some(b"y");
            continue;
        }
        let Some(mark) = belief.mark(&name) else {
            let says = overlay_mark(&name).is_some_and(|mark| SAYING.contains(&mark));
            if says || name == FUSE_OVERLAYFS_OPAQUE {
                marks.unbelieved = Some(name);
            }
            continue;
        };
        match mark {
            b"opaque" => match opaque_value(value(&name))?.as_deref() {
                Some(b"y") => marks.opaque = true,
                Some(b"x") => marks.xattr_whiteouts = true,
                _ => {}
            },
            b"redirect" => marks.redirect = value(&name)?.filter(|v| !v.is_empty()),
            b"impure" => marks.impure = true,
            b"metacopy" => {
                marks.metacopy = true;
                marks.digest = value(&name)?.and_then(|value| digest(&value));
            }
            b"unionmount.half" => marks.half = value(&name)?.and_then(|value| HalfMark::parse(&value)),
            b"whiteout" => marks.whiteout = true,
            _ => {}
        }
    }
    Ok(marks)
}

/// Tells whether a file is believed to have its data in a layer below. Its mode doesn't matter.
///
/// # Errors
/// Those of listing its attributes.
pub fn is_metacopy<'a>(at: impl Into<LayerAt<'a>>, belief: Belief) -> rustix::io::Result<bool> {
    Ok(at.into().xattr_names()?.iter().any(|name| belief.mark(name) == Some(b"metacopy")))
}

/// Tells whether a metacopy is believed to have some of its blocks in its own layer.
///
/// # Errors
/// Those of listing its attributes.
pub fn is_half_copied<'a>(at: impl Into<LayerAt<'a>>, belief: Belief) -> rustix::io::Result<bool> {
    Ok(at.into().xattr_names()?.iter().any(|name| belief.mark(name) == Some(HALF.as_bytes())))
}

/// Returns the digest in the value of a metacopy mark: version 0, length, flags, algorithm, digest. An empty value has
/// none.
fn digest(value: &[u8]) -> Option<(u16, Vec<u8>)> {
    match value {
        [0, length, _, algorithm, digest @ ..] if usize::from(*length) == value.len() && *algorithm != 0 => {
            Some((u16::from(*algorithm), digest.to_vec()))
        }
        _ => None,
    }
}

/// Returns the value of an opaque mark. An ordinary user can't read the attributes of a directory that its owner may
/// not read, only their names; `y` is what overlays write.
fn opaque_value(value: rustix::io::Result<Option<Vec<u8>>>) -> rustix::io::Result<Option<Vec<u8>>> {
    match value {
        Err(Errno::ACCESS) => Ok(Some(b"y".to_vec())),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aufs_names_are_classified() {
        assert_eq!(aufs_name(b".wh..wh..opq"), AufsName::Opaque);
        assert_eq!(aufs_name(b".wh.a"), AufsName::Whiteout(b"a"));
        assert_eq!(aufs_name(b".wh..wh.plnk"), AufsName::Meta);
        for bad in [&b".wh."[..], b".wh..", b".wh..."] {
            assert_eq!(aufs_name(bad), AufsName::Malformed);
        }
        assert_eq!(aufs_name(b"wh.a"), AufsName::Plain);
    }

    #[test]
    fn forms_survive_packing() {
        for (aufs_whiteouts, aufs_opaque) in [(false, false), (true, false), (false, true), (true, true)] {
            let forms = MarkerForms { aufs_whiteouts, aufs_opaque };
            assert_eq!(MarkerForms::unpack(forms.pack()), Some(forms));
        }
        assert_eq!(MarkerForms::unpack(0), None);
    }
}
