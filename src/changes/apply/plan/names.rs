//! Files with several names: they are one file in the target as well.

use std::os::fd::AsFd;

use super::rights::may_change;
use super::walk::Walk;
use crate::changes::apply::beneath::{Dir, Seen, name_of};
use crate::changes::apply::error::{ApplyError, Result};
use crate::changes::apply::put::Attributes;
use crate::changes::apply::raw;
use crate::changes::apply::step::{Act, Goes, Step, What};
use crate::image::layer::LayerError;
use crate::image::layer::place::{join, open_dir, split};
use crate::sys::dir::for_each_entry;
use crate::sys::namespace::is_privileged;
use crate::sys::object::{At, Kind};

impl Walk<'_> {
    /// Notes the files with several names in a directory of the upper that is made anew: all of these are.
    pub(super) fn anew(&mut self, path: &[u8]) -> Result<()> {
        let mut todo = vec![path.to_vec()];
        while let Some(path) = todo.pop() {
            let dir = open_dir(self.upper, &path).map_err(LayerError::os(&path, "open it"))?;
            for_each_entry::<rustix::io::Errno>(dir.as_fd(), |entry| {
                let stat = At::Name(dir.as_fd(), entry.name).stat()?;
                if stat.kind() == Kind::Directory {
                    todo.push(join(&path, entry.name));
                } else if stat.nlink > 1 && !stat.is_whiteout_device() {
                    self.there.entry((stat.dev, stat.ino)).or_default().push(None);
                }
                Ok(())
            })
            .map_err(LayerError::os(&path, "list it"))?;
        }
        Ok(())
    }

    /// Plans further names: a file of the target with several names, one of which was copied up, is the copy under all that
    /// the upper doesn't hide.
    pub(super) fn other_names(&mut self) -> Result<()> {
        if self.links.is_empty() {
            return Ok(());
        }
        let mut todo = vec![Vec::new()];
        while let Some(now) = todo.pop() {
            let (opened, stat) = self.open_target(&now)?;
            let mut found = Vec::new();
            for_each_entry::<rustix::io::Errno>(opened.as_fd(), |entry| {
                let one = At::Name(opened.as_fd(), entry.name).stat()?;
                if one.kind() == Kind::Directory && !one.mount_root {
                    todo.push(join(&now, entry.name));
                } else if self.links.contains_key(&(one.dev, one.ino)) {
                    found.push((join(&now, entry.name), one));
                }
                Ok(())
            })
            .map_err(ApplyError::at(&now, "list it"))?;
            for (path, one) in found {
                let path = self.in_the_end(&path);
                let moved = |path: &[u8]| self.moved_to(path).is_some();
                if raw::hides(self.upper, &path, moved)? || self.steps.iter().any(|step| step.path.0 == path)
                {
                    continue;
                }
                let Some(&first) = self.links.get(&(one.dev, one.ino)) else { continue };
                may_change(opened.as_fd(), name_of(&path), &path)?;
                let dir = Dir { path: split(&path).0.into(), seen: Seen::of(&stat) };
                let stage = self.stage(stat.dev, &dir);
                let replaces = Some(Goes::new(&one, None));
                let act = Act::Put { what: What::Link(first), replaces, made: None };
                // What is somebody else's gets new times, which its owner alone could set back.
                let is_ours = is_privileged() || stat.uid == rustix::process::geteuid().as_raw();
                if is_ours && !dir.path.0.is_empty() && !self.alters.iter().any(|step| step.dir == dir) {
                    let attributes = Attributes::read(At::Fd(opened.as_fd()), &stat, &now)?;
                    let alter = Act::Alter { seen: dir.seen, known: attributes.clone(), attributes };
                    self.alters.push(Step { path: dir.path.clone(), dir: dir.clone(), stage, act: alter });
                }
                self.steps.push(Step { path: path.into(), dir, stage, act });
            }
        }
        Ok(())
    }
}
