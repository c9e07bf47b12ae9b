//! One copy-up, step by step.
//!
//! **Begin** looks at the original and makes an object in the staging directory. **Fill** gives it the data (holes kept) or
//! the mark of a metacopy, owner, mode, extended attributes and ACLs, and times of the lower's, in this order, because a
//! change of owner clears setuid and capabilities. **Publish** makes it visible under its name in one atomic step, after an
//! fsync where that is needed ([`CopyUp::sync`]). A copy-up that is given up takes back what it did: what was staged is removed
//! when it is dropped, and so is its entry in the hardlink index.

use std::os::fd::AsFd;
use std::sync::Arc;

use crate::error::{FsError, Result};
use crate::sys::object::{Kind, SetTime, Stat, Writable};
use crate::union::Union;
use crate::union::change::carry::set_times;
use crate::union::change::copy_up::brought::MadeCopy;
use crate::union::change::copy_up::completion::{CAPABILITIES, METACOPY, REDIRECT};
use crate::union::change::failpoint;
use crate::union::change::part::Part;
use crate::union::change::staged::{New, Staged};
use crate::union::change::upper::Upper;
use crate::union::hardlinks::counts::{ORIGIN, UNPUBLISHED};
use crate::union::lookup::found::DataAt;
use crate::union::lookup::index::UpperEntry;
use crate::union::lookup::private::Namespace;
use crate::union::lookup::realdir::RealDir;
use crate::union::nodes::generation::Generation;
use crate::union::nodes::node::{InodeId, Name, Named, Node, NodePlace, NodeSource};
use crate::union::quota::taken::Growth;
use crate::union::stack::access::LayerObject;

/// A lower's object, about to be copied up.
struct Original {
    /// Holds it.
    held: LayerObject,
    /// What it really is.
    stat: Stat,
    /// What the layer keeps of it: see [`crate::union::view::owners`].
    kept: Stat,
    /// What its copies go by.
    id: InodeId,
    /// The names of its extended attributes.
    xattrs: Vec<Vec<u8>>,
    /// Which inode it is: another, if it is a copy itself that a snapshot froze.
    real: InodeId,
    /// Where its data are, if they are those of a regular file that has a name.
    data: Option<DataAt>,
}

/// What the copy is to have of the data.
enum Data {
    /// It has none, being no regular file or an empty one.
    None,
    /// So many bytes.
    Copied(u64),
    /// None; they stay there. `redirect`: the path of the original in the lowers, where that is needed.
    Below { at: DataAt, redirect: Option<Vec<u8>> },
}

/// What was copied up.
pub(in crate::union) struct Copied {
    /// So much data the copy has.
    pub(in crate::union) data: u64,
    /// So many bytes of them were moved, not shared.
    pub(in crate::union) moved: u64,
    /// Whether it appeared truncated.
    pub(in crate::union) is_cut: bool,
    /// Whether the original has other names, which lead to the copy too.
    pub(in crate::union) has_other_names: bool,
    /// The copy, if it is a file.
    pub(in crate::union) made: Option<MadeCopy>,
}

/// A copy-up under way.
pub(in crate::union) struct CopyUp<'u> {
    union: &'u Union,
    upper: &'u Upper,
    node: &'u Arc<Node>,
    original: Original,
    data: Data,
    staged: Staged<'u>,
    /// What the copy was when it was made. It stays this inode.
    made: Stat,
    moved: u64,
    /// How many names of the original were hidden when its mark was made.
    hidden: u64,
}

impl<'u> CopyUp<'u> {
    /// Looks at the node's object, and makes one of its kind in the staging directory.
    pub(in crate::union) fn begin(union: &'u Union, node: &'u Arc<Node>, part: Part) -> Result<CopyUp<'u>> {
        let upper = union.upper()?;
        let original = Original::of(union, node)?;
        let data = original.wanted(union, node, part)?;
        let target;
        let new = match original.kept.kind() {
            Kind::File => New::File,
            Kind::Directory => New::Directory,
            Kind::Symlink if union.owners.is_file(&original.stat, &original.kept) => New::File,
            Kind::Symlink => {
                target = union.readlink(node)?;
                New::Symlink(&target)
            }
            kind => New::Special(kind, original.kept.rdev),
        };
        let unnamed = match data {
            Data::Below { .. } if !original.keeps_links(union) => {
                upper.stage_unnamed(original.kept.mode & 0o777)
            }
            _ => None,
        };
        let staged = match unnamed {
            Some(staged) => staged,
            None => upper.stage(union.owners.placeholder(new))?,
        };
        let made = staged.object().at().stat()?;
        Ok(CopyUp { union, upper, node, original, data, staged, made, moved: 0, hidden: 0 })
    }

    /// Gives the copy all that the original has, on the disk as far as it must be before its name is.
    pub(in crate::union) fn fill(mut self) -> Result<CopyUp<'u>> {
        self.fill_data()?;
        self.mark()?;
        let Original { held, xattrs, kept, .. } = &self.original;
        self.union.give_metadata(self.node, (held.at(), xattrs), kept, (self.staged.object(), &self.made))?;
        set_times(&self.original.stat, self.staged.object())?;
        if self.is_cut() {
            self.staged.object().utimens(None, Some(SetTime::Now))?;
        }
        self.sync()?;
        self.check_unchanged()?;
        Ok(self)
    }

    /// Refuses a copy of data that changed while they were copied, where the lowers may.
    ///
    /// # Errors
    /// `ESTALE`.
    fn check_unchanged(&self) -> Result<()> {
        let Original { held, stat, .. } = &self.original;
        if self.union.watched.is_none() || self.data_bytes() == 0 {
            return Ok(());
        }
        let now = held.at().stat()?;
        if (now.mtime, now.ctime, now.size) == (stat.mtime, stat.ctime, stat.size) {
            return Ok(());
        }
        let path = self.union.path_of(self.node);
        log::warn!(
            "lower=checked: {} was changed in its layer while it was copied up; that copy is thrown away",
            String::from_utf8_lossy(&path).escape_debug()
        );
        Err(FsError::Stale)
    }

    fn fill_data(&mut self) -> Result<()> {
        let Some(to) = self.staged.file() else { return Ok(()) };
        match &self.data {
            Data::None => {}
            Data::Copied(size) => {
                if let Some(half) = self.union.half(self.node)? {
                    // Where its own blocks are isn't asked: it is whole then.
                    let copy = || half.copy_to(to, *size);
                    self.moved = self.upper.copying(to, *size, || Ok(*size), copy)?;
                    return Ok(());
                }
                let from = match self.union.metacopies.get(&self.node.ino).map(|at| at.clone()) {
                    Some(at) => self.union.open_data_elsewhere(&at)?,
                    None => self.original.held.at().open()?,
                };
                let copy = || Ok(from.copy_to(to, *size, !self.upper.is_volatile())?);
                self.moved = self.upper.copying(to, *size, || from.data_within(0, *size), copy)?;
            }
            Data::Below { .. } => self.upper.set_length(to, self.original.stat.size)?,
        }
        Ok(())
    }

    /// Sets the marks that tell other mounts where it comes from, and where its data are.
    fn mark(&mut self) -> Result<()> {
        let (union, upper, object) = (self.union, self.upper, self.staged.object());
        if self.original.stat.kind() == Kind::Directory {
            return Ok(());
        }
        if self.original.keeps_origin(union)
            && let Some(origin) = union.origin_value(self.original.id)
        {
            upper.set_mark(object, ORIGIN, &origin)?;
        }
        if self.original.keeps_links(union) {
            self.hidden = union.hidden_count(self.original.id);
            let names = self.original.stat.nlink.saturating_sub(self.hidden);
            union.set_copied_nlink(object, names, 2)?;
            upper.set_mark(object, UNPUBLISHED, b"y")?;
        }
        if let Data::Below { redirect, .. } = &self.data {
            if let Some(redirect) = redirect {
                upper.set_mark(object, REDIRECT, redirect)?;
            }
            upper.set_mark(object, METACOPY, b"")?;
        }
        Ok(())
    }

    /// Writes the copy to the disk before its name can be there. A metacopy has nothing that wasn't made in the journal
    /// before its name is, where there is one (ext4, XFS): there it needs no sync of its own.
    fn sync(&self) -> Result<()> {
        let ordered = matches!(self.data, Data::Below { .. }) && self.upper.orders_names();
        match self.staged.file() {
            Some(file) if !ordered => self.upper.sync(file, false),
            _ => Ok(()),
        }
    }

    /// Tells whether less than all is there, since the file is to be truncated.
    fn is_cut(&self) -> bool {
        matches!(self.data, Data::Copied(size) if size < self.original.stat.size)
    }

    /// Returns how many bytes of data the copy gets.
    pub(in crate::union) fn data_bytes(&self) -> u64 {
        if let Data::Copied(size) = self.data { size } else { 0 }
    }

    fn copied(&self) -> Copied {
        Copied {
            data: self.data_bytes(),
            moved: self.moved,
            is_cut: self.is_cut(),
            has_other_names: self.original.keeps_links(self.union),
            made: None,
        }
    }

    /// Makes the copy visible under the node's name.
    pub(in crate::union) fn publish(self) -> Result<Copied> {
        let mut copied = self.copied();
        let (union, node, copy) = (self.union, self.node, self.made);
        let generation = union.generation_of(self.staged.object().at(), &copy);
        let real = (union.upper_id(&copy), generation);
        loop {
            let Some(parent) = node.parent() else {
                return self.publish_unnamed(copy.ino, real).map(|()| copied);
            };
            let dir = union.dir_part(&parent)?;
            let _names = dir.names.write();
            if [Some(dir), node.dir.as_deref()].into_iter().flatten().any(|dir| dir.watch.is_superseded()) {
                return Err(FsError::Stale);
            }
            let links = copied.has_other_names;
            let _hardlinks = links.then(|| union.hardlinks.locks.exclusive(self.original.id));
            let hidden = if links { union.hidden_count(self.original.id) } else { self.hidden };
            if hidden != self.hidden {
                // A name went while the data were copied. From here on none does.
                let names = self.original.stat.nlink.saturating_sub(hidden);
                union.set_copied_nlink(self.staged.object(), names, 2)?;
            }
            let mut place = node.place.write();
            let name = match &*place {
                NodePlace::Named { parent: now, entry } if Arc::ptr_eq(now, &parent) => {
                    Name::from_slice(entry.name())
                }
                _ => continue, // it was renamed or unlinked meanwhile
            };
            let real_parent = dir.upper_dir().ok_or(FsError::Stale)?;
            let fd = union.upper_fd(&real_parent)?;
            if node.dir.is_none() {
                union.mark_impure(&parent)?;
            }
            let indexed = if links { Some(self.link_index(copy.ino)?) } else { None };
            // Held, for its mark is taken away when it is seen.
            let held = if links { Some(self.staged.object().at().pin()?) } else { None };
            let staged = self.staged;
            let file = union.unseen_in(&parent, &fd, || staged.publish_new(&fd, &name))?;
            copied.made = file.map(|file| MadeCopy { file, real });
            if let Some(indexed) = indexed {
                indexed.stays();
            }
            node.names.changed();
            if let Some(part) = &node.dir {
                *part.upper.write() = Some(RealDir::child(&real_parent, &name, &copy, generation));
                part.index.lock().upper = None;
                drop(union.watch(node));
                if let NodePlace::Named { entry, .. } = &mut *place {
                    entry.set_source(NodeSource::Upper);
                }
            } else {
                settle(union, node, &self.original, self.data, real);
                *place =
                    NodePlace::Named { parent: parent.clone(), entry: Named::new(&name, NodeSource::Upper) };
            }
            let entry = UpperEntry::known(node.kind, copy.ino);
            union.note_upper(dir, &name, Some(entry));
            if let Some(held) = &held {
                published(union, self.upper.own_file(held.as_fd()), &self.original);
            }
            return Ok(copied);
        }
    }

    /// Publishes the copy of a node that has no name any more: it lives as long as it is used, or as long as other
    /// names of the lower's file lead to it.
    fn publish_unnamed(self, copy: u64, real: (InodeId, Generation)) -> Result<()> {
        let (union, node) = (self.union, self.node);
        let fd = self.staged.object().at().pin()?;
        let has_others = self.original.keeps_links(union);
        // Before they are counted: from here on no other name of the original goes.
        let _hardlinks = has_others.then(|| union.hardlinks.locks.exclusive(self.original.id));
        let hidden = union.hidden_count(self.original.id);
        let left = self.original.stat.nlink.saturating_sub(hidden);
        let links = has_others && left > 0;
        let mut place = node.place.write();
        let NodePlace::Pinned { fd: before, .. } = &*place else { return Err(FsError::Stale) };
        let fd = union.pins.hold_instead(before, fd.into())?;
        if links {
            // Its only link will be the one in the index.
            union.set_copied_nlink(self.staged.object(), left, 1)?;
            self.link_index(copy)?.stays();
            published(union, self.staged.object(), &self.original);
        }
        *place = NodePlace::Pinned { fd, upper: true };
        union.deferred.defer(node.ino);
        settle(union, node, &self.original, self.data, real);
        Ok(())
    }

    fn link_index(&self, copy: u64) -> Result<IndexLink<'u>> {
        let lower = (self.original.held.at(), self.original.stat.born);
        let name =
            self.upper.mark_for_index(self.staged.object(), (self.original.id, self.original.real), lower)?;
        self.staged.link_index(self.original.id, name)?;
        if matches!(self.data, Data::Below { .. }) {
            self.upper.lacks_data(copy);
        }
        Ok(IndexLink { upper: self.upper, origin: self.original.id, copy, armed: true })
    }
}

/// An entry of the hardlink index, taken out again unless the copy that it leads to is published.
struct IndexLink<'u> {
    upper: &'u Upper,
    origin: InodeId,
    copy: u64,
    armed: bool,
}

impl IndexLink<'_> {
    fn stays(mut self) {
        self.armed = false;
    }
}

impl Drop for IndexLink<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        self.upper.has_data(self.copy);
        if let Err(e) = self.upper.drop_index(self.origin) {
            log::warn!("the hardlink index keeps a copy that isn't seen until the next mount: {e}");
        }
    }
}

/// Makes the copy the node's file from now on. The caller has its place locked.
fn settle(union: &Union, node: &Node, original: &Original, data: Data, real: (InodeId, Generation)) {
    if !original.keeps_origin(union) || !union.table.is_number_of(node.ino, original.id) {
        union.table.keep_number(real.0, node.ino);
    }
    node.set_real(real.0, real.1);
    match data {
        // What is open for reading shows the same as before.
        Data::Below { at, .. } => {
            union.metacopies.insert(node.ino, at);
            if !union.metacopy {
                union.waiting.note(node.ino);
            }
        }
        Data::None | Data::Copied(_) => {
            union.metacopies.remove(&node.ino);
            union.halves.forget(node.ino);
            union.files.forget(node.ino);
        }
    }
}

/// Takes the mark of an unpublished copy away. The copy is published: if this fails, the next mount does it.
fn published(union: &Union, copy: Writable<'_>, original: &Original) {
    let removed = union.upper().and_then(|upper| {
        let remove = || copy.remove_xattr(&upper.mark_name(UNPUBLISHED));
        Ok(upper.growing(copy.at(), Growth::None, remove)?)
    });
    failpoint::reached(failpoint::Failpoint::Changed);
    if let Err(e) = removed {
        log::warn!("a copied-up hardlink keeps its mark until the next mount: {e}");
    }
    if union.hardlinks.count_no_hidden(original.id)
        && let Err(e) = union.upper().and_then(|upper| upper.forget_hidden(original.id))
    {
        log::warn!("the record of hidden names stays until the next mount: {e}");
    }
}

impl Original {
    fn of(union: &Union, node: &Node) -> Result<Original> {
        let (held, stat, kept) = union.with_open_object(node, |object| {
            Ok((object.held(), object.stat()?, union.kept_without_links(object)?))
        })?;
        let data = match node.kind {
            Kind::File => union.data_place(node, &stat)?,
            _ => None,
        };
        let xattrs = held.at().xattr_names()?;
        Ok(Original { held, stat, kept, id: union.origin_known(node), xattrs, real: node.real(), data })
    }

    /// Returns what a copy is to have of the data.
    fn wanted(&self, union: &Union, node: &Arc<Node>, part: Part) -> Result<Data> {
        if self.stat.kind() != Kind::File || self.stat.size == 0 {
            return Ok(Data::None);
        }
        let whole = Data::Copied(part.of(self.stat.size));
        if part.has_data()
            || !union.makes_metacopies()
            || !self.keeps_origin(union)
            || !self.outlasts_writing()
        {
            return Ok(whole);
        }
        let plain = |at: &DataAt| self.kept.kind() == Kind::File && at.half.is_none();
        let Some(at) = self.data.clone().filter(plain) else { return Ok(whole) };
        if !self.keeps_links(union) {
            return Ok(Data::Below { at, redirect: None });
        }
        // Its other names may be in other directories.
        Ok(union.data_path(node)?.map_or(whole, |path| Data::Below { at, redirect: Some(path) }))
    }

    /// Tells whether it has nothing that is lost when data are written to it. What writing takes away (setuid, setgid,
    /// capabilities) could not be given back in one step with the data that come later.
    fn outlasts_writing(&self) -> bool {
        let has_bits = (self.stat.mode | self.kept.mode) & 0o6000 != 0;
        !has_bits && !self.xattrs.iter().any(|name| name == CAPABILITIES)
    }

    /// Tells whether the copy can remember where it came from. The kernel allows `user.` attributes only on regular
    /// files and directories; and an interned identity is worth nothing in the next mount.
    fn keeps_origin(&self, union: &Union) -> bool {
        let Some(caps) = union.upper.as_ref().map(Upper::caps) else { return false };
        let trusted = caps.namespace == Namespace::Trusted;
        caps.xattr && (union.owners.is_file(&self.stat, &self.kept) || trusted) && self.id.is_lasting()
    }

    /// Tells whether the original has other names, which must lead to the copy too. Only what remembers its origin can
    /// carry what that needs.
    fn keeps_links(&self, union: &Union) -> bool {
        self.stat.nlink > 1 && self.stat.kind() != Kind::Directory && self.keeps_origin(union)
    }
}
