//! What the upper's directories have under names: asked before a change, and kept in their indexes after it.

use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::Kind;
use crate::union::Union;
use crate::union::change::upper::UpperFd;
use crate::union::lookup::index::UpperEntry;
use crate::union::lookup::marker::WH_PREFIX;
use crate::union::nodes::node::{DirPart, Node};

/// What the upper's directory has under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::union) enum InUpper {
    /// Nothing.
    Free,
    /// A whiteout (a device 0:0; AUFS's form takes no room and counts as free).
    Whiteout,
    /// An entry.
    Present(Kind),
}

impl Union {
    /// Checks that the name is free in the merged view. Tells whether the lowers show it (below a whiteout), or may some
    /// time, and what the upper has.
    pub(in crate::union) fn check_free(
        &self,
        parent: &Node,
        fd: &UpperFd,
        name: &[u8],
    ) -> Result<(bool, InUpper)> {
        let below = self.lower_shows(parent, name)?;
        let state = self.in_upper_dir(parent, fd, name)?;
        match state {
            InUpper::Present(_) => Err(FsError::Exists),
            InUpper::Free if below && !self.aufs_hidden(parent, fd, name)? => Err(FsError::Exists),
            InUpper::Free | InUpper::Whiteout => Ok((below || self.may_come_back(state), state)),
        }
    }

    /// Tells whether something that lowers had once, and a whiteout hides, is to stay hidden though it is gone there, for it
    /// may come back. A directory that went by a redirect would else be merged under two names.
    pub(in crate::union) fn may_come_back(&self, state: InUpper) -> bool {
        self.watched.is_some() && state == InUpper::Whiteout
    }

    /// Returns what the upper's directory has under the name; by the index where there is one.
    pub(in crate::union) fn in_upper_dir(&self, parent: &Node, fd: &UpperFd, name: &[u8]) -> Result<InUpper> {
        let dir = self.dir_part(parent)?;
        if let Some(index) = &dir.index.lock().upper {
            return Ok(match index.get(name) {
                None => InUpper::Free,
                Some(UpperEntry { kind: Some(kind), .. }) => InUpper::Present(*kind),
                Some(UpperEntry { cuts: true, ino: 0, .. }) => InUpper::Free,
                Some(UpperEntry { .. }) => InUpper::Whiteout,
            });
        }
        match fd.entry(name).stat() {
            Err(Errno::NOENT) => Ok(InUpper::Free),
            Err(e) => Err(e.into()),
            Ok(stat) if stat.is_whiteout_device() => Ok(InUpper::Whiteout),
            Ok(stat) => Ok(InUpper::Present(stat.kind())),
        }
    }

    /// Tells whether the upper hides the name by a whiteout of AUFS's form.
    fn aufs_hidden(&self, parent: &Node, fd: &UpperFd, name: &[u8]) -> Result<bool> {
        let dir = self.dir_part(parent)?;
        if let Some(index) = &dir.index.lock().upper {
            return Ok(index.get(name).is_some_and(|e| e.cuts));
        }
        let marker = [WH_PREFIX, name].concat();
        match fd.entry(&marker).stat() {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Refuses a removed directory, which takes no new entries, and one that another node stands for. The caller holds its
    /// names.
    pub(in crate::union) fn check_alive(&self, dir: &DirPart) -> Result<()> {
        if dir.removed.load(Ordering::Relaxed) {
            return Err(FsError::Absent);
        }
        if dir.watch.is_superseded() { Err(FsError::Stale) } else { Ok(()) }
    }

    /// Keeps the index of the upper true after a change.
    pub(in crate::union) fn note_upper(&self, dir: &DirPart, name: &[u8], entry: Option<UpperEntry>) {
        if let Some(index) = &mut dir.index.lock().upper {
            match entry {
                // A whiteout of AUFS's form stays beside a new entry and goes on hiding what is below.
                Some(entry) => {
                    let cuts = entry.cuts || index.get(name).is_some_and(|known| known.cuts);
                    index.insert(name, UpperEntry { cuts, ..entry });
                }
                None => index.remove(name),
            }
        }
    }

    /// Does as [`Union::note_upper`], after a name was removed.
    pub(in crate::union) fn note_removed(&self, dir: &DirPart, name: &[u8], whiteout: bool) {
        let form = self.upper.as_ref().filter(|_| whiteout).map(|upper| upper.caps().whiteout);
        let entry = form.map(UpperEntry::whiteout);
        if whiteout {
            self.counters.whiteouts.fetch_add(1, Ordering::Relaxed);
        }
        self.note_upper(dir, name, entry);
    }
}

/// Checks that a name may be made through the mount.
pub(in crate::union) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > 255 {
        return Err(FsError::Os(Errno::NAMETOOLONG));
    }
    if name.is_empty() || name.contains(&b'/') || name == b"." || name == b".." {
        return Err(FsError::Invalid("not a name"));
    }
    if name.starts_with(WH_PREFIX) {
        return Err(FsError::MarkerName);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_markers_or_none_are_refused() {
        let errno = |name: &[u8]| check_name(name).map_err(|e| e.errno());
        for name in [&b"a"[..], b".wh", b"wh.a", b"d\xff", b"..."] {
            assert_eq!(errno(name), Ok(()), "{}", name.escape_ascii());
        }
        for name in [&b""[..], b".", b"..", b"a/b"] {
            assert_eq!(errno(name), Err(Errno::INVAL), "{}", name.escape_ascii());
        }
        for name in [&b".wh."[..], b".wh.a", b".wh..wh..opq"] {
            assert_eq!(check_name(name), Err(FsError::MarkerName), "{}", name.escape_ascii());
        }
        assert_eq!(errno(&[b'n'; 255]), Ok(()));
        assert_eq!(errno(&[b'n'; 256]), Err(Errno::NAMETOOLONG));
    }
}
