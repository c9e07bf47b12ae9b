//! Builds layers: plain directories with the markers of every writer.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat};

/// How a whiteout is spelt on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WhiteoutForm {
    /// Character device 0:0.
    Device,
    /// Empty file `.wh.NAME`.
    Aufs,
    /// Empty regular file with `trusted.overlay.whiteout`, in a directory whose `trusted.overlay.opaque` is `x`.
    TrustedXattr,
    /// The same in `user.overlay.`.
    UserXattr,
}

/// How an opaque directory is marked on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OpaqueForm {
    /// `trusted.overlay.opaque` = `y`.
    Trusted,
    /// `user.overlay.opaque` = `y`.
    User,
    /// `user.fuseoverlayfs.opaque` = `y`.
    FuseOverlayfs,
    /// Empty file `.wh..wh..opq`.
    Aufs,
}

impl OpaqueForm {
    /// The attribute that a mount of this process's believes.
    pub fn of_process() -> OpaqueForm {
        match super::Privilege::current() {
            super::Privilege::Root => OpaqueForm::Trusted,
            _ => OpaqueForm::User,
        }
    }
}

/// One layer being built. Every method makes the parents it needs and returns the layer, so that a tree reads as a
/// list. Paths are relative to the layer.
#[derive(Debug, Clone)]
pub struct Layer {
    root: PathBuf,
}

impl Layer {
    /// The layer at `root`, which is made.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        fs::create_dir_all(&root).unwrap();
        Layer { root }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The place of `path` in the layer's directory; its parents are made.
    pub fn place(&self, path: impl AsRef<Path>) -> PathBuf {
        let place = self.root.join(path);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        place
    }

    /// A directory, mode 755.
    pub fn dir(&self, path: impl AsRef<Path>) -> &Self {
        fs::create_dir_all(self.place(path)).unwrap();
        self
    }

    /// A regular file, mode 644.
    pub fn file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> &Self {
        let place = self.place(path);
        fs::write(&place, content).unwrap();
        fs::set_permissions(&place, PermissionsExt::from_mode(0o644)).unwrap();
        self
    }

    /// A regular file of `size` bytes that holds `pieces` (offset, bytes) and is a hole elsewhere.
    pub fn sparse(&self, path: impl AsRef<Path>, size: u64, pieces: &[(u64, &[u8])]) -> &Self {
        let file = File::create(self.place(path)).unwrap();
        file.set_len(size).unwrap();
        for (offset, bytes) in pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
        self
    }

    /// A symbolic link.
    pub fn symlink(&self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> &Self {
        symlink(target, self.place(path)).unwrap();
        self
    }

    /// Another name for what is at `existing`.
    pub fn hardlink(&self, path: impl AsRef<Path>, existing: impl AsRef<Path>) -> &Self {
        let old = self.root.join(existing);
        rustix::fs::linkat(CWD, &old, CWD, self.place(path), AtFlags::empty()).unwrap();
        self
    }

    /// A fifo, mode 644.
    pub fn fifo(&self, path: impl AsRef<Path>) -> &Self {
        self.node(path, FileType::Fifo, 0, 0)
    }

    /// A socket, mode 644.
    pub fn socket(&self, path: impl AsRef<Path>) -> &Self {
        self.node(path, FileType::Socket, 0, 0)
    }

    /// A device node, mode 644.
    pub fn node(&self, path: impl AsRef<Path>, kind: FileType, major: u32, minor: u32) -> &Self {
        let place = self.place(path);
        mknodat(CWD, &place, kind, Mode::from_raw_mode(0o644), makedev(major, minor)).unwrap();
        fs::set_permissions(&place, PermissionsExt::from_mode(0o644)).unwrap();
        self
    }

    /// Says that `path` is deleted here.
    pub fn whiteout(&self, path: impl AsRef<Path>, form: WhiteoutForm) -> &Self {
        let place = self.place(&path);
        match form {
            WhiteoutForm::Device => {
                mknodat(CWD, &place, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).unwrap();
            }
            WhiteoutForm::Aufs => {
                let mut name = b".wh.".to_vec();
                name.extend_from_slice(place.file_name().unwrap().as_bytes());
                File::create(place.with_file_name(OsStr::from_bytes(&name))).unwrap();
            }
            WhiteoutForm::TrustedXattr | WhiteoutForm::UserXattr => {
                let namespace = if form == WhiteoutForm::UserXattr { "user" } else { "trusted" };
                File::create(&place).unwrap();
                set_xattr(&place, &format!("{namespace}.overlay.whiteout"), b"");
                let parent = place.parent().unwrap();
                set_xattr(parent, &format!("{namespace}.overlay.opaque"), b"x");
            }
        }
        self
    }

    /// Says that nothing below this layer counts in the directory `path`, which is made.
    pub fn opaque(&self, path: impl AsRef<Path>, form: OpaqueForm) -> &Self {
        let place = self.place(&path);
        fs::create_dir_all(&place).unwrap();
        match form {
            OpaqueForm::Trusted => set_xattr(&place, "trusted.overlay.opaque", b"y"),
            OpaqueForm::User => set_xattr(&place, "user.overlay.opaque", b"y"),
            OpaqueForm::FuseOverlayfs => set_xattr(&place, "user.fuseoverlayfs.opaque", b"y"),
            OpaqueForm::Aufs => {
                File::create(place.join(".wh..wh..opq")).unwrap();
            }
        }
        self
    }

    /// Sets an extended attribute on what is at `path` (on a link itself, not its target).
    pub fn xattr(&self, path: impl AsRef<Path>, name: &str, value: impl AsRef<[u8]>) -> &Self {
        set_xattr(&self.root.join(path), name, value.as_ref());
        self
    }

    /// Sets the permission bits, with setuid, setgid and sticky.
    pub fn mode(&self, path: impl AsRef<Path>, mode: u32) -> &Self {
        fs::set_permissions(self.root.join(path), PermissionsExt::from_mode(mode)).unwrap();
        self
    }

    /// Sets the owner (of a link itself).
    pub fn owner(&self, path: impl AsRef<Path>, uid: u32, gid: u32) -> &Self {
        std::os::unix::fs::lchown(self.root.join(path), Some(uid), Some(gid)).unwrap();
        self
    }

    /// Sets both times (of a link itself). The last word on a directory: what is made in it later changes it again.
    pub fn mtime(&self, path: impl AsRef<Path>, seconds: i64, nanoseconds: i64) -> &Self {
        set_mtime(&self.root.join(path), seconds, nanoseconds);
        self
    }
}

fn set_xattr(place: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(place, name, value, XattrFlags::empty())
        .unwrap_or_else(|error| panic!("setxattr {name} on {}: {error}", place.display()));
}

/// Sets access and modification time of what is at `place` itself.
pub fn set_mtime(place: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, place, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}
