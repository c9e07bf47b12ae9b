//! Directories that no layer on top describes.
//!
//! A layer's tar may hold `etc/app/config` and neither `etc` nor `etc/app`. Unpacked for itself, the layer has both, made
//! up; and since a merged directory shows the attributes of its topmost layer, `/etc` would lose the owner and mode that
//! a layer further down gives it. So what is made up is marked ([`IMPLIED`]), and an image in which that matters has one
//! more layer on top, its **frame**: those directories, the ones that lead to them, and nothing else, each as the topmost
//! layer that describes it says. Layers stay what their tars are, known by their diff ids and shared; the frame is the
//! image's own, and known by the image's id. containerd, which unpacks a layer for the layers below it, copies the
//! attributes instead; podman and Docker show the made-up ones.
//!
//! Times alone don't make a frame: they change with every entry.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;

use super::{Image, LayerRecord, Store};
use crate::error::FsError;
use crate::image::error::{Result, StoreError};
use crate::image::layer::merged::{of_fd, of_union, open_union};
use crate::image::layer::place::{IMPLIED, UnpackTarget, join, open_dir};
use crate::image::layer::{Applied, Attributes, LayerError, Ownership};
use crate::sys::dir::for_each_entry;
use crate::sys::object::{At, Kind};
use crate::union::Union;
use crate::union::nodes::node::Node;
use crate::union::stack::access::LayerAt;

type Layer<T> = std::result::Result<T, LayerError>;

impl Store {
    /// Returns the image's frame, if it needs one. `paths`: its layers, topmost first; `implying`: whether one of them
    /// has such directories above another layer.
    pub(super) fn frame(&self, image: &Image, paths: &[PathBuf], implying: bool) -> Result<Option<PathBuf>> {
        // One that is damaged is made again.
        let mut record = self.layer_record(&image.id).unwrap_or_default();
        if record.is_none() {
            let open = |path: &PathBuf| File::open(path).map_err(StoreError::io("open it", path));
            let roots = paths.iter().map(open).collect::<Result<Vec<File>>>()?;
            let roots: Vec<BorrowedFd<'_>> = roots.iter().map(AsFd::as_fd).collect();
            let refused =
                |error: LayerError| StoreError::Refused(format!("image {}: {error}", image.id.short()));
            let ownership = Ownership::of_this_process();
            if !implying && !root_differs(&roots, ownership).map_err(refused)? {
                return Ok(None);
            }
            let staging = self.begin()?;
            let dir = staging.layer_dir()?;
            let tree = dir.join("diff");
            let root = File::open(&tree).map_err(StoreError::io("open it", &tree))?;
            let made =
                AttributeLayer::of(&roots, ownership).and_then(|frame| frame.make(root.as_fd(), ownership));
            let applied = Applied { entries: made.map_err(refused)?, ..Applied::default() };
            staging.finish_layer(dir, image.id, 0, applied)?;
            staging.publish()?;
            record = self.layer_record(&image.id)?;
        }
        // An empty one says that none is needed, so that this is found out once.
        let needed = record.is_some_and(|LayerRecord { entries, .. }| entries > 0);
        Ok(needed.then(|| self.layer_dir(&image.id).join("diff")))
    }
}

/// Returns whether the directory was made up.
fn is_implied(at: LayerAt<'_>) -> rustix::io::Result<bool> {
    Ok(at.xattr(IMPLIED)?.is_some())
}

/// Returns whether a made-up root would hide what another layer says of it.
fn root_differs(roots: &[BorrowedFd<'_>], ownership: Ownership) -> Layer<bool> {
    for (depth, root) in roots.iter().enumerate() {
        let at = LayerAt::Host(At::Fd(*root));
        if !is_implied(at).map_err(LayerError::os(b"", "read its marks"))? {
            return Ok(depth > 0
                && differ(&read(at, b"", ownership)?, &read(At::Fd(roots[0]).into(), b"", ownership)?));
        }
    }
    Ok(false)
}

fn read(at: LayerAt<'_>, path: &[u8], ownership: Ownership) -> Layer<Attributes> {
    let stat = at.stat().map_err(LayerError::os(path, "stat it"))?;
    Attributes::read(at, path, &stat, ownership)
}

/// Returns whether they differ in more than their times.
fn differ(one: &Attributes, other: &Attributes) -> bool {
    let told = |a: &Attributes| (a.mode, a.uid, a.gid, a.xattrs.clone());
    told(one) != told(other)
}

/// The directories of a frame; parents come before what is in them.
#[derive(Debug, Default)]
struct AttributeLayer(BTreeMap<Vec<u8>, Attributes>);

impl AttributeLayer {
    fn of(layers: &[BorrowedFd<'_>], ownership: Ownership) -> Layer<AttributeLayer> {
        let mut made_up = BTreeSet::new();
        for layer in layers {
            collect(*layer, &mut made_up)?;
        }
        let union = open_union(layers.iter().copied().map(of_fd))?;
        let mut frame = AttributeLayer::default();
        let mut way = Way { union: &union, path: Vec::new(), nodes: Vec::new() };
        for path in made_up.iter().map(InOrder::path) {
            if !way.go(&path)? {
                continue;
            }
            let wanted = described(&union, way.node(), &path, ownership)?;
            if let Some((attributes, true)) = wanted {
                frame.0.insert(path.clone(), attributes);
                frame.add_parents(&way, ownership)?;
            }
        }
        Ok(frame)
    }

    /// Adds the directories on the way, which need their attributes too, on top of everything.
    fn add_parents(&mut self, way: &Way<'_>, ownership: Ownership) -> Layer<()> {
        for (parent, node) in way.parents() {
            // Whoever was added has brought its parents along.
            if self.0.contains_key(parent) {
                break;
            }
            if let Some((attributes, _)) = described(way.union, node, parent, ownership)? {
                self.0.insert(parent.to_vec(), attributes);
            }
        }
        Ok(())
    }

    /// Makes the directories; how many there are.
    fn make(self, root: BorrowedFd<'_>, ownership: Ownership) -> Layer<u64> {
        let mut place = UnpackTarget::new(root, ownership)?;
        for (path, attributes) in &self.0 {
            match path.is_empty() {
                true => place.root(attributes)?,
                false => place.directory(path, attributes)?,
            }
        }
        place.finish()?;
        Ok(self.0.len() as u64)
    }
}

/// Returns what the topmost layer says that describes a directory, and whether that is another thing than what is
/// shown; of one that nobody describes, what is shown. `None`: it is no directory in the image.
fn described(
    union: &Union,
    node: &Arc<Node>,
    path: &[u8],
    ownership: Ownership,
) -> Layer<Option<(Attributes, bool)>> {
    let mut parts = Vec::new();
    union
        .each_part(node, |at| {
            parts.push((read(at, path, ownership), is_implied(at)?));
            Ok(())
        })
        .map_err(of_union(path))?;
    let describing = parts.iter().position(|(_, implied)| !implied).unwrap_or(0);
    let mut parts = parts.into_iter().map(|(attributes, _)| attributes);
    let Some(shown) = parts.next().transpose()? else { return Ok(None) };
    if describing == 0 {
        return Ok(Some((shown, false)));
    }
    let told = parts.nth(describing - 1).transpose()?;
    Ok(told.map(|told| (told.clone(), differ(&told, &shown))))
}

/// A path that comes before what is below it, and that before all others: in such an order each directory is looked up once.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InOrder(Vec<u8>);

impl InOrder {
    /// Makes one of a path: no name holds a zero byte, which comes before every other.
    fn of(path: &[u8]) -> InOrder {
        InOrder(path.iter().map(|&byte| if byte == b'/' { 0 } else { byte }).collect())
    }

    fn path(&self) -> Vec<u8> {
        self.0.iter().map(|&byte| if byte == 0 { b'/' } else { byte }).collect()
    }
}

/// The way to a directory of a union, kept for the next one.
struct Way<'a> {
    union: &'a Union,
    path: Vec<u8>,
    /// The nodes on it, below the root, and how long each one's path is. Each counts one lookup.
    nodes: Vec<(usize, Arc<Node>)>,
}

impl Way<'_> {
    /// Returns where it ends.
    fn node(&self) -> &Arc<Node> {
        self.nodes.last().map_or(self.union.root(), |(_, node)| node)
    }

    /// Returns the directories on it, above its end, the nearest first.
    fn parents(&self) -> impl Iterator<Item = (&[u8], &Arc<Node>)> {
        let below = self.nodes.iter().rev().skip(1).map(|(length, node)| (&self.path[..*length], node));
        let root = (!self.nodes.is_empty()).then(|| (&self.path[..0], self.union.root()));
        below.chain(root)
    }

    /// Goes to a path; `false` when there is nothing.
    fn go(&mut self, path: &[u8]) -> Layer<bool> {
        let shared = |length: usize| {
            path.get(length).is_none_or(|&byte| byte == b'/') && path.get(..length) == self.path.get(..length)
        };
        let kept = self.nodes.iter().take_while(|(length, _)| shared(*length)).count();
        for (_, node) in self.nodes.drain(kept..) {
            self.union.forget(node.ino, 1);
        }
        let mut at = self.nodes.last().map_or(0, |(length, _)| *length);
        while at < path.len() {
            let from = if at == 0 { 0 } else { at + 1 };
            at = path[from..].iter().position(|&byte| byte == b'/').map_or(path.len(), |end| from + end);
            let found = match self.union.lookup(self.node(), &path[from..at]) {
                Err(FsError::NotADirectory) => None,
                found => found.map_err(of_union(path))?,
            };
            let Some((node, _)) = found else { return Ok(false) };
            self.nodes.push((at, node));
            self.path = path[..at].to_vec();
        }
        Ok(true)
    }
}

/// Collects the made-up directories of a layer.
fn collect(layer: BorrowedFd<'_>, into: &mut BTreeSet<InOrder>) -> Layer<()> {
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let dir = open_dir(layer, &path).map_err(LayerError::os(&path, "open it"))?;
        for_each_entry::<Errno>(dir.as_fd(), |entry| {
            let kind = match entry.kind {
                Some(kind) => kind,
                None => At::Name(dir.as_fd(), entry.name).stat()?.kind(),
            };
            if kind == Kind::Directory {
                todo.push(join(&path, entry.name));
            }
            Ok(())
        })
        .map_err(LayerError::os(&path, "list it"))?;
        if is_implied(At::Fd(dir.as_fd()).into()).map_err(LayerError::os(&path, "read its marks"))? {
            into.insert(InOrder::of(&path));
        }
    }
    Ok(())
}
