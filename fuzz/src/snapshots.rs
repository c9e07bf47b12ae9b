//! The snapshotter's calls: whatever is asked, each snapshot has its directory, and it starts again.

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Unstructured};
use unionmount::snapshotter::snapshots::{Labels, Snapshots};

use crate::yard::Yard;

/// A name: one of a few, so that calls meet, or any.
#[derive(Debug)]
struct Name(String);

impl<'a> Arbitrary<'a> for Name {
    fn arbitrary(data: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Name(match data.int_in_range(0..=5)? {
            5 => String::arbitrary(data)?,
            few => ["", "a", "b", "c", "d"][few].to_owned(),
        }))
    }
}

#[derive(Debug, Arbitrary)]
enum Call {
    Prepare { key: Name, parent: Name, labels: Vec<(String, String)> },
    View { key: Name, parent: Name },
    Mounts { key: Name },
    Commit { name: Name, key: Name, labels: Vec<(String, String)> },
    Remove { key: Name },
    Stat { key: Name },
    Update { key: Name, labels: Vec<(String, String)>, fields: Vec<String> },
    Usage { key: Name },
    List { filters: Vec<String> },
    Cleanup,
    Start,
}

fn labels(all: Vec<(String, String)>) -> Labels {
    all.into_iter().collect::<BTreeMap<_, _>>()
}

/// Makes calls.
pub fn snapshots(data: &[u8]) {
    let yard = Yard::new();
    let root = yard.dir("root");
    let mut data = Unstructured::new(data);
    let mut open = Snapshots::open(&root, "unionmount").unwrap();
    while let Ok(call) = Call::arbitrary(&mut data) {
        make(&mut open, call, &root);
        if data.is_empty() {
            break;
        }
    }
    check(&open, &root);
    let before = open.list(&[]).unwrap();
    drop(open);
    let open = Snapshots::open(&root, "unionmount").unwrap();
    assert_eq!(format!("{before:?}"), format!("{:?}", open.list(&[]).unwrap()), "after it started again");
    check(&open, &root);
}

fn make(open: &mut Snapshots, call: Call, root: &std::path::Path) {
    match call {
        Call::Prepare { key, parent, labels: all } => drop(open.prepare(&key.0, &parent.0, labels(all))),
        Call::View { key, parent } => drop(open.view(&key.0, &parent.0, Labels::new())),
        Call::Mounts { key } => drop(open.mounts(&key.0)),
        Call::Commit { name, key, labels: all } => drop(open.commit(&name.0, &key.0, labels(all))),
        Call::Remove { key } => drop(open.remove(&key.0)),
        Call::Stat { key } => drop(open.stat(&key.0)),
        Call::Update { key, labels: all, fields } => drop(open.update(&key.0, labels(all), &fields)),
        Call::Usage { key } => drop(open.usage(&key.0)),
        Call::List { filters } => drop(open.list(&filters)),
        Call::Cleanup => open.cleanup().unwrap(),
        Call::Start => check(open, root),
    }
}

/// Each snapshot has its directory, and no directory is nobody's.
fn check(open: &Snapshots, root: &std::path::Path) {
    open.cleanup().unwrap();
    let all = open.list(&[]).unwrap();
    for (name, record) in &all {
        let place = root.join("snapshots").join(record.number.to_string());
        assert!(place.is_dir(), "{name:?} has no directory");
    }
    let count = std::fs::read_dir(root.join("snapshots")).unwrap().count();
    assert_eq!(count, all.len(), "directories of nobody");
}
