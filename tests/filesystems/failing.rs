//! A filesystem that shows a directory and fails when it is told to: the request number N of a kind, counted from then on.
//!
//! It stands on this project's own session and wire, in a process of its own, since a session is its process's. It is told by
//! an attribute of its root, and counts by the same.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fuse_abi::linux::{fuse_attr, fuse_kstatfs};
use fuser::{FopenFlags, Generation, INodeNo};
use rustix::fs::{AtFlags, Dir, FallocateFlags, Gid, Mode, OFlags, RenameFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;
use support::{Scratch, run, wait_until};
use unionmount::fuse::mount::open_device;
use unionmount::fuse::session::init::Wanted;
use unionmount::fuse::session::{Filesystem, Hooks, SessionOptions, serve};
use unionmount::fuse::wire::body::{Entry, Opening};
use unionmount::fuse::wire::listing::Name;
use unionmount::fuse::wire::operation::{Init, Setattr};
use unionmount::fuse::wire::{Operation, Reply, Request};
use unionmount::sys::object::SetTime;

/// The attribute of the root by which it is told `KIND N ERRNO`, or to fail nothing, and by which it says what it was asked.
const PLAN: &str = "user.failing";
/// Where the process below finds its directory and its mount point.
const PLACE: &str = "UNIONMOUNT_TEST_FAILING";

/// A mounted one.
pub struct Failing {
    point: PathBuf,
    process: Child,
}

impl Failing {
    /// Shows the directory `shown` of a scratch directory.
    pub fn start(scratch: &Scratch) -> Failing {
        scratch.dir("shown");
        let point = scratch.dir("failing");
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "failing::serving", "--ignored"])
            .env(PLACE, scratch.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let failing = Failing { point, process };
        let device = |path: &Path| std::fs::metadata(path).map(|stat| stat.dev()).unwrap_or_default();
        let ready = || device(failing.path()) != device(scratch.path());
        assert!(wait_until(support::PATIENCE, ready), "the failing filesystem doesn't serve");
        failing
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point
    }

    fn plan(&self, text: &str) -> rustix::io::Result<()> {
        rustix::fs::setxattr(&self.point, PLAN, text.as_bytes(), XattrFlags::empty())
    }

    /// From now on the request number `nth` of a kind fails, and no other.
    pub fn fail(&self, kind: &str, nth: usize, errno: Errno) {
        self.plan(&format!("{kind} {nth} {}", errno.raw_os_error())).unwrap();
    }

    /// From now on nothing fails, and all is counted.
    pub fn count(&self) {
        self.plan("").unwrap();
    }

    /// How many requests of each kind there were since it was told something. `None`: the one that was to fail has been made for
    /// this.
    pub fn counts(&self) -> Option<BTreeMap<String, usize>> {
        let mut room = vec![0; 4096];
        let length = rustix::fs::getxattr(&self.point, PLAN, &mut room[..]).ok()?;
        let text = String::from_utf8(room[..length].to_vec()).unwrap();
        let pair = |line: &str| {
            let (kind, count) = line.split_once(' ').unwrap();
            (kind.to_owned(), count.parse().unwrap())
        };
        Some(text.lines().map(pair).collect())
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            run("umount", &[&self.point]);
        }
        self.process.kill().unwrap_or_default();
        self.process.wait().ok();
    }
}

/// What it was told, and what it was asked since.
#[derive(Default)]
struct Plan {
    fails: Option<(String, usize, Errno)>,
    counts: BTreeMap<&'static str, usize>,
}

/// The filesystem.
struct Shown {
    nodes: Mutex<HashMap<u64, Arc<OwnedFd>>>,
    plan: Mutex<Plan>,
}

const ROOT: u64 = 1;

/// The words for what can fail; what takes nothing or can't be refused has none.
fn kind_of(operation: &Operation<'_>) -> Option<&'static str> {
    Some(match operation {
        Operation::Lookup { .. } => "lookup",
        Operation::Getattr => "getattr",
        Operation::Setattr(_) => "setattr",
        Operation::Readlink => "readlink",
        Operation::Symlink { .. } => "symlink",
        Operation::Mknod { .. } => "mknod",
        Operation::Mkdir { .. } => "mkdir",
        Operation::Unlink { .. } => "unlink",
        Operation::Rmdir { .. } => "rmdir",
        Operation::Rename { .. } => "rename",
        Operation::Link { .. } => "link",
        Operation::Tmpfile { .. } => "tmpfile",
        Operation::Open { .. } => "open",
        Operation::Opendir => "opendir",
        Operation::Read { .. } => "read",
        Operation::Write { .. } => "write",
        Operation::Fsync { .. } | Operation::Fsyncdir { .. } => "fsync",
        Operation::Readdir { .. } => "readdir",
        Operation::Statfs => "statfs",
        Operation::Getxattr { .. } => "getxattr",
        Operation::Listxattr { .. } => "listxattr",
        Operation::Setxattr { .. } => "setxattr",
        Operation::Removexattr { .. } => "removexattr",
        Operation::Fallocate { .. } => "fallocate",
        _ => return None,
    })
}

impl Shown {
    fn new(root: &Path) -> Shown {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty()).unwrap();
        Shown { nodes: Mutex::new(HashMap::from([(ROOT, Arc::new(root))])), plan: Mutex::default() }
    }

    fn node(&self, node: INodeNo) -> Result<Arc<OwnedFd>, Errno> {
        self.nodes.lock().unwrap().get(&node.0).cloned().ok_or(Errno::STALE)
    }

    /// A name by which system calls reach a node itself, a symbolic link as well.
    fn path(&self, node: INodeNo) -> Result<CString, Errno> {
        let fd = self.node(node)?;
        Ok(CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap())
    }

    fn open(&self, node: INodeNo, flags: OFlags) -> Result<File, Errno> {
        rustix::fs::open(self.path(node)?.as_c_str(), flags | OFlags::CLOEXEC, Mode::empty()).map(File::from)
    }

    fn entry(&self, parent: INodeNo, name: &[u8]) -> Result<Entry, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(self.node(parent)?, OsStr::from_bytes(name), flags, Mode::empty())?;
        self.entry_of(fd)
    }

    fn entry_of(&self, fd: OwnedFd) -> Result<Entry, Errno> {
        let stat = rustix::fs::fstat(&fd)?;
        // It is held for good, so that no other object gets its number.
        self.nodes.lock().unwrap().entry(stat.st_ino).or_insert_with(|| Arc::new(fd));
        Ok(Entry {
            node: INodeNo(stat.st_ino),
            generation: Generation(0),
            entry_ttl: Duration::ZERO,
            attr_ttl: Duration::ZERO,
            attr: attributes(&stat),
        })
    }

    /// Whether this request is the one that fails.
    fn fails(&self, operation: &Operation<'_>) -> Option<Errno> {
        if matches!(operation, Operation::Getxattr { name, .. } | Operation::Setxattr { name, .. } if *name == PLAN.as_bytes())
        {
            return None;
        }
        let kind = kind_of(operation)?;
        let mut plan = self.plan.lock().unwrap();
        let count = plan.counts.entry(kind).or_default();
        *count += 1;
        let count = *count;
        plan.fails.as_ref().filter(|(of, nth, _)| of == kind && *nth == count).map(|(.., errno)| *errno)
    }

    fn told(&self, value: &[u8]) {
        let text = String::from_utf8_lossy(value).into_owned();
        let mut words = text.split(' ');
        let fails = words.next().filter(|kind| !kind.is_empty()).map(|kind| {
            let mut number = || words.next().unwrap().parse::<i32>().unwrap();
            (kind.to_owned(), number() as usize, Errno::from_raw_os_error(number()))
        });
        *self.plan.lock().unwrap() = Plan { fails, counts: BTreeMap::new() };
    }

    fn set(&self, node: INodeNo, set: &Setattr) -> Result<(), Errno> {
        let fd = self.node(node)?;
        let path = self.path(node)?;
        if set.uid.is_some() || set.gid.is_some() {
            let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
            rustix::fs::chownat(&fd, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(mode) = set.mode {
            rustix::fs::chmod(path.as_c_str(), Mode::from_raw_mode(mode & 0o7777))?;
        }
        if let Some(size) = set.size {
            rustix::fs::ftruncate(self.open(node, OFlags::WRONLY)?, size)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let time = |time: Option<SetTime>| match time {
                None => rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
                Some(SetTime::Now) => rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
                Some(SetTime::At(at)) => rustix::fs::Timespec { tv_sec: at.sec, tv_nsec: at.nsec.into() },
            };
            let (last_access, last_modification) = (time(set.atime), time(set.mtime));
            let times = rustix::fs::Timestamps { last_access, last_modification };
            rustix::fs::utimensat(&fd, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(())
    }

    fn list(&self, node: INodeNo, offset: u64, size: u32, reply: Reply) {
        let names = || -> Result<Vec<(Vec<u8>, u64, u32)>, Errno> {
            let mut names = Vec::new();
            let mut dir = Dir::read_from(self.open(node, OFlags::RDONLY | OFlags::DIRECTORY)?)?;
            while let Some(entry) = dir.read() {
                let entry = entry?;
                let kind = entry.file_type().as_raw_mode();
                names.push((entry.file_name().to_bytes().to_vec(), entry.ino(), kind));
            }
            Ok(names)
        };
        match names() {
            Err(errno) => reply.error(fuser::Errno::from_i32(errno.raw_os_error())),
            Ok(names) => reply.listing(size, |listing| {
                for (index, (name, ino, kind)) in names.iter().enumerate().skip(offset as usize) {
                    let next = index as u64 + 1;
                    if !listing.add(&Name { ino: INodeNo(*ino), next, kind: *kind, name }) {
                        break;
                    }
                }
                Ok(())
            }),
        }
    }

    /// What changes names or makes objects.
    fn change(&self, node: INodeNo, operation: &Operation<'_>) -> Result<Option<Entry>, Errno> {
        let name = |name: &[u8]| CString::new(name).unwrap();
        let dir = self.node(node)?;
        // As the one who makes it says, who is the kernel.
        let made = |made: &[u8], creator: unionmount::fuse::wire::operation::Creator| {
            let (uid, gid) = (Uid::from_raw(creator.uid), Gid::from_raw(creator.gid));
            rustix::fs::chownat(
                &dir,
                name(made).as_c_str(),
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
            self.entry(node, made).map(Some)
        };
        match *operation {
            Operation::Symlink { name: new, target, creator } => {
                rustix::fs::symlinkat(name(target).as_c_str(), &dir, name(new).as_c_str())?;
                made(new, creator)
            }
            Operation::Mknod { name: new, mode, rdev, creator, .. } => {
                let kind = rustix::fs::FileType::from_raw_mode(mode);
                let device = rustix::fs::makedev(rdev >> 8 & 0xfff, rdev & 0xff);
                let mode = Mode::from_raw_mode(mode & 0o7777);
                rustix::fs::mknodat(&dir, name(new).as_c_str(), kind, mode, device)?;
                made(new, creator)
            }
            Operation::Mkdir { name: new, mode, creator, .. } => {
                rustix::fs::mkdirat(&dir, name(new).as_c_str(), Mode::from_raw_mode(mode & 0o7777))?;
                made(new, creator)
            }
            Operation::Unlink { name: old } => {
                rustix::fs::unlinkat(&dir, name(old).as_c_str(), AtFlags::empty())?;
                Ok(None)
            }
            Operation::Rmdir { name: old } => {
                rustix::fs::unlinkat(&dir, name(old).as_c_str(), AtFlags::REMOVEDIR)?;
                Ok(None)
            }
            Operation::Rename { name: old, to, to_name, flags } => {
                let flags = RenameFlags::from_bits_retain(flags.bits());
                let to = self.node(to)?;
                rustix::fs::renameat_with(&dir, name(old).as_c_str(), to, name(to_name).as_c_str(), flags)?;
                Ok(None)
            }
            Operation::Link { node: linked, name: new } => {
                let from = self.path(linked)?;
                let follow = AtFlags::SYMLINK_FOLLOW;
                rustix::fs::linkat(rustix::fs::CWD, from.as_c_str(), &dir, name(new).as_c_str(), follow)?;
                self.entry(node, new).map(Some)
            }
            _ => Err(Errno::NOSYS),
        }
    }

    fn attribute(&self, node: INodeNo, operation: &Operation<'_>) -> Result<(Vec<u8>, u32), Errno> {
        let path = self.path(node)?;
        let mut room = vec![0; 70_000];
        let name = |name: &[u8]| CString::new(name).unwrap();
        match *operation {
            Operation::Getxattr { name: of, size } => {
                let length = rustix::fs::getxattr(path.as_c_str(), name(of).as_c_str(), &mut room[..])?;
                Ok((room[..length].to_vec(), size))
            }
            Operation::Listxattr { size } => {
                let length = rustix::fs::listxattr(path.as_c_str(), &mut room[..])?;
                Ok((room[..length].to_vec(), size))
            }
            Operation::Setxattr { name: of, value, flags, .. } => {
                let flags = XattrFlags::from_bits_retain(flags);
                rustix::fs::setxattr(path.as_c_str(), name(of).as_c_str(), value, flags)?;
                Ok((Vec::new(), 0))
            }
            Operation::Removexattr { name: of } => {
                rustix::fs::removexattr(path.as_c_str(), name(of).as_c_str())?;
                Ok((Vec::new(), 0))
            }
            _ => Err(Errno::NOSYS),
        }
    }

    fn unnamed(&self, parent: INodeNo, mode: u32, reply: Reply) {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let made = self.path(parent).and_then(|path| {
            let file = rustix::fs::open(path.as_c_str(), flags, Mode::from_raw_mode(mode & 0o7777))?;
            self.entry_of(file)
        });
        match made {
            Ok(entry) => reply.created(&entry, Opening { flags: FopenFlags::empty(), backing: None }),
            Err(errno) => reply.error(fuser::Errno::from_i32(errno.raw_os_error())),
        }
    }
}

fn attributes(stat: &Stat) -> fuse_attr {
    fuse_attr {
        ino: stat.st_ino,
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: stat.st_atime as u64,
        mtime: stat.st_mtime as u64,
        ctime: stat.st_ctime as u64,
        atimensec: stat.st_atime_nsec as u32,
        mtimensec: stat.st_mtime_nsec as u32,
        ctimensec: stat.st_ctime_nsec as u32,
        mode: stat.st_mode,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: (rustix::fs::major(stat.st_rdev) << 8) | rustix::fs::minor(stat.st_rdev),
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Shown {
    fn negotiate(&mut self, _: &Init) -> io::Result<Wanted> {
        Ok(Wanted::default())
    }

    fn serve(&self, request: &Request<'_>, reply: Reply) {
        let node = request.header.node;
        let operation = &request.operation;
        let error = |errno: Errno| fuser::Errno::from_i32(errno.raw_os_error());
        if let Some(errno) = self.fails(operation) {
            return reply.error(error(errno));
        }
        let done = |done: Result<(), Errno>, reply: Reply| match done {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(error(errno)),
        };
        match *operation {
            Operation::Lookup { name } => match self.entry(node, name) {
                Ok(entry) => reply.entry(&entry),
                Err(errno) => reply.error(error(errno)),
            },
            Operation::Getattr => match self.node(node).and_then(|fd| rustix::fs::fstat(fd.as_fd())) {
                Ok(stat) => reply.attr(Duration::ZERO, &attributes(&stat)),
                Err(errno) => reply.error(error(errno)),
            },
            Operation::Setattr(ref set) => {
                let set = self.set(node, set);
                match set.and_then(|()| rustix::fs::fstat(self.node(node)?.as_fd())) {
                    Ok(stat) => reply.attr(Duration::ZERO, &attributes(&stat)),
                    Err(errno) => reply.error(error(errno)),
                }
            }
            Operation::Readlink => {
                match self.node(node).and_then(|fd| rustix::fs::readlinkat(fd, c"", Vec::new())) {
                    Ok(target) => reply.data(target.as_bytes()),
                    Err(errno) => reply.error(error(errno)),
                }
            }
            Operation::Tmpfile { mode, .. } => self.unnamed(node, mode, reply),
            Operation::Open { .. } | Operation::Opendir => {
                reply.opened(Opening { flags: FopenFlags::empty(), backing: None });
            }
            Operation::Read { offset, size, .. } => match self.open(node, OFlags::RDONLY) {
                Ok(file) => reply.fill(size, |room| {
                    file.read_at(&mut room[..size as usize], offset).map_err(|_| fuser::Errno::EIO)
                }),
                Err(errno) => reply.error(error(errno)),
            },
            Operation::Write { offset, data, .. } => {
                let written = self.open(node, OFlags::WRONLY).and_then(|file| {
                    let written = file.write_all_at(data, offset);
                    written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
                });
                match written {
                    Ok(()) => reply.written(data.len() as u32),
                    Err(errno) => reply.error(error(errno)),
                }
            }
            Operation::Fallocate { offset, length, mode } => {
                let flags = FallocateFlags::from_bits_retain(mode);
                let file = self.open(node, OFlags::WRONLY);
                done(file.and_then(|file| rustix::fs::fallocate(file, flags, offset, length)), reply);
            }
            Operation::Fsync { .. } | Operation::Fsyncdir { .. } => reply.ok(),
            Operation::Readdir { offset, size } => self.list(node, offset, size, reply),
            Operation::Statfs => {
                let st = fuse_kstatfs {
                    blocks: 1 << 20,
                    bfree: 1 << 19,
                    bavail: 1 << 19,
                    files: 1 << 20,
                    ffree: 1 << 19,
                    bsize: 4096,
                    namelen: 255,
                    frsize: 4096,
                    ..Default::default()
                };
                reply.statfs(st);
            }
            Operation::Setxattr { name, value, .. } if name == PLAN.as_bytes() => {
                self.told(value);
                reply.ok();
            }
            Operation::Getxattr { name, size } if name == PLAN.as_bytes() => {
                let plan = self.plan.lock().unwrap();
                let text: String =
                    plan.counts.iter().map(|(kind, count)| format!("{kind} {count}\n")).collect();
                reply.value(text.as_bytes(), size);
            }
            Operation::Getxattr { .. } | Operation::Listxattr { .. } => match self.attribute(node, operation)
            {
                Ok((value, size)) => reply.value(&value, size),
                Err(errno) => reply.error(error(errno)),
            },
            Operation::Setxattr { .. } | Operation::Removexattr { .. } => {
                done(self.attribute(node, operation).map(drop), reply);
            }
            Operation::Symlink { .. }
            | Operation::Mknod { .. }
            | Operation::Mkdir { .. }
            | Operation::Unlink { .. }
            | Operation::Rmdir { .. }
            | Operation::Rename { .. }
            | Operation::Link { .. } => match self.change(node, operation) {
                Ok(Some(entry)) => reply.entry(&entry),
                Ok(None) => reply.ok(),
                Err(errno) => reply.error(error(errno)),
            },
            Operation::Release | Operation::Releasedir | Operation::Flush => reply.ok(),
            Operation::Forget { .. } | Operation::BatchForget(_) => reply.none(),
            _ => reply.error(fuser::Errno::ENOSYS),
        }
    }
}

/// Not a test: the process that serves.
#[test]
#[ignore = "started by the other tests"]
fn serving() {
    let Some(place) = std::env::var_os(PLACE).map(PathBuf::from) else { return };
    rustix::process::umask(Mode::empty());
    // Each object that it has shown takes a descriptor.
    let mut files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    files.current = files.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files).unwrap();
    let options = SessionOptions { threads: Some(2), ..SessionOptions::at(place.join("failing")) };
    serve(Shown::new(&place.join("shown")), open_device().unwrap(), &options, Hooks::default()).unwrap();
}
