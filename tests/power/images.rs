//! The image store: its verbs, as a program would call them.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::tales::{State, Tale};
use support::{Program, Scratch};

/// Runs the program on the store of a disk; it must succeed. Returns what it printed.
fn run(at: &Path, arguments: &[&str]) -> Result<String, String> {
    let Program::Unionmount(program) = Program::under_test() else { panic!("unionmount has a store") };
    let output = Command::new(program)
        .args(arguments)
        .env("UNIONMOUNT_ROOT", at.join("store"))
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    if output.status.success() {
        Ok(out)
    } else {
        Err(format!("{arguments:?}: {}: {out}{err}", output.status))
    }
}

/// The images, the containers and their files, and the archive that was saved, if all of them are whole.
fn state(at: &Path) -> State {
    if !at.join("store").exists() {
        return Ok(String::new());
    }
    let verified = run(at, &["verify"])?;
    if !verified.contains("all is well") {
        return Err(verified);
    }
    let mut lines: Vec<String> = Vec::new();
    let images = run(at, &["images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"])?;
    lines.extend(images.lines().map(str::to_owned));
    let containers = run(at, &["ps", "-a", "--format", "{{.Names}} of {{.ImageID}}"])?;
    for container in containers.lines() {
        let name = container.split(' ').next().unwrap_or_default();
        // It comes up.
        let place = run(at, &["mount", name])?;
        run(at, &["umount", place.trim()])?;
        lines.push(container.to_owned());
    }
    lines.sort();
    let archive = at.join("saved.tar");
    if let Ok(bytes) = fs::read(&archive) {
        lines.push(format!("saved.tar: {}", unionmount::image::digest::Digest::of(&bytes)));
    }
    Ok(lines.iter().map(|line| format!("{line}\n")).collect())
}

/// Loads, names, makes, commits and removes.
pub fn tale(scratch: &Scratch) -> Tale<'_> {
    let tree = scratch.dir("tree");
    for number in 0..30 {
        fs::create_dir_all(tree.join(format!("d{}", number % 5))).unwrap();
        fs::write(tree.join(format!("d{}/{number}", number % 5)), vec![number; 3000]).unwrap();
    }
    fs::write(tree.join("large"), vec![b'x'; 400_000]).unwrap();
    let verb = |arguments: &'static [&'static str]| {
        let step: Box<dyn Fn(&Path)> = Box::new(move |at: &Path| drop(run(at, arguments).unwrap()));
        (arguments[0], step)
    };
    let archive = scratch.path().join("one.tar");
    let (tree_in, archive_out, archive_in) = (tree.clone(), archive.clone(), archive);
    let import = move |at: &Path| drop(run(at, &["import", tree_in.to_str().unwrap(), "one:1"]).unwrap());
    let save =
        move |at: &Path| drop(run(at, &["save", "-o", archive_out.to_str().unwrap(), "one:1"]).unwrap());
    let load = move |at: &Path| drop(run(at, &["load", "-i", archive_in.to_str().unwrap()]).unwrap());
    let save_here = |at: &Path| {
        drop(run(at, &["save", "-o", at.join("saved.tar").to_str().unwrap(), "three:1"]).unwrap());
    };
    let change = |at: &Path| {
        let place = run(at, &["mount", "work"]).unwrap();
        fs::write(Path::new(place.trim()).join("d1/new"), vec![b'n'; 20_000]).unwrap();
        fs::remove_file(Path::new(place.trim()).join("large")).unwrap();
        run(at, &["umount", place.trim()]).unwrap();
    };
    Tale {
        name: "image store",
        steps: vec![
            ("import", Box::new(import)),
            ("save elsewhere", Box::new(save)),
            verb(&["rmi", "one:1"]),
            ("load", Box::new(load)),
            verb(&["tag", "one:1", "two:1"]),
            verb(&["create", "--name", "work", "two:1", "sh"]),
            ("change", Box::new(change)),
            verb(&["commit", "work", "three:1"]),
            ("save", Box::new(save_here)),
            verb(&["rm", "work"]),
            verb(&["rmi", "one:1"]),
            verb(&["rmi", "two:1"]),
            verb(&["prune", "-f"]),
            verb(&["create", "--name", "again", "three:1", "sh"]),
            verb(&["rm", "again"]),
            verb(&["prune", "-a", "-f"]),
        ],
        state: Box::new(state),
    }
}
