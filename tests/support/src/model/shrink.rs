//! Makes a failing case small: fewer operations, fewer layers, fewer and plainer objects in them.
//!
//! proptest shrinks what it has generated; but operations are bent to what is there ([`super::steer`]), so that each
//! one taken away changes all that follow. Here the operations are taken as they were performed, and stay what they
//! are.

use std::time::{Duration, Instant};

use super::layer::{LayerNode, StackSpec};
use super::op::{Op, Rename};

/// Tries simpler and simpler cases for which `fails` still holds, for at most `limit`.
pub fn shrink(
    mut spec: StackSpec,
    mut operations: Vec<Op>,
    limit: Duration,
    fails: impl Fn(&StackSpec, &[Op]) -> bool,
) -> (StackSpec, Vec<Op>) {
    let deadline = Instant::now() + limit;
    let late = || Instant::now() > deadline;
    // Halves, quarters, …: then single operations.
    let mut size = operations.len().div_ceil(2);
    while size > 0 && !late() {
        let mut start = 0;
        while start < operations.len() && !late() {
            let mut fewer = operations.clone();
            fewer.drain(start..(start + size).min(operations.len()));
            if fails(&spec, &fewer) {
                operations = fewer;
            } else {
                start += size;
            }
        }
        size /= 2;
    }
    loop {
        let simpler = simpler_stacks(&spec).into_iter().find(|spec| !late() && fails(spec, &operations));
        if let Some(simpler) = simpler {
            spec = simpler;
            continue;
        }
        let simpler = simpler_sequences(&operations).into_iter().find(|ops| !late() && fails(&spec, ops));
        match simpler {
            Some(simpler) => operations = simpler,
            None => return (spec, operations),
        }
    }
}

fn simpler_stacks(spec: &StackSpec) -> Vec<StackSpec> {
    let mut simpler = Vec::new();
    for index in 0..spec.lowers.len() {
        let mut fewer = spec.clone();
        fewer.lowers.remove(index);
        if !fewer.lowers.is_empty() {
            simpler.push(fewer);
        }
    }
    simpler.extend(simpler_nodes(&spec.upper).into_iter().map(|upper| StackSpec { upper, ..spec.clone() }));
    for index in 0..spec.lowers.len() {
        for node in simpler_nodes(&spec.lowers[index]) {
            let mut changed = spec.clone();
            changed.lowers[index] = node;
            simpler.push(changed);
        }
    }
    simpler
}

fn simpler_nodes(node: &LayerNode) -> Vec<LayerNode> {
    let mut simpler = Vec::new();
    match node {
        LayerNode::Directory { attributes, opaque, children } => {
            let with =
                |children| LayerNode::Directory { attributes: attributes.clone(), opaque: *opaque, children };
            for name in children.keys() {
                let mut fewer = children.clone();
                fewer.remove(name);
                simpler.push(with(fewer));
            }
            for (name, child) in children {
                for child in simpler_nodes(child) {
                    let mut changed = children.clone();
                    changed.insert(name.clone(), child);
                    simpler.push(with(changed));
                }
            }
            if opaque.is_some() {
                simpler.push(LayerNode::Directory {
                    attributes: attributes.clone(),
                    opaque: None,
                    children: children.clone(),
                });
            }
        }
        LayerNode::File { attributes, fill, length, link } => {
            if link.is_some() {
                simpler.push(LayerNode::File {
                    link: None,
                    attributes: attributes.clone(),
                    fill: *fill,
                    length: *length,
                });
            }
            if *length > 1 {
                simpler.push(LayerNode::File {
                    length: 1,
                    attributes: attributes.clone(),
                    fill: *fill,
                    link: *link,
                });
            }
        }
        LayerNode::Symlink { .. } | LayerNode::Fifo { .. } | LayerNode::Whiteout(_) => {}
    }
    let mut plain = node.clone();
    let default = match node {
        LayerNode::Directory { .. } => super::layer::dir([]),
        LayerNode::Symlink { .. } => super::layer::symlink(""),
        _ => super::layer::file(0, 0),
    };
    if let (Some(attributes), Some(default)) = (plain.attributes_mut(), default.clone().attributes_mut())
        && *attributes != *default
    {
        *attributes = default.clone();
        simpler.push(plain);
    }
    simpler
}

fn simpler_sequences(operations: &[Op]) -> Vec<Vec<Op>> {
    let mut simpler = Vec::new();
    for (index, op) in operations.iter().enumerate() {
        let plain = match op.clone() {
            Op::Write { path, fill, .. } => {
                Op::Write { path, offset: 0, fill, length: 1, truncate: false, append: false }
            }
            Op::Truncate { path, .. } => Op::Truncate { path, length: 0 },
            Op::Rename { from, to, .. } => Op::Rename { from, to, how: Rename::Plain },
            Op::WriteOpen { slot, fill, .. } => Op::WriteOpen { slot, offset: 0, fill, length: 1 },
            _ => continue,
        };
        if plain != *op {
            let mut changed = operations.to_vec();
            changed[index] = plain;
            simpler.push(changed);
        }
    }
    for index in 0..operations.len() {
        let mut fewer = operations.to_vec();
        fewer.remove(index);
        simpler.push(fewer);
    }
    simpler
}
