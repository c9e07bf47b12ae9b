//! What an archive holds, without its data: objects by numbers, names in one piece of memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::squashfs::Packed;
use crate::image::layer::Attributes;
use crate::image::layer::reader::Stored;
use crate::sys::object::{Kind, Time};

/// What an object is besides its attributes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Content {
    /// The data of a regular file, in one piece.
    Whole { at: u64 },
    /// Those of a sparse one.
    Sparse(Box<[Stored]>),
    /// Those that lie in blocks of a squashfs, and where it is told in which.
    Packed { at: u32 },
    /// The target of a link.
    Target(Box<[u8]>),
    /// The entries of a directory, by name: where the name stands, how long it is, the object.
    Entries(Box<[Name]>),
    /// Nothing more.
    None,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Name {
    at: u32,
    length: u16,
    object: u32,
}

/// An object. Its number is its place in the index, and 1.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Object {
    pub kind: Kind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub device: (u32, u32),
    pub mtime: Time,
    pub size: u64,
    pub nlink: u32,
    pub content: Content,
}

impl Object {
    pub(super) fn new(attributes: &Attributes, size: u64, content: Content) -> Object {
        Object {
            kind: attributes.kind,
            mode: (attributes.mode & 0o7777) as u16,
            uid: attributes.uid,
            gid: attributes.gid,
            device: attributes.device,
            mtime: attributes.mtime,
            size,
            nlink: 1,
            content,
        }
    }
}

/// The number of an object.
pub(super) type Number = u32;

/// Extended attributes of one object.
pub(super) type Attrs = Vec<(Vec<u8>, Vec<u8>)>;

/// All objects of an archive.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Index {
    pub objects: Vec<Object>,
    /// Of the few that have any.
    pub attributes: BTreeMap<Number, Attrs>,
    /// Directories that no entry names: what they are like, a layer below may tell.
    pub implied: BTreeSet<Number>,
    names: Vec<u8>,
    /// Where the data of a squashfs lie.
    pub packed: Option<Packed>,
}

impl Index {
    /// Puts objects and the directories' entries together.
    ///
    /// # Errors
    /// When there are more names than numbers.
    pub(super) fn new(
        mut objects: Vec<Object>,
        directories: BTreeMap<Number, BTreeMap<Box<[u8]>, Number>>,
        (attributes, implied): (BTreeMap<Number, Attrs>, BTreeSet<Number>),
    ) -> Option<Index> {
        let mut names = Vec::new();
        for (dir, entries) in directories {
            let mut list = Vec::with_capacity(entries.len());
            for (name, object) in entries {
                list.push(Name {
                    at: u32::try_from(names.len()).ok()?,
                    length: u16::try_from(name.len()).ok()?,
                    object,
                });
                names.extend_from_slice(&name);
            }
            objects.get_mut(dir as usize)?.content = Content::Entries(list.into_boxed_slice());
        }
        names.shrink_to_fit();
        objects.shrink_to_fit();
        Some(Index { objects, attributes, implied, names, packed: None })
    }

    /// Returns whether all of it leads somewhere, as in every index that was made here: `end` is that of the data.
    pub(super) fn is_sound(&self, end: u64) -> bool {
        self.objects.first().is_some_and(|root| root.kind == Kind::Directory)
            && self.is_tree()
            && self.objects.iter().all(|object| self.is_object_sound(object, end))
            && self.implied.iter().all(|&number| {
                let object = self.objects.get(number as usize);
                object.is_some_and(|object| object.kind == Kind::Directory)
            })
    }

    /// Returns whether no directory lies in two, or above itself.
    fn is_tree(&self) -> bool {
        let mut seen = vec![false; self.objects.len()];
        seen[0] = true;
        let entries = self.objects.iter().filter_map(|object| match &object.content {
            Content::Entries(entries) => Some(entries.iter()),
            _ => None,
        });
        entries.flatten().all(|entry| {
            let number = entry.object as usize;
            let is_directory = self.objects.get(number).is_some_and(|object| object.kind == Kind::Directory);
            !is_directory || !std::mem::replace(&mut seen[number], true)
        })
    }

    fn is_object_sound(&self, object: &Object, end: u64) -> bool {
        let ends_within = |at: u64, length: u64| at.checked_add(length).is_some_and(|last| last <= end);
        let is_entry_sound = |entry: &Name| {
            let name_end = entry.at as usize + usize::from(entry.length);
            let name = self.name(entry);
            name_end <= self.names.len()
                && (entry.object as usize) < self.objects.len()
                && !name.is_empty()
                && !matches!(name, b"." | b"..")
                && !name.iter().any(|byte| matches!(byte, b'/' | 0))
        };
        let is_run_sound = |run: &Stored| {
            let is_within = run.offset.checked_add(run.length).is_some_and(|last| last <= object.size);
            is_within && ends_within(run.at, run.length)
        };
        match &object.content {
            Content::Entries(entries) => {
                object.kind == Kind::Directory
                    && entries.iter().all(is_entry_sound)
                    && entries.is_sorted_by(|one, next| self.name(one) < self.name(next))
            }
            _ if object.kind == Kind::Directory => false,
            Content::Whole { at } => ends_within(*at, object.size),
            Content::Packed { at } => {
                let is_sound = |packed: &Packed| packed.is_sound(*at, object.size);
                object.kind == Kind::File && self.packed.as_ref().is_some_and(is_sound)
            }
            Content::Sparse(runs) => {
                runs.iter().all(is_run_sound)
                    && runs.is_sorted_by(|one, next| one.offset + one.length <= next.offset)
            }
            Content::Target(_) | Content::None => true,
        }
    }

    pub(super) fn object(&self, number: u64) -> Option<&Object> {
        self.objects.get(usize::try_from(number.checked_sub(1)?).ok()?)
    }

    /// Finds a path of an object, for messages. It goes through all directories once.
    pub(super) fn path(&self, number: u64) -> Vec<u8> {
        let mut above = HashMap::new();
        for (object, dir) in self.objects.iter().zip(1..) {
            if let Content::Entries(entries) = &object.content {
                above.extend(entries.iter().map(|entry| (Index::number(entry), (dir, entry))));
            }
        }
        let (mut parts, mut at) = (Vec::new(), number);
        while at != 1 {
            // Once each: a path has no circle.
            let Some((dir, entry)) = above.remove(&at) else { break };
            parts.push(self.name(entry));
            at = dir;
        }
        parts.reverse();
        parts.join(&b'/')
    }

    pub(super) fn name(&self, name: &Name) -> &[u8] {
        let at = name.at as usize;
        self.names.get(at..at + usize::from(name.length)).unwrap_or_default()
    }

    /// Returns the number under which the object of an entry is known.
    pub(super) fn number(name: &Name) -> u64 {
        u64::from(name.object) + 1
    }

    /// Finds an entry.
    pub(super) fn find(&self, entries: &[Name], name: &[u8]) -> Option<u64> {
        let at = entries.binary_search_by(|entry| self.name(entry).cmp(name)).ok()?;
        entries.get(at).map(Index::number)
    }
}
