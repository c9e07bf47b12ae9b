//! Tests: a union over directories of a scratch place.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use support::{LoopFilesystem, Privilege, Scratch};
use tempfile::TempDir;

use crate::union::nodes::node::Node;
use crate::union::options::FsOptions;
use crate::union::stack::layer::{Stack, StackOptions};
use crate::union::{Limits, Union};

pub(in crate::union) mod kill;

/// Layers to build, and to open as one tree: `0`, `1` … are the lowers from the top down, `upper` lies above them.
///
/// Whiteouts and opaque marks of the layers are made in the form of files (`.wh.NAME`), which needs no privileges.
pub(in crate::union) struct Bed {
    top: PathBuf,
    lowers: usize,
    /// Removes them when the test has ended.
    _scratch: Option<TempDir>,
    _disk: Option<Disk>,
}

/// A filesystem of ext4 on which nobody makes files but the test: what number a file gets there is not for others to say.
pub(in crate::union) struct Disk {
    filesystem: LoopFilesystem,
    _image: Scratch,
}

impl Disk {
    /// Makes one. `None` for who can't mount.
    pub fn new() -> Option<Disk> {
        if Privilege::current() != Privilege::Root {
            return None;
        }
        let image = Scratch::in_memory();
        Some(Disk { filesystem: LoopFilesystem::new(&image, "disk", "ext4", 64 << 20), _image: image })
    }

    /// Returns where it is mounted.
    pub fn path(&self) -> &Path {
        self.filesystem.path()
    }
}

impl Bed {
    /// Makes an empty upper and that many empty lowers.
    pub fn new(lowers: usize) -> Bed {
        Bed::in_scratch(tempfile::tempdir().unwrap(), lowers)
    }

    /// Does as [`Bed::new`], on a filesystem in memory.
    pub fn in_memory(lowers: usize) -> Bed {
        Bed::in_scratch(tempfile::tempdir_in("/dev/shm").unwrap(), lowers)
    }

    /// Does as [`Bed::new`], on a filesystem of its own. `None` for who can't mount.
    pub fn on_disk(lowers: usize) -> Option<Bed> {
        let disk = Disk::new()?;
        let top = disk.path().to_owned();
        make(&top, lowers);
        Some(Bed { top, lowers, _scratch: None, _disk: Some(disk) })
    }

    fn in_scratch(scratch: TempDir, lowers: usize) -> Bed {
        make(scratch.path(), lowers);
        Bed { top: scratch.path().to_owned(), lowers, _scratch: Some(scratch), _disk: None }
    }

    /// Returns the layers that another process has made below `top`.
    pub fn of(top: &Path, lowers: usize) -> Bed {
        Bed { top: top.to_owned(), lowers, _scratch: None, _disk: None }
    }

    /// Returns where something of a layer is, such as `0/a`.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.top.join(path)
    }

    /// Makes a file that holds its own path, and the directories above it.
    pub fn file(&self, path: &str) -> &Bed {
        let at = self.at(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(at, path).unwrap();
        self
    }

    /// Makes a directory, and those above it.
    pub fn dir(&self, path: &str) -> &Bed {
        fs::create_dir_all(self.at(path)).unwrap();
        self
    }

    /// Returns the names in a directory of a layer, in their order.
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.at(path)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    /// Opens the layers as a stack.
    pub fn stack(&self) -> Stack {
        let options = StackOptions {
            lowers: (0..self.lowers).map(|lower| self.at(lower.to_string()).into()).collect(),
            upper: Some(self.at("upper")),
            // A test beside this one may have started a process, which keeps the lock of a union that is gone until it
            // is another program.
            lock_wait: std::time::Duration::from_secs(20),
            ..StackOptions::default()
        };
        Stack::open(&options).unwrap()
    }

    /// Opens the layers as a union.
    pub fn open(&self) -> Union {
        Union::new(self.stack(), Limits::default()).unwrap()
    }

    /// Opens the layers as a union with those options.
    pub fn open_with(&self, options: &FsOptions) -> Union {
        Union::with_options(self.stack(), Limits::default(), options).unwrap()
    }
}

fn make(top: &Path, lowers: usize) {
    fs::create_dir(top.join("upper")).unwrap();
    for lower in 0..lowers {
        fs::create_dir(top.join(lower.to_string())).unwrap();
    }
}

/// Looks up what is at a path; `None` where a component is missing.
pub(in crate::union) fn look_up(union: &Union, path: &str) -> Option<Arc<Node>> {
    let mut node = union.root().clone();
    for name in path.split('/') {
        node = union.lookup(&node, name.as_bytes()).unwrap()?.0;
    }
    Some(node)
}
