//! What becomes of names of the upper: whiteouts, removals, renames and links, each visible in one step.

#![allow(
    clippy::disallowed_methods,
    reason = "the one part that writes: what it removes and renames was held against what the kernel knows"
)]

use std::os::fd::BorrowedFd;

use rustix::fs::{self, AtFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::Result;
use crate::sys::object::{At, Kind, Writable};
use crate::union::change::staged::{New, Publish, Staged, check_present};
use crate::union::change::upper::{Present, Upper, UpperFd, changed};
use crate::union::lookup::marker::WH_PREFIX;
use crate::union::stack::layer::WhiteoutForm;

impl Upper {
    /// Makes a whiteout in the staging directory: a link to the one that all share, so that none costs an inode.
    fn stage_whiteout(&self) -> Result<Staged<'_>> {
        let name = self.fresh_name();
        self.link_whiteout(self.staging(), &name)?;
        Ok(Staged::named(self, name))
    }

    /// Links the shared whiteout to a name that must be free.
    pub(in crate::union) fn link_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let shared = self.whiteout.lock().clone();
        if let Some(whiteout) = &shared {
            match fs::linkat(self.staging(), &whiteout[..], dir, name, AtFlags::empty()) {
                Ok(()) => {
                    changed();
                    return Ok(());
                }
                // Too many links, a filesystem without any, or somebody emptied the workdir: a new one below.
                Err(Errno::MLINK | Errno::PERM | Errno::NOENT | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e.into()),
            }
        }
        // A deletion makes room.
        self.make_in_any_case(dir, name, New::Special(Kind::CharDevice, 0), 0)?;
        changed();
        let keep = self.fresh_name();
        match fs::linkat(dir, name, self.staging(), &keep[..], AtFlags::empty()) {
            Ok(()) => {
                changed();
                // Another thread may have been faster: its whiteout stays in the staging directory until the end.
                *self.whiteout.lock() = Some(keep);
            }
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK) => {}
            Err(e) => log::warn!("workdir: no whiteout can be kept to link to: {e}"),
        }
        Ok(())
    }

    /// Hides `name` of the layers below. `present`: whether the upper has an entry of that name, to be replaced.
    ///
    /// One atomic step in each form: with AUFS's the whiteout stands beside the entry before that is removed, and
    /// hides only what is below.
    pub fn whiteout(&self, dir: &UpperFd, name: &[u8], present: Option<Present<'_>>) -> Result<()> {
        self.hiding(|| self.whiteout_now(dir, name, present))
    }

    fn whiteout_now(&self, dir: &UpperFd, name: &[u8], present: Option<Present<'_>>) -> Result<()> {
        match self.caps().whiteout {
            WhiteoutForm::Aufs => {
                self.aufs_whiteout(dir, name)?;
                present.map_or(Ok(()), |present| self.remove(dir, name, present))
            }
            WhiteoutForm::CharDev => match present {
                None => self.link_whiteout(dir.fd(), name),
                Some(Present::Leaf) => self.stage_whiteout()?.publish(dir, name, Publish::Replace),
                Some(present) if !self.caps().rename_exchange => {
                    self.whiteout_over_directory(dir, name, present)
                }
                Some(present) => self.stage_whiteout()?.publish(dir, name, Publish::Swap(present)),
            },
        }
    }

    /// Hides `name`, which the upper's directory doesn't have, by a whiteout of its own that has one more link under
    /// `also` in the hardlink index, before it becomes visible. Returns its inode number.
    pub(in crate::union) fn publish_counted_whiteout(
        &self,
        dir: &UpperFd,
        name: &[u8],
        also: &[u8],
    ) -> Result<u64> {
        let staged = self.stage_in_any_case(New::Special(Kind::CharDevice, 0))?;
        let ino = staged.object().at().stat()?.ino;
        let link = || staged.object().link_to(self.index_dir(), also);
        match link() {
            Err(Errno::EXIST) => {
                // Left by a crash, and counted since.
                self.remove_name(self.index_dir(), also, AtFlags::empty())?;
                link()?;
            }
            other => other?,
        }
        changed();
        staged.publish(dir, name, Publish::New)?;
        Ok(ino)
    }

    /// Puts a whiteout of AUFS's form beside a name. False: there was one.
    pub(in crate::union) fn aufs_whiteout(&self, dir: &UpperFd, name: &[u8]) -> Result<bool> {
        let marker = [WH_PREFIX, name].concat();
        let made = match self.make_in_any_case(dir.fd(), &marker, New::File, 0o600) {
            Ok(_) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(e.into()),
        };
        dir.note_aufs_whiteout();
        changed();
        Ok(made)
    }

    /// Removes an entry that hides nothing. A directory that holds markers only is taken out whole first.
    pub fn remove(&self, dir: &UpperFd, name: &[u8], present: Present<'_>) -> Result<()> {
        if matches!(present, Present::Leaf) {
            self.remove_name(dir.fd(), name, AtFlags::empty())?;
            changed();
            return Ok(());
        }
        match self.remove_name(dir.fd(), name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if !matches!(present, Present::Empty) => {
                self.take_out(dir, name, present).map(drop)
            }
            other => {
                other?;
                changed();
                Ok(())
            }
        }
    }

    /// Takes a directory out of the upper, whole, in one step. It is removed when what is returned is dropped.
    pub(in crate::union) fn take_out(
        &self,
        dir: &UpperFd,
        name: &[u8],
        present: Present<'_>,
    ) -> Result<Staged<'_>> {
        let mut taken = Staged::named(self, self.fresh_name());
        (taken.directory, taken.armed) = (true, false);
        let away = (self.staging(), &taken.name[..]);
        self.rename_name((dir.fd(), name), away, RenameFlags::empty())?;
        if let Err(e) = check_present(At::Name(self.staging(), &taken.name), present) {
            // Another directory has come to be there, with who knows what in it, or it can't be seen: it goes back.
            self.rename_name((self.staging(), &taken.name), (dir.fd(), name), RenameFlags::empty())?;
            return Err(e);
        }
        changed();
        taken.armed = true;
        Ok(taken)
    }

    /// Renames within the upper, one atomic step. `leave_whiteout`: the old name hides what is below afterwards. With
    /// `NOREPLACE` nothing is replaced, where the upper's filesystem can tell.
    pub fn rename(
        &self,
        from: (&UpperFd, &[u8]),
        to: (&UpperFd, &[u8]),
        leave_whiteout: bool,
        flags: RenameFlags,
    ) -> Result<()> {
        if leave_whiteout || flags.contains(RenameFlags::EXCHANGE) {
            return self.hiding(|| self.rename_now(from, to, leave_whiteout, flags));
        }
        self.rename_now(from, to, leave_whiteout, flags)
    }

    fn rename_now(
        &self,
        from: (&UpperFd, &[u8]),
        to: (&UpperFd, &[u8]),
        leave_whiteout: bool,
        flags: RenameFlags,
    ) -> Result<()> {
        let ((from_dir, from_name), (to_dir, to_name)) = (from, to);
        let can = self.caps().rename_noreplace;
        let flags = if can { flags } else { flags - RenameFlags::NOREPLACE };
        let call = |flags| {
            self.rename_name((from_dir.fd(), from_name), (to_dir.fd(), to_name), flags)?;
            changed();
            Ok::<_, Errno>(())
        };
        if !leave_whiteout {
            return Ok(call(flags)?);
        }
        if self.caps().whiteout == WhiteoutForm::CharDev && self.caps().rename_whiteout {
            return match call(flags | RenameFlags::WHITEOUT) {
                // A filesystem that has each of two flags may not have both at once.
                Err(Errno::INVAL) if !flags.is_empty() => Ok(call(RenameFlags::WHITEOUT)?),
                other => Ok(other?),
            };
        }
        self.rename_behind_guard(from_dir, from_name, || call(flags))
    }

    /// Renames a directory to a name where the upper has a whiteout. `leave_whiteout`: as in [`Upper::rename`].
    pub(in crate::union) fn rename_directory_over_whiteout(
        &self,
        from: (&UpperFd, &[u8]),
        to: (&UpperFd, &[u8]),
        leave_whiteout: bool,
    ) -> Result<()> {
        if !self.caps().rename_exchange {
            let rename = || self.rename(from, to, leave_whiteout, RenameFlags::empty());
            return self.over_whiteout(to.0, to.1, rename);
        }
        // A directory can't replace a device, but it can change places with it.
        let exchange = || self.rename(from, to, false, RenameFlags::EXCHANGE);
        exchange()?;
        if leave_whiteout {
            return Ok(());
        }
        self.remove(from.0, from.1, Present::Leaf).or_else(|error| match exchange() {
            Ok(()) => Err(error),
            // It is where it should be. What stays hides nothing, and is met by who needs the name.
            Err(_) => {
                log::warn!("a whiteout that nothing needs stays at the old name: {error}");
                Ok(())
            }
        })
    }

    /// Gives an object of the upper one more name.
    pub fn link(&self, object: Writable<'_>, dir: &UpperFd, name: &[u8]) -> Result<()> {
        self.room_for_name()?;
        self.link_in_any_case(object, dir, name)
    }

    /// Does as [`Upper::link`], also where there is no room: for a name that is removed next, or renamed.
    pub(in crate::union) fn link_in_any_case(
        &self,
        object: Writable<'_>,
        dir: &UpperFd,
        name: &[u8],
    ) -> Result<()> {
        object.link_to(dir.fd(), name)?;
        changed();
        Ok(())
    }

    /// Does as [`Upper::link`], over a whiteout: one atomic step.
    pub fn link_over(&self, object: Writable<'_>, dir: &UpperFd, name: &[u8]) -> Result<()> {
        self.room_for_name()?;
        let staged = self.fresh_name();
        object.link_to(self.staging(), &staged)?;
        changed();
        let staged = Staged::named(self, staged);
        staged.publish(dir, name, Publish::Replace)
    }
}
