//! Random stacks and random sequences, over few names so that operations meet.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::layer::{Attributes, LayerNode, StackSpec};
use super::op::{Allocate, Name, Op, Path, Rename};
use crate::{OpaqueForm, WhiteoutForm};

/// The names: few, and one that is not UTF-8.
pub const ALPHABET: [&[u8]; 4] = [b"a", b"b", b"c", b"d\xff"];

/// What stacks and sequences may hold.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    /// Forms of whiteouts in lowers.
    pub whiteouts: Vec<WhiteoutForm>,
    /// Forms of opaque marks in lowers.
    pub opaques: Vec<OpaqueForm>,
    /// Whether lowers hold files with several names.
    pub links: bool,
    /// Owners that files may get.
    pub owners: Vec<(u32, u32)>,
    /// Whether files stay open across operations.
    pub open_files: bool,
    /// How many lowers at most.
    pub lowers: usize,
    /// How many operations at most.
    pub operations: usize,
}

impl Vocabulary {
    /// Everything that this process can write into a layer and that a mount of its own believes: root's mounts believe no
    /// marks in `user.*`.
    pub fn full(privileged: bool) -> Self {
        use OpaqueForm as O;
        use WhiteoutForm as W;
        let own = super::layer::default_owner();
        Vocabulary {
            whiteouts: if privileged {
                vec![W::Device, W::Aufs, W::TrustedXattr]
            } else {
                vec![W::Device, W::Aufs, W::UserXattr]
            },
            opaques: if privileged {
                vec![O::Trusted, O::Aufs]
            } else {
                vec![O::User, O::FuseOverlayfs, O::Aufs]
            },
            links: true,
            owners: if privileged { vec![own, (1000, 1000), (12345, 7)] } else { vec![own] },
            open_files: true,
            lowers: 4,
            operations: 30,
        }
    }
}

/// A stack and a sequence for it.
pub fn case(vocabulary: &Vocabulary) -> impl Strategy<Value = (StackSpec, Vec<Op>)> + use<> {
    (stack(vocabulary), operations(vocabulary))
}

/// A stack: an upper, empty in half of the cases, over lowers.
pub fn stack(vocabulary: &Vocabulary) -> impl Strategy<Value = StackSpec> + use<> {
    let lowers = vec(layer(vocabulary, true), 1..=vocabulary.lowers);
    // The upper is this program's own: it holds what this program writes.
    let form = if super::layer::default_owner().0 == 0 { OpaqueForm::Trusted } else { OpaqueForm::User };
    let own = Vocabulary {
        whiteouts: vec![WhiteoutForm::Device],
        opaques: vec![form],
        links: false,
        ..vocabulary.clone()
    };
    let upper = prop_oneof![Just(super::layer::dir([])), layer(&own, false),];
    (upper, lowers).prop_map(|(upper, lowers)| StackSpec { upper, lowers })
}

fn layer(vocabulary: &Vocabulary, lower: bool) -> impl Strategy<Value = LayerNode> + use<> {
    directory(vocabulary, 3, lower).prop_map(|mut node| {
        if let LayerNode::Directory { opaque, .. } = &mut node {
            *opaque = None;
        }
        node
    })
}

fn attributes(vocabulary: &Vocabulary, modes: &'static [u32]) -> BoxedStrategy<Attributes> {
    let xattr = option::weighted(0.2, select(&[b'x', b'y'][..]));
    (select(modes), select(vocabulary.owners.clone()), xattr, 1_000_000_000i64..1_000_000_003)
        .prop_map(|(mode, owner, xattr, mtime)| Attributes { mode, owner, xattr, mtime })
        .boxed()
}

const FILE_MODES: &[u32] = &[0o644, 0o644, 0o600, 0o755, 0o4755, 0o2755];
const DIRECTORY_MODES: &[u32] = &[0o755, 0o755, 0o700, 0o2755, 0o1755];
const PLAIN_MODES: &[u32] = &[0o644];
const LINK_MODES: &[u32] = &[0o777];

fn directory(vocabulary: &Vocabulary, depth: u32, lower: bool) -> BoxedStrategy<LayerNode> {
    let child = option::weighted(0.6, node(vocabulary, depth - 1, lower));
    let opaque = option::weighted(0.15, select(vocabulary.opaques.clone()));
    (attributes(vocabulary, DIRECTORY_MODES), opaque, [child.clone(), child.clone(), child.clone(), child])
        .prop_map(|(attributes, opaque, children)| {
            let names = ALPHABET.iter().map(|name| name.to_vec());
            let mut children: BTreeMap<Name, LayerNode> =
                names.zip(children).filter_map(|(name, child)| Some((name, child?))).collect();
            if opaque.is_some() {
                // The kernel calls a whiteout in an opaque directory a corrupt layer, and no program writes one.
                children.retain(|_, child| !matches!(child, LayerNode::Whiteout(_)));
            }
            LayerNode::Directory { attributes, opaque, children }
        })
        .boxed()
}

fn node(vocabulary: &Vocabulary, depth: u32, lower: bool) -> BoxedStrategy<LayerNode> {
    let link =
        if vocabulary.links && lower { option::weighted(0.3, 0..2u8).boxed() } else { Just(None).boxed() };
    let file = (attributes(vocabulary, FILE_MODES), select(&b"klmn"[..]), lengths(), link)
        .prop_map(|(attributes, fill, length, link)| LayerNode::File { attributes, fill, length, link });
    let symlink =
        (attributes(vocabulary, LINK_MODES), path(2)).prop_map(|(attributes, target)| LayerNode::Symlink {
            attributes: Attributes { xattr: None, ..attributes },
            target: target.0.join(&b'/'),
        });
    let fifo = attributes(vocabulary, PLAIN_MODES)
        .prop_map(|attributes| LayerNode::Fifo { attributes: Attributes { xattr: None, ..attributes } });
    let whiteout = select(vocabulary.whiteouts.clone()).prop_map(LayerNode::Whiteout);
    if depth == 0 {
        return prop_oneof![6 => file, 1 => symlink, 1 => fifo, 3 => whiteout].boxed();
    }
    let directory = directory(vocabulary, depth, lower);
    prop_oneof![5 => file, 1 => symlink, 1 => fifo, 3 => whiteout, 8 => directory].boxed()
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![2 => Just(0), 6 => 1..40usize, 2 => 4000..9000usize, 1 => Just(140_000)]
}

fn path(depth: usize) -> impl Strategy<Value = Path> {
    let weights = prop_oneof![4 => Just(1), 4 => Just(2), 2 => Just(3)];
    weights.prop_flat_map(move |length: usize| {
        vec(select(&ALPHABET[..]), length.min(depth))
            .prop_map(|names| Path(names.into_iter().map(<[u8]>::to_vec).collect()))
    })
}

/// A path that may also be the root's.
fn path_or_root(path: &BoxedStrategy<Path>) -> BoxedStrategy<Path> {
    prop_oneof![15 => path.clone(), 1 => Just(Path(Vec::new()))].boxed()
}

/// A sequence. Half of its paths are one of two that the sequence has for its own, so that operations meet on them.
pub fn operations(vocabulary: &Vocabulary) -> impl Strategy<Value = Vec<Op>> + use<> {
    let vocabulary = vocabulary.clone();
    vec(path(2), 2).prop_flat_map(move |favourites| {
        let path = prop_oneof![select(favourites), path(3)].boxed();
        vec(operation(&vocabulary, &path), 1..=vocabulary.operations)
    })
}

/// One operation.
fn operation(vocabulary: &Vocabulary, path: &BoxedStrategy<Path>) -> BoxedStrategy<Op> {
    let mut choices = vec![
        (12, content_operation(path)),
        (12, name_operation(path)),
        (8, attribute_operation(vocabulary, path)),
    ];
    if vocabulary.open_files {
        choices.push((12, slot_operation(path)));
    }
    proptest::strategy::Union::new_weighted(choices).boxed()
}

fn fills() -> impl Strategy<Value = u8> {
    select(&b"uvwxyz"[..])
}

fn content_operation(path: &BoxedStrategy<Path>) -> BoxedStrategy<Op> {
    let path = || path.clone();
    let write = (path(), lengths(), fills(), lengths(), any::<bool>(), any::<bool>()).prop_map(
        |(path, offset, fill, length, truncate, append)| Op::Write {
            path,
            offset,
            fill,
            length,
            truncate,
            append,
        },
    );
    let allocate = (
        path(),
        select(&[Allocate::Extend, Allocate::KeepSize, Allocate::Punch, Allocate::Zero][..]),
        lengths(),
        lengths(),
    )
        .prop_map(|(path, how, offset, length)| Op::Fallocate { path, how, offset, length });
    prop_oneof![
        3 => (path(), select(&[0o666, 0o600, 0o777][..]), any::<bool>())
            .prop_map(|(path, mode, exclusive)| Op::Create { path, mode, exclusive }),
        5 => write,
        2 => (path(), lengths()).prop_map(|(path, length)| Op::Truncate { path, length }),
        1 => allocate,
        1 => (path(), path(), lengths(), lengths())
            .prop_map(|(from, to, offset, length)| Op::CopyRange { from, to, offset, length }),
    ]
    .boxed()
}

fn name_operation(path: &BoxedStrategy<Path>) -> BoxedStrategy<Op> {
    let path = || path.clone();
    let how = select(&[Rename::Plain, Rename::Plain, Rename::Plain, Rename::NoReplace, Rename::Exchange][..]);
    prop_oneof![
        3 => (path(), select(&[0o777, 0o700][..])).prop_map(|(path, mode)| Op::Mkdir { path, mode }),
        1 => path().prop_map(|path| Op::Mkfifo { path, mode: 0o666 }),
        1 => (self::path(2), path()).prop_map(|(target, path)| Op::Symlink { target, path }),
        2 => (path(), path()).prop_map(|(from, to)| Op::Link { from, to }),
        2 => path().prop_map(|path| Op::Rmdir { path }),
        5 => path().prop_map(|path| Op::Unlink { path }),
        6 => (path(), path(), how).prop_map(|(from, to, how)| Op::Rename { from, to, how }),
    ]
    .boxed()
}

/// What any type of file can have without hindering its owner.
const CHMOD_MODES: &[u32] = &[0o755, 0o700, 0o4755, 0o2755];
const XATTR_NAMES: &[&str] = &["user.a", "user.b"];

fn attribute_operation(vocabulary: &Vocabulary, path: &BoxedStrategy<Path>) -> BoxedStrategy<Op> {
    prop_oneof![
        2 => (path_or_root(path), select(CHMOD_MODES)).prop_map(|(path, mode)| Op::Chmod { path, mode }),
        1 => (path_or_root(path), select(vocabulary.owners.clone()))
            .prop_map(|(path, (uid, gid))| Op::Chown { path, uid, gid }),
        2 => (path_or_root(path), select(XATTR_NAMES), select(&b"pq"[..]))
            .prop_map(|(path, name, value)| Op::SetXattr { path, name, value }),
        1 => (path_or_root(path), select(XATTR_NAMES)).prop_map(|(path, name)| Op::RemoveXattr { path, name }),
        1 => (path_or_root(path), 1_200_000_000i64..1_200_000_003)
            .prop_map(|(path, seconds)| Op::SetMtime { path, seconds }),
    ]
    .boxed()
}

fn slot_operation(path: &BoxedStrategy<Path>) -> BoxedStrategy<Op> {
    let path = || path.clone();
    let slot = || 0..3u8;
    prop_oneof![
        5 => (slot(), path(), any::<bool>()).prop_map(|(slot, path, write)| Op::Open { slot, path, write }),
        3 => (slot(), lengths(), fills(), lengths())
            .prop_map(|(slot, offset, fill, length)| Op::WriteOpen { slot, offset, fill, length }),
        1 => (slot(), lengths()).prop_map(|(slot, length)| Op::TruncateOpen { slot, length }),
        1 => slot().prop_map(|slot| Op::ChmodOpen { slot, mode: 0o640 }),
        4 => slot().prop_map(|slot| Op::ReadOpen { slot }),
        1 => slot().prop_map(|slot| Op::Close { slot }),
    ]
    .boxed()
}
