//! Tars: what is copied out goes into one, and what one holds is copied in.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use super::scope::{Destination, Source};
use super::target::{Copied, How, Target};
use super::{Own, walk};
use crate::container::error::{ContainerError, Result};
use crate::image::layer::apply::clean;
use crate::image::layer::place::{join, split};
use crate::image::layer::reader::{EntryKind, Reader};
use crate::image::layer::{Attributes, LayerError, Writer};
use crate::sys::copy::{set_length, write_sparsely};
use crate::sys::object::{At, Kind};
use crate::union::data::content::Content;

/// Writes what `source` stands for as a tar, in which it has its own name.
///
/// # Errors
/// Those of reading it, with the path, and of writing.
pub fn write(source: &Source, out: &mut dyn Write) -> Result<Copied> {
    let mut writer = Writer::new(out);
    let name = source.name.clone().unwrap_or_default();
    let top = Own { at: At::Fd(source.fd.as_fd()), path: b"" };
    let attributes = top.attributes(source)?;
    match attributes.kind {
        Kind::Directory => {
            writer.directory(&name, &attributes).map_err(|error| source.layer(error))?;
            walk::below(source, &mut |met| {
                let own = Own { at: At::Fd(met.fd), path: met.path };
                let attributes = own.attributes(source)?;
                entry(source, &own, &attributes, &join(&name, met.path), &mut writer)?;
                Ok(true)
            })?;
        }
        _ => entry(source, &top, &attributes, &source.own_name()?, &mut writer)?,
    }
    let written = writer.finish().map_err(|error| source.layer(error))?;
    Ok(Copied { objects: written.entries, bytes: written.content, left_out: 0 })
}

fn entry<W: Write>(
    source: &Source,
    own: &Own<'_>,
    attributes: &Attributes,
    name: &[u8],
    writer: &mut Writer<W>,
) -> Result<()> {
    let layer = |error: LayerError| source.layer(error);
    if attributes.kind == Kind::Directory {
        return writer.directory(name, attributes).map_err(layer);
    }
    let stat = own.at.stat().map_err(source.io("look at", own.path))?;
    let first = match attributes.kind {
        Kind::File => writer.earlier_name(name, (stat.dev, stat.ino), stat.nlink),
        _ => None,
    };
    let link = match attributes.kind {
        Kind::Symlink => Some(own.at.readlink().map_err(source.io("read", own.path))?),
        _ => None,
    };
    let data = match attributes.kind {
        Kind::File if first.is_none() => {
            Some(Content::from(own.at.open_read().map_err(source.io("open", own.path))?))
        }
        _ => None,
    };
    writer.leaf(name, attributes, link, first, data.as_ref()).map_err(layer)
}

/// Copies what a tar holds into a directory, which must be there. Owners are those of the tar where `how` says so.
///
/// # Errors
/// Those of reading the tar and of writing; names that lead out of the directory.
pub fn read(tar: impl Read, destination: Destination, how: How) -> Result<Copied> {
    let place = match destination {
        Destination::Directory(place) => place,
        Destination::Other(place, name) | Destination::Nothing { place, name, .. } => {
            return Err(ContainerError::Refused(format!(
                "{}: a tar is copied into a directory, and there is none",
                place.shown(&name).display()
            )));
        }
    };
    let shown = place.shown(b"");
    let wrong =
        |error: LayerError| ContainerError::Refused(format!("the tar for {}: {error}", shown.display()));
    let mut target = Target::within(place, how)?;
    let mut reader = Reader::new(tar);
    while let Some(entry) = reader.next_entry().map_err(wrong)? {
        let path = clean(&entry.path, &entry.path, "").map_err(wrong)?;
        if path.is_empty() {
            target.top(&entry.attributes);
            continue;
        }
        target.make_way(split(&path).0)?;
        match &entry.what {
            EntryKind::Directory => target.directory(&path, &entry.attributes)?,
            EntryKind::Symlink(link) => target.symlink(&path, link, &entry.attributes)?,
            EntryKind::Hardlink(to) => {
                let to = clean(to, &entry.path, "hardlink to ").map_err(wrong)?;
                target.hardlink(&path, &to)?;
            }
            EntryKind::Special => target.special(&path, &entry.attributes)?,
            EntryKind::File => target.file(&path, &entry.attributes, |file| {
                reader
                    .content(|offset, data| {
                        write_sparsely(file, offset, data).map_err(LayerError::os(&path, "write its content"))
                    })
                    .map_err(wrong)?;
                set_length(file, entry.size).map_err(ContainerError::io("set the length of it", &shown))?;
                Ok(entry.size)
            })?,
        }
    }
    target.finish()
}
