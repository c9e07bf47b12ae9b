//! Who has something open in a mount, as far as this process may see.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
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
    /// How many others this process may not look at.
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

fn processes() -> io::Result<impl Iterator<Item = (u32, PathBuf)>> {
    // One that can't be listed has ended.
    Ok(fs::read_dir("/proc")?.filter_map(|process| {
        let process = process.ok()?;
        Some((process.file_name().to_str()?.parse().ok()?, process.path()))
    }))
}

/// Finds the processes that have something open in a mount. The mount itself is asked nothing.
///
/// # Errors
/// Those of reading /proc.
pub fn of(mount: &Mount) -> io::Result<Users> {
    let mut users = Users::default();
    for (pid, place) in processes()? {
        let files = match files_of(&place) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                users.unseen += 1;
                continue;
            }
            // It has ended.
            Err(_) => continue,
        };
        let there = |link: PathBuf| inode_on(&link, &mount.device);
        let dirs: Vec<u64> = ["cwd", "root"].into_iter().filter_map(|link| there(place.join(link))).collect();
        let open: Vec<u64> =
            files.into_iter().map(|file| place.join("fd").join(file)).filter_map(there).collect();
        let mapped = mapped_files(&place, &mount.device);
        if dirs.is_empty() && open.is_empty() && mapped.is_empty() {
            continue;
        }
        let name = fs::read(place.join("comm")).unwrap_or_default();
        let name = String::from_utf8_lossy(&name).trim_end().to_owned();
        let (is_inside, count) = (!dirs.is_empty(), open.len() + mapped.len());
        let inodes = dirs.into_iter().chain(open).chain(mapped).collect();
        users.found.push(User { pid, name, open: count, is_inside, inodes });
    }
    users.found.sort_by_key(|user| user.pid);
    Ok(users)
}

/// Finds what is mounted on something in a mount, in the mount namespaces of all processes that this one may look at.
///
/// # Errors
/// Those of reading /proc.
pub fn mounted_on(mount: &Mount) -> io::Result<Vec<MountedOn>> {
    let own = fs::read_link("/proc/self/ns/mnt")?;
    let mut seen = BTreeSet::from([own]);
    let mut found = mounts_on(&Table::read()?, &mount.device, None);
    for (pid, place) in processes()? {
        // What can't be looked at has ended, or is told of by `of`.
        let Ok(namespace) = fs::read_link(place.join("ns/mnt")) else { continue };
        let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
        if let Some(process) = process.filter(|_| seen.insert(namespace))
            && let Ok(table) = Table::of(process)
        {
            found.extend(mounts_on(&table, &mount.device, Some(pid)));
        }
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
fn inode_on(link: &Path, device: &str) -> Option<u64> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = statx(CWD, link, flags, StatxFlags::INO).ok()?;
    (format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor) == device).then_some(stat.stx_ino)
}

fn files_of(process: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(process.join("fd"))?.map(|file| Ok(file?.file_name())).collect()
}

/// Returns the files that are mapped: `ADDRESSES RIGHTS OFFSET MAJOR:MINOR INODE PATH`, the device in hexadecimal.
fn mapped_files(process: &Path, device: &str) -> BTreeSet<u64> {
    let Ok(maps) = fs::read(process.join("maps")) else { return BTreeSet::new() };
    let maps = String::from_utf8_lossy(&maps);
    maps.lines().filter_map(|line| mapped_from(line, device)).filter_map(|inode| inode.parse().ok()).collect()
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
    fn what_is_mapped_is_read_as_the_kernel_writes_it() {
        let line = "7f12a4600000-7f12a4622000 r--s 00000000 00:2d 1152921504606846977   /mnt/a b";
        assert_eq!(mapped_from(line, "0:45"), Some("1152921504606846977"));
        assert_eq!(mapped_from(line, "0:46"), None);
        assert_eq!(mapped_from("7ffc1-7ffc2 rw-p 00000000 00:00 0     [stack]", "0:45"), None);
        assert_eq!(mapped_from("", "0:45"), None);
    }
}
