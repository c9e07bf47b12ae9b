//! Directory → tar.
//!
//! The same tree gives the same tar, byte for byte, on every filesystem: names are sorted, whiteouts come before their
//! siblings (OCI image-spec, layer.md), PAX records stand only where the header can't hold a value, and holes are
//! written as zeros.
//!
//! Only the layer is walked. What its upper form can say and a tar can't (a directory that was renamed while its content
//! stayed below, a file whose data did) is looked up in the union of the layer and what is below it, and written in
//! full: so the cost grows with what changed.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::LayerError;
use super::attributes::{Attributes, Ownership, noted_link_owner};
use super::emit::{Writer, Written};
use super::merged::{self, Frame, find, of_fd, of_union, open_union};
use super::place::{join, open_dir, split};
use crate::sys::dir::for_each_entry;
use crate::sys::object::{At, Kind};
use crate::union::Union;
use crate::union::data::content::Content;
use crate::union::lookup::belief::Belief;
use crate::union::lookup::marker::{self, AufsName};
use crate::union::nodes::node::Node;
use crate::union::stack::layer::LowerSource;

/// How a layer is written.
#[derive(Debug, Clone, Copy)]
pub struct WriteOptions<'a> {
    /// How owners, modes and devices are kept in the layer.
    pub ownership: Ownership,
    /// What is below the layer, topmost first; asked only for what the layer leaves below.
    pub lowers: &'a [LowerSource],
    /// Write an entry for the root itself.
    pub root: bool,
}

/// Writes the layer in `layer` (overlay form) as a tar.
///
/// # Errors
/// Those of reading the layer, with the path, and of writing.
pub fn write_tar(
    layer: BorrowedFd<'_>,
    out: impl Write,
    options: &WriteOptions<'_>,
) -> Result<Written, LayerError> {
    let mut writer = Writer::new(out);
    TarWalk { layer, options, merged: None, current: None }.run(&mut writer)?;
    writer.finish()
}

/// Goes through a layer.
struct TarWalk<'a> {
    layer: BorrowedFd<'a>,
    options: &'a WriteOptions<'a>,
    merged: Option<Union>,
    /// The directory that was opened last.
    current: Option<(Vec<u8>, OwnedFd)>,
}

impl TarWalk<'_> {
    fn run<W: Write>(mut self, out: &mut Writer<W>) -> Result<(), LayerError> {
        let at = At::Fd(self.layer);
        if self.options.root {
            let stat = at.stat().map_err(LayerError::os(b"", "stat it"))?;
            out.directory(b"", &Attributes::read(at, b"", &stat, self.options.ownership)?)?;
        }
        let mut stack = vec![self.raw_frame(Vec::new(), out)?];
        while let Some(frame) = stack.last_mut() {
            let Some(name) = frame.names.next() else {
                let done = stack.pop();
                if let (Some(union), Some(Frame { merged: Some(node), .. })) = (&self.merged, done) {
                    union.forget(node.ino, 1);
                }
                continue;
            };
            let path = join(&frame.path, &name);
            let below = match frame.merged.clone() {
                Some(parent) => {
                    let ownership = self.options.ownership;
                    merged::entry(self.union()?, ownership, &parent, &name, path, out)?
                }
                None => {
                    let parent = frame.path.clone();
                    match self.raw_entry(&parent, &name, path, out) {
                        // The layer is in use and the entry has gone since the directory was listed.
                        Err(LayerError::Os { errno: Errno::NOENT, .. }) => None,
                        done => done?,
                    }
                }
            };
            stack.extend(below);
        }
        Ok(())
    }

    /// Returns the directory of the layer at `path`.
    fn dir(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, LayerError> {
        if self.current.as_ref().is_none_or(|(known, _)| known != path) {
            let fd = open_dir(self.layer, path).map_err(LayerError::os(path, "open it"))?;
            self.current = Some((path.to_vec(), fd));
        }
        self.current.as_ref().map(|(_, fd)| fd.as_fd()).ok_or_else(|| LayerError::entry(path, "not open"))
    }

    /// Writes the markers of a directory, and lists what else is in it.
    fn raw_frame<W: Write>(&mut self, path: Vec<u8>, out: &mut Writer<W>) -> Result<Frame, LayerError> {
        let listing = list(self.dir(&path)?, &path)?;
        if listing.opaque {
            out.marker(&join(&path, marker::WH_OPAQUE))?;
        }
        // An opaque directory leaves nothing for whiteouts to hide.
        for name in listing.whiteouts.iter().filter(|_| !listing.opaque) {
            out.marker(&join(&path, &[marker::WH_PREFIX, name].concat()))?;
        }
        Ok(Frame { path, names: listing.names.into_iter(), merged: None })
    }

    fn raw_entry<W: Write>(
        &mut self,
        parent: &[u8],
        name: &[u8],
        path: Vec<u8>,
        out: &mut Writer<W>,
    ) -> Result<Option<Frame>, LayerError> {
        let ownership = self.options.ownership;
        let at = At::Name(self.dir(parent)?, name);
        let stat = at.stat().map_err(LayerError::os(&path, "stat it"))?;
        let mut attributes = Attributes::read(at, &path, &stat, ownership)?;
        if ownership == Ownership::OverrideStat && stat.kind() == Kind::Symlink {
            let dir = At::Fd(self.dir(parent)?);
            if let Some(owner) = noted_link_owner(dir, name, &path)? {
                (attributes.uid, attributes.gid) = owner;
            }
        }
        let at = At::Name(self.dir(parent)?, name);
        // How many blocks a file has tells nothing: its attributes may take some as well.
        let marks = if matches!(stat.kind(), Kind::Directory | Kind::File) {
            marker::read_marks(at, Belief::of_process()).map_err(LayerError::os(&path, "read its marks"))?
        } else {
            marker::Marks::default()
        };
        if stat.kind() == Kind::Directory {
            out.directory(&path, &attributes)?;
            if marks.redirect.is_some_and(|from| !leads_to(&from, &path)) {
                return self.merged_frame(path, out).map(Some);
            }
            return self.raw_frame(path, out).map(Some);
        }
        let first = out.earlier_name(&path, (stat.dev, stat.ino), stat.nlink);
        if marks.metacopy && first.is_none() {
            let node = self.node(&path)?;
            let union = self.union()?;
            let data = union.content(&node).map_err(of_union(&path))?;
            out.leaf(&path, &attributes, None, None, Some(&data))?;
            drop(data);
            union.forget(node.ino, 1);
            return Ok(None);
        }
        let (mut target, mut data) = (None, None);
        match stat.kind() {
            Kind::Symlink => target = Some(at.readlink().map_err(LayerError::os(&path, "read its target"))?),
            Kind::File if first.is_none() => {
                data = Some(Content::from(at.open_read().map_err(LayerError::os(&path, "open it"))?));
            }
            _ => {}
        }
        out.leaf(&path, &attributes, target, first, data.as_ref())?;
        Ok(None)
    }

    /// Returns the union of the layer and of what is below it, to read.
    fn union(&mut self) -> Result<&Union, LayerError> {
        if self.merged.is_none() {
            let below = self.options.lowers.iter().cloned();
            self.merged = Some(open_union(std::iter::once(of_fd(self.layer)).chain(below))?);
        }
        self.merged.as_ref().ok_or_else(|| LayerError::entry(b"", "no union"))
    }

    /// Returns the node of a path in the union; it counts one lookup.
    fn node(&mut self, path: &[u8]) -> Result<Arc<Node>, LayerError> {
        if self.options.lowers.is_empty() {
            return Err(LayerError::entry(
                path,
                "a part of it lies in the layers below, which are not known here",
            ));
        }
        find(self.union()?, path)?.ok_or_else(|| LayerError::entry(path, "it is not in the merged tree"))
    }

    /// Returns a directory whose content lies below under another name: all of it is new under this one.
    fn merged_frame<W: Write>(&mut self, path: Vec<u8>, out: &mut Writer<W>) -> Result<Frame, LayerError> {
        let node = self.node(&path)?;
        out.marker(&join(&path, marker::WH_OPAQUE))?;
        merged::list(self.union()?, path, node)
    }
}

/// Returns whether a redirect on the directory `path`, none of whose parents has one that leads elsewhere, leads to
/// where the directory is anyway. It does when it was renamed there and back.
pub(crate) fn leads_to(redirect: &[u8], path: &[u8]) -> bool {
    redirect.strip_prefix(b"/").map_or_else(|| redirect == split(path).1, |from| from == path)
}

/// What a directory of a layer holds.
pub(crate) struct Listing {
    /// The mark that hides what is below.
    pub opaque: bool,
    /// The names that are deleted here, sorted.
    pub whiteouts: Vec<Vec<u8>>,
    /// All else, sorted.
    pub names: Vec<Vec<u8>>,
}

/// Lists a directory of a layer, and reads its markers in every form.
pub(crate) fn list(dir: BorrowedFd<'_>, path: &[u8]) -> Result<Listing, LayerError> {
    let marks = marker::read_marks(At::Fd(dir), Belief::of_process())
        .map_err(LayerError::os(path, "read its marks"))?;
    let mut listing = Listing { opaque: marks.opaque, whiteouts: Vec::new(), names: Vec::new() };
    for_each_entry::<Errno>(dir, |entry| {
        match marker::aufs_name(entry.name) {
            AufsName::Opaque => listing.opaque = true,
            AufsName::Whiteout(name) => listing.whiteouts.push(name.to_vec()),
            AufsName::Meta | AufsName::Malformed => {}
            AufsName::Plain => {
                let at = At::Name(dir, entry.name);
                let is_whiteout = match entry.kind {
                    Some(Kind::CharDevice) | None => at.stat()?.is_whiteout_device(),
                    Some(Kind::File) if marks.xattr_whiteouts => {
                        marker::read_marks(at, Belief::of_process())?.whiteout
                    }
                    Some(_) => false,
                };
                if is_whiteout { &mut listing.whiteouts } else { &mut listing.names }
                    .push(entry.name.to_vec());
            }
        }
        Ok(())
    })
    .map_err(LayerError::os(path, "list it"))?;
    listing.names.sort();
    listing.whiteouts.sort();
    listing.whiteouts.dedup();
    // A name that is there and deleted at once (the `.wh.` form allows it) hides nothing but what is below.
    Ok(listing)
}
