//! Names that whiteouts took from a lower's file that has others: how many, so that its link count stays right over a
//! remount.
//!
//! A lower's link count never changes, so the merged view shows it less the names that are hidden. (The kernel with
//! `index=on` copies such a file up, data and all, before its first name goes; so deleting would need room.) Each file
//! has a record in the hardlink index of the workdir:
//!
//! ```text
//! ORIGIN.hidden    a symbolic link whose target is COUNT:INO: so many names are hidden, the last of them by the
//!                  whiteout with that inode number
//! ORIGIN.hiding    while a name is being hidden: one more link of the whiteout that will take it away
//! ```
//!
//! The whiteout becomes visible between the two writes of the record. After a crash the staging directory is emptied
//! first; then a `hiding` with one link was never published, and one with two was: it counts, unless it is the last
//! one counted.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;

use rustix::fs::{self, AtFlags};
use rustix::io::Errno;

use super::node::{Filesystem, RealId};
use super::upper::{New, Upper, UpperFd};
use crate::error::{FsError, Result};
use crate::sys::dir::for_each_entry;
use crate::sys::object::{At, Kind};

const HIDDEN: &str = ".hidden";
const HIDING: &str = ".hiding";

/// How many names of a lower's file are hidden, as the record says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Record {
    count: u64,
    /// Inode number of the whiteout that was counted last; 0 for what was hidden otherwise.
    last: u64,
}

impl Record {
    fn parse(text: &[u8]) -> Option<Record> {
        let (count, last) = std::str::from_utf8(text).ok()?.split_once(':')?;
        Some(Record { count: count.parse().ok()?, last: last.parse().ok()? })
    }

    fn text(self) -> String {
        format!("{}:{}", self.count, self.last)
    }
}

fn file_name(origin: RealId, suffix: &str, filesystems: &[Filesystem]) -> Option<Vec<u8>> {
    origin.to_text('-', filesystems).map(|text| (text + suffix).into_bytes())
}

impl Upper {
    /// Hides a name that only the lowers have, of the file `origin` with several names, of which `count` are hidden
    /// afterwards.
    pub(super) fn hide_link(&self, dir: &UpperFd, name: &[u8], origin: RealId, count: u64) -> Result<()> {
        let Some(hiding) = file_name(origin, HIDING, self.filesystems()) else {
            return self.whiteout(dir, name, None); // it has no identity that lasts, so no count that does
        };
        let last = self.publish_counted_whiteout(dir, name, &hiding)?;
        self.write_record(origin, Record { count, last })?;
        match last {
            0 => Ok(()),
            _ => Ok(fs::unlinkat(self.index_dir(), &hiding[..], AtFlags::empty())?),
        }
    }

    /// Records that a name was hidden by another way than a whiteout: something took its place.
    pub(super) fn record_hidden(&self, origin: RealId, count: u64) -> Result<()> {
        self.write_record(origin, Record { count, last: 0 })
    }

    fn write_record(&self, origin: RealId, record: Record) -> Result<()> {
        let Some(name) = file_name(origin, HIDDEN, self.filesystems()) else { return Ok(()) };
        let staged = self.stage(New::Symlink(record.text().as_bytes()))?;
        staged.publish_in_index(&name)
    }

    /// The record is not needed any more: the file was copied up, and the copy keeps the count.
    pub(super) fn forget_hidden(&self, origin: RealId) -> Result<()> {
        let Some(name) = file_name(origin, HIDDEN, self.filesystems()) else { return Ok(()) };
        match fs::unlinkat(self.index_dir(), &name[..], AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// Reads the records, and mends what a crash left. `is_indexed`: files that were copied up need none.
pub(super) fn read_hidden(
    index: BorrowedFd<'_>,
    filesystems: &[Filesystem],
    is_indexed: impl Fn(RealId) -> bool,
) -> Result<HashMap<RealId, u64>> {
    let mut records: HashMap<RealId, Record> = HashMap::new();
    let mut hiding: Vec<(RealId, Vec<u8>)> = Vec::new();
    let mut stale: Vec<Vec<u8>> = Vec::new();
    for_each_entry::<FsError>(index, |entry| {
        let id = |suffix: &str| {
            let text = entry.name.strip_suffix(suffix.as_bytes())?;
            RealId::from_text(text, '-', filesystems)
        };
        if let Some(id) = id(HIDDEN) {
            match Record::parse(&At::Name(index, entry.name).readlink()?) {
                Some(record) if !is_indexed(id) => drop(records.insert(id, record)),
                _ => stale.push(entry.name.to_vec()),
            }
        } else if let Some(id) = id(HIDING) {
            hiding.push((id, entry.name.to_vec()));
        }
        Ok(())
    })?;
    for (id, name) in hiding {
        let stat = At::Name(index, &name).stat()?;
        let published = stat.nlink > 1 && stat.kind() == Kind::CharDevice;
        if published && !is_indexed(id) {
            let record = records.entry(id).or_default();
            if record.last != stat.ino {
                // Counted in the record by the next change; until then this link goes on telling.
                record.count += 1;
                continue;
            }
        }
        stale.push(name);
    }
    for name in stale {
        fs::unlinkat(index, &name[..], AtFlags::empty())?;
    }
    Ok(records.into_iter().map(|(id, record)| (id, record.count)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::fs::symlink;

    #[test]
    fn records_are_a_count_and_an_inode() {
        let record = Record { count: 3, last: 77 };
        assert_eq!(Record::parse(record.text().as_bytes()), Some(record));
        for bad in [&b""[..], b"3", b"x:1", b"3:", b"\xff:1"] {
            assert_eq!(Record::parse(bad), None, "{bad:?}");
        }
    }

    /// What a kill leaves at each step, read as the old count or the new one.
    #[test]
    fn every_step_of_hiding_can_be_the_last() {
        let mknod = |path: &std::path::Path| {
            fs::mknodat(fs::CWD, path, fs::FileType::CharacterDevice, fs::Mode::empty(), 0)
        };
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let index = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let filesystems = [Filesystem { dev: 1, fsid: 0xaa }];
        let id = RealId::from_text(b"aa-5", '-', &filesystems).unwrap();
        let count = || {
            let read = read_hidden(index.as_fd(), &filesystems, |_| false).unwrap();
            read.get(&id).copied().unwrap_or(0)
        };
        let hiding = dir.path().join("aa-5.hiding");
        if let Err(error) = mknod(&hiding) {
            eprintln!("SKIP: no whiteout devices can be made here: {error}");
            return;
        }
        assert_eq!(count(), 0, "made, but never published");
        assert!(!hiding.exists(), "and gone");
        mknod(&hiding).unwrap();
        std::fs::hard_link(&hiding, elsewhere.path().join("name")).unwrap();
        assert_eq!((count(), count()), (1, 1), "published, not yet recorded; read twice");
        let ino = At::Name(index.as_fd(), b"aa-5.hiding").stat().unwrap().ino;
        symlink(format!("1:{ino}"), dir.path().join("aa-5.hidden")).unwrap();
        assert_eq!(count(), 1, "recorded, the link not yet gone");
        assert!(!hiding.exists());
        assert_eq!(count(), 1);
        let copied = read_hidden(index.as_fd(), &filesystems, |known| known == id).unwrap();
        assert!(copied.is_empty() && !dir.path().join("aa-5.hidden").exists(), "the copy keeps the count");
    }
}
