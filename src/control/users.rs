//! Who has something open in a mount, as far as this process may see.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::mounts::Mount;
use crate::sys::mountinfo::Table;

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
}

/// Lists the processes that have something open in a mount, by their ids. Those that this process may not look at are left out.
/// The mount itself is asked nothing.
///
/// # Errors
/// Those of reading /proc.
pub fn of(mount: &Mount) -> std::io::Result<Vec<User>> {
    let mut users = Vec::new();
    for process in fs::read_dir("/proc")? {
        let Ok(process) = process else { continue }; // it has ended
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let place = process.path();
        let is_there = |link: &str| is_on(&place.join(link), &mount.device);
        let is_inside = is_there("cwd") || is_there("root");
        let open = open_files(&place, &mount.device) + mapped_files(&place, &mount.device);
        if is_inside || open > 0 {
            let name = fs::read(place.join("comm")).unwrap_or_default();
            let name = String::from_utf8_lossy(&name).trim_end().to_owned();
            users.push(User { pid, name, open, is_inside });
        }
    }
    users.sort_by_key(|user| user.pid);
    Ok(users)
}

/// Lists what is mounted on something in a mount, as this process sees it.
///
/// # Errors
/// Those of reading /proc/self/mountinfo.
pub fn mounted_on(mount: &Mount) -> std::io::Result<Vec<PathBuf>> {
    use std::os::unix::ffi::OsStrExt;
    let table = Table::read()?;
    let points = table.entries().map(|entry| PathBuf::from(std::ffi::OsStr::from_bytes(&entry.point)));
    Ok(points.filter(|point| *point != mount.point && point.starts_with(&mount.point)).collect())
}

/// Tells whether what a link of /proc leads to is on a filesystem, without asking that.
fn is_on(link: &Path, device: &str) -> bool {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    statx(CWD, link, flags, StatxFlags::empty())
        .is_ok_and(|stat| format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor) == device)
}

fn open_files(process: &Path, device: &str) -> usize {
    let Ok(files) = fs::read_dir(process.join("fd")) else { return 0 };
    files.flatten().filter(|file| is_on(&file.path(), device)).count()
}

/// Counts the files that are mapped: `ADDRESSES RIGHTS OFFSET MAJOR:MINOR INODE PATH`, the device in hexadecimal.
fn mapped_files(process: &Path, device: &str) -> usize {
    let Ok(maps) = fs::read(process.join("maps")) else { return 0 };
    let maps = String::from_utf8_lossy(&maps);
    let mut files: Vec<&str> = maps.lines().filter_map(|line| mapped_from(line, device)).collect();
    files.sort_unstable();
    files.dedup();
    files.len()
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
