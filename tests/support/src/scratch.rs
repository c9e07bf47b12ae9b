//! Scratch directories that go away, whatever happens.

use std::path::{Path, PathBuf};

/// A directory of a test's own, removed when it is dropped. World-searchable, so that other users' processes can
/// reach what lies in it.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes a fresh directory below `UNIONMOUNT_SCRATCH`, `$TMPDIR` or `/tmp`.
    pub fn new() -> Self {
        let parent = std::env::var_os("UNIONMOUNT_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
        Self::below(&parent)
    }

    /// Makes a fresh directory in memory, for what needs no disk, or where [`Scratch::new`] does when tmpfs has no
    /// attributes for users (before Linux 6.6).
    pub fn in_memory() -> Self {
        let memory = Path::new("/dev/shm");
        if std::env::var_os("UNIONMOUNT_SCRATCH").is_none() && memory.is_dir() {
            let scratch = Self::below(memory);
            let flags = rustix::fs::XattrFlags::empty();
            if rustix::fs::setxattr(scratch.path(), "user.test", b"y", flags).is_ok() {
                return scratch;
            }
        }
        Self::new()
    }

    /// Makes a fresh directory below `parent`.
    pub fn below(parent: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("unionmount-test-").tempdir_in(parent).unwrap();
        let path = directory.keep().canonicalize().unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
        Scratch { path }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes and returns the directory `name` in it.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::env::var_os("UNIONMOUNT_KEEP").is_some() {
            eprintln!("kept: {}", self.path.display());
            return;
        }
        // Never walk into a mount that a failed test has left behind: it may hang, and it is not ours to empty.
        for mount in super::mountinfo::mounts_below(&self.path).into_iter().rev() {
            eprintln!("left behind by the test: a mount at {}", mount.point.display());
            super::mount::force_unmount(&mount);
        }
        if let Err(error) = remove_tree(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// `rm -rf`, also of directories that their owner may not search.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let path = entry.path();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700))?;
            remove_tree(&path)?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    std::fs::remove_dir(path)
}
