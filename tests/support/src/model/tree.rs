//! A filesystem in memory: inodes, names, path resolution.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use rustix::io::Errno;

use super::op::{Name, Path};
use crate::{Content, Entry, Kind, Snapshot, Time};

/// An inode's place in [`Model::inodes`]. Never used twice.
pub type Id = usize;

/// What an inode is.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Node {
    Directory(BTreeMap<Name, Id>),
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Fifo,
}

/// An inode.
#[derive(Debug, Clone)]
pub struct Inode {
    /// What it is.
    pub node: Node,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Modification time, as far as it can be known.
    pub mtime: Time,
    /// Number of names, for what is not a directory.
    pub nlink: u64,
}

/// The whole filesystem.
#[derive(Debug, Clone)]
pub struct Model {
    /// All inodes that ever were.
    pub inodes: Vec<Inode>,
    /// The root directory.
    pub root: Id,
    /// Open files: slot → inode, and whether it may be written.
    pub slots: BTreeMap<u8, (Id, bool)>,
    /// Who acts: changes by root keep setuid bits that others' would clear.
    pub privileged: bool,
    /// Owner of what is made.
    pub owner: (u32, u32),
    /// A time before all operations.
    pub start: (i64, i64),
}

/// Where a path leads.
pub struct Place {
    /// The directory that holds, or would hold, the last component.
    pub parent: Id,
    /// The last component.
    pub name: Name,
    /// What is there.
    pub found: Option<Id>,
}

/// How many links a path may lead through (MAXSYMLINKS).
const MAX_LINKS: usize = 40;

impl Model {
    /// Without even a root, which [`super::layer::StackSpec::merge`] makes.
    pub fn new() -> Self {
        let owner = super::layer::default_owner();
        Model {
            inodes: Vec::new(),
            root: 0,
            slots: BTreeMap::new(),
            privileged: owner.0 == 0,
            owner,
            start: coarse_now(),
        }
    }

    /// Adds an inode.
    pub fn insert(&mut self, inode: Inode) -> Id {
        self.inodes.push(inode);
        self.inodes.len() - 1
    }

    /// The children of a directory.
    pub fn children(&self, id: Id) -> Option<&BTreeMap<Name, Id>> {
        match &self.inodes[id].node {
            Node::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// The children of what is known to be a directory, to change.
    pub fn children_mut(&mut self, id: Id) -> &mut BTreeMap<Name, Id> {
        match &mut self.inodes[id].node {
            Node::Directory(children) => children,
            node => panic!("not a directory: {node:?}"),
        }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self, id: Id) -> bool {
        self.children(id).is_some()
    }

    /// Notes that an inode's content was changed by now.
    pub fn touch(&mut self, id: Id) {
        self.inodes[id].mtime = Time::Since(self.start.0, self.start.1);
    }

    /// Resolves a path to the place of its last component; links in the middle are followed, the last one as asked.
    pub fn place(&self, path: &Path, follow: bool) -> Result<Place, Errno> {
        let mut directory = self.root;
        let mut rest: VecDeque<Name> = path.0.iter().cloned().collect();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            let children = self.children(directory).ok_or(Errno::NOTDIR)?;
            let found = children.get(&name).copied();
            let last = rest.is_empty();
            match found.map(|id| &self.inodes[id].node) {
                Some(Node::Symlink(target)) if !last || follow => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    for part in target.rsplit(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
                        rest.push_front(part.to_vec());
                    }
                }
                _ if last => return Ok(Place { parent: directory, name, found }),
                Some(_) => directory = found.unwrap_or(directory),
                None => return Err(Errno::NOENT),
            }
        }
        panic!("the root has no place");
    }

    /// Resolves a path to an inode.
    pub fn resolve(&self, path: &Path, follow: bool) -> Result<Id, Errno> {
        if path.0.is_empty() {
            return Ok(self.root);
        }
        self.place(path, follow)?.found.ok_or(Errno::NOENT)
    }

    /// Whether `id` is `ancestor` or lies below it.
    pub fn is_below(&self, id: Id, ancestor: Id) -> bool {
        id == ancestor
            || self.children(ancestor).is_some_and(|children| {
                children.values().any(|&child| self.is_directory(child) && self.is_below(id, child))
            })
    }

    /// What a walk of the tree must find. Inode numbers are the model's own.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        self.visit(self.root, Vec::new(), &mut snapshot);
        snapshot
    }

    fn visit(&self, id: Id, path: Vec<u8>, snapshot: &mut Snapshot) {
        let inode = &self.inodes[id];
        let (kind, content, size) = match &inode.node {
            Node::Directory(_) => (Kind::Directory, Content::None, 0),
            Node::File(bytes) => (Kind::File, Content::of(bytes), bytes.len()),
            Node::Symlink(target) => (Kind::Symlink, Content::Bytes(target.clone()), target.len()),
            Node::Fifo => (Kind::Fifo, Content::None, 0),
        };
        let entry = Entry {
            kind,
            mode: inode.mode,
            uid: inode.owner.0,
            gid: inode.owner.1,
            size: size as u64,
            content,
            rdev: 0,
            nlink: (kind != Kind::Directory).then_some(inode.nlink),
            ino: id as u64,
            xattrs: inode.xattrs.clone(),
            mtime: inode.mtime,
            ctime: Time::Any,
        };
        snapshot.entries.insert(OsString::from_vec(path.clone()), entry);
        for (name, &child) in self.children(id).into_iter().flatten() {
            let mut child_path = path.clone();
            if !child_path.is_empty() {
                child_path.push(b'/');
            }
            child_path.extend_from_slice(name);
            self.visit(child, child_path, snapshot);
        }
    }
}

/// The time by which filesystems stamp changes: that of the last timer tick, a little behind the clock.
fn coarse_now() -> (i64, i64) {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    (now.tv_sec, now.tv_nsec as i64)
}
