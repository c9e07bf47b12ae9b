//! Where images come from: a directory, an archive that can be read at any place, or a stream.
//!
//! All three are a set of files with names. Of a stream (a pipe, or an archive that is compressed as a whole) the files are
//! spooled into the staging directory first, hashed on the way: what an archive holds and in which order they come is told
//! by a file that may be its last.

mod members;

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::MultiProgress;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use self::members::{Failure, Member, Members, find, scan, spool};
use super::compression::{Compression, decode, peek};
use super::digest::Digest;
use super::document::{BlobSource, MAX_DOCUMENT, too_large};
use super::error::{FetchFailed, Result, StoreError};
use super::progress;
use super::store::{Blob, Staging};
use crate::sys::object::At;

pub(super) use self::members::normal as normal_name;

/// What to load from.
#[derive(Debug)]
pub enum Input {
    /// A file or a directory.
    Path(PathBuf),
    /// Standard input.
    Stdin,
}

/// An image that lies elsewhere, and whose blobs come when they are read.
pub trait RemoteImage: fmt::Debug + Send + Sync {
    /// Returns where it lies, for messages.
    fn name(&self) -> String;

    /// Returns what the `index.json` of an OCI layout would say of it.
    fn index(&self) -> &[u8];

    /// Returns the size of one of its blobs, as its manifest tells; `None` for what it hasn't.
    fn size(&self, digest: &Digest) -> Option<u64>;

    /// Begins to read a blob. What is read is not yet known to be what was promised; that reading fails says nothing of
    /// the image.
    ///
    /// # Errors
    /// When it can't be had.
    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read + Send>>;

    /// Returns where a blob that is read to its end has been kept, if it is.
    fn kept(&self, digest: &Digest) -> Option<PathBuf>;
}

/// The files of an image as somebody else finds them: in an archive that is open already.
pub trait ImageFiles: Send + Sync {
    /// Returns where they are, for messages.
    fn name(&self) -> String;

    /// Opens one; its size is told too. `None`: there is none of that name.
    fn open(&self, name: &str) -> Option<(Box<dyn Read + Send>, u64)>;
}

/// A set of files with names.
pub(super) struct ImageSource {
    /// For messages.
    name: String,
    files: Files,
    /// How many bytes of documents have been read.
    read: AtomicU64,
}

enum Files {
    Directory(File),
    Archive(Arc<File>, Members),
    Spooled(Members),
    Remote(Arc<dyn RemoteImage>),
    Given(Arc<dyn ImageFiles>),
}

impl ImageSource {
    fn of(name: String, files: Files) -> ImageSource {
        ImageSource { name, files, read: AtomicU64::new(0) }
    }

    /// Stands for an image elsewhere; nothing is read yet.
    pub(super) fn remote(remote: Arc<dyn RemoteImage>) -> ImageSource {
        ImageSource::of(remote.name(), Files::Remote(remote))
    }

    /// Stands for files that somebody else has found.
    pub(super) fn given(files: Arc<dyn ImageFiles>) -> ImageSource {
        ImageSource::of(files.name(), Files::Given(files))
    }

    /// Stands for the files of a directory.
    pub(super) fn directory(dir: File, name: String) -> ImageSource {
        ImageSource::of(name, Files::Directory(dir))
    }

    /// Opens what was given; a stream is read to its end.
    pub(super) fn open(
        input: &Input,
        staging: &Staging<'_>,
        limit: u64,
        progress: &MultiProgress,
    ) -> Result<ImageSource> {
        let (name, file) = match input {
            Input::Path(path) => {
                let file = File::open(path).map_err(StoreError::io("open it", path))?;
                (path.display().to_string(), file)
            }
            Input::Stdin => {
                let stdin =
                    rustix::io::dup(rustix::stdio::stdin()).map_err(StoreError::io("read it", "stdin"))?;
                ("stdin".to_owned(), File::from(stdin))
            }
        };
        let kind = file.metadata().map_err(StoreError::io("look at it", &name))?.file_type();
        if kind.is_dir() {
            return Ok(ImageSource::directory(file, name));
        }
        let files = ImageSource::read(file, kind.is_file(), (staging, limit), progress);
        let files = files.map_err(|error| match error {
            Failure::Store(error) => error,
            Failure::Read(what) => StoreError::BadImage { source_name: name.clone(), what },
        })?;
        Ok(ImageSource::of(name, files))
    }

    fn read(
        mut file: File,
        regular: bool,
        (staging, limit): (&Staging<'_>, u64),
        bars: &MultiProgress,
    ) -> std::result::Result<Files, Failure> {
        if regular && file.stream_position()? == 0 {
            let mut head = [0; 16];
            let count = file.read_at(&mut head, 0)?;
            if Compression::of(&head[..count]) == Compression::None {
                let members = scan(&file)?;
                return Ok(Files::Archive(Arc::new(file), members));
            }
        }
        // Before the first layer is known all of it has been read, which can take long.
        let left = match regular {
            true => Some(file.metadata()?.len().saturating_sub(file.stream_position()?)),
            false => None,
        };
        let bar = progress::added(bars, left, "reading".to_owned());
        let (_, stream) = decode(BufReader::with_capacity(256 << 10, bar.wrap_read(file)))?;
        let members = spool(stream, staging, limit);
        bar.finish_and_clear();
        Ok(Files::Spooled(members?))
    }

    /// Returns whether there is a file of this name.
    pub(super) fn has_file(&self, name: &str) -> bool {
        match &self.files {
            Files::Directory(dir) => open_within(dir, name).is_ok(),
            Files::Archive(_, members) | Files::Spooled(members) => find(members, name).is_some(),
            Files::Given(files) => files.open(name).is_some(),
            Files::Remote(remote) => {
                name == INDEX || blob_of(name).is_some_and(|digest| remote.size(&digest).is_some())
            }
        }
    }

    /// Opens a file; its size is told too.
    pub(super) fn open_file(&self, name: &str) -> Result<(Box<dyn Read + Send>, u64)> {
        let missing = || self.wrong(format!("{name} is missing"));
        match &self.files {
            Files::Directory(dir) => {
                let file = open_within(dir, name).map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => missing(),
                    _ => self.wrong(format!("{name}: cannot be opened: {error}")),
                })?;
                let size = file.metadata().map_err(StoreError::io("look at it", name))?.len();
                Ok((Box::new(file), size))
            }
            Files::Archive(archive, members) => match find(members, name).ok_or_else(missing)? {
                Member::Range { offset, size } => {
                    let range = Range { file: archive.clone(), at: *offset, end: offset + size };
                    Ok((Box::new(range), *size))
                }
                _ => Err(missing()),
            },
            Files::Spooled(members) => match find(members, name).ok_or_else(missing)? {
                Member::Spooled(path, blob) => {
                    let file = File::open(path).map_err(StoreError::io("open it", path))?;
                    Ok((Box::new(file), blob.size))
                }
                _ => Err(missing()),
            },
            Files::Given(files) => files.open(name).ok_or_else(missing),
            Files::Remote(remote) if name == INDEX => {
                let index = remote.index().to_vec();
                let size = index.len() as u64;
                Ok((Box::new(io::Cursor::new(index)), size))
            }
            Files::Remote(remote) => {
                let digest = blob_of(name).ok_or_else(missing)?;
                let size = remote.size(&digest).ok_or_else(missing)?;
                let opened = remote.open(&digest).map_err(|error| StoreError::Fetch(error.into()))?;
                Ok((Box::new(Fetched(opened)), size))
            }
        }
    }

    /// Returns the size of a file.
    pub(super) fn size(&self, name: &str) -> Result<u64> {
        match (&self.files, blob_of(name)) {
            // Nothing is asked for before it is read.
            (Files::Remote(remote), Some(digest)) => {
                remote.size(&digest).ok_or_else(|| self.wrong(format!("{name} is missing")))
            }
            _ => self.open_file(name).map(|(_, size)| size),
        }
    }

    /// Tells whether its blobs come from far: several at once are then faster, whatever the processors.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self.files, Files::Remote(_))
    }

    /// Returns where a blob of a remote image has been kept, now that it has been read to its end and is what was
    /// promised.
    pub(super) fn kept(&self, name: &str) -> Option<PathBuf> {
        match &self.files {
            Files::Remote(remote) => remote.kept(&blob_of(name)?),
            _ => None,
        }
    }

    /// Returns a file that was hashed when it was spooled, and where it lies.
    pub(super) fn spooled(&self, name: &str) -> Option<(PathBuf, Blob)> {
        let Files::Spooled(members) = &self.files else { return None };
        match find(members, name)? {
            Member::Spooled(path, blob) => Some((path.clone(), *blob)),
            _ => None,
        }
    }

    /// Returns whether a file is compressed in a way in which no image may hold it.
    pub(super) fn is_foreign(&self, name: &str) -> Result<bool> {
        let (file, _) = self.open_file(name)?;
        let peeked = peek(BufReader::with_capacity(512, file));
        let (compression, _) =
            peeked.map_err(|error| self.wrong(format!("{name}: cannot be read: {error}")))?;
        Ok(compression.is_foreign())
    }

    /// Reads a small file.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>> {
        let (reader, size) = self.open_file(name)?;
        if size > MAX_DOCUMENT {
            return Err(self.wrong(format!("{name}: {}", too_large(size))));
        }
        // An index of four mebibytes may lead to more than anybody waits for.
        if self.read.fetch_add(size, Ordering::Relaxed).saturating_add(size) > MOST_DOCUMENTS {
            let most = MOST_DOCUMENTS >> 20;
            return Err(self.wrong(format!("its documents take more than {most} MiB, which no image's do")));
        }
        let mut text = Vec::new();
        let read = reader.take(MAX_DOCUMENT).read_to_end(&mut text);
        read.map_err(|error| self.wrong(format!("{name}: cannot be read: {error}")))?;
        Ok(text)
    }

    /// Says what is wrong with it.
    pub(super) fn wrong(&self, what: impl Into<String>) -> StoreError {
        StoreError::BadImage { source_name: self.name.clone(), what: what.into() }
    }
}

const INDEX: &str = "index.json";

/// More than all documents that are read to find images.
const MOST_DOCUMENTS: u64 = 256 << 20;

/// Returns the blob that a file of a layout is.
fn blob_of(name: &str) -> Option<Digest> {
    Digest::from_hex(name.strip_prefix("blobs/sha256/")?).ok()
}

/// Returns where a layout has a blob.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl BlobSource for ImageSource {
    type Error = StoreError;

    fn fetch(&self, digest: &Digest) -> Result<Vec<u8>> {
        let text = self.document(&blob_name(digest))?;
        let found = Digest::of(&text);
        if found != *digest {
            return Err(self.bad(digest, format!("its content has the digest {found}")));
        }
        Ok(text)
    }

    fn has(&self, digest: &Digest) -> Result<bool> {
        Ok(self.has_file(&blob_name(digest)))
    }

    fn bad(&self, digest: &Digest, what: String) -> StoreError {
        self.wrong(format!("blob {digest}: {what}"))
    }
}

/// Opens a file below a directory, and nothing outside of it.
pub(super) fn open_within(dir: &File, name: &str) -> io::Result<File> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // To open a device can do something.
    let pin = openat2(dir, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    let file = At::Fd(pin.as_fd()).open_file()?;
    file.map(File::from).ok_or_else(|| io::Error::other("it is no regular file"))
}

/// What comes from far. That it can't be read says nothing of what it is.
struct Fetched(Box<dyn Read + Send>);

impl Read for Fetched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| FetchFailed(error).into())
    }
}

/// A part of an archive. Several are read at once, each at its own place.
struct Range {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Range {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends too early"));
        }
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::members::normal;
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn scanned(bytes: &[u8]) -> std::result::Result<Members, Failure> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        scan(&file)
    }

    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in
            [("index.json", &b"{}"[..]), (&"long/".repeat(40), b""), ("a/layer.tar", &[7; 700])]
        {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append_data(&mut header, name.trim_end_matches('/'), content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn names_and_links() {
        assert_eq!(normal("./a//b/../c"), Some("a/c".into()));
        assert_eq!(normal("a/../../b"), None);
        let members = scanned(&archive()).ok().unwrap();
        assert!(matches!(find(&members, "./a/x/../layer.tar"), Some(Member::Range { size: 700, .. })));
        assert!(find(&members, "../index.json").is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_archive_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = scanned(&bytes).is_ok();
        }

        #[test]
        fn any_change_of_an_archive_is_one_or_refused(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = archive();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let end = bytes.len() as u64;
            if let Ok(members) = scanned(&bytes) {
                // Whatever it says, no part lies outside of it.
                for member in members.values() {
                    if let Member::Range { offset, size } = member {
                        prop_assert!(offset + size <= end);
                    }
                }
            }
            let _ = scanned(&bytes[..cut.index(bytes.len())]).is_ok();
        }
    }
}
