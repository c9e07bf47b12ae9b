//! Layers in memory: trees that are no directories of the host, and what the union does over them.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::{ControlFlow, Range};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use rustix::io::{Errno, Result};

use support::{OpaqueForm, Scratch, Stack, WhiteoutForm};
use unionmount::sys::dir::{RawEntry, for_each_entry};
use unionmount::sys::object::{At, Kind, Stat};
use unionmount::sys::xattr;
use unionmount::union::lookup::provenance::{Hides, Holds};
use unionmount::union::stack::layer::{LowerSource, Stack as Layers, StackOptions};
use unionmount::union::stack::tree::{LayerTree, TreeFile};
use unionmount::union::view::attr::SetAttr;
use unionmount::union::{Limits, Union};

/// A tree in memory, read from a directory.
#[derive(Debug)]
pub struct MemoryTree {
    id: u64,
    root: u64,
    objects: BTreeMap<u64, MemoryObject>,
}

#[derive(Debug)]
struct MemoryObject {
    stat: Stat,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of a directory.
    children: BTreeMap<Vec<u8>, u64>,
    /// The target of a link.
    target: Vec<u8>,
    data: Arc<MemoryFile>,
}

/// Data in runs, with holes between.
#[derive(Debug, Default)]
struct MemoryFile {
    size: u64,
    runs: BTreeMap<u64, Vec<u8>>,
    /// From here on reading fails.
    broken_from: Option<u64>,
}

impl MemoryTree {
    /// Reads a directory. `id`: what tells the tree from others.
    pub fn read(id: u64, top: &Path) -> MemoryTree {
        let top = File::open(top).unwrap();
        let mut tree = MemoryTree { id, root: 0, objects: BTreeMap::new() };
        tree.root = tree.add(At::Fd(top.as_fd()));
        tree
    }

    fn add(&mut self, at: At<'_>) -> u64 {
        let stat = at.stat().unwrap();
        if self.objects.contains_key(&stat.ino) {
            return stat.ino; // a further name
        }
        let names = xattr::list(at).unwrap();
        let xattrs = names.into_iter().map(|name| (name.clone(), xattr::get(at, &name).unwrap().unwrap()));
        let mut object = MemoryObject {
            stat,
            xattrs: xattrs.collect(),
            children: BTreeMap::new(),
            target: Vec::new(),
            data: Arc::default(),
        };
        match stat.kind() {
            Kind::Symlink => object.target = at.readlink().unwrap(),
            Kind::File => object.data = Arc::new(MemoryFile::read(at)),
            Kind::Directory => {
                let dir = at.open_directory().unwrap();
                let mut names = Vec::new();
                for_each_entry::<Errno>(dir.as_fd(), |entry| {
                    names.push(entry.name.to_vec());
                    Ok(())
                })
                .unwrap();
                for name in names {
                    let child = self.add(At::Name(dir.as_fd(), &name));
                    object.children.insert(name, child);
                }
            }
            _ => {}
        }
        self.objects.insert(stat.ino, object);
        stat.ino
    }

    fn object(&self, ino: u64) -> Result<&MemoryObject> {
        self.objects.get(&ino).ok_or(Errno::STALE)
    }
}

impl MemoryFile {
    fn read(at: At<'_>) -> MemoryFile {
        let file = File::from(at.open_read().unwrap());
        let size = file.metadata().unwrap().len();
        let mut runs = BTreeMap::new();
        let mut offset = 0;
        while let Ok(start) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(offset)) {
            offset = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(start)).unwrap();
            let mut run = vec![0; (offset - start) as usize];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut run, start).unwrap();
            runs.insert(start, run);
        }
        MemoryFile { size, runs, broken_from: None }
    }
}

impl LayerTree for MemoryTree {
    fn id(&self) -> u64 {
        self.id
    }

    fn root(&self) -> u64 {
        self.root
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<u64> {
        self.object(dir)?.children.get(name).copied().ok_or(Errno::NOENT)
    }

    fn stat(&self, object: u64) -> Result<Stat> {
        Ok(self.object(object)?.stat)
    }

    fn list(&self, dir: u64, each: &mut dyn FnMut(RawEntry<'_>) -> ControlFlow<()>) -> Result<()> {
        for (name, ino) in &self.object(dir)?.children {
            let kind = Some(self.object(*ino)?.stat.kind());
            if each(RawEntry { name, ino: *ino, kind }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn read_link(&self, link: u64) -> Result<Vec<u8>> {
        let object = self.object(link)?;
        if object.stat.kind() == Kind::Symlink { Ok(object.target.clone()) } else { Err(Errno::INVAL) }
    }

    fn xattr_names(&self, object: u64) -> Result<Vec<Vec<u8>>> {
        Ok(self.object(object)?.xattrs.keys().cloned().collect())
    }

    fn xattr(&self, object: u64, name: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.object(object)?.xattrs.get(name).cloned())
    }

    fn open(&self, file: u64) -> Result<Arc<dyn TreeFile>> {
        Ok(self.object(file)?.data.clone())
    }
}

impl TreeFile for MemoryFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        if self.broken_from.is_some_and(|from| offset >= from) {
            return Err(Errno::IO);
        }
        let end = self.broken_from.unwrap_or(self.size).min(offset + buffer.len() as u64);
        let length = end.saturating_sub(offset) as usize;
        buffer[..length].fill(0);
        for (start, run) in &self.runs {
            let (from, to) = (offset.max(*start), end.min(start + run.len() as u64));
            if from < to {
                let part = &run[(from - start) as usize..(to - start) as usize];
                buffer[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
            }
        }
        Ok(length)
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let runs = self.runs.iter().map(|(start, run)| *start..start + run.len() as u64);
        Ok(runs.into_iter().find(|run| run.end > offset))
    }
}

/// The lower at a place of a stack, read into memory. Nothing leads from it to the directory.
pub fn source(at: usize, lower: &Path) -> LowerSource {
    let tree = Arc::new(MemoryTree::read(0x1000 + at as u64, lower));
    LowerSource::Tree { path: format!("memory {at}").into(), tree }
}

/// The union of layers in memory below an upper.
fn union(stack: &Stack) -> Union {
    let lowers = stack.lowers().iter().enumerate().map(|(at, lower)| source(at, lower.root()));
    let options = StackOptions {
        lowers: lowers.collect(),
        upper: Some(stack.upper().root().to_owned()),
        work: Some(stack.work().to_owned()),
        ..StackOptions::default()
    };
    Union::new(Layers::open(&options).unwrap(), Limits::default()).unwrap()
}

fn read(union: &Union, name: &[u8]) -> Vec<u8> {
    let (node, attr) = union.lookup(union.root(), name).unwrap().unwrap();
    let mut content = vec![0; attr.stat.size as usize];
    assert_eq!(union.read(&node, 0, &mut content).unwrap(), content.len());
    content
}

fn names(union: &Union) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    union
        .readdir(union.root(), 0, |entry| {
            names.push(entry.name.to_vec());
            true
        })
        .unwrap();
    names.sort();
    names
}

#[test]
fn where_a_path_comes_from_is_told_of_trees_too() {
    let stack = Stack::new(2);
    stack.lower(0).whiteout("gone", WhiteoutForm::Aufs).dir("d").opaque("d", OpaqueForm::Aufs);
    stack.lower(1).file("gone", "x").file("d/below", "x").file("stays", "x");
    let union = union(&stack);
    let inspector = union.inspector();
    let gone = inspector.provenance(b"gone").unwrap();
    assert_eq!((gone.winner(), gone.hidden()), (None, vec![2]));
    assert_eq!(gone.held[2].hidden.as_ref().unwrap().what, Hides::Whiteout);
    let below = inspector.provenance(b"d/below").unwrap();
    assert_eq!(below.held[2].hidden.as_ref().unwrap().what, Hides::Opaque);
    let stays = inspector.provenance(b"stays").unwrap();
    assert!(matches!(stays.held[2].holds, Holds::Leaf { .. }) && stays.winner() == Some(2));
    assert_eq!(names(&union), [b"d".to_vec(), b"stays".to_vec()]);
}

#[test]
fn holes_of_a_tree_are_holes_of_its_copy() {
    let stack = Stack::in_scratch(Scratch::in_memory(), 1);
    stack.lower(0).sparse("f", 64 << 20, &[(0, b"head"), (8 << 20, b"middle and more")]);
    let union = union(&stack);
    let (node, _) = union.lookup(union.root(), b"f").unwrap().unwrap();
    let seek = |whence| union.seek(&node, whence);
    let before = (seek(rustix::fs::SeekFrom::Data(1 << 20)), seek(rustix::fs::SeekFrom::Hole(8 << 20)));
    assert_eq!(before.0, Ok(8 << 20));
    assert!((8 << 20..9 << 20).contains(&before.1.unwrap()));
    // Cut within the second run, which reaches further.
    union.setattr(&node, SetAttr { size: Some((8 << 20) + 6), ..SetAttr::default() }, false).unwrap();
    union.write(&node, 32 << 20, b"new", Default::default()).unwrap();
    let copy = std::fs::metadata(stack.upper().place("f")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(copy.len(), (32 << 20) + 3);
    assert!(copy.blocks() * 512 < 1 << 20, "the holes were written out: {} blocks", copy.blocks());
    let mut middle = [0; 6];
    union.read(&node, 8 << 20, &mut middle).unwrap();
    assert_eq!(&middle, b"middle");
}

#[test]
fn what_a_broken_tree_cannot_read_is_an_error_and_no_copy() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "0123456789").file("whole", "x");
    let mut tree = MemoryTree::read(1, stack.lower(0).root());
    let f = tree.objects[&tree.root].children[&b"f"[..]];
    let data =
        MemoryFile { size: 10, runs: BTreeMap::from([(0, b"0123456789".to_vec())]), broken_from: Some(5) };
    tree.objects.get_mut(&f).unwrap().data = Arc::new(data);
    let options = StackOptions {
        lowers: vec![LowerSource::Tree { path: "broken".into(), tree: Arc::new(tree) }],
        upper: Some(stack.upper().root().to_owned()),
        work: Some(stack.work().to_owned()),
        ..StackOptions::default()
    };
    let union = Union::new(Layers::open(&options).unwrap(), Limits::default()).unwrap();
    let (node, _) = union.lookup(union.root(), b"f").unwrap().unwrap();
    assert_eq!(union.read(&node, 0, &mut [0; 10]).unwrap_err().errno(), Errno::IO);
    assert_eq!(union.read(&node, 0, &mut [0; 5]), Ok(5));
    assert_eq!(union.write(&node, 0, b"x", Default::default()).unwrap_err().errno(), Errno::IO);
    assert!(!stack.upper().place("f").exists(), "half a copy");
    assert_eq!(read(&union, b"whole"), b"x");
    drop((node, union));
    stack.assert_workdir_clean();
}

#[test]
fn a_stack_of_trees_alone_is_read_only_and_tells_a_size() {
    let stack = Stack::new(2);
    stack.lower(0).file("a", "top");
    stack.lower(1).file("a", "below").file("b", "b");
    let lowers = (0..2).map(|at| source(at, stack.lower(at).root())).collect();
    let options = StackOptions { lowers, ..StackOptions::default() };
    let union = Union::new(Layers::open(&options).unwrap(), Limits::default()).unwrap();
    assert_eq!((read(&union, b"a"), read(&union, b"b")), (b"top".to_vec(), b"b".to_vec()));
    assert_eq!(union.statfs().unwrap().f_bavail, 0);
    let (a, _) = union.lookup(union.root(), b"a").unwrap().unwrap();
    assert_eq!(union.open(&a, rustix::fs::OFlags::WRONLY, false).unwrap_err().errno(), Errno::ROFS);
    assert_eq!(union.real_file(&a, true).unwrap().map(drop), None, "nothing that could be passed through");
}
