//! What has changed in the target since the upper hid it, as far as that can be known.
//!
//! Nobody writes down what a lower was like when it was hidden. But the filesystems do keep times that nobody can set: when
//! an inode was made, and when it last changed. So:
//!
//! | what the upper has | it was hidden not before | a conflict |
//! |---|---|---|
//! | a copy of the target's file, which says so | the copy was made | the file has changed since |
//! | a whiteout, or anything else in its place | the upper's directory around it was made | it, or something in it, has changed since |
//! | a directory that is merged, with other attributes | its copy was made | the directory has changed since |
//!
//! A whiteout and a new file have a birth of their own, which says nothing: a place can be taken more than once, and what is
//! there now came after what hid the target's first. An editor that saves twice does so. So the bound is the directory, which
//! is carried along; for an upper that is as old as its first change, as those of `try`, that is never a miss. An upper that
//! is older than an edit below it gives a conflict for what nobody has changed since, and that is the cheaper mistake.
//! Clocks are coarse: what has changed in the same instant counts as later.
//!
//! A directory takes long to be judged, and is judged once more when it has been taken out: what came into it in between
//! brings it back.
//!
//! What changed before it was hidden is part of what was seen, and no conflict. Where the filesystem doesn't keep the time
//! at which an inode was made, it can't be known, and that is a conflict too. What is the same on both sides never is one.

use std::os::fd::{AsFd, BorrowedFd};

use super::beneath::Seen;
use super::error::{ApplyError, Result};
use super::raw::is_copy_of;
use super::step::{Goes, Why};
use crate::image::layer::place::{join, open_dir};
use crate::sys::dir::for_each_entry;
use crate::sys::object::{At, Kind, Stat, Time};

/// An entry of the target that is to be replaced or removed.
pub(super) struct Old<'a> {
    pub dir: BorrowedFd<'a>,
    pub name: &'a [u8],
    pub stat: Stat,
    pub path: &'a [u8],
}

impl Old<'_> {
    pub(super) fn at(&self) -> At<'_> {
        At::Name(self.dir, self.name)
    }

    /// Finds what in it has changed after `since`, or can't be told: its path, and why. `by_us`: returns whether something that
    /// is younger may be so because of what was done here.
    pub(super) fn changed(
        &self,
        since: Option<Time>,
        by_us: impl Fn(&Stat) -> bool,
    ) -> Result<Option<(Vec<u8>, Why)>> {
        let Some(since) = since else { return Ok(Some((self.path.to_vec(), Why::Unknown))) };
        let late = |stat: &Stat| stat.ctime >= since && !by_us(stat);
        if late(&self.stat) && self.stat.kind() != Kind::Directory {
            return Ok(Some((self.path.to_vec(), Why::Changed)));
        }
        if self.stat.kind() != Kind::Directory {
            return Ok(None);
        }
        let (mut within, mut around) = (None, None);
        let mut todo = vec![Vec::new()];
        while let Some(relative) = todo.pop() {
            let top = open_dir(self.dir, self.name).map_err(ApplyError::at(self.path, "open it"))?;
            let path = if relative.is_empty() { self.path.to_vec() } else { join(self.path, &relative) };
            let dir = open_dir(top.as_fd(), &relative).map_err(ApplyError::at(&path, "open it"))?;
            for_each_entry::<rustix::io::Errno>(dir.as_fd(), |entry| {
                let stat = At::Name(dir.as_fd(), entry.name).stat()?;
                let is_dir = stat.kind() == Kind::Directory;
                if late(&stat) {
                    // What was put into a directory says more than the directory.
                    let slot = if is_dir { &mut around } else { &mut within };
                    slot.get_or_insert(join(&path, entry.name));
                }
                if is_dir {
                    todo.push(join(&relative, entry.name));
                }
                Ok(())
            })
            .map_err(ApplyError::at(&path, "list it"))?;
            if within.is_some() {
                break;
            }
        }
        // An empty directory that is younger, or has lost something, too.
        let itself = || late(&self.stat).then(|| self.path.to_vec());
        Ok(within.or(around).or_else(itself).map(|path| (path, Why::Changed)))
    }
}

impl Goes {
    pub(super) fn new(stat: &Stat, since: Option<Time>) -> Goes {
        Goes { seen: Seen::of(stat), since: since.map(|time| (time.sec, time.nsec)) }
    }

    /// Judges it once more when it has come out of its place, so that nobody can find it any more. `by_us` as for
    /// [`Old::changed`].
    pub(super) fn is_as_planned(&self, out: &Old<'_>, by_us: impl Fn(&Stat) -> bool) -> Result<bool> {
        if !self.seen.is_unwritten(&out.stat) {
            return Ok(false);
        }
        if out.stat.kind() != Kind::Directory {
            return Ok(true);
        }
        // The rename itself has changed the directory.
        let by_us = |stat: &Stat| self.seen.is_same(stat) || by_us(stat);
        let since = self.since.map(|(sec, nsec)| Time { sec, nsec });
        Ok(out.changed(since, by_us)?.is_none())
    }
}

/// Tells when an entry of the target was hidden by the upper's entry `new`, at the earliest. `around`: since when the upper has the
/// directory that holds it.
pub(super) fn hidden_since(
    old: &Old<'_>,
    new: At<'_>,
    stat: &Stat,
    around: Option<Time>,
) -> Result<Option<Time>> {
    let copied = stat.kind() == old.stat.kind()
        && stat.kind() != Kind::Directory
        && is_copy_of(new, old.at(), &old.stat, old.path)? == Some(true);
    // What took its place may not be the first that did.
    Ok(if copied { stat.born } else { around })
}
