//! Copy-up: the first change to something that only a lower has.
//!
//! Three phases. **Prepare** makes an object in the staging directory. **Fill** gives it the data (holes kept), owner,
//! mode, extended attributes and ACLs, and times of the lower's, in this order, because a change of owner clears
//! setuid and capabilities. **Publish** makes it visible under its name in one atomic step, after an fsync unless the
//! upper is volatile. Parents go first. What fails on the way leaves nothing.
//!
//! Only publishing holds locks that other requests need; while data are copied the lower's file is read as before.
//! Two that want the same copy-up wait on one lock, and the second finds nothing left to do.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Mutex;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::copy::file_data;
use crate::sys::object::{At, Kind, SetTime, Stat, Writable};
use crate::sys::xattr;
use crate::union::Union;
use crate::union::change::failpoint;
use crate::union::change::staged::{New, Publish, Staged};
use crate::union::change::upper::{Upper, UpperFd};
use crate::union::data::file::open_owned;
use crate::union::events::EventKind;
use crate::union::hardlinks::counts::{ORIGIN, UNPUBLISHED};
use crate::union::lookup::belief::Belief;
use crate::union::lookup::index::UpperEntry;
use crate::union::lookup::marker;
use crate::union::lookup::private;
use crate::union::lookup::realdir::RealDir;
use crate::union::lookup::veil::check_unveiled;
use crate::union::nodes::generation::Generation;
use crate::union::nodes::node::{InodeId, Name, Named, Node, NodePlace, NodeSource};
use crate::union::view::acl;
use crate::union::view::owners::Override;

/// The attribute of a file's capabilities, which a write takes away.
const CAPABILITIES: &[u8] = b"security.capability";

/// So many bytes take long enough to copy that a thread of their own costs nothing.
const MUCH: u64 = 256 << 10;

/// A lower's object, about to be copied up.
struct Original {
    /// Stands for it (O_PATH).
    fd: Arc<OwnedFd>,
    /// What it really is.
    stat: Stat,
    /// What the layer keeps of it: see [`crate::union::view::owners`].
    kept: Stat,
    id: InodeId,
    /// How much of the data is wanted.
    size: u64,
}

impl Original {
    /// Is less than all wanted, since the file is to be truncated?
    fn is_cut(&self) -> bool {
        self.stat.kind() == Kind::File && self.size < self.stat.size
    }
}

impl Union {
    /// Makes sure that the node's object is in the upper.
    pub(in crate::union) fn ensure_upper(&self, node: &Arc<Node>) -> Result<()> {
        self.ensure_upper_sized(node, None).map(drop)
    }

    /// As [`Union::ensure_upper`], but a file that is copied up has only the first `size` bytes of data, if it has more:
    /// it appears truncated, for a step that came after could fail. Tells whether that is done.
    pub(in crate::union) fn ensure_upper_sized(&self, node: &Arc<Node>, size: Option<u64>) -> Result<bool> {
        self.upper()?;
        if self.in_upper(node) {
            return self.complete_data(node, size);
        }
        check_unveiled(node)?;
        let mut chain = Vec::new();
        let mut at = node.parent();
        while let Some(parent) = at {
            if self.in_upper(&parent) {
                break;
            }
            at = parent.parent();
            chain.push(parent);
        }
        for parent in chain.iter().rev() {
            self.copy_up(parent, None).map(drop)?;
        }
        self.copy_up(node, size)
    }

    /// Is the node's object in the upper?
    pub(in crate::union) fn in_upper(&self, node: &Node) -> bool {
        if let Some(dir) = &node.dir {
            return dir.upper.read().is_some();
        }
        self.is_in_upper_place(&node.place.read())
    }

    /// Is what has this place in the upper?
    pub(in crate::union) fn is_in_upper_place(&self, place: &NodePlace) -> bool {
        match place {
            NodePlace::Root => true,
            NodePlace::Named { entry, .. } => !matches!(entry.source(), NodeSource::Lower(_)),
            NodePlace::Pinned { upper, .. } => *upper,
        }
    }

    /// Would a change of the node copy much data up first? Then it had better not keep a thread that others wait for.
    pub fn copies_much(&self, node: &Node) -> bool {
        node.kind == Kind::File
            && self.upper.is_some()
            && (!self.in_upper(node) || self.metacopies.contains_key(&node.ino))
            && self.getattr(node).is_ok_and(|attr| attr.stat.size >= MUCH)
    }

    /// As [`Union::copies_much`], for what a name stands for.
    pub fn copies_much_under(&self, parent: &Node, name: &[u8]) -> bool {
        let Ok(dir) = self.dir_part(parent) else { return false };
        let _names = dir.names.read();
        // What goes wrong here goes wrong again when the change is made, and is told then.
        self.resolve(parent, name).is_ok_and(|found| {
            found.is_some_and(|f| {
                !self.is_upper(f.layer) && f.stat.kind() == Kind::File && f.stat.size >= MUCH
            })
        })
    }

    /// Copies one object up whose parent is in the upper. Tells whether it appeared truncated.
    fn copy_up(&self, node: &Arc<Node>, size: Option<u64>) -> Result<bool> {
        let turn = self.copying.entry(node.ino).or_insert_with(|| Arc::new(Mutex::new(()))).clone();
        let done = {
            let _turn = turn.lock();
            if self.in_upper(node) { Ok(false) } else { self.copy_up_now(node, size) }
        };
        drop(turn);
        self.copying.remove_if(&node.ino, |_, turn| Arc::strong_count(turn) == 1);
        done
    }

    fn copy_up_now(&self, node: &Arc<Node>, size: Option<u64>) -> Result<bool> {
        let started = Instant::now();
        let upper = self.upper()?;
        let layer = if self.events.listening() { self.lower_of(node) } else { None };
        let original = self.original(node, size)?;
        let staged = self.prepare(upper, node, &original)?;
        let moved = self.fill(node, &staged, &original)?;
        if let Some(file) = staged.file() {
            upper.sync(file, false)?;
        }
        self.publish(node, staged, &original)?;
        self.changed_by_itself(node);
        if self.keeps_links(&original) {
            self.link_known_names(node);
        }
        self.counters.copy_ups.fetch_add(1, Ordering::Relaxed);
        self.counters.copied_bytes.fetch_add(moved, Ordering::Relaxed);
        self.events.tell(|| EventKind::CopyUp {
            path: self.path_of(node).into(),
            kind: node.kind.into(),
            bytes: if node.kind == Kind::File { original.size } else { 0 },
            layer: layer.map(|layer| self.layer_number(layer)),
            micros: started.elapsed().as_micros() as u64,
        });
        log::debug!(
            "copy-up of {} ({} bytes) in {:?}",
            String::from_utf8_lossy(&self.path_of(node)),
            original.size,
            started.elapsed()
        );
        Ok(original.is_cut())
    }

    fn original(&self, node: &Node, size: Option<u64>) -> Result<Original> {
        let (fd, stat, kept) = self.with_object(node, |object| {
            Ok((object.shared_fd(), object.stat()?, self.kept_without_links(object)?))
        })?;
        Ok(Original { fd, stat, kept, id: node.real(), size: size.map_or(stat.size, |s| s.min(stat.size)) })
    }

    fn prepare<'u>(&self, upper: &'u Upper, node: &Node, original: &Original) -> Result<Staged<'u>> {
        let target;
        let new = match original.kept.kind() {
            Kind::File => New::File,
            Kind::Directory => New::Directory,
            Kind::Symlink if self.owners.is_file(&original.stat, &original.kept) => New::File,
            Kind::Symlink => {
                target = self.readlink(node)?;
                New::Symlink(&target)
            }
            kind => New::Special(kind, original.kept.rdev),
        };
        upper.stage(self.owners.placeholder(new))
    }

    /// Gives the copy all that the original has. Returns how many bytes of data were moved.
    fn fill(&self, node: &Node, staged: &Staged<'_>, original: &Original) -> Result<u64> {
        let from = At::Fd(original.fd.as_fd());
        let moved = match staged.file() {
            Some(to) if original.size > 0 && original.stat.kind() == Kind::File => {
                let elsewhere = self.metacopies.get(&node.ino).map(|at| at.clone());
                let data = match elsewhere {
                    Some(at) => self.open_data_elsewhere(&at)?,
                    None => from.open_read()?,
                };
                file_data(data.as_fd(), to, original.size, !self.upper()?.is_volatile())?
            }
            _ => 0,
        };
        let object = staged.object();
        if original.stat.kind() != Kind::Directory {
            let upper = self.upper()?;
            if self.keeps_origin(original)
                && let Some(origin) = self.origin_value(original.id)
            {
                upper.set_mark(object, ORIGIN, &origin)?;
            }
            if self.keeps_links(original) {
                let names = original.stat.nlink.saturating_sub(self.hidden_count(original.id));
                self.set_copied_nlink(object, names, 2)?;
                upper.set_mark(object, UNPUBLISHED, b"y")?;
            }
        }
        self.give_metadata(node, from, &original.kept, object)?;
        set_times(&original.stat, object)?;
        if original.is_cut() {
            object.utimens(None, Some(SetTime::Now))?;
        }
        Ok(moved)
    }

    /// Owner, mode, extended attributes with ACLs, as the upper keeps them; the times come last, by [`set_times`].
    fn give_metadata(&self, node: &Node, from: At<'_>, kept: &Stat, to: Writable<'_>) -> Result<()> {
        let new = Override::of(kept);
        self.owners.give_owner(to, &new)?;
        let no_acls = self.owners.override_real();
        for name in xattr::list(from)? {
            let shown = self.owners.kept_name(&name);
            let private = shown.is_none() && (private::is_reserved(&name) || is_own_mark(self.belief, &name));
            if private || no_acls && acl::is_acl(&name) {
                continue;
            }
            self.carry_xattr(node, (from, &name), (to, shown.unwrap_or(&name)))?;
        }
        // After the attributes, which need the right to write. The bits of the group are the ACL's mask already.
        self.owners.give_mode(to, &new)
    }

    /// Can the copy remember where it came from? The kernel allows `user.` attributes only on regular files and
    /// directories; and an interned identity is worth nothing in the next mount.
    fn keeps_origin(&self, original: &Original) -> bool {
        let Some(caps) = self.upper.as_ref().map(Upper::caps) else { return false };
        let trusted = caps.namespace == private::Namespace::Trusted;
        caps.xattr
            && (self.owners.is_file(&original.stat, &original.kept) || trusted)
            && original.id.is_lasting()
    }

    /// Has the original other names, which must lead to the copy too? Only what remembers its origin can
    /// carry what that needs.
    fn keeps_links(&self, original: &Original) -> bool {
        original.stat.nlink > 1 && original.stat.kind() != Kind::Directory && self.keeps_origin(original)
    }

    /// Makes the copy visible under the node's name.
    fn publish(&self, node: &Arc<Node>, mut staged: Staged<'_>, original: &Original) -> Result<()> {
        let copy = staged.object().at().stat()?;
        let generation = self.generation_of(staged.object().at(), &copy);
        let real = (self.upper_id(&copy), generation);
        loop {
            let Some(parent) = node.parent() else {
                return self.publish_unnamed(node, staged, original, real);
            };
            let dir = self.dir_part(&parent)?;
            let _names = dir.names.write();
            let links = self.keeps_links(original);
            let _hardlinks = links.then(|| self.hardlink_locks.exclusive(original.id));
            let mut place = node.place.write();
            let name = match &*place {
                NodePlace::Named { parent: now, entry } if Arc::ptr_eq(now, &parent) => {
                    Name::from_slice(entry.name())
                }
                _ => continue, // it was renamed or unlinked meanwhile
            };
            let real_parent = dir.upper_dir().ok_or(FsError::Stale)?;
            let fd = self.upper_fd(&real_parent)?;
            if node.dir.is_none() {
                self.mark_impure(&parent)?;
            }
            if links {
                self.link_index(&staged, original)?;
            }
            // Held, for its mark is taken away when it is seen.
            let held = if links { Some(staged.object().at().pin()?) } else { None };
            staged.take_file();
            self.preserving_parent_times(&parent, &fd, || staged.publish(&fd, &name, Publish::New))?;
            node.names.changed();
            if let Some(part) = &node.dir {
                *part.upper.write() = Some(RealDir::child(&real_parent, &name, &copy, generation));
                part.index.lock().upper = None;
                if let NodePlace::Named { entry, .. } = &mut *place {
                    entry.set_source(NodeSource::Upper);
                }
            } else {
                if !self.keeps_origin(original) {
                    self.table.keep_number(real.0, node.ino);
                }
                node.set_real(real.0, real.1);
                *place =
                    NodePlace::Named { parent: parent.clone(), entry: Named::new(&name, NodeSource::Upper) };
                self.files.forget(node.ino);
                self.metacopies.remove(&node.ino);
            }
            let entry = UpperEntry::known(node.kind, copy.ino);
            self.note_upper(dir, &name, Some(entry));
            if let Some(held) = &held {
                self.published(self.upper()?.own_file(held.as_fd()), original);
            }
            return Ok(());
        }
    }

    fn link_index(&self, staged: &Staged<'_>, original: &Original) -> Result<()> {
        let lower = At::Fd(original.fd.as_fd());
        let name = self.upper()?.mark_for_index(staged.object(), original.id, lower)?;
        staged.link_index(original.id, name)
    }

    /// Takes the mark of an unpublished copy away. The copy is published: if this fails, the next mount does it.
    fn published(&self, copy: Writable<'_>, original: &Original) {
        let removed = self.upper().and_then(|upper| Ok(copy.remove_xattr(&upper.mark_name(UNPUBLISHED))?));
        failpoint::reached(failpoint::Failpoint::Changed);
        if let Err(e) = removed {
            log::warn!("a copied-up hardlink keeps its mark until the next mount: {e}");
        }
        if self.hidden_links.remove(&original.id).is_some()
            && let Err(e) = self.upper().and_then(|upper| upper.forget_hidden(original.id))
        {
            log::warn!("the record of hidden names stays until the next mount: {e}");
        }
    }

    /// The node has no name any more: the copy lives as long as it is used, or as long as other names of the lower's
    /// file lead to it.
    fn publish_unnamed(
        &self,
        node: &Node,
        staged: Staged<'_>,
        original: &Original,
        real: (InodeId, Generation),
    ) -> Result<()> {
        let fd = staged.object().at().pin()?;
        let hidden = self.hidden_count(original.id);
        let left = original.stat.nlink.saturating_sub(hidden);
        let links = self.keeps_links(original) && left > 0;
        let _hardlinks = links.then(|| self.hardlink_locks.exclusive(original.id));
        let mut place = node.place.write();
        let NodePlace::Pinned { fd: before, .. } = &*place else { return Err(FsError::Stale) };
        let fd = before.replaced(fd);
        if links {
            // Its only link will be the one in the index.
            self.set_copied_nlink(staged.object(), left, 1)?;
            self.link_index(&staged, original)?;
            self.published(staged.object(), original);
        }
        *place = NodePlace::Pinned { fd, upper: true };
        self.deferred.defer(node.ino);
        if !self.keeps_origin(original) {
            self.table.keep_number(real.0, node.ino);
        }
        node.set_real(real.0, real.1);
        self.files.forget(node.ino);
        self.metacopies.remove(&node.ino);
        Ok(())
    }

    /// A file of the upper that has only its metadata there (another overlay's metacopy) gets its data.
    fn complete_data(&self, node: &Arc<Node>, size: Option<u64>) -> Result<bool> {
        if !self.metacopies.contains_key(&node.ino) {
            return Ok(false);
        }
        let turn = self.copying.entry(node.ino).or_insert_with(|| Arc::new(Mutex::new(()))).clone();
        let completed = {
            let _turn = turn.lock();
            self.complete_data_now(node, size)
        };
        drop(turn);
        self.copying.remove_if(&node.ino, |_, turn| Arc::strong_count(turn) == 1);
        completed
    }

    /// Fills the file where it is, as the kernel does: it may have other names, or none. Until its mark goes, what it
    /// shows is the data below, so killed half-way it is a metacopy still.
    fn complete_data_now(&self, node: &Arc<Node>, size: Option<u64>) -> Result<bool> {
        let Some(data) = self.metacopies.get(&node.ino).map(|d| d.clone()) else { return Ok(false) };
        let upper = self.upper()?;
        let from = self.open_data_elsewhere(&data)?;
        let cut = self.with_object(node, |file| {
            let (at, object) = (file.at(), file.writable()?);
            if !marker::read_marks(at, self.belief)?.metacopy {
                return Ok(false);
            }
            let stat = at.stat()?;
            let capabilities = xattr::get(at, CAPABILITIES)?;
            let to = open_owned(object, true, false)?;
            let size = size.map_or(stat.size, |size| size.min(stat.size));
            match size {
                0 => rustix::fs::ftruncate(&to, 0)?,
                _ => drop(file_data(from.as_fd(), to.as_fd(), size, !upper.is_volatile())?),
            }
            // Writing took them away.
            if let Some(capabilities) = capabilities {
                object.set_xattr(CAPABILITIES, &capabilities, XattrFlags::empty())?;
            }
            let cut = size < stat.size;
            set_times(&stat, object)?;
            if cut {
                object.utimens(None, Some(SetTime::Now))?;
            }
            upper.sync(to.as_fd(), false)?;
            for mark in ["metacopy", "redirect"] {
                match object.remove_xattr(&upper.mark_name(mark)) {
                    Ok(()) | Err(Errno::NODATA) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            upper.has_data(stat.ino);
            Ok(cut)
        })?;
        // So that the next fdatasync writes that the marks are gone, or the lower's data would be back.
        node.names.changed();
        self.files.forget(node.ino);
        self.metacopies.remove(&node.ino);
        self.changed_by_itself(node);
        Ok(cut)
    }

    /// Does something in a directory of the upper, which is the node's, that the merged view doesn't show, so its times
    /// stay. Its change time and its size may not.
    pub(in crate::union) fn preserving_parent_times<R>(
        &self,
        node: &Node,
        dir: &UpperFd,
        act: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        let before = dir.itself().at().stat()?;
        let done = act();
        // The act is done and can't be taken back; the times of a directory of somebody else's stay as they are.
        if let Err(e) = set_times(&before, dir.itself()) {
            log::debug!("the times of a directory of the upper couldn't be kept: {e}");
        }
        self.changed_by_itself(node);
        done
    }
}

/// Makes an object of the upper in all but its times the same as another of the upper.
pub(in crate::union) fn copy_metadata(
    from: At<'_>,
    stat: &Stat,
    to: Writable<'_>,
    belief: Belief,
) -> Result<()> {
    let now = to.at().stat()?;
    if (now.uid, now.gid) != (stat.uid, stat.gid) {
        to.chown(Some(stat.uid), Some(stat.gid))?;
    }
    for name in xattr::list(from)? {
        if is_own_mark(belief, &name) {
            continue;
        }
        if let Some(value) = xattr::get(from, &name)? {
            to.set_xattr(&name, &value, XattrFlags::empty())?;
        }
    }
    // After the attributes, which need the right to write. The bits of the group are the ACL's mask already.
    if stat.kind() != Kind::Symlink {
        to.chmod(stat.mode & 0o7777)?;
    }
    Ok(())
}

/// Is it a mark of this union? Not so one of an overlay inside it, kept under an escaped name.
fn is_own_mark(belief: Belief, name: &[u8]) -> bool {
    match belief.mark(name) {
        Some(mark) => !mark.starts_with(b"overlay."),
        None => private::is_reserved(name) && !private::is_override(name) && !name.starts_with(private::KEPT),
    }
}

/// Access and modification time.
pub(in crate::union) fn set_times(stat: &Stat, to: Writable<'_>) -> Result<()> {
    Ok(to.utimens(Some(SetTime::At(stat.atime)), Some(SetTime::At(stat.mtime)))?)
}
