//! The directory of the cache: whose it is, what in it is the cache's own, and how much it may take.
//!
//! It is opened once, and what is done in it is done below what was opened: who owns a directory on the way may put something else there.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use crate::sys::flock::{self, Access};

/// What the names of files end in.
pub(super) const INDEX: &str = "index";
pub(super) const DATA: &str = "data";
/// How long a key is.
const KEY: usize = 32;

/// On a large filesystem a tenth would be more than anybody misses.
const FREE: u64 = 4 << 30;

/// The directory, opened.
#[derive(Debug)]
pub(super) struct Shelf {
    dir: File,
    /// Where it is, for messages.
    pub shown: PathBuf,
}

impl Shelf {
    /// Opens the directory, and makes it if it `may_be_made`.
    ///
    /// # Errors
    /// That it isn't this user's alone: who else writes there would say what this user's mounts hold.
    pub fn open(path: &Path, may_be_made: bool) -> io::Result<Shelf> {
        if may_be_made {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let dir = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
        let found = dir.metadata()?;
        if !is_own(&found) || found.mode() & 0o022 != 0 {
            return Err(io::Error::other("the directory isn't this user's alone"));
        }
        Ok(Shelf { dir, shown: path.to_owned() })
    }

    /// Returns a path of the directory itself, whatever lies where it was.
    pub fn dir(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.dir.as_raw_fd()).into()
    }

    /// Returns the path of a file.
    pub fn file(&self, key: &str, extension: &str) -> PathBuf {
        self.dir().join(key).with_extension(extension)
    }

    /// Opens an index, an empty one if there is none, and locks it. `None`: somebody else has it for longer than `patience`.
    ///
    /// # Errors
    /// Those of opening and locking.
    pub fn lock(&self, key: &str, patience: Duration) -> io::Result<Option<File>> {
        let path = self.file(key, INDEX);
        let deadline = Instant::now() + patience;
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
                .open(&path)?;
            let found = file.metadata()?;
            if !found.is_file() || !is_own(&found) {
                return Err(io::Error::other("what is kept isn't this user's"));
            }
            if !flock::try_lock(&file, Access::Exclusive)? {
                log::info!("{}: somebody reads the same archive already; waiting", self.shown.display());
                if !flock::lock_until(&file, Access::Exclusive, deadline)? {
                    return Ok(None);
                }
            }
            // Who waited for one that was deleted would be alone with it.
            match fs::symlink_metadata(&path) {
                Ok(there) if (there.dev(), there.ino()) == (found.dev(), found.ino()) => {
                    return Ok(Some(file));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Deletes what was used the longest ago, as far as it is more than the share of the filesystem: see [`bounds`].
    ///
    /// # Errors
    /// Those of reading the directory.
    pub fn make_room(&self, share: u64) -> io::Result<()> {
        let (size, free) = self.filesystem()?;
        let (most, back) = bounds(size, free, share);
        self.shrink(most, back)
    }

    /// Tells whether so many bytes may be kept, which are on the filesystem already.
    ///
    /// # Errors
    /// Those of statvfs.
    pub fn has_place_for(&self, bytes: u64, share: u64) -> io::Result<bool> {
        let (size, free) = self.filesystem()?;
        let (most, back) = bounds(size, free, share);
        Ok(bytes <= most && back == 0)
    }

    /// Returns the size of the filesystem and what is free of it.
    fn filesystem(&self) -> io::Result<(u64, u64)> {
        let found = rustix::fs::fstatvfs(&self.dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok((bytes(found.f_blocks), bytes(found.f_bavail)))
    }

    /// Deletes what was used the longest ago, until all of it takes at most so much and so much was given back. Who has it
    /// mounted keeps it; what is being made stays.
    ///
    /// # Errors
    /// Those of reading the directory. What can't be deleted is passed over.
    pub fn shrink(&self, most: u64, back: u64) -> io::Result<()> {
        let mut kept = self.kept()?;
        kept.sort_by_key(|kept| kept.used);
        let before: u64 = kept.iter().map(|kept| kept.bytes).sum();
        let mut taken = before;
        for one in &kept {
            if taken <= most && before - taken >= back {
                break;
            }
            match self.remove(one) {
                Ok(true) => taken -= one.bytes,
                Ok(false) => {}
                Err(error) => log::debug!("{}: {error}", self.shown.join(&one.key).display()),
            }
        }
        Ok(())
    }

    /// Deletes all that isn't being made; returns how many bytes on the disk that gave back.
    ///
    /// # Errors
    /// The first of reading the directory or deleting; what can be deleted is deleted then, too.
    pub fn clear(&self) -> io::Result<u64> {
        let (mut freed, mut failed) = (0, None);
        for one in self.kept()? {
            match self.remove(&one) {
                Ok(true) => freed += one.bytes,
                Ok(false) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(freed), Err)
    }

    /// Deletes what lies under one key, unless somebody is making it.
    fn remove(&self, one: &Kept) -> io::Result<bool> {
        let index = self.dir().join(&one.key).with_extension(INDEX);
        let gone = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        };
        // Held until all of it is gone.
        let _lock = match File::open(&index) {
            Ok(file) if !flock::try_lock(&file, Access::Exclusive)? => return Ok(false),
            Ok(file) => Some(file),
            Err(error) => gone(error).map(|()| None)?,
        };
        for extension in [INDEX, DATA] {
            fs::remove_file(index.with_extension(extension)).or_else(gone)?;
        }
        Ok(true)
    }

    fn kept(&self) -> io::Result<Vec<Kept>> {
        let mut all = BTreeMap::<OsString, Kept>::new();
        for entry in fs::read_dir(self.dir())? {
            let path = entry?.path();
            let Some((key, extension)) = own_name(&path) else { continue };
            let found = match fs::symlink_metadata(&path) {
                // Another has deleted it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found?,
            };
            if !found.is_file() {
                continue;
            }
            let empty = Kept { key: key.to_owned(), used: SystemTime::UNIX_EPOCH, bytes: 0 };
            let one = all.entry(key.to_owned()).or_insert(empty);
            // Data without an index are of no use.
            if extension == INDEX {
                one.used = found.modified()?;
            }
            one.bytes += found.blocks() * 512;
        }
        Ok(all.into_values().collect())
    }
}

/// Makes a file without a name in a directory, and that if there is none.
pub(in crate::archive) fn nameless(dir: &Path) -> io::Result<File> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let opened = openat(
        rustix::fs::CWD,
        dir,
        OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o600),
    );
    match opened {
        Ok(file) => Ok(file.into()),
        // A filesystem that knows no such files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => tempfile::tempfile_in(dir),
        Err(errno) => Err(errno.into()),
    }
}

/// What lies in the directory under one key.
struct Kept {
    key: OsString,
    used: SystemTime,
    bytes: u64,
}

/// Returns key and extension of a name, if it is one that the cache gives.
fn own_name(path: &Path) -> Option<(&OsStr, &str)> {
    let (key, extension) = (path.file_stem()?, path.extension()?.to_str()?);
    let is_key = key.len() == KEY && key.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit);
    (is_key && [INDEX, DATA].contains(&extension)).then_some((key, extension))
}

fn is_own(found: &fs::Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw()
}

/// Returns how much all of it may take on a filesystem, and how much must be given back so that half as much as that is
/// free, or [`FREE`] of a large one.
fn bounds(size: u64, free: u64, share: u64) -> (u64, u64) {
    (size / share, (size / share / 2).min(FREE).saturating_sub(free))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_is_taken_and_a_tenth_stays_free() {
        let gib = 1 << 30;
        assert_eq!(bounds(10 * gib, gib, 5), (2 * gib, 0));
        assert_eq!(bounds(10 * gib, gib / 4, 5), (2 * gib, gib - gib / 4));
        assert_eq!(bounds(1000 * gib, 4 * gib, 5), (200 * gib, 0));
        assert_eq!(bounds(1000 * gib, gib, 5), (200 * gib, 3 * gib));
    }
}
