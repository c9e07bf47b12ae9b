//! Stacks and outcomes as the peers have them: the kernel's overlayfs reads fewer forms of marks, and a filesystem by itself has
//! one tree.

use std::collections::{BTreeMap, BTreeSet};

use rustix::io::Errno;

use super::layer::{Attributes, LayerNode, StackSpec};
use super::op::{Name, Op, Outcome};
use super::tree::{Id, Model, Node};
use crate::{OpaqueForm, Time, WhiteoutForm};

/// Whether an outcome is the kernel's own for a file that is open and unlinked: fchmod of one that was opened in a lower
/// fails with EEXIST (`index=on`), and fstat counts the lower's link.
pub fn is_of_open_and_unlinked(op: &Op, expected: &Outcome, found: &Outcome) -> bool {
    match (op, expected, found) {
        (Op::ChmodOpen { .. }, Outcome::Done, Outcome::Failed(errno)) => *errno == Errno::EXIST,
        // It has kept its old mode.
        (
            Op::ReadOpen { .. },
            Outcome::Open { content, nlink: 0, .. },
            Outcome::Open { content: found, .. },
        ) => content == found,
        _ => false,
    }
}

/// The same stack in the forms that the kernel's overlayfs reads as root.
pub fn in_kernels_forms(spec: &StackSpec) -> StackSpec {
    fn change(node: &mut LayerNode) {
        match node {
            LayerNode::Whiteout(form) => *form = WhiteoutForm::Device,
            LayerNode::Directory { opaque, children, .. } => {
                *opaque = opaque.map(|_| OpaqueForm::Trusted);
                children.values_mut().for_each(change);
            }
            _ => {}
        }
    }
    let mut spec = spec.clone();
    std::iter::once(&mut spec.upper).chain(&mut spec.lowers).for_each(change);
    prune_idle_whiteouts(&mut spec);
    spec
}

/// A stack of one layer that shows the same tree.
pub fn flat(spec: &StackSpec) -> StackSpec {
    let model = spec.merge();
    let lower = flat_node(&model, model.root, &mut BTreeMap::new());
    // The root is the upper's.
    let mut upper = lower.clone();
    if let LayerNode::Directory { children, .. } = &mut upper {
        children.clear();
    }
    StackSpec { upper, lowers: vec![lower] }
}

fn flat_node(model: &Model, id: Id, links: &mut BTreeMap<Id, u8>) -> LayerNode {
    let inode = &model.inodes[id];
    let Time::At(mtime, _) = inode.mtime else { panic!("a layer's files have a time") };
    let xattr = inode.xattrs.get(&b"user.a"[..]).and_then(|value| value.first()).copied();
    let attributes = Attributes { mode: inode.mode, owner: inode.owner, xattr, mtime };
    match &inode.node {
        Node::Directory(children) => {
            let child = |(name, child): (&Name, &Id)| (name.clone(), flat_node(model, *child, links));
            let children = children.iter().map(child).collect();
            LayerNode::Directory { attributes, opaque: None, children }
        }
        Node::File(bytes) => {
            let next = links.len() as u8;
            let link = (inode.nlink > 1).then(|| *links.entry(id).or_insert(next));
            let fill = bytes.first().copied().unwrap_or_default();
            LayerNode::File { attributes, fill, length: bytes.len(), link }
        }
        Node::Symlink(target) => LayerNode::Symlink { attributes, target: target.clone() },
        Node::Fifo => LayerNode::Fifo { attributes },
    }
}

/// Takes away the whiteouts of directories that are merged with nothing: the kernel lists such a directory as it is,
/// and the whiteouts in it as names that don't resolve.
pub fn prune_idle_whiteouts(spec: &mut StackSpec) {
    let mut alone = BTreeSet::new();
    let layers: Vec<_> = std::iter::once(&spec.upper).chain(&spec.lowers).enumerate().collect();
    find_unmerged(&layers, &mut Vec::new(), &mut alone);
    for (index, layer) in std::iter::once(&mut spec.upper).chain(&mut spec.lowers).enumerate() {
        prune(layer, index, &mut Vec::new(), &alone);
    }
}

/// (layer, path) of directories.
type Places = BTreeSet<(usize, Vec<Name>)>;

fn find_unmerged(stack: &[(usize, &LayerNode)], path: &mut Vec<Name>, alone: &mut Places) {
    if let [(index, _)] = stack {
        alone.insert((*index, path.clone()));
    }
    let mut names = BTreeSet::new();
    for (_, node) in stack {
        if let LayerNode::Directory { children, .. } = node {
            names.extend(children.keys());
        }
    }
    for name in names {
        let mut merged = Vec::new();
        for (index, node) in stack {
            let LayerNode::Directory { children, .. } = node else { continue };
            match children.get(name) {
                Some(child @ LayerNode::Directory { opaque, .. }) => {
                    merged.push((*index, child));
                    if opaque.is_some() {
                        break;
                    }
                }
                Some(_) => break,
                None => {}
            }
        }
        if !merged.is_empty() {
            path.push(name.clone());
            find_unmerged(&merged, path, alone);
            path.pop();
        }
    }
}

fn prune(node: &mut LayerNode, layer: usize, path: &mut Vec<Name>, alone: &Places) {
    let LayerNode::Directory { children, .. } = node else { return };
    if alone.contains(&(layer, path.clone())) {
        children.retain(|_, child| !matches!(child, LayerNode::Whiteout(_)));
    }
    for (name, child) in children {
        path.push(name.clone());
        prune(child, layer, path, alone);
        path.pop();
    }
}
