//! Sequences through a real mount of the program under test.

use proptest::strategy::Strategy;

use crate::common::{Mount, Privilege, Program, Stack};
use crate::harness::{Failure, run_cases};
use crate::model::check::Sequence;
use crate::model::execute::{Executor, observe};
use crate::model::generate::{ALPHABET, Vocabulary, case};
use crate::model::layer::StackSpec;
use crate::model::op::Op;

/// Writes the layers of `spec` to disk.
pub fn build(spec: &StackSpec) -> Stack {
    let stack = Stack::new(spec.lowers.len());
    spec.upper.write(stack.upper());
    for (node, layer) in spec.lowers.iter().zip(stack.lowers()) {
        node.write(layer);
    }
    stack
}

/// The whole check of one case: each step, the lowers, the workdir, a remount.
pub fn check(spec: &StackSpec, operations: &[Op], steered: bool) -> Result<(), Failure> {
    let mut sequence = Sequence { steered, ..Sequence::strict(spec.merge()) };
    let mount = Stack::mount;
    check_steps(spec, operations, &mut sequence, mount)
        .map_err(|text| Failure { text, performed: sequence.performed })
}

fn check_with_passthrough(spec: &StackSpec, operations: &[Op], steered: bool) -> Result<(), Failure> {
    let mut sequence = Sequence { steered, ..Sequence::strict(spec.merge()) };
    check_steps(spec, operations, &mut sequence, |stack| stack.mount_with(&["passthrough"]))
        .map_err(|text| Failure { text, performed: sequence.performed })
}

fn check_steps(
    spec: &StackSpec,
    operations: &[Op],
    sequence: &mut Sequence,
    mount: impl FnOnce(&Stack) -> Mount,
) -> Result<(), String> {
    let stack = build(spec);
    let before = stack.lower_snapshots();
    let mount = mount(&stack);
    sequence.compare(&observe(mount.path(), &ALPHABET)).map_err(|text| format!("as mounted:\n{text}"))?;
    let mut executor = Executor::new(mount.path());
    sequence.run(operations, |op| executor.run(op), || observe(mount.path(), &ALPHABET))?;
    executor.close_all();
    sequence.close_all();
    mount.unmount();

    stack.assert_lowers_unchanged(&before);
    stack.assert_workdir_clean();
    let mount = stack.mount();
    sequence
        .compare(&observe(mount.path(), &ALPHABET))
        .map_err(|text| format!("after a remount:\n{text}"))?;
    mount.unmount();
    stack.assert_lowers_unchanged(&before);
    Ok(())
}

/// What the program under test is bound to read and write.
pub fn vocabulary() -> Vocabulary {
    use crate::common::{OpaqueForm as O, WhiteoutForm as W};
    let privilege = Privilege::current();
    let full = Vocabulary::full(privilege == Privilege::Root);
    // Root of a namespace has one user only.
    match Program::under_test() {
        Program::Unionmount(_) => full,
        Program::FuseOverlayfs(_) => Vocabulary {
            whiteouts: vec![W::Device, W::Aufs],
            opaques: full.opaques.into_iter().filter(|form| *form != O::User).collect(),
            ..full
        },
        Program::Kernel => crate::oracle::kernel_vocabulary(),
    }
}

#[test]
fn a_mount_behaves_as_the_model() {
    run_cases(100, 2, &case(&vocabulary()), &check);
}

#[test]
fn a_mount_with_passthrough_behaves_as_the_model() {
    crate::needs_root!();
    if !Program::under_test().is_unionmount() {
        crate::skip!("others have no such option");
    }
    run_cases(60, 6, &case(&vocabulary()), &check_with_passthrough);
}

#[test]
fn a_mount_behaves_as_the_model_without_open_files() {
    let vocabulary = Vocabulary { open_files: false, operations: 60, ..vocabulary() };
    run_cases(60, 3, &case(&vocabulary), &check);
}

/// Every stack, as it is first shown: many stacks, no operation.
#[test]
fn random_stacks_are_merged_as_in_the_model() {
    let vocabulary = Vocabulary { lowers: 6, ..vocabulary() };
    let stacks = crate::model::generate::stack(&vocabulary).prop_map(|spec| (spec, Vec::new()));
    run_cases(100, 4, &stacks, &check);
}
