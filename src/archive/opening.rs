//! Reading an archive for the first time, or what is kept of it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;

use super::build::{Builder, LeftOut};
use super::cache::{Cache, Place, Told};
use super::data::blocks::{Blocking, Blocks};
use super::filesystem::Walked;
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
    let mut place = cache.place(&part, form != Form::Compressed, options);
    let archive = |told: Told, data: Part, from_cache| Archive {
        index: told.index,
        data: data.checked(told.blocks),
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
        let data = data.map_or_else(|| part.clone(), |data| data.called(&part.path));
        return Ok(archive(told, data, true));
    }
    let (told, decoded) = match form {
        Form::Plain => (read_plain(&part, options)?, None),
        Form::Squashfs => (read_image(&part, options, (squashfs::metadata_size, squashfs::read))?, None),
        Form::Erofs => (read_image(&part, options, (erofs::metadata_size, erofs::read))?, None),
        Form::Compressed => {
            let dir = place.as_ref().map_or_else(|| cache.dir.clone(), Place::dir);
            let (told, decoded) = read_compressed(&part, options, dir, cache)?;
            (told, Some(decoded))
        }
    };
    told.left_out.tell(&part.path);
    // Nothing is kept of what was changed meanwhile.
    part.store.check().map_err(part.failed("read it"))?;
    if let Some(place) = place {
        place.keep(&told, decoded.as_ref());
    }
    let data = match decoded {
        None => part,
        // It may have got a name, by which others can write to it.
        Some(decoded) => Part::whole(decoded, &part.path).map_err(part.failed("read it"))?,
    };
    Ok(archive(told, data, false))
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
    /// One that is compressed.
    Compressed,
    /// An image of a filesystem.
    Squashfs,
    /// One of another.
    Erofs,
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
    Ok(Told { id: identity(&read.index, true), index: read.index, left_out, blocks })
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
    Ok(Told { id: identity(&index, false), index, left_out, blocks })
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
