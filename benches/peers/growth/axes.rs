//! The axes: what layers of each size look like, and what is done on them.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Axis, Outcome, Turn};
use crate::rows::{come_and_go, miss, new_names, walk};

const MANY: &[u64] = &[10, 100, 1000, 10_000, 100_000, 1_000_000];
/// How often what changes one thing is repeated.
const REPEATS: usize = 200;
/// Chains of directories that are as deep.
const CHAINS: usize = 20;
/// Files that all clients make together.
const SHARED_WORK: usize = 3200;

/// All axes.
pub const AXES: &[Axis] = &[
    Axis {
        key: "layers",
        label: "layers",
        sizes: &[1, 4, 16, 64, 250, 499],
        build: build_layers,
        lowers: |size| (0..size).map(|layer| layer.to_string()).collect(),
        keeps_upper: false,
        mounts: true,
        work: on_layers,
    },
    Axis {
        key: "entries",
        label: "entries of a directory",
        sizes: MANY,
        build: build_entries,
        lowers: one_lower,
        keeps_upper: false,
        mounts: false,
        work: on_entries,
    },
    Axis {
        key: "known",
        label: "known files",
        sizes: &[1000, 10_000, 100_000, 1_000_000],
        build: |dir, size| build_tree(&dir.join("0"), size),
        lowers: one_lower,
        keeps_upper: false,
        mounts: false,
        work: on_known,
    },
    Axis {
        key: "clients",
        label: "clients at once",
        sizes: &[1, 2, 4, 8, 16, 32, 64],
        build: |dir, _| build_entries(dir, 1),
        lowers: one_lower,
        keeps_upper: false,
        mounts: false,
        work: on_clients,
    },
    Axis {
        key: "hardlinks",
        label: "names of one file",
        sizes: &[1, 10, 100, 1000, 10_000],
        build: build_hardlinks,
        lowers: one_lower,
        keeps_upper: false,
        mounts: false,
        work: on_hardlinks,
    },
    Axis {
        key: "depth",
        label: "depth of the tree",
        sizes: &[1, 5, 20, 100, 500],
        build: build_depth,
        lowers: one_lower,
        keeps_upper: false,
        mounts: false,
        work: on_depth,
    },
    Axis {
        key: "upper",
        label: "files of the upper",
        sizes: &[100, 1000, 10_000, 100_000, 1_000_000],
        build: build_upper,
        lowers: one_lower,
        keeps_upper: true,
        mounts: true,
        work: on_upper,
    },
];

fn one_lower(_: u64) -> Vec<String> {
    vec!["0".into()]
}

/// Returns a number that nobody had before, for names that are new.
fn turn() -> u64 {
    static TURN: AtomicU64 = AtomicU64::new(0);
    TURN.fetch_add(1, Ordering::Relaxed)
}

fn make_files(dir: &Path, prefix: &str, count: u64) {
    fs::create_dir_all(dir).unwrap();
    (0..count).for_each(|n| drop(File::create(dir.join(format!("{prefix}{n}"))).unwrap()));
}

/// Makes files in directories of 100.
fn build_tree(root: &Path, size: u64) {
    make_files(root, "there", 0);
    File::create(root.join("there")).unwrap();
    for dir in 0..size.div_ceil(100) {
        make_files(&root.join(format!("tree/{}/{dir}", dir / 100)), "f", (size - dir * 100).min(100));
    }
}

/// Four files in a directory that every layer has, and 500 in one that the lowest has alone.
fn build_layers(dir: &Path, size: u64) {
    for layer in 0..size {
        make_files(&dir.join(format!("{layer}/shared")), &format!("of{layer}-"), 4);
    }
    let lowest = dir.join((size - 1).to_string());
    File::create(lowest.join("there")).unwrap();
    make_files(&lowest.join("single"), "f", 500);
}

fn on_layers(turn: &mut Turn<'_>) -> Outcome {
    let root = turn.mount.path.clone();
    let names: Vec<PathBuf> = (0..500).map(|n| root.join(format!("single/f{n}"))).collect();
    turn.measure("find", 500, || stat_all(&names))?;
    let missing = new_names(&root.join("shared"), 2000);
    turn.measure("miss", 2000, || miss(&missing))?;
    turn.measure("walk", 4 * turn.size, || walk(&root.join("shared")))?;
    changes(turn, &root.join("shared"), "of0-")
}

fn build_entries(dir: &Path, size: u64) {
    make_files(&dir.join("0/large"), "f", size);
    File::create(dir.join("0/there")).unwrap();
}

fn on_entries(turn: &mut Turn<'_>) -> Outcome {
    let (dir, size) = (turn.mount.path.join("large"), turn.size);
    let missing = new_names(&dir, 1000);
    turn.measure("miss", 1000, || miss(&missing))?;
    turn.measure("list", size, || {
        let listed = fs::read_dir(&dir).map_err(|e| e.to_string())?.count() as u64;
        if listed == size { Ok(()) } else { Err(format!("{listed} entries of {size}")) }
    })?;
    turn.measure("walk", size, || walk(&dir))?;
    changes(turn, &dir, "f")
}

/// Makes files in a directory, renames and unlinks some that a lower has there.
fn changes(turn: &mut Turn<'_>, dir: &Path, lower: &str) -> Outcome {
    let made: Vec<PathBuf> = (0..REPEATS).map(|n| dir.join(format!("made-{}-{n}", self::turn()))).collect();
    turn.measure("create", REPEATS as u64, || {
        made.iter().try_for_each(|path| File::create(path).map(drop).map_err(|e| e.to_string()))
    })?;
    let renamed: Vec<PathBuf> = made.iter().map(|path| path.with_extension("renamed")).collect();
    turn.measure("rename", REPEATS as u64, || {
        made.iter().zip(&renamed).try_for_each(|(from, to)| fs::rename(from, to).map_err(|e| e.to_string()))
    })?;
    turn.measure("unlink", REPEATS as u64, || remove_all(&renamed))?;
    let of_lower: Vec<PathBuf> =
        (0..4).map(|n| dir.join(format!("{lower}{n}"))).filter(|path| path.exists()).collect();
    if of_lower.is_empty() {
        return Ok(());
    }
    turn.measure("unlink lower", of_lower.len() as u64, || remove_all(&of_lower))
}

fn on_known(turn: &mut Turn<'_>) -> Outcome {
    let (root, size) = (turn.mount.path.clone(), turn.size);
    turn.measure("walk", size, || walk(&root.join("tree")))?;
    turn.measure("walk again", size, || walk(&root.join("tree")))?;
    changes(turn, &root.join("tree/0/0"), "f")
}

fn on_clients(turn: &mut Turn<'_>) -> Outcome {
    let clients = turn.size as usize;
    let dirs: Vec<PathBuf> = (0..clients).map(|n| turn.mount.path.join(format!("client{n}"))).collect();
    for dir in &dirs {
        fs::create_dir(dir).map_err(|e| e.to_string())?;
    }
    let each = SHARED_WORK / clients;
    turn.measure("create, list, unlink", (each * clients) as u64, || {
        std::thread::scope(|scope| {
            let working: Vec<_> =
                dirs.iter().map(|dir| scope.spawn(move || come_and_go(dir, each))).collect();
            working.into_iter().try_for_each(|client| client.join().unwrap())
        })
    })
}

/// One file with many names in a directory.
fn build_hardlinks(dir: &Path, size: u64) {
    build_entries(dir, 1);
    let names = dir.join("0/names");
    fs::create_dir(&names).unwrap();
    fs::write(names.join("f0"), vec![1; 4096]).unwrap();
    (1..size).for_each(|n| fs::hard_link(names.join("f0"), names.join(format!("f{n}"))).unwrap());
}

fn on_hardlinks(turn: &mut Turn<'_>) -> Outcome {
    let (dir, size) = (turn.mount.path.join("names"), turn.size);
    let names: Vec<PathBuf> = (0..size).map(|n| dir.join(format!("f{n}"))).collect();
    turn.measure("find", size, || stat_all(&names))?;
    turn.measure("copy up", 1, || {
        let mut file = File::options().append(true).open(&names[0]).map_err(|e| e.to_string())?;
        file.write_all(b"x").map_err(|e| e.to_string())
    })?;
    turn.measure("walk after it", size, || walk(&dir))?;
    let some = &names[..names.len().min(REPEATS)];
    turn.measure("link, unlink", REPEATS as u64, || {
        (0..REPEATS).try_for_each(|_| {
            let name = dir.join(format!("new-{}", self::turn()));
            fs::hard_link(&names[0], &name).and_then(|()| fs::remove_file(&name)).map_err(|e| e.to_string())
        })
    })?;
    turn.measure("unlink lower", some.len() as u64, || remove_all(some))
}

/// Chains of directories, with a file at the end of each.
fn build_depth(dir: &Path, size: u64) {
    build_entries(dir, 1);
    for chain in 0..CHAINS {
        let mut end = dir.join(format!("0/chain{chain}"));
        (0..size).for_each(|_| end.push("d"));
        make_files(&end, "f", 1);
    }
}

fn on_depth(turn: &mut Turn<'_>) -> Outcome {
    let ends: Vec<PathBuf> = (0..CHAINS)
        .map(|chain| {
            let mut end = turn.mount.path.join(format!("chain{chain}"));
            (0..turn.size).for_each(|_| end.push("d"));
            end
        })
        .collect();
    let files: Vec<PathBuf> = ends.iter().map(|end| end.join("f0")).collect();
    let count = CHAINS as u64;
    turn.measure("find", count, || stat_all(&files))?;
    turn.measure("find again", 100 * count, || (0..100).try_for_each(|_| stat_all(&files)))?;
    turn.measure("copy up", count, || {
        files.iter().try_for_each(|file| {
            let mut file = File::options().append(true).open(file).map_err(|e| e.to_string())?;
            file.write_all(b"x").map_err(|e| e.to_string())
        })
    })?;
    // A copy-up changes the times and blocks of the directories on the way, which are asked for once more.
    turn.measure("find after it", count, || stat_all(&files))?;
    turn.measure("create", count, || {
        ends.iter().try_for_each(|end| File::create(end.join("new")).map(drop).map_err(|e| e.to_string()))
    })
}

fn build_upper(dir: &Path, size: u64) {
    build_entries(dir, 1);
    build_tree(&dir.join("upper"), size);
}

fn on_upper(turn: &mut Turn<'_>) -> Outcome {
    let (root, size) = (turn.mount.path.clone(), turn.size);
    turn.measure("rename of all", 2, || {
        let (all, other) = (root.join("tree"), root.join("other"));
        fs::rename(&all, &other).and_then(|()| fs::rename(&other, &all)).map_err(|e| e.to_string())
    })?;
    turn.measure("walk", size, || walk(&root.join("tree")))?;
    let dir = root.join(format!("tree/0/made{}", self::turn()));
    fs::create_dir(&dir).map_err(|e| e.to_string())?;
    changes(turn, &dir, "none")?;
    fs::remove_dir(&dir).map_err(|e| e.to_string())?;
    // The next one finds the upper as this one did.
    debug_assert!(turn.layers.join("upper/tree").is_dir());
    Ok(())
}

fn stat_all(names: &[PathBuf]) -> Outcome {
    names.iter().try_for_each(|name| match fs::symlink_metadata(name) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{}: {error}", name.display())),
    })
}

fn remove_all(names: &[PathBuf]) -> Outcome {
    names.iter().try_for_each(|name| fs::remove_file(name).map_err(|e| e.to_string()))
}
