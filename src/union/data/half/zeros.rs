//! Holes and zeros in half-copied files. A hole of the copy shows what the lower has, so there zeros are written.

use std::os::fd::AsFd;

use rustix::fs::FallocateFlags;

use super::{Half, State};
use crate::error::Result;
use crate::sys::copy;
use crate::sys::object::SetTime;
use crate::union::change::upper::{Upper, changed};
use crate::union::data::fitting::together;

/// So much is written in one step.
const STEP: u64 = 1 << 20;

impl Half {
    /// Makes a range zeros; `mode`: with `PUNCH_HOLE` or `ZERO_RANGE`, as of fallocate(2). Returns where the blocks are that came up by
    /// that, and how many bytes.
    ///
    /// # Errors
    /// Those of reading, writing and fallocate(2).
    pub fn zero(
        &self,
        upper: &Upper,
        mode: FallocateFlags,
        (offset, length): (u64, u64),
    ) -> Result<Option<(u64, u64)>> {
        let mut state = self.to_be_written(upper)?;
        let end = offset.saturating_add(length);
        let grows = !mode.contains(FallocateFlags::KEEP_SIZE) && end > state.size;
        // The block in which the lower's file ends is the copy's or the lower's as a whole.
        let border = state.limit.next_multiple_of(self.block);
        let (mut wrote, new) = self.write_zeros(upper, &mut state, (offset, end.min(border)))?;
        if grows {
            self.mark(upper, &mut state)?;
            upper.set_length(self.own(), end)?;
            changed();
            (state.size, wrote) = (end, true);
        }
        let rest = offset.max(border);
        if rest < end {
            upper.allocate(self.own(), mode, (rest, end - rest))?;
        } else if !wrote {
            // It is a change all the same.
            upper.own_file(self.own()).utimens(None, Some(SetTime::Now))?;
        }
        changed();
        Ok(new)
    }

    /// Writes zeros where something else is shown. Tells whether anything was written, and what came up.
    fn write_zeros(
        &self,
        upper: &Upper,
        state: &mut State,
        (offset, end): (u64, u64),
    ) -> Result<(bool, Option<(u64, u64)>)> {
        let end = end.min(state.size);
        let (mut at, mut wrote, mut new) = (offset, false, None);
        let zeros = vec![0; STEP.min(end.saturating_sub(offset)) as usize];
        while at < end {
            let (own, to) = state.piece(self.block, at, end);
            let mut to = to.min(at + STEP);
            if !own {
                // Holes of the lower are zeros already.
                let (data, data_end) = copy::next_data(self.below.as_fd(), at, to)?;
                if data > at {
                    at = data.min(to);
                    continue;
                }
                to = to.min(data_end);
            }
            let missing = state.missing(self.block, at, to);
            self.write_to(upper, state, at, &zeros[..(to - at) as usize])?;
            new = together(new, missing);
            (at, wrote) = (to, true);
        }
        Ok((wrote, new))
    }
}
