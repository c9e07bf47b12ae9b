//! What was read out of archives, kept for the next mount: the index, and of a compressed archive what it was decoded to.
//!
//! ```text
//! cache directory/archives/KEY.index   FORM, digest of the rest, boot, body (postcard)
//!                          KEY.data    the plain tar, sparse
//! ```
//!
//! The key is what tells an archive from any other without reading it: device, number, size and times, of which nobody can set the
//! ctime. An archive that was changed within the last seconds isn't kept, since a change in the same tick of the clock couldn't be
//! told. Nothing that is kept is believed unseen: the index carries a digest of itself and is looked through, and the data must be
//! the very file, unchanged, that the index speaks of. What isn't right is made anew. All of it may be deleted at any time; mounts
//! have open what they need.
//!
//! Nothing waits for the disk. Until data have been synced they count for the boot alone in which they were written, since a power
//! failure may have lost them; the second use syncs them, when the kernel has long written them back.
//!
//! A lock on the index is held while it is looked at or made, so that of two mounts of one archive the second finds what the
//! first has decoded. It goes with its holder.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, FlockOperation, OFlags, flock, linkat};
use serde::{Deserialize, Serialize};

use super::index::Index;
use crate::image::digest::Digest;
use crate::sys::object::proc_path;

/// What a file of this version begins with.
const FORM: &[u8; 8] = b"umtar\0\0\x01";
/// Behind the form: a digest, then the boot that the data count for; zeros when they are on the disk.
const DIGEST: usize = 32;
const BOOT: usize = 16;
const HEAD: usize = FORM.len() + DIGEST + BOOT;

/// More than any index takes that [`Builder`](super::build::Builder) makes.
const MOST_INDEX: u64 = 4 << 30;

/// On a large filesystem a tenth would be more than anybody misses.
const FREE: u64 = 4 << 30;

/// Where things are kept, and which.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    /// Made when it is needed.
    pub dir: PathBuf,
    /// Archives of fewer bytes are read as fast.
    pub least: u64,
    /// How long ago an archive must have been changed.
    pub settled: Duration,
    /// Data that haven't been used for that long are on the disk without anybody's waiting.
    pub written_back: Duration,
    /// Which part of its filesystem all of it may take, one in so many; half as much stays free, at most [`FREE`]. `None`: any.
    pub share: Option<u64>,
}

impl Cache {
    /// Returns that of this user.
    pub(super) fn of_user() -> Cache {
        Cache {
            dir: user_dir(),
            least: 1 << 20,
            settled: Duration::from_secs(2),
            written_back: Duration::from_secs(60),
            share: Some(5),
        }
    }

    fn archives(&self) -> PathBuf {
        self.dir.join("archives")
    }

    /// Finds the place of an archive and locks it. `None`: this one isn't kept, or nothing can be kept here.
    pub(super) fn place(&self, archive: &File, is_layer: bool) -> Option<Place> {
        self.find(archive, is_layer)
            .map_err(|error| log::debug!("{}: nothing is kept of archives: {error}", self.dir.display()))
            .ok()?
    }

    fn find(&self, archive: &File, is_layer: bool) -> io::Result<Option<Place>> {
        let metadata = archive.metadata()?;
        let is_settled = |seconds: i64, nanoseconds: i64| {
            let since = Duration::new(seconds.try_into().ok()?, nanoseconds.try_into().ok()?);
            let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + since).ok()?;
            Some(age >= self.settled)
        };
        let is_settled = is_settled(metadata.ctime(), metadata.ctime_nsec()).unwrap_or(false);
        if metadata.len() < self.least || !is_settled {
            return Ok(None);
        }
        let dir = self.archives();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        // Somebody else's, or one that others write to, would say what root's mounts hold.
        let found = fs::symlink_metadata(&dir)?;
        if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0
        {
            return Err(io::Error::other("archives/ in it is not this user's alone"));
        }
        let archive = Identity::of(&metadata);
        let key = &Digest::of(format!("{archive:?} {is_layer}").as_bytes()).hex()[..32];
        let path = dir.join(format!("{key}.index"));
        let index = lock(&path)?;
        Ok(Some(Place { cache: self.clone(), archive, index, path }))
    }

    fn make_room(&self) -> io::Result<()> {
        let Some(share) = self.share else { return Ok(()) };
        let filesystem = rustix::fs::statvfs(self.archives())?;
        let bytes = |blocks: u64| blocks.saturating_mul(filesystem.f_frsize);
        let (size, free) = (bytes(filesystem.f_blocks), bytes(filesystem.f_bavail));
        let to_be_free = (size / (2 * share)).min(FREE);
        self.shrink(size / share, to_be_free.saturating_sub(free))
    }

    /// Deletes what was used the longest ago, until all of it takes at most so much and so much was given back. Who has it
    /// mounted keeps it.
    fn shrink(&self, most: u64, back: u64) -> io::Result<()> {
        let mut kept = kept(&self.archives())?;
        kept.sort_by_key(|kept| kept.used);
        let before: u64 = kept.iter().map(|kept| kept.bytes).sum();
        let mut taken = before;
        for one in &kept {
            if taken <= most && before - taken >= back {
                break;
            }
            one.remove()?;
            taken -= one.bytes;
        }
        Ok(())
    }

    /// Deletes all of it; returns how many bytes on the disk that gave back.
    ///
    /// # Errors
    /// The first of reading the directory or deleting.
    pub(super) fn clear(&self) -> io::Result<u64> {
        let kept = match kept(&self.archives()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            kept => kept?,
        };
        kept.iter().try_for_each(Kept::remove)?;
        Ok(kept.iter().map(|kept| kept.bytes).sum())
    }
}

/// Returns `$XDG_CACHE_HOME/unionmount`, or `~/.cache/unionmount`; /var/cache/unionmount of root, and where there is no
/// home.
fn user_dir() -> PathBuf {
    let env = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home =
        || env("HOME").filter(|_| !rustix::process::geteuid().is_root()).map(|home| home.join(".cache"));
    env("XDG_CACHE_HOME").or_else(home).unwrap_or_else(|| "/var/cache".into()).join("unionmount")
}

/// What lies in the directory under one key.
struct Kept {
    files: Vec<PathBuf>,
    used: SystemTime,
    bytes: u64,
}

impl Kept {
    fn remove(&self) -> io::Result<()> {
        self.files.iter().try_for_each(|file| match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
    }
}

fn kept(dir: &Path) -> io::Result<Vec<Kept>> {
    let mut all = std::collections::BTreeMap::<OsString, Kept>::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let Some(key) = path.file_stem().map(OsString::from) else { continue };
        // Another may have deleted it meanwhile.
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        let one =
            all.entry(key).or_insert(Kept { files: Vec::new(), used: SystemTime::UNIX_EPOCH, bytes: 0 });
        // Data without an index are of no use.
        if path.extension().is_some_and(|extension| extension == "index") {
            one.used = found.modified()?;
        }
        one.bytes += found.blocks() * 512;
        one.files.push(path);
    }
    Ok(all.into_values().collect())
}

/// Opens a file of the cache and waits for its lock.
fn lock(path: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            log::info!("{}: another process reads the same archive; waiting for it", path.display());
            while let Err(errno) = flock(&file, FlockOperation::LockExclusive) {
                if errno != rustix::io::Errno::INTR {
                    return Err(errno.into());
                }
            }
        }
        let number = |found: &fs::Metadata| (found.dev(), found.ino());
        // Who waited for one that was deleted would be alone with it.
        match fs::symlink_metadata(path) {
            Ok(there) if number(&there) == number(&file.metadata()?) => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// What tells one content of a file from any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    device: u64,
    number: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    fn of(found: &fs::Metadata) -> Identity {
        Identity {
            device: found.dev(),
            number: found.ino(),
            size: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

/// What a pass over an archive tells.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Told {
    pub index: Index,
    /// The [`identity`](super::tree::identity) of the index.
    pub id: u64,
    /// What was left out, for a warning.
    pub left_out: super::build::LeftOut,
}

/// What is kept of an archive; the data with the path at which they lie.
type Loaded = (Told, Option<(File, PathBuf)>);

#[derive(Serialize, Deserialize)]
struct Body<T> {
    archive: Identity,
    data: Option<Identity>,
    told: T,
}

/// The place of one archive, locked as long as this lives.
pub(super) struct Place {
    cache: Cache,
    archive: Identity,
    index: File,
    path: PathBuf,
}

impl Place {
    fn data_path(&self) -> PathBuf {
        self.path.with_extension("data")
    }

    /// Returns the directory in which data are to be made that can be kept.
    pub(super) fn dir(&self) -> PathBuf {
        self.cache.archives()
    }

    /// Returns what is kept of the archive, and the data that it was decoded to, if it was.
    pub(super) fn load(&self) -> Option<Loaded> {
        match self.read() {
            Ok(found) => found,
            Err(error) => {
                log::debug!("{}: {error}; it is made anew", self.path.display());
                None
            }
        }
    }

    fn read(&self) -> io::Result<Option<Loaded>> {
        let mut bytes = Vec::new();
        (&self.index).take(MOST_INDEX).read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let (body, boot) =
            decode(&bytes).ok_or_else(|| io::Error::other("is damaged, or of another version"))?;
        if body.archive != self.archive {
            return Err(io::Error::other("speaks of another archive"));
        }
        let data = match body.data {
            None => None,
            Some(identity) => match self.data(identity, boot)? {
                None => return Ok(None),
                data => data,
            },
        };
        // Where it can't be told, it counts as used when it was made.
        if let Err(error) = self.index.set_modified(SystemTime::now()) {
            log::debug!("{}: {error}", self.path.display());
        }
        Ok(Some((body.told, data)))
    }

    /// Opens the data, if they are those that are meant and are on the disk or came in this boot.
    fn data(&self, identity: Identity, boot: [u8; BOOT]) -> io::Result<Option<(File, PathBuf)>> {
        let path = self.data_path();
        let nofollow = OFlags::NOFOLLOW.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(nofollow).open(&path)?;
        if Identity::of(&file.metadata()?) != identity {
            return Err(io::Error::other("its data aren't those that were kept"));
        }
        if boot != [0; BOOT] {
            if this_boot() != Some(boot) {
                return Ok(None);
            }
            let made = SystemTime::UNIX_EPOCH
                + Duration::from_secs(identity.changed.0.try_into().unwrap_or_default());
            if made.elapsed().is_ok_and(|age| age >= self.cache.written_back) {
                file.sync_data()?;
                self.index.write_all_at(&[0; BOOT], (FORM.len() + DIGEST) as u64)?;
            }
        }
        Ok(Some((file, path)))
    }

    /// Keeps what the archive told; `data`: what it was decoded to, a file without a name in [`dir`](Place::dir). What can't be
    /// kept goes with the mount.
    pub(super) fn keep(&self, told: &Told, data: Option<&File>) {
        let kept = self.write(told, data).and_then(|()| self.cache.make_room());
        if let Err(error) = kept {
            log::debug!("{}: isn't kept: {error}", self.path.display());
            // An index without its head is none.
            if let Err(error) = self.index.set_len(0) {
                log::debug!("{}: {error}", self.path.display());
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the directory is its own")]
    fn write(&self, told: &Told, data: Option<&File>) -> io::Result<()> {
        self.index.set_len(0)?;
        let path = self.data_path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut boot = [0; BOOT];
        let mut identity = None;
        if let Some(data) = data {
            boot = this_boot().ok_or_else(|| io::Error::other("nobody tells which boot this is"))?;
            linkat(CWD, proc_path(data.as_fd()), CWD, &path, AtFlags::SYMLINK_FOLLOW)?;
            identity = Some(Identity::of(&data.metadata()?));
        }
        let bytes = encode(&Body { archive: self.archive, data: identity, told }, boot)?;
        let mut index = &self.index;
        io::Seek::rewind(&mut index)?;
        index.write_all(&bytes)
    }
}

/// Returns which boot this is.
fn this_boot() -> Option<[u8; BOOT]> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let mut bytes = [0; BOOT];
    hex::decode_to_slice(id.trim().replace('-', ""), &mut bytes).ok()?;
    (bytes != [0; BOOT]).then_some(bytes)
}

fn encode(body: &Body<&Told>, boot: [u8; BOOT]) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; HEAD];
    bytes = postcard::to_extend(body, bytes).map_err(io::Error::other)?;
    let digest = digest_of(&bytes[HEAD..]);
    bytes[..FORM.len()].copy_from_slice(FORM);
    bytes[FORM.len()..][..DIGEST].copy_from_slice(&digest);
    bytes[FORM.len() + DIGEST..HEAD].copy_from_slice(&boot);
    Ok(bytes)
}

fn digest_of(body: &[u8]) -> [u8; DIGEST] {
    use sha2::Digest as _;
    sha2::Sha256::digest(body).into()
}

/// Reads an index file; `None` where anything about it is wrong.
fn decode(bytes: &[u8]) -> Option<(Body<Told>, [u8; BOOT])> {
    let rest = bytes.strip_prefix(FORM)?;
    let (digest, rest) = rest.split_first_chunk::<DIGEST>()?;
    let (boot, body) = rest.split_first_chunk::<BOOT>()?;
    if *digest != digest_of(body) {
        return None;
    }
    Some((decode_body(body)?, *boot))
}

fn decode_body(bytes: &[u8]) -> Option<Body<Told>> {
    let body: Body<Told> = postcard::from_bytes(bytes).ok()?;
    let end = body.data.map_or(body.archive.size, |data| data.size);
    body.told.index.is_sound(end).then_some(body)
}

/// Reads the body of an index file, which nothing vouches for; for fuzzing.
pub fn is_index(bytes: &[u8]) -> bool {
    decode_body(bytes).is_some()
}

#[cfg(test)]
mod tests;
