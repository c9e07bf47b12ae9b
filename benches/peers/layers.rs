//! The layers that are measured on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::peer::remove;
use crate::rows::Group;

/// Directories of the tree, and files in each of them.
pub const DIRS: usize = 210;
pub const FILES: usize = 100;
/// Files of the git repository within the tree, in directories of 100.
const TRACKED: usize = 5000;
/// Layers of the deep stack.
pub const DEEP: usize = 100;
/// Size of each of the two large files.
pub const LARGE: u64 = 512 << 20;

/// A scratch directory that goes away.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        let base = std::env::var_os("UNIONMOUNT_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
        let path = base.join(format!("um-bench-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// A directory name of the tree.
pub fn dir_name(index: usize) -> String {
    format!("lib/group{}/package{index}", index / 10)
}

fn content(index: usize, size: usize) -> Vec<u8> {
    (0..size).map(|at| (at.wrapping_mul(31) ^ index) as u8).collect()
}

/// Builds the layers that the wanted groups need in `root`.
pub fn build(root: &Path, wanted: &dyn Fn(Group) -> bool) {
    if wanted(Group::Tree) || wanted(Group::Change) {
        tree(&root.join("tree"));
    }
    if wanted(Group::Data) {
        let lower = root.join("data/0");
        fs::create_dir_all(&lower).unwrap();
        let block = content(1, 1 << 20);
        let mut large = Vec::new();
        for _ in 0..LARGE >> 20 {
            large.extend_from_slice(&block);
        }
        for name in ["large", "mapped"] {
            fs::write(lower.join(name), &large).unwrap();
            Command::new("sync").arg(lower.join(name)).status().unwrap();
        }
    }
    if wanted(Group::Deep) {
        for layer in 0..DEEP {
            let layer_root = root.join("deep").join(layer.to_string());
            for (dir, files) in [("shared", 20), ("unlisted", 1)] {
                let dir = layer_root.join(dir);
                fs::create_dir_all(&dir).unwrap();
                for file in 0..files {
                    fs::write(dir.join(format!("file-{layer}-{file}")), "x").unwrap();
                }
            }
        }
    }
}

/// 26,000 files in three layers: a base, additions to it, and changes; a git repository; an archive to unpack.
fn tree(root: &Path) {
    for dir in 0..DIRS {
        for layer in 0..3 {
            fs::create_dir_all(root.join(layer.to_string()).join(dir_name(dir))).unwrap();
        }
        for file in 0..FILES {
            // One in ten lies in the topmost layer, two in the middle one, the rest at the bottom.
            let layer = match file % 10 {
                0 => 0,
                1 | 2 => 1,
                _ => 2,
            };
            let name = format!("module-{file}.py");
            let index = dir * FILES + file;
            let place = root.join(layer.to_string()).join(dir_name(dir)).join(name);
            fs::write(place, content(index, 200 + index * 7 % 3000)).unwrap();
        }
    }
    let repository = root.join("2/repository");
    for index in 0..TRACKED {
        let dir = repository.join(format!("src{}", index / 100));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("file{index}.c")), content(index, 500)).unwrap();
    }
    for words in [
        &["init", "-q"][..],
        &["config", "user.name", "bench"],
        &["config", "user.email", "bench@localhost"],
        &["config", "gc.auto", "0"],
        &["add", "."],
        &["commit", "-q", "-m", "all"],
        &["gc", "-q"],
    ] {
        let status = Command::new("git").args(words).current_dir(&repository).stdout(Stdio::null()).status();
        assert!(status.unwrap().success(), "git {words:?}");
    }
    let archive = root.join("archive");
    for index in 0..5000 {
        let dir = archive.join(format!("unpacked/dir{}", index / 50));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("file{index}")), content(index, 300 + index * 11 % 4000)).unwrap();
    }
    let status = Command::new("tar")
        .args(["cf", "archive.tar", "-C", "archive", "unpacked"])
        .current_dir(root)
        .status();
    assert!(status.unwrap().success(), "tar");
    remove(&archive);
}
