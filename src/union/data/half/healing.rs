//! Blocks of a copy that are nobody's: written in part, or room without data. They become holes before anything is read or written.

use std::ops::Range;
use std::os::fd::AsFd;

use parking_lot::{RwLockReadGuard, RwLockWriteGuard};
use rustix::io::Errno;

use super::blocks::punch;
use super::{Half, State};
use crate::error::Result;
use crate::sys::object::At;
use crate::union::change::carry::set_times;
use crate::union::change::upper::{Upper, changed};
use crate::union::nodes::deferred_free::is_full;
use crate::union::quota::taken::Growth;

impl Half {
    /// Makes holes of blocks that nothing was written to. A filesystem that fails in the midst of several may have made zeros of
    /// those for which it had room: ext4 where a page has several blocks, or a folio several pages.
    pub(super) fn clear(&self, upper: &Upper, state: &mut State, blocks: Range<u64>) {
        let mut at = blocks.start;
        while at < blocks.end {
            let (own, to) = state.map.run(at, blocks.end);
            if !own && punch(self.own.as_fd(), at * self.block, (to - at) * self.block).is_err() {
                return self.take_back(upper, state, at..to);
            }
            at = to;
        }
    }

    /// Takes blocks back that were written in part. Where that can't be done, the file is as torn for whoever opens it next.
    pub(super) fn take_back(&self, upper: &Upper, state: &mut State, blocks: Range<u64>) {
        let block = blocks.start;
        state.torn.push(blocks);
        let noted = self.mark(upper, state);
        let healed = self.heal(state);
        upper.looked_at(At::Fd(self.own.as_fd()));
        let Err(e) = healed else { return };
        let path = String::from_utf8_lossy(&state.mark.path);
        let path = path.escape_debug();
        log::error!("{path}: block {block} of its copy was written in part and can't be taken back: {e}");
        if let Err(e) = noted {
            log::error!("{path}: a later mount won't know that block {block} of its copy is no good: {e}");
        }
    }

    /// Makes holes of blocks of which only a part was written.
    pub(super) fn heal(&self, state: &mut State) -> Result<()> {
        while let Some(torn) = state.torn.last() {
            punch(self.own.as_fd(), torn.start * self.block, (torn.end - torn.start) * self.block)?;
            state.torn.pop();
        }
        Ok(())
    }

    /// Tells whether there are blocks of which only a part was written, as nobody who opens it anew may know.
    pub(in crate::union) fn is_torn(&self) -> bool {
        !self.state.read().torn.is_empty()
    }

    /// Returns the state, with no block torn. Until that can be had nothing of the file is read or written: it would be
    /// a mixture.
    fn healed(&self) -> Result<RwLockWriteGuard<'_, State>> {
        let mut state = self.state.write();
        self.heal(&mut state).map_err(|_| Errno::IO)?;
        Ok(state)
    }

    pub(super) fn healed_for_reading(&self) -> Result<RwLockReadGuard<'_, State>> {
        let state = self.state.read();
        if state.torn.is_empty() {
            return Ok(state);
        }
        drop(state);
        Ok(RwLockWriteGuard::downgrade(self.healed()?))
    }

    /// Returns the same for who writes: with no room that a write beside it could make data of.
    pub(super) fn to_be_written(&self, upper: &Upper) -> Result<RwLockWriteGuard<'_, State>> {
        let mut state = self.healed()?;
        self.give_room_back(upper, &mut state)?;
        Ok(state)
    }

    /// Returns the same for who writes from `from` to before `to`. On a full disk a hole may need room itself; what is written to
    /// blocks that are the copy's makes no data of others, and goes on.
    pub(super) fn to_be_written_within(
        &self,
        upper: &Upper,
        (from, to): (u64, u64),
    ) -> Result<RwLockWriteGuard<'_, State>> {
        let mut state = self.healed()?;
        match self.give_room_back(upper, &mut state) {
            Err(error) if is_full(&error) && state.has_all(self.block, from, to) => {}
            done => done?,
        }
        Ok(state)
    }

    /// Makes holes of room without data. It is no change to who looks at the file: what follows may fail.
    pub(super) fn give_room_back(&self, upper: &Upper, state: &mut State) -> Result<()> {
        if state.room.is_empty() {
            return Ok(());
        }
        let own = self.own.as_fd();
        let before = At::Fd(own).stat()?;
        let punched = upper.growing(At::Fd(own), Growth::None, || {
            while let Some(blocks) = state.room.last() {
                punch(own, blocks.start * self.block, (blocks.end - blocks.start) * self.block)?;
                state.room.pop();
            }
            Ok(())
        });
        changed();
        set_times(&before, upper.own_file(own))?;
        punched
    }
}
