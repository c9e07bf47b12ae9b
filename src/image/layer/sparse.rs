//! The maps of sparse files, which GNU tar writes in four forms: runs of data in the file's place, and what is between them
//! is zero. They are read; layers are written without them.

use super::header::{Header, SparsePax, decimal, number};

/// More runs than any tar that is meant has; each takes memory.
const MOST_RUNS: usize = 64 << 10;

/// A run of data within a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub offset: u64,
    pub length: u64,
}

/// A sparse file: its size, holes included, and its runs.
#[derive(Debug, Default)]
pub(super) struct Map {
    pub size: u64,
    pub runs: Vec<Run>,
}

const NONSENSE: &str = "the map of a sparse file makes no sense";

impl Map {
    /// Reads the old form, type `S`: what the header has. Whether blocks with more of it follow is told too.
    pub(super) fn of_header(header: Header<'_>) -> Result<(Map, bool), &'static str> {
        let (fields, more, size) = header.old_sparse();
        let mut map = Map { size: size.ok_or(NONSENSE)?, runs: Vec::new() };
        let all = map.add_fields(fields)?;
        Ok((map, all && more))
    }

    /// Adds a block that continues the map of a header. Returns whether one more follows.
    pub(super) fn add_block(&mut self, block: &[u8; 512]) -> Result<bool, &'static str> {
        Ok(self.add_fields(&block[..504])? && block[504] != 0)
    }

    /// Returns whether all fields were used.
    fn add_fields(&mut self, fields: &[u8]) -> Result<bool, &'static str> {
        for pair in fields.chunks_exact(24) {
            if pair[0] == 0 || pair[12] == 0 {
                return Ok(false);
            }
            let part = |field| number(field).and_then(|part| u64::try_from(part).ok()).ok_or(NONSENSE);
            self.add(part(&pair[..12])?, part(&pair[12..])?)?;
        }
        Ok(true)
    }

    /// Reads the forms 0.0 and 0.1, which stand in PAX records.
    pub(super) fn of_pax(pax: &SparsePax, stored: u64) -> Result<Map, &'static str> {
        if !pax.map.len().is_multiple_of(2) {
            return Err(NONSENSE);
        }
        let mut map = Map { size: pax.size.unwrap_or(stored), runs: Vec::new() };
        for pair in pax.map.chunks_exact(2) {
            map.add(pair[0], pair[1])?;
        }
        Ok(map)
    }

    fn add(&mut self, offset: u64, length: u64) -> Result<(), &'static str> {
        if self.runs.len() >= MOST_RUNS {
            return Err("the map of a sparse file has too many parts");
        }
        self.runs.push(Run { offset, length });
        Ok(())
    }

    /// Runs in order, without overlap, within the file, of all the bytes that are stored.
    pub(super) fn checked(self, stored: u64) -> Result<Map, &'static str> {
        let (mut at, mut sum) = (0u64, 0u64);
        for run in &self.runs {
            let end = run.offset.checked_add(run.length).filter(|_| run.offset >= at).ok_or(NONSENSE)?;
            at = end;
            sum = sum.checked_add(run.length).ok_or(NONSENSE)?;
        }
        if at <= self.size && sum == stored { Ok(self) } else { Err(NONSENSE) }
    }
}

/// The map of the form 1.0, which stands before the data: numbers in lines, filled up to a whole block.
#[derive(Debug, Default)]
pub(super) struct MapText {
    numbers: Vec<u64>,
    line: Vec<u8>,
}

impl MapText {
    /// Adds a block. Whether that was the last one.
    pub(super) fn add_block(&mut self, block: &[u8]) -> Result<bool, &'static str> {
        for &byte in block {
            if byte != b'\n' {
                // Twenty digits are the most of 64 bits.
                if self.line.len() >= 20 {
                    return Err(NONSENSE);
                }
                self.line.push(byte);
                continue;
            }
            self.numbers.push(decimal(&self.line).ok_or(NONSENSE)?);
            self.line.clear();
            let runs = self.numbers[0];
            if runs > MOST_RUNS as u64 {
                return Err("the map of a sparse file has too many parts");
            }
            if self.numbers.len() as u64 == 1 + 2 * runs {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the map, of a file of that size.
    pub(super) fn map(self, size: u64) -> Map {
        let pairs = self.numbers.get(1..).unwrap_or_default().chunks_exact(2);
        Map { size, runs: pairs.map(|pair| Run { offset: pair[0], length: pair[1] }).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_of_sparse_files_must_make_sense() {
        let run = |offset, length| Run { offset, length };
        let checked = |runs, stored, size| Map { size, runs }.checked(stored);
        assert!(checked(vec![run(0, 5), run(10, 5), run(20, 0)], 10, 20).is_ok());
        for (runs, stored, size) in [
            (vec![run(0, 5), run(4, 5)], 10, 20),
            (vec![run(0, 5)], 6, 20),
            (vec![run(18, 5)], 5, 20),
            (vec![run(u64::MAX, 5)], 5, 20),
            (vec![run(0, u64::MAX), run(u64::MAX, 5)], 4, u64::MAX),
        ] {
            checked(runs, stored, size).unwrap_err();
        }
    }

    #[test]
    fn maps_before_the_data() {
        let read = |text: &str| {
            let mut map = MapText::default();
            map.add_block(text.as_bytes()).map(|done| done.then(|| map.map(9).runs))
        };
        assert_eq!(read("1\n2\n3\n\0\0").unwrap(), Some(vec![Run { offset: 2, length: 3 }]));
        assert_eq!(read("0\n\0").unwrap(), Some(vec![]));
        assert_eq!(read("2\n2\n3\n").unwrap(), None);
        for bad in ["\n", "x\n", "1\n-1\n3\n", "99999999\n", "111111111111111111111111111"] {
            read(bad).unwrap_err();
        }
    }
}
