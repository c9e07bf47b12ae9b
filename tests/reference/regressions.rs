//! Cases that random sequences have found, made small and kept by name.

use crate::mounted::check;
use support::model::layer::{LayerNode, StackSpec, dir, file, linked, whiteout};
use support::model::op::{Op, Rename, p};
use support::{OpaqueForm, WhiteoutForm};

#[track_caller]
fn assert_case<const N: usize>(lowers: [LayerNode; N], operations: &[Op]) {
    let spec = StackSpec { upper: dir([]), lowers: lowers.into() };
    if let Err(failure) = check(&spec, operations, false) {
        panic!("{}", failure.text);
    }
}

/// Marks in extended attributes count in directories that one layer alone has, too.
#[test]
fn an_xattr_whiteout_in_a_directory_of_one_layer() {
    if !support::Program::under_test().is_unionmount() {
        support::skip!("the peers don't know this form, or not here");
    }
    let form = match support::Privilege::current() {
        support::Privilege::Root => WhiteoutForm::TrustedXattr,
        _ => WhiteoutForm::UserXattr,
    };
    assert_case([dir([("c", dir([("a", dir([("gone", whiteout(form)), ("kept", file(b'k', 1))]))]))])], &[]);
}

/// st_nlink of the other name went from 2 to 0.
#[test]
fn unlinking_one_of_two_names_counts_once() {
    assert_case(
        [dir([
            ("a", dir([("a", linked(0, b'l', 1))])),
            ("d", dir([("b", dir([("c", linked(0, b'n', 1))]))])),
        ])],
        &[Op::Unlink { path: p("a/a") }],
    );
}

/// ESTALE.
#[test]
fn renaming_one_of_two_names_into_a_lower_directory() {
    assert_case(
        [dir([
            ("b", dir([])),
            ("c", dir([("a", dir([("a", linked(0, b'n', 1))])), ("b", dir([("c", linked(0, b'k', 1))]))])),
        ])],
        &[Op::Rename { from: p("c/a/a"), to: p("b/d"), how: Rename::Plain }],
    );
}

/// st_nlink of the name that was left was 2 after a remount.
#[test]
fn renaming_over_one_of_two_names() {
    assert_case(
        [
            dir([(
                "c",
                dir([("c", dir([("a", linked(1, b'k', 1))])), ("d", dir([("d", linked(1, b'n', 1))]))]),
            )]),
            dir([("d", dir([("a", dir([("a", file(b'x', 3))]))]))]),
        ],
        &[Op::Rename { from: p("d/a/a"), to: p("c/c/a"), how: Rename::Plain }],
    );
}

/// The redirect was followed only in the layers that have the new name; here, in one of two, and it is a file there.
#[test]
fn a_merged_directory_takes_the_name_of_a_lower_file() {
    assert_case(
        [
            dir([("d", dir([("z", file(b'z', 1))]))]),
            dir([("d", dir([("x", file(b'x', 1))])), ("f", file(b'f', 1))]),
        ],
        &[Op::Rename { from: p("f"), to: p("d"), how: Rename::Exchange }],
    );
}

/// The same with an opaque directory on the way: what it hides came back.
#[test]
fn an_opaque_directory_takes_the_name_of_an_emptied_one() {
    let form = match support::Privilege::current() {
        support::Privilege::Root => OpaqueForm::Trusted,
        _ => OpaqueForm::User,
    };
    assert_case(
        [
            dir([("d", dir([("new", file(b'n', 1))]).opaque(form))]),
            dir([("d", dir([("old", file(b'o', 1))])), ("e", dir([("old", file(b'o', 1))]))]),
        ],
        &[Op::Unlink { path: p("e/old") }, Op::Rename { from: p("d"), to: p("e"), how: Rename::Plain }],
    );
}
