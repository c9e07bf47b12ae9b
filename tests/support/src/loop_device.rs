//! Loop devices: block devices over files, and filesystems on them.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::Scratch;
use super::mount::lazy_unmount;
use super::process::{run, wait_until};
use super::raw::loops;

/// A loop device over a file, until it is dropped. Needs root.
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches a free one to `file`.
    pub fn attach(file: &Path) -> LoopDevice {
        let backing = File::options().read(true).write(true).open(file).unwrap();
        let control = File::options().read(true).write(true).open("/dev/loop-control").unwrap();
        loop {
            let number = loops::free(&control).unwrap();
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = File::options().read(true).write(true).open(&path).unwrap();
            match loops::attach(&device, &backing) {
                Ok(()) => return LoopDevice { path },
                // Another process was faster.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    }

    /// The block device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until no filesystem is mounted on it, wherever, and lets the kernel forget what it has of it in memory:
    /// its file can be changed then.
    pub fn wait_until_unused(&self) {
        let mut open = File::options();
        open.read(true).custom_flags(libc::O_EXCL);
        let forgotten = || open.open(&self.path).is_ok_and(|device| loops::forget(&device).is_ok());
        assert!(wait_until(crate::PATIENCE, forgotten), "{} is still in use", self.path.display());
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = File::open(&self.path).and_then(|device| loops::detach(&device));
        // It goes when its last user has gone; only then is the file free.
        let name = self.path.file_name().unwrap_or_default();
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        let gone = detached.is_ok() && wait_until(crate::PATIENCE, || !backing.exists());
        let panicking = std::thread::panicking();
        assert!(gone || panicking, "cannot detach {}: {detached:?}", self.path.display());
    }
}

/// A small filesystem in a file, mounted on a loop device. Needs root.
pub struct LoopFilesystem {
    path: PathBuf,
}

impl LoopFilesystem {
    /// Makes and mounts a filesystem of `mkfs` (`ext4`, `xfs`, `btrfs`) with `size` bytes; `scratch` takes its image
    /// and its mount point.
    pub fn new(scratch: &Scratch, name: &str, mkfs: &str, size: u64) -> Self {
        let image = scratch.path().join(format!("{name}.img"));
        File::create(&image).unwrap().set_len(size).unwrap();
        let quiet = if mkfs == "ext4" { "-Fq" } else { "-fq" };
        let make = format!("mkfs.{mkfs}");
        run(&make, &[OsStr::new(quiet), image.as_os_str()]);
        Self::again(scratch, name)
    }

    /// Mounts the image that [`LoopFilesystem::new`] made, after it was dropped.
    pub fn again(scratch: &Scratch, name: &str) -> Self {
        let image = scratch.path().join(format!("{name}.img"));
        let path = scratch.dir(name);
        run("mount", &[OsStr::new("-o"), OsStr::new("loop"), image.as_os_str(), path.as_os_str()]);
        LoopFilesystem { path }
    }

    /// Makes it fail as after an error of the disk: nothing can be written any more. For ext4.
    pub fn abort(&self) {
        run("mount", &["-o", "remount,abort", self.path.to_str().unwrap()]);
    }

    /// A tmpfs of `size` bytes.
    pub fn tmpfs(scratch: &Scratch, name: &str, size: u64) -> Self {
        let path = scratch.dir(name);
        let options = format!("size={size}");
        let words = ["-t", "tmpfs", "-o", &options, "tmpfs", path.to_str().unwrap()];
        run("mount", &words);
        LoopFilesystem { path }
    }

    /// What mount(8) mounts at `target` by those words.
    pub fn at(target: &Path, words: &[&str]) -> Self {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).chain([target.as_os_str()]).collect();
        run("mount", &words);
        LoopFilesystem { path: target.to_owned() }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Remounts it with other options (`ro`).
    pub fn remount(&self, options: &str) {
        run("mount", &["-o", &format!("remount,{options}"), self.path.to_str().unwrap()]);
    }
}

impl Drop for LoopFilesystem {
    fn drop(&mut self) {
        lazy_unmount(&self.path);
    }
}
