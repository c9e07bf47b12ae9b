//! Changes that are applied: after a failure the next call leads to what was asked for, and nothing is lost before that.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tales::{State, Tale};
use support::{Program, Snapshot};

/// Runs the program with its things on the disk; it must succeed.
fn run(at: &Path, arguments: &[&str]) -> Result<(), String> {
    let Program::Unionmount(program) = Program::under_test() else { panic!("unionmount applies") };
    let output = Command::new(program)
        .args(arguments)
        .current_dir(at)
        .env("UNIONMOUNT_ROOT", at.join("store"))
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{arguments:?}: {output:?}")),
    }
}

/// Returns whether an apply is under way.
fn is_under_way(at: &Path) -> bool {
    let entries = fs::read_dir(at.join("store/applies")).into_iter().flatten().flatten();
    let text = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    let mut journals =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json"));
    journals.any(|path| !text(path).contains("\"state\":\"finished\""))
}

/// What the directory holds, after what is under way has come to its end. The disk that the tale is told on stays as it is.
fn state(at: &Path) -> State {
    if !at.join("a").exists() {
        return Ok(String::new());
    }
    if is_under_way(at) {
        run(at, &["apply", "up", "a"])?;
        run(at, &["apply", "up", "a"])?;
    }
    let mut lines = BTreeMap::new();
    for (path, entry) in Snapshot::take(&at.join("a")).entries {
        let path = path.to_string_lossy().into_owned();
        if path.contains(".unionmount-apply-") {
            return Err(format!("{path} is left"));
        }
        if !path.is_empty() {
            lines.insert(path, format!("{:?}", entry.content));
        }
    }
    Ok(lines.iter().map(|(path, content)| format!("{path}: {content}\n")).collect())
}

/// Makes a directory, changes it through a mount, applies that, and empties the upper.
pub fn tale<'a>() -> Tale<'a> {
    let sh = |script: &'static str| {
        move |at: &Path| {
            let ended = Command::new("sh").args(["-ec", script]).current_dir(at).status().unwrap();
            assert!(ended.success(), "{script}");
        }
    };
    let step = |name: &'static str, arguments: &'static [&'static str]| {
        let step: Box<dyn Fn(&Path)> = Box::new(move |at: &Path| run(at, arguments).unwrap());
        (name, step)
    };
    let make = sh("mkdir a.new mnt; cd a.new; mkdir -p gone/sub from/sub kept
        for f in f1 f2 f3 gone/1 gone/sub/2 from/1 from/sub/2 kept/1; do echo old $f >$f; done; ln f1 kept/l; sync; cd ..; mv a.new a; sync; mkdir up");
    let change = sh("cd mnt; echo new >f1; rm f2; echo new >f3.new; mv f3.new f3; rm -r gone; mv from to; echo n >to/n; rm to/1
        chmod 700 kept; mkdir -p new/deep; head -c 300000 /dev/zero | tr '\\0' x >new/deep/large; ln -s f1 link; echo file >gone");
    Tale {
        name: "apply",
        steps: vec![
            ("make", Box::new(make)),
            step("mount", &["--lower", "a", "--upper", "up", "mnt"]),
            ("change", Box::new(change)),
            step("umount", &["umount", "mnt"]),
            step("apply", &["apply", "up", "a"]),
            step("discard", &["discard", "--yes", "up"]),
        ],
        state: Box::new(state),
    }
}
