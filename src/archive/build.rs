//! One pass over a tar: from entries, in whatever order, to a tree.
//!
//! The rules are those by which a layer is unpacked: of what is said twice the last counts, directories that aren't named are
//! implied, a hardlink names an entry before, what lies below a link is put where the link leads within the archive.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::index::{Attrs, Content, Index, Number, Object};
use crate::image::layer::apply::{Limits, clean};
use crate::image::layer::place::split;
use crate::image::layer::reader::{Entry, EntryKind, Reader};
use crate::image::layer::{Attributes, LayerError, check};
use crate::sys::object::Kind;
use crate::union::lookup::marker::WH_PREFIX;
use crate::union::lookup::private;

/// More links on one way are a circle, as for Linux.
const MOST_LINKS: usize = 40;
const ROOT: Number = 0;

/// What entries may take in memory beside their objects. Four million files with names of 200 bytes do with it.
const MOST_MEMORY: u64 = 1 << 30;

/// What the entries of a directory take as long as the tree is being made, beside their names.
const DIRECTORY: u64 = 256;

/// A tree that is being made.
pub(super) struct Builder {
    is_layer: bool,
    objects: Vec<Object>,
    directories: BTreeMap<Number, BTreeMap<Box<[u8]>, Number>>,
    attributes: BTreeMap<Number, Attrs>,
    /// Directories that no entry names.
    implied: BTreeSet<Number>,
    bytes: u64,
    /// What is kept of names, links, attributes and maps of sparse files.
    memory: u64,
    pub(super) most_memory: u64,
    pub(super) left_out: LeftOut,
}

/// What isn't shown of an archive, though it is no error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeftOut {
    /// Entries whose names would be whiteouts of a layer.
    pub names: u64,
    /// Attributes that would be marks of an overlay.
    pub marks: u64,
}

impl LeftOut {
    /// Says what was left out.
    pub(super) fn tell(&self, path: &Path) {
        if self.names > 0 {
            log::warn!(
                "{}: {} names begin with .wh. and are not shown; if it is a layer of an image, say {},layer",
                path.display(),
                self.names,
                path.display()
            );
        }
        if self.marks > 0 {
            log::warn!("{}: {} marks of an overlay in it have no meaning here", path.display(), self.marks);
        }
    }
}

impl Builder {
    pub(super) fn new(is_layer: bool) -> Builder {
        let root = Object::new(&Attributes::of_implied_directory(), 0, Content::None);
        Builder {
            is_layer,
            objects: vec![root],
            directories: BTreeMap::from([(ROOT, BTreeMap::new())]),
            attributes: BTreeMap::new(),
            implied: BTreeSet::from([ROOT]),
            bytes: 0,
            memory: 0,
            most_memory: MOST_MEMORY,
            left_out: LeftOut::default(),
        }
    }

    /// Adds all entries of a tar that is `size` bytes long.
    ///
    /// # Errors
    /// The first that is wrong, as when it is unpacked.
    pub(super) fn read<R: Read>(&mut self, mut reader: Reader<R>, size: u64) -> Result<(), LayerError> {
        let limits = Limits::default();
        while let Some(entry) = reader.next_entry()? {
            if self.objects.len() as u64 > limits.entries {
                return Err(LayerError::TooManyEntries(limits.entries));
            }
            if entry.what == EntryKind::File {
                self.bytes = self.bytes.saturating_add(entry.size);
            }
            if self.bytes > limits.bytes {
                return Err(LayerError::TooManyBytes { entry: entry.path, limit: limits.bytes });
            }
            let stored = reader.stored();
            if stored.iter().any(|run| run.at.checked_add(run.length).is_none_or(|end| end > size)) {
                return Err(LayerError::entry(&entry.path, "the archive ends within it"));
            }
            let content = match &entry.what {
                EntryKind::File if stored.is_empty() && entry.size == 0 => Content::None,
                EntryKind::File => match stored[..] {
                    [run] if run.offset == 0 && run.length == entry.size => Content::Whole { at: run.at },
                    _ => Content::Sparse(stored.into_boxed_slice()),
                },
                EntryKind::Symlink(target) => Content::Target(target.clone().into_boxed_slice()),
                _ => Content::None,
            };
            self.charge(memory_of(&entry, &content), &entry.path)?;
            self.add(entry, content)?;
        }
        Ok(())
    }

    /// Counts what is kept in memory as long as the archive is mounted.
    fn charge(&mut self, bytes: u64, entry: &[u8]) -> Result<(), LayerError> {
        self.memory = self.memory.saturating_add(bytes);
        if self.memory > self.most_memory {
            let most = self.most_memory >> 20;
            let what = format!(
                "with it, names, links, attributes and directories take more than {most} MiB of memory"
            );
            return Err(LayerError::entry(&entry[..entry.len().min(60)], what));
        }
        Ok(())
    }

    fn add(&mut self, mut entry: Entry, content: Content) -> Result<(), LayerError> {
        let path = clean(&entry.path, &entry.path, "")?;
        check::object(&entry, &path)?;
        if self.is_layer {
            check::mark(&entry, &path)?;
        } else if path.split(|&byte| byte == b'/').any(|part| part.starts_with(WH_PREFIX)) {
            self.left_out.names += 1;
            return Ok(());
        }
        let before = entry.attributes.xattrs.len();
        entry
            .attributes
            .xattrs
            .retain(|(name, _)| private::overlay_mark(name).is_none() && !private::is_reserved(name));
        self.left_out.marks += (before - entry.attributes.xattrs.len()) as u64;
        if path.is_empty() {
            self.describe(ROOT, entry.attributes);
            return Ok(());
        }
        let (parent, name) = split(&path);
        let parent = self.enter(parent, &entry.path)?;
        let there = self.child(parent, name);
        match &entry.what {
            EntryKind::Directory => match there.filter(|&there| self.is_directory(there)) {
                Some(there) => self.describe(there, entry.attributes),
                None => {
                    self.charge(DIRECTORY, &entry.path)?;
                    let number = self.new_directory(&entry.attributes)?;
                    self.describe(number, entry.attributes);
                    self.link(parent, name, number);
                }
            },
            EntryKind::Hardlink(target) => {
                let target = clean(target, &entry.path, "hardlink to ")?;
                let found = self.find(&target, &entry.path)?;
                let number = found.filter(|&number| !self.is_directory(number)).ok_or_else(|| {
                    let target = target.escape_ascii();
                    LayerError::entry(&entry.path, format!("is a hardlink to {target}, which isn't there"))
                })?;
                // A name of itself.
                if there != Some(number) {
                    self.objects[number as usize].nlink += 1;
                    self.link(parent, name, number);
                }
            }
            _ => {
                let number = self.new_object(entry, content)?;
                self.link(parent, name, number);
            }
        }
        Ok(())
    }

    /// Adds what is neither a directory nor another name.
    fn new_object(&mut self, entry: Entry, content: Content) -> Result<Number, LayerError> {
        let number = self.number(&entry.path)?;
        let size = match &content {
            Content::Target(target) => target.len() as u64,
            _ => entry.size,
        };
        self.objects.push(Object::new(&entry.attributes, size, content));
        if !entry.attributes.xattrs.is_empty() {
            self.attributes.insert(number, entry.attributes.xattrs);
        }
        Ok(number)
    }

    fn number(&self, entry: &[u8]) -> Result<Number, LayerError> {
        Number::try_from(self.objects.len()).map_err(|_| LayerError::entry(entry, "is one too many"))
    }

    fn new_directory(&mut self, attributes: &Attributes) -> Result<Number, LayerError> {
        let number = self.number(b"")?;
        self.objects.push(Object::new(attributes, 0, Content::None));
        self.directories.insert(number, BTreeMap::new());
        Ok(number)
    }

    /// Says what a directory is like.
    fn describe(&mut self, number: Number, attributes: Attributes) {
        self.implied.remove(&number);
        self.objects[number as usize] = Object::new(&attributes, 0, Content::None);
        match attributes.xattrs.is_empty() {
            true => self.attributes.remove(&number),
            false => self.attributes.insert(number, attributes.xattrs),
        };
    }

    fn is_directory(&self, number: Number) -> bool {
        self.objects[number as usize].kind == Kind::Directory
    }

    fn child(&self, dir: Number, name: &[u8]) -> Option<Number> {
        self.directories.get(&dir)?.get(name).copied()
    }

    /// Gives an object a name; what had it before loses it.
    fn link(&mut self, dir: Number, name: &[u8], number: Number) {
        let entries = self.directories.entry(dir).or_default();
        if let Some(before) = entries.insert(name.into(), number) {
            let before = &mut self.objects[before as usize];
            before.nlink = before.nlink.saturating_sub(1);
        }
    }

    /// Finds the directory that a path leads to; what is missing on the way is made.
    fn enter(&mut self, path: &[u8], entry: &[u8]) -> Result<Number, LayerError> {
        let mut way = Way::new(path);
        let mut at = ROOT;
        while let Some(part) = way.next(entry)? {
            if part == b".." {
                at = way.leave();
                continue;
            }
            let next = match self.child(at, &part) {
                Some(next) if self.is_directory(next) => next,
                Some(next) => match &self.objects[next as usize].content {
                    Content::Target(target) => {
                        at = way.follow(target, at);
                        continue;
                    }
                    _ => self.imply(at, &part)?,
                },
                None => self.imply(at, &part)?,
            };
            way.entered(at);
            at = next;
        }
        Ok(at)
    }

    /// Finds what a path names, its last part not followed.
    fn find(&mut self, path: &[u8], entry: &[u8]) -> Result<Option<Number>, LayerError> {
        let (parent, name) = split(path);
        let parent = self.enter(parent, entry)?;
        Ok(self.child(parent, name))
    }

    fn imply(&mut self, dir: Number, name: &[u8]) -> Result<Number, LayerError> {
        self.charge(DIRECTORY + name.len() as u64, name)?;
        let number = self.new_directory(&Attributes::of_implied_directory())?;
        self.implied.insert(number);
        self.link(dir, name, number);
        Ok(number)
    }

    pub(super) fn finish(mut self) -> Result<Index, LayerError> {
        // A directory's names, as filesystems count them: its own, `.`, and one `..` of each directory in it.
        let counted: Vec<(Number, u32)> = self
            .directories
            .iter()
            .map(|(dir, entries)| {
                let below = entries.values().filter(|&&number| self.is_directory(number)).count();
                (*dir, 2 + u32::try_from(below).unwrap_or(u32::MAX - 2))
            })
            .collect();
        for (dir, links) in counted {
            self.objects[dir as usize].nlink = links;
        }
        let index = Index::new(self.objects, self.directories, (self.attributes, self.implied));
        index.ok_or_else(|| LayerError::entry(b"", "the names of the archive take more than 4 GiB"))
    }
}

/// Returns what is kept of an entry beside its object.
fn memory_of(entry: &Entry, content: &Content) -> u64 {
    let content = match content {
        Content::Target(target) => target.len(),
        Content::Sparse(runs) => size_of_val(&**runs),
        _ => 0,
    };
    let pair = 2 * size_of::<Vec<u8>>();
    let xattrs = entry.attributes.xattrs.iter().map(|(name, value)| name.len() + value.len() + pair);
    (content + split(&entry.path).1.len() + xattrs.sum::<usize>()) as u64
}

/// A path on its way through links, with the root of the archive as the root.
struct Way {
    /// What is left, the next part last.
    left: Vec<Vec<u8>>,
    /// The directories above.
    above: Vec<Number>,
    links: usize,
}

impl Way {
    fn new(path: &[u8]) -> Way {
        let mut way = Way { left: Vec::new(), above: Vec::new(), links: 0 };
        way.push(path);
        way
    }

    fn push(&mut self, path: &[u8]) {
        let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
        self.left.extend(parts.rev().map(<[u8]>::to_vec));
    }

    fn next(&mut self, entry: &[u8]) -> Result<Option<Vec<u8>>, LayerError> {
        if self.links > MOST_LINKS {
            return Err(LayerError::entry(entry, "lies below links that lead in circles"));
        }
        Ok(self.left.pop())
    }

    fn entered(&mut self, from: Number) {
        self.above.push(from);
    }

    fn leave(&mut self) -> Number {
        self.above.pop().unwrap_or(ROOT)
    }

    /// Goes on where a link leads, which lies in the directory `at`.
    fn follow(&mut self, target: &[u8], at: Number) -> Number {
        self.links += 1;
        self.push(target);
        if target.starts_with(b"/") {
            self.above.clear();
            return ROOT;
        }
        at
    }
}
