//! Regular files of an archive, out of its data.

use std::ops::Range;

use rustix::io::Result;

use super::part::Part;
use crate::image::layer::reader::Stored;
use crate::union::stack::tree::TreeFile;

/// A regular file, open.
#[derive(Debug)]
pub(super) struct ArchiveFile {
    /// What offsets are counted in.
    data: Part,
    size: u64,
    /// In order.
    runs: Box<[Stored]>,
}

impl ArchiveFile {
    pub(super) fn new(data: Part, size: u64, runs: Box<[Stored]>) -> ArchiveFile {
        ArchiveFile { data, size, runs }
    }

    /// Returns the first run that ends behind an offset.
    fn run(&self, offset: u64) -> Option<&Stored> {
        let at = self.runs.partition_point(|run| run.offset + run.length <= offset);
        self.runs.get(at)
    }
}

impl TreeFile for ArchiveFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let buffer = &mut buffer[..most];
        if most == 0 {
            return Ok(0);
        }
        let within = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX).min(most);
        match self.run(offset) {
            Some(run) if run.offset <= offset => {
                let skip = offset - run.offset;
                let count = within(run.length - skip);
                self.data.read_at(&mut buffer[..count], run.at + skip)
            }
            next => {
                let count = within(next.map_or(self.size, |run| run.offset) - offset);
                buffer[..count].fill(0);
                Ok(count)
            }
        }
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let run = self.run(offset).filter(|_| offset < self.size);
        Ok(run.map(|run| run.offset.max(offset)..run.offset + run.length))
    }
}
