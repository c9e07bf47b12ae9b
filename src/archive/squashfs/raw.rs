//! Numbers and bytes as they lie in an image, and what can be wrong with it.

use std::io;

use crate::archive::part::Part;

/// What an inode without extended attributes has as their number.
pub(super) const NO_XATTRS: u32 = u32::MAX;

/// Why an image isn't read.
#[derive(Debug)]
pub(super) enum Wrong {
    /// A system call failed, or the file was changed.
    Read(io::Error),
    /// It is made in a way that isn't read.
    Unknown(&'static str),
    /// It is damaged; in what, where that is known.
    Damaged { path: Vec<u8>, what: String },
}

impl Wrong {
    /// Says what is damaged.
    pub(super) fn damaged(what: impl Into<String>) -> Wrong {
        Wrong::Damaged { path: Vec::new(), what: what.into() }
    }

    /// Says in what, if that isn't said yet.
    pub(super) fn within(self, within: &[u8]) -> Wrong {
        match self {
            Wrong::Damaged { path, what } if path.is_empty() => {
                Wrong::Damaged { path: within.to_vec(), what }
            }
            other => other,
        }
    }
}

/// Reads so many bytes of the image at a place; fewer are damage.
pub(super) fn read_exact(part: &Part, at: u64, buffer: &mut [u8]) -> Result<(), Wrong> {
    let is_within = at.checked_add(buffer.len() as u64).is_some_and(|end| end <= part.size);
    if !is_within {
        return Err(Wrong::damaged(format!(
            "it ends before the byte {}",
            at.saturating_add(buffer.len() as u64)
        )));
    }
    let mut done = 0;
    while done < buffer.len() {
        match part.read_there(&mut buffer[done..], at + done as u64) {
            Ok(0) => return Err(Wrong::Read(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Wrong::Read(error)),
        }
    }
    Ok(())
}

/// A number as it lies in the image.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |found| u16::from_le_bytes([found[0], found[1]]))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
