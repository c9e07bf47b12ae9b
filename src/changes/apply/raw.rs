//! What an upper says by itself: where its directories have their lower part, what it hides, and where copies are from.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::beneath::{find_dir, look};
use super::error::{ApplyError, Result};
use super::step::Brought;
use crate::image::layer::LayerError;
use crate::image::layer::place::{join, open_dir};
use crate::image::layer::write::{leads_to, list};
use crate::sys::object::{At, Kind, Stat};
use crate::sys::{handle, xattr};
use crate::union::escaped_path::EscapedPath;
use crate::union::lookup::belief::Belief;
use crate::union::lookup::marker::{self, Marks, WH_OPAQUE, WH_PREFIX};

/// A directory that was renamed: its lower part lies in the target under another path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Renamed {
    /// Where the upper has it.
    pub to: Vec<u8>,
    /// Where the target has it.
    pub from: Vec<u8>,
}

/// Reads the marks of a directory `name` of the upper's directory `dir`, in every form: AUFS's are entries in it and beside it.
pub(super) fn marks(dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Marks> {
    let failed = || ApplyError::at(path, "read its marks");
    let mut marks = marker::read_marks(At::Name(dir, name), Belief::of_process()).map_err(failed())?;
    if !marks.opaque {
        let inner = open_dir(dir, name).map_err(failed())?;
        let has = |dir, name: &[u8]| look(dir, name, path).map(|found| found.is_some());
        // A rename has left one beside where its redirect leads elsewhere.
        let beside = marks.redirect.is_none() && has(dir, &[WH_PREFIX, name].concat())?;
        marks.opaque = beside || has(inner.as_fd(), WH_OPAQUE)?;
    }
    Ok(marks)
}

/// Returns the path in the target that a directory's redirect names; `None` without one that leads elsewhere.
///
/// # Errors
/// Where it could lead out of the target, or to nothing that an overlay means: a mount refuses that as well.
fn source(marks: &Marks, path: &[u8], below: Option<&[u8]>) -> Result<Option<Vec<u8>>> {
    let Some(redirect) = marks.redirect.as_deref() else { return Ok(None) };
    let absolute = redirect.strip_prefix(b"/");
    let is_name = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
    let fits = match absolute {
        Some(from) => from.split(|&byte| byte == b'/').all(is_name),
        None => is_name(redirect) && !redirect.contains(&b'/'),
    };
    if !fits {
        return Err(ApplyError::Refused(format!(
            "{}: has a redirect that is neither a name nor an absolute path",
            EscapedPath::from(path)
        )));
    }
    Ok(match absolute {
        Some(from) => (!leads_to(redirect, path)).then(|| from.to_vec()),
        None => below.map(|dir| join(dir, redirect)).filter(|from| from != path),
    })
}

/// The renamed directories of an upper.
#[derive(Debug, Default)]
pub(super) struct Renames {
    /// Those whose lower part comes to another place of the target, and is seen in no other.
    pub moves: Vec<Renamed>,
    /// Those whose lower part has come there before.
    pub settled: Vec<Vec<u8>>,
}

/// Finds the directories of the upper that were renamed. `before`: what an earlier call has brought to its place.
pub(super) fn renamed(upper: BorrowedFd<'_>, target: BorrowedFd<'_>, before: &[Brought]) -> Result<Renames> {
    let mut renames = Renames::default();
    let mut found: Vec<Renamed> = Vec::new();
    // The path in the upper, and where its lower part is.
    let mut todo = vec![(Vec::new(), Some(Vec::new()))];
    while let Some((path, below)) = todo.pop() {
        let dir = open_dir(upper, &path).map_err(LayerError::os(&path, "open it"))?;
        for name in list(dir.as_fd(), &path)?.names {
            let at = At::Name(dir.as_fd(), &name);
            let inner = join(&path, &name);
            if at.stat().map_err(LayerError::os(&inner, "stat it"))?.kind() != Kind::Directory {
                continue;
            }
            let marks = marks(dir.as_fd(), &name, &inner)?;
            let natural = below.as_ref().map(|below| join(below, &name));
            let from = if marks.opaque { None } else { source(&marks, &inner, below.as_deref())? };
            let below = match from {
                _ if marks.opaque => None,
                Some(from) if is_settled(target, &from, &inner, before)? => {
                    renames.settled.push(inner.clone());
                    Some(inner.clone())
                }
                Some(from) => {
                    found.push(Renamed { to: inner.clone(), from: from.clone() });
                    Some(from)
                }
                None => match natural {
                    Some(below) if find_dir(target, &below)?.is_some() => Some(below),
                    _ => None,
                },
            };
            todo.push((inner, below));
        }
    }
    for one in found {
        // What is shown under several names is copied.
        let again = renames.moves.iter().any(|other| other.from == one.from);
        if !again && hides(upper, &one.from, |_| false)? {
            renames.moves.push(one);
        }
    }
    Ok(renames)
}

/// Returns whether the lower part of a renamed directory is where it belongs.
fn is_settled(target: BorrowedFd<'_>, from: &[u8], to: &[u8], before: &[Brought]) -> Result<bool> {
    let there = find_dir(target, to)?;
    let stat =
        there.map(|dir| At::Fd(dir.as_fd()).stat()).transpose().map_err(ApplyError::at(to, "look at it"))?;
    let brought = |one: &&Brought| one.from.0 == from && one.to.0 == to;
    if let (Some(stat), Some(brought)) = (&stat, before.iter().find(brought))
        && brought.seen.is_same(stat)
    {
        return Ok(true);
    }
    match (find_dir(target, from)?, stat) {
        (Some(_), _) => Ok(false),
        (None, Some(_)) => Ok(true),
        (None, None) => Err(ApplyError::Refused(format!(
            "{}: is the directory {} renamed, which the target doesn't have; are these the changes of another directory?",
            EscapedPath::from(to),
            EscapedPath::from(from)
        ))),
    }
}

/// Returns whether the upper hides what the target has under that path, so that it is seen there no more. `moved`: the path of a
/// directory that brings its lower part with it.
pub(super) fn hides(upper: BorrowedFd<'_>, path: &[u8], moved: impl Fn(&[u8]) -> bool) -> Result<bool> {
    let mut done = Vec::new();
    for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
        let dir = open_dir(upper, &done).map_err(LayerError::os(&done, "open it"))?;
        let inner = join(&done, name);
        let at = At::Name(dir.as_fd(), name);
        match at.stat() {
            Ok(stat) if stat.kind() != Kind::Directory => return Ok(true),
            Ok(_) => {}
            Err(Errno::NOENT | Errno::NAMETOOLONG) => {
                let marker = [WH_PREFIX, name].concat();
                return Ok(look(dir.as_fd(), &marker, &inner)?.is_some());
            }
            Err(errno) => return Err(LayerError::os(&inner, "stat it")(errno).into()),
        }
        let marks = marks(dir.as_fd(), name, &inner)?;
        let elsewhere = |from: Vec<u8>| !leads_to(&from, &inner) && !moved(&inner);
        if marks.opaque || marks.redirect.is_some_and(elsewhere) {
            return Ok(true);
        }
        done = inner;
    }
    Ok(false)
}

/// Returns whether the upper's file was copied up from that object. `None`: it doesn't say where it is from.
pub(super) fn is_copy_of(copy: At<'_>, original: At<'_>, stat: &Stat, path: &[u8]) -> Result<Option<bool>> {
    let mark = |name: &str| {
        let name = Belief::of_process().namespace.name(name);
        xattr::get(copy, name.as_bytes()).map_err(LayerError::os(path, "read where it is from"))
    };
    if let Some(own) = mark("unionmount.origin")? {
        let ino = own.rsplit(|&byte| byte == b':').next().and_then(|hex| std::str::from_utf8(hex).ok());
        return Ok(Some(ino.and_then(|hex| u64::from_str_radix(hex, 16).ok()) == Some(stat.ino)));
    }
    match mark("origin")? {
        // The kernel's form ends in the file's handle.
        Some(kernel) if !kernel.is_empty() => {
            let handle = handle::of(original).map_err(ApplyError::at(path, "ask for its handle"))?;
            Ok(Some(handle.is_some_and(|handle| kernel.ends_with(&handle.id))))
        }
        _ => Ok(None),
    }
}
