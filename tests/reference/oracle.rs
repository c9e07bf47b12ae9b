//! The kernel's overlayfs as oracle: the same stacks and sequences, over copies of the same layers.
//!
//! The program under test and the kernel's overlayfs are both compared with the model: the first strictly, in
//! [`crate::mounted`], the second here, with the differences of [`KERNEL_DIFFERENCES`]. What is not in that table, the
//! two have in common.

use std::collections::BTreeSet;

use crate::common::{Fields, Mount, OpaqueForm, Privilege, Snapshot, Stack, WhiteoutForm};
use crate::harness::run_cases;
use crate::model::check::Sequence;
use crate::model::execute::{Executor, assert_absent};
use crate::model::generate::{ALPHABET, Vocabulary, case};
use crate::model::layer::{LayerNode, StackSpec};
use crate::model::op::{Name, Op, Outcome};
use crate::mounted::build;

/// What the kernel's overlayfs writes and reads, by the privilege of who mounts it.
pub fn kernel_vocabulary() -> Vocabulary {
    let privileged = Privilege::current() == Privilege::Root;
    let opaque = if privileged { OpaqueForm::Trusted } else { OpaqueForm::User };
    Vocabulary { whiteouts: vec![WhiteoutForm::Device], opaques: vec![opaque], ..Vocabulary::full(privileged) }
}

/// Mount options under which the kernel comes nearest to a POSIX filesystem.
fn kernel_options() -> &'static [&'static str] {
    match Privilege::current() {
        Privilege::Root => &["redirect_dir=on,index=on,xino=on"],
        // With userxattr the kernel renames no merged directory, and keeps no index without file handles.
        _ => &["userxattr"],
    }
}

fn mount_kernel(stack: &Stack) -> Mount {
    stack.mount_kernel(kernel_options())
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

fn observe_kernel(mount: &Mount) -> Snapshot {
    let snapshot = Snapshot::take(mount.path());
    assert_absent(mount.path(), &ALPHABET, &snapshot);
    snapshot
}

#[test]
fn the_kernel_behaves_as_the_model() {
    if Privilege::current() == Privilege::User {
        crate::skip!("an ordinary user cannot mount overlayfs");
    }
    run_cases(60, 5, &case(&kernel_vocabulary()), |(mut spec, operations)| {
        prune_idle_whiteouts(&mut spec);
        let stack = build(&spec);
        let mount = mount_kernel(&stack);
        let fields = Fields { directory_mtime: false, ..Fields::tree() };
        let mut sequence = Sequence { fields, identities: None, tolerate: &tolerated, ..Sequence::strict(spec.merge()) };
        sequence.compare(&observe_kernel(&mount)).map_err(|text| format!("as mounted:\n{text}"))?;
        let mut executor = Executor::new(mount.path());
        sequence.run(&operations, |op| executor.run(op), || observe_kernel(&mount))
    });
}

fn tolerated(op: &Op, _expected: &Outcome, _found: &Outcome) -> bool {
    matches!(op, Op::ReadOpen { .. })
}
