//! Metadata: blocks of 8 KiB, compressed one by one, in which what is read may go on in the next.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::compressor::Compressor;
use crate::archive::filesystem::{Budget, Table, Wrong, read_exact, u16_at};
use crate::archive::part::Part;

/// What a block of metadata holds, the last of a table apart.
pub(super) const BLOCK: usize = 8192;
/// Set in a block's length where it isn't compressed.
const PLAIN: u16 = 1 << 15;
/// So many blocks are remembered, and half as many are forgotten at once: 4 MiB.
const MOST: usize = 256;

/// A block as it was read.
struct Block {
    bytes: Vec<u8>,
    /// Where the next one begins.
    next: u64,
}

/// Reads blocks, and remembers those that were read last.
pub(super) struct Metadata<'a> {
    pub part: &'a Part,
    /// Of what is read, and kept.
    pub budget: Budget,
    compressor: Compressor,
    young: RefCell<HashMap<u64, Rc<Block>>>,
    old: RefCell<HashMap<u64, Rc<Block>>>,
}

impl<'a> Metadata<'a> {
    /// # Errors
    /// When the budget isn't enough for what is remembered.
    pub(super) fn new(part: &'a Part, compressor: Compressor, budget: Budget) -> Result<Metadata<'a>, Wrong> {
        budget.take((2 * MOST * BLOCK) as u64, Table::Metadata)?;
        Ok(Metadata { part, budget, compressor, young: RefCell::default(), old: RefCell::default() })
    }

    /// Begins to read at a reference of a table: in its upper bits a block's place in the table, in the lower sixteen one in the block.
    ///
    /// # Errors
    /// When it leads nowhere.
    pub(super) fn cursor(&self, table: u64, reference: u64) -> Result<Cursor<'_>, Wrong> {
        let at =
            table.checked_add(reference >> 16).ok_or_else(|| Wrong::damaged("a reference leads nowhere"))?;
        let block = self.block(at)?;
        let within = (reference & 0xffff) as usize;
        // At the end of a block it goes on in the next.
        if within > block.bytes.len() {
            return Err(Wrong::damaged(format!("a reference leads behind the block at {at}")));
        }
        Ok(Cursor { metadata: self, block, within })
    }

    fn block(&self, at: u64) -> Result<Rc<Block>, Wrong> {
        let known = self.young.borrow().get(&at).cloned();
        let (block, is_young) = match known.or_else(|| self.old.borrow_mut().remove(&at)) {
            Some(block) => {
                let is_young = self.young.borrow().contains_key(&at);
                (block, is_young)
            }
            None => (Rc::new(self.read(at)?), false),
        };
        if !is_young {
            let mut young = self.young.borrow_mut();
            if young.len() >= MOST {
                *self.old.borrow_mut() = std::mem::take(&mut *young);
            }
            young.insert(at, block.clone());
        }
        Ok(block)
    }

    fn read(&self, at: u64) -> Result<Block, Wrong> {
        let mut head = [0; 2];
        read_exact(self.part, at, &mut head)?;
        let head = u16_at(&head, 0);
        let length = usize::from(head & !PLAIN);
        if !(1..=BLOCK).contains(&length) {
            return Err(Wrong::damaged(format!("the block of metadata at {at} tells of {length} bytes")));
        }
        let mut stored = vec![0; length];
        read_exact(self.part, at + 2, &mut stored)?;
        let next = at + 2 + length as u64;
        if head & PLAIN != 0 {
            return Ok(Block { bytes: stored, next });
        }
        let mut bytes = vec![0; BLOCK];
        let found = self.compressor.decompress(&stored, &mut bytes);
        let count = found.map_err(|error| {
            Wrong::damaged(format!("the block of metadata at {at} can't be decompressed: {error}"))
        })?;
        bytes.truncate(count);
        Ok(Block { bytes, next })
    }
}

/// A place in metadata that is read from.
pub(super) struct Cursor<'a> {
    metadata: &'a Metadata<'a>,
    block: Rc<Block>,
    within: usize,
}

impl Cursor<'_> {
    /// Fills a buffer.
    ///
    /// # Errors
    /// When the blocks end before, or are damaged.
    pub(super) fn read(&mut self, mut buffer: &mut [u8]) -> Result<(), Wrong> {
        while !buffer.is_empty() {
            let left = &self.block.bytes[self.within..];
            if left.is_empty() {
                let next = self.metadata.block(self.block.next)?;
                // Nothing could be read of empty ones for ever.
                if next.bytes.is_empty() {
                    return Err(Wrong::damaged(format!(
                        "the block of metadata at {} is empty",
                        self.block.next
                    )));
                }
                (self.block, self.within) = (next, 0);
                continue;
            }
            let count = left.len().min(buffer.len());
            buffer[..count].copy_from_slice(&left[..count]);
            self.within += count;
            buffer = &mut buffer[count..];
        }
        Ok(())
    }

    /// Reads so many bytes.
    ///
    /// # Errors
    /// As [`Cursor::read`].
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Wrong> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads so many bytes, of which the caller knows that they are few.
    ///
    /// # Errors
    /// As [`Cursor::read`].
    pub(super) fn bytes(&mut self, count: usize) -> Result<Vec<u8>, Wrong> {
        let mut bytes = vec![0; count];
        self.read(&mut bytes)?;
        Ok(bytes)
    }
}
