//! The filesystem that holds the disk: one file, on this project's own session and wire.
//!
//! A session is its process's: it takes over signals and ends with a panic. So this one runs in a process of its own, which
//! the tests start, and keeps the record in two files: what was asked, in entries of one size, and the data of writes.
//! Data come first, so that whoever counts the entries finds the data of each.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use fuse_abi::linux::fuse_attr;
use fuser::{Errno, FopenFlags, Generation, INodeNo};
use rustix::fs::FallocateFlags;
use unionmount::fuse::mount::open_device;
use unionmount::fuse::session::init::Wanted;
use unionmount::fuse::session::{Filesystem, Hooks, SessionOptions, serve};
use unionmount::fuse::wire::body::{Entry, Opening};
use unionmount::fuse::wire::operation::Init;
use unionmount::fuse::wire::{Operation, Reply, Request};

use support::{Scratch, run, wait_until};

/// One thing that was asked of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// To write.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// To forget: zeroes are read from then on.
    Discard {
        /// From where on.
        offset: u64,
        /// How much.
        length: u64,
    },
    /// To keep what was written before it.
    Flush,
}

/// The name of the disk in its filesystem.
const DISK: &str = "disk";
const ROOT: u64 = 1;
const FILE: u64 = 2;
/// How long the kernel may keep what it knows of the disk: nobody else changes it.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// Where the process below finds the image, the record and the mount point.
const PLACE: &str = "UNIONMOUNT_TEST_RECORDER";

/// The process that serves a disk and records.
pub struct Recorder {
    place: PathBuf,
    process: Child,
}

impl Recorder {
    /// Serves `image`, which is changed.
    pub fn start(scratch: &Scratch, image: &Path) -> Recorder {
        let place = scratch.dir("recorder");
        fs::create_dir_all(place.join("mnt")).unwrap();
        fs::write(place.join(ENTRIES), "").unwrap();
        fs::write(place.join(DATA), "").unwrap();
        let link = place.join(IMAGE);
        fs::remove_file(&link).ok();
        std::os::unix::fs::symlink(image, link).unwrap();
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "recorder::recording", "--ignored"])
            .env(PLACE, &place)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let recorder = Recorder { place, process };
        let ready = || recorder.disk().exists();
        assert!(wait_until(support::PATIENCE, ready), "the recorder doesn't serve");
        recorder
    }

    /// The disk.
    pub fn disk(&self) -> PathBuf {
        self.place.join("mnt").join(DISK)
    }

    /// How much was asked of it by now.
    pub fn position(&self) -> usize {
        fs::metadata(self.place.join(ENTRIES)).unwrap().len() as usize / ENTRY
    }

    /// Ends it, and returns where the record is.
    pub fn stop(mut self) -> PathBuf {
        run("umount", &[self.place.join("mnt")]);
        assert!(self.process.wait().unwrap().success());
        self.place.clone()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // After a failed test it may still serve.
        self.process.kill().unwrap_or_default();
        self.process.wait().ok();
    }
}

const IMAGE: &str = "image";
const ENTRIES: &str = "entries";
const DATA: &str = "data";

/// A kind, an offset and a length, 8 bytes each.
const ENTRY: usize = 24;
const WRITE: u64 = 0;
const DISCARD: u64 = 1;
const FLUSH: u64 = 2;

/// Reads a record.
pub fn load(place: &Path) -> Vec<Asked> {
    let entries = fs::read(place.join(ENTRIES)).unwrap();
    let data = File::open(place.join(DATA)).unwrap();
    let mut at = 0;
    let number = |bytes: &[u8], field: usize| {
        u64::from_le_bytes(bytes[field * 8..][..8].try_into().expect("8 bytes were taken"))
    };
    let asked = |entry: &[u8]| {
        let (offset, length) = (number(entry, 1), number(entry, 2));
        match number(entry, 0) {
            WRITE => {
                let mut bytes = vec![0; length as usize];
                data.read_exact_at(&mut bytes, at).unwrap();
                at += length;
                Asked::Write { offset, data: bytes }
            }
            DISCARD => Asked::Discard { offset, length },
            _ => Asked::Flush,
        }
    };
    entries.chunks_exact(ENTRY).map(asked).collect()
}

struct Files {
    disk: File,
    entries: File,
    data: File,
}

impl Files {
    fn note(&mut self, kind: u64, offset: u64, length: u64) -> io::Result<()> {
        let mut entry = [0; ENTRY];
        for (field, value) in entry.chunks_exact_mut(8).zip([kind, offset, length]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        self.entries.write_all(&entry)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.write_all_at(data, offset)?;
        self.data.write_all(data)?;
        self.note(WRITE, offset, data.len() as u64)
    }

    fn discard(&mut self, offset: u64, length: u64, mode: u32) -> io::Result<()> {
        let flags = FallocateFlags::from_bits_retain(mode);
        if !flags.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        rustix::fs::fallocate(&self.disk, flags, offset, length)?;
        self.note(DISCARD, offset, length)
    }
}

/// The filesystem.
struct OneFile {
    size: u64,
    files: Mutex<Files>,
}

impl OneFile {
    fn open(place: &Path) -> OneFile {
        let append = |name| File::options().append(true).open(place.join(name)).unwrap();
        let disk = File::options().read(true).write(true).open(place.join(IMAGE)).unwrap();
        let size = disk.metadata().unwrap().len();
        OneFile { size, files: Mutex::new(Files { disk, entries: append(ENTRIES), data: append(DATA) }) }
    }

    fn attributes(&self, ino: u64) -> fuse_attr {
        let (mode, size) = if ino == ROOT { (0o040_755, 0) } else { (0o100_600, self.size) };
        fuse_attr { ino, mode, size, blocks: size / 512, nlink: 1, blksize: 4096, ..Default::default() }
    }
}

impl Filesystem for OneFile {
    fn negotiate(&mut self, _: &Init) -> io::Result<Wanted> {
        Ok(Wanted::default())
    }

    fn serve(&self, request: &Request<'_>, reply: Reply) {
        let done = |done: io::Result<()>, reply: Reply| match done {
            Ok(()) => reply.ok(),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => reply.error(Errno::EOPNOTSUPP),
            Err(_) => reply.error(Errno::EIO),
        };
        let files = || self.files.lock().unwrap();
        match request.operation {
            Operation::Lookup { name } if name == DISK.as_bytes() => reply.entry(&Entry {
                node: INodeNo(FILE),
                generation: Generation(0),
                entry_ttl: FOREVER,
                attr_ttl: FOREVER,
                attr: self.attributes(FILE),
            }),
            Operation::Lookup { .. } => reply.error(Errno::ENOENT),
            Operation::Getattr => reply.attr(FOREVER, &self.attributes(request.header.node.0)),
            Operation::Open { .. } => {
                reply.opened(Opening { flags: FopenFlags::FOPEN_KEEP_CACHE, backing: None });
            }
            Operation::Read { offset, size, .. } => {
                let size = u64::from(size).min(self.size.saturating_sub(offset));
                reply.fill(size as u32, |room| {
                    let read = files().disk.read_exact_at(&mut room[..size as usize], offset);
                    read.map(|()| size as usize).map_err(|_| Errno::EIO)
                });
            }
            Operation::Write { offset, data, .. } => match files().write(offset, data) {
                Ok(()) => reply.written(data.len() as u32),
                Err(_) => reply.error(Errno::EIO),
            },
            Operation::Fsync { .. } => done(files().note(FLUSH, 0, 0), reply),
            Operation::Fallocate { offset, length, mode } => {
                done(files().discard(offset, length, mode), reply);
            }
            Operation::Flush | Operation::Release => reply.ok(),
            Operation::Forget { .. } | Operation::BatchForget(_) => reply.none(),
            _ => reply.error(Errno::ENOSYS),
        }
    }
}

/// Not a test: the process that records.
#[test]
#[ignore = "started by the other tests"]
fn recording() {
    let Some(place) = std::env::var_os(PLACE).map(PathBuf::from) else { return };
    let options = SessionOptions { threads: Some(2), ..SessionOptions::at(place.join("mnt")) };
    serve(OneFile::open(&place), open_device().unwrap(), &options, Hooks::default()).unwrap();
}
