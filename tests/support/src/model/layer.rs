//! Layers as data: written to disk for a real mount, merged in memory for the model.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::op::Name;
use super::tree::{Id, Inode, Model, Node};
use crate::{Layer, OpaqueForm, Stack, Time, WhiteoutForm};

/// Owner, permissions, user xattrs and modification time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Value of `user.a`, if there is one.
    pub xattr: Option<u8>,
    /// Modification time in seconds.
    pub mtime: i64,
}

/// One object of a layer.
#[derive(Clone, PartialEq, Eq)]
pub enum LayerNode {
    /// A directory.
    Directory {
        /// Its attributes.
        attributes: Attributes,
        /// Whether and how it is marked opaque.
        opaque: Option<OpaqueForm>,
        /// What is in it.
        children: BTreeMap<Name, LayerNode>,
    },
    /// A regular file of `length` bytes `fill`.
    File {
        /// Its attributes.
        attributes: Attributes,
        /// The byte it is full of.
        fill: u8,
        /// How many.
        length: usize,
        /// Files of one layer with the same number are one file; the first in the order of names says what it holds.
        link: Option<u8>,
    },
    /// A symbolic link.
    Symlink {
        /// Its attributes; mode and xattr don't count.
        attributes: Attributes,
        /// Where it points.
        target: Vec<u8>,
    },
    /// A fifo.
    Fifo {
        /// Its attributes; xattr doesn't count.
        attributes: Attributes,
    },
    /// "Deleted here".
    Whiteout(WhiteoutForm),
}

/// A stack: lowers, topmost first, and what the upper holds already. Roots are directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackSpec {
    /// The upper's content.
    pub upper: LayerNode,
    /// The lowers' contents, topmost first.
    pub lowers: Vec<LayerNode>,
}

/// How the tests run: which owner files get.
pub fn default_owner() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

// Constructors. The Debug form of a stack is made of them, so that a failure can be pasted as a regression test.

/// A directory with the given children.
pub fn dir<const N: usize>(children: [(&str, LayerNode); N]) -> LayerNode {
    let children = children.into_iter().map(|(name, node)| (unescape(name), node)).collect();
    LayerNode::Directory { attributes: Attributes::new(0o755), opaque: None, children }
}

/// A file of `length` bytes `fill`.
pub fn file(fill: u8, length: usize) -> LayerNode {
    LayerNode::File { attributes: Attributes::new(0o644), fill, length, link: None }
}

/// One of several names of one file.
pub fn linked(link: u8, fill: u8, length: usize) -> LayerNode {
    LayerNode::File { attributes: Attributes::new(0o644), fill, length, link: Some(link) }
}

/// A symbolic link.
pub fn symlink(target: &str) -> LayerNode {
    LayerNode::Symlink { attributes: Attributes::new(0o777), target: unescape(target) }
}

/// A fifo.
pub fn fifo() -> LayerNode {
    LayerNode::Fifo { attributes: Attributes::new(0o644) }
}

/// A whiteout.
pub fn whiteout(form: WhiteoutForm) -> LayerNode {
    LayerNode::Whiteout(form)
}

/// A name from its escaped form (`d\xff`), in which Debug prints it.
pub fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'\\' && tail.first() == Some(&b'x') {
            bytes.push(u8::from_str_radix(std::str::from_utf8(&tail[1..3]).unwrap(), 16).unwrap());
            rest = &tail[3..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    bytes
}

impl Attributes {
    fn new(mode: u32) -> Self {
        Attributes { mode, owner: default_owner(), xattr: None, mtime: 1_000_000_000 }
    }
}

impl LayerNode {
    /// The attributes of anything but a whiteout.
    pub fn attributes_mut(&mut self) -> Option<&mut Attributes> {
        match self {
            LayerNode::Directory { attributes, .. }
            | LayerNode::File { attributes, .. }
            | LayerNode::Symlink { attributes, .. }
            | LayerNode::Fifo { attributes } => Some(attributes),
            LayerNode::Whiteout(_) => None,
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Attributes)) -> Self {
        change(self.attributes_mut().expect("a whiteout has no attributes"));
        self
    }

    /// With other permission bits.
    pub fn mode(self, mode: u32) -> Self {
        self.with(|attributes| attributes.mode = mode)
    }

    /// With another owner.
    pub fn owner(self, uid: u32, gid: u32) -> Self {
        self.with(|attributes| attributes.owner = (uid, gid))
    }

    /// With `user.a` of this one byte.
    pub fn xattr(self, value: u8) -> Self {
        self.with(|attributes| attributes.xattr = Some(value))
    }

    /// With another modification time.
    pub fn mtime(self, mtime: i64) -> Self {
        self.with(|attributes| attributes.mtime = mtime)
    }

    /// The directory marked opaque.
    pub fn opaque(mut self, form: OpaqueForm) -> Self {
        if let LayerNode::Directory { opaque, .. } = &mut self {
            *opaque = Some(form);
        }
        self
    }

    /// Writes the layer whose root this is.
    pub fn write(&self, layer: &Layer) {
        let mut links = BTreeMap::new();
        self.write_at(layer, Path::new(""), &mut links);
    }

    fn write_at(&self, layer: &Layer, path: &Path, links: &mut BTreeMap<u8, PathBuf>) {
        match self {
            LayerNode::Directory { attributes, opaque, children } => {
                layer.dir(path);
                for (name, child) in children {
                    child.write_at(layer, &path.join(OsStr::from_bytes(name)), links);
                }
                if let Some(form) = opaque {
                    layer.opaque(path, *form);
                }
                attributes.write(layer, path, true);
            }
            LayerNode::File { attributes, fill, length, link } => {
                if let Some(first) = link.and_then(|link| links.get(&link)) {
                    layer.hardlink(path, first);
                    return;
                }
                layer.file(path, vec![*fill; *length]);
                attributes.write(layer, path, true);
                if let Some(link) = link {
                    links.insert(*link, path.to_owned());
                }
            }
            LayerNode::Symlink { attributes, target } => {
                layer.symlink(path, OsStr::from_bytes(target));
                attributes.write(layer, path, false);
            }
            LayerNode::Fifo { attributes } => {
                layer.fifo(path);
                Attributes { xattr: None, ..attributes.clone() }.write(layer, path, true);
            }
            LayerNode::Whiteout(form) => {
                layer.whiteout(path, *form);
            }
        }
    }
}

impl Attributes {
    fn write(&self, layer: &Layer, path: &Path, settable: bool) {
        layer.owner(path, self.owner.0, self.owner.1);
        if settable {
            layer.mode(path, self.mode);
            if let Some(value) = self.xattr {
                layer.xattr(path, "user.a", [value]);
            }
        }
        layer.mtime(path, self.mtime, i64::from(self.mode) + 1);
    }
}

impl StackSpec {
    /// Writes the layers into those of a stack with as many lowers.
    pub fn write(&self, stack: &Stack) {
        self.upper.write(stack.upper());
        for (node, layer) in self.lowers.iter().zip(stack.lowers()) {
            node.write(layer);
        }
    }

    /// The merged tree.
    pub fn merge(&self) -> Model {
        let mut merger = Merger { model: Model::new(), links: BTreeMap::new(), counts: BTreeMap::new() };
        let layers: Vec<_> = std::iter::once(&self.upper).chain(&self.lowers).enumerate().collect();
        for (index, layer) in &layers {
            count_links(layer, *index, &mut merger.counts);
            merger.collect_links(layer, *index);
        }
        merger.model.root = merger.directory(&layers);
        merger.model
    }
}

/// A file with several names: (layer, number).
type LinkKey = (usize, u8);

struct Merger {
    model: Model,
    /// The inode of each hardlinked file; made for the name that comes first in its layer, which says what it holds.
    links: BTreeMap<LinkKey, Id>,
    counts: BTreeMap<LinkKey, u64>,
}

fn count_links(node: &LayerNode, layer: usize, counts: &mut BTreeMap<LinkKey, u64>) {
    match node {
        LayerNode::Directory { children, .. } => {
            children.values().for_each(|child| count_links(child, layer, counts));
        }
        LayerNode::File { link: Some(link), .. } => *counts.entry((layer, *link)).or_default() += 1,
        _ => {}
    }
}

impl Merger {
    fn collect_links(&mut self, node: &LayerNode, layer: usize) {
        match node {
            LayerNode::Directory { children, .. } => {
                children.values().for_each(|child| self.collect_links(child, layer));
            }
            LayerNode::File { link: Some(link), .. } if !self.links.contains_key(&(layer, *link)) => {
                // st_nlink counts all names that the layer has, hidden ones too: they are the file's.
                let id = self.leaf(node, self.counts[&(layer, *link)]);
                self.links.insert((layer, *link), id);
            }
            _ => {}
        }
    }

    /// Merges directories, given topmost first with the numbers of their layers. All count: the caller has stopped
    /// at whiteouts, files and opaque marks.
    fn directory(&mut self, stack: &[(usize, &LayerNode)]) -> Id {
        let mut names = BTreeMap::new();
        for (index, node) in stack {
            let LayerNode::Directory { children, .. } = node else { unreachable!("merging a non-directory") };
            for (name, child) in children {
                names.entry(name.clone()).or_insert_with(Vec::new).push((*index, child));
            }
        }
        let mut children = BTreeMap::new();
        for (name, candidates) in names {
            if let Some(id) = self.entry(&candidates) {
                children.insert(name, id);
            }
        }
        let LayerNode::Directory { attributes, .. } = stack[0].1 else {
            unreachable!("merging a non-directory")
        };
        self.insert(Node::Directory(children), attributes, 1)
    }

    /// What a name is, given everything that the layers have under it.
    fn entry(&mut self, candidates: &[(usize, &LayerNode)]) -> Option<Id> {
        let mut stack = Vec::new();
        for (index, node) in candidates {
            match node {
                LayerNode::Directory { opaque, .. } => {
                    stack.push((*index, *node));
                    if opaque.is_some() {
                        break;
                    }
                }
                LayerNode::Whiteout(_) => break,
                _ if stack.is_empty() => return Some(self.existing_leaf(*index, node)),
                _ => break,
            }
        }
        (!stack.is_empty()).then(|| self.directory(&stack))
    }

    fn existing_leaf(&mut self, layer: usize, node: &LayerNode) -> Id {
        match node {
            LayerNode::File { link: Some(link), .. } => self.links[&(layer, *link)],
            _ => self.leaf(node, 1),
        }
    }

    fn leaf(&mut self, node: &LayerNode, nlink: u64) -> Id {
        match node {
            LayerNode::File { attributes, fill, length, .. } => {
                self.insert(Node::File(vec![*fill; *length]), attributes, nlink)
            }
            LayerNode::Symlink { attributes, target } => {
                let plain = Attributes { xattr: None, mode: 0o777, ..attributes.clone() };
                let id = self.insert(Node::Symlink(target.clone()), &plain, nlink);
                self.model.inodes[id].mtime = Time::At(attributes.mtime, i64::from(attributes.mode) + 1);
                id
            }
            LayerNode::Fifo { attributes } => {
                self.insert(Node::Fifo, &Attributes { xattr: None, ..attributes.clone() }, nlink)
            }
            LayerNode::Directory { .. } | LayerNode::Whiteout(_) => unreachable!("not a leaf"),
        }
    }

    fn insert(&mut self, node: Node, attributes: &Attributes, nlink: u64) -> Id {
        let mut xattrs = BTreeMap::new();
        if let Some(value) = attributes.xattr {
            xattrs.insert(b"user.a".to_vec(), vec![value]);
        }
        self.model.insert(Inode {
            node,
            mode: attributes.mode,
            owner: attributes.owner,
            xattrs,
            mtime: Time::At(attributes.mtime, i64::from(attributes.mode) + 1),
            nlink,
        })
    }
}

impl fmt::Debug for LayerNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attributes = match self {
            LayerNode::Directory { attributes, opaque, children } => {
                f.write_str("dir([")?;
                for (index, (name, child)) in children.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}(r\"{}\", {child:?})", name.escape_ascii())?;
                }
                f.write_str("])")?;
                if let Some(form) = opaque {
                    write!(f, ".opaque(OpaqueForm::{form:?})")?;
                }
                attributes
            }
            LayerNode::File { attributes, fill, length, link } => {
                match link {
                    None => write!(f, "file(b'{}', {length})", fill.escape_ascii())?,
                    Some(link) => write!(f, "linked({link}, b'{}', {length})", fill.escape_ascii())?,
                }
                attributes
            }
            LayerNode::Symlink { attributes, target } => {
                write!(f, "symlink(r\"{}\")", target.escape_ascii())?;
                attributes
            }
            LayerNode::Fifo { attributes } => {
                f.write_str("fifo()")?;
                attributes
            }
            LayerNode::Whiteout(form) => return write!(f, "whiteout(WhiteoutForm::{form:?})"),
        };
        let default = match self {
            LayerNode::Directory { .. } => 0o755,
            LayerNode::Symlink { .. } => 0o777,
            _ => 0o644,
        };
        if attributes.mode != default {
            write!(f, ".mode(0o{:o})", attributes.mode)?;
        }
        if attributes.owner != default_owner() {
            write!(f, ".owner({}, {})", attributes.owner.0, attributes.owner.1)?;
        }
        if let Some(value) = attributes.xattr {
            write!(f, ".xattr(b'{}')", value.escape_ascii())?;
        }
        if attributes.mtime != 1_000_000_000 {
            write!(f, ".mtime({})", attributes.mtime)?;
        }
        Ok(())
    }
}
