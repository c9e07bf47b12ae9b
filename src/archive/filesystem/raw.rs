//! Numbers and bytes as they lie in an image, and what can be wrong with it.

use std::io;

use crate::archive::part::Part;

/// Why an image isn't read.
#[derive(Debug)]
pub(in crate::archive) enum Wrong {
    /// A system call failed, or the file was changed.
    Read(io::Error),
    /// It is made in a way that isn't read; what of it, where it is a part.
    Unknown { path: Vec<u8>, what: String },
    /// It is damaged; in what, where that is known.
    Damaged { path: Vec<u8>, what: String },
}

impl Wrong {
    /// Says in which way that isn't read it is made.
    pub(in crate::archive) fn unknown(what: impl Into<String>) -> Wrong {
        Wrong::Unknown { path: Vec::new(), what: what.into() }
    }

    /// Says what is damaged.
    pub(in crate::archive) fn damaged(what: impl Into<String>) -> Wrong {
        Wrong::Damaged { path: Vec::new(), what: what.into() }
    }

    /// Says in what, if that isn't said yet.
    pub(in crate::archive) fn within(self, within: &[u8]) -> Wrong {
        match self {
            Wrong::Damaged { path, what } if path.is_empty() => {
                Wrong::Damaged { path: within.to_vec(), what }
            }
            Wrong::Unknown { path, what } if path.is_empty() => {
                Wrong::Unknown { path: within.to_vec(), what }
            }
            other => other,
        }
    }
}

/// Reads so many bytes of the image at a place; fewer are damage.
pub(in crate::archive) fn read_exact(part: &Part, at: u64, buffer: &mut [u8]) -> Result<(), Wrong> {
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
pub(in crate::archive) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |found| u16::from_le_bytes([found[0], found[1]]))
}

pub(in crate::archive) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

pub(in crate::archive) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
