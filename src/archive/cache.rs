//! What was read out of archives, kept for the next mount: the index, and of a compressed archive what it was decoded to.
//!
//! ```text
//! cache directory/archives/KEY.index   FORM, digest of the rest, boot, body (postcard)
//!                          KEY.data    the plain tar, sparse; of one that is compressed with gzip the windows by which it is entered
//! ```
//!
//! What was decoded of a layer of an image is known by its diff id, wherever a copy of it lies. Else the key is what tells an archive
//! from any other without reading it: device, number, size and times, of which nobody can set the ctime, where the filesystem is one
//! that keeps it truly; and which part of the file it is. An archive that was changed within the last seconds isn't kept, since a
//! change in the same tick of the clock couldn't be told. Nothing that is kept is believed unseen: the index carries a digest of
//! itself and is looked through, and the data must be the very file, unchanged, that the index speaks of. What isn't right is made
//! anew. All of it may be deleted at any time; mounts have open what they need.
//!
//! Nobody waits for the disk. Data are synced in a thread, and until they are they count for the boot alone in which they were
//! written, since a power failure may have lost them.
//!
//! A lock on the index is held while it is looked at or made, so that of two mounts of one archive the second finds what the
//! first has decoded. It goes with its holder, and who has waited for long decodes for itself.

mod shelf;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, OFlags, linkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub(super) use self::shelf::nameless;
use self::shelf::{DATA, INDEX, Shelf};
use super::data::blocks::Blocks;
use super::gzip::Points;
use super::index::Index;
use super::part::Part;
use super::promise::{ArchiveOptions, Promised};
use crate::image::digest::Digest;
use crate::image::layer::Ownership;
use crate::sys::object::proc_path;
use crate::sys::process;

/// What a file of this version begins with.
const FORM: &[u8; 8] = b"umtar\0\0\x06";
/// Behind the form: a digest, then the boot that the data count for; zeros when they are on the disk.
const DIGEST: usize = 32;
const BOOT: usize = 16;
const HEAD: usize = FORM.len() + DIGEST + BOOT;

/// More than any index takes that [`Builder`](super::build::Builder) makes.
const MOST_INDEX: u64 = 4 << 30;

/// How long to wait for another process that reads the same archive.
const PATIENCE: Duration = Duration::from_secs(30);

/// Filesystems that keep a ctime which nobody can set: ext4, XFS, btrfs, tmpfs, F2FS, ZFS, bcachefs (statfs(2) and their headers).
/// On images that are only read, on FAT and on what FUSE serves it may be anything.
const TRUE_CTIME: [u64; 7] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0xf2f5_2010, 0x2fc1_2fc1, 0xca45_1a4e];

/// How the data of an archive are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Where they lie.
    AsItLies,
    /// Decoded when they are asked for.
    Entered,
    /// Out of what all of it was decoded to.
    Decoded,
}

/// Where things are kept, and which.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    /// Made when it is needed.
    pub dir: PathBuf,
    /// Archives of fewer bytes are read as fast.
    pub least: u64,
    /// How long ago an archive must have been changed.
    pub settled: Duration,
    /// How long to wait for others.
    pub patience: Duration,
    /// Which part of its filesystem all of it may take, one in so many. `None`: any.
    pub share: Option<u64>,
}

impl Cache {
    /// Returns that of this user.
    pub(super) fn of_user() -> Cache {
        let settled = Duration::from_secs(2);
        Cache { dir: user_dir(), least: 1 << 20, settled, patience: PATIENCE, share: Some(5) }
    }

    fn archives(&self) -> PathBuf {
        self.dir.join("archives")
    }

    /// Makes a file without a name for what may become so many bytes. `None`: there is no place for that.
    pub(super) fn spool(&self, bytes: u64) -> Option<File> {
        let made = || {
            let shelf = Shelf::open(&self.archives(), true)?;
            match self.share {
                Some(share) if !shelf.has_place_for(bytes, share)? => Ok(None),
                _ => nameless(&shelf.dir()).map(Some),
            }
        };
        made().unwrap_or_else(|error: io::Error| {
            log::debug!("{}: nothing that is decompressed is kept: {error}", self.dir.display());
            None
        })
    }

    /// Finds the place of an archive and locks it. `None`: this one isn't kept, or nothing can be kept here.
    pub(super) fn place(&self, archive: &Part, way: Way, options: &ArchiveOptions) -> Option<Place> {
        self.find(archive, way, options)
            .map_err(|error| log::debug!("{}: nothing is kept of archives: {error}", self.dir.display()))
            .ok()?
    }

    fn find(&self, archive: &Part, way: Way, options: &ArchiveOptions) -> io::Result<Option<Place>> {
        if archive.size < self.least {
            return Ok(None);
        }
        let Promised { blob, tar } = options.promised;
        let source = match (way, tar, blob) {
            // Its data are those that were decoded, not the archive's.
            (Way::Decoded, Some(digest), _) => Source::Content(digest),
            // Each block of it that is read is held against a digest, wherever it lies.
            (Way::Entered, _, Some(blob)) => Source::Blob { blob, tar, size: archive.size },
            // It is both as it lies there, and can't be two things.
            (Way::AsItLies, Some(tar), Some(blob)) if blob != tar => return Ok(None),
            _ => {
                let Some(identity) = self.identity(archive)? else { return Ok(None) };
                let promised = match way {
                    Way::AsItLies => Promised { tar: tar.or(blob), blob: None },
                    Way::Entered | Way::Decoded => options.promised,
                };
                let part = (archive.at, archive.size);
                Source::File { identity, is_decoded: archive.store.is_decoded(), part, promised }
            }
        };
        let shelf = Arc::new(Shelf::open(&self.archives(), true)?);
        // What another version made of it may be wrong.
        let text = format!("{} {source:?} {}", env!("CARGO_PKG_VERSION"), options.is_layer);
        let key = Digest::of(text.as_bytes()).hex()[..32].to_owned();
        let index = shelf.lock(&key, self.patience)?;
        Ok(index.map(|index| Place { share: self.share, shelf, source, index, key }))
    }

    /// Returns what tells the file of an archive from others. `None`: nothing does.
    fn identity(&self, archive: &Part) -> io::Result<Option<Identity>> {
        let file = archive.store.as_file();
        let metadata = file.metadata()?;
        let is_settled = |seconds: i64, nanoseconds: i64| {
            let since = Duration::new(seconds.try_into().ok()?, nanoseconds.try_into().ok()?);
            let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH.checked_add(since)?).ok()?;
            Some(age >= self.settled)
        };
        let is_settled = is_settled(metadata.ctime(), metadata.ctime_nsec()).unwrap_or(false);
        let kind = rustix::fs::fstatfs(file)?.f_type as u64 & 0xffff_ffff;
        // What has no name goes with this process.
        let is_kept = is_settled && metadata.nlink() > 0 && TRUE_CTIME.contains(&kind);
        Ok(is_kept.then(|| Identity::of(&metadata)))
    }

    /// Deletes all that isn't being made; returns how many bytes on the disk that gave back.
    ///
    /// # Errors
    /// The first of reading the directory or deleting; what can be deleted is deleted then, too.
    pub(super) fn clear(&self) -> io::Result<u64> {
        match Shelf::open(&self.archives(), false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            shelf => shelf?.clear(),
        }
    }
}

/// Returns `$XDG_CACHE_HOME/unionmount`, or `~/.cache/unionmount`; /var/cache/unionmount of root, and where there is no
/// home.
fn user_dir() -> PathBuf {
    let absolute = |key: &str| std::env::var_os(key).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || absolute("HOME").filter(|_| !is_system_root()).map(|home| home.join(".cache"));
    absolute("XDG_CACHE_HOME").or_else(home).unwrap_or_else(|| "/var/cache".into()).join("unionmount")
}

/// Tells whether this is root, and not that of a user namespace, which has what its user has.
fn is_system_root() -> bool {
    rustix::process::geteuid().is_root() && matches!(Ownership::ask(), Ok(Ownership::Real))
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

/// What an index was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    /// A part of a file, or of what that is decoded to: from where on and how long, and what it was found to be if that was promised.
    File { identity: Identity, is_decoded: bool, part: (u64, u64), promised: Promised },
    /// Whatever has this content when it is decoded.
    Content(Digest),
    /// Whatever has this content as it lies there, and that when it is decoded, where that was promised as well.
    Blob { blob: Digest, tar: Option<Digest>, size: u64 },
}

/// What a pass over an archive tells.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Told {
    pub index: Index,
    /// The [`identity`](super::tree::identity) of the index.
    pub id: u64,
    /// What was left out, for a warning.
    pub left_out: super::build::LeftOut,
    /// The digests of the blocks of an archive that is read where it lies, and was held against a promise.
    pub blocks: Option<Blocks>,
    /// Where an archive can be entered that is decoded when it is asked for.
    pub points: Option<Points>,
}

/// What is kept of an archive, and the data that it was decoded to, or those that are needed to enter it.
type Loaded = (Told, Option<Part>);

/// Why what is kept isn't used.
enum NotLoaded {
    /// It isn't right.
    Damaged(&'static str),
    /// Nobody knows.
    Failed(io::Error),
}

impl From<io::Error> for NotLoaded {
    fn from(error: io::Error) -> NotLoaded {
        NotLoaded::Failed(error)
    }
}

#[derive(Serialize, Deserialize)]
struct Body<T> {
    source: Source,
    data: Option<Identity>,
    told: T,
}

/// The place of one archive, locked as long as this lives.
pub(super) struct Place {
    share: Option<u64>,
    shelf: Arc<Shelf>,
    source: Source,
    index: File,
    key: String,
}

impl Place {
    fn data_path(&self) -> PathBuf {
        self.shelf.file(&self.key, DATA)
    }

    /// Returns what messages call it.
    fn shown(&self) -> PathBuf {
        self.shelf.shown.join(&self.key)
    }

    /// Returns the directory in which data are to be made that can be kept.
    pub(super) fn dir(&self) -> PathBuf {
        self.shelf.dir()
    }

    /// Returns what is kept of the archive, and the data that it was decoded to, if it was. What is proved not to be right gives its
    /// room back.
    ///
    /// # Errors
    /// Those of reading, which prove nothing: another time it may be read.
    pub(super) fn load(&self) -> io::Result<Option<Loaded>> {
        match self.read() {
            Ok(Some(found)) => Ok(Some(found)),
            Ok(None) => {
                self.empty();
                Ok(None)
            }
            Err(NotLoaded::Damaged(what)) => {
                log::debug!("{}: {what}; it is made anew", self.shown().display());
                self.empty();
                Ok(None)
            }
            Err(NotLoaded::Failed(error)) => Err(error),
        }
    }

    /// Takes away what there is.
    fn empty(&self) {
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let removed = fs::remove_file(self.data_path());
        for error in [self.index.set_len(0), removed].into_iter().filter_map(Result::err) {
            if !gone(&error) {
                log::debug!("{}: {error}", self.shown().display());
            }
        }
    }

    fn read(&self) -> Result<Option<Loaded>, NotLoaded> {
        let mut bytes = Vec::new();
        (&self.index).take(MOST_INDEX).read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let (body, boot) = decode(&bytes).ok_or(NotLoaded::Damaged("is damaged, or of another version"))?;
        if body.source != self.source {
            return Err(NotLoaded::Damaged("speaks of another archive"));
        }
        let data = body.data.map(|identity| self.data(identity, boot)).transpose()?;
        if data.is_some() && boot != [0; BOOT] {
            self.sync(&data.as_ref().map(|data| data.store.as_file()), &bytes[..HEAD]);
        }
        // Where it can't be told, it counts as used when it was made.
        if let Err(error) = self.index.set_modified(SystemTime::now()) {
            log::debug!("{}: {error}", self.shown().display());
        }
        Ok(Some((body.told, data)))
    }

    /// Opens the data, if they are those that are meant and are on the disk or came in this boot.
    fn data(&self, identity: Identity, boot: [u8; BOOT]) -> Result<Part, NotLoaded> {
        let now = || this_boot().ok_or_else(|| io::Error::other("nobody tells which boot this is"));
        if boot != [0; BOOT] && now()? != boot {
            return Err(NotLoaded::Damaged("its data may not have reached the disk"));
        }
        let nofollow = OFlags::NOFOLLOW.bits().cast_signed();
        let opened = OpenOptions::new().read(true).custom_flags(nofollow).open(self.data_path());
        let file = opened.map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => NotLoaded::Damaged("its data are gone"),
            Some(Errno::LOOP) => NotLoaded::Damaged("its data are a link"),
            _ => NotLoaded::Failed(error),
        })?;
        // Watched before it is looked at.
        let data = Part::whole(file, &self.shown().with_extension(DATA))?;
        if Identity::of(&data.store.as_file().metadata()?) != identity {
            return Err(NotLoaded::Damaged("its data aren't those that were kept"));
        }
        Ok(data)
    }

    /// Keeps what the archive told; `data`: what it was decoded to, a file without a name in [`dir`](Place::dir). What can't be
    /// kept goes with the mount.
    pub(super) fn keep(&self, told: &Told, data: Option<&File>) {
        let make_room = || self.share.map_or(Ok(()), |share| self.shelf.make_room(share));
        if let Err(error) = make_room().and_then(|()| self.write(told, data)) {
            log::debug!("{}: isn't kept: {error}", self.shown().display());
            self.empty();
        }
        if let Err(error) = make_room() {
            log::debug!("{}: it can't be made smaller: {error}", self.shelf.shown.display());
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the directory is its own")]
    fn write(&self, told: &Told, data: Option<&File>) -> io::Result<()> {
        if self.index.metadata()?.nlink() == 0 {
            return Err(io::Error::other("somebody has deleted its index"));
        }
        let mut boot = [0; BOOT];
        let mut identity = None;
        if let Some(data) = data {
            let bytes = data.metadata()?.blocks() * 512;
            if let Some(share) = self.share
                && !self.shelf.has_place_for(bytes, share)?
            {
                return Err(io::Error::other("is more than all that may be kept"));
            }
            boot = this_boot().ok_or_else(|| io::Error::other("nobody tells which boot this is"))?;
            linkat(CWD, proc_path(data.as_fd()), CWD, self.data_path(), AtFlags::SYMLINK_FOLLOW)?;
            identity = Some(Identity::of(&data.metadata()?));
        }
        let bytes = encode(&Body { source: self.source, data: identity, told }, boot)?;
        self.index.write_all_at(&bytes, 0)?;
        self.sync(&data, &bytes[..HEAD]);
        Ok(())
    }

    /// Has data synced that an index with that head speaks of, and that noted; nobody waits for it.
    fn sync(&self, data: &Option<&File>, head: &[u8]) {
        let Some(data) = data.and_then(|data| data.try_clone().ok()) else { return };
        let (shelf, key, head) = (self.shelf.clone(), self.key.clone(), head.to_vec());
        let started = std::thread::Builder::new().name("cache-sync".into()).spawn(move || {
            if let Err(error) = note_synced(&shelf, &key, &head, &data) {
                log::debug!("{}: {error}", shelf.shown.join(&key).display());
            }
        });
        if let Err(error) = started {
            log::debug!("{}: {error}; its data count for this boot", self.shown().display());
        }
    }
}

impl Drop for Place {
    /// Leaves nothing behind for what isn't kept.
    fn drop(&mut self) {
        let is_empty = self.index.metadata().is_ok_and(|found| found.len() == 0 && found.nlink() > 0);
        if is_empty && let Err(error) = fs::remove_file(self.shelf.file(&self.key, INDEX)) {
            log::debug!("{}: {error}", self.shown().display());
        }
    }
}

/// Syncs data, and notes that in the index, if it is still the one with that head. Data that don't reach the disk are kept no more.
fn note_synced(shelf: &Shelf, key: &str, head: &[u8], data: &File) -> io::Result<()> {
    let synced = data.sync_data();
    let Some(index) = shelf.lock(key, PATIENCE)? else { return Ok(()) };
    let mut now = [0; HEAD];
    index.read_exact_at(&mut now, 0)?;
    if now != *head {
        return Ok(());
    }
    match &synced {
        Ok(()) => index.write_all_at(&[0; BOOT], (FORM.len() + DIGEST) as u64)?,
        Err(_) => {
            index.set_len(0)?;
            fs::remove_file(shelf.file(key, DATA))?;
        }
    }
    synced
}

/// Returns which boot this is.
fn this_boot() -> Option<[u8; BOOT]> {
    let id = String::from_utf8(process::boot_id()?).ok()?;
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
    let points = body.told.points.as_ref();
    // Where offsets end, and how much of the archive is checked block by block.
    let (end, checked) = match (points, body.data, body.source) {
        (Some(points), Some(windows), source) => {
            let (size, is_promised) = match source {
                Source::File { part: (_, size), promised, .. } => (size, promised.any().is_some()),
                Source::Blob { size, .. } => (size, true),
                Source::Content(_) => return None,
            };
            if !points.are_sound(size, windows.size) {
                return None;
            }
            (points.size, is_promised.then_some(size))
        }
        // Nobody else can write to what was decoded.
        (None, Some(data), _) => (data.size, None),
        (None, None, Source::File { part: (_, size), promised, .. }) => (size, promised.any().map(|_| size)),
        (Some(_), None, _) | (None, None, Source::Content(_) | Source::Blob { .. }) => return None,
    };
    let has_blocks = match (&body.told.blocks, checked) {
        (Some(blocks), Some(size)) => blocks.are_of(size),
        (blocks, checked) => blocks.is_none() && checked.is_none(),
    };
    (has_blocks && body.told.index.is_sound(end)).then_some(body)
}

/// Makes a tree of the body of an index file, which nothing vouches for, over data of that length; for fuzzing.
pub(super) fn body_over(bytes: &[u8], end: u64) -> Option<Told> {
    let body: Body<Told> = postcard::from_bytes(bytes).ok()?;
    body.told.index.is_sound(end).then_some(body.told)
}

#[cfg(test)]
mod tests;
