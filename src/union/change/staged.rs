//! The staging directory: what is to appear in the upper is made there, filled, and published whole.

#![allow(
    clippy::disallowed_methods,
    reason = "what it makes is its own, and what it holds was held against what the kernel knows"
)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::{At, Kind, Writable};
pub use crate::union::change::new::New;
use crate::union::change::upper::{Present, Upper, UpperFd, changed};

/// How something staged becomes visible.
#[derive(Debug, Clone, Copy)]
pub enum Publish<'a> {
    /// Under a name that nothing in the upper has.
    New,
    /// In place of what the name has (a whiteout, a file; an empty directory by a directory).
    Replace,
    /// In place of that, whatever the two types are. Without RENAME_EXCHANGE of a whiteout alone.
    Swap(Present<'a>),
}

impl Upper {
    /// Makes an object in the staging directory, open to nobody but the daemon.
    pub fn stage(&self, new: New<'_>) -> Result<Staged<'_>> {
        self.stage_by(new, |dir, name, new, mode| self.make(dir, name, new, mode))
    }

    /// Does as [`Upper::stage`], also where there is no room: of what makes room, or is there only until something is removed.
    pub(in crate::union) fn stage_in_any_case(&self, new: New<'_>) -> Result<Staged<'_>> {
        self.stage_by(new, |dir, name, new, mode| self.make_in_any_case(dir, name, new, mode))
    }

    fn stage_by(
        &self,
        new: New<'_>,
        make: impl FnOnce(BorrowedFd<'_>, &[u8], New<'_>, u32) -> rustix::io::Result<Option<OwnedFd>>,
    ) -> Result<Staged<'_>> {
        let name = self.fresh_name();
        let mode = if matches!(new, New::Directory) { 0o700 } else { 0o600 };
        let file = make(self.staging(), &name, new, mode)?;
        changed();
        let directory = matches!(new, New::Directory);
        Ok(Staged { upper: self, name, file, directory, armed: true })
    }

    /// Makes a regular file that has no name until it is published (O_TMPFILE), which costs less and leaves nothing behind; `None`
    /// where it had better have one. Its permission bits are the daemon's choice of `mode`.
    pub(in crate::union::change) fn stage_unnamed(&self, mode: u32) -> Option<Staged<'_>> {
        // Without a journal the name may be on the disk before what makes it a file of one name is; tests of a unit are there to
        // have files made so, wherever they run. What is counted has a name.
        if !self.caps().tmpfile || !(self.orders_names() || cfg!(test)) || self.quota().is_some() {
            return None;
        }
        // Whatever is in the way is so for a file with a name too, or isn't.
        let file = self.unnamed_file(mode).ok()?;
        changed();
        Some(Staged { upper: self, name: Vec::new(), file: Some(file), directory: false, armed: false })
    }

    /// Makes an object right under its name, which nothing may have: for the common case that the daemon's own
    /// credentials are the caller's, so that there is no moment with other rights. A regular file comes open.
    pub fn make_in_place(
        &self,
        dir: &UpperFd,
        name: &[u8],
        new: New<'_>,
        mode: u32,
    ) -> rustix::io::Result<Option<OwnedFd>> {
        let made = self.make(dir.fd(), name, new, mode)?;
        changed();
        Ok(made)
    }
}

/// Checks that what was taken from a name is what it was taken for; `ESTALE` if not. Nobody else can exchange it any
/// more.
pub(in crate::union::change) fn check_present(taken: At<'_>, present: Present<'_>) -> Result<()> {
    let stat = taken.stat()?;
    let is_so = match present {
        Present::Leaf => stat.kind() != Kind::Directory,
        Present::Empty => stat.kind() == Kind::Directory,
        Present::Directory(real) => real.id == (stat.dev, stat.ino),
    };
    if is_so { Ok(()) } else { Err(FsError::Stale) }
}

/// Something in the staging directory: published, or removed again when it is dropped.
#[derive(Debug)]
pub struct Staged<'u> {
    upper: &'u Upper,
    /// Empty: it has none.
    pub(in crate::union::change) name: Vec<u8>,
    file: Option<OwnedFd>,
    pub(in crate::union::change) directory: bool,
    pub(in crate::union::change) armed: bool,
}

impl<'u> Staged<'u> {
    /// Takes what has been put under that name of the staging directory.
    pub(in crate::union::change) fn named(upper: &'u Upper, name: Vec<u8>) -> Staged<'u> {
        Staged { upper, name, file: None, directory: false, armed: true }
    }
}

impl Staged<'_> {
    /// Returns the object, to be filled.
    pub fn object(&self) -> Writable<'_> {
        match &self.file {
            Some(file) => Writable::held(file.as_fd()),
            None => Writable::entry_of_own(self.upper.staging(), &self.name),
        }
    }

    /// Returns the open file, if it is a regular one.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|f| f.as_fd())
    }

    /// Takes the open file, which stays open after publishing.
    pub fn take_file(&mut self) -> Option<OwnedFd> {
        self.file.take()
    }

    /// Returns the upper that it is staged for.
    pub(in crate::union) fn upper(&self) -> &Upper {
        self.upper
    }

    /// Returns where it lies in the staging directory.
    pub(in crate::union) fn place(&self) -> Writable<'_> {
        Writable::entry_of_own(self.upper.staging(), &self.name)
    }

    /// Puts the object under a name of the hardlink index, in place of what has it.
    pub(in crate::union) fn publish_in_index(mut self, name: &[u8]) -> Result<()> {
        let (staging, index) = (self.upper.staging(), self.upper.index_dir());
        self.upper.looked_at(self.object().at());
        self.upper.rename_name((staging, &self.name), (index, name), RenameFlags::empty())?;
        self.armed = false;
        changed();
        Ok(())
    }

    /// Makes the object visible under a name that nothing in the upper has. Returns the file, if it is one.
    pub(in crate::union::change) fn publish_new(
        mut self,
        dir: &UpperFd,
        name: &[u8],
    ) -> Result<Option<OwnedFd>> {
        let file = self.file.take();
        match &file {
            Some(file) if self.name.is_empty() => {
                Writable::held(file.as_fd()).link_to(dir.fd(), name)?;
                changed();
            }
            _ => self.publish(dir, name, Publish::New)?,
        }
        Ok(file)
    }

    /// Makes the object visible under `name`, in one atomic step.
    pub fn publish(mut self, dir: &UpperFd, name: &[u8], how: Publish<'_>) -> Result<()> {
        let staging = self.upper.staging();
        self.upper.looked_at(self.object().at());
        let call = |flags| {
            self.upper.rename_name((staging, &self.name), (dir.fd(), name), flags)?;
            changed();
            Ok::<_, Errno>(())
        };
        match how {
            Publish::New if self.upper.caps().rename_noreplace => call(RenameFlags::NOREPLACE)?,
            // A filesystem without the flag: the caller knows that the name is free and holds its lock.
            Publish::New => call(RenameFlags::empty())?,
            Publish::Swap(_) if !self.upper.caps().rename_exchange => {
                self.upper.over_whiteout(dir, name, || Ok(call(RenameFlags::empty())?))?;
            }
            Publish::Replace => call(RenameFlags::empty())?,
            Publish::Swap(present) => return self.swap(dir, name, present).map(drop),
        }
        self.armed = false;
        Ok(())
    }
}

impl<'u> Staged<'u> {
    /// Exchanges the object and what has the name. Needs RENAME_EXCHANGE.
    pub fn swap<'a>(self, dir: &'a UpperFd, name: &'a [u8], present: Present<'_>) -> Result<Swapped<'a>>
    where
        'u: 'a,
    {
        self.upper.looked_at(self.object().at());
        let mut swapped = Swapped { staged: self, dir, name };
        swapped.exchange()?;
        let taken = At::Name(swapped.staged.upper.staging(), &swapped.staged.name);
        if let Err(e) = check_present(taken, present) {
            // Another thing has come to be there, with who knows what in it, or it can't be seen: it goes back.
            swapped.exchange()?;
            return Err(e);
        }
        swapped.staged.directory = !matches!(present, Present::Leaf);
        Ok(swapped)
    }
}

/// What is under a name in place of what lies in the staging directory now, and goes when this is dropped.
#[derive(Debug)]
pub struct Swapped<'a> {
    staged: Staged<'a>,
    dir: &'a UpperFd,
    name: &'a [u8],
}

impl Swapped<'_> {
    fn exchange(&self) -> Result<()> {
        let staging = self.staged.upper.staging();
        let staged = (staging, &self.staged.name[..]);
        self.staged.upper.rename_name(staged, (self.dir.fd(), self.name), RenameFlags::EXCHANGE)?;
        changed();
        Ok(())
    }

    /// Puts both back.
    pub fn undo(self) -> Result<()> {
        self.exchange()
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let removed = if self.directory {
            self.upper.remove_tree(self.upper.staging(), &self.name)
        } else {
            self.upper.remove_name(self.upper.staging(), &self.name, AtFlags::empty())
        };
        // Not an error of the operation: nothing of it is visible, and the next mount empties the directory.
        if let Err(e) = removed {
            log::warn!("workdir: {} was left behind: {e}", String::from_utf8_lossy(&self.name));
        }
    }
}
