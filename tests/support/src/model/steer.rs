//! Bends random operations to what is there, so that most of them do something.
//!
//! A random path names nothing most of the time, and an operation that fails with ENOENT tests little. So in three
//! cases of four a path is replaced by one that exists (or by a free name in a directory that exists), chosen by the
//! path that it replaces: the same sequence on the same stack is bent in the same way.

use super::generate::ALPHABET;
use super::op::{Op, Path, Rename};
use super::tree::Model;
use crate::Kind;

/// What an operation wants at a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    File,
    NotDirectory,
    Directory,
    EmptyDirectory,
    Any,
    Nothing,
}

impl Model {
    /// `op` with its paths bent.
    pub fn steer(&self, op: &Op) -> Op {
        let mut op = op.clone();
        let tree = Tree::of(self);
        match &mut op {
            Op::Create { path, .. }
            | Op::Mkdir { path, .. }
            | Op::Mkfifo { path, .. }
            | Op::Symlink { path, .. } => {
                tree.bend(path, Want::Nothing, 0);
            }
            Op::Write { path, .. }
            | Op::Truncate { path, .. }
            | Op::Fallocate { path, .. }
            | Op::Open { path, .. } => {
                tree.bend(path, Want::File, 0);
            }
            Op::CopyRange { from, to, .. } => {
                tree.bend(from, Want::File, 0);
                tree.bend(to, Want::File, 1);
            }
            Op::Link { from, to } => {
                tree.bend(from, Want::NotDirectory, 0);
                tree.bend(to, Want::Nothing, 1);
            }
            Op::Rmdir { path } => {
                let empty = hash(path, 3).is_multiple_of(2);
                tree.bend(path, if empty { Want::EmptyDirectory } else { Want::Directory }, 0);
            }
            Op::Unlink { path } => tree.bend(path, Want::NotDirectory, 0),
            Op::Rename { from, to, how } => {
                tree.bend(from, Want::Any, 0);
                let exists = *how == Rename::Exchange || hash(to, 2).is_multiple_of(2);
                tree.bend(to, if exists { Want::Any } else { Want::Nothing }, 1);
            }
            Op::Chmod { path, .. }
            | Op::Chown { path, .. }
            | Op::SetXattr { path, .. }
            | Op::RemoveXattr { path, .. }
            | Op::SetMtime { path, .. } => tree.bend(path, Want::Any, 0),
            Op::WriteOpen { slot, .. } | Op::TruncateOpen { slot, .. } => self.bend_slot(slot, true),
            Op::ChmodOpen { slot, .. } | Op::ReadOpen { slot } | Op::Close { slot } => {
                self.bend_slot(slot, false)
            }
        }
        op
    }

    fn bend_slot(&self, slot: &mut u8, write: bool) {
        let usable: Vec<_> = self
            .slots
            .iter()
            .filter(|(_, (_, writable))| *writable || !write)
            .map(|(slot, _)| *slot)
            .collect();
        if !usable.is_empty() {
            *slot = usable[usize::from(*slot) % usable.len()];
        }
    }
}

/// All paths of the tree but the root's, with their types.
struct Tree {
    paths: Vec<(Path, Kind)>,
}

/// How deep paths may get: else renames of directories into each other make them grow without end.
const DEPTH: usize = 4;

impl Tree {
    fn of(model: &Model) -> Self {
        let snapshot = model.snapshot();
        let paths = snapshot.entries.iter().filter(|(path, _)| !path.is_empty());
        let split = |path: &std::ffi::OsStr| {
            use std::os::unix::ffi::OsStrExt;
            Path(path.as_bytes().split(|&byte| byte == b'/').map(<[u8]>::to_vec).collect())
        };
        Tree { paths: paths.map(|(path, entry)| (split(path), entry.kind)).collect() }
    }

    fn bend(&self, path: &mut Path, want: Want, salt: u64) {
        let hash = hash(path, salt);
        if path.0.is_empty() || hash.is_multiple_of(4) {
            return;
        }
        if want == Want::Nothing {
            self.bend_to_vacancy(path, hash / 4);
        } else {
            let candidates: Vec<_> = self.of_kind(want).collect();
            if !candidates.is_empty() {
                *path = candidates[(hash / 4) as usize % candidates.len()].clone();
            }
        }
    }

    /// The first free name from a place in the tree that `hash` chooses.
    fn bend_to_vacancy(&self, path: &mut Path, hash: u64) {
        let root = Path(Vec::new());
        let directories: Vec<_> = self.of_kind(Want::Directory).filter(|dir| dir.0.len() < DEPTH).collect();
        let count = directories.len() + 1;
        for step in 0..count {
            let parent = directories.get((hash as usize + step) % count).copied().unwrap_or(&root);
            for name in ALPHABET.iter().cycle().skip(hash as usize % 7).take(ALPHABET.len()) {
                let mut child = parent.clone();
                child.0.push(name.to_vec());
                if !self.paths.iter().any(|(path, _)| *path == child) {
                    *path = child;
                    return;
                }
            }
        }
    }

    fn of_kind(&self, want: Want) -> impl Iterator<Item = &Path> {
        let fits = move |path: &Path, kind: Kind| match want {
            Want::File => kind == Kind::File,
            Want::NotDirectory => kind != Kind::Directory,
            Want::Directory => kind == Kind::Directory,
            Want::EmptyDirectory => {
                let inside = |other: &Path| other.0.len() > path.0.len() && other.0.starts_with(&path.0);
                kind == Kind::Directory && !self.paths.iter().any(|(other, _)| inside(other))
            }
            Want::Any | Want::Nothing => true,
        };
        self.paths.iter().filter(move |(path, kind)| fits(path, *kind)).map(|(path, _)| path)
    }
}

/// FNV-1a of a path.
fn hash(path: &Path, salt: u64) -> u64 {
    let bytes = path.0.iter().flat_map(|name| name.iter().chain(b"/"));
    bytes.fold(0xcbf2_9ce4_8422_2325 ^ salt, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    }) >> 7
}
