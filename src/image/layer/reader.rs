//! The entries of a tar.
//!
//! What headers and records say is read in `header`, the maps of sparse files in `sparse`;
//! here they are put together, out of a stream, through one buffer of bounded size.
//!
//! Extension headers (PAX records, long names of GNU) may come in any order and number before their entry: of what is said
//! twice, the last counts, and GNU's names count before those of PAX. The sizes of links, devices and directories are
//! ignored, a name that ends in `/` is a directory, global PAX headers say nothing about entries. An archive may end
//! without its two zero blocks, but not within an entry, nor between an entry and what extends it.

use std::io::{self, Read, Seek, SeekFrom};

use super::LayerError;
use super::attributes::Attributes;
use super::header::{BLOCK, Header, Pax, owner, text};
use super::sparse::{Map, MapText, Run};
use crate::sys::object::{Kind, Time};

/// How much is read at once.
const CHUNK: usize = 256 << 10;
/// The most that the headers of one entry may take: names, extended attributes, the map of a sparse file.
const MAX_HEADERS: u64 = 4 << 20;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// Another name for an entry before.
    Hardlink(Vec<u8>),
    /// A fifo or a device.
    Special,
}

/// One entry. Its content is read by [`Reader::content`].
#[derive(Debug, Clone)]
pub struct Entry {
    /// The path as it stands in the tar.
    pub path: Vec<u8>,
    /// What it is.
    pub what: EntryKind,
    /// Owner, mode, extended attributes, times.
    pub attributes: Attributes,
    /// The length of a regular file, holes included.
    pub size: u64,
}

/// What was said of the entry that comes next.
#[derive(Debug, Default)]
struct Extensions {
    any: bool,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Pax,
}

/// How a stream is moved on without reading it.
type Jump<R> = fn(&mut R, u64) -> io::Result<()>;

/// Reads a tar from a stream.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    /// Of what can be read at any place.
    jump: Option<Jump<R>>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes handed on so far.
    offset: u64,
    runs: Vec<Run>,
    /// Bytes of the entry's content that are still to be read, and of its padding.
    content: u64,
    padding: u64,
    /// Bytes that the headers of the next entry have taken.
    headers: u64,
    last: Vec<u8>,
}

/// A run of data of a sparse or a whole file, and where in the tar it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stored {
    /// The place in the file.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// The place in the tar.
    pub at: u64,
}

impl<R: Read + Seek> Reader<R> {
    /// Reads headers alone of a file that holds an uncompressed tar from its beginning on: contents are jumped over. That the
    /// file is as long as they say, the caller looks after.
    pub fn of_file(from: R) -> Reader<R> {
        Reader { jump: Some(|from, bytes| jump(from, bytes)), ..Reader::new(from) }
    }
}

fn jump(from: &mut impl Seek, bytes: u64) -> io::Result<()> {
    let bytes = i64::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    from.seek(SeekFrom::Current(bytes)).map(drop)
}

impl<R: Read> Reader<R> {
    /// Reads from a stream of an uncompressed tar.
    pub fn new(from: R) -> Reader<R> {
        Reader {
            from,
            jump: None,
            buffer: vec![0; CHUNK],
            start: 0,
            end: 0,
            offset: 0,
            runs: Vec::new(),
            content: 0,
            padding: 0,
            headers: 0,
            last: Vec::new(),
        }
    }

    /// Returns the next entry; `None` at the end, to which the stream is read then. What is left of the entry before is
    /// skipped.
    ///
    /// # Errors
    /// [`LayerError::Damaged`] and [`LayerError::Read`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        let left = self.content + self.padding;
        self.skip(left)?;
        (self.content, self.padding, self.headers) = (0, 0, 0);
        self.runs.clear();
        let mut extensions = Extensions::default();
        while let Some(block) = self.header_block(extensions.any)? {
            let header = Header(&block);
            let size = header.size().ok_or_else(|| self.damaged("a size that is none"))?;
            match header.kind() {
                b'L' => extensions.name = Some(text(&self.extension(size)?).to_vec()),
                b'K' => extensions.link = Some(text(&self.extension(size)?).to_vec()),
                b'x' | b'X' => {
                    let records = self.extension(size)?;
                    extensions.pax.add(&records).map_err(|what| self.damaged(what))?;
                }
                // Records for all that follows, or the label of a volume: neither says anything of an entry.
                b'g' | b'V' => {
                    self.skip(size)?;
                    self.skip(padding(size))?;
                    continue;
                }
                _ => return self.entry(header, size, extensions).map(Some),
            }
            extensions.any = true;
        }
        Ok(None)
    }

    /// Returns the next header block; `None` at the end of the archive.
    fn header_block(&mut self, extended: bool) -> Result<Option<[u8; BLOCK]>, LayerError> {
        if !self.fill(BLOCK)? {
            let rest = &self.buffer[self.start..self.end];
            return match rest.iter().any(|&b| b != 0) || extended {
                true => Err(self.damaged("it ends in the middle")),
                false => Ok(None),
            };
        }
        let block = self.block()?;
        if Header(&block).is_zero() {
            let more = self.fill(BLOCK)?;
            if extended || more && !Header(&self.block()?).is_zero() {
                return Err(self.damaged("a block of zeros in the middle"));
            }
            self.drain()?;
            return Ok(None);
        }
        if !Header(&block).checksum_is_right() {
            return Err(self.damaged("a header with a wrong checksum"));
        }
        Ok(Some(block))
    }

    /// Takes one block of the entry's headers.
    fn block(&mut self) -> Result<[u8; BLOCK], LayerError> {
        let mut block = [0; BLOCK];
        let bytes = self.header_bytes(BLOCK as u64)?;
        block.copy_from_slice(&bytes);
        Ok(block)
    }

    /// Returns the content of an extension header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, LayerError> {
        let content = self.header_bytes(size)?;
        self.skip(padding(size))?;
        Ok(content)
    }

    fn header_bytes(&mut self, size: u64) -> Result<Vec<u8>, LayerError> {
        self.headers = self.headers.saturating_add(size);
        if self.headers > MAX_HEADERS {
            return Err(self.damaged("the headers of an entry take more than 4 MiB"));
        }
        let size = size as usize;
        if !self.fill(size)? {
            return Err(self.damaged("it ends in the middle"));
        }
        let bytes = self.buffer[self.start..self.start + size].to_vec();
        self.advance(size);
        Ok(bytes)
    }

    fn entry(
        &mut self,
        header: Header<'_>,
        size: u64,
        mut extensions: Extensions,
    ) -> Result<Entry, LayerError> {
        let stored = extensions.pax.size.unwrap_or(size);
        let sparse = self.sparse_map(header, stored, &extensions.pax)?;
        let sparse_name = extensions.pax.sparse.name.take().filter(|_| sparse.is_some());
        let name = extensions.name.take().or_else(|| extensions.pax.path.take());
        let path = sparse_name.or(name).unwrap_or_else(|| header.name());
        let link = extensions.link.take().or_else(|| extensions.pax.link.take());
        let link = link.unwrap_or_else(|| header.link().to_vec());
        let (what, kind) = what_of(header.kind(), &path, link, sparse.is_some()).ok_or_else(|| {
            self.damaged(format!("an entry of the unknown type {:?}", char::from(header.kind())))
        })?;
        let attributes = attributes_of(header, kind, extensions.pax)
            .map_err(|what| self.damaged(format!("{}: {what}", path.escape_ascii())))?;
        self.last.clone_from(&path);
        let mut entry = Entry { path, what, attributes, size: 0 };
        if entry.what == EntryKind::File {
            let (stored, map) = match sparse {
                Some((map, stored)) => (stored, map.checked(stored).map_err(|what| self.damaged(what))?),
                None => (stored, Map { size: stored, runs: vec![Run { offset: 0, length: stored }] }),
            };
            (entry.size, self.runs) = (map.size, map.runs);
            (self.content, self.padding) = (stored, padding(stored));
            if stored.checked_add(self.padding).is_none() {
                return Err(self.damaged("a size beyond all bounds"));
            }
        }
        Ok(entry)
    }

    /// Reads, of a sparse file, its map, and how much of it is stored; the map's own blocks are read then.
    fn sparse_map(
        &mut self,
        header: Header<'_>,
        mut stored: u64,
        pax: &Pax,
    ) -> Result<Option<(Map, u64)>, LayerError> {
        if header.kind() == b'S' {
            if !header.is_gnu() {
                return Err(self.damaged("a sparse file of an unknown form"));
            }
            let (mut map, mut more) = Map::of_header(header).map_err(|what| self.damaged(what))?;
            while more {
                let block = self.block()?;
                more = map.add_block(&block).map_err(|what| self.damaged(what))?;
            }
            return Ok(Some((map, stored)));
        }
        let told = &pax.sparse;
        match told.version {
            _ if !told.any => Ok(None),
            (1, 0) => {
                let mut text = MapText::default();
                loop {
                    stored = stored
                        .checked_sub(BLOCK as u64)
                        .ok_or_else(|| self.damaged("the map of a sparse file is cut off"))?;
                    let block = self.block()?;
                    if text.add_block(&block).map_err(|what| self.damaged(what))? {
                        break;
                    }
                }
                let size = told.size.ok_or_else(|| self.damaged("a sparse file without a size"))?;
                Ok(Some((text.map(size), stored)))
            }
            (0, _) => {
                Map::of_pax(told, stored).map(|map| Some((map, stored))).map_err(|what| self.damaged(what))
            }
            _ => Err(self.damaged("a sparse file of an unknown form")),
        }
    }

    /// Hands the content of the entry to `each`, in order, as offset and bytes; holes are not among them.
    ///
    /// # Errors
    /// Those of reading, and what `each` answers.
    pub fn content(
        &mut self,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        for Run { mut offset, mut length } in std::mem::take(&mut self.runs) {
            while length > 0 {
                if self.start == self.end && !self.fill(1)? {
                    return Err(self.damaged("it ends in the middle"));
                }
                let here = (self.end - self.start).min(usize::try_from(length).unwrap_or(usize::MAX));
                each(offset, &self.buffer[self.start..self.start + here])?;
                self.advance(here);
                self.content -= here as u64;
                offset += here as u64;
                length -= here as u64;
            }
        }
        Ok(())
    }

    /// Returns where the content of the entry stands.
    pub fn stored(&self) -> Vec<Stored> {
        let mut at = self.offset;
        let place = |run: &Run| {
            let stored = Stored { offset: run.offset, length: run.length, at };
            at += run.length;
            stored
        };
        self.runs.iter().filter(|run| run.length > 0).map(place).collect()
    }

    /// Returns the path of the last entry.
    pub fn last(&self) -> &[u8] {
        &self.last
    }

    fn damaged(&self, what: impl Into<String>) -> LayerError {
        LayerError::Damaged { entry: self.last.clone(), offset: self.offset, what: what.into() }
    }

    fn advance(&mut self, bytes: usize) {
        self.start += bytes;
        self.offset += bytes as u64;
    }

    /// Reads until at least `needed` bytes are there; `false` at the end of the stream.
    fn fill(&mut self, needed: usize) -> Result<bool, LayerError> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.buffer.len() < needed {
            self.buffer.resize(needed.next_multiple_of(CHUNK), 0);
        } else if self.buffer.len() > CHUNK && needed.max(self.end) <= CHUNK {
            self.buffer.truncate(CHUNK);
            self.buffer.shrink_to_fit();
        }
        while self.end < needed {
            match self.from.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(n) => self.end += n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LayerError::Read(error)),
            }
        }
        Ok(true)
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), LayerError> {
        while bytes > 0 {
            let there = (self.end - self.start) as u64;
            if let Some(jump) = self.jump.filter(|_| bytes > there) {
                let beyond = bytes - there;
                self.advance(self.end - self.start);
                jump(&mut self.from, beyond).map_err(LayerError::Read)?;
                self.offset += beyond;
                return Ok(());
            }
            if self.start == self.end && !self.fill(1)? {
                return Err(self.damaged("it ends in the middle"));
            }
            let here = (self.end - self.start).min(usize::try_from(bytes).unwrap_or(usize::MAX));
            self.advance(here);
            bytes -= here as u64;
        }
        Ok(())
    }

    /// Reads what follows the end, so that whoever hashes the stream has seen all of it.
    fn drain(&mut self) -> Result<(), LayerError> {
        loop {
            self.advance(self.end - self.start);
            if !self.fill(1)? {
                return Ok(());
            }
        }
    }
}

/// Returns what fills up the last block of a content.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// Returns what an entry is; `None` for types that nobody unpacks.
fn what_of(kind: u8, path: &[u8], link: Vec<u8>, sparse: bool) -> Option<(EntryKind, Kind)> {
    Some(match kind {
        b'0' | 0 | b'7' if path.ends_with(b"/") && !sparse => (EntryKind::Directory, Kind::Directory),
        b'0' | 0 | b'7' | b'S' => (EntryKind::File, Kind::File),
        b'5' => (EntryKind::Directory, Kind::Directory),
        b'2' => (EntryKind::Symlink(link), Kind::Symlink),
        b'1' => (EntryKind::Hardlink(link), Kind::File),
        b'3' => (EntryKind::Special, Kind::CharDevice),
        b'4' => (EntryKind::Special, Kind::BlockDevice),
        b'6' => (EntryKind::Special, Kind::Fifo),
        _ => return None,
    })
}

fn attributes_of(header: Header<'_>, kind: Kind, pax: Pax) -> Result<Attributes, String> {
    let id = |told: Option<i64>, field: Option<i64>, what: &str| {
        let id = told.or(field).ok_or_else(|| format!("its {what} is no number"))?;
        owner(id).ok_or_else(|| format!("{what} {id}, which Linux doesn't know"))
    };
    let device = match kind {
        Kind::CharDevice | Kind::BlockDevice => header.device().ok_or("its device is no number")?,
        _ => (0, 0),
    };
    let mtime = match pax.mtime {
        Some(mtime) => mtime,
        None => Time { sec: header.mtime().ok_or("its time is no number")?, nsec: 0 },
    };
    Ok(Attributes {
        kind,
        mode: (header.mode().ok_or("its mode is no number")? & 0o7777) as u32,
        uid: id(pax.uid, header.uid(), "owner")?,
        gid: id(pax.gid, header.gid(), "group")?,
        device,
        mtime,
        xattrs: pax.xattrs.into_iter().collect(),
    })
}
