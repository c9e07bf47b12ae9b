//! What is the same on both sides is left alone.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::walk::Walk;
use crate::changes::apply::beneath::{find_dir, look};
use crate::changes::apply::error::{ApplyError, Result};
use crate::changes::apply::judge::Old;
use crate::changes::apply::put::Attributes;
use crate::image::layer::merged::{find, of_union};
use crate::image::layer::place::{join, open_dir, split};
use crate::sys::dir::for_each_entry;
use crate::sys::object::{Kind, Stat};
use crate::union::Union;
use crate::union::data::content::Content;
use crate::union::nodes::node::Node;

impl Walk<'_> {
    /// Returns whether the target has the same already, with all that is in it.
    pub(super) fn is_there(&self, path: &[u8], old: &Old<'_>) -> Result<bool> {
        let mut todo = vec![Vec::new()];
        while let Some(relative) = todo.pop() {
            let whole = if relative.is_empty() { path.to_vec() } else { join(path, &relative) };
            let Some(node) = find(&self.merged, &whole)? else { return Ok(false) };
            let same = self.same_object(&node, &whole, &relative, old, &mut todo);
            self.merged.forget(node.ino, 1);
            if !same? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Compares one object; what is in a directory is added to `todo`.
    pub(super) fn same_object(
        &self,
        node: &Arc<Node>,
        path: &[u8],
        relative: &[u8],
        top: &Old<'_>,
        todo: &mut Vec<Vec<u8>>,
    ) -> Result<bool> {
        let shown = self.merged.getattr(node).map_err(of_union(path))?.stat;
        let inner = join(top.name, relative);
        let (parent, name) = split(if relative.is_empty() { top.name } else { &inner });
        let Some(around) = find_dir(top.dir, parent)? else { return Ok(false) };
        let Some(stat) = look(around.as_fd(), name, path)? else { return Ok(false) };
        let old = Old { dir: around.as_fd(), name, stat, path };
        if shown.kind() != Kind::Directory || stat.kind() != Kind::Directory {
            return is_same(&self.merged, node, &shown, &old);
        }
        let wanted = Attributes::shown(&self.merged, node, &shown, path)?;
        if !wanted.is_like(&Attributes::read(old.at(), &stat, path)?) {
            return Ok(false);
        }
        let (mut shown, mut there) = (Vec::new(), Vec::new());
        self.merged
            .readdir(node, 0, |entry| {
                shown.push(entry.name.into_vec());
                true
            })
            .map_err(of_union(path))?;
        let dir = open_dir(around.as_fd(), name).map_err(ApplyError::at(path, "open it"))?;
        for_each_entry::<rustix::io::Errno>(dir.as_fd(), |entry| {
            there.push(entry.name.to_vec());
            Ok(())
        })
        .map_err(ApplyError::at(path, "list it"))?;
        shown.sort();
        there.sort();
        todo.extend(shown.iter().map(|name| join(relative, name)));
        Ok(shown == there)
    }
}

/// Returns whether the target has what the union shows: type, content, attributes.
fn is_same(union: &Union, node: &Arc<Node>, shown: &Stat, old: &Old<'_>) -> Result<bool> {
    let path = old.path;
    let quick = (shown.kind(), shown.rdev, shown.mtime) == (old.stat.kind(), old.stat.rdev, old.stat.mtime)
        && (shown.kind() != Kind::File || shown.size == old.stat.size)
        && (shown.kind() == Kind::Symlink || shown.mode == old.stat.mode);
    if !quick || shown.kind() == Kind::Directory {
        return Ok(false);
    }
    if !Attributes::shown(union, node, shown, path)?.is_like(&Attributes::read(old.at(), &old.stat, path)?) {
        return Ok(false);
    }
    match shown.kind() {
        Kind::Symlink => {
            let target = old.at().readlink().map_err(ApplyError::at(path, "read its target"))?;
            Ok(union.readlink(node).map_err(of_union(path))? == target)
        }
        Kind::File => {
            let new = union.content(node).map_err(of_union(path))?;
            // What is there by now may be a fifo or a device; then it isn't the same.
            match old.at().open_file().map_err(ApplyError::at(path, "open it"))? {
                Some(old) => Ok(same_data(&new, &old.into()).map_err(of_union(path))?),
                None => Ok(false),
            }
        }
        _ => Ok(true),
    }
}

fn same_data(one: &Content, other: &Content) -> crate::error::Result<bool> {
    const CHUNK: usize = 256 << 10;
    let (mut a, mut b) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut offset = 0;
    loop {
        let (in_a, in_b) = (one.read_at(&mut a, offset)?, other.read_at(&mut b, offset)?);
        if a[..in_a] != b[..in_b] {
            return Ok(false);
        }
        if in_a < CHUNK {
            return Ok(true);
        }
        offset += CHUNK as u64;
    }
}
