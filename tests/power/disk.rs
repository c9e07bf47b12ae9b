//! A disk that remembers in which order it was written and flushed, and what it may hold after a power failure.
//!
//! The disk is a file of a small FUSE filesystem ([`recorder`](crate::recorder)) below a loop device: what the loop device writes
//! and syncs is what the filesystem above sent to its device, and is recorded before it is answered.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags};

use crate::record::{Record, extents};
use crate::recorder::{Recorder, load};
use support::{LoopDevice, Scratch, run};

/// The disk, attached as a loop device.
pub struct Disk {
    recorder: Option<(Recorder, LoopDevice)>,
}

impl Disk {
    /// A disk with the content of `image`, which is changed with it. Recording begins now.
    pub fn new(scratch: &Scratch, image: &Path) -> Disk {
        let recorder = Recorder::start(scratch, image);
        let device = LoopDevice::attach(&recorder.disk());
        Disk { recorder: Some((recorder, device)) }
    }

    /// The block device.
    pub fn device(&self) -> &Path {
        self.recorder.as_ref().unwrap().1.path()
    }

    /// How much was asked of it by now.
    pub fn position(&self) -> usize {
        self.recorder.as_ref().unwrap().0.position()
    }

    /// Detaches it, and returns the record.
    pub fn into_record(mut self) -> Record {
        let kept = self.detach().unwrap();
        Record::new(load(&kept))
    }

    fn detach(&mut self) -> Option<PathBuf> {
        let (recorder, device) = self.recorder.take()?;
        drop(device);
        Some(recorder.stop())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Copies a file, with holes where it has none but zeroes: mkfs.xfs writes a log of them.
pub fn copy_sparse(from: &Path, to: &Path) {
    let zeroes = vec![0; 1 << 16];
    let source = File::open(from).unwrap();
    let target = File::create(to).unwrap();
    target.set_len(source.metadata().unwrap().len()).unwrap();
    let mut buffer = zeroes.clone();
    for (from, to) in extents(&source) {
        for at in (from..to).step_by(buffer.len()) {
            let data = &mut buffer[..(to - at).min(1 << 16)];
            source.read_exact_at(data, at as u64).unwrap();
            if *data != zeroes[..data.len()] {
                target.write_all_at(data, at as u64).unwrap();
            }
        }
    }
}

/// Makes an empty image of `size` bytes with a filesystem. `more`: further words of its mkfs.
pub fn make_image(path: &Path, filesystem: &str, size: u64, more: &[&str]) {
    File::create(path).unwrap().set_len(size).unwrap();
    let words: &[&str] = match filesystem {
        "ext4" => &["-Fq", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-b", "4096"],
        _ => &["-fq"],
    };
    let mut arguments: Vec<&OsStr> = words.iter().chain(more).map(OsStr::new).collect();
    arguments.push(path.as_os_str());
    run(format!("mkfs.{filesystem}"), &arguments);
}

/// A filesystem, mounted; it is unmounted when this is dropped.
pub struct Mounted {
    path: PathBuf,
    /// Detached after that.
    _device: Option<LoopDevice>,
}

impl Mounted {
    /// Mounts a device.
    pub fn new(device: &Path, filesystem: &str, at: PathBuf) -> Mounted {
        fs::create_dir_all(&at).unwrap();
        rustix::mount::mount(device, &at, filesystem, MountFlags::NOATIME, None)
            .unwrap_or_else(|error| panic!("cannot mount {} as {filesystem}: {error}", device.display()));
        Mounted { path: at, _device: None }
    }

    /// Mounts an image by a loop device of its own.
    pub fn image(image: &Path, filesystem: &str, at: PathBuf) -> Mounted {
        let device = LoopDevice::attach(image);
        let mut mounted = Mounted::new(device.path(), filesystem, at);
        mounted._device = Some(device);
        mounted
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all that it holds back.
    pub fn sync(&self) {
        rustix::fs::syncfs(File::open(&self.path).unwrap()).unwrap();
    }

    /// Empties its journal: after a failure nothing is read from it that was done before.
    pub fn empty_journal(&self) {
        support::raw::freeze_and_thaw(&File::open(&self.path).unwrap()).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A daemon that has just been told to end may have it open for another instant.
        let mut said = Ok(());
        let unmounted = support::wait_until(Duration::from_secs(10), || {
            said = rustix::mount::unmount(&self.path, UnmountFlags::empty());
            said.is_ok()
        });
        let panicking = std::thread::panicking();
        assert!(unmounted || panicking, "cannot unmount {}: {said:?}", self.path.display());
    }
}
