//! The union that takes over from another: over a new upper, what the record says below it, and the same lowers as before.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Access, Mode, OFlags, openat};

use crate::sys::object::At;
use crate::union::change::upper::Upper;
use crate::union::frozen::below::{self, Below};
use crate::union::frozen::held::{GONE, Held, NotExchanged};
use crate::union::frozen::settle;
use crate::union::frozen::site::Layers;
use crate::union::frozen::unfit::SnapshotError;
use crate::union::live::Unchanged;
use crate::union::nodes::skeleton::Skeleton;
use crate::union::options::FsOptions;
use crate::union::stack::directory::Layer;
use crate::union::stack::layer::{Lower, Stack, TreeLayer, Veils, unchanged_by_reading};
use crate::union::stack::lock::DirLock;
use crate::union::stack::stack_error::{Role, StackError};
use crate::union::{Limits, OpenLayer, Union};

/// How long it is tried to read the layers again once the upper was exchanged.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(200);

/// How a union is made of its layers.
#[derive(Debug, Clone)]
pub struct How {
    /// How much memory and how many descriptors it may keep.
    pub limits: Limits,
    /// What its user chose.
    pub options: FsOptions,
}

/// A new upper that is about to be put in its place, and locked already.
pub(super) struct Successor {
    layer: Layer,
    lock: DirLock,
}

fn upper<'u>(union: &'u Union, path: &Path) -> Result<&'u Upper, SnapshotError> {
    union.upper().map_err(|_| SnapshotError::refused(path, "the mount has no upper"))
}

/// Returns the upper of a union, to be exchanged; with its workdir.
pub(super) fn held(union: &Union, path: &Path) -> Result<Held, StackError> {
    let own = &upper(union, path)?.layer;
    let layer = Layer { path: path.to_owned(), ..same(&own.layer)? };
    Ok(Held::of_mount(layer, own.work.clone())?)
}

/// Returns the same layer, by a descriptor of its own.
pub(super) fn same(layer: &Layer) -> Result<Layer, SnapshotError> {
    let root = rustix::io::fcntl_dupfd_cloexec(&layer.root, 3);
    let root = root.map_err(SnapshotError::io("hold it", &layer.path))?;
    let (path, place) = (layer.path.clone(), layer.place.clone());
    let Layer { dev, ino, belief, sealed, .. } = *layer;
    Ok(Layer { path, place, root, dev, ino, belief, sealed })
}

impl Successor {
    /// Locks a new upper, before anybody can find it in the place of the one before. `before`: that one.
    pub(super) fn new(before: &Layer, new: BorrowedFd<'_>) -> Result<Successor, StackError> {
        let path = &before.path;
        let lock = DirLock::acquire(new, Role::Upper, path, Duration::ZERO)?;
        let root = openat(new, c".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let root = root.map_err(SnapshotError::io("open the new upper", path))?;
        let stat = At::Fd(root.as_fd()).stat().map_err(SnapshotError::io("look at the new upper", path))?;
        let layer = Layer {
            path: path.clone(),
            place: before.place.clone(),
            root,
            dev: stat.dev,
            ino: stat.ino,
            belief: before.belief,
            sealed: false,
        };
        Ok(Successor { layer, lock })
    }

    /// Opens the layers below it, by what is open already where it can be. Nothing is changed by it.
    pub(super) fn stack(&self, union: &Union, below: &Below) -> Result<Stack, StackError> {
        let path = &self.layer.path;
        let before = &upper(union, path)?.layer;
        let (own, rest) = union.layers.split_at(1 + union.frozen);
        let mut lowers = frozen(union, own, below)?;
        for lower in rest {
            lowers.push(again(union, lower)?);
        }
        let (layer, lock) = (same(&self.layer)?, self.lock.clone());
        let upper = before.succeeded_by(layer, lock, !below.layers.is_empty())?;
        let (data_only, frozen) = (union.data_only, below.layers.len());
        let veils = Veils::default();
        let stack = Stack { lowers, data_only, frozen, upper: Some(upper), belief: union.belief, veils };
        Ok(stack.believing(union.belief))
    }
}

/// Opens frozen layers. `own`: the upper, and those on which it has lain until now.
fn frozen(union: &Union, own: &[OpenLayer], below: &Below) -> Result<Vec<Lower>, StackError> {
    let (mut all, mut opened) = (Vec::new(), Vec::new());
    for (at, path) in below.layers.iter().enumerate() {
        let role = Role::Lower(at + 1);
        let layer = Layer::open(role, path)?;
        // The upper itself is reached in another way when it is a lower.
        match own.iter().skip(1).find(|known| known.root.id == (layer.dev, layer.ino)) {
            Some(known) => all.push(Some(again(union, known)?)),
            None => {
                layer.may(role, Access::READ_OK | Access::EXEC_OK, "read and search permission on it")?;
                opened.push(Lower::Directory(layer));
                all.push(None);
            }
        }
    }
    let mut opened = unchanged_by_reading(opened).into_iter();
    Ok(all.into_iter().filter_map(|known| known.or_else(|| opened.next())).collect())
}

/// Returns a lower as it was opened.
pub(super) fn again(union: &Union, lower: &OpenLayer) -> Result<Lower, StackError> {
    let (path, root) = (lower.path.clone(), &lower.root);
    if let Some(tree) = root.tree() {
        return Ok(Lower::Tree(TreeLayer { path, tree: tree.clone(), belief: root.belief }));
    }
    let cannot = |errno| SnapshotError::io("hold it", &lower.path)(errno);
    let fd = union.fds.host(root).map_err(|error| cannot(error.errno()))?;
    let held = rustix::io::fcntl_dupfd_cloexec(&fd, 3).map_err(cannot)?;
    Ok(Lower::Directory(Layer {
        path,
        place: lower.place.clone(),
        root: held,
        dev: root.id.0,
        ino: root.id.1,
        belief: root.belief,
        sealed: root.is_sealed(),
    }))
}

/// Checks that a new upper lies on the one that it was exchanged for, unless that is thrown away: it was opened by its path, and
/// somebody may have put another directory there.
fn is_on_what_was_frozen(stack: &Stack, held: &Held, with: &str) -> Result<(), SnapshotError> {
    let own = (held.upper.dev, held.upper.ino);
    let is_it = |lower: &Lower| matches!(lower, Lower::Directory(layer) if (layer.dev, layer.ino) == own);
    if with == GONE || stack.lowers.first().is_some_and(is_it) {
        return Ok(());
    }
    let why = "another directory is in the place where it was frozen; who else changes what is beside it?";
    Err(SnapshotError::refused(&held.upper.path, why))
}

/// Exchanges the upper for the new one that lies under that name in the directory with frozen layers, and returns the union over
/// it, which takes over from the one before. Nobody may ask that one meanwhile.
pub(super) fn exchange(
    union: &Union,
    (held, layers, with): (&Held, &Layers, &str),
    successor: &Successor,
    (how, skeleton): (&How, Skeleton),
) -> Result<Union, Unchanged<StackError>> {
    let new = successor.layer.root.as_fd();
    held.exchange(layers, with).map_err(|why| match why {
        NotExchanged::AsBefore(error) => Unchanged::AsBefore(error.into()),
        NotExchanged::Lost(error) => Unchanged::Lost(error.into()),
    })?;
    let open = |below: &Below| {
        let stack = successor.stack(union, below)?;
        is_on_what_was_frozen(&stack, held, with)?;
        Ok::<_, StackError>(stack)
    };
    let opened = || {
        let below = below::of(new, &held.upper.path)?.ok_or_else(|| {
            SnapshotError::damaged(&held.upper.path, "the new upper has lost its mark of what it lies on")
        })?;
        Ok((open(&below)?, below))
    };
    let (stack, below) = opened().map_err(|error: StackError| match held.take_back(layers, with) {
        Ok(()) => Unchanged::AsBefore(error),
        Err(back) => Unchanged::Lost(held.not_put_back(layers, with, &error.to_string(), back).into()),
    })?;
    let since = Instant::now();
    let mut stack = Some(stack);
    let mut make = || {
        let stack = stack.take().map_or_else(|| open(&below), Ok)?;
        settle::index(&held.work, new, &below)?;
        Union::with_options(stack, how.limits, &how.options)
            .map_err(|error| StackError::from(SnapshotError::refused(&held.upper.path, error.to_string())))
    };
    let mut next = loop {
        match make() {
            Ok(next) => break next,
            Err(error) if since.elapsed() < PATIENCE => {
                log::warn!("the layers can't be read again yet: {error}");
                std::thread::sleep(RETRY);
            }
            Err(error) => return Err(Unchanged::Lost(error)),
        }
    };
    next.take_over(skeleton);
    if let (Some(next), Some(before)) = (&next.upper, &union.upper) {
        next.take_over(before);
    }
    Ok(next)
}
