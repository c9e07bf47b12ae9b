//! Tar → directory.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use super::attributes::Ownership;
use super::place::{LONGEST_PATH, UnpackTarget, is_plink, split};
use super::reader::{Entry, EntryKind, Reader};
use super::{LayerError, check};
use crate::sys::copy::{set_length, write_sparsely};
use crate::union::lookup::marker::AufsName;

/// How much a layer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries.
    pub entries: u64,
    /// Bytes of all files, holes included.
    pub bytes: u64,
}

impl Default for Limits {
    /// Allows four million entries and 128 GiB: beyond every layer that is meant, far below what fills a disk with
    /// inodes.
    fn default() -> Limits {
        Limits { entries: 4_000_000, bytes: 128 << 30 }
    }
}

/// Returns how large a layer's tar may be, which is more than its files: headers, padding. Beyond this it is a bomb
/// whatever it holds.
pub(crate) fn stream_limit(limits: Limits) -> u64 {
    limits.bytes.saturating_add(limits.entries.saturating_mul(4096))
}

/// How a layer is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApplyOptions {
    /// How owners, modes and devices are kept.
    pub ownership: Ownership,
    /// Against bombs.
    pub limits: Limits,
}

impl Default for ApplyOptions {
    fn default() -> ApplyOptions {
        ApplyOptions { ownership: Ownership::of_this_process(), limits: Limits::default() }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of all files, holes included.
    pub bytes: u64,
    /// Whiteouts and opaque marks.
    pub whiteouts: u64,
    /// Directories that the tar doesn't name, the root apart.
    pub implied: u64,
    /// Steps taken. They grow with the size of the tar, and with nothing else.
    pub work: u64,
}

/// Unpacks an uncompressed tar into the empty directory `root`, in overlay form.
///
/// The stream is read to its end, beyond the end of the tar, so that a reader that checks digest and size has seen all
/// of it. On an error `root` holds what was unpacked so far and is to be thrown away.
///
/// # Errors
/// The first entry that is wrong; see [`LayerError`].
pub fn apply(tar: impl Read, root: BorrowedFd<'_>, options: &ApplyOptions) -> Result<Applied, LayerError> {
    let mut reader = Reader::new(tar);
    let mut place = UnpackTarget::new(root, options.ownership)?;
    let mut applied = Applied::default();
    let mut attributes = 0u64;
    // Whatever `root` was made with; the tar may say otherwise.
    place.implied_root()?;
    while let Some(entry) = reader.next_entry()? {
        applied.entries += 1;
        // An entry a/b/c/d may stand for four inodes.
        if applied.entries + place.implied() > options.limits.entries {
            return Err(LayerError::TooManyEntries(options.limits.entries));
        }
        if entry.what == EntryKind::File {
            applied.bytes = applied.bytes.saturating_add(entry.size);
        }
        attributes += entry.attributes.xattrs.iter().map(|(_, value)| value.len() as u64).sum::<u64>();
        if applied.bytes.saturating_add(attributes) > options.limits.bytes {
            return Err(LayerError::TooManyBytes { entry: entry.path, limit: options.limits.bytes });
        }
        let path = clean(&entry.path, &entry.path, "")?;
        let parent = split(&path).0;
        match check::mark(&entry, &path)? {
            AufsName::Opaque => place.opaque(parent, &path)?,
            AufsName::Whiteout(hidden) => place.whiteout(&super::place::join(parent, hidden))?,
            // AUFS's own metadata, which no engine unpacks, but for what it keeps files with several names in: those names
            // follow as hardlinks.
            AufsName::Meta | AufsName::Malformed => {
                match check::is_kept_for_names(&entry, &path) {
                    true => make(&mut place, &mut reader, &entry, &path)?,
                    false if check::is_in_mark(parent) => place.skip(&path),
                    false => {}
                }
                continue;
            }
            AufsName::Plain => {
                make(&mut place, &mut reader, &entry, &path)?;
                continue;
            }
        }
        applied.whiteouts += 1;
    }
    place.finish()?;
    (applied.implied, applied.work) = (place.implied(), place.work());
    Ok(applied)
}

/// Makes what an entry describes.
fn make<R: Read>(
    place: &mut UnpackTarget<'_>,
    reader: &mut Reader<R>,
    entry: &Entry,
    path: &[u8],
) -> Result<(), LayerError> {
    check::object(entry, path)?;
    match &entry.what {
        EntryKind::Directory if path.is_empty() => place.root(&entry.attributes),
        EntryKind::Directory => place.directory(path, &entry.attributes),
        EntryKind::Symlink(target) => place.symlink(path, target, &entry.attributes),
        EntryKind::Hardlink(target) => {
            let target = clean(target, &entry.path, "hardlink to ")?;
            match is_plink(&target) && !place.has(&target)? {
                true => place.skip(path),
                false => place.hardlink(path, &target)?,
            }
            Ok(())
        }
        EntryKind::Special => place.special(path, &entry.attributes),
        EntryKind::File => {
            let file = place.file(path)?;
            let mut last = 0;
            reader.content(|offset, data| {
                last = offset + data.len() as u64;
                write_sparsely(file.as_fd(), offset, data).map_err(LayerError::os(path, "write its content"))
            })?;
            // A file that ends in a hole.
            if entry.size > 0 {
                set_length(file.as_fd(), entry.size).map_err(LayerError::os(path, "set its length"))?;
            }
            place.finish_file(file.as_fd(), path, &entry.attributes)
        }
    }
}

/// Returns the path without `.`, `..` and empty components, relative to the root, as `filepath.Clean` of Go makes it;
/// all engines begin with that. What leads out of the root is refused.
pub fn clean(path: &[u8], entry: &[u8], what: &str) -> Result<Vec<u8>, LayerError> {
    if path.contains(&0) {
        return Err(LayerError::entry(entry, format!("{what}a name with a zero byte")));
    }
    if path.is_empty() {
        return Err(LayerError::entry(entry, format!("{what}an empty name")));
    }
    let absolute = path.starts_with(b"/");
    let mut clean: Vec<u8> = Vec::with_capacity(path.len());
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if clean.is_empty() && !absolute => {
                return Err(LayerError::entry(
                    entry,
                    format!("{what}a name that leads out of the root by .."),
                ));
            }
            b".." => clean.truncate(split(&clean).0.len()),
            part => {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(part);
            }
        }
    }
    if clean.len() > LONGEST_PATH {
        let length = clean.len();
        let what = format!("{what}a path of {length} bytes, and Linux knows {LONGEST_PATH}");
        // The name itself would fill the screen.
        return Err(LayerError::entry(&entry[..entry.len().min(60)], what));
    }
    Ok(clean)
}
