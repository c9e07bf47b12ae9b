//! A disk that remembers in which order it was written and flushed, and what it may hold after a power failure.
//!
//! A block device promises that what was written before a flush is there after the flush has ended, and nothing of what
//! was written since: of that any part may be there, in any order, a sector whole or not at all. So the disk is a file of a small FUSE filesystem ([`recorder`](crate::recorder)) below a loop device: what the loop device writes
//! and syncs is what the filesystem above sent to its device, and is recorded before it is answered.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FallocateFlags;

use crate::recorder::{Asked, Recorder, load};
use support::{Scratch, run};

/// The filesystem's first block.
const SUPERBLOCK: u64 = 4096;

/// All that was asked, in order.
#[derive(Debug, Default)]
pub struct Record(Vec<Asked>);

/// What becomes of writes that no flush followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unflushed {
    /// All are lost.
    Lost,
    /// All are there.
    Kept,
    /// Each is there, is lost or is torn, by chance of this seed.
    Any(u64),
}

/// The disk, attached as a loop device.
pub struct Disk {
    recorder: Option<Recorder>,
    device: PathBuf,
}

impl Disk {
    /// A disk with the content of `image`, which is changed with it. Recording begins now.
    pub fn new(scratch: &Scratch, image: &Path) -> Disk {
        let recorder = Recorder::start(scratch, image);
        let device =
            run("losetup", &[OsStr::new("--find"), OsStr::new("--show"), recorder.disk().as_os_str()]);
        Disk { recorder: Some(recorder), device: device.trim().into() }
    }

    /// The block device.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// How much was asked of it by now.
    pub fn position(&self) -> usize {
        self.recorder.as_ref().unwrap().position()
    }

    /// Detaches it, and returns the record.
    pub fn into_record(mut self) -> Record {
        let kept = self.detach().unwrap();
        Record(load(&kept))
    }

    fn detach(&mut self) -> Option<PathBuf> {
        let recorder = self.recorder.take()?;
        run("losetup", &[OsStr::new("--detach"), self.device.as_os_str()]);
        // A loop device goes when its last user has gone; only then is the file free.
        let free = support::wait_until(Duration::from_secs(20), || {
            let name = self.device.file_name().unwrap();
            !Path::new("/sys/block").join(name).join("loop/backing_file").exists()
        });
        assert!(free, "{} is still in use", self.device.display());
        Some(recorder.stop())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.detach();
    }
}

impl Record {
    /// How much was asked.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The position behind the last flush that ended by `position`; all that was written before is on the disk.
    fn flushed(&self, position: usize) -> usize {
        self.0[..position].iter().rposition(|request| matches!(request, Asked::Flush)).map_or(0, |at| at + 1)
    }

    fn apply(&self, range: std::ops::Range<usize>, image: &File, unflushed: Unflushed, sector: usize) {
        let mut random = match unflushed {
            Unflushed::Any(seed) => Some(fastrand::Rng::with_seed(seed)),
            Unflushed::Kept | Unflushed::Lost => None,
        };
        // Some failures lose nearly all, some nearly nothing.
        let kept = random.as_mut().map_or(8, |random| random.u64(..9));
        for request in &self.0[range] {
            let keep = random.as_mut().is_none_or(|random| random.u64(..8) < kept);
            match request {
                Asked::Flush => {}
                Asked::Discard { offset, length } => {
                    if keep {
                        punch(image, *offset, *length);
                    }
                }
                Asked::Write { offset, data } => {
                    let torn = random.as_mut().is_some_and(|random| random.u64(..8) == 0);
                    if keep && torn {
                        // Nothing can stand in for a superblock that is torn: no journal is found without it.
                        let sector =
                            if *offset < SUPERBLOCK { sector.max(SUPERBLOCK as usize) } else { sector };
                        for (index, bytes) in data.chunks(sector).enumerate() {
                            if random.as_mut().is_some_and(|random| random.bool()) {
                                image.write_all_at(bytes, offset + (index * sector) as u64).unwrap();
                            }
                        }
                    } else if keep {
                        image.write_all_at(data, *offset).unwrap();
                    }
                }
            }
        }
    }
}

fn punch(image: &File, offset: u64, length: u64) {
    rustix::fs::fallocate(image, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)
        .unwrap();
}

/// The disk as it may be after a power failure, at positions that only grow.
pub struct Failures<'a> {
    record: &'a Record,
    /// The disk with all that was flushed at `position`.
    flushed: PathBuf,
    position: usize,
    failed: PathBuf,
    sector: usize,
}

impl<'a> Failures<'a> {
    /// `image`: the disk when the record began. `sector`: what the disk writes whole or not at all.
    pub fn new(scratch: &Scratch, image: &Path, record: &'a Record, sector: usize) -> Failures<'a> {
        let flushed = scratch.path().join("flushed.img");
        copy_sparse(image, &flushed);
        Failures { record, flushed, position: 0, failed: scratch.path().join("failed.img"), sector }
    }

    /// Makes the disk as it may be when the power goes at `position`, and returns its image.
    pub fn at(&mut self, position: usize, unflushed: Unflushed) -> &Path {
        let flushed = self.record.flushed(position);
        assert!(flushed >= self.position, "failures must be asked for in their order");
        let image = File::options().write(true).open(&self.flushed).unwrap();
        self.record.apply(self.position..flushed, &image, Unflushed::Kept, self.sector);
        self.position = flushed;
        // A new file: mount(8) takes the loop device of one that it knows, with what that has in its cache.
        fs::remove_file(&self.failed).ok();
        copy_sparse(&self.flushed, &self.failed);
        if unflushed != Unflushed::Lost {
            let image = File::options().write(true).open(&self.failed).unwrap();
            self.record.apply(flushed..position, &image, unflushed, self.sector);
        }
        &self.failed
    }
}

/// Copies a file with its holes.
pub fn copy_sparse(from: &Path, to: &Path) {
    use rustix::fs::{SeekFrom, seek};
    let source = File::open(from).unwrap();
    let target = File::create(to).unwrap();
    let size = source.metadata().unwrap().len();
    target.set_len(size).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut end = 0;
    while let Ok(start) = seek(&source, SeekFrom::Data(end)) {
        end = seek(&source, SeekFrom::Hole(start)).unwrap();
        let mut at = start;
        while at < end {
            let length = buffer.len().min((end - at) as usize);
            source.read_exact_at(&mut buffer[..length], at).unwrap();
            target.write_all_at(&buffer[..length], at).unwrap();
            at += length as u64;
        }
    }
}

/// Makes an empty image of `size` bytes with a filesystem.
pub fn make_image(path: &Path, filesystem: &str, size: u64) {
    File::create(path).unwrap().set_len(size).unwrap();
    let words: &[&str] = match filesystem {
        "ext4" => &["-Fq", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-b", "4096"],
        _ => &["-fq"],
    };
    let mut arguments: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
    arguments.push(path.as_os_str());
    run(format!("mkfs.{filesystem}"), &arguments);
}

/// An image, mounted; it is unmounted when this is dropped.
pub struct Mounted {
    path: PathBuf,
}

impl Mounted {
    /// Mounts a device, or an image by a loop device of its own.
    pub fn new(what: &Path, at: PathBuf) -> Mounted {
        fs::create_dir_all(&at).unwrap();
        let options = if what.starts_with("/dev") { "noatime" } else { "noatime,loop" };
        run("mount", &[OsStr::new("-o"), OsStr::new(options), what.as_os_str(), at.as_os_str()]);
        Mounted { path: at }
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all that it holds back.
    pub fn sync(&self) {
        rustix::fs::syncfs(File::open(&self.path).unwrap()).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A daemon that has just been told to end may have it open for another instant.
        let unmounted = || support::output("umount", &[&self.path]).status.success();
        if !support::wait_until(Duration::from_secs(10), unmounted) && !std::thread::panicking() {
            run("umount", &[&self.path]);
        }
    }
}
