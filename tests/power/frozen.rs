//! Snapshots, of a mount and of an upper, rollbacks and branches: each is done or not, and what is frozen is whole.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::tales::{State, Tale};
use support::{Program, Snapshot};

/// Runs the program on the disk; returns what it printed.
fn run(at: &Path, arguments: &[&str]) -> Result<String, String> {
    let Program::Unionmount(program) = Program::under_test() else { panic!("unionmount has snapshots") };
    let output =
        Command::new(program).args(arguments).current_dir(at).env_remove("RUST_LOG").output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{arguments:?}: {output:?}")),
    }
}

/// Which snapshots an upper has, what is in each, and on which it lies; and it can be mounted.
fn state_of(at: &Path, upper: &str) -> Result<String, String> {
    let mut text = String::new();
    let rows = run(at, &["snapshots", "--format", "{{.Name}} {{.State}} {{.Layer}}", upper])?;
    for row in rows.lines() {
        let words: Vec<&str> = row.splitn(3, ' ').collect();
        let (name, is_below) = (words[0], words[1]);
        // The disk is mounted elsewhere each time.
        let (_, layer) = words[2].rsplit_once(".layers/").ok_or_else(|| row.to_owned())?;
        let entries = Snapshot::take(&at.join(".up.layers").join(layer)).entries;
        let content: BTreeMap<_, _> = entries.iter().map(|(path, entry)| (path, &entry.content)).collect();
        text += &format!("{upper}: {name} {is_below} {content:?}\n");
    }
    run(at, &["--lower", "low", "--upper", upper, "mnt"])?;
    run(at, &["umount", "mnt"])?;
    Ok(text)
}

fn state(at: &Path) -> State {
    let mut text = String::new();
    for upper in ["up", "branch"] {
        if at.join(upper).exists() {
            text += &state_of(at, upper)?;
        }
    }
    Ok(text)
}

/// Takes snapshots of a mount and of an upper, goes back, and branches.
pub fn tale<'a>() -> Tale<'a> {
    let step = |name: &'static str, script: &'static str| {
        let step: Box<dyn Fn(&Path)> = Box::new(move |at: &Path| {
            let Program::Unionmount(program) = Program::under_test() else { panic!("see above") };
            let mut command = Command::new("sh");
            command.args(["-ec", script]).current_dir(at).env("U", program).env_remove("RUST_LOG");
            assert!(command.status().unwrap().success(), "{script}");
        });
        (name, step)
    };
    Tale {
        name: "snapshots",
        steps: vec![
            step("make", "mkdir low low/d mnt; echo old >low/f; echo old >low/d/f; ln low/f low/g; sync; mkdir up; sync"),
            step(
                "of a mount",
                "\"$U\" --lower low --upper up mnt; echo one >mnt/f; mv mnt/d mnt/e; head -c 200000 /dev/zero | tr '\\0' x >mnt/large
                \"$U\" snapshot mnt one >one.name; echo two >mnt/f; rm mnt/e/f; echo two >mnt/two; \"$U\" umount mnt",
            ),
            step("of an upper", "\"$U\" snapshot --lower low up two >two.name"),
            step("change", "\"$U\" --lower low --upper up mnt; echo three >mnt/f; \"$U\" umount mnt"),
            step("rollback", "\"$U\" rollback up one >rolled.name"),
            step("branch", "\"$U\" branch --lower low up branch"),
            step("remove", "\"$U\" snapshots rm up two"),
        ],
        state: Box::new(state),
    }
}
