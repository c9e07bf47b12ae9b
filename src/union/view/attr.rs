//! Attributes: where a node's object is reached, and what stat shows of it.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{StatVfs, StatVfsMountFlags};
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::{Kind, SetTime, Stat, Writable};
use crate::union::Union;
use crate::union::change::copy_up::brought::Told;
use crate::union::change::part::Part;
use crate::union::events::EventKind;
use crate::union::nodes::node::{Node, NodePlace};
use crate::union::nodes::verified::Object;
use crate::union::stack::access::{LayerAt, LayerObject};
use crate::union::view::owners::privilege_bits;

/// What stat shows of a node.
#[derive(Debug, Clone, Copy)]
pub struct Attr {
    /// The node's number.
    pub ino: u64,
    /// The rest; its `dev` and `ino` are those of the real object and are not shown.
    pub stat: Stat,
    /// Whether they may change without a request.
    pub mapped: bool,
    /// Whether the node is known by a second id: see [`Node::set_second_id`].
    pub second_id: bool,
}

/// A change of attributes; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

impl SetAttr {
    /// Returns what of the object it needs in the upper.
    pub fn part(&self) -> Part {
        match (self.size, self.mode) {
            (Some(size), _) => Part::Beginning(size),
            // What a write takes away is given to what has its data: see `copying`.
            (None, Some(mode)) if mode & 0o6000 != 0 => Part::Whole,
            (None, _) => Part::Metadata,
        }
    }

    /// Returns what it changes, in words.
    fn words(&self) -> Vec<String> {
        let all = [
            (self.uid.is_some() || self.gid.is_some(), "owner"),
            (self.mode.is_some(), "mode"),
            (self.size.is_some(), "size"),
            (self.atime.is_some() || self.mtime.is_some(), "times"),
        ];
        all.into_iter().filter(|(changed, _)| *changed).map(|(_, word)| word.to_owned()).collect()
    }
}

/// Returns the content of a regular file that stands for a symbolic link.
fn read_target(object: &Object) -> Result<Vec<u8>> {
    /// PATH_MAX, the longest target with its end.
    const LONGEST: usize = 4096;
    if object.stat()?.kind() != Kind::File {
        return Err(FsError::Invalid("not a symbolic link"));
    }
    let data = object.at().open()?;
    let mut target = vec![0; LONGEST];
    let mut length = 0;
    while length < LONGEST {
        match data.read_at(&mut target[length..], length as u64) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    if length == 0 || length == LONGEST {
        return Err(FsError::Os(Errno::IO));
    }
    target.truncate(length);
    Ok(target)
}

/// Returns what statfs tells of a tree that takes nothing.
fn full_filesystem() -> StatVfs {
    const BLOCK: u64 = 4096;
    const NAME_MAX: u64 = 255;
    StatVfs {
        f_bsize: BLOCK,
        f_frsize: BLOCK,
        f_blocks: 0,
        f_bfree: 0,
        f_bavail: 0,
        f_files: 0,
        f_ffree: 0,
        f_favail: 0,
        f_fsid: 0,
        f_flag: StatVfsMountFlags::RDONLY,
        f_namemax: NAME_MAX,
    }
}

impl Union {
    /// Calls `f` with each of a lower layer's directories that are merged in a node, topmost first.
    ///
    /// # Errors
    /// Those of `f`, and of opening them.
    pub fn each_part(&self, node: &Node, mut f: impl FnMut(LayerAt<'_>) -> Result<()>) -> Result<()> {
        let parts = node.dir.as_ref().map_or(&[][..], |dir| &dir.lowers);
        parts.iter().try_for_each(|part| f(self.fds.get(part)?.at()))
    }

    /// Returns the attributes of a node.
    pub fn getattr(&self, node: &Node) -> Result<Attr> {
        let stat = self.kept_of(node)?;
        Ok(self.attr(node, stat))
    }

    /// Returns the attributes of a node whose object's stat is at hand.
    pub(in crate::union) fn attr(&self, node: &Node, mut stat: Stat) -> Attr {
        if node.dir.is_some() {
            stat = self.held_times.shown(node.ino, stat);
        }
        if node.dir.is_none() && !node.real().is_lasting() && !self.in_upper(node) {
            stat.nlink = 1; // each name is a file by itself: see `region`
        }
        if let Some(dir) = &node.dir
            && dir.lowers.len() + usize::from(dir.upper.read().is_some()) > 1
        {
            // The link count of a merged directory would have to be counted; 1 says "not known" to find and others.
            stat.nlink = 1;
        } else if self.static_nlink && node.dir.is_some() {
            stat.nlink = 1;
        } else if node.dir.is_none() && matches!(&*node.place.read(), NodePlace::Pinned { upper: false, .. })
        {
            // No name is known: the whiteouts hide all of them, or those that are left were never asked for. Names of a
            // file that has only one aren't counted in the table.
            let hidden = self.hardlinks.hidden(self.origin_known(node)).unwrap_or(1);
            stat.nlink = stat.nlink.saturating_sub(hidden);
        } else if let Some(hidden) = self.hardlinks.hidden(self.origin_known(node)) {
            stat.nlink = stat.nlink.saturating_sub(hidden).max(1);
        }
        if let Some(data) = self.metacopies.get(&node.ino) {
            stat.blocks = stat.blocks.max(data.blocks);
        }
        if node.kind == Kind::File && !self.in_upper(node) {
            node.note_plain(stat.mode & 0o6000 == 0);
        }
        self.owners.show(&mut stat);
        let (mapped, second_id) = (node.is_mapped(), node.has_second_id());
        Attr { ino: self.shown_ino(node, &stat), stat, mapped, second_id }
    }

    /// Returns the inode number that programs see; the root's node id is 1 by FUSE's rule.
    fn shown_ino(&self, node: &Node, _stat: &Stat) -> u64 {
        node.ino
    }

    /// Returns what the layer keeps of an object: its stat, corrected by `override_stat` and by the hardlink index.
    pub(in crate::union) fn kept_stat<'a>(&self, at: impl Into<LayerAt<'a>>, upper: bool) -> Result<Stat> {
        let at = at.into();
        let stat = self.owners.kept(at, at.stat()?, upper)?;
        if upper { self.counted(at, stat) } else { Ok(stat) }
    }

    /// Corrects the link count of an object of the upper, if it is in the hardlink index. That may be its only link: the
    /// other names are the lower's.
    pub(in crate::union) fn counted<'a>(&self, at: impl Into<LayerAt<'a>>, mut stat: Stat) -> Result<Stat> {
        if stat.kind() != Kind::Directory
            && let Some(nlink) = self.merged_nlink(at, &stat)?
        {
            stat.nlink = nlink;
        }
        Ok(stat)
    }

    /// Changes attributes. What is asked for at once happens in the order owner, mode, size, times.
    ///
    /// # Errors
    /// One may come when a part is done already, or when all is and only the new attributes can't be read. They are asked for
    /// again then, whoever keeps the old ones.
    pub fn setattr(&self, node: &Arc<Node>, change: SetAttr, kill: bool) -> Result<Attr> {
        let done = self.change_attributes(node, change, kill);
        if done.is_err() {
            self.changed_by_itself(node);
        }
        done
    }

    fn change_attributes(&self, node: &Arc<Node>, change: SetAttr, kill: bool) -> Result<Attr> {
        if self.is_idle_flush(node, &change)? {
            return self.getattr(node);
        }
        if change == SetAttr::default() && node.kind == Kind::File {
            // By this the kernel has setuid and setgid taken away where that is no part of a request: before a write that is
            // passed through, fallocate(2) and copy_file_range(2) by who may not keep them, and by chown(2) to nobody new. (And
            // where it took the capabilities of a file away itself, whoever wrote to it: then both go.)
            self.kill_privilege_bits(node)?;
            return self.getattr(node);
        }
        let owner = self.owners.chown(change.uid, change.gid)?;
        if change.size.is_some() && node.dir.is_some() {
            return Err(FsError::IsADirectory);
        }
        // The answer tells what a copy-up changed of it.
        let brought = self.bring_up(node, change.part(), Told::ByAnswer)?;
        let truncated = brought.is_cut;
        let stat = self.with_brought(node, brought, |_, object| {
            self.owners.change(object, owner, change.mode)?;
            if change.size.is_some() {
                return Ok(None);
            }
            if change.atime.is_some() || change.mtime.is_some() {
                object.utimens(change.atime, change.mtime)?;
            }
            self.kept_stat(object.at(), true).map(Some)
        })?;
        if let Some(size) = change.size {
            self.change_size(node, &change, (size, truncated), kill)?;
        }
        self.counters.setattrs.fetch_add(1, Ordering::Relaxed);
        self.events
            .tell(|| EventKind::Attributes { path: self.path_of(node).into(), changed: change.words() });
        stat.map_or_else(|| self.getattr(node), |stat| Ok(self.attr(node, stat)))
    }

    /// Changes the size of a file that is in the upper, and after it the times.
    fn change_size(
        &self,
        node: &Arc<Node>,
        change: &SetAttr,
        (size, is_done): (u64, bool),
        kill: bool,
    ) -> Result<()> {
        if !is_done {
            self.upper()?.set_length(self.data_fd(node, true)?.as_fd(), size)?;
        }
        if kill {
            self.kill_privilege_bits(node)?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            self.with_upper(node, |_, object| Ok(object.utimens(change.atime, change.mtime)?))?;
        }
        Ok(())
    }

    /// Tells whether the kernel, which keeps the times of files that it caches, only flushes those of a lower's file,
    /// because it was unlinked under one of its names. They are as they were. To copy the file up for that would make
    /// `rm` read all of it.
    fn is_idle_flush(&self, node: &Node, change: &SetAttr) -> Result<bool> {
        let SetAttr {
            mode: None,
            uid: None,
            gid: None,
            size: None,
            atime: None,
            mtime: Some(SetTime::At(mtime)),
        } = *change
        else {
            return Ok(false);
        };
        Ok(!self.in_upper(node) && self.with_object(node, |object| Ok(object.stat()?.mtime == mtime))?)
    }

    /// Takes setuid and setgid away from a file of the upper.
    pub(in crate::union) fn kill_privilege_bits(&self, node: &Arc<Node>) -> Result<()> {
        let kept = |object: Writable<'_>| self.owners.kept(object.at(), object.at().stat()?, true);
        let mode = self.with_upper(node, |_, object| Ok(kept(object)?.mode))?;
        let bits = privilege_bits(mode);
        if self.owners.are_written() {
            self.with_upper(node, |_, object| self.owners.drop_capabilities(object))?;
        }
        if bits != 0 {
            let mode = Some(mode & !bits & 0o7777);
            self.with_upper(node, |_, object| self.owners.change(object, (None, None), mode))?;
        }
        Ok(())
    }

    /// Takes setgid away: somebody outside of the object's group set its ACL.
    pub fn kill_set_group_id(&self, node: &Arc<Node>) -> Result<()> {
        self.with_upper(node, |_, object| {
            let at = object.at();
            let mode = self.owners.kept(at, at.stat()?, true)?.mode & 0o7777;
            match mode & 0o2000 {
                0 => Ok(()),
                bit => self.owners.change(object, (None, None), Some(mode & !bit)),
            }
        })
    }

    /// Returns the target of a symbolic link.
    pub fn readlink(&self, node: &Node) -> Result<Vec<u8>> {
        if node.kind != Kind::Symlink {
            return Err(FsError::Invalid("not a symbolic link"));
        }
        self.with_object(node, |object| match object.at().read_link() {
            // A regular file that stands for a link holds the target.
            Err(Errno::INVAL | Errno::NOENT) if self.owners.override_real() => read_target(object),
            other => Ok(other?),
        })
    }

    /// Returns the filesystem that new data go to: that of the topmost layer.
    pub fn statfs(&self) -> Result<StatVfs> {
        match self.fds.get(&self.layers[0].root)? {
            LayerObject::Host(fd) => {
                let told = rustix::fs::fstatvfs(fd.as_fd())?;
                let quota = self.upper.as_ref().and_then(|upper| upper.quota());
                Ok(match quota {
                    Some(quota) => quota.statfs(told),
                    None => told,
                })
            }
            LayerObject::Tree(_) => Ok(full_filesystem()),
        }
    }

    /// Returns the path of a node in the merged view, for messages.
    pub fn path_of(&self, node: &Node) -> Vec<u8> {
        let mut names: Vec<Box<[u8]>> = Vec::new();
        let mut parent = match &*node.place.read() {
            NodePlace::Named { parent, entry } => {
                names.push(entry.name().into());
                Some(parent.clone())
            }
            NodePlace::Root => None,
            NodePlace::Pinned { .. } => return b"(unlinked)".to_vec(),
        };
        while let Some(dir) = parent {
            parent = match &*dir.place.read() {
                NodePlace::Named { parent, entry } => {
                    names.push(entry.name().into());
                    Some(parent.clone())
                }
                _ => None,
            };
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        if path.is_empty() { b"/".to_vec() } else { path }
    }
}
