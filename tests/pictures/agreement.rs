//! `layers --json` of random stacks against the reference model: for the whole stack and for every pile of layers below
//! its top, what the entries say is to be seen is what the model merges.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use proptest::strategy::Strategy;
use serde_json::Value;

use support::model::generate::{Vocabulary, stack};
use support::model::harness::{Failure, run_cases};
use support::model::layer::{LayerNode, StackSpec};
use support::model::op::Op;
use support::{self, Kind, Layer, Privilege, Scratch, Snapshot};

/// The program.
pub fn unionmount() -> PathBuf {
    env!("CARGO_BIN_EXE_unionmount").into()
}

/// `layers --json`, the upper on top of the lowers.
pub fn survey(upper: Option<&Layer>, lowers: &[Layer]) -> Value {
    let mut arguments: Vec<OsString> = vec!["layers".into(), "--json".into()];
    for lower in lowers {
        arguments.extend(["--lower".into(), lower.root().into()]);
    }
    if let Some(upper) = upper {
        arguments.extend(["--upper".into(), upper.root().into()]);
    }
    serde_json::from_str(&support::run(unionmount(), &arguments)).unwrap()
}

/// Path → kind and size of what the entries show of the layer `top` and those below it.
pub fn shown(survey: &Value, top: u64) -> BTreeMap<Vec<u8>, (String, u64)> {
    let mut shown = BTreeMap::new();
    let mut whiteouts = Vec::new();
    for entry in survey["entries"].as_array().unwrap() {
        let from = entry["from"].as_u64().unwrap();
        if from < top || entry["hidden_by"].as_u64().is_some_and(|by| by >= top) {
            continue;
        }
        let path = path(entry);
        let kind = entry["kind"].as_str().unwrap().to_owned();
        if kind == "whiteout" {
            whiteouts.push(path);
            continue;
        }
        // The topmost comes first; what follows are directories that are merged with it.
        let merged = kind == "directory" && shown.contains_key(&path);
        let seen = shown.entry(path.clone()).or_insert((kind, entry["size"].as_u64().unwrap()));
        assert!(merged || !whiteouts.contains(&path) && seen.1 == entry["size"].as_u64().unwrap(), "{entry}");
    }
    shown
}

pub fn path(entry: &Value) -> Vec<u8> {
    match entry["path_hex"].as_str() {
        Some(hex) => hex::decode(hex).unwrap(),
        None => entry["path"].as_str().unwrap().as_bytes().to_vec(),
    }
}

/// The same of a tree, as the model or a mount shows it.
pub fn tree(snapshot: &Snapshot) -> BTreeMap<Vec<u8>, (String, u64)> {
    let kind = |kind: Kind| match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::Character => "character device",
        Kind::Block => "block device",
    };
    let entries = snapshot.entries.iter().filter(|(path, _)| !path.is_empty());
    entries
        .map(|(path, entry)| {
            let size = if entry.kind == Kind::File { entry.size } else { 0 };
            (path.clone().into_vec(), (kind(entry.kind).to_owned(), size))
        })
        .collect()
}

/// The model's merged view of the layer `top` and those below it, the upper being 0.
fn expected(spec: &StackSpec, top: usize) -> BTreeMap<Vec<u8>, (String, u64)> {
    let mut layers: Vec<&LayerNode> = std::iter::once(&spec.upper).chain(&spec.lowers).collect();
    let mut pile = layers.split_off(top).into_iter();
    let upper = pile.next().unwrap().clone();
    tree(&StackSpec { upper, lowers: pile.cloned().collect() }.merge().snapshot())
}

fn check(spec: &StackSpec, _: &[Op], _: bool) -> Result<(), Failure> {
    let scratch = Scratch::new();
    let upper = Layer::at(scratch.path().join("upper"));
    spec.upper.write(&upper);
    let lowers: Vec<Layer> = spec
        .lowers
        .iter()
        .enumerate()
        .map(|(at, node)| {
            let layer = Layer::at(scratch.path().join(format!("lower{at}")));
            node.write(&layer);
            layer
        })
        .collect();
    let survey = survey(Some(&upper), &lowers);
    let count = lowers.len() + 1;
    for top in 0..count {
        let (found, expected) = (shown(&survey, top as u64), expected(spec, top));
        if found != expected {
            let text =
                format!("layers from {top} of {count} down:\nfound    {found:?}\nexpected {expected:?}");
            return Err(Failure { text, performed: Vec::new() });
        }
    }
    let whole = expected(spec, 0);
    let count_of =
        |directory: bool| whole.values().filter(|(kind, _)| (kind == "directory") == directory).count();
    let figures = [("merged_files", count_of(false)), ("merged_directories", count_of(true))];
    for (name, expected) in figures {
        if survey[name] != expected {
            let text = format!("{name}: {} instead of {expected}", survey[name]);
            return Err(Failure { text, performed: Vec::new() });
        }
    }
    Ok(())
}

#[test]
fn every_pile_of_layers_is_merged_as_in_the_model() {
    let vocabulary = Vocabulary { lowers: 5, ..Vocabulary::full(Privilege::current() == Privilege::Root) };
    let stacks = stack(&vocabulary).prop_map(|spec| (spec, Vec::new()));
    run_cases(200, 11, &stacks, &check);
}

#[test]
fn what_is_no_mount_is_told() {
    let output = support::output(unionmount(), &["layers", "/proc"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("not in a mount of unionmount") && error.contains("--lower"), "{error}");
    assert_eq!(support::output(unionmount(), &["layers"]).status.code(), Some(2));
}

/// Directories renamed through a mount: their lower part is seen under the new name from the upper on.
#[test]
fn renamed_directories_are_followed() {
    let stack = support::Stack::new(2);
    stack.lower(0).file("d/inner/top", "1").file("e/x", "22");
    stack.lower(1).file("d/inner/low", "333").file("d/low", "4444").file("moved/stays", "5");
    let mount = stack.mount();
    let at = |path: &str| mount.path().join(path);
    std::fs::rename(at("d"), at("moved2")).unwrap();
    std::fs::rename(at("moved2/inner"), at("e/inner")).unwrap();
    std::fs::write(at("moved2/low"), "changed").unwrap();
    std::fs::remove_file(at("e/inner/top")).unwrap();
    std::fs::create_dir(at("d")).unwrap();
    std::fs::write(at("d/new"), "6").unwrap();
    let merged = tree(&Snapshot::take(mount.path()));
    // While it is mounted, by the mount point and by a path in it.
    for path in [mount.path().to_owned(), at("d")] {
        let text = support::run(unionmount(), &["layers".into(), "--json".into(), OsString::from(path)]);
        assert_eq!(shown(&serde_json::from_str(&text).unwrap(), 0), merged);
    }
    mount.unmount();
    let survey = survey(Some(stack.upper()), stack.lowers());
    assert_eq!(shown(&survey, 0), merged);
    let below = tree(&Snapshot::take(stack.mount_read_only().path()));
    assert_eq!(shown(&survey, 1), below, "without the upper all is where it was");
    // 4444 is replaced, 1 deleted; what was only moved is in use.
    assert_eq!(survey["wasted_bytes"], 4 + 1, "{survey:#}");
    assert_eq!(survey["bytes"], 1 + 2 + 3 + 4 + 1 + 7 + 1);
}

/// What a redirect brings under a name, and what lies below it under that very name, have nothing to do with each other.
#[test]
fn a_redirect_and_what_it_hides_are_kept_apart() {
    let stack = support::Stack::new(3);
    let root = support::Privilege::current() == support::Privilege::Root;
    let mark = if root { "trusted.overlay.redirect" } else { "user.overlay.redirect" };
    stack.lower(0).dir("new").xattr("new", mark, "old").file("new/top", "1");
    stack.lower(0).whiteout("old", support::WhiteoutForm::Device);
    stack.lower(1).file("new/x", "22").file("new/only", "4444");
    stack.lower(2).file("old/x", "333").file("old/sub/y", "55555");
    let survey = survey(None, stack.lowers());
    let whole = tree(&Snapshot::take(stack.mount_read_only().path()));
    assert_eq!(whole[&b"new/x"[..]].1, 3, "the mount follows the redirect");
    assert_eq!(shown(&survey, 1), whole);
    let below = support::Mount::new(
        &support::Options { lowers: stack.options().lowers.split_off(1), ..support::Options::default() },
        stack.mountpoint(),
    );
    assert_eq!(shown(&survey, 2), tree(&Snapshot::take(below.path())));
    assert_eq!(survey["wasted_bytes"], 2 + 4);
    assert_eq!(survey["bytes"], 1 + 2 + 4 + 3 + 5);
}
