//! What becomes of a metacopy: its data follow, or it moves and remembers where they are.
//!
//! The data are filled in where the file is, as the kernel does: it may have other names, or none. Until its mark goes, what
//! it shows is the data below, so killed half-way it is a metacopy still. They come in steps, between which other requests
//! find the file with the times that it had: filling in is no change that anybody asked for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::{At, Kind, Stat, Writable};
use crate::union::Union;
use crate::union::change::carry::set_times;
use crate::union::change::lend::{open_owned, upper_marks};
use crate::union::change::part::Part;
use crate::union::change::redirect::LONGEST_REDIRECT;
use crate::union::change::upper::{Upper, changed};
use crate::union::data::half::{self, Half};
use crate::union::data::half_mark::{HALF, HalfMark, NOWHERE};
use crate::union::escaped_path::EscapedPath;
use crate::union::events::EventKind;
use crate::union::lookup::found::DataAt;
use crate::union::nodes::node::{Node, NodePlace, NodeSource};
use crate::union::options::{RedirectDir, Verity};
use crate::union::quota::taken::Growth;
use crate::union::stack::access::LayerData;

/// The mark of a metacopy; as the kernel's, it is empty where no digest is known.
pub(in crate::union) const METACOPY: &str = "metacopy";
/// The mark that tells under which name or path of the lowers its data are.
pub(in crate::union) const REDIRECT: &str = "redirect";
/// The attribute of a file's capabilities, which a write takes away.
pub(in crate::union) const CAPABILITIES: &[u8] = b"security.capability";

/// So much is filled in at a time.
const STEP: u64 = if cfg!(test) { 1 << 20 } else { 8 << 20 };

impl Union {
    /// Tells whether data of regular files are left below as long as only their attributes and names change.
    pub(in crate::union) fn makes_metacopies(&self) -> bool {
        // A mark that somebody could have written who may less than this process leads only to what its owner may read; a
        // file that is given away would lose its data.
        (self.metacopy || self.block_wise)
            // No digests are written.
            && self.verity == Verity::Off
            && self.upper.as_ref().is_some_and(|upper| upper.caps().xattr)
            && !self.belief.is_guarded()
    }

    /// Returns where the data of a regular file that isn't in the upper are, whose object has this stat. `None`: it has no name.
    pub(in crate::union) fn data_place(&self, node: &Node, stat: &Stat) -> Result<Option<DataAt>> {
        if let Some(elsewhere) = self.metacopies.get(&node.ino) {
            return Ok(Some(elsewhere.clone()));
        }
        let place = node.place.read();
        let NodePlace::Named { parent, entry } = &*place else { return Ok(None) };
        let NodeSource::Lower(at) = entry.source() else { return Ok(None) };
        let dir = self.dir_part(parent)?.lowers.get(usize::from(at)).ok_or(FsError::Stale)?.clone();
        Ok(Some(DataAt::of(dir, entry.name(), stat, node.generation())))
    }

    /// Returns the path under which the lowers show the data of a file. `None`: such paths aren't written, or it is too
    /// long.
    pub(in crate::union) fn data_path(&self, node: &Arc<Node>) -> Result<Option<Vec<u8>>> {
        if self.redirects != RedirectDir::On {
            return Ok(None);
        }
        let (parent, name) = match &*node.place.read() {
            NodePlace::Named { parent, entry } => (parent.clone(), entry.name().to_vec()),
            NodePlace::Root | NodePlace::Pinned { .. } => return Ok(None),
        };
        let renamed = match self.in_upper(node) {
            true => {
                let marks = self.with_object(node, |object| self.marks_of(object))?;
                marks.half.map(|half| half.path).or(marks.redirect)
            }
            false => None,
        };
        let path = match renamed {
            Some(path) if path.starts_with(b"/") => path,
            renamed => [&self.lower_path(&parent)?[..], &renamed.unwrap_or(name)].join(&b'/'),
        };
        Ok((path.len() <= LONGEST_REDIRECT).then_some(path))
    }

    /// Makes sure that the node's object is in the upper, and that it shows the same under another name.
    pub(in crate::union) fn ensure_upper_to_move(&self, node: &Arc<Node>) -> Result<()> {
        if !self.makes_metacopies() {
            return self.ensure_upper(node);
        }
        self.ensure_upper_part(node, Part::Metadata)?;
        if !self.metacopies.contains_key(&node.ino) || self.in_turn(node, || self.mark_data_path(node))? {
            return Ok(());
        }
        self.ensure_upper(node)
    }

    /// Marks a metacopy with the path of its data. Tells whether it can be.
    fn mark_data_path(&self, node: &Arc<Node>) -> Result<bool> {
        let marks = self.with_object(node, |object| self.marks_of(object))?;
        if !marks.metacopy || marks.redirect.is_some_and(|path| path.starts_with(b"/")) {
            return Ok(true);
        }
        // What others read of a half-copied file leads nowhere.
        let path = if marks.half.is_some() { Some(NOWHERE.to_vec()) } else { self.data_path(node)? };
        let Some(path) = path else { return Ok(false) };
        let marked =
            self.with_object(node, |object| self.upper()?.set_mark(object.writable()?, REDIRECT, &path));
        self.changed_by_itself(node);
        match marked.map_err(|e| (e.errno(), e)) {
            Ok(()) => Ok(true),
            Err((Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::OPNOTSUPP, _)) => Ok(false),
            Err((_, e)) => Err(e),
        }
    }

    /// Gives a file of the upper as much of its data as is asked for. Tells whether it was truncated by that.
    pub(in crate::union) fn give_data(&self, node: &Arc<Node>, part: Part) -> Result<bool> {
        if !part.has_data() || !self.metacopies.contains_key(&node.ino) {
            return Ok(false);
        }
        if self.may_copy_blocks(node, part) && self.in_turn(node, || self.begin_half(node))? {
            let Part::Beginning(size) = part else { return Ok(false) };
            // In turn, for sealing takes the marks away.
            return self.in_turn(node, || match self.half(node)? {
                Some(half) => half.truncate(self.upper()?, size).map(|()| true),
                None => Ok(false),
            });
        }
        self.complete_data(node, part)
    }

    /// Gives a file of the upper that has only its metadata there its data. Tells whether it was truncated by that.
    fn complete_data(&self, node: &Arc<Node>, part: Part) -> Result<bool> {
        if !self.metacopies.contains_key(&node.ino) {
            return Ok(false);
        }
        self.in_turn(node, || match self.metacopies.get(&node.ino).map(|at| at.clone()) {
            Some(data) => {
                // Blocks of it are ruled out by now, whatever looked as if they weren't.
                let much = self.copies_much_whole(node, part);
                let _running = much.then(|| self.begin_much(node, Some(data.dir.layer)));
                Completion::begin(self, node, &data)?.run(part)
            }
            None => Ok(false),
        })
    }
}

impl Union {
    /// Tells whether blocks of the file may stay below when it is written to so.
    pub(in crate::union) fn may_copy_blocks(&self, node: &Node, part: Part) -> bool {
        let wanted = match part {
            Part::Written => u64::MAX,
            Part::Beginning(size) => size,
            Part::Metadata | Part::Whole => return false,
        };
        self.block_wise
            && node.kind == Kind::File
            && self.makes_metacopies()
            && wanted >= half::LEAST
            && self.getattr(node).is_ok_and(|attr| (half::LEAST..=half::LARGEST).contains(&attr.stat.size))
    }

    /// Makes a metacopy of the upper a half-copied file. Tells whether it is one: files with several names in the lower, and
    /// those whose path can't be kept, are none. The node's turn is taken.
    fn begin_half(&self, node: &Arc<Node>) -> Result<bool> {
        let Some(data) = self.metacopies.get(&node.ino).map(|at| at.clone()) else { return Ok(false) };
        let held = self.with_object(node, |file| file.writable().map(|_| file.held()))?;
        let held = held.host().cloned().ok_or(FsError::Stale)?;
        let upper = self.upper()?;
        let object = upper.own_file(held.as_fd());
        // What is said of the file elsewhere may be of before.
        let marks = upper_marks(object, self.belief)?;
        if !marks.metacopy {
            return Ok(false);
        }
        if let Some(mark) = marks.half {
            // Killed between the two marks it has the first alone, and other overlays would read what is below.
            if marks.redirect.as_deref() != Some(NOWHERE) {
                upper.set_mark(object, REDIRECT, NOWHERE)?;
            }
            if data.half.is_none() {
                self.files.forget(node.ino);
                self.metacopies.insert(node.ino, DataAt { half: Some(Arc::new(mark)), ..data });
                self.changed_by_itself(node);
            }
            return Ok(true);
        }
        let stat = object.at().stat()?;
        let from = self.open_data_elsewhere(&data)?;
        let Some(from) = from.host() else { return Ok(false) };
        let below = At::Fd(from.as_fd()).stat()?;
        let loses = stat.mode & 0o6000 != 0 || crate::sys::xattr::get(object.at(), CAPABILITIES)?.is_some();
        let several = below.nlink > 1 || upper.is_indexed_metacopy(stat.ino);
        if loses
            || several
            || data.digest.is_some()
            || stat.size != below.size
            || upper.shares_with(below.dev)?
        {
            return Ok(false);
        }
        let Some(path) = self.data_path(node)? else { return Ok(false) };
        let mark = HalfMark::of(&stat, &below, path);
        // Who opens the data finds them below, or by the mark.
        let _place = node.place.write();
        if !upper.growing(object.at(), Growth::None, || half::begins_without_blocks(object))? {
            return Ok(false);
        }
        // This one first: with the other alone the data are nowhere.
        let marked = upper
            .set_mark(object, HALF, &mark.to_bytes())
            .and_then(|()| upper.set_mark(object, REDIRECT, NOWHERE));
        if let Err(e) = marked {
            // No block is the copy's own yet: without the mark it is the metacopy that it was. If the mark stays, what is
            // done next reads it.
            upper.drop_mark(object, HALF)?;
            let lacks_room = matches!(e.errno(), Errno::NOSPC | Errno::DQUOT | Errno::TOOBIG | Errno::RANGE);
            return if lacks_room { Ok(false) } else { Err(e) };
        }
        node.names.changed();
        self.files.forget(node.ino);
        self.metacopies.insert(node.ino, DataAt { half: Some(Arc::new(mark)), ..data });
        self.changed_by_itself(node);
        self.waiting.note(node.ino);
        Ok(true)
    }

    /// Gives a file of the upper about `most` bytes more of what it has below. Returns how many were moved; `None`: it has all
    /// its data now. What has no blocks of its own, and can have none, gets all at once.
    pub(in crate::union) fn seal_some(&self, node: &Arc<Node>, most: u64) -> Result<Option<u64>> {
        if self.metacopies.get(&node.ino).is_some_and(|data| data.half.is_none())
            && self.may_copy_blocks(node, Part::Written)
        {
            self.in_turn(node, || self.begin_half(node))?;
        }
        self.in_turn(node, || {
            let Some(data) = self.metacopies.get(&node.ino).map(|at| at.clone()) else { return Ok(None) };
            let completion = Completion::begin(self, node, &data)?;
            match completion.some_of_half(most)? {
                Some(moved) => {
                    // Its change time is another.
                    self.changed_by_itself(node);
                    Ok(Some(moved))
                }
                None => completion.run(Part::Whole).map(|_| None),
            }
        })
    }
}

/// A metacopy that gets its data. The node's turn is taken.
struct Completion<'u> {
    union: &'u Union,
    upper: &'u Upper,
    node: &'u Arc<Node>,
    /// Where the data come from.
    from: LayerData,
    /// The file (O_PATH).
    held: Arc<OwnedFd>,
    /// Its inode number.
    own: u64,
    /// What is there of it already, block by block.
    half: Option<Arc<Half>>,
}

impl<'u> Completion<'u> {
    fn begin(union: &'u Union, node: &'u Arc<Node>, data: &DataAt) -> Result<Completion<'u>> {
        let held = union.with_object(node, |file| file.writable().map(|_| file.held()))?;
        let held = held.host().cloned().ok_or(FsError::Stale)?;
        let half = union.half(node)?;
        let from = union.open_data_elsewhere(data)?;
        let own = At::Fd(held.as_fd()).stat()?.ino;
        Ok(Completion { union, upper: union.upper()?, node, from, held, own, half })
    }

    fn object(&self) -> Writable<'_> {
        self.upper.own_file(self.held.as_fd())
    }

    fn run(&self, part: Part) -> Result<bool> {
        if !upper_marks(self.object(), self.union.belief)?.metacopy {
            // A lookup met it before it got its data, and told of it after.
            self.settle();
            return Ok(false);
        }
        let to = open_owned(self.object(), true, false)?;
        let before = self.object().at().stat()?;
        let wanted = part.of(before.size);
        if let Err(e) = self.fill(to.as_fd(), wanted) {
            self.empty_again();
            return Err(e);
        }
        let cut = wanted < before.size;
        if cut {
            match &self.half {
                Some(half) => half.truncate(self.upper, wanted)?,
                None => self.upper.set_length(to.as_fd(), wanted)?,
            }
            changed();
        }
        let synced = self.upper.sync(to.as_fd(), false);
        // Who opens the data looks at the mark with the place locked: it finds them there or here.
        let place = self.node.place.write();
        if let Err(error) = synced.and_then(|()| self.upper.drop_mark(self.object(), METACOPY)) {
            if cut {
                self.uncut(to.as_fd(), &before);
            }
            return Err(error);
        }
        // Without that mark it is whole, and the others say nothing.
        let others =
            [REDIRECT, HALF].into_iter().try_for_each(|mark| self.upper.drop_mark(self.object(), mark));
        let layer = self.union.metacopies.get(&self.node.ino).map(|data| data.dir.layer);
        self.settle();
        drop(place);
        self.union.changed_by_itself(self.node);
        self.union.counters.sealed.fetch_add(1, Ordering::Relaxed);
        self.union.events.tell(|| EventKind::Seal {
            path: self.union.path_of(self.node).into(),
            bytes: wanted,
            layer: layer.map(|layer| self.union.layer_number(layer)),
        });
        others?;
        Ok(cut)
    }

    /// Gives back its length and times to a metacopy that couldn't be completed after it was cut: its data are below still.
    /// If that can't be done either, or blocks of its own are gone with the end, it is cut, and the kernel is to ask anew. Errors are
    /// told by what failed first.
    fn uncut(&self, to: BorrowedFd<'_>, before: &Stat) {
        if self.half.is_none()
            && let Err(error) = self
                .upper
                .set_length(to, before.size)
                .map_err(FsError::from)
                .and_then(|()| set_times(before, self.object()))
        {
            log::warn!("a file that was to be cut and couldn't be completed stays cut: {error}");
        }
        self.union.changed_by_itself(self.node);
    }

    /// Copies the first `size` bytes, step by step. The times, and what a write takes away, are as before after each.
    fn fill(&self, to: BorrowedFd<'_>, size: u64) -> Result<()> {
        if let Some(half) = &self.half {
            while self.some(half, (size, STEP))?.is_some() {}
            return Ok(());
        }
        let data = || self.from.data_within(0, size);
        let shares = self.step(|| self.upper.copying(to, size, data, || Ok(self.from.share(to, size)?)))?;
        let mut at = if shares { size } else { 0 };
        while at < size {
            let next = self.step(|| {
                let sync = !self.upper.is_volatile();
                let copy = || Ok(self.from.copy_some(to, (at, size), STEP, sync)?);
                self.upper.copying(
                    to,
                    STEP.min(size - at),
                    || self.from.data_within(at, size.min(at + STEP)),
                    copy,
                )
            })?;
            changed();
            self.union.counters.copied_bytes.fetch_add(next - at, Ordering::Relaxed);
            at = next;
        }
        Ok(())
    }

    /// Gives the room back that a completion has taken which came to no end. What is there is nobody's: a later one begins anew.
    fn empty_again(&self) {
        if self.half.is_some() {
            return;
        }
        if let Err(e) = self.step(|| half::without_blocks(self.object())) {
            let path = EscapedPath::from(self.union.path_of(self.node));
            log::warn!(
                "{path}: what was copied before an error stays in the upper, and takes room there: {e}"
            );
        }
    }

    /// Gives a half-copied file some of what is missing before `end`. Returns how many bytes; `None`: nothing is missing.
    fn some(&self, half: &Half, (end, most): (u64, u64)) -> Result<Option<u64>> {
        // Who writes to it meanwhile gives it other times, which must stay.
        let _place = self.node.place.write();
        let moved = half.fill_some(self.upper, (end, most), |fill| self.keeping(fill))?;
        self.union.counters.copied_bytes.fetch_add(moved.unwrap_or(0), Ordering::Relaxed);
        Ok(moved)
    }

    /// Does the same of all of it; `None` also for a file that isn't half-copied.
    fn some_of_half(&self, most: u64) -> Result<Option<u64>> {
        self.half.as_ref().map_or(Ok(None), |half| self.some(half, (u64::MAX, most)))
    }

    fn step<R>(&self, write: impl FnOnce() -> Result<R>) -> Result<R> {
        let _place = self.node.place.write();
        self.keeping(write)
    }

    /// Writes what is no change to who looks at the file.
    fn keeping<R>(&self, write: impl FnOnce() -> Result<R>) -> Result<R> {
        let object = self.object();
        let stat = object.at().stat()?;
        let capabilities = crate::sys::xattr::get(object.at(), CAPABILITIES)?;
        let written = write();
        self.upper.looked_at(object.at());
        if let Some(capabilities) = capabilities {
            object.set_xattr(CAPABILITIES, &capabilities, rustix::fs::XattrFlags::empty())?;
        }
        set_times(&stat, object)?;
        written
    }

    /// Records that the file has its data now.
    fn settle(&self) {
        self.upper.has_data(self.own);
        // So that the next fdatasync writes that the marks are gone, or the lower's data would be back.
        self.node.names.changed();
        self.union.files.forget(self.node.ino);
        self.union.metacopies.remove(&self.node.ino);
        self.union.halves.forget(self.node.ino);
    }
}
