//! One pass over an image: from directories to an index.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::vec::IntoIter;

use super::budget::{Budget, Table};
use super::raw::Wrong;
use crate::archive::index::{Attrs, Content, Index, Number, Object};
use crate::image::layer::Limits;
use crate::sys::object::{Kind, Time};
use crate::union::lookup::marker::{AufsName, WH_OPAQUE, WH_PREFIX, aufs_name};
use crate::union::lookup::private;

const ROOT: Number = 0;

/// What the entries of a directory take as long as the index is being made, beside their names.
const DIRECTORY: u64 = 256;
/// What it takes to know an object again by another of its names.
const KNOWN: u64 = 32;

/// The longest name that Linux knows (NAME_MAX).
pub(in crate::archive) const LONGEST_NAME: usize = 255;
/// No path that Linux takes is as long (PATH_MAX counts the zero at its end).
const PATH_MAX: usize = 4096;
/// How much of a path that is too long is shown.
const BEGINNING: usize = 60;
/// What an entry takes beside its name: first here, then in the directory.
pub(in crate::archive) const ENTRY: u64 = 80;

/// What an inode tells in every format.
#[derive(Debug, Clone, Copy)]
pub(in crate::archive) struct Common {
    pub kind: Kind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub device: (u32, u32),
    pub mtime: Time,
    pub nlink: u32,
}

/// An entry of a directory: its name, and the reference of its inode.
#[derive(Debug)]
pub(in crate::archive) struct Listed {
    name: Box<[u8]>,
    inode: u64,
}

impl Listed {
    /// # Errors
    /// When nothing can have that name.
    pub(in crate::archive) fn new(name: Box<[u8]>, inode: u64) -> Result<Listed, Wrong> {
        let is_path = name.iter().any(|byte| matches!(byte, b'/' | 0));
        if is_path || matches!(&*name, b"" | b"." | b"..") {
            return Err(Wrong::damaged(format!("it has the name '{}'", name.escape_ascii())));
        }
        Ok(Listed { name, inode })
    }
}

/// How an image is read, by its format.
pub(in crate::archive) trait Format {
    /// What an inode says.
    type Inode;

    /// Returns what of the memory is left that the image may take.
    fn budget(&self) -> &Budget;

    /// Returns the reference of the root.
    fn root(&self) -> u64;

    /// Tells how much was read when the inode of that reference is about to be, for a bar.
    fn progress(&self, reference: u64) -> u64;

    /// Reads the inode of a reference.
    fn inode(&self, reference: u64) -> Result<Self::Inode, Wrong>;

    /// Returns what an inode tells in every format.
    fn common(inode: &Self::Inode) -> Common;

    /// Reads the extended attributes of an object.
    fn attributes(&self, inode: &Self::Inode) -> Result<Attrs, Wrong>;

    /// Reads a directory's listing, of at most so many entries.
    fn list(&self, inode: &Self::Inode, most: usize) -> Result<Vec<Listed>, Wrong>;

    /// Reads what the index keeps of any other object, and its size.
    fn content(&mut self, inode: &Self::Inode) -> Result<(u64, Content), Wrong>;
}

/// An index, and what was left out of it: names that would be whiteouts, attributes that would be marks.
pub(in crate::archive) struct Walked {
    pub index: Index,
    pub names: u64,
    pub marks: u64,
}

/// A directory that is being read.
struct Level {
    number: Number,
    left: IntoIter<Listed>,
    /// How long the path of the directory above it is.
    above: usize,
}

struct Walk<'a, F> {
    format: &'a mut F,
    is_layer: bool,
    objects: Vec<Object>,
    directories: BTreeMap<Number, BTreeMap<Box<[u8]>, Number>>,
    attributes: BTreeMap<Number, Attrs>,
    /// By the references of their inodes: what has several names, and the directories, of which none has.
    known: HashMap<u64, Number>,
    entered: HashSet<u64>,
    path: Vec<u8>,
    /// How many entries were listed, those that aren't shown among them.
    entries: usize,
    left_out: (u64, u64),
}

/// Reads all names and attributes of an image.
///
/// # Errors
/// What is wrong with it.
pub(in crate::archive) fn walk<F: Format>(
    format: &mut F,
    is_layer: bool,
    at: &dyn Fn(u64),
) -> Result<Walked, Wrong> {
    let mut walk = Walk {
        format,
        is_layer,
        objects: Vec::new(),
        directories: BTreeMap::new(),
        attributes: BTreeMap::new(),
        known: HashMap::new(),
        entered: HashSet::new(),
        path: Vec::new(),
        entries: 0,
        left_out: (0, 0),
    };
    let read = walk.all(at);
    read.map_err(|error| error.within(if walk.path.is_empty() { b"/" } else { &walk.path }))?;
    walk.finish()
}

impl<F: Format> Walk<'_, F> {
    fn all(&mut self, at: &dyn Fn(u64)) -> Result<(), Wrong> {
        let reference = self.format.root();
        let root = self.format.inode(reference)?;
        if F::common(&root).kind != Kind::Directory {
            return Err(Wrong::damaged("its root is no directory"));
        }
        let mut way = vec![self.enter(reference, &root, 0)?];
        while let Some(level) = way.last_mut() {
            let Some(entry) = level.left.next() else {
                self.path.truncate(level.above);
                way.pop();
                continue;
            };
            at(self.format.progress(entry.inode));
            let (dir, above) = (level.number, self.path.len());
            if above > 0 {
                self.path.push(b'/');
            }
            self.path.extend(&entry.name);
            self.can_be_reached()?;
            if let Some(below) = self.add(dir, entry, above)? {
                way.push(below);
            } else {
                self.path.truncate(above);
            }
        }
        Ok(())
    }

    /// Refuses what lies deeper than any path reaches: an image could have it as deep as it is large.
    fn can_be_reached(&mut self) -> Result<(), Wrong> {
        let length = self.path.len();
        if length < PATH_MAX {
            return Ok(());
        }
        self.path.truncate(BEGINNING);
        Err(Wrong::damaged(format!(
            "so begins a path of {length} bytes, and Linux knows none of {PATH_MAX} or more"
        )))
    }

    /// Counts what is kept in memory.
    fn charge(&self, bytes: u64, table: Table) -> Result<(), Wrong> {
        self.format.budget().take(bytes, table)
    }

    /// Adds an entry. What it returns is a directory, to be read now.
    fn add(&mut self, dir: Number, entry: Listed, above: usize) -> Result<Option<Level>, Wrong> {
        if entry.name.starts_with(WH_PREFIX) {
            match aufs_name(&entry.name) {
                _ if !self.is_layer => {
                    self.left_out.0 += 1;
                    return Ok(None);
                }
                // Said by an attribute as well.
                AufsName::Opaque if self.has(dir, WH_OPAQUE) => return Ok(None),
                AufsName::Malformed => {
                    return Err(Wrong::damaged("it is a whiteout of nothing that can exist"));
                }
                _ => {}
            }
        }
        if let Some(&number) = self.known.get(&entry.inode) {
            self.objects[number as usize].nlink += 1;
            return self.link(dir, entry.name, number).map(|()| None);
        }
        let inode = self.format.inode(entry.inode)?;
        let Common { kind, nlink, .. } = F::common(&inode);
        if kind == Kind::Directory {
            let below = self.enter(entry.inode, &inode, above)?;
            self.link(dir, entry.name, below.number)?;
            return Ok(Some(below));
        }
        let (number, _) = self.object(&inode)?;
        if nlink > 1 {
            self.charge(KNOWN, Table::Inodes)?;
            self.known.insert(entry.inode, number);
        }
        self.link(dir, entry.name, number).map(|()| None)
    }

    fn has(&self, dir: Number, name: &[u8]) -> bool {
        self.directories.get(&dir).is_some_and(|entries| entries.contains_key(name))
    }

    fn link(&mut self, dir: Number, name: Box<[u8]>, number: Number) -> Result<(), Wrong> {
        match self.directories.entry(dir).or_default().insert(name, number) {
            None => Ok(()),
            Some(_) => Err(Wrong::damaged("there are two of this name")),
        }
    }

    /// Adds a directory and reads its listing.
    fn enter(&mut self, reference: u64, inode: &F::Inode, above: usize) -> Result<Level, Wrong> {
        if !self.entered.insert(reference) {
            return Err(Wrong::damaged("it is a directory that has another name already"));
        }
        self.charge(DIRECTORY, Table::Directories)?;
        let (number, is_opaque) = self.object(inode)?;
        self.directories.insert(number, BTreeMap::new());
        if is_opaque {
            self.mark_opaque(number)?;
        }
        let most = usize::try_from(Limits::default().entries).unwrap_or(usize::MAX);
        let entries = self.format.list(inode, most - self.entries)?;
        self.entries += entries.len();
        Ok(Level { number, left: entries.into_iter(), above })
    }

    /// Adds an object, and tells whether it has the mark of an opaque directory.
    fn object(&mut self, inode: &F::Inode) -> Result<(Number, bool), Wrong> {
        let number =
            Number::try_from(self.objects.len()).map_err(|_| Wrong::damaged("it is one too many"))?;
        self.charge(size_of::<Object>() as u64, Table::Inodes)?;
        let xattrs = self.format.attributes(inode)?;
        let is_opaque = self.attributes_of(number, xattrs);
        let Common { kind, mode, uid, gid, device, mtime, .. } = F::common(inode);
        let (size, content) = match kind {
            Kind::Directory => (0, Content::None),
            _ => self.format.content(inode)?,
        };
        self.objects.push(Object { kind, mode, uid, gid, device, mtime, size, nlink: 1, content });
        Ok((number, is_opaque))
    }

    /// Keeps the attributes of an object, save for the marks of overlays. Tells whether that of an opaque directory was among them.
    fn attributes_of(&mut self, number: Number, mut xattrs: Attrs) -> bool {
        let mut is_opaque = false;
        xattrs.retain(|(name, value)| {
            let is_mark = private::overlay_mark(name).is_some() || private::is_reserved(name);
            let says_opaque = says_opaque(name, value);
            is_opaque |= says_opaque;
            self.left_out.1 += u64::from(is_mark && !says_opaque);
            !is_mark
        });
        if !xattrs.is_empty() {
            self.attributes.insert(number, xattrs);
        }
        is_opaque
    }

    /// Gives a directory the mark that every mount believes.
    fn mark_opaque(&mut self, dir: Number) -> Result<(), Wrong> {
        let mark = Number::try_from(self.objects.len()).map_err(|_| Wrong::damaged("it is one too many"))?;
        self.charge(ENTRY + (size_of::<Object>() + WH_OPAQUE.len()) as u64, Table::Directories)?;
        let Object { uid, gid, mtime, .. } = self.objects[dir as usize];
        let (kind, content) = (Kind::File, Content::None);
        self.objects.push(Object {
            kind,
            mode: 0,
            uid,
            gid,
            device: (0, 0),
            mtime,
            size: 0,
            nlink: 1,
            content,
        });
        self.link(dir, WH_OPAQUE.into(), mark)
    }

    fn finish(mut self) -> Result<Walked, Wrong> {
        // A directory's names: its own, `.`, and one `..` of each directory in it.
        for (dir, entries) in &self.directories {
            let is_directory = |number: &&Number| self.directories.contains_key(number);
            let below = entries.values().filter(is_directory).count();
            self.objects[*dir as usize].nlink = 2 + u32::try_from(below).unwrap_or(u32::MAX - 2);
        }
        debug_assert!(self.objects.get(ROOT as usize).is_some_and(|root| root.kind == Kind::Directory));
        let index = Index::new(self.objects, self.directories, (self.attributes, BTreeSet::new()));
        let index = index.ok_or_else(|| Wrong::damaged("its names take more than 4 GiB"))?;
        Ok(Walked { index, names: self.left_out.0, marks: self.left_out.1 })
    }
}

/// Tells whether an attribute says that a directory hides what is below it.
fn says_opaque(name: &[u8], value: &[u8]) -> bool {
    let is_mark = private::overlay_mark(name) == Some(b"opaque") || name == b"user.fuseoverlayfs.opaque";
    is_mark && value == b"y"
}
