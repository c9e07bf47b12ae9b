//! How one merged tree differs from another, whatever layers they are of.
//!
//! Both are walked side by side. What the same file of the same layer shows on both sides is the same without being read, so
//! that two images with common layers are compared at the cost of what they don't share. Times don't count: two builds of one
//! thing differ in them and in nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::stacked::{Sides, of_both};
use crate::error::Result as UnionResult;
use crate::image::layer::merged::of_union;
use crate::image::layer::{Change, ChangeKind, LayerError};
use crate::sys::object::{Kind, Stat};
use crate::union::Union;
use crate::union::nodes::node::Node;
use crate::union::view::attr::Attr;

/// How much is compared at once.
const BLOCK: usize = 1 << 20;

/// Returns what has to change in the tree before to get the tree after, sorted by path. A directory counts as changed when
/// something in it does.
///
/// # Errors
/// Those of reading the layers, with the path.
pub fn differences(sides: &Sides) -> Result<Vec<Change>, LayerError> {
    let (before, after) = of_both(sides);
    let mut walk = Walk { before, after, changes: BTreeSet::new() };
    walk.whole()?;
    Ok(walk.changes.into_iter().collect())
}

struct Walk<'a> {
    before: Option<&'a Union>,
    after: Option<&'a Union>,
    changes: BTreeSet<Change>,
}

/// A directory of which at least one side has something to be gone through.
struct Pair {
    path: Vec<u8>,
    before: Option<Arc<Node>>,
    after: Option<Arc<Node>>,
}

impl Walk<'_> {
    fn whole(&mut self) -> Result<(), LayerError> {
        let root = |union: Option<&Union>| union.map(|union| union.root().clone());
        let mut todo = vec![Pair { path: Vec::new(), before: root(self.before), after: root(self.after) }];
        // A list, not recursion: nothing bounds the depth of a tree.
        while let Some(pair) = todo.pop() {
            let (old, new) =
                (names(self.before, &pair.before, &pair.path)?, names(self.after, &pair.after, &pair.path)?);
            for name in old.union(&new) {
                let path = [&pair.path[..], b"/", name].concat();
                todo.extend(self.entry(&pair, name, path)?);
            }
            forget(self.before, &pair.before);
            forget(self.after, &pair.after);
        }
        Ok(())
    }

    /// Compares one name of two directories. Returns what is to be gone through below it.
    fn entry(&mut self, pair: &Pair, name: &[u8], path: Vec<u8>) -> Result<Option<Pair>, LayerError> {
        let old = lookup(self.before, &pair.before, name, &path)?;
        let new = lookup(self.after, &pair.after, name, &path)?;
        let kind = match (&old, &new) {
            (None, None) => None,
            (None, Some(_)) => Some(ChangeKind::Added),
            (Some(_), None) => Some(ChangeKind::Deleted),
            (Some(old), Some(new)) => {
                let same = self.is_same(old, new).map_err(of_union(&path))?;
                (!same).then_some(ChangeKind::Changed)
            }
        };
        if let Some(kind) = kind {
            self.note(kind, &path);
        }
        let directory = |found: Option<(Arc<Node>, Attr)>, union: Option<&Union>| {
            let (node, attr) = found?;
            if attr.stat.kind() == Kind::Directory {
                return Some(node);
            }
            forget(union, &Some(node));
            None
        };
        let (old, new) = (directory(old, self.before), directory(new, self.after));
        // What a deleted directory held has gone with it.
        if new.is_none() {
            forget(self.before, &old);
            return Ok(None);
        }
        Ok(Some(Pair { path, before: old, after: new }))
    }

    /// Notes a change, and that what holds it has changed.
    fn note(&mut self, kind: ChangeKind, path: &[u8]) {
        self.changes.insert(Change { path: path.to_vec(), kind });
        let mut at = path;
        while let Some(slash) = at.iter().rposition(|&byte| byte == b'/').filter(|&slash| slash > 0) {
            at = &at[..slash];
            let known = |kind| self.changes.contains(&Change { path: at.to_vec(), kind });
            if known(ChangeKind::Added) || known(ChangeKind::Changed) {
                break;
            }
            self.changes.insert(Change { path: at.to_vec(), kind: ChangeKind::Changed });
        }
    }

    fn is_same(&self, old: &(Arc<Node>, Attr), new: &(Arc<Node>, Attr)) -> UnionResult<bool> {
        let (Some(before), Some(after)) = (self.before, self.after) else { return Ok(false) };
        let ((old, Attr { stat: a, .. }), (new, Attr { stat: b, .. })) = (old, new);
        if !looks_same(a, b) {
            return Ok(false);
        }
        let is_one = (a.dev, a.ino) == (b.dev, b.ino);
        // Of a directory, several layers' may be merged, and the topmost tells how it looks.
        if is_one {
            return Ok(true);
        }
        let content = match a.kind() {
            Kind::Symlink => before.readlink(old)? == after.readlink(new)?,
            Kind::File => same_data((before, old), (after, new))?,
            _ => true,
        };
        Ok(content && xattrs(before, old)? == xattrs(after, new)?)
    }
}

fn looks_same(a: &Stat, b: &Stat) -> bool {
    let of_device = |stat: &Stat| match stat.kind() {
        Kind::CharDevice | Kind::BlockDevice => stat.rdev,
        _ => 0,
    };
    let size = |stat: &Stat| if stat.kind() == Kind::File { stat.size } else { 0 };
    let all = |stat: &Stat| (stat.mode, stat.uid, stat.gid, size(stat), of_device(stat));
    all(a) == all(b)
}

fn same_data(old: (&Union, &Arc<Node>), new: (&Union, &Arc<Node>)) -> UnionResult<bool> {
    let (old, new) = (old.0.content(old.1)?, new.0.content(new.1)?);
    let (mut one, mut other) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut offset = 0;
    loop {
        let (read, beside) = (old.read_at(&mut one, offset)?, new.read_at(&mut other, offset)?);
        if one[..read] != other[..beside] {
            return Ok(false);
        }
        if read < BLOCK {
            return Ok(true);
        }
        offset += read as u64;
    }
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

fn xattrs(union: &Union, node: &Arc<Node>) -> UnionResult<Xattrs> {
    let mut all = Vec::new();
    for name in union.listxattr(node)?.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        all.push((name.to_vec(), union.getxattr(node, name)?));
    }
    all.sort();
    Ok(all)
}

fn names(
    union: Option<&Union>,
    node: &Option<Arc<Node>>,
    path: &[u8],
) -> Result<BTreeSet<Vec<u8>>, LayerError> {
    let mut names = BTreeSet::new();
    if let (Some(union), Some(node)) = (union, node) {
        let each = |entry: crate::union::view::readdir::DirEntry| {
            names.insert(entry.name.into_vec());
            true
        };
        union.readdir(node, 0, each).map_err(of_union(path))?;
    }
    Ok(names)
}

fn lookup(
    union: Option<&Union>,
    parent: &Option<Arc<Node>>,
    name: &[u8],
    path: &[u8],
) -> Result<Option<(Arc<Node>, Attr)>, LayerError> {
    match (union, parent) {
        (Some(union), Some(parent)) => union.lookup(parent, name).map_err(of_union(path)),
        _ => Ok(None),
    }
}

/// Gives back what a lookup counted; the root isn't looked up.
fn forget(union: Option<&Union>, node: &Option<Arc<Node>>) {
    if let (Some(union), Some(node)) = (union, node)
        && !Arc::ptr_eq(union.root(), node)
    {
        union.forget(node.ino, 1);
    }
}
