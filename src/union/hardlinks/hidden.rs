//! Names that whiteouts took from a lower's file that has others: how many, so that its link count stays right over a
//! remount.
//!
//! A lower's link count never changes, so the merged view shows it less the names that are hidden. (The kernel with
//! `index=on` copies such a file up, data and all, before its first name goes; so deleting would need room.) Each file
//! has a record in the hardlink index of the workdir:
//!
//! ```text
//! ORIGIN.hidden    a symbolic link whose target is COUNT:INO:BORN: so many names are hidden, the last of them by the
//!                  whiteout with that inode number, of the file that was made at that time. The time is left out where it
//!                  isn't known
//! ORIGIN.hiding    while a name is being hidden: one more link of the whiteout that will take it away
//! ORIGIN.replacing while something else takes the place of a name: a symbolic link whose target is COUNT:INO:NAME: so
//!                  many are hidden if the upper's directory with that inode number has an entry NAME
//! ```
//!
//! The whiteout, or what takes the place, becomes visible before the record is written. After a crash the staging
//! directory is emptied first; then a `hiding` with one link was never published, and one with two was: it counts,
//! unless it is the last one counted. A `replacing` counts if the entry is there, for only its own operation could have
//! made it before the record has its count.

#![allow(clippy::disallowed_methods, reason = "the workdir is its own")]

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

use dashmap::DashMap;
use rustix::fs::{self, AtFlags};
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::dir::for_each_entry;
use crate::sys::object::{At, Kind, Time};
use crate::union::change::failpoint::{self, Failpoint};
use crate::union::change::staged::New;
use crate::union::change::upper::{Upper, UpperFd};
use crate::union::hardlinks::counts::{Hidden, birth_text, parse_birth};
use crate::union::hardlinks::link_index::Mending;
use crate::union::lookup::marker::WH_PREFIX;
use crate::union::nodes::node::InodeId;
use crate::union::nodes::region::Regions;
use crate::union::stack::layer::WhiteoutForm;

pub(in crate::union) const HIDDEN: &str = ".hidden";
pub(in crate::union) const HIDING: &str = ".hiding";
pub(in crate::union) const REPLACING: &str = ".replacing";

/// How many names of a lower's file are hidden, as the record says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct HiddenLinksRecord {
    count: u64,
    /// Inode number of the whiteout that was counted last; 0 for what was hidden otherwise.
    last: u64,
    /// When the file was made.
    born: Option<Time>,
}

impl HiddenLinksRecord {
    fn parse(text: &[u8]) -> Option<HiddenLinksRecord> {
        let mut parts = std::str::from_utf8(text).ok()?.splitn(3, ':');
        let (count, last) = (parts.next()?, parts.next()?);
        // Of a form of which this program doesn't know, it says no less how many are hidden.
        let born = parts.next().and_then(parse_birth);
        Some(HiddenLinksRecord { count: count.parse().ok()?, last: last.parse().ok()?, born })
    }

    fn text(self) -> String {
        let born = self.born.map(|born| format!(":{}", birth_text(born))).unwrap_or_default();
        format!("{}:{}{born}", self.count, self.last)
    }
}

/// What takes the place of a name, and how many are hidden then.
#[derive(Debug, PartialEq, Eq)]
struct Replacing {
    count: u64,
    /// Inode number of the upper's directory.
    dir: u64,
    name: Vec<u8>,
}

impl Replacing {
    fn parse(text: &[u8]) -> Option<Replacing> {
        let mut parts = text.splitn(3, |&byte| byte == b':');
        let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
        let (count, dir) = (number()?, number()?);
        Some(Replacing { count, dir, name: parts.next()?.to_vec() })
    }

    fn text(&self) -> Vec<u8> {
        [format!("{}:{}:", self.count, self.dir).as_bytes(), &self.name].concat()
    }
}

/// Tells whether the directory with that inode number, somewhere below `top`, has an entry of that name. `None`: there
/// is no such directory. Walks the whole tree if it must: it is asked only after a crash in one instant of a rename.
fn has_entry(top: BorrowedFd<'_>, ino: u64, name: &[u8]) -> Result<Option<bool>> {
    let stat = At::Fd(top).stat()?;
    if stat.ino == ino {
        return match At::Name(top, name).stat() {
            Ok(_) => Ok(Some(true)),
            Err(Errno::NOENT) => Ok(Some(false)),
            Err(e) => Err(e.into()),
        };
    }
    let mut children = Vec::new();
    for_each_entry::<FsError>(top, |entry| {
        if entry.kind.is_none_or(|kind| kind == Kind::Directory) {
            children.push(entry.name.to_vec());
        }
        Ok(())
    })?;
    for child in children {
        let child = At::Name(top, &child);
        if child.stat()?.kind() != Kind::Directory {
            continue;
        }
        // An ordinary user who may not look learns nothing here: the count stays as it was.
        let Ok(child) = child.open_directory() else { continue };
        if let Some(found) = has_entry(child.as_fd(), ino, name)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn file_name(origin: InodeId, suffix: &str, regions: &Regions) -> Option<Vec<u8>> {
    origin.to_text('-', regions).map(|text| (text + suffix).into_bytes())
}

impl Upper {
    /// Hides a name that only the lowers have, of the file `origin` with several names, of which so many are hidden
    /// afterwards.
    pub(in crate::union) fn hide_link(
        &self,
        dir: &UpperFd,
        name: &[u8],
        origin: InodeId,
        hidden: Hidden,
    ) -> Result<()> {
        let Some(hiding) = file_name(origin, HIDING, self.regions()) else {
            return self.whiteout(dir, name, None); // it has no identity that lasts, so no count that does
        };
        if self.caps().whiteout == WhiteoutForm::Aufs {
            // It can't be told apart from one that was there before.
            self.replace_link(dir, &[WH_PREFIX, name].concat(), origin, hidden.count)?;
            let done = self.whiteout(dir, name, None);
            return self.link_was_replaced(origin, hidden, done);
        }
        let last = self.publish_counted_whiteout(dir, name, &hiding)?;
        // The name is hidden. What isn't recorded now, the next mount finds by `hiding`.
        if let Err(e) = self
            .write_record(origin, HiddenLinksRecord { count: hidden.count, last, born: hidden.born })
            .and_then(|()| self.drop_record(&hiding))
        {
            log::warn!("a hidden name is recorded by the next mount only: {e}");
        }
        Ok(())
    }

    /// Records that something is about to take the place of such a name, as the upper's entry `name` of `dir`.
    /// [`Upper::link_was_replaced`] ends it.
    pub(in crate::union) fn replace_link(
        &self,
        dir: &UpperFd,
        name: &[u8],
        origin: InodeId,
        count: u64,
    ) -> Result<()> {
        let Some(replacing) = file_name(origin, REPLACING, self.regions()) else { return Ok(()) };
        let dir = dir.itself().at().stat()?.ino;
        let text = Replacing { count, dir, name: name.to_vec() }.text();
        self.stage_in_any_case(New::Symlink(&text))?.publish_in_index(&replacing)
    }

    /// Records that the name is hidden, if what took its place is `done`.
    pub(in crate::union) fn link_was_replaced(
        &self,
        origin: InodeId,
        Hidden { count, born }: Hidden,
        done: Result<()>,
    ) -> Result<()> {
        let Some(replacing) = file_name(origin, REPLACING, self.regions()) else { return done };
        // What is left of a failure is found wrong, or counted, by the next mount.
        let recorded = match &done {
            Ok(()) => self.write_record(origin, HiddenLinksRecord { count, last: 0, born }),
            Err(_) => Ok(()),
        };
        if let Err(e) = recorded.and_then(|()| self.drop_record(&replacing)) {
            log::warn!("a hidden name is recorded by the next mount only: {e}");
        }
        done
    }

    /// Returns how many names of lower files with several are hidden, and whether something of what a crash left is to be recorded or
    /// removed still.
    pub(in crate::union) fn hidden_links(
        &self,
        mending: Mending,
    ) -> Result<(DashMap<InodeId, Hidden>, bool)> {
        let is_indexed = |id| self.is_indexed(id);
        let Found { records, unrecorded, stale } =
            read_hidden(self.index_dir(), self.root(), self.regions(), is_indexed)?;
        let has_left = mending == Mending::Later && !(unrecorded.is_empty() && stale.is_empty());
        if mending == Mending::AtOnce {
            // One that fails is no reason to leave the others.
            let recorded = unrecorded.into_iter().map(|Unrecorded { origin, record, told_by }| {
                self.write_record(origin, record).and_then(|()| self.drop_record(&told_by))
            });
            remove_all(self.index_dir(), &stale).into_iter().chain(recorded).fold(Ok(()), Result::and)?;
        }
        let hidden = |record: HiddenLinksRecord| Hidden { count: record.count, born: record.born };
        Ok((records.into_iter().map(|(id, record)| (id, hidden(record))).collect(), has_left))
    }

    fn drop_record(&self, name: &[u8]) -> Result<()> {
        self.remove_name(self.index_dir(), name, AtFlags::empty())?;
        failpoint::reached(Failpoint::Changed);
        Ok(())
    }

    fn write_record(&self, origin: InodeId, record: HiddenLinksRecord) -> Result<()> {
        let Some(name) = file_name(origin, HIDDEN, self.regions()) else { return Ok(()) };
        let staged = self.stage_in_any_case(New::Symlink(record.text().as_bytes()))?;
        staged.publish_in_index(&name)
    }

    /// Forgets the record, which isn't needed any more: the file was copied up, and the copy keeps the count.
    pub(in crate::union) fn forget_hidden(&self, origin: InodeId) -> Result<()> {
        let Some(name) = file_name(origin, HIDDEN, self.regions()) else { return Ok(()) };
        match self.remove_name(self.index_dir(), &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// What a crash left: so many names of a file are hidden, as that entry of the index tells and the record doesn't.
struct Unrecorded {
    origin: InodeId,
    record: HiddenLinksRecord,
    told_by: Vec<u8>,
}

/// What the records say.
struct Found {
    records: HashMap<InodeId, HiddenLinksRecord>,
    unrecorded: Vec<Unrecorded>,
    /// Entries of the index that a crash left and nothing needs.
    stale: Vec<Vec<u8>>,
}

/// Removes entries of the index. Returns what came of each.
fn remove_all(index: BorrowedFd<'_>, stale: &[Vec<u8>]) -> Vec<Result<()>> {
    stale.iter().map(|name| Ok(fs::unlinkat(index, &name[..], AtFlags::empty())?)).collect()
}

/// Reads the records. `upper`: the root of the upper. `is_indexed`: files that were copied up need none.
fn read_hidden(
    index: BorrowedFd<'_>,
    upper: BorrowedFd<'_>,
    regions: &Regions,
    is_indexed: impl Fn(InodeId) -> bool,
) -> Result<Found> {
    let mut records: HashMap<InodeId, HiddenLinksRecord> = HashMap::new();
    let mut hiding: Vec<(InodeId, Vec<u8>)> = Vec::new();
    let mut replacing: Vec<(InodeId, Vec<u8>)> = Vec::new();
    let mut stale: Vec<Vec<u8>> = Vec::new();
    let mut unrecorded = Vec::new();
    for_each_entry::<FsError>(index, |entry| {
        let id = |suffix: &str| {
            let text = entry.name.strip_suffix(suffix.as_bytes())?;
            InodeId::from_text(text, '-', regions)
        };
        if let Some(id) = id(HIDDEN) {
            match HiddenLinksRecord::parse(&At::Name(index, entry.name).readlink()?) {
                Some(record) if !is_indexed(id) => drop(records.insert(id, record)),
                _ => stale.push(entry.name.to_vec()),
            }
        } else if let Some(id) = id(HIDING) {
            hiding.push((id, entry.name.to_vec()));
        } else if let Some(id) = id(REPLACING) {
            replacing.push((id, entry.name.to_vec()));
        }
        Ok(())
    })?;
    for (id, name) in hiding {
        let stat = At::Name(index, &name).stat()?;
        let published = stat.nlink > 1 && stat.kind() == Kind::CharDevice;
        if published && !is_indexed(id) {
            let record = records.entry(id).or_default();
            if record.last != stat.ino {
                *record = HiddenLinksRecord { count: record.count + 1, last: stat.ino, ..*record };
                unrecorded.push(Unrecorded { origin: id, record: *record, told_by: name });
                continue;
            }
        }
        stale.push(name);
    }
    for (id, name) in replacing {
        if let Some(intent) = Replacing::parse(&At::Name(index, &name).readlink()?)
            && !is_indexed(id)
            && let before = records.get(&id).copied().unwrap_or_default()
            && before.count < intent.count
            && has_entry(upper, intent.dir, &intent.name)?.unwrap_or(false)
        {
            let record = HiddenLinksRecord { count: intent.count, last: 0, born: before.born };
            records.insert(id, record);
            unrecorded.push(Unrecorded { origin: id, record, told_by: name });
            continue;
        }
        stale.push(name);
    }
    Ok(Found { records, unrecorded, stale })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::symlink;

    #[test]
    fn records_are_a_count_and_an_inode() {
        let born = Some(Time { sec: -1, nsec: 5 });
        for record in [None, born].map(|born| HiddenLinksRecord { count: 3, last: 77, born }) {
            assert_eq!(HiddenLinksRecord::parse(record.text().as_bytes()), Some(record));
        }
        // Of earlier versions, and of what may come.
        for known in [&b"3:77"[..], b"3:77:x", b"3:77:1.2:x"] {
            let record = HiddenLinksRecord { count: 3, last: 77, born: None };
            assert_eq!(HiddenLinksRecord::parse(known), Some(record));
        }
        for bad in [&b""[..], b"3", b"x:1", b"3:", b"\xff:1"] {
            assert_eq!(HiddenLinksRecord::parse(bad), None, "{bad:?}");
        }
    }

    /// Reads what a kill leaves at each step as the old count or the new one.
    #[test]
    fn every_step_of_hiding_can_be_the_last() {
        let mknod = |path: &std::path::Path| {
            fs::mknodat(fs::CWD, path, fs::FileType::CharacterDevice, fs::Mode::empty(), 0)
        };
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let index = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let upper = OwnedFd::from(std::fs::File::open(elsewhere.path()).unwrap());
        let regions = Regions::of_ids(&[0xaa]);
        let id = InodeId::from_text(b"aa-5", '-', &regions).unwrap();
        let read = |is_indexed: bool| {
            let found =
                read_hidden(index.as_fd(), upper.as_fd(), &regions, |known| is_indexed && known == id);
            let Found { records, stale, .. } = found.unwrap();
            remove_all(index.as_fd(), &stale).into_iter().for_each(Result::unwrap);
            records
        };
        let count = || read(false).get(&id).map_or(0, |record| record.count);
        let hiding = dir.path().join("aa-5.hiding");
        if let Err(error) = mknod(&hiding) {
            support::skipped(&format!("no whiteout devices can be made here: {error}"));
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
        assert!(
            read(true).is_empty() && !dir.path().join("aa-5.hidden").exists(),
            "the copy keeps the count"
        );
    }
}
