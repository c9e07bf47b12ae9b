//! An upper over its lowers, to be compared: nothing is mounted, locked or made.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::image::layer::merged::{find, of_fd, of_union, open_union};
use crate::image::layer::{Change, ChangeKind, LayerError, changes};
use crate::sys::dir::open_named;
use crate::sys::object::{Kind, Stat};
use crate::union::Union;
use crate::union::nodes::node::Node;
use crate::union::stack::layer::LowerSource;

/// An upper and its lowers, opened.
#[derive(Debug)]
pub struct Stacked {
    upper: OwnedFd,
    lowers: Vec<LowerSource>,
    /// Those of them that are directories.
    _open: Vec<OwnedFd>,
}

/// A layer that can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot be opened as a layer: {source}", path.display())]
pub struct CannotOpen {
    path: PathBuf,
    source: std::io::Error,
}

/// Two trees that can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum SidesError {
    /// One of their layers.
    #[error(transparent)]
    Layer(#[from] CannotOpen),
    /// What a layer holds.
    #[error(transparent)]
    Read(#[from] LayerError),
}

/// Opens a directory to read.
///
/// # Errors
/// Those of open(2), and `ENOTDIR` for what is none.
pub fn open_layer(path: &Path) -> Result<OwnedFd, CannotOpen> {
    open_named(path).map_err(|errno| CannotOpen { path: path.to_owned(), source: errno.into() })
}

/// Opens the directories among layers, which are then known by what was opened.
fn opened(layers: Vec<LowerSource>) -> Result<(Vec<LowerSource>, Vec<OwnedFd>), CannotOpen> {
    let mut open = Vec::new();
    let each = layers.into_iter().map(|layer| match layer {
        LowerSource::Directory(path) => {
            let dir = open_layer(&path)?;
            let layer = of_fd(dir.as_fd());
            open.push(dir);
            Ok(layer)
        }
        tree => Ok(tree),
    });
    Ok((each.collect::<Result<_, _>>()?, open))
}

impl Stacked {
    /// Opens an upper and its lowers, the topmost first.
    ///
    /// # Errors
    /// The one that can't be opened.
    pub fn open(upper: &Path, lowers: &[PathBuf]) -> Result<Stacked, CannotOpen> {
        Stacked::of(upper, LowerSource::directories(lowers.iter().cloned()))
    }

    /// Does the same with lowers that may be trees.
    ///
    /// # Errors
    /// As those of [`Stacked::open`].
    pub fn of(upper: &Path, lowers: Vec<LowerSource>) -> Result<Stacked, CannotOpen> {
        let (lowers, open) = opened(lowers)?;
        Ok(Stacked { upper: open_layer(upper)?, lowers, _open: open })
    }

    /// Returns the upper.
    pub fn upper(&self) -> BorrowedFd<'_> {
        self.upper.as_fd()
    }

    /// Finds the changed paths, sorted.
    ///
    /// # Errors
    /// Those of reading the layers, with the path.
    pub fn changes(&self) -> Result<Vec<Change>, LayerError> {
        changes(self.upper.as_fd(), &self.lowers)
    }

    /// Opens the merged views with and without the upper, to read both versions of what changed.
    ///
    /// # Errors
    /// Those of opening the layers.
    pub fn sides(&self) -> Result<Sides, LayerError> {
        let lowers = || self.lowers.iter().cloned();
        let before = if self.lowers.is_empty() { None } else { Some(open_union(lowers())?) };
        let after = open_union(std::iter::once(of_fd(self.upper.as_fd())).chain(lowers()))?;
        Ok(Sides { before, after: Some(after) })
    }
}

/// Two merged trees: a stack before and after what its upper changes, or any two. Without layers there is none.
#[derive(Debug)]
pub struct Sides {
    before: Option<Union>,
    after: Option<Union>,
}

/// Returns the trees before and after.
pub(super) fn of_both(sides: &Sides) -> (Option<&Union>, Option<&Union>) {
    (sides.before.as_ref(), sides.after.as_ref())
}

/// One version of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Its attributes.
    pub stat: Stat,
    /// What is in it: the data of a file, the target of a link. `None`: it has none, or more than is read.
    pub content: Option<Vec<u8>>,
}

/// A path with its versions before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// The path, with a leading `/`.
    pub path: Vec<u8>,
    /// Before; `None`: it did not exist.
    pub before: Option<Version>,
    /// After; `None`: it is gone.
    pub after: Option<Version>,
}

/// How much of a file is read to be compared.
const LARGEST: u64 = 32 << 20;

impl Sides {
    /// Opens the trees of two lists of layers, each with the topmost first.
    ///
    /// # Errors
    /// Those of opening the layers.
    pub fn of(before: Vec<LowerSource>, after: Vec<LowerSource>) -> Result<Sides, SidesError> {
        let open = |layers: Vec<LowerSource>| -> Result<Option<Union>, SidesError> {
            let (layers, _open) = opened(layers)?;
            match layers.is_empty() {
                true => Ok(None),
                false => Ok(Some(open_union(layers)?)),
            }
        };
        Ok(Sides { before: open(before)?, after: open(after)? })
    }

    /// Tells the type that a change leads to, or of what a deletion takes away.
    ///
    /// # Errors
    /// Those of reading the layers.
    pub fn kind(&self, change: &Change) -> Result<Option<Kind>, LayerError> {
        let side = if change.kind == ChangeKind::Deleted { &self.before } else { &self.after };
        let Some(union) = side.as_ref() else { return Ok(None) };
        let Some(node) = find(union, &change.path)? else { return Ok(None) };
        let kind = node.kind;
        forget(union, &node);
        Ok(Some(kind))
    }

    /// Hands both versions of what a change speaks of, and of all that a directory took with it, to `each`.
    ///
    /// # Errors
    /// Those of reading the layers, and of `each`.
    pub fn compare<E: From<LayerError>>(
        &self,
        change: &Change,
        mut each: impl FnMut(Compared) -> Result<(), E>,
    ) -> Result<(), E> {
        let of = |side: &Option<Union>| match side {
            Some(union) => version(union, &change.path),
            None => Ok(None),
        };
        let before = of(&self.before)?;
        let after = match change.kind {
            ChangeKind::Deleted => None,
            ChangeKind::Added | ChangeKind::Changed => of(&self.after)?,
        };
        let is_dir = |version: &Option<Version>| {
            version.as_ref().is_some_and(|version| version.stat.kind() == Kind::Directory)
        };
        let lost = if is_dir(&before) && !is_dir(&after) { self.before.as_ref() } else { None };
        each(Compared { path: change.path.clone(), before, after })?;
        let Some(union) = lost else { return Ok(()) };
        // A list, not recursion: what is deleted may be as deep as it likes.
        let mut todo = vec![change.path.clone()];
        while let Some(dir) = todo.pop() {
            let mut names = names(union, &dir)?;
            names.sort();
            for name in names.into_iter().rev() {
                let path = [&dir[..], b"/", &name].concat();
                let before = version(union, &path)?;
                if is_dir(&before) {
                    todo.push(path.clone());
                }
                each(Compared { path, before, after: None })?;
            }
        }
        Ok(())
    }
}

fn forget(union: &Union, node: &Arc<Node>) {
    // The root isn't looked up.
    if !Arc::ptr_eq(union.root(), node) {
        union.forget(node.ino, 1);
    }
}

fn names(union: &Union, dir: &[u8]) -> Result<Vec<Vec<u8>>, LayerError> {
    let mut names = Vec::new();
    if let Some(node) = find(union, dir)? {
        let listed = union.readdir(&node, 0, |entry| {
            names.push(entry.name.into_vec());
            true
        });
        forget(union, &node);
        listed.map_err(of_union(dir))?;
    }
    Ok(names)
}

fn version(union: &Union, path: &[u8]) -> Result<Option<Version>, LayerError> {
    let Some(node) = find(union, path)? else { return Ok(None) };
    let read = read_version(union, &node);
    forget(union, &node);
    read.map(Some).map_err(of_union(path))
}

fn read_version(union: &Union, node: &Arc<Node>) -> crate::error::Result<Version> {
    let stat = union.getattr(node)?.stat;
    let content = match stat.kind() {
        Kind::Symlink => Some(union.readlink(node)?),
        Kind::File if stat.size <= LARGEST => {
            let mut content = vec![0; stat.size as usize];
            // It may have become shorter meanwhile.
            let filled = union.read(node, 0, &mut content)?;
            content.truncate(filled);
            Some(content)
        }
        _ => None,
    };
    Ok(Version { stat, content })
}
