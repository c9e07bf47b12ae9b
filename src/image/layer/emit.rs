//! Entries of a tar, written one after the other.

use std::collections::HashMap;
use std::io::{BufWriter, Write};

use tar_core::builder::EntryBuilder;
use tar_core::{EntryType, HEADER_SIZE};

use super::LayerError;
use super::attributes::Attributes;
use super::error::of_union;
use super::header::{attribute_record, time_text};

use crate::sys::object::{Kind, Time};
use crate::union::data::content::Content;

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Entries.
    pub entries: u64,
    /// Bytes of the tar.
    pub bytes: u64,
    /// Bytes of all files, holes included.
    pub content: u64,
}

const BUFFER: usize = 256 << 10;
/// The largest time that a header holds without PAX.
const LARGE: u64 = 0o77_777_777_777;

/// Counts what goes through.
struct Counted<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Counted<W> {
    fn all(&mut self, data: &[u8]) -> Result<(), LayerError> {
        self.bytes += data.len() as u64;
        self.out.write_all(data).map_err(LayerError::Write)
    }
}

/// Puts entries into the tar.
pub(crate) struct Writer<W: Write> {
    out: Counted<BufWriter<W>>,
    entries: u64,
    content: u64,
    /// The first name of files with several, and how many are still to come.
    names: HashMap<(u64, u64), (Vec<u8>, u64)>,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> Writer<W> {
        let out = Counted { out: BufWriter::with_capacity(BUFFER, out), bytes: 0 };
        Writer { out, entries: 0, content: 0, names: HashMap::new(), buffer: vec![0; BUFFER] }
    }

    pub(crate) fn finish(mut self) -> Result<Written, LayerError> {
        self.out.all(&[0; 2 * HEADER_SIZE])?;
        self.out.out.flush().map_err(LayerError::Write)?;
        Ok(Written { entries: self.entries, bytes: self.out.bytes, content: self.content })
    }

    fn header(&mut self, path: &[u8], builder: &mut EntryBuilder) -> Result<(), LayerError> {
        builder.path(path);
        self.entries += 1;
        self.out.all(&builder.finish_bytes())
    }

    /// Writes an empty file that says something by its name.
    pub(crate) fn marker(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let attributes = Attributes { kind: Kind::File, mode: 0o600, ..Attributes::of_implied_directory() };
        let mut builder = builder(path, &attributes)?;
        builder.entry_type(EntryType::Regular);
        self.header(path, &mut builder)
    }

    pub(crate) fn directory(&mut self, path: &[u8], attributes: &Attributes) -> Result<(), LayerError> {
        let name = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
        let mut builder = builder(path, attributes)?;
        builder.entry_type(EntryType::Directory);
        self.header(&name, &mut builder)
    }

    /// Returns the name under which a file was written already.
    pub(crate) fn earlier_name(&mut self, path: &[u8], id: (u64, u64), nlink: u64) -> Option<Vec<u8>> {
        if nlink < 2 {
            return None;
        }
        match self.names.get_mut(&id) {
            Some((first, left)) => {
                let first = first.clone();
                *left -= 1;
                if *left == 0 {
                    self.names.remove(&id);
                }
                Some(first)
            }
            None => {
                self.names.insert(id, (path.to_vec(), nlink - 1));
                None
            }
        }
    }

    /// Writes anything but a directory. `data`: those of a regular file.
    pub(crate) fn leaf(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
        target: Option<Vec<u8>>,
        first_name: Option<Vec<u8>>,
        data: Option<&Content>,
    ) -> Result<(), LayerError> {
        if attributes.kind == Kind::Socket {
            // Sockets are made by their servers; no tar has a form for them.
            log::info!("{}: a socket, left out", path.escape_ascii());
            return Ok(());
        }
        let mut builder = builder(path, attributes)?;
        if let Some(first) = first_name {
            builder.entry_type(EntryType::Link).link_name(first);
            return self.header(path, &mut builder);
        }
        let kind = match attributes.kind {
            Kind::File => return self.file(path, builder, data),
            Kind::Symlink => {
                let target =
                    target.ok_or_else(|| LayerError::entry(path, "a symbolic link without a target"))?;
                builder.link_name(target);
                EntryType::Symlink
            }
            Kind::Fifo => EntryType::Fifo,
            Kind::CharDevice => EntryType::Char,
            Kind::BlockDevice => EntryType::Block,
            Kind::Directory | Kind::Socket => return Ok(()), // not here
        };
        if matches!(attributes.kind, Kind::CharDevice | Kind::BlockDevice) {
            let (major, minor) = attributes.device;
            builder
                .device(major, minor)
                .map_err(|_| LayerError::entry(path, "device numbers that no tar can hold"))?;
        }
        builder.entry_type(kind);
        self.header(path, &mut builder)
    }

    fn file(
        &mut self,
        path: &[u8],
        mut builder: EntryBuilder,
        data: Option<&Content>,
    ) -> Result<(), LayerError> {
        let data = data.ok_or_else(|| LayerError::entry(path, "a file that is not open"))?;
        let size = data.size().map_err(of_union(path))?;
        self.content += size;
        builder.entry_type(EntryType::Regular);
        let unfit = |_| LayerError::entry(path, "a size that no tar can hold");
        builder.size(size).map_err(unfit)?;
        self.header(path, &mut builder)?;
        self.copy(path, data, size)?;
        let padding = (size.wrapping_neg() % HEADER_SIZE as u64) as usize;
        self.out.all(&[0; HEADER_SIZE][..padding])
    }

    /// Copies the content, with holes written as the zeros that they stand for: OCI's layers know no sparse files.
    fn copy(&mut self, path: &[u8], data: &Content, size: u64) -> Result<(), LayerError> {
        let (mut offset, mut left) = (0, size);
        while left > 0 {
            let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let mut got = data.read_at(&mut self.buffer[..want], offset).map_err(of_union(path))?;
            if got < want {
                // It got shorter meanwhile; the header's size is a promise.
                self.buffer[got..want].fill(0);
                got = want;
            }
            self.out.all(&self.buffer[..got])?;
            offset += got as u64;
            left -= got as u64;
        }
        Ok(())
    }
}

/// Returns what all entries have: owner, mode, time, extended attributes.
fn builder(path: &[u8], attributes: &Attributes) -> Result<EntryBuilder, LayerError> {
    let unfit = |_| LayerError::entry(path, "owner, mode or time that no tar can hold");
    let mut builder = EntryBuilder::new_ustar();
    builder.mode(attributes.mode).map_err(unfit)?;
    builder.uid(attributes.uid.into()).map_err(unfit)?;
    builder.gid(attributes.gid.into()).map_err(unfit)?;
    let Time { sec, nsec } = attributes.mtime;
    let whole = u64::try_from(sec).unwrap_or(0);
    if sec < 0 || nsec != 0 || whole > LARGE {
        builder.mtime(whole.min(LARGE)).map_err(unfit)?;
        builder.add_pax("mtime", time_text(attributes.mtime));
    } else {
        builder.mtime(whole).map_err(unfit)?;
    }
    for (name, value) in &attributes.xattrs {
        let (key, value) = attribute_record(name, value);
        builder.add_pax(&key, value);
    }
    Ok(builder)
}
