//! Where the data of an object lie: runs of the image.

use super::inode::{Inode, Layout};
use super::source::Erofs;
use crate::archive::filesystem::{Table, Wrong, read_exact, u16_at, u32_at};
use crate::image::layer::reader::Stored;

/// What stands for a block that isn't there: zeros are read.
const HOLE: u32 = u32::MAX;
/// So much of a map of chunks is read at once.
const PIECE: usize = 4096;

/// Runs that are being put together.
struct Runs<'a> {
    erofs: &'a Erofs<'a>,
    runs: Vec<Stored>,
}

impl Runs<'_> {
    /// Adds one, which may go on where the last one ends.
    fn add(&mut self, run: Stored) -> Result<(), Wrong> {
        let size = self.erofs.part.size;
        if run.at.checked_add(run.length).is_none_or(|end| end > size) {
            return Err(Wrong::damaged("its data lie behind the image's end"));
        }
        if let Some(last) = self.runs.last_mut()
            && last.offset + last.length == run.offset
            && last.at + last.length == run.at
        {
            last.length += run.length;
            return Ok(());
        }
        self.erofs.budget.take(size_of::<Stored>() as u64, Table::Inodes)?;
        self.runs.push(run);
        Ok(())
    }

    /// Adds one that begins a block.
    fn add_block(&mut self, offset: u64, length: u64, block: u32) -> Result<(), Wrong> {
        if block == HOLE || length == 0 {
            return Ok(());
        }
        self.add(Stored { offset, length, at: u64::from(block) << self.erofs.image.block_log })
    }

    fn add_end(&mut self, inode: &Inode, offset: u64) -> Result<(), Wrong> {
        let (at, length) = (inode.attributes.1, inode.size - offset);
        let log = self.erofs.image.block_log;
        if at >> log != (at + length - 1) >> log {
            return Err(Wrong::damaged("the end of its data goes beyond the block of its inode"));
        }
        self.add(Stored { offset, length, at })
    }

    fn add_chunks(&mut self, inode: &Inode, log: u8, has_indexes: bool) -> Result<(), Wrong> {
        let unit = if has_indexes { 8 } else { 4 };
        // Numbers stand at multiples of what they take.
        let mut at = inode.attributes.1.next_multiple_of(unit);
        let mut left = inode.size.div_ceil(1 << log).saturating_mul(unit);
        self.erofs.own(left)?;
        let (mut offset, mut piece) = (0, vec![0; left.min(PIECE as u64) as usize]);
        while left > 0 {
            let count = left.min(PIECE as u64) as usize;
            let piece = &mut piece[..count];
            read_exact(self.erofs.part, at, piece)?;
            for entry in piece.chunks_exact(unit as usize) {
                let block = u32_at(entry, entry.len() - 4);
                let device = if has_indexes { u16_at(entry, 2) } else { 0 };
                if device != 0 && block != HOLE {
                    return Err(Wrong::damaged(format!(
                        "its data lie on the device {device}, which there isn't"
                    )));
                }
                let length = (inode.size - offset).min(1 << log);
                self.add_block(offset, length, block)?;
                offset += length;
            }
            (at, left) = (at + count as u64, left - count as u64);
        }
        Ok(())
    }
}

/// Returns where the data of an object lie, in order. What is between them are holes.
///
/// # Errors
/// When they lie nowhere, or take more memory than there is.
pub(super) fn runs(erofs: &Erofs<'_>, inode: &Inode) -> Result<Vec<Stored>, Wrong> {
    let mut runs = Runs { erofs, runs: Vec::new() };
    let size = inode.size;
    match inode.layout {
        _ if size == 0 => {}
        Layout::Plain { block } => runs.add_block(0, size, block)?,
        Layout::Inline { block } => {
            let end = (size - 1) >> erofs.image.block_log << erofs.image.block_log;
            runs.add_block(0, end, block)?;
            runs.add_end(inode, end)?;
        }
        Layout::Chunks { log, has_indexes } => runs.add_chunks(inode, log, has_indexes)?,
    }
    Ok(runs.runs)
}

/// Reads data at a place, all of which are there.
///
/// # Errors
/// Those of reading.
pub(super) fn read(erofs: &Erofs<'_>, runs: &[Stored], buffer: &mut [u8], offset: u64) -> Result<(), Wrong> {
    buffer.fill(0);
    let end = offset + buffer.len() as u64;
    let first = runs.partition_point(|run| run.offset + run.length <= offset);
    for run in runs[first..].iter().take_while(|run| run.offset < end) {
        let (from, to) = (run.offset.max(offset), (run.offset + run.length).min(end));
        let piece = &mut buffer[(from - offset) as usize..(to - offset) as usize];
        read_exact(erofs.part, run.at + (from - run.offset), piece)?;
    }
    Ok(())
}
