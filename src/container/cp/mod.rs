//! Copying files in and out of trees that somebody else may be changing: a container's, an image's, a mount's.
//!
//! | module | what it knows |
//! |---|---|
//! | [`root`] | which tree a name stands for, and how it is opened |
//! | [`scope`] | what a path leads to: within a tree its root is the root, whatever links say |
//! | [`walk`] | all that is below a directory, each object by a descriptor |
//! | [`target`] | objects made in a directory, each at once |
//! | [`stream`] | tars out and in |
//!
//! # The rules of the destination
//!
//! They are those of `docker cp`:
//!
//! | source | destination | what is made |
//! |---|---|---|
//! | a file | nothing | the file of that name; with a slash behind it, an error |
//! | a file | a file | the file, in its place |
//! | a file | a directory | the file in it, by its own name |
//! | a directory | nothing | the directory of that name |
//! | a directory | a file | an error |
//! | a directory | a directory | the directory in it, by its own name |
//! | `DIRECTORY/.` | a directory | what is in the source, in it |
//!
//! # What is at once, and what isn't
//!
//! A file is written beside its place and comes there whole, with all attributes, or not at all. So does a directory that is
//! new. Where a directory is there, its files come one after the other; what fails half-way leaves those that came.

pub mod root;
pub mod scope;
pub mod stream;
pub mod target;
pub mod walk;

use std::collections::HashMap;
use std::os::fd::AsFd;

use self::scope::{Destination, Source};
pub use self::target::Copied;
use self::target::{How, Target};
use super::error::{ContainerError, Result};
use crate::image::layer::{Attributes, Ownership};
use crate::sys::object::{At, Kind};

/// Copies what `source` stands for to a destination.
///
/// # Errors
/// Those of reading and writing, with the path; what [the rules](self#the-rules-of-the-destination) refuse.
pub fn copy(source: &Source, destination: Destination, how: How) -> Result<Copied> {
    let is_dir = source.stat.kind() == Kind::Directory;
    let (mut target, top) = match (destination, is_dir) {
        (Destination::Directory(place), false) => (Target::within(place, how)?, source.own_name()?),
        (Destination::Directory(place), true) => match &source.name {
            None => (Target::within(place, how)?, Vec::new()),
            Some(name) => (Target::named(place, name, how)?, Vec::new()),
        },
        (Destination::Other(place, name), false) => (Target::within(place, how)?, name),
        (Destination::Other(place, name), true) => {
            return Err(ContainerError::Refused(format!(
                "{}: is no directory, so that a directory can't be copied to it",
                place.shown(&name).display()
            )));
        }
        (Destination::Nothing { place, name, slash: true }, false) => {
            return Err(ContainerError::Refused(format!(
                "{}: there is no such directory; make it first, or leave out the slash",
                place.shown(&name).display()
            )));
        }
        (Destination::Nothing { place, name, .. }, false) => (Target::within(place, how)?, name),
        (Destination::Nothing { place, name, .. }, true) => (Target::new(place, &name, how)?, Vec::new()),
    };
    if is_dir {
        tree(source, &mut target)?;
    } else {
        let own = Own { at: At::Fd(source.fd.as_fd()), path: &top };
        let attributes = own.attributes(source)?;
        own.copy(source, &attributes, &mut target)?;
    }
    target.finish()
}

/// An object of the source, and where it goes.
struct Own<'a> {
    at: At<'a>,
    path: &'a [u8],
}

impl Own<'_> {
    fn attributes(&self, source: &Source) -> Result<Attributes> {
        let stat = self.at.stat().map_err(source.io("look at", self.path))?;
        Attributes::read(self.at, self.path, &stat, Ownership::Real).map_err(|error| source.layer(error))
    }

    /// Copies anything but a directory.
    fn copy(&self, source: &Source, attributes: &Attributes, target: &mut Target) -> Result<()> {
        match attributes.kind {
            Kind::Symlink => {
                let link = self.at.readlink().map_err(source.io("read", self.path))?;
                target.symlink(self.path, &link, attributes)
            }
            Kind::File => {
                let from = self.at.open_read().map_err(source.io("open", self.path))?;
                target.file(self.path, attributes, |to| {
                    walk::data(from, to).map_err(source.io_error("copy", self.path))
                })
            }
            _ => target.special(self.path, attributes),
        }
    }
}

/// Copies a directory with all that is in it to the top of the target.
fn tree(source: &Source, target: &mut Target) -> Result<()> {
    let top = Own { at: At::Fd(source.fd.as_fd()), path: b"" };
    target.top(&top.attributes(source)?);
    // The first name of each file that has several.
    let mut names: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    walk::below(source, &mut |met| {
        // A copy that goes into what is copied isn't copied itself.
        if target.is_own(met.stat) {
            return Ok(false);
        }
        let own = Own { at: At::Fd(met.fd), path: met.path };
        let attributes = own.attributes(source)?;
        if attributes.kind == Kind::Directory {
            return target.directory(met.path, &attributes).map(|()| true);
        }
        if met.stat.nlink > 1 && attributes.kind == Kind::File {
            let id = (met.stat.dev, met.stat.ino);
            match names.get(&id) {
                Some(first) => return target.hardlink(met.path, first).map(|()| false),
                None => names.insert(id, met.path.to_vec()),
            };
        }
        own.copy(source, &attributes, target).map(|()| false)
    })
}
