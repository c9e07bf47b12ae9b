//! Changes that take several steps where the upper's filesystem can't do them in one: without RENAME_EXCHANGE or
//! RENAME_WHITEOUT, as many filesystems in user space (fuse2fs, bindfs, mergerfs), NFS and older ZFS are.
//!
//! What these flags do at once takes several calls there, and between two of them a name must not show what the lowers
//! have under it. So a **guard** comes first: a whiteout of AUFS's form (`.wh.NAME`) beside the entry. It hides only
//! what is below, so it changes nothing that is shown: a directory that it would cut off from the lowers either shows
//! nothing and is about to go, or carries a redirect, which counts for more. While the guard stands the entry may go and
//! another come; and then the guard goes, or stays as the whiteout where that is the upper's form.
//!
//! A kill leaves the guard, and it is what it looks like: the next mount reads it as every whiteout of its form. So one
//! step alone changes what is shown, and no record has to be kept or played back.

use rustix::fs::AtFlags;
use rustix::io::Errno;

use crate::error::Result;
use crate::union::change::lend::upper_marks;
use crate::union::change::upper::{Present, Upper, UpperFd, changed};
use crate::union::lookup::marker::WH_PREFIX;
use crate::union::stack::layer::WhiteoutForm;

/// A whiteout of AUFS's form beside a name. It goes when it is dropped, unless it is kept or was there before.
struct Guard<'a> {
    upper: &'a Upper,
    dir: &'a UpperFd,
    marker: Vec<u8>,
    goes: bool,
}

impl<'a> Guard<'a> {
    fn put(upper: &'a Upper, dir: &'a UpperFd, name: &[u8]) -> Result<Guard<'a>> {
        let goes = upper.aufs_whiteout(dir, name)?;
        Ok(Guard { upper, dir, marker: [WH_PREFIX, name].concat(), goes })
    }

    /// Leaves it as the whiteout of its name.
    fn keep(mut self) {
        self.goes = false;
    }

    /// Gives way to a whiteout of the upper's own form that the name was given, if that went well; the guard is as
    /// good.
    fn replaced_by(self, whiteout: Result<()>) {
        if let Err(e) = whiteout {
            log::warn!("{}: stays as whiteout: {e}", String::from_utf8_lossy(&self.marker));
            self.keep();
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.goes {
            return;
        }
        match self.upper.remove_name(self.dir.fd(), &self.marker, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => changed(),
            // It hides what is hidden in any case.
            Err(e) => log::warn!("{}: left behind: {e}", String::from_utf8_lossy(&self.marker)),
        }
    }
}

impl Upper {
    /// Hides `name`, under which the upper has a directory that shows nothing. The directory goes.
    pub(in crate::union) fn whiteout_over_directory(
        &self,
        dir: &UpperFd,
        name: &[u8],
        present: Present<'_>,
    ) -> Result<()> {
        let guard = Guard::put(self, dir, name)?;
        let taken = self.take_out(dir, name, present)?;
        guard.replaced_by(self.link_whiteout(dir.fd(), name));
        drop(taken);
        Ok(())
    }

    /// Does a rename away from `name`, which must go on hiding what is below afterwards.
    pub(in crate::union) fn rename_behind_guard(
        &self,
        dir: &UpperFd,
        name: &[u8],
        rename: impl FnOnce() -> rustix::io::Result<()>,
    ) -> Result<()> {
        let guard = Guard::put(self, dir, name)?;
        rename()?;
        match self.caps().whiteout {
            WhiteoutForm::Aufs => guard.keep(),
            WhiteoutForm::CharDev => guard.replaced_by(self.link_whiteout(dir.fd(), name)),
        }
        Ok(())
    }

    /// Does what puts a directory under `name`, where the upper has a whiteout. If it fails, the whiteout is put back.
    pub(in crate::union) fn over_whiteout(
        &self,
        dir: &UpperFd,
        name: &[u8],
        put: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let guard = Guard::put(self, dir, name)?;
        match self.remove_name(dir.fd(), name, AtFlags::empty()) {
            Ok(()) => changed(),
            Err(Errno::NOENT) => {} // a guard was left as the whiteout
            Err(e) => return Err(e.into()),
        }
        let done = put();
        if done.is_err() {
            guard.replaced_by(self.link_whiteout(dir.fd(), name));
        }
        done
    }

    /// Empties a directory that shows nothing, so that a rename may replace it: it is made opaque, which shows the same,
    /// and then needs its markers no more. `hidden`: the names that these hide. If it fails it is undone.
    pub(in crate::union) fn empty_of_markers<'a>(
        &'a self,
        (parent, name): (&'a UpperFd, &[u8]),
        dir: UpperFd,
        hidden: Vec<Vec<u8>>,
    ) -> Result<Emptied<'a>> {
        let cut = if self.caps().xattr {
            let was_opaque = upper_marks(dir.itself(), self.layer.layer.belief)?.opaque;
            self.make_opaque(dir.itself())?;
            if was_opaque { Cut::Before } else { Cut::Inside }
        } else {
            // The form inside the directory would be in the way.
            match self.aufs_whiteout(parent, name)? {
                true => Cut::Beside(parent, [WH_PREFIX, name].concat()),
                false => Cut::Before,
            }
        };
        let emptied = Emptied { upper: self, dir, hidden, cut };
        if let Err(left) = self.empty(emptied.dir.fd()) {
            // What failed first is told: the caller's call failed for that.
            if let Err(e) = emptied.undo() {
                log::error!("{}: stays an empty directory: {e}", String::from_utf8_lossy(name));
            }
            return Err(left.into());
        }
        changed();
        Ok(emptied)
    }
}

/// What keeps an emptied directory from what is below it.
enum Cut<'a> {
    /// What did so before.
    Before,
    /// A mark of its own.
    Inside,
    /// A whiteout of AUFS's form beside it.
    Beside(&'a UpperFd, Vec<u8>),
}

/// A directory without the markers that it had.
pub(in crate::union) struct Emptied<'a> {
    upper: &'a Upper,
    dir: UpperFd,
    hidden: Vec<Vec<u8>>,
    cut: Cut<'a>,
}

impl Emptied<'_> {
    /// Gives it markers of what it hid, and lets it be one again that merges with what is below.
    pub(in crate::union) fn undo(self) -> Result<()> {
        for name in &self.hidden {
            match self.upper.whiteout(&self.dir, name, None) {
                // It hadn't gone yet.
                Err(e) if e.errno() == Errno::EXIST => {}
                other => other?,
            }
        }
        match self.cut {
            Cut::Before => Ok(()),
            Cut::Inside => self.upper.drop_mark(self.dir.itself(), "opaque"),
            Cut::Beside(parent, marker) => {
                self.upper.remove_name(parent.fd(), &marker, AtFlags::empty())?;
                changed();
                Ok(())
            }
        }
    }
}
