//! The union of layers, to read; what it shows → tar.

use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

use super::LayerError;
use super::attributes::{Attributes, Ownership};
use super::emit::{Writer, Written};
pub(crate) use super::error::of_union;
use super::place::join;
use crate::error::FsError;
use crate::sys::object::{Kind, Stat};
use crate::union::nodes::node::Node;
use crate::union::stack::layer::{LowerSource, Stack, StackOptions};
use crate::union::{self, Union};

/// A directory that is being walked.
pub(super) struct Frame {
    pub path: Vec<u8>,
    pub names: std::vec::IntoIter<Vec<u8>>,
    /// Its node in the union, where the layer alone doesn't tell what is in it.
    pub merged: Option<Arc<Node>>,
}

/// Writes the whole tree that a union shows as a tar: without layers and markers, with owners and modes as they are shown.
///
/// # Errors
/// Those of reading the layers, with the path, and of writing.
pub fn write_merged(union: &Union, out: impl Write) -> Result<Written, LayerError> {
    let mut writer = Writer::new(out);
    let root = union.root().clone();
    let shown = union.getattr(&root).map_err(of_union(b""))?;
    writer.directory(b"", &attributes(union, &root, &shown.stat, b"", Ownership::Real)?)?;
    let mut stack = vec![list(union, Vec::new(), root.clone())?];
    while let Some(frame) = stack.last_mut() {
        let Some(name) = frame.names.next() else {
            // Nobody has looked the root up.
            if let Some(Frame { merged: Some(node), .. }) = stack.pop()
                && node.ino != root.ino
            {
                union.forget(node.ino, 1);
            }
            continue;
        };
        let path = join(&frame.path, &name);
        let parent = frame.merged.clone().unwrap_or_else(|| root.clone());
        stack.extend(entry(union, Ownership::Real, &parent, &name, path, &mut writer)?);
    }
    writer.finish()
}

/// Returns what the root of layers is like, the topmost first.
///
/// # Errors
/// Those of reading the layers.
pub fn root_attributes(layers: &[LowerSource], ownership: Ownership) -> Result<Attributes, LayerError> {
    let union = open_union(layers.iter().cloned())?;
    let root = union.root().clone();
    let shown = union.getattr(&root).map_err(of_union(b""))?;
    attributes(&union, &root, &shown.stat, b"", ownership)
}

/// Lists a directory of a union.
pub(super) fn list(union: &Union, path: Vec<u8>, node: Arc<Node>) -> Result<Frame, LayerError> {
    let mut names = Vec::new();
    union
        .readdir(&node, 0, |entry| {
            names.push(entry.name.into_vec());
            true
        })
        .map_err(of_union(&path))?;
    names.sort();
    Ok(Frame { path, names: names.into_iter(), merged: Some(node) })
}

/// Writes an entry of a directory of a union. Returns it, if it is a directory, to be gone through.
pub(super) fn entry<W: Write>(
    union: &Union,
    ownership: Ownership,
    parent: &Arc<Node>,
    name: &[u8],
    path: Vec<u8>,
    out: &mut Writer<W>,
) -> Result<Option<Frame>, LayerError> {
    let Some((node, attr)) = union.lookup(parent, name).map_err(of_union(&path))? else {
        return Ok(None);
    };
    let attributes = attributes(union, &node, &attr.stat, &path, ownership)?;
    if attr.stat.kind() == Kind::Directory {
        out.directory(&path, &attributes)?;
        return list(union, path, node).map(Some);
    }
    // By the real file, which may have other names where a layer alone is walked.
    let first = out.earlier_name(&path, (attr.stat.dev, attr.stat.ino), attr.stat.nlink);
    let (mut target, mut data) = (None, None);
    match attr.stat.kind() {
        Kind::Symlink => target = Some(union.readlink(&node).map_err(of_union(&path))?),
        Kind::File if first.is_none() => {
            data = Some(union.content(&node).map_err(of_union(&path))?);
        }
        _ => {}
    }
    out.leaf(&path, &attributes, target, first, data.as_ref())?;
    drop(data);
    union.forget(node.ino, 1);
    Ok(None)
}

/// Reads what programs see of an object's attributes.
fn attributes(
    union: &Union,
    node: &Arc<Node>,
    stat: &Stat,
    path: &[u8],
    ownership: Ownership,
) -> Result<Attributes, LayerError> {
    let mut xattrs = Vec::new();
    for name in union.listxattr(node).map_err(of_union(path))?.split(|&b| b == 0) {
        if !name.is_empty() {
            xattrs.push((name.to_vec(), union.getxattr(node, name).map_err(of_union(path))?));
        }
    }
    Attributes::of_shown(stat, path, xattrs, ownership)
}

/// Returns the layer that an open directory is, as long as it is open.
pub fn of_fd(dir: BorrowedFd<'_>) -> LowerSource {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).into()
}

/// Returns the read-only union of layers that are open, topmost first.
pub(crate) fn open_union(layers: impl IntoIterator<Item = LowerSource>) -> Result<Union, LayerError> {
    let lowers = layers.into_iter().collect();
    let stack = Stack::open(&StackOptions { lowers, ..StackOptions::default() })
        .map_err(|error| LayerError::entry(b"", error.to_string()))?;
    Union::new(stack, union::Limits::of_process()).map_err(of_union(b""))
}

/// Returns the node of a path; it counts one lookup, its parents none.
pub(crate) fn find(union: &Union, path: &[u8]) -> Result<Option<Arc<Node>>, LayerError> {
    let mut at = union.root().clone();
    let mut is_root = true;
    for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
        let next = union.lookup(&at, name);
        if !is_root {
            union.forget(at.ino, 1);
        }
        match next {
            Ok(Some((node, _))) => at = node,
            Ok(None) | Err(FsError::NotADirectory) => return Ok(None),
            Err(error) => return Err(of_union(path)(error)),
        }
        is_root = false;
    }
    Ok(Some(at))
}
