//! Copy-up: the first change to something that only a lower has.
//!
//! How much of it comes up is told by a [`Part`]. Of a regular file the data can stay where they are as long as only its
//! attributes or its names change, with `metacopy=on`: the copy is then a **metacopy** in the kernel's form, an empty file
//! of the right size with the mark `overlay.metacopy`, and with `overlay.redirect` once its name is not that of the data. Its
//! data follow when they are first written to (`completion`).
//!
//! Parents go first. What fails on the way leaves nothing. The steps of one copy-up are in `copying`; only the last of them,
//! publishing, holds locks that other requests need; while data are copied the lower's file is read as before. Two that
//! want the same copy-up wait on one lock, and the second finds nothing left to do.

pub(in crate::union) mod brought;
pub(in crate::union) mod completion;
pub(in crate::union) mod copying;
pub mod running;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Mutex;

use crate::error::{FsError, Result};
use crate::sys::object::{Kind, Stat};
use crate::union::Union;
use crate::union::change::copy_up::brought::{Brought, Told};
use crate::union::change::copy_up::copying::CopyUp;
use crate::union::change::copy_up::running::{CopyingUp, Running};
use crate::union::change::part::Part;
use crate::union::change::upper::UpperFd;
use crate::union::events::EventKind;
use crate::union::lookup::realdir::LayerIndex;
use crate::union::lookup::veil::check_unveiled;
use crate::union::nodes::node::{Node, NodePlace, NodeSource};
use crate::union::options::RedirectDir;

/// So many bytes take long enough to copy that a thread of their own costs nothing.
const MUCH: u64 = 256 << 10;

impl Union {
    /// Makes sure that the node's object is in the upper, whole.
    pub(in crate::union) fn ensure_upper(&self, node: &Arc<Node>) -> Result<()> {
        self.ensure_upper_part(node, Part::Whole).map(drop)
    }

    /// Makes sure that so much of the node's object is in the upper. Tells whether it was truncated by that.
    pub(in crate::union) fn ensure_upper_part(&self, node: &Arc<Node>, part: Part) -> Result<bool> {
        self.bring_up(node, part, Told::ByNothing).map(|brought| brought.is_cut)
    }

    /// Does the same, for a change whose answer may tell the new attributes.
    pub(in crate::union) fn bring_up(&self, node: &Arc<Node>, part: Part, told: Told) -> Result<Brought> {
        self.upper()?;
        let given = |is_cut| Brought { is_cut, made: None };
        if self.in_upper(node) {
            return self.give_data(node, part).map(given);
        }
        check_unveiled(node)?;
        for dir in [Some(node), node.parent().as_ref()].into_iter().flatten() {
            // What was moved away in a lower, with all above it, must not come up under its old name.
            dir.dir.as_ref().map_or(Ok(()), |part| self.check_lowers(dir, part))?;
        }
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
            self.copy_up(parent, Part::Whole, Told::ByNothing).map(drop)?;
        }
        let first = if self.may_copy_blocks(node, part) { Part::Metadata } else { part };
        // Somebody else may have copied it up meanwhile, who needed less.
        match self.copy_up(node, first, told)? {
            cut @ Brought { is_cut: true, .. } => Ok(cut),
            Brought { made, .. } => Ok(Brought { is_cut: self.give_data(node, part)?, made }),
        }
    }

    /// Tells whether the node's object is in the upper.
    pub(in crate::union) fn in_upper(&self, node: &Node) -> bool {
        if let Some(dir) = &node.dir {
            return dir.upper.read().is_some();
        }
        self.is_in_upper_place(&node.place.read())
    }

    /// Tells whether what has this place is in the upper.
    pub(in crate::union) fn is_in_upper_place(&self, place: &NodePlace) -> bool {
        match place {
            NodePlace::Root => true,
            NodePlace::Named { entry, .. } => !matches!(entry.source(), NodeSource::Lower(_)),
            NodePlace::Pinned { upper, .. } => *upper,
        }
    }

    /// Tells whether a change of the node would copy much data up first. Then it had better not keep a thread that
    /// others wait for.
    pub fn copies_much(&self, node: &Node, part: Part) -> bool {
        !self.copies_blocks(node, part) && self.copies_much_whole(node, part)
    }

    /// Does the same where no blocks are copied.
    fn copies_much_whole(&self, node: &Node, part: Part) -> bool {
        let copies = || match self.in_upper(node) {
            true => part.has_data() && self.metacopies.contains_key(&node.ino),
            // As what it has to lose can't come later, setuid files come up whole.
            false => {
                part.has_data()
                    || !self.makes_metacopies()
                    || (!node.was_plain() && self.has_mode(node, 0o6000))
            }
        };
        node.kind == Kind::File
            && self.upper.is_some()
            && copies()
            && !(part == Part::Written && self.is_half(node))
            && self.getattr(node).is_ok_and(|attr| attr.stat.size >= MUCH)
    }

    /// Tells whether only blocks of the file will be copied, as far as can be told without opening it.
    fn copies_blocks(&self, node: &Node, part: Part) -> bool {
        let is_half = || self.metacopies.get(&node.ino).is_some_and(|data| data.half.is_some());
        self.may_copy_blocks(node, part)
            && (is_half()
                || (self.getattr(node).is_ok_and(|attr| attr.stat.nlink == 1)
                    && !self.has_mode(node, 0o6000)))
    }

    fn has_mode(&self, node: &Node, bits: u32) -> bool {
        self.getattr(node).is_ok_and(|attr| attr.stat.mode & bits != 0)
    }

    /// Does as [`Union::copies_much`], for what a name stands for, which is to be renamed.
    pub fn copies_much_under(&self, parent: &Node, name: &[u8]) -> bool {
        if self.makes_metacopies() && self.redirects == RedirectDir::On {
            return false;
        }
        let Ok(dir) = self.dir_part(parent) else { return false };
        let _names = dir.names.read();
        // What goes wrong here goes wrong again when the change is made, and is told then.
        self.resolve(parent, name).is_ok_and(|found| {
            found.is_some_and(|f| {
                !self.is_upper(f.layer) && f.stat.kind() == Kind::File && f.stat.size >= MUCH
            })
        })
    }

    /// Does `work` when nobody else copies the node up or gives it its data.
    fn in_turn<R>(&self, node: &Node, work: impl FnOnce() -> R) -> R {
        let turn = self.copying.entry(node.ino).or_insert_with(|| Arc::new(Mutex::new(()))).clone();
        let done = {
            let _turn = turn.lock();
            work()
        };
        drop(turn);
        self.copying.remove_if(&node.ino, |_, turn| Arc::strong_count(turn) == 1);
        done
    }

    /// Copies one object up whose parent is in the upper.
    fn copy_up(&self, node: &Arc<Node>, part: Part, told: Told) -> Result<Brought> {
        self.in_turn(node, || match self.in_upper(node) {
            true => Ok(Brought { is_cut: false, made: None }),
            false => self.copy_up_now(node, part, told),
        })
    }

    /// Makes a copy that is not published yet, and tells from which layer, if somebody wants to know.
    fn filled_copy<'u>(
        &'u self,
        node: &'u Arc<Node>,
        part: Part,
    ) -> Result<(CopyUp<'u>, Option<LayerIndex>)> {
        let begun = CopyUp::begin(self, node, part)?;
        let much = begun.data_bytes() >= MUCH;
        let layer = if much || self.events.listening() { self.lower_of(node) } else { None };
        let _running = much.then(|| self.begin_much(node, layer));
        Ok((begun.fill()?, layer))
    }

    fn copy_up_now(&self, node: &Arc<Node>, part: Part, told: Told) -> Result<Brought> {
        let started = Instant::now();
        let (filled, layer) = match self.filled_copy(node, part) {
            // It was changed in its layer meanwhile, which is over in most cases.
            Err(FsError::Stale) if self.watched.is_some() => self.filled_copy(node, part)?,
            filled => filled?,
        };
        let copied = filled.publish()?;
        // The answer is for one of its two ids.
        if told == Told::ByNothing || node.has_second_id() {
            self.changed_by_itself(node);
        }
        if copied.has_other_names {
            self.link_known_names(node);
        }
        self.counters.copy_ups.fetch_add(1, Ordering::Relaxed);
        self.counters.copied_bytes.fetch_add(copied.moved, Ordering::Relaxed);
        self.events.tell(|| EventKind::CopyUp {
            path: self.path_of(node).into(),
            kind: node.kind.into(),
            bytes: if node.kind == Kind::File { copied.data } else { 0 },
            layer: layer.map(|layer| self.layer_number(layer)),
            micros: started.elapsed().as_micros() as u64,
        });
        log::debug!(
            "copy-up of {} ({} bytes) in {:?}",
            String::from_utf8_lossy(&self.path_of(node)),
            copied.data,
            started.elapsed()
        );
        Ok(Brought { is_cut: copied.is_cut, made: copied.made })
    }

    /// Tells that much is being copied, for as long as what is returned lives.
    fn begin_much(&self, node: &Node, layer: Option<LayerIndex>) -> Running<'_> {
        let copy = self.copy_of(node, layer);
        self.events.tell(|| EventKind::CopyUpBegins {
            path: copy.path.clone().into(),
            bytes: copy.bytes,
            layer: copy.layer,
        });
        self.tell_how_far(node, copy)
    }

    /// Tells how far a copy is that this thread does, for as long as what is returned lives.
    fn tell_how_far(&self, node: &Node, copy: CopyingUp) -> Running<'_> {
        let events = self.events.clone();
        self.running_copies.begin(node.ino, copy, move |copy| {
            events.tell(|| EventKind::CopyUpGoesOn {
                path: copy.path.clone().into(),
                done: copy.done(),
                bytes: copy.bytes,
                layer: copy.layer,
            });
        })
    }

    /// Describes the copy-up of a node that begins now.
    fn copy_of(&self, node: &Node, layer: Option<LayerIndex>) -> CopyingUp {
        CopyingUp {
            path: self.path_of(node),
            bytes: self.getattr(node).map_or(0, |attr| attr.stat.size),
            layer: layer.map(|layer| self.layer_number(layer)),
            since: Instant::now(),
            done: Arc::default(),
        }
    }

    /// Returns the copies of much data that are under way.
    pub fn copying_up(&self) -> Vec<CopyingUp> {
        self.running_copies.list()
    }

    /// Does something to a directory of the upper, which is the node's, that the merged view doesn't show, so its times
    /// stay. Its change time and its size may not.
    pub(in crate::union) fn preserving_times<R>(
        &self,
        node: &Node,
        dir: &UpperFd,
        act: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        let before = dir.itself().at().stat()?;
        let done = act();
        give_times_back(&before, dir);
        self.changed_by_itself(node);
        done
    }

    /// Does the same with what is in the directory, whose names the caller has locked. Its change time and its size are shown as they
    /// were, where that can be.
    pub(in crate::union) fn unseen_in<R>(
        &self,
        node: &Node,
        dir: &UpperFd,
        act: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        let before = dir.itself().at().stat()?;
        let done = act();
        let upper = self.upper()?;
        let after = || upper.tells_changes_apart().then(|| dir.itself().at().stat().ok()).flatten();
        let after = if give_times_back(&before, dir) { after() } else { None };
        let (is_held, out) = after.map_or((false, None), |now| self.held_times.hold(node.ino, &before, &now));
        if !is_held {
            self.changed_by_itself(node);
        }
        if let Some(out) = out {
            self.changed_by_itself_if_known(out);
        }
        done
    }
}

/// Gives a directory the times back that it had. Tells whether it has them.
fn give_times_back(before: &Stat, dir: &UpperFd) -> bool {
    // What was done can't be taken back; the times of a directory of somebody else's stay as they are.
    super::carry::set_times(before, dir.itself())
        .inspect_err(|e| log::debug!("the times of a directory of the upper couldn't be kept: {e}"))
        .is_ok()
}
