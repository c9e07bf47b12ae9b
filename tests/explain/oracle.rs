//! Explanations against what is there and what then happens, on random stacks.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use unionmount::control::explanation::{Action, PredictedEffect};
use unionmount::control::explanation::{Explanation, Holding, Role};
use unionmount::union::events::KindName;

use crate::drive::{client, explain, explanations, run};
use support::model::generate::{ALPHABET, Vocabulary, stack};
use support::model::layer::{LayerNode, StackSpec};
use support::model::op::Name;
use support::model::tree::{Id, Model, Node};
use support::{Mount, Privilege, Stack};

type Names = Vec<Name>;

fn place(names: &Names) -> PathBuf {
    names.iter().map(|name| OsStr::from_bytes(name)).collect()
}

/// Every path that any layer has, hidden or not, and some that none has.
fn paths(spec: &StackSpec) -> BTreeSet<Names> {
    fn visit(node: &LayerNode, at: &mut Names, all: &mut BTreeSet<Names>) {
        if let LayerNode::Directory { children, .. } = node {
            for (name, child) in children {
                at.push(name.clone());
                all.insert(at.clone());
                visit(child, at, all);
                at.pop();
            }
        }
    }
    let mut all = BTreeSet::from([Vec::new()]);
    for layer in layers(spec) {
        visit(layer, &mut Vec::new(), &mut all);
    }
    for name in ALPHABET {
        all.insert(vec![name.to_vec()]);
        all.insert(vec![name.to_vec(), b"none".to_vec()]);
    }
    all
}

/// From the top down, the upper first.
fn layers(spec: &StackSpec) -> Vec<&LayerNode> {
    std::iter::once(&spec.upper).chain(&spec.lowers).collect()
}

fn in_model(model: &Model, names: &[Name]) -> Option<Id> {
    names.iter().try_fold(model.root, |at, name| model.children(at)?.get(name).copied())
}

/// Which layers are merged under a path (of a file: the one that has it): the rules once more, as a reader of the
/// documentation would write them down.
fn contributing(spec: &StackSpec, names: &Names) -> Vec<u16> {
    let mut at: Vec<(u16, &LayerNode)> =
        layers(spec).into_iter().enumerate().map(|(n, l)| (n as u16, l)).collect();
    for name in names {
        let mut next = Vec::new();
        for (number, node) in at {
            let LayerNode::Directory { children, .. } = node else { continue };
            match children.get(name) {
                None => {}
                Some(LayerNode::Whiteout(_)) => break,
                Some(child @ LayerNode::Directory { opaque, .. }) => {
                    next.push((number, child));
                    if opaque.is_some() {
                        break;
                    }
                }
                Some(child) => {
                    if next.is_empty() {
                        next.push((number, child));
                    }
                    break;
                }
            }
        }
        at = next;
    }
    at.into_iter().map(|(number, _)| number).collect()
}

/// The node of one layer at a path, by its letter.
fn literal<'l>(layer: &'l LayerNode, names: &Names) -> Option<&'l LayerNode> {
    names.iter().try_fold(layer, |node, name| match node {
        LayerNode::Directory { children, .. } => children.get(name),
        _ => None,
    })
}

fn check_static(spec: &StackSpec, model: &Model, names: &Names, found: &Explanation) {
    let id = in_model(model, names);
    let kind = id.map(|id| match &model.inodes[id].node {
        Node::Directory(_) => KindName::Directory,
        Node::File(_) => KindName::File,
        Node::Symlink(_) => KindName::Symlink,
        Node::Fifo => KindName::Fifo,
    });
    assert_eq!(found.kind, kind, "{found:#?}");
    let contributing = contributing(spec, names);
    assert_eq!(found.merged, contributing, "{found:#?}");
    assert_eq!(found.winner, contributing.first().copied(), "{found:#?}");
    let mut hidden = Vec::new();
    for (number, layer) in layers(spec).into_iter().enumerate() {
        let report = &found.layers[number];
        assert_eq!(usize::from(report.layer), number);
        let [entry] = &report.entries[..] else { panic!("one entry a layer: {report:#?}") };
        let holds = match literal(layer, names) {
            None => Holding::Absent,
            Some(LayerNode::Whiteout(_)) => Holding::Whiteout,
            Some(_) => Holding::Entry,
        };
        assert_eq!(entry.holds, holds, "layer {number}: {found:#?}");
        let shown = contributing.contains(&(number as u16));
        assert_eq!(matches!(entry.role, Role::Shown | Role::Merged), shown, "layer {number}: {found:#?}");
        if holds == Holding::Entry && !shown {
            hidden.push(number as u16);
            let hider = entry.hidden_by.as_ref().expect("hidden by something");
            assert!(hider.layer <= number as u16, "{found:#?}");
        }
    }
    assert_eq!(found.hidden, hidden, "{found:#?}");
}

/// What the upper's directory has under a path, on disk.
struct InUpper<'s> {
    stack: &'s Stack,
}

impl InUpper<'_> {
    fn stat(&self, names: &Names) -> Option<fs::Metadata> {
        self.stack.upper().root().join(place(names)).symlink_metadata().ok()
    }

    fn has_whiteout(&self, names: &Names) -> bool {
        self.stat(names).is_some_and(|stat| stat.file_type().is_char_device() && stat.rdev() == 0)
    }

    fn has_entry(&self, names: &Names) -> bool {
        self.stat(names).is_some() && !self.has_whiteout(names)
    }

    fn has_redirect(&self, path: &Path) -> bool {
        let place = self.stack.upper().root().join(path);
        ["trusted", "user"].iter().any(|ns| {
            let mut value = [0; 4096];
            rustix::fs::lgetxattr(&place, format!("{ns}.overlay.redirect"), &mut value).is_ok()
        })
    }
}

/// Does what the explanation predicts and looks at what came of it.
struct Changes<'c> {
    upper: InUpper<'c>,
    mount: &'c Mount,
    number: u32,
}

impl Changes<'_> {
    fn copy_ups(&self) -> u64 {
        client(self.mount).status().unwrap().counters.copy_ups
    }

    fn fate_holds(&self, fate: &PredictedEffect, before: u64, found: &Explanation, linked: bool) {
        let expected = u64::from(fate.copy_up.is_some()) + fate.parents.len() as u64;
        let copied = self.copy_ups() - before;
        if linked {
            // It may be copied up under another of its names, with the parents of that.
            assert!(copied >= u64::from(fate.copy_up.is_some()), "{fate:#?}\n{found:#?}");
            return;
        }
        assert_eq!(copied, expected, "{fate:#?}\n{found:#?}");
        for parent in &fate.parents {
            assert!(self.upper.stack.upper().root().join(parent.as_path()).is_dir(), "{fate:#?}");
        }
    }

    fn check_size(&self, fate: &PredictedEffect, names: &Names) {
        let Some(copy_up) = &fate.copy_up else { return };
        let stat = self.mount.join(place(names)).symlink_metadata().unwrap();
        let bytes = if stat.is_file() { stat.size() } else { 0 };
        assert_eq!(copy_up.bytes, bytes);
    }

    fn write(&self, names: &Names, found: &Explanation) {
        let fate = &found.on_write;
        let path = self.mount.join(place(names));
        self.check_size(fate, names);
        let linked = is_linked(&path);
        let before = self.copy_ups();
        match found.kind {
            Some(KindName::File) => {
                let mut file = File::options().append(true).open(&path).unwrap();
                file.write_all(b"!").unwrap();
                file.sync_all().unwrap();
            }
            Some(KindName::Directory) => {
                File::create(path.join("new")).unwrap();
                fs::remove_file(path.join("new")).unwrap();
            }
            Some(_) => {
                let time = Timespec { tv_sec: 7, tv_nsec: 7 };
                let times = Timestamps { last_access: time, last_modification: time };
                utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            }
            None => {
                let made = File::create_new(&path);
                assert_eq!(made.is_ok(), fate.action == Action::Create, "{made:?} {found:#?}");
            }
        }
        self.fate_holds(fate, before, found, linked);
        if fate.action != Action::Refused {
            assert!(
                found.merged.contains(&0) || self.upper.has_entry(names) || is_linked(&path),
                "{found:#?}"
            );
        }
    }

    fn delete(&self, names: &Names, found: &Explanation) {
        let fate = &found.on_delete;
        let path = self.mount.join(place(names));
        let linked = is_linked(&path);
        let before = self.copy_ups();
        let removed = match found.kind {
            Some(KindName::Directory) => fs::remove_dir(&path),
            _ => fs::remove_file(&path),
        };
        match fate.action {
            Action::Remove => removed.unwrap(),
            Action::RemoveWhenEmpty => {
                assert_eq!(removed.unwrap_err().kind(), std::io::ErrorKind::DirectoryNotEmpty);
                return;
            }
            Action::Nothing | Action::Refused => {
                removed.unwrap_err();
                return;
            }
            other => panic!("{other:?}"),
        }
        // A directory that must be empty in the merged view is copied up by nobody.
        self.fate_holds(fate, before, found, linked);
        assert_eq!(self.upper.has_whiteout(names), fate.whiteout, "{found:#?}");
        assert!(!self.upper.has_entry(names), "{found:#?}");
    }

    fn rename(&mut self, names: &Names, found: &Explanation) {
        let fate = &found.on_rename;
        let path = self.mount.join(place(names));
        self.number += 1;
        let to = format!("renamed {}", self.number);
        self.check_size(fate, names);
        let linked = is_linked(&path);
        let before = self.copy_ups();
        let renamed = fs::rename(&path, self.mount.join(&to));
        if fate.action != Action::Rename {
            renamed.unwrap_err();
            return;
        }
        renamed.unwrap();
        self.fate_holds(fate, before, found, linked);
        assert_eq!(self.upper.has_whiteout(names), fate.whiteout, "{found:#?}");
        assert!(self.upper.has_entry(&vec![to.clone().into_bytes()]), "{found:#?}");
        assert_eq!(self.upper.has_redirect(Path::new(&to)), fate.redirect, "{found:#?}");
        let moved = explain(&self.mount.join(&to));
        assert_eq!((moved.kind, moved.winner), (found.kind, Some(0)), "{moved:#?}");
    }
}

fn is_linked(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|stat| !stat.is_dir() && stat.nlink() > 1)
}

/// Picks operations by the case's number, so that a failure can be repeated.
fn check_case(spec: &StackSpec, number: u32) {
    let stack = crate::oracle::build(spec);
    let model = spec.merge();
    // A path through a symbolic link of the merged view is another path.
    let is_link = |names: &[Name]| {
        in_model(&model, names).is_some_and(|id| matches!(model.inodes[id].node, Node::Symlink(_)))
    };
    let through_link = |names: &Names| (1..names.len()).any(|n| is_link(&names[..n]));
    let paths: Vec<Names> = paths(spec).into_iter().filter(|names| !through_link(names)).collect();

    let mut offline: Vec<OsString> = vec!["explain".into(), "--json".into()];
    for lower in stack.lowers() {
        offline.extend(["--lower".into(), lower.root().into()]);
    }
    offline.extend(["--upper".into(), stack.upper().root().into(), "--".into()]);
    let relative = |names: &Names| match names.is_empty() {
        true => OsString::from("/"),
        false => OsString::from_vec(names.join(&b'/')),
    };
    offline.extend(paths.iter().map(relative));
    let unmounted = explanations(&run(&offline));
    assert_eq!(unmounted.len(), paths.len());
    for (names, found) in paths.iter().zip(&unmounted) {
        check_static(spec, &model, names, found);
    }

    let mount = stack.mount();
    let mut live: Vec<OsString> = vec!["explain".into(), "--json".into()];
    live.extend(paths.iter().map(|names| mount.join(place(names)).into_os_string()));
    for (found, before) in explanations(&run(&live)).into_iter().zip(unmounted) {
        assert_eq!(found, before, "mounted and not mounted");
    }

    let mut changes = Changes { upper: InUpper { stack: &stack }, mount: &mount, number: 0 };
    let mut step = number;
    for names in paths.iter().filter(|names| !names.is_empty()) {
        let path = mount.join(place(names));
        let found = explain(&path);
        assert_eq!(found.kind.is_some(), path.symlink_metadata().is_ok(), "{found:#?}");
        step += 1;
        match step % 5 {
            0 | 3 => changes.write(names, &found),
            1 => changes.delete(names, &found),
            2 => changes.rename(names, &found),
            _ => {}
        }
        let after = explain(&path);
        assert_eq!(after.kind.is_some(), path.symlink_metadata().is_ok(), "{after:#?}");
    }
    mount.unmount();
}

/// Writes the layers to disk.
fn build(spec: &StackSpec) -> Stack {
    let stack = Stack::new(spec.lowers.len());
    spec.upper.write(stack.upper());
    for (node, layer) in spec.lowers.iter().zip(stack.lowers()) {
        node.write(layer);
    }
    stack
}

#[test]
fn explanations_agree_with_the_merged_view_and_with_what_then_happens() {
    if Privilege::current() == Privilege::Namespace {
        support::skip!("the generator gives uppers marks that root of a namespace can't set");
    }
    let cases = std::env::var("UNIONMOUNT_CASES").map_or(15, |text| text.parse().unwrap());
    let seed: u64 = std::env::var("UNIONMOUNT_SEED").map_or(6, |text| text.parse().unwrap());
    let vocabulary = Vocabulary::full(Privilege::current() == Privilege::Root);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    for number in 0..cases {
        let spec = stack(&vocabulary).new_tree(&mut runner).unwrap().current();
        let checked = std::panic::catch_unwind(|| check_case(&spec, number));
        if let Err(panic) = checked {
            eprintln!("case {number}, UNIONMOUNT_SEED={seed}:\n{spec:#?}");
            std::panic::resume_unwind(panic);
        }
    }
}
