//! What is mounted.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A line of /proc/self/mountinfo, as far as tests ask.
#[derive(Debug, Clone)]
pub struct MountInfo {
    /// Where it is.
    pub point: PathBuf,
    /// The options of the mount, then those of the filesystem.
    pub options: Vec<String>,
    /// The type of the filesystem.
    pub kind: String,
    /// What was given as its source.
    pub source: String,
    /// The minor number of its device, by which fusectl knows the connection.
    pub minor: u32,
}

/// Returns the mounts, in the order of mounting.
pub fn mounts() -> Vec<MountInfo> {
    let table = fs::read("/proc/self/mountinfo").unwrap();
    let lines = table.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let text = |field: &[u8]| unescape_octal(field).to_string_lossy().into_owned();
    lines
        .map(|line| {
            let fields: Vec<_> = line.split(|&byte| byte == b' ').collect();
            let dash = fields.iter().position(|field| *field == b"-").unwrap();
            let (own, filesystem) = (text(fields[5]), text(fields[dash + 3]));
            MountInfo {
                point: unescape_octal(fields[4]),
                options: own.split(',').chain(filesystem.split(',')).map(str::to_owned).collect(),
                kind: text(fields[dash + 1]),
                source: text(fields[dash + 2]),
                minor: text(fields[2]).split_once(':').unwrap().1.parse().unwrap(),
            }
        })
        .collect()
}

/// Returns the mounts at or below `path`, in the order of mounting.
pub fn mounts_below(path: &Path) -> Vec<MountInfo> {
    mounts().into_iter().filter(|mount| mount.point.starts_with(path)).collect()
}

/// Returns what is mounted on `point` on top.
pub fn mounted_at(point: &Path) -> Option<MountInfo> {
    mounts().into_iter().rev().find(|mount| mount.point == point)
}

fn unescape_octal(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'\\' && tail.len() >= 3 {
            bytes.push(tail[..3].iter().fold(0u8, |value, digit| value.wrapping_mul(8) + (digit - b'0')));
            rest = &tail[3..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    OsString::from_vec(bytes).into()
}
