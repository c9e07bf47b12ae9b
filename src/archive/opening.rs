//! Reading an archive for the first time, or what is kept of it.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;

use super::build::{Builder, LeftOut};
use super::cache::{Cache, Place, Told, Way};
use super::data::blocks::{Blocking, Blocks};
use super::filesystem::Walked;
use super::gzip::{Scan, Scanned, Spans};
use super::index::Index;
use super::part::{Part, PartReader};
use super::promise::{Watched, drain};
use super::spool::Spool;
use super::tree::identity;
use super::{Archive, ArchiveError, ArchiveOptions, erofs, sif, squashfs};
use crate::image::compression::{Compression, decode};
use crate::image::digest::Digest;
use crate::image::layer::apply::stream_limit;
use crate::image::layer::reader::Reader;
use crate::image::layer::{LayerError, Limits};
use crate::image::progress::LateBar;

pub(super) fn open_with(
    part: Part,
    options: &ArchiveOptions,
    cache: &Cache,
) -> Result<Archive, ArchiveError> {
    // Before it is read: what is changed meanwhile is another file.
    let lies_in = part.store.stamp().map_err(part.failed("look at it"))?;
    let part = inner(part, options)?;
    let form = form(&part)?;
    let mut place = cache.place(&part, form.way(), options);
    // `beside`: what it was decoded to, or is entered by.
    let archive = |mut told: Told, beside: Option<Part>, from_cache| Archive {
        data: match (told.points.take(), beside) {
            (Some(points), Some(windows)) => {
                let spool = cache.spool(points.size);
                Spans::new(part.clone().checked(told.blocks), windows, points, spool).into_part()
            }
            (_, Some(decoded)) => decoded.called(&part.path).checked(told.blocks),
            (_, None) => part.clone().checked(told.blocks),
        },
        index: told.index,
        id: told.id,
        is_layer: options.is_layer,
        from_cache,
        is_filesystem: matches!(form, Form::Squashfs | Form::Erofs),
        lies_in,
    };
    let known = place.as_ref().map_or(Ok(None), Place::load).unwrap_or_else(|error| {
        // It may be right, so nothing is put in its place.
        log::warn!("{}: what is kept of it can't be read now: {error}; it is read anew", part.path.display());
        place = None;
        None
    });
    if let Some((told, data)) = known {
        told.left_out.tell(&part.path);
        // Looked at again now that its place is known to be this one's.
        part.store.check().map_err(part.failed("read it"))?;
        return Ok(archive(told, data, true));
    }
    let dir = || place.as_ref().map_or_else(|| cache.dir.clone(), Place::dir);
    let decode =
        || read_compressed(&part, options, dir(), cache).map(|(told, decoded)| (told, Some(decoded)));
    let (told, beside) = match form {
        Form::Plain => (read_plain(&part, options)?, None),
        Form::Squashfs => (read_image(&part, options, (squashfs::metadata_size, squashfs::read))?, None),
        Form::Erofs => (read_image(&part, options, (erofs::metadata_size, erofs::read))?, None),
        Form::Gzip => match read_gzip(&part, options, dir(), cache)? {
            Some((told, windows)) => (told, Some(windows)),
            None => decode()?,
        },
        Form::Compressed => decode()?,
    };
    told.left_out.tell(&part.path);
    // Nothing is kept of what was changed meanwhile.
    part.store.check().map_err(part.failed("read it"))?;
    if let Some(place) = place {
        place.keep(&told, beside.as_ref());
    }
    // It may have got a name, by which others can write to it.
    let beside =
        beside.map(|file| Part::whole(file, &part.path)).transpose().map_err(part.failed("read it"))?;
    Ok(archive(told, beside, false))
}

/// Returns what is read of a file that holds more than one thing.
fn inner(part: Part, options: &ArchiveOptions) -> Result<Part, ArchiveError> {
    let mut head = Vec::new();
    part.reader().take(sif::HEAD as u64).read_to_end(&mut head).map_err(part.failed("read it"))?;
    if !sif::is_one(&head) {
        return Ok(part);
    }
    // The digest of the file would say nothing of what is read of it later.
    if options.promised.tar.or(options.promised.blob).is_some() {
        let what = "a SIF, which isn't held against a digest; take the squashfs out of it (siftool dump)";
        return Err(ArchiveError::Unknown { path: part.path, what: what.to_owned() });
    }
    sif::root(&part)
}

/// What an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A tar.
    Plain,
    /// One that is compressed with gzip.
    Gzip,
    /// One that is compressed otherwise.
    Compressed,
    /// An image of a filesystem.
    Squashfs,
    /// One of another.
    Erofs,
}

impl Form {
    fn way(self) -> Way {
        match self {
            Form::Plain | Form::Squashfs | Form::Erofs => Way::AsItLies,
            Form::Gzip => Way::Entered,
            Form::Compressed => Way::Decoded,
        }
    }
}

/// Tells by its first bytes what an archive is.
fn form(part: &Part) -> Result<Form, ArchiveError> {
    let mut head = Vec::new();
    part.reader().take(erofs::HEAD as u64).read_to_end(&mut head).map_err(part.failed("read it"))?;
    let unknown = |what: &str| ArchiveError::Unknown { path: part.path.clone(), what: what.to_owned() };
    let is_erofs = erofs::is_superblock(&head);
    head.truncate(512);
    if head.starts_with(squashfs::MAGIC) || head.starts_with(squashfs::OTHER_ORDER) {
        return Ok(Form::Squashfs);
    }
    if let Some(what) = other_form(&head) {
        return Err(unknown(what));
    }
    // Zeros are an empty tar, and what most of these begin with.
    let is_erofs = is_erofs && (head.iter().all(|&byte| byte == 0) || !is_tar(&head));
    match Compression::of(&head) {
        Compression::None if is_erofs => Ok(Form::Erofs),
        Compression::None if is_tar(&head) => Ok(Form::Plain),
        Compression::None => Err(unknown(
            "neither a tar, nor one that is compressed with gzip, zstd, xz or bzip2, nor a squashfs, a SIF or an EROFS image",
        )),
        Compression::Gzip => Ok(Form::Gzip),
        _ => Ok(Form::Compressed),
    }
}

/// How an image of a filesystem is read: how much of it tells of names and attributes, and these.
type ReadImage = (fn(&Part) -> u64, fn(&Part, bool, &dyn Fn(u64)) -> Result<Walked, ArchiveError>);

/// Reads the names and attributes of an image, and all of it if somebody has promised what it is.
fn read_image(
    part: &Part,
    options: &ArchiveOptions,
    (metadata_size, read): ReadImage,
) -> Result<Told, ArchiveError> {
    let promised = options.promised;
    let mut blocks = None;
    if let Some(one) = promised.tar.or(promised.blob) {
        let bar = LateBar::new(options.progress.as_ref(), part.size, part.name());
        let stream = Blocking::new(Counting { inner: part.reader(), bar: &bar });
        let (stream, found) = Watched::new(stream, Some(one)).finish().map_err(part.failed("read it"))?;
        part.hold(found, promised.tar)?;
        part.hold(found, promised.blob)?;
        blocks = Some(stream.finish());
    }
    // What is read now must be what was held against the promise.
    let part = &part.clone().checked(blocks.clone());
    let bar = LateBar::new(options.progress.as_ref(), metadata_size(part), part.name());
    let read = read(part, options.is_layer, &|at| bar.at(at))?;
    let left_out = LeftOut { names: read.names, marks: read.marks };
    Ok(Told { id: identity(&read.index, true), index: read.index, left_out, blocks, points: None })
}

/// Reads a tar: its headers alone, unless somebody has promised what it is.
fn read_plain(part: &Part, options: &ArchiveOptions) -> Result<Told, ArchiveError> {
    let mut builder = Builder::new(options.is_layer);
    let bar = LateBar::new(options.progress.as_ref(), part.size, part.name());
    let reader = Counting { inner: part.reader(), bar: &bar };
    let promised = options.promised;
    let Some(one) = promised.tar.or(promised.blob) else {
        builder.read(Reader::of_file(reader), part.size).map_err(part.damaged())?;
        return told(builder, part, None);
    };
    let mut stream = Watched::new(Blocking::new(reader), Some(one));
    let read = builder.read(Reader::new(&mut stream), part.size);
    let (blocks, found) = stream.finish().map_err(part.failed("read it"))?;
    part.hold(found, promised.tar)?;
    part.hold(found, promised.blob)?;
    read.map_err(part.damaged())?;
    told(builder, part, Some(blocks.finish()))
}

/// Reads a tar that is compressed with gzip, and notes where it can be entered; with what, goes to a file in that directory. `None`: it can't.
fn read_gzip(
    part: &Part,
    options: &ArchiveOptions,
    dir: PathBuf,
    cache: &Cache,
) -> Result<Option<(Told, File)>, ArchiveError> {
    let mut builder = Builder::new(options.is_layer);
    let bar = LateBar::new(options.progress.as_ref(), part.size, part.name());
    let reader = Counting { inner: part.reader(), bar: &bar };
    let promised = options.promised;
    let is_too_far = Cell::new(false);
    // All of it is read by then, so that there is a digest of each block.
    let hashed = match promised.any() {
        Some(_) => Hashed::Blocks(Blocking::new(reader)),
        None => Hashed::Not(reader),
    };
    let mut blob = Watched::new(hashed, promised.blob);
    let (read, tar, scanned) = {
        let compressed = BufReader::with_capacity(256 << 10, &mut blob);
        let made = Scan::new(compressed, stream_limit(Limits::default()), &dir, cache, &is_too_far);
        let scan = made.map_err(|source| ArchiveError::Io {
            what: "keep how it is entered in it",
            path: dir,
            source,
        })?;
        let mut tar = Watched::new(scan, promised.tar);
        let read = builder.read(Reader::new(&mut tar), u64::MAX);
        let drained = match &read {
            Ok(()) => drain(&mut tar, u64::MAX - 1),
            Err(_) => Ok(()),
        };
        if is_too_far.get() {
            log::debug!(
                "{}: its blocks are too large to begin within; it is decoded whole",
                part.path.display()
            );
            return Ok(None);
        }
        drained.map_err(part.failed("decompress it"))?;
        match read {
            Err(error) => (Err(error), None, None),
            Ok(()) => {
                let (scan, found) = tar.finish().map_err(part.failed("decompress it"))?;
                let scanned = scan.finish().map_err(part.failed("keep how it is entered"))?;
                (Ok(()), found, Some(scanned))
            }
        }
    };
    let (hashed, found) = blob.finish().map_err(part.failed("read it"))?;
    part.hold(found, promised.blob)?;
    read.map_err(part.damaged())?;
    part.hold(tar, promised.tar)?;
    let mut told = told(builder, part, hashed.finish())?;
    Ok(scanned.map(|Scanned { points, windows }| {
        told.points = Some(points);
        (told, windows)
    }))
}

/// Decodes an archive to a file in that directory.
fn read_compressed(
    part: &Part,
    options: &ArchiveOptions,
    dir: PathBuf,
    cache: &Cache,
) -> Result<(Told, File), ArchiveError> {
    let mut builder = Builder::new(options.is_layer);
    let bar = LateBar::new(options.progress.as_ref(), part.size, part.name());
    let reader = Counting { inner: part.reader(), bar: &bar };
    let promised = options.promised;
    let mut blob = Watched::new(reader, promised.blob);
    let (read, tar) = {
        let compressed = BufReader::with_capacity(256 << 10, &mut blob);
        let (_, stream) = decode(compressed).map_err(part.failed("decompress it"))?;
        let tar = Watched::new(stream, promised.tar);
        let made = Spool::new(tar, stream_limit(Limits::default()), &dir, cache);
        let mut spool = made.map_err(|source| ArchiveError::Io {
            what: "keep what is decompressed in it",
            path: dir,
            source,
        })?;
        match builder.read(Reader::new(&mut spool), u64::MAX) {
            Err(error) => (Err(error), None),
            Ok(()) => {
                let finished = spool.finish().map_err(part.failed("keep what is decompressed"))?;
                let (file, mut tar, left) = finished;
                // By what comes behind the tar the decoder tells that all of it is right.
                drain(&mut tar, left).map_err(part.failed("decompress it"))?;
                let (_, found) = tar.finish().map_err(part.failed("decompress it"))?;
                (Ok(file), found)
            }
        }
    };
    // Where it is damaged, the digest of the whole tells so better than what is wrong with an entry.
    let (_, found) = blob.finish().map_err(part.failed("read it"))?;
    part.hold(found, promised.blob)?;
    let file = read.map_err(part.damaged())?;
    part.hold(tar, promised.tar)?;
    Ok((told(builder, part, None)?, file))
}

fn told(builder: Builder, part: &Part, blocks: Option<Blocks>) -> Result<Told, ArchiveError> {
    let left_out = builder.left_out;
    let index: Index = builder.finish().map_err(part.damaged())?;
    Ok(Told { id: identity(&index, false), index, left_out, blocks, points: None })
}

impl Part {
    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> ArchiveError {
        let path = self.path.clone();
        move |source| ArchiveError::Io { what, path, source }
    }

    fn damaged(&self) -> impl FnOnce(LayerError) -> ArchiveError {
        let path = self.path.clone();
        move |what| ArchiveError::Damaged { path, what }
    }

    /// Holds what was found against what was promised.
    fn hold(&self, found: Option<Digest>, promised: Option<Digest>) -> Result<(), ArchiveError> {
        match (found, promised) {
            (Some(found), Some(promised)) if found != promised => {
                Err(ArchiveError::Digest { path: self.path.clone(), found, promised })
            }
            _ => Ok(()),
        }
    }

    /// Returns what a bar calls it.
    fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }
}

/// A stream whose blocks are hashed on the way, where that is asked for.
enum Hashed<R> {
    Not(R),
    Blocks(Blocking<R>),
}

impl<R: Read> Hashed<R> {
    fn finish(self) -> Option<Blocks> {
        match self {
            Hashed::Not(_) => None,
            Hashed::Blocks(blocking) => Some(blocking.finish()),
        }
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Hashed::Not(inner) => inner.read(buffer),
            Hashed::Blocks(inner) => inner.read(buffer),
        }
    }
}

/// Tells a bar how far it is.
struct Counting<'a> {
    inner: PartReader,
    bar: &'a LateBar,
}

impl Read for Counting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bar.at(self.inner.stream_position()?);
        Ok(count)
    }
}

impl Seek for Counting<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

/// Says what else a file may be that people mount.
fn other_form(head: &[u8]) -> Option<&'static str> {
    match head {
        [b'P', b'K', 3 | 5, _, ..] => Some("it is a zip"),
        [b'7', b'z', 0xbc, 0xaf, ..] => Some("it is a 7z"),
        [] => Some("it is empty"),
        _ => None,
    }
}

/// Tells whether it begins with the header of a tar, or with the end of an empty one.
fn is_tar(head: &[u8]) -> bool {
    let mut reader = Reader::new(head.chain(io::empty()));
    head.len() == 512
        && (head.iter().all(|&byte| byte == 0)
            || !matches!(reader.next_entry(), Err(LayerError::Damaged { ref what, .. }) if what.contains("checksum")))
}
