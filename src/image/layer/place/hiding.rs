//! Deletions: what a layer hides of those below, by whiteouts and opaque directories.
//!
//! The parts of one layer don't hide each other, whichever comes first; and where a directory is opaque there are no
//! whiteouts, which would have nothing to hide and would be shown.

use std::os::fd::AsFd;

use rustix::fs::{self, AtFlags, FileType, Mode, XattrFlags};
use rustix::io::Errno;

use super::{Place, join, open_dir, split};
use crate::image::layer::LayerError;
use crate::sys::dir::for_each_entry;
use crate::sys::object::{At, Kind, SetTime, Time, Writable};
use crate::union::marker::{self, Namespace};

impl Place<'_> {
    /// Deletes what the layers below have under this path. What this layer has there stays.
    pub fn whiteout(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let (parent, name) = split(path);
        self.enter(parent, path)?;
        let namespace = self.namespace;
        if self.any_opaque && self.is_hidden(parent)? {
            return Ok(()); // nothing of below shows here anyway
        }
        let (dir, _) = self.dir()?;
        match fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => {
                // Its times say nothing; the same layer shall give the same directory.
                let epoch = Some(SetTime::At(Time::default()));
                Writable::of_upper(At::Name(dir, name))
                    .utimens(epoch, epoch)
                    .map_err(LayerError::os(path, "set its times"))
            }
            Err(Errno::EXIST) => {
                let stat = At::Name(dir, name).stat().map_err(LayerError::os(path, "look at it"))?;
                if stat.kind() != Kind::Directory {
                    return Ok(());
                }
                set_opaque(Writable::of_upper(At::Name(dir, name)), namespace)
                    .map_err(LayerError::os(path, "mark it opaque"))?;
                self.any_opaque = true;
                self.drop_whiteouts(path)
            }
            Err(errno) => Err(LayerError::os(path, "make a whiteout for it")(errno)),
        }
    }

    /// Hides what the layers below have in a directory. What this layer has there stays.
    pub fn opaque(&mut self, path: &[u8], entry: &[u8]) -> Result<(), LayerError> {
        self.enter(path, entry)?;
        let namespace = self.namespace;
        let (dir, _) = self.dir()?;
        set_opaque(Writable::of_upper(At::Fd(dir)), namespace)
            .map_err(LayerError::os(path, "mark it opaque"))?;
        self.any_opaque = true;
        self.drop_whiteouts(path)
    }

    /// Does an opaque directory hide what is below `path`? Asks every directory on the way.
    fn is_hidden(&self, path: &[u8]) -> Result<bool, LayerError> {
        let mut end = path.len();
        loop {
            let dir = open_dir(self.root, &path[..end]).map_err(LayerError::os(path, "open it"))?;
            let marks =
                marker::read_marks(At::Fd(dir.as_fd())).map_err(LayerError::os(path, "read its marks"))?;
            if marks.opaque || end == 0 {
                return Ok(marks.opaque);
            }
            end = split(&path[..end]).0.len();
        }
    }

    /// Removes the whiteouts in a directory that has become opaque, and in all below it: nothing is left for them to
    /// hide, and the kernel would show them.
    fn drop_whiteouts(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let mut todo = vec![path.to_vec()];
        while let Some(path) = todo.pop() {
            self.enter_existing(&path, &path)?;
            let mut whiteouts = Vec::new();
            let current = match &self.current {
                Some(current) => current.fd.as_fd(),
                None => return Ok(()),
            };
            for_each_entry::<Errno>(current, |entry| {
                match entry.kind {
                    Some(Kind::Directory) => todo.push(join(&path, entry.name)),
                    Some(Kind::CharDevice) | None => whiteouts.push(entry.name.to_vec()),
                    Some(_) => {}
                }
                Ok(())
            })
            .map_err(LayerError::os(&path, "list it"))?;
            for name in whiteouts {
                let (dir, _) = self.dir()?;
                let at = At::Name(dir, &name);
                let stat = at.stat().map_err(LayerError::os(&path, "look into it"))?;
                if stat.is_whiteout_device() {
                    fs::unlinkat(dir, &name[..], AtFlags::empty())
                        .map_err(LayerError::os(&path, "remove a whiteout in it"))?;
                } else if stat.kind() == Kind::Directory {
                    todo.push(join(&path, &name));
                }
            }
        }
        Ok(())
    }
}

pub(super) fn set_opaque(object: Writable<'_>, namespace: Namespace) -> rustix::io::Result<()> {
    object.set_xattr(namespace.name("opaque").as_bytes(), b"y", XattrFlags::empty())
}
