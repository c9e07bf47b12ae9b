//! A stack of layers in a scratch directory, ready to be mounted.

use std::path::{Path, PathBuf};

use super::{Layer, Mount, Options, Privilege, Program, Scratch, Snapshot};

/// Lowers, an upper, a workdir and a mount point, all in one scratch directory.
pub struct Stack {
    /// The lowers, topmost first.
    lowers: Vec<Layer>,
    upper: Layer,
    work: PathBuf,
    mountpoint: PathBuf,
    /// Last, so that it goes last.
    scratch: Scratch,
}

impl Stack {
    /// An empty upper over `count` empty lowers.
    pub fn new(count: usize) -> Self {
        Self::in_scratch(Scratch::new(), count)
    }

    /// The same in a given scratch directory.
    pub fn in_scratch(scratch: Scratch, count: usize) -> Self {
        let lowers =
            (0..count).map(|index| Layer::at(scratch.path().join(format!("lower{index}")))).collect();
        let upper = Layer::at(scratch.path().join("upper"));
        let work = scratch.dir("work");
        let mountpoint = scratch.dir("merged");
        Stack { lowers, upper, work, mountpoint, scratch }
    }

    /// Puts the upper and the workdir into `directory`, which is on another filesystem perhaps.
    pub fn with_upper_in(mut self, directory: &Path) -> Self {
        self.upper = Layer::at(directory.join("upper"));
        self.work = directory.join("work");
        std::fs::create_dir_all(&self.work).unwrap();
        self
    }

    /// Puts the lower `index` into `directory`.
    pub fn with_lower_in(mut self, index: usize, directory: &Path) -> Self {
        self.lowers[index] = Layer::at(directory.join(format!("lower{index}")));
        self
    }

    /// The lower `index`; 0 is the topmost.
    pub fn lower(&self, index: usize) -> &Layer {
        &self.lowers[index]
    }

    /// All lowers, topmost first.
    pub fn lowers(&self) -> &[Layer] {
        &self.lowers
    }

    /// The upper.
    pub fn upper(&self) -> &Layer {
        &self.upper
    }

    /// The workdir.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The mount point.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// The directory that holds all.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// What the program is told.
    pub fn options(&self) -> Options {
        Options {
            lowers: self.lowers.iter().map(|lower| lower.root().to_owned()).collect(),
            upper: Some(self.upper.root().to_owned()),
            work: Some(self.work.clone()),
            ..Options::default()
        }
    }

    /// The same with further words for `-o`.
    pub fn options_with(&self, extra: &[&str]) -> Options {
        Options { extra: extra.iter().map(|word| (*word).to_owned()).collect(), ..self.options() }
    }

    /// Mounts it with the program under test. The kernel's overlayfs gets the options that bring it nearest to what
    /// is asked of the program.
    pub fn mount(&self) -> Mount {
        match (Program::under_test(), Privilege::current()) {
            (Program::Kernel, Privilege::Root) => {
                self.mount_with(&["redirect_dir=on", "index=on", "xino=on"])
            }
            (Program::Kernel, _) => self.mount_with(&["userxattr"]),
            _ => self.mount_with(&[]),
        }
    }

    /// Mounts it with the program under test and further words for `-o`.
    pub fn mount_with(&self, extra: &[&str]) -> Mount {
        Mount::new(&self.options_with(extra), &self.mountpoint)
    }

    /// Mounts it read-only: no upper.
    pub fn mount_read_only(&self) -> Mount {
        Mount::new(&Options { upper: None, work: None, ..self.options() }, &self.mountpoint)
    }

    /// Mounts it with the kernel's overlayfs and further words for `-o`.
    pub fn mount_kernel(&self, extra: &[&str]) -> Mount {
        Mount::with_program(&Program::Kernel, &self.options_with(extra), &self.mountpoint)
    }

    /// Snapshots of the lowers, to prove later that nothing changed them.
    pub fn lower_snapshots(&self) -> Vec<Snapshot> {
        self.lowers.iter().map(|lower| Snapshot::take(lower.root())).collect()
    }

    /// Asserts that the lowers are byte for byte and attribute for attribute what they were (access times aside).
    pub fn assert_lowers_unchanged(&self, before: &[Snapshot]) {
        for (lower, before) in self.lowers.iter().zip(before) {
            let differences = super::diff(before, &Snapshot::take(lower.root()), &super::Fields::all());
            assert!(differences.is_empty(), "{} was changed:\n{differences}", lower.root().display());
        }
    }

    /// Asserts that nothing half-done lies in the workdir: no file outside `index`, which holds what copied-up
    /// hardlinks need to be found again.
    pub fn assert_workdir_clean(&self) {
        if Program::under_test() == Program::Kernel {
            // It leaves a whiteout there, for others to be linked to.
            return;
        }
        let snapshot = Snapshot::take(&self.work);
        let leftovers: Vec<_> = snapshot
            .entries
            .keys()
            .filter(|path| {
                let text = path.to_string_lossy();
                let depth = text.split('/').filter(|part| !part.is_empty()).count();
                let in_index = text.split('/').any(|part| part.starts_with("index"));
                !(in_index || depth <= 1 && snapshot.entries[*path].kind == super::Kind::Directory)
            })
            .collect();
        assert!(leftovers.is_empty(), "left behind in the workdir: {leftovers:?}");
    }
}
