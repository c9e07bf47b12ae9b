//! Who has something open in a mount, as far as this process may see.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::process::Pid;

use super::mounts::Mount;
use crate::sys::mountinfo::Table;
use crate::union::escaped_path::EscapedPath;

/// A process that has something open in a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its id.
    pub pid: u32,
    /// What its program is called.
    pub name: String,
    /// How many files and directories it has open, or mapped.
    pub open: usize,
    /// Whether its working directory or its root is there.
    pub is_inside: bool,
    /// The inode numbers of all of these.
    pub inodes: BTreeSet<u64>,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, EscapedPath::from(self.name.as_bytes()))
    }
}

/// The processes that have something open in a mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users {
    /// By their ids.
    pub found: Vec<User>,
    /// How many others this process may not look at, the kernel's own threads and init aside.
    pub unseen: usize,
}

/// Something that is mounted on something in a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedOn {
    /// On what, from the root of the mount's filesystem.
    pub within: PathBuf,
    /// Where that is, in the mount namespace in which it is.
    pub point: PathBuf,
    /// A process in that namespace; none: it is this one's.
    pub process: Option<u32>,
}

impl fmt::Display for MountedOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        EscapedPath::from(self.point.as_path()).fmt(f)?;
        self.process.map_or(Ok(()), |process| write!(f, " (as process {process} sees it)"))
    }
}

/// The process from which all others come.
const INIT: u32 = 1;

fn processes() -> io::Result<impl Iterator<Item = io::Result<(u32, PathBuf)>>> {
    Ok(fs::read_dir("/proc")?.filter_map(|process| match process {
        Ok(process) => Some(Ok((process.file_name().to_str()?.parse().ok()?, process.path()))),
        Err(error) => Some(Err(error)),
    }))
}

/// Tells whether an error of /proc says that the process has ended, or has closed what was asked for. Any other says nothing of what
/// it uses.
fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

fn is_hidden(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

fn of_process(pid: u32) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("process {pid} can't be looked at: {error}"))
}

/// Tells whether it is a thread of the kernel (proc_pid_stat(5)): those have nothing open.
fn is_of_kernel(process: &Path) -> bool {
    const PF_KTHREAD: u32 = 0x0020_0000;
    let stat = fs::read(process.join("stat")).unwrap_or_default();
    flags_of(&stat).is_some_and(|flags| flags & PF_KTHREAD != 0)
}

/// Returns the flags of a process: the seventh word behind its name, which may hold anything.
fn flags_of(stat: &[u8]) -> Option<u32> {
    let name_ends = stat.iter().rposition(|byte| *byte == b')')?;
    std::str::from_utf8(&stat[name_ends + 1..]).ok()?.split_ascii_whitespace().nth(6)?.parse().ok()
}

/// Finds the processes that have something open in a mount. The mount itself is asked nothing.
///
/// # Errors
/// Those of reading /proc.
pub fn of(mount: &Mount) -> io::Result<Users> {
    let mut users = Users::default();
    for process in processes()? {
        let (pid, place) = process?;
        match user(pid, &place, &mount.device) {
            Ok(user) => users.found.extend(user),
            Err(error) if has_ended(&error) => {}
            // The first of all, where a sandbox hides it even from root, is no reason to refuse everything.
            Err(error) if is_hidden(&error) => {
                users.unseen += usize::from(pid != INIT && !is_of_kernel(&place));
            }
            Err(error) => return Err(of_process(pid)(error)),
        }
    }
    users.found.sort_by_key(|user| user.pid);
    Ok(users)
}

/// Returns what a process has open on a filesystem, if anything.
fn user(pid: u32, place: &Path, device: &str) -> io::Result<Option<User>> {
    let there = |link: PathBuf| inode_on(&link, device).transpose();
    let files = files_of(place)?;
    let dirs: Vec<u64> =
        ["cwd", "root"].into_iter().filter_map(|link| there(place.join(link))).collect::<io::Result<_>>()?;
    let open: Vec<u64> =
        files.into_iter().filter_map(|file| there(place.join("fd").join(file))).collect::<io::Result<_>>()?;
    let mapped = mapped_files(place, device)?;
    if dirs.is_empty() && open.is_empty() && mapped.is_empty() {
        return Ok(None);
    }
    let name = fs::read(place.join("comm")).unwrap_or_default();
    let name = String::from_utf8_lossy(&name).trim_end().to_owned();
    let (is_inside, count) = (!dirs.is_empty(), open.len() + mapped.len());
    let inodes = dirs.into_iter().chain(open).chain(mapped).collect();
    Ok(Some(User { pid, name, open: count, is_inside, inodes }))
}

/// Finds what is mounted on something in a mount, in the mount namespaces of all processes that this one may look at.
///
/// # Errors
/// Those of reading /proc.
pub fn mounted_on(mount: &Mount) -> io::Result<Vec<MountedOn>> {
    let own = fs::read_link("/proc/self/ns/mnt")?;
    let mut seen = BTreeSet::from([own]);
    let mut found = mounts_on(&Table::read()?, &mount.device, None);
    for process in processes()? {
        let (pid, place) = process?;
        let namespace = match fs::read_link(place.join("ns/mnt")) {
            Ok(namespace) => namespace,
            // What is hidden is told of by `of`.
            Err(error) if has_ended(&error) || is_hidden(&error) => continue,
            Err(error) => return Err(of_process(pid)(error)),
        };
        let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(process) = process.filter(|_| !seen.contains(&namespace)) else { continue };
        match Table::of(process) {
            Ok(table) => found.extend(mounts_on(&table, &mount.device, Some(pid))),
            // One that has ended and that nobody has waited for has none.
            Err(error) if has_ended(&error) || error.kind() == io::ErrorKind::InvalidInput => continue,
            Err(error) if is_hidden(&error) => continue,
            Err(error) => return Err(of_process(pid)(error)),
        }
        // Only now: another process may tell what this one couldn't.
        seen.insert(namespace);
    }
    let mut places = BTreeSet::new();
    found.retain(|one| places.insert(one.within.clone()));
    Ok(found)
}

fn mounts_on(table: &Table, device: &str, process: Option<u32>) -> Vec<MountedOn> {
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let on = |id: u64| table.entries().find(|entry| entry.id == id && entry.device == device);
    let within = |entry: crate::sys::mountinfo::Entry<'_>| {
        let below = on(entry.parent)?;
        let point = path(&entry.point);
        let rest = point.strip_prefix(path(&below.point)).ok()?.to_owned();
        Some(MountedOn { within: path(&below.root).join(rest), point, process })
    };
    table.entries().filter_map(within).collect()
}

/// Returns the inode number of what a link of /proc leads to, if that is on a filesystem; without asking that.
fn inode_on(link: &Path, device: &str) -> io::Result<Option<u64>> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let is_there =
        |stat: &rustix::fs::Statx| format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor) == device;
    match statx(CWD, link, flags, StatxFlags::INO).map_err(io::Error::from) {
        Ok(stat) => Ok(is_there(&stat).then_some(stat.stx_ino)),
        Err(error) if has_ended(&error) => Ok(None),
        // A FUSE filesystem of somebody else's tells its device alone, where nothing else is asked for.
        Err(error) => match statx(CWD, link, flags, StatxFlags::empty()) {
            Ok(stat) if !is_there(&stat) => Ok(None),
            Ok(_) => Err(io::Error::other(format!("what it has open there can't be told: {error}"))),
            Err(_) => Err(error),
        },
    }
}

fn files_of(process: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(process.join("fd"))?.map(|file| Ok(file?.file_name())).collect()
}

/// Returns the files that are mapped: `ADDRESSES RIGHTS OFFSET MAJOR:MINOR INODE PATH`, the device in hexadecimal.
fn mapped_files(process: &Path, device: &str) -> io::Result<BTreeSet<u64>> {
    let maps = fs::read(process.join("maps"))?;
    let maps = String::from_utf8_lossy(&maps);
    let inodes = maps.lines().filter_map(|line| mapped_from(line, device));
    Ok(inodes.filter_map(|inode| inode.parse().ok()).collect())
}

/// Returns the inode of a line of maps, if it is on that device.
fn mapped_from<'a>(line: &'a str, device: &str) -> Option<&'a str> {
    let mut words = line.split_ascii_whitespace().skip(3);
    let (on, inode) = (words.next()?, words.next()?);
    let (major, minor) = on.split_once(':')?;
    let number = |hex| u32::from_str_radix(hex, 16).ok();
    (format!("{}:{}", number(major)?, number(minor)?) == device).then_some(inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_that_is_gone_has_ended() {
        for (errno, ended) in
            [(Errno::NOENT, true), (Errno::SRCH, true), (Errno::IO, false), (Errno::MFILE, false)]
        {
            assert_eq!(has_ended(&errno.into()), ended, "{errno:?}");
        }
        assert!(is_hidden(&Errno::ACCESS.into()) && !is_hidden(&Errno::NOENT.into()));
        // What is asked of a place that isn't one of a process.
        let top = tempfile::tempdir().unwrap();
        assert!(has_ended(&user(1, top.path(), "0:0").unwrap_err()));
        fs::write(top.path().join("fd"), "").unwrap();
        let error = user(1, top.path(), "0:0").unwrap_err();
        assert!(!has_ended(&error) && !is_hidden(&error), "{error}");
    }

    #[test]
    fn threads_of_the_kernel_are_told_whatever_they_are_called() {
        assert_eq!(flags_of(b"2 (k) (a 1) S 0 0 0 0 -1 2129984 0 0"), Some(2_129_984));
        assert_eq!(flags_of(b""), None);
        assert!(!is_of_kernel(Path::new("/proc/self")));
    }

    #[test]
    fn what_is_mapped_is_read_as_the_kernel_writes_it() {
        let line = "7f12a4600000-7f12a4622000 r--s 00000000 00:2d 1152921504606846977   /mnt/a b";
        assert_eq!(mapped_from(line, "0:45"), Some("1152921504606846977"));
        assert_eq!(mapped_from(line, "0:46"), None);
        assert_eq!(mapped_from("7ffc1-7ffc2 rw-p 00000000 00:00 0     [stack]", "0:45"), None);
        assert_eq!(mapped_from("", "0:45"), None);
    }
}
