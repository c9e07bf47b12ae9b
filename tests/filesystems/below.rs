//! Filesystems to put layers on.

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{self, LoopFilesystem, Scratch};

/// A filesystem to put a layer on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Btrfs,
    Xfs,
    Tmpfs,
    Squashfs,
    /// Shows a directory; in user space.
    Bindfs,
    /// ext4, in user space.
    Fuse2fs,
    /// A union in user space, without extended attributes.
    Unionfs,
    /// A union in user space, that numbers objects.
    Mergerfs,
    /// The same, that numbers names.
    MergerfsByName,
}

impl Kind {
    /// The program without which there is none.
    pub fn tool(self) -> &'static str {
        match self {
            Kind::Btrfs => "mkfs.btrfs",
            Kind::Xfs => "mkfs.xfs",
            Kind::Tmpfs => "mount",
            Kind::Squashfs => "mksquashfs",
            Kind::Bindfs => "bindfs",
            Kind::Fuse2fs => "fuse2fs",
            Kind::Unionfs => "unionfs-fuse",
            Kind::Mergerfs | Kind::MergerfsByName => "mergerfs",
        }
    }

    /// Can one be mounted here?
    pub fn is_here(self) -> bool {
        let found = Command::new("sh").args(["-c", &format!("command -v {}", self.tool())]).output().unwrap();
        found.status.success()
    }
}

/// Returns from a test, saying so, unless it is root and the filesystem's tool is installed.
#[macro_export]
macro_rules! needs {
    ($kind:expr) => {
        support::needs_root!();
        if !$kind.is_here() {
            support::skip!("{}: {} is not installed", module_path!(), $kind.tool());
        }
    };
}

/// A mounted filesystem, unmounted when it is dropped.
pub enum Below {
    Loop(LoopFilesystem),
    Fuse { at: PathBuf },
}

impl Below {
    /// An empty one of that kind, in a scratch directory.
    pub fn new(scratch: &Scratch, kind: Kind) -> Below {
        let at = scratch.dir("below");
        let dir = |name: &str| scratch.dir(name).into_os_string().into_string().unwrap();
        let target = at.to_str().unwrap();
        match kind {
            Kind::Btrfs => return Below::Loop(LoopFilesystem::new(scratch, "disk", "btrfs", 128 << 20)),
            Kind::Xfs => return Below::Loop(LoopFilesystem::new(scratch, "disk", "xfs", 320 << 20)),
            Kind::Tmpfs => return Below::Loop(LoopFilesystem::tmpfs(scratch, "disk", 64 << 20)),
            Kind::Squashfs => panic!("a squashfs is made of a directory: Below::squashfs"),
            // Two names of a file are two inodes to it: without this it remembers old attributes of one when the other
            // is written.
            Kind::Bindfs => {
                support::run("bindfs", &["-o", "attr_timeout=0,entry_timeout=0", &dir("back"), target]);
            }
            Kind::Fuse2fs => {
                let image = scratch.path().join("image");
                std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
                let image = image.to_str().unwrap();
                support::run("mkfs.ext4", &["-q", image]);
                support::run("fuse2fs", &["-o", "fakeroot,attr_timeout=0,entry_timeout=0", image, target]);
            }
            Kind::Unionfs => {
                let branches = format!("{}=RW:{}=RO", dir("rw"), dir("ro"));
                support::run("unionfs-fuse", &["-o", "cow,use_ino", &branches, target]);
            }
            Kind::Mergerfs | Kind::MergerfsByName => {
                // One branch: where a name goes among several is its own affair.
                let branches = dir("one");
                let numbers = if kind == Kind::Mergerfs { "devino-hash" } else { "path-hash" };
                let options = format!("use_ino,inodecalc={numbers}");
                support::run("mergerfs", &["-o", &options, &branches, target]);
            }
        }
        Below::Fuse { at }
    }

    /// A squashfs of a directory.
    pub fn squashfs(scratch: &Scratch, of: &Path) -> Below {
        let (image, at) = (scratch.path().join("image"), scratch.dir("below"));
        support::output("mksquashfs", &[of, image.as_path()]);
        support::run("mount", &["-o".as_ref(), "loop,ro".as_ref(), image.as_os_str(), at.as_os_str()]);
        Below::Fuse { at }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        match self {
            Below::Loop(disk) => disk.path(),
            Below::Fuse { at } => at,
        }
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        if let Below::Fuse { at } = self {
            support::output("umount", &["-l".as_ref(), at.as_os_str()]);
        }
    }
}
