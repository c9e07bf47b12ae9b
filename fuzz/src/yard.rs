//! Directories to play in: in memory, and empty each time.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;

/// A fresh directory, removed when it is dropped.
pub struct Yard {
    dir: tempfile::TempDir,
}

impl Yard {
    /// Makes one.
    pub fn new() -> Yard {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        Yard { dir: tempfile::Builder::new().prefix("unionmount-fuzz-").tempdir_in(parent).unwrap() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes a directory in it.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Makes a directory in it, and opens it.
    pub fn open(&self, name: &str) -> OwnedFd {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(self.dir(name), flags, Mode::empty()).unwrap()
    }

    /// The names in it.
    pub fn names(&self) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(self.path()).unwrap().map(name).collect();
        names.sort();
        names
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        // Modes that its owner may not search are what an archive may say.
        let_in(self.path());
    }
}

fn let_in(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, PermissionsExt::from_mode(0o700)).ok();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let_in(&entry.path());
        }
    }
}
