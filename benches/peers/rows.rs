//! What is measured: the rows of the table, in groups that share a mount.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::layers::{DEEP, LARGE, dir_name};
use crate::peer::{Mounted, Peer};
use support::raw::Mapping;

/// Rows that share a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Tree,
    Change,
    Data,
    Deep,
}

/// All groups, in the order in which they are measured.
pub const GROUPS: &[Group] = &[Group::Tree, Group::Change, Group::Data, Group::Deep];

/// One row.
pub struct Row {
    pub key: &'static str,
    pub label: &'static str,
    pub group: Group,
    /// The ratio to the kernel's overlayfs that is the goal: as root, and without privileges.
    pub limit: f64,
    pub rootless: f64,
}

const fn row(key: &'static str, group: Group, limit: f64, rootless: f64, label: &'static str) -> Row {
    Row { key, label, group, limit, rootless }
}

/// The table.
pub const ROWS: &[Row] = &[
    row("walk-cold", Group::Tree, 2.5, 2.5, "walk + lstat of 26,000 files, caches of the mount cold"),
    row("walk-warm", Group::Tree, 1.3, 1.3, "the same again, warm"),
    row("walkers", Group::Tree, 1.0, 1.0, "4 walkers at once, warm"),
    row("read-first", Group::Tree, 5.0, 5.0, "read every file, first time"),
    row("read-again", Group::Tree, 2.0, 2.0, "read every file, again"),
    row("open", Group::Tree, 2.0, 2.0, "open + close of one file, 20,000 times"),
    row("missing", Group::Tree, 8.0, 8.0, "stat of 20,000 names that don't exist, first time"),
    row("missing-again", Group::Tree, 1.0, 1.0, "the same names again"),
    row("git-status", Group::Tree, 1.5, 1.5, "git status of 5,000 files, warm"),
    row("untar", Group::Change, 4.0, 4.0, "untar 5,000 files"),
    row("rm-upper", Group::Change, 5.0, 5.0, "rm -rf of an upper tree of 5,000 files"),
    row("rm-lower", Group::Change, 2.0, 2.0, "rm -rf of a lower tree of 5,000 files"),
    row("create", Group::Change, 2.5, 2.5, "create 5,000 files of 100 bytes"),
    row("rename", Group::Change, 6.0, 6.0, "rename 5,000 files"),
    row("unlink", Group::Change, 8.0, 8.0, "unlink 5,000 files"),
    row("clients-1", Group::Change, 4.0, 4.0, "1 client: 4,000 files created, listed, deleted"),
    row("clients-4", Group::Change, 4.0, 4.0, "4 clients, each in its directory: the same in all"),
    row("clients-16", Group::Change, 4.0, 4.0, "16 clients, each in its directory: the same in all"),
    row("write", Group::Data, 1.1, 1.5, "write 256 MiB in sequence, close"),
    row("random", Group::Data, 1.2, 1.5, "16,384 random writes of 4 KiB, close"),
    row("read-large", Group::Data, 1.0, 1.5, "read 512 MiB, first time"),
    row("read-large-again", Group::Data, 1.0, 1.1, "read 512 MiB, again"),
    row("map-large", Group::Data, 0.5, 1.5, "map 512 MiB and read a byte of each page, first time"),
    row("copy-up", Group::Data, 0.5, 0.5, "first byte written into a 512 MiB lower file"),
    row("missing-deep", Group::Deep, 0.1, 0.1, "stat of 5,000 missing names under 100 layers, first time"),
    row(
        "missing-unlisted",
        Group::Deep,
        0.1,
        0.1,
        "stat of 20,000 missing names in a directory of 100 layers that nobody has listed",
    ),
    row("walk-deep", Group::Deep, 0.04, 0.04, "walk of 100 layers, caches cold"),
];

/// One peer's turn at one group.
pub struct Work<'a> {
    peer: &'a Peer,
    scratch: &'a Path,
    wanted: &'a dyn Fn(&str) -> bool,
    count: bool,
    /// Seconds, by row.
    pub times: BTreeMap<&'static str, f64>,
    /// Requests, by row.
    pub requests: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Of the daemon after the first walk, in KiB.
    pub memory: Option<u64>,
}

type Outcome = Result<(), String>;

impl<'a> Work<'a> {
    pub fn new(peer: &'a Peer, scratch: &'a Path, wanted: &'a dyn Fn(&str) -> bool, count: bool) -> Work<'a> {
        Work { peer, scratch, wanted, count, times: BTreeMap::new(), requests: BTreeMap::new(), memory: None }
    }

    /// Mounts, and measures the group's rows.
    pub fn run(&mut self, group: Group) -> Outcome {
        let (dir, layers) = match group {
            Group::Tree | Group::Change => ("tree", 3),
            Group::Data => ("data", 1),
            Group::Deep => ("deep", DEEP),
        };
        let lowers: Vec<String> = (0..layers).map(|layer| layer.to_string()).collect();
        level(&self.scratch.join(dir), &lowers, group != Group::Deep)?;
        let mount = self.peer.mount(&self.scratch.join(dir), &lowers)?;
        match group {
            Group::Tree => self.tree(&mount),
            Group::Change => self.change(&mount),
            Group::Data => self.data(&mount),
            Group::Deep => self.deep(&mount),
        }
    }

    /// Measures what `work` takes.
    fn measure(&mut self, key: &'static str, mount: &Mounted<'_>, work: impl FnOnce() -> Outcome) -> Outcome {
        let before = if self.count { mount.requests() } else { None };
        let start = Instant::now();
        let done = work();
        let seconds = start.elapsed().as_secs_f64();
        // A peer that can't do it has no figure.
        if let Err(error) = done {
            eprintln!("bench: {}: {key}: {error}", self.peer.name);
            return Ok(());
        }
        // The best of several in one round.
        let best = self.times.entry(key).or_insert(seconds);
        *best = best.min(seconds);
        if let (Some(before), Some(after)) = (before, if self.count { mount.requests() } else { None }) {
            let new = after.into_iter().map(|(kind, n)| (kind.clone(), n - before.get(&kind).unwrap_or(&0)));
            self.requests.insert(key, new.filter(|(_, n)| *n > 0).collect());
        }
        Ok(())
    }

    fn wants(&self, keys: &[&str]) -> bool {
        keys.iter().any(|key| (self.wanted)(key))
    }

    fn tree(&mut self, mount: &Mounted<'_>) -> Outcome {
        let root = &mount.path;
        self.measure("walk-cold", mount, || walk(root))?;
        self.memory = mount.memory();
        if self.wants(&["walk-warm"]) {
            for _ in 0..3 {
                self.measure("walk-warm", mount, || walk(root))?;
            }
        }
        if self.wants(&["walkers"]) {
            for _ in 0..2 {
                self.measure("walkers", mount, || {
                    std::thread::scope(|scope| {
                        let walkers: Vec<_> = (0..4).map(|_| scope.spawn(|| walk(root))).collect();
                        walkers.into_iter().try_for_each(|walker| walker.join().unwrap())
                    })
                })?;
            }
        }
        if self.wants(&["read-first", "read-again"]) {
            let files = list(&root.join("lib"))?;
            self.measure("read-first", mount, || read_all(&files))?;
            for _ in 0..2 {
                self.measure("read-again", mount, || read_all(&files))?;
            }
        }
        let dir = root.join(dir_name(1));
        if self.wants(&["open"]) {
            let file = dir.join("module-5.py");
            for _ in 0..2 {
                self.measure("open", mount, || {
                    for _ in 0..20_000 {
                        drop(black_box(File::open(&file).map_err(|e| e.to_string())?));
                    }
                    Ok(())
                })?;
            }
        }
        if self.wants(&["missing", "missing-again"]) {
            let names = new_names(&dir, 20_000);
            self.measure("missing", mount, || miss(&names))?;
            for _ in 0..2 {
                self.measure("missing-again", mount, || miss(&names))?;
            }
        }
        if self.wants(&["git-status"]) {
            let repository = root.join("repository");
            for _ in 0..2 {
                run("git", &["status", "--porcelain"], &repository)?;
            }
            for _ in 0..3 {
                self.measure("git-status", mount, || run("git", &["status", "--porcelain"], &repository))?;
            }
        }
        Ok(())
    }

    fn change(&mut self, mount: &Mounted<'_>) -> Outcome {
        let root = &mount.path;
        if self.wants(&["untar", "rm-upper"]) {
            let archive = self.scratch.join("tree/archive.tar");
            let archive = archive.to_str().ok_or("a name that is no text")?;
            self.measure("untar", mount, || run("tar", &["xf", archive], root))?;
            self.measure("rm-upper", mount, || run("rm", &["-rf", "unpacked"], root))?;
        }
        if self.wants(&["rm-lower"]) {
            self.measure("rm-lower", mount, || {
                run(
                    "rm",
                    &["-rf", "lib/group0", "lib/group1", "lib/group2", "lib/group3", "lib/group4"],
                    root,
                )
            })?;
        }
        if self.wants(&["create", "rename", "unlink"]) {
            let dir = root.join("new");
            fs::create_dir(&dir).map_err(|e| e.to_string())?;
            let name = |kind: &str, n: usize| dir.join(format!("{kind}{n}"));
            self.measure("create", mount, || {
                let content = [7; 100];
                (0..5000).try_for_each(|n| {
                    let mut file = File::create(name("file", n)).map_err(|e| e.to_string())?;
                    file.write_all(&content).map_err(|e| e.to_string())
                })
            })?;
            self.measure("rename", mount, || {
                (0..5000).try_for_each(|n| {
                    fs::rename(name("file", n), name("moved", n)).map_err(|e| e.to_string())
                })
            })?;
            self.measure("unlink", mount, || {
                (0..5000).try_for_each(|n| fs::remove_file(name("moved", n)).map_err(|e| e.to_string()))
            })?;
        }
        for (key, clients) in [("clients-1", 1), ("clients-4", 4), ("clients-16", 16)] {
            if self.wants(&[key]) {
                let dirs: Vec<_> = (0..clients).map(|client| root.join(format!("{key}-{client}"))).collect();
                for dir in &dirs {
                    fs::create_dir(dir).map_err(|e| e.to_string())?;
                }
                self.measure(key, mount, || {
                    std::thread::scope(|scope| {
                        let working: Vec<_> = dirs
                            .iter()
                            .map(|dir| scope.spawn(move || come_and_go(dir, 4000 / clients)))
                            .collect();
                        working.into_iter().try_for_each(|client| client.join().unwrap())
                    })
                })?;
            }
        }
        Ok(())
    }

    fn data(&mut self, mount: &Mounted<'_>) -> Outcome {
        let large = mount.path.join("large");
        if self.wants(&["read-large", "read-large-again"]) {
            self.measure("read-large", mount, || read_large(&large))?;
            for _ in 0..2 {
                self.measure("read-large-again", mount, || read_large(&large))?;
            }
        }
        if self.wants(&["map-large"]) {
            self.measure("map-large", mount, || map_large(&mount.path.join("mapped")))?;
        }
        if self.wants(&["write", "random"]) {
            let path = mount.path.join("written");
            let block = vec![5; 1 << 20];
            self.measure("write", mount, || {
                let mut file = File::create(&path).map_err(|e| e.to_string())?;
                (0..256).try_for_each(|_| file.write_all(&block).map_err(|e| e.to_string()))
            })?;
            settle(&path)?;
            self.measure("random", mount, || {
                let file = File::options().write(true).open(&path).map_err(|e| e.to_string())?;
                let mut random = 12345u64;
                (0..16_384).try_for_each(|_| {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let page = (random >> 33) % (256 << 8);
                    file.write_all_at(&block[..4096], page * 4096).map_err(|e| e.to_string())
                })
            })?;
            settle(&path)?;
        }
        if self.wants(&["copy-up"]) {
            self.measure("copy-up", mount, || {
                let file = File::options().write(true).open(&large).map_err(|e| e.to_string())?;
                file.write_all_at(b"x", 4096).map_err(|e| e.to_string())
            })?;
        }
        Ok(())
    }

    fn deep(&mut self, mount: &Mounted<'_>) -> Outcome {
        let root = &mount.path;
        if self.wants(&["missing-unlisted"]) {
            let names = new_names(&root.join("unlisted"), 20_000);
            self.measure("missing-unlisted", mount, || miss(&names))?;
        }
        self.measure("walk-deep", mount, || walk(&root.join("shared")))?;
        if self.wants(&["missing-deep"]) {
            let names = new_names(&root.join("shared"), 5000);
            self.measure("missing-deep", mount, || miss(&names))?;
        }
        Ok(())
    }
}

/// Names in `dir` that don't exist and that nobody has asked for yet: the filesystem below the layers remembers what it
/// was asked for, also for the next mount.
pub fn new_names(dir: &Path, count: usize) -> Vec<PathBuf> {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    (0..count).map(|n| dir.join(format!("missing-{turn}-{n}"))).collect()
}

/// Gives every peer the same start, whoever came before: nothing waits to be written, and the layers' names, and with `warm`
/// their data too, are in the kernel's caches or not.
fn level(dir: &Path, lowers: &[String], warm: bool) -> Outcome {
    rustix::fs::syncfs(File::open(dir).map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    forget_names()?;
    for lower in lowers.iter().filter(|_| warm) {
        let lower = dir.join(lower);
        walk(&lower)?;
        read_all(&list(&lower)?)?;
    }
    Ok(())
}

/// Makes the kernel forget names and inodes, of the layers' filesystems too; pages of data stay.
fn forget_names() -> Outcome {
    // An ordinary user can't.
    match fs::write("/proc/sys/vm/drop_caches", "2") {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        other => other.map_err(|e| e.to_string()),
    }
}

/// Makes files, lists them, and takes them away.
pub fn come_and_go(dir: &Path, count: usize) -> Outcome {
    let names: Vec<_> = (0..count).map(|n| dir.join(n.to_string())).collect();
    for name in &names {
        fs::write(name, "some bytes").map_err(|e| e.to_string())?;
    }
    walk(dir)?;
    names.iter().try_for_each(|name| fs::remove_file(name).map_err(|e| e.to_string()))
}

/// Lets what was written reach the disk, so that it doesn't disturb what is measured next.
fn settle(path: &Path) -> Outcome {
    File::open(path).and_then(|file| file.sync_all()).map_err(|e| e.to_string())
}

fn run(program: &str, words: &[&str], dir: &Path) -> Outcome {
    let output = Command::new(program).args(words).current_dir(dir).stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// Lists everything below and asks for the attributes of each.
pub fn walk(dir: &Path) -> Outcome {
    for entry in fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))? {
        let entry = entry.map_err(|e| e.to_string())?;
        let attributes = entry.metadata().map_err(|e| format!("{}: {e}", entry.path().display()))?;
        if attributes.is_dir() {
            walk(&entry.path())?;
        }
        black_box(attributes);
    }
    Ok(())
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| e.to_string())? {
        let entry = entry.map_err(|e| e.to_string())?;
        if entry.file_type().map_err(|e| e.to_string())?.is_dir() {
            files.extend(list(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}

fn read_all(files: &[PathBuf]) -> Outcome {
    let mut buffer = vec![0; 64 << 10];
    for path in files {
        let mut file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
        while file.read(&mut buffer).map_err(|e| e.to_string())? > 0 {}
        black_box(&buffer);
    }
    Ok(())
}

fn read_large(path: &Path) -> Outcome {
    let mut buffer = vec![0; 1 << 20];
    let mut file = File::open(path).map_err(|e| e.to_string())?;
    let mut total = 0;
    loop {
        match file.read(&mut buffer).map_err(|e| e.to_string())? {
            0 if total == LARGE => return Ok(()),
            0 => return Err(format!("only {total} bytes")),
            n => total += n as u64,
        }
        black_box(&buffer);
    }
}

fn map_large(path: &Path) -> Outcome {
    const PAGE: usize = 4096;
    let file = File::open(path).map_err(|e| e.to_string())?;
    let length = usize::try_from(LARGE).map_err(|e| e.to_string())?;
    let mapping = Mapping::shared(&file, length, false).map_err(|e| e.to_string())?;
    for page in (0..length).step_by(PAGE) {
        black_box(mapping.read(page, 1));
    }
    Ok(())
}

pub fn miss(names: &[PathBuf]) -> Outcome {
    for name in names {
        if fs::symlink_metadata(name).is_ok() {
            return Err(format!("{} exists", name.display()));
        }
    }
    Ok(())
}
