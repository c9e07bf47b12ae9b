//! The model itself against a plain directory: what it says of errnos and attributes is what Linux does.

use support::model::check::Sequence;
use support::model::execute::{Executor, observe};
use support::model::generate::{ALPHABET, Vocabulary, case};
use support::model::harness::{Failure, run_cases};
use support::model::layer::{LayerNode, StackSpec};
use support::model::op::Op;
use support::{Layer, Scratch};

/// One layer, merged with nothing, is a plain directory if it holds no markers.
fn check(spec: &StackSpec, operations: &[Op], steered: bool) -> Result<(), Failure> {
    let mut layer = spec.lowers[0].clone();
    strip_markers(&mut layer);
    let scratch = Scratch::new();
    let root = Layer::at(scratch.path().join("root"));
    layer.write(&root);
    // As an upper over nothing, so that the root's attributes are its own.
    let model = StackSpec { upper: layer, lowers: Vec::new() }.merge();
    let mut sequence = Sequence { steered, ..Sequence::strict(model) };
    let mut executor = Executor::new(root.root());
    sequence
        .run(operations, |op| executor.run(op), || observe(root.root(), &ALPHABET))
        .map_err(|text| Failure { text, performed: sequence.performed })
}

fn strip_markers(node: &mut LayerNode) {
    if let LayerNode::Directory { opaque, children, .. } = node {
        *opaque = None;
        children.retain(|_, child| !matches!(child, LayerNode::Whiteout(_)));
        children.values_mut().for_each(strip_markers);
    }
}

#[test]
fn a_plain_directory_behaves_as_the_model() {
    let privileged = rustix::process::geteuid().is_root();
    run_cases(150, 1, &case(&Vocabulary::full(privileged)), &check);
}
