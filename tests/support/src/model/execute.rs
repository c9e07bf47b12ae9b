//! The same operations by system calls, below a directory: a mount, or a plain directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use super::apply::UMASK;
use super::op::{Allocate, Op, Outcome, Path, Rename};
use crate::Snapshot;

/// Performs operations below `root`.
pub struct Executor {
    root: PathBuf,
    slots: BTreeMap<u8, File>,
}

impl Executor {
    /// Below `root`. Sets the umask of the process, to the same value always.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        rustix::process::umask(Mode::from_raw_mode(UMASK));
        Executor { root: root.into(), slots: BTreeMap::new() }
    }

    /// Closes all slots.
    pub fn close_all(&mut self) {
        self.slots.clear();
    }

    /// Performs an operation.
    pub fn run(&mut self, op: &Op) -> Outcome {
        match self.perform(op) {
            Ok(outcome) => outcome,
            Err(errno) => Outcome::Failed(errno),
        }
    }

    /// Where a path is.
    pub fn place(&self, path: &Path) -> PathBuf {
        if path.0.is_empty() { self.root.clone() } else { self.root.join(path.to_path_buf()) }
    }

    fn open(&self, path: &Path, flags: OFlags, mode: u32) -> Result<File, Errno> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(File::from(rustix::fs::openat(CWD, self.place(path), flags, Mode::from_raw_mode(mode))?))
    }

    /// The file that is open in a slot.
    pub fn slot(&self, slot: u8) -> &File {
        &self.slots[&slot]
    }

    fn perform(&mut self, op: &Op) -> Result<Outcome, Errno> {
        match op {
            Op::Create { path, mode, exclusive } => {
                let exclusive = if *exclusive { OFlags::EXCL } else { OFlags::empty() };
                self.open(path, OFlags::CREATE | OFlags::WRONLY | exclusive, *mode)?;
            }
            Op::Write { path, offset, fill, length, truncate, append } => {
                let mut flags = OFlags::WRONLY;
                flags.set(OFlags::TRUNC, *truncate);
                flags.set(OFlags::APPEND, *append);
                write(&self.open(path, flags, 0)?, *offset, *fill, *length)?;
            }
            Op::Truncate { path, length } => truncate(&self.place(path), *length)?,
            Op::Fallocate { path, how, offset, length } => {
                let file = self.open(path, OFlags::WRONLY, 0)?;
                let flags = match how {
                    Allocate::Extend => FallocateFlags::empty(),
                    Allocate::KeepSize => FallocateFlags::KEEP_SIZE,
                    Allocate::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    Allocate::Zero => FallocateFlags::ZERO_RANGE,
                };
                rustix::fs::fallocate(file, flags, *offset as u64, *length as u64)?;
            }
            Op::CopyRange { from, to, offset, length } => {
                let source = self.open(from, OFlags::RDONLY, 0)?;
                let target = self.open(to, OFlags::WRONLY, 0)?;
                copy_range(&source, &target, *offset as u64, *length)?;
            }
            Op::Mkdir { path, mode } => {
                rustix::fs::mkdirat(CWD, self.place(path), Mode::from_raw_mode(*mode))?
            }
            Op::Mkfifo { path, mode } => {
                rustix::fs::mknodat(CWD, self.place(path), FileType::Fifo, Mode::from_raw_mode(*mode), 0)?;
            }
            Op::Symlink { target, path } => {
                let target = target.0.join(&b'/');
                rustix::fs::symlinkat(OsStr::from_bytes(&target), CWD, self.place(path))?;
            }
            Op::Link { from, to } => {
                rustix::fs::linkat(CWD, self.place(from), CWD, self.place(to), AtFlags::empty())?;
            }
            Op::Rmdir { path } => rustix::fs::unlinkat(CWD, self.place(path), AtFlags::REMOVEDIR)?,
            Op::Unlink { path } => rustix::fs::unlinkat(CWD, self.place(path), AtFlags::empty())?,
            Op::Rename { from, to, how } => {
                let flags = match how {
                    Rename::Plain => RenameFlags::empty(),
                    Rename::NoReplace => RenameFlags::NOREPLACE,
                    Rename::Exchange => RenameFlags::EXCHANGE,
                };
                rustix::fs::renameat_with(CWD, self.place(from), CWD, self.place(to), flags)?;
            }
            Op::Chmod { path, mode } => {
                rustix::fs::chmodat(CWD, self.place(path), Mode::from_raw_mode(*mode), AtFlags::empty())?;
            }
            Op::Chown { path, uid, gid } => {
                let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(CWD, self.place(path), Some(uid), Some(gid), flags)?;
            }
            Op::SetXattr { path, name, value } => {
                rustix::fs::setxattr(self.place(path), *name, &[*value], XattrFlags::empty())?;
            }
            Op::RemoveXattr { path, name } => rustix::fs::removexattr(self.place(path), *name)?,
            Op::SetMtime { path, seconds } => {
                let time = Timespec { tv_sec: *seconds, tv_nsec: 7 };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(CWD, self.place(path), &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Op::Open { slot, path, write } => {
                let flags = if *write { OFlags::RDWR } else { OFlags::RDONLY };
                let file = self.open(path, flags, 0)?;
                self.slots.insert(*slot, file);
            }
            Op::WriteOpen { slot, offset, fill, length } => write(self.slot(*slot), *offset, *fill, *length)?,
            Op::TruncateOpen { slot, length } => rustix::fs::ftruncate(self.slot(*slot), *length as u64)?,
            Op::ChmodOpen { slot, mode } => rustix::fs::fchmod(self.slot(*slot), Mode::from_raw_mode(*mode))?,
            Op::ReadOpen { slot } => return read_all(self.slot(*slot)),
            Op::Close { slot } => {
                self.slots.remove(slot);
            }
        }
        Ok(Outcome::Done)
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).expect("a system call's error")
}

fn write(file: &File, offset: usize, fill: u8, length: usize) -> Result<(), Errno> {
    file.write_all_at(&vec![fill; length], offset as u64).map_err(|error| errno(&error))
}

/// truncate(2): by path, not by an open file.
fn truncate(path: &std::path::Path, length: usize) -> Result<(), Errno> {
    crate::raw::truncate(path, length as i64).map_err(|error| errno(&error))
}

fn copy_range(source: &File, target: &File, offset: u64, length: usize) -> Result<(), Errno> {
    let (mut from, mut to) = (0, offset);
    let mut left = length;
    while left > 0 {
        let copied = rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), left)?;
        if copied == 0 {
            break;
        }
        left -= copied;
    }
    Ok(())
}

fn read_all(file: &File) -> Result<Outcome, Errno> {
    let metadata = file.metadata().map_err(|error| errno(&error))?;
    let mut content = vec![0; metadata.size() as usize];
    file.read_exact_at(&mut content, 0).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(Outcome::Open { content, mode: metadata.mode() & 0o7777, nlink: metadata.nlink() })
}

/// Takes a checked snapshot of `root`, and asserts that no name of the alphabet resolves that is not listed.
pub fn observe(root: &std::path::Path, alphabet: &[&[u8]]) -> Snapshot {
    let snapshot = Snapshot::take_checked(root);
    assert_absent(root, alphabet, &snapshot);
    snapshot
}

/// Asserts that no name of the alphabet resolves that the snapshot has not.
pub fn assert_absent(root: &std::path::Path, alphabet: &[&[u8]], snapshot: &Snapshot) {
    for (path, entry) in &snapshot.entries {
        if entry.kind != crate::Kind::Directory {
            continue;
        }
        for name in alphabet {
            let child = std::path::Path::new(path).join(OsStr::from_bytes(name));
            if snapshot.entries.contains_key(child.as_os_str()) {
                continue;
            }
            let place = root.join(&child);
            match place.symlink_metadata() {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                other => panic!("{} is not listed, but stat says {other:?}", place.display()),
            }
        }
    }
}
