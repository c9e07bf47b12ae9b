//! The snapshotter: its calls, each in a process that has just started, as after a failure.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use unionmount::snapshotter::snapshots::{Labels, SnapshotKind, Snapshots};

use crate::tales::{State, Step, Tale};

fn open(at: &Path) -> Result<Snapshots, String> {
    Snapshots::open(&at.join("root"), "unionmount").map_err(|error| format!("it doesn't start: {error}"))
}

fn place(at: &Path, number: u64) -> PathBuf {
    at.join("root/snapshots").join(number.to_string()).join("fs")
}

/// What it holds, and that nothing else lies there.
fn state(at: &Path) -> State {
    if !at.join("root").exists() {
        return Ok(String::new());
    }
    let snapshots = open(at)?;
    let all = snapshots.list(&[]).map_err(|error| error.to_string())?;
    let mut text = String::new();
    for (name, record) in &all {
        if !place(at, record.number).is_dir() {
            return Err(format!("{name} has no directory"));
        }
        text += &format!("{name} {:?} of {:?}", record.kind, record.parent);
        if record.kind == SnapshotKind::Committed {
            // What was unpacked before the commit is whole.
            for index in 0..5 {
                let data = fs::read(place(at, record.number).join(format!("{index}"))).unwrap_or_default();
                text += &format!(" {}", data.len());
                if data.iter().any(|byte| *byte != index) {
                    return Err(format!("{name}: {index} holds other data"));
                }
            }
        } else {
            snapshots.mounts(name).map_err(|error| error.to_string())?;
        }
        text += "\n";
    }
    let lies = fs::read_dir(at.join("root/snapshots")).map_err(|error| error.to_string())?.count();
    if lies != all.len() {
        return Err(format!("{lies} directories of {} snapshots", all.len()));
    }
    Ok(text)
}

/// Unpacks layers on each other, looks at them, and removes them.
pub fn tale<'a>() -> Tale<'a> {
    let prepare = |key: &'static str, parent: &'static str| -> Step<'a> {
        let step = move |at: &Path| {
            drop(open(at).unwrap().prepare(key, parent, Labels::new()).unwrap());
        };
        ("prepare", Box::new(step))
    };
    let commit = |name: &'static str, key: &'static str| -> Step<'a> {
        let step = move |at: &Path| {
            let snapshots = open(at).unwrap();
            let number = snapshots.stat(key).unwrap().number;
            for index in 0..5_u8 {
                let mut file = File::create(place(at, number).join(format!("{index}"))).unwrap();
                file.write_all(&vec![index; 1000 + 20_000 * usize::from(index)]).unwrap();
            }
            snapshots.commit(name, key, Labels::new()).unwrap();
        };
        ("unpack and commit", Box::new(step))
    };
    let view = |key: &'static str, parent: &'static str| -> Step<'a> {
        let step = move |at: &Path| drop(open(at).unwrap().view(key, parent, Labels::new()).unwrap());
        ("view", Box::new(step))
    };
    let remove = |key: &'static str| -> Step<'a> {
        ("remove", Box::new(move |at: &Path| open(at).unwrap().remove(key).unwrap()))
    };
    Tale {
        name: "snapshotter",
        steps: vec![
            ("start", Box::new(|at: &Path| drop(open(at).unwrap()))),
            prepare("a1", ""),
            commit("one", "a1"),
            prepare("a2", "one"),
            commit("two", "a2"),
            view("look", "two"),
            prepare("run", "two"),
            remove("look"),
            remove("run"),
            remove("two"),
            prepare("a3", "one"),
            commit("three", "a3"),
            remove("three"),
            remove("one"),
        ],
        state: Box::new(state),
    }
}
