//! Deletions: what a layer hides of those below, by whiteouts and opaque directories.
//!
//! The parts of one layer don't hide each other, whichever comes first; and where a directory is opaque there are no
//! whiteouts, which would have nothing to hide and would be shown. What is deleted below something that the layer itself
//! made a link or a file is nothing that shows.

#![allow(clippy::disallowed_methods, reason = "the layer is being made, and is nobody else's")]

use std::os::fd::AsFd;

use rustix::fs::{self, AtFlags, FileType, Mode, XattrFlags};
use rustix::io::Errno;

use super::{UnpackTarget, join, split};
use crate::image::layer::LayerError;
use crate::sys::dir::for_each_entry;
use crate::sys::object::{At, Kind, SetTime, Time, Writable};
use crate::union::lookup::belief::Belief;
use crate::union::lookup::marker::{self};
use crate::union::lookup::private::Namespace;

impl UnpackTarget<'_> {
    /// Deletes what the layers below have under this path. What this layer has there stays.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn whiteout(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let (parent, name) = split(path);
        if self.is_cut_off(parent)? {
            self.skip(path);
            return Ok(());
        }
        self.enter(parent, path)?;
        let namespace = self.namespace;
        let (dir, _) = self.dir()?;
        match fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => {
                // Its times say nothing; the same layer shall give the same directory.
                let epoch = Some(SetTime::At(Time::default()));
                Writable::entry_of_own(dir, name)
                    .utimens(epoch, epoch)
                    .map_err(LayerError::os(path, "set its times"))?;
                self.any_whiteout = true;
                Ok(())
            }
            Err(Errno::EXIST) => {
                let stat = At::Name(dir, name).stat().map_err(LayerError::os(path, "look at it"))?;
                if stat.kind() != Kind::Directory {
                    return Ok(());
                }
                set_opaque(Writable::entry_of_own(dir, name), namespace)
                    .map_err(LayerError::os(path, "mark it opaque"))?;
                self.any_opaque = true;
                Ok(())
            }
            Err(errno) => Err(LayerError::os(path, "make a whiteout for it")(errno)),
        }
    }

    /// Hides what the layers below have in a directory. What this layer has there stays.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn opaque(&mut self, path: &[u8], entry: &[u8]) -> Result<(), LayerError> {
        if self.is_cut_off(path)? {
            self.skip(entry);
            return Ok(());
        }
        self.enter(path, entry)?;
        let namespace = self.namespace;
        let (dir, _) = self.dir()?;
        set_opaque(Writable::held(dir), namespace).map_err(LayerError::os(path, "mark it opaque"))?;
        self.any_opaque = true;
        Ok(())
    }

    /// Removes the whiteouts in opaque directories, and in all below those: nothing is left for them to hide, and the
    /// kernel would show them. Every directory is gone through once, when the layer is complete.
    pub(super) fn drop_pointless_whiteouts(&mut self) -> Result<(), LayerError> {
        let mut stack = vec![self.sweep(Vec::new(), false)?];
        while let Some(swept) = stack.last_mut() {
            let Some(name) = swept.directories.pop() else {
                stack.pop();
                continue;
            };
            let (path, hidden) = (join(&swept.path, &name), swept.hidden);
            stack.push(self.sweep(path, hidden)?);
        }
        Ok(())
    }

    /// Removes the whiteouts of one directory if it, or one above, is opaque.
    fn sweep(&mut self, path: Vec<u8>, hidden: bool) -> Result<Swept, LayerError> {
        self.enter_below(&path)?;
        let at = match &self.current {
            Some(current) => current.fd.as_fd(),
            None => return Err(LayerError::entry(&path, "not open")),
        };
        let marks = marker::read_marks(At::Fd(at), Belief::of_process())
            .map_err(LayerError::os(&path, "read its marks"))?;
        let hidden = hidden || marks.opaque;
        let (mut directories, mut whiteouts, mut listed) = (Vec::new(), Vec::new(), 0);
        for_each_entry::<Errno>(at, |entry| {
            listed += 1;
            match entry.kind {
                Some(Kind::Directory) => directories.push(entry.name.to_vec()),
                Some(Kind::CharDevice) if hidden => whiteouts.push(entry.name.to_vec()),
                Some(_) => {}
                None => {
                    let stat = At::Name(at, entry.name).stat()?;
                    match stat.kind() {
                        Kind::Directory => directories.push(entry.name.to_vec()),
                        Kind::CharDevice if hidden => whiteouts.push(entry.name.to_vec()),
                        _ => {}
                    }
                }
            }
            Ok(())
        })
        .map_err(LayerError::os(&path, "list it"))?;
        self.work += listed;
        for name in whiteouts {
            let (dir, _) = self.dir()?;
            let stat = At::Name(dir, &name).stat().map_err(LayerError::os(&path, "look into it"))?;
            if stat.is_whiteout_device() {
                fs::unlinkat(dir, &name[..], AtFlags::empty())
                    .map_err(LayerError::os(&path, "remove a whiteout in it"))?;
            }
        }
        Ok(Swept { path, directories, hidden })
    }
}

/// A directory without its pointless whiteouts.
struct Swept {
    path: Vec<u8>,
    /// The directories in it that are still to be gone through.
    directories: Vec<Vec<u8>>,
    hidden: bool,
}

pub(super) fn set_opaque(object: Writable<'_>, namespace: Namespace) -> rustix::io::Result<()> {
    object.set_xattr(namespace.name("opaque").as_bytes(), b"y", XattrFlags::empty())
}
