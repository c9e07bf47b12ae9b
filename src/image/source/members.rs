//! The files of an archive, by name: found where they lie, or spooled as they come.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tar::EntryType;

use crate::image::error::StoreError;
use crate::image::store::{Blob, Staging};

/// What tar headers, long names and attributes of one file may take in memory.
const MAX_HEADER: u64 = 1 << 20;
/// More files than any image has.
const MAX_MEMBERS: usize = 100_000;

pub(super) type Members = BTreeMap<String, Member>;

#[derive(Debug, Clone)]
pub(super) enum Member {
    /// A part of the archive.
    Range { offset: u64, size: u64 },
    /// A spooled file, and what it turned out to be.
    Spooled(PathBuf, Blob),
    /// Another name for a file of the archive.
    Link(String),
}

/// Follows links within the archive; docker save writes a layer that it has already written as a link to the first.
pub(super) fn find<'a>(members: &'a Members, name: &str) -> Option<&'a Member> {
    let mut member = members.get(normal(name)?.as_str())?;
    for _ in 0..8 {
        match member {
            Member::Link(target) => member = members.get(target)?,
            found => return Some(found),
        }
    }
    None
}

/// Returns a name without `.` and `..`; `None` when it leads out of the archive.
pub(in crate::image) fn normal(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Why an archive could not be read.
pub(super) enum Failure {
    Store(StoreError),
    Read(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Store(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Read(match error.kind() {
            io::ErrorKind::UnexpectedEof => "the archive ends too early".into(),
            io::ErrorKind::Unsupported => error.to_string(),
            // The crate quotes what it took for a header, whatever bytes those are.
            _ if error.to_string().contains(" when getting ") => {
                "the archive cannot be read: there is no tar, or it is damaged".into()
            }
            _ => format!("the archive cannot be read: {error}"),
        })
    }
}

/// Finds out what an archive holds, and where, without reading it all.
pub(super) fn scan(file: &File) -> std::result::Result<Members, Failure> {
    let size = file.metadata()?.len();
    let allowance = Arc::new(AtomicU64::new(0));
    let limited = Metered { inner: file.try_clone()?, allowance: allowance.clone() };
    let mut archive = tar::Archive::new(limited);
    let mut members = Members::new();
    let mut entries = archive.entries_with_seek()?;
    loop {
        allowance.store(MAX_HEADER, Ordering::Relaxed);
        let Some(entry) = entries.next() else { break };
        let entry = entry?;
        let (offset, length) = (entry.raw_file_position(), entry.size());
        if entry.header().entry_type().is_file() && offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        enter(&mut members, &entry, || Ok(Member::Range { offset, size: length }))?;
    }
    no_members(&members)?;
    Ok(members)
}

/// Reads a stream, and keeps its files.
pub(super) fn spool(
    stream: impl Read,
    staging: &Staging<'_>,
    limit: u64,
) -> std::result::Result<Members, Failure> {
    let allowance = Arc::new(AtomicU64::new(0));
    let limited = Metered { inner: stream, allowance: allowance.clone() };
    let mut archive = tar::Archive::new(limited);
    let mut members = Members::new();
    let mut left = limit;
    {
        let mut entries = archive.entries()?;
        loop {
            // Padding of the file before is read here too.
            allowance.store(MAX_HEADER, Ordering::Relaxed);
            let Some(entry) = entries.next() else { break };
            let mut entry = entry?;
            allowance.store(u64::MAX, Ordering::Relaxed);
            if !entry.header().entry_type().is_file() {
                enter(&mut members, &entry, || Err(io::Error::other("no file").into()))?;
                continue;
            }
            let size = entry.size();
            left = left.checked_sub(size).ok_or_else(|| {
                let what = "the archive is larger than --max-size allows; raise it if that is meant";
                Failure::Read(what.into())
            })?;
            let mut writer = staging.blob()?;
            let read = io::copy(&mut entry, &mut writer)?;
            if read != size {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let (path, blob) = writer.finish()?;
            enter(&mut members, &entry, || Ok(Member::Spooled(path, blob)))?;
        }
    }
    allowance.store(u64::MAX, Ordering::Relaxed);
    // A compressed archive is whole when its decoder says so; whoever writes into a pipe wants to write it all.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    no_members(&members)?;
    Ok(members)
}

fn no_members(members: &Members) -> std::result::Result<(), Failure> {
    match members.is_empty() {
        true => Err(Failure::Read(
            "holds no archive: a tar, which may be compressed with gzip, zstd, xz or bzip2, is expected"
                .into(),
        )),
        false => Ok(()),
    }
}

/// Enters a file or a link into the list of members; what else an archive may hold is of no use to an image.
fn enter<R: Read>(
    members: &mut Members,
    entry: &tar::Entry<'_, R>,
    file: impl FnOnce() -> std::result::Result<Member, Failure>,
) -> std::result::Result<(), Failure> {
    let path = entry.path_bytes();
    // Names of an image's parts are plain; others are never asked for.
    let Some(name) = std::str::from_utf8(&path).ok().and_then(normal).filter(|name| !name.is_empty()) else {
        return Ok(());
    };
    let member = match entry.header().entry_type() {
        EntryType::Regular | EntryType::Continuous => file()?,
        kind @ (EntryType::Symlink | EntryType::Link) => {
            let Some(target) = entry.link_name_bytes() else { return Ok(()) };
            let target = String::from_utf8_lossy(&target).into_owned();
            let target = match (kind, Path::new(&name).parent().and_then(Path::to_str)) {
                (EntryType::Symlink, Some(parent)) => format!("{parent}/{target}"),
                _ => target,
            };
            match normal(&target) {
                Some(target) => Member::Link(target),
                None => return Ok(()),
            }
        }
        _ => return Ok(()),
    };
    if members.len() >= MAX_MEMBERS {
        return Err(Failure::Read(format!("has more than {MAX_MEMBERS} files, which no image has")));
    }
    members.insert(name, member);
    Ok(())
}

/// Fails when more is read than was allowed: the tar crate keeps long names and attributes in memory, of whatever length
/// an archive says they have.
struct Metered<R> {
    inner: R,
    allowance: Arc<AtomicU64>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.allowance.load(Ordering::Relaxed);
        if left == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the header of a file is larger than a mebibyte",
            ));
        }
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..most])?;
        self.allowance.store(left.saturating_sub(count as u64), Ordering::Relaxed);
        Ok(count)
    }
}

impl<R: Seek> Seek for Metered<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}
