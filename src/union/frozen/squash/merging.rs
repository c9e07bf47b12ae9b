//! Builds one layer of several: of links of their files and whiteouts, and new directories with the marks that say where the search
//! goes on below.

#![allow(clippy::disallowed_methods, reason = "the directories are its own")]

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, linkat, mkdirat, openat};
use rustix::io::Errno;

use crate::error::FsError;
use crate::sys::dir::open_beneath;
use crate::sys::object::{At, Kind};
use crate::union::Union;
use crate::union::change::failpoint::{self, Failpoint};
use crate::union::change::redirect::LONGEST_REDIRECT;
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::mark;
use crate::union::frozen::root;
use crate::union::frozen::squash::way::{Shown, Way, look};
use crate::union::frozen::unfit::{Result, SnapshotError};
use crate::union::lookup::found::RealDirs;
use crate::union::lookup::marker::{AufsName, Marks, aufs_name, read_marks};
use crate::union::lookup::private::{Namespace, overlay_mark};
use crate::union::lookup::realdir::{LayerIndex, RealDir};
use crate::union::nodes::generation::Generation;
use crate::union::stack::access::LayerAt;
use crate::union::stack::layer::XattrChoice;

/// A directory that is being filled.
struct Frame {
    /// Its parts in the layers, the topmost first.
    dirs: RealDirs,
    made: OwnedFd,
    /// Where it is in the new layer, from its root.
    path: PathBuf,
    /// Where the search goes on below it.
    way: Way,
    /// Whether that is told by what is above it.
    is_told: bool,
    /// What is left to be put in.
    names: std::vec::IntoIter<Vec<u8>>,
    /// The part from which was linked last.
    source: Option<(LayerIndex, OwnedFd)>,
    has_xattr_whiteouts: bool,
}

struct Merging<'a> {
    union: &'a Union,
    /// The layers, as this process sees them: what the union has open are mounts of its own, out of which nothing can be linked.
    roots: &'a [OwnedFd],
    /// Where the new layer lies.
    at: &'a Path,
    xattr: XattrChoice,
    /// The files with several names that are in it, as the hardlink index keeps them.
    linked: BTreeSet<String>,
    /// The same by layer and number: how many of their names are in it, and where one is.
    names: HashMap<(LayerIndex, u64), (u64, PathBuf)>,
}

/// Fills the directory `made`, at a path, with what the layers of a union show together: all but the last of them, which is empty. Returns
/// the files with several names that are in it.
///
/// # Errors
/// When a file's data lie in a layer below, and those of the system. Then some of it is there.
pub(super) fn merge(
    (union, roots): (&Union, &[OwnedFd]),
    made: BorrowedFd<'_>,
    at: &Path,
    xattr: XattrChoice,
) -> Result<BTreeSet<String>> {
    let mut merging = Merging { union, roots, at, xattr, linked: BTreeSet::new(), names: HashMap::new() };
    let dirs: RealDirs = union.merged_layers().iter().map(|layer| layer.root.clone()).collect();
    let made = openat(made, c".", DIR, Mode::empty()).map_err(SnapshotError::io("open it", at))?;
    let mut frames = vec![merging.frame(dirs, made, PathBuf::new(), (Way::At(Vec::new()), true))?];
    while let Some(frame) = frames.last_mut() {
        match frame.names.next() {
            Some(name) => {
                let below = merging.entry(frame, &name)?;
                frames.extend(below);
            }
            None => {
                if let Some(frame) = frames.pop() {
                    merging.finish(&frame)?;
                }
            }
        }
    }
    merging.all_names_are_there()?;
    Ok(merging.linked)
}

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Merging<'_> {
    fn frame(
        &self,
        dirs: RealDirs,
        made: OwnedFd,
        path: PathBuf,
        (way, is_told): (Way, bool),
    ) -> Result<Frame> {
        let mut names = BTreeSet::new();
        for dir in &dirs {
            let opened = self.union.fds.get(dir).map_err(self.failed("open", &path))?;
            let listed = opened.list::<FsError>(|entry| {
                match aufs_name(entry.name) {
                    AufsName::Plain => drop(names.insert(entry.name.to_vec())),
                    AufsName::Whiteout(name) => drop(names.insert(name.to_vec())),
                    // Others are shown to nobody.
                    AufsName::Opaque | AufsName::Meta | AufsName::Malformed => {}
                }
                Ok(())
            });
            listed.map_err(self.failed("list", &path))?;
        }
        let names = names.into_iter().collect::<Vec<_>>().into_iter();
        Ok(Frame { dirs, made, path, way, is_told, names, source: None, has_xattr_whiteouts: false })
    }

    /// Puts one entry into a directory. Returns it, if it is a directory that is to be filled.
    fn entry(&mut self, frame: &mut Frame, name: &[u8]) -> Result<Option<Frame>> {
        let path = frame.path.join(OsStr::from_bytes(name));
        let found = look(self.union, &frame.dirs, name, &frame.way);
        let (shown, way) = found.map_err(self.failed("look at", &path))?;
        match shown {
            Shown::Nothing => Ok(None),
            // Below there is nothing to be hidden.
            Shown::Whiteout { .. } if frame.way == Way::End => Ok(None),
            Shown::Whiteout { dir, name: own, by_xattr } => {
                frame.has_xattr_whiteouts |= by_xattr;
                self.link(frame, (&dir, &own), &own, &path)?;
                Ok(None)
            }
            Shown::Leaf { dir, name: own } => {
                self.has_its_data((&dir, &own), &path)?;
                self.link(frame, (&dir, &own), name, &path)?;
                Ok(None)
            }
            Shown::Directory(dirs) => {
                let (at, made) = (self.at.join(&path), frame.made.as_fd());
                mkdirat(made, name, Mode::RWXU).map_err(SnapshotError::io("make it", &at))?;
                failpoint::reached(Failpoint::Changed);
                let made =
                    openat(made, name, DIR, Mode::empty()).map_err(SnapshotError::io("open it", &at))?;
                let is_told = way == frame.way.join(name);
                Ok(Some(self.frame(dirs, made, path, (way, is_told))?))
            }
        }
    }

    /// Refuses a file whose data are another layer's.
    fn has_its_data(&mut self, (dir, name): (&Arc<RealDir>, &[u8]), path: &Path) -> Result<()> {
        let opened = self.union.fds.get(dir).map_err(self.failed("open", path))?;
        let at = opened.entry(name);
        let mut stat = at.stat().map_err(self.failed("look at", path))?;
        if self.believed(at, dir, path)?.metacopy && stat.kind() == Kind::File {
            let why = format!(
                "{} has its data in a layer below (metacopy, lazy), and such files can't be merged",
                EscapedPath::from(path)
            );
            return Err(SnapshotError::refused(self.of(dir), why));
        }
        if stat.nlink > 1 {
            self.names.entry((dir.layer, stat.ino)).or_insert_with(|| (0, path.to_owned())).0 += 1;
            let id = self.union.lower_leaf_id(dir, name, &mut stat);
            self.linked.extend(id.to_text('-', &self.union.regions));
        }
        Ok(())
    }

    fn link(
        &self,
        frame: &mut Frame,
        (dir, name): (&Arc<RealDir>, &[u8]),
        as_name: &[u8],
        path: &Path,
    ) -> Result<()> {
        if frame.source.as_ref().is_none_or(|(layer, _)| *layer != dir.layer) {
            frame.source = Some((dir.layer, self.source(dir, path)?));
        }
        let Some((_, from)) = &frame.source else { return Ok(()) };
        let linked = linkat(from, name, &frame.made, as_name, AtFlags::empty());
        failpoint::reached(Failpoint::Changed);
        linked.map_err(|errno| match errno {
            Errno::MLINK => SnapshotError::refused(
                self.of(dir).join(path),
                "has as many names as its filesystem allows, and can't have one more for the merged layer",
            ),
            errno => SnapshotError::io("link into the merged layer", self.of(dir).join(path))(errno),
        })
    }

    /// Opens a part out of which something is linked.
    fn source(&self, dir: &RealDir, path: &Path) -> Result<OwnedFd> {
        let gone = || SnapshotError::damaged(self.of(dir).join(path), "was moved while it was merged");
        let root = self.roots.get(usize::from(dir.layer)).ok_or_else(gone)?;
        let below = dir.path();
        let opened = open_beneath(root.as_fd(), if below.is_empty() { b"." } else { &below });
        let opened = opened.map_err(SnapshotError::io("open what holds it", self.of(dir).join(path)))?;
        let stat = At::Fd(opened.as_fd()).stat().map_err(self.failed("look at what holds", path))?;
        if (stat.dev, stat.ino) == dir.id { Ok(opened) } else { Err(gone()) }
    }

    /// Gives a directory that is filled its attributes, and the marks that say where the search goes on.
    fn finish(&self, frame: &Frame) -> Result<()> {
        let (made, at) = (frame.made.as_fd(), self.at.join(&frame.path));
        let io = |what| SnapshotError::io(what, &at);
        let mark = |mark: &str, value: &[u8]| match self.xattr {
            XattrChoice::User => mark::set_in(Namespace::User, made, mark, value),
            _ => mark::set(made, mark, value),
        };
        match &frame.way {
            Way::End if !frame.is_told => mark("opaque", b"y").map_err(io("mark it opaque"))?,
            Way::At(path) if !frame.is_told => {
                if path.len() > LONGEST_REDIRECT {
                    return Err(SnapshotError::refused(
                        &at,
                        "was renamed, and its first path is too long to be noted",
                    ));
                }
                mark("redirect", path).map_err(io("mark where it was"))?;
            }
            _ if frame.has_xattr_whiteouts => {
                mark("opaque", b"x").map_err(io("mark that it has whiteouts"))?
            }
            _ => {}
        }
        // The root has its own from elsewhere.
        let is_root = frame.path.as_os_str().is_empty();
        if let Some(top) = frame.dirs.first().filter(|_| !is_root) {
            let top = self.union.fds.host(top).map_err(self.failed("open", &frame.path))?;
            root::be_like_but(made, top.as_fd(), is_taken_over).map_err(io("give it its attributes"))?;
        }
        for dir in &frame.dirs {
            let part = self.union.fds.host(dir).map_err(self.failed("open", &frame.path))?;
            self.believed(At::Fd(part.as_fd()), dir, &frame.path)?;
            let names = crate::sys::xattr::list(At::Fd(part.as_fd()))
                .map_err(io("list the marks of what becomes"))?;
            if names.iter().any(|name| overlay_mark(name) == Some(b"impure")) {
                mark("impure", b"y").map_err(io("mark that it has copies"))?;
            }
        }
        failpoint::reached(Failpoint::Changed);
        Ok(())
    }

    /// Reads the marks of what is merged, and refuses those that are there and aren't believed: whoever mounts with the other kind sees
    /// something else, which would be gone for good.
    fn believed<'b>(&self, at: impl Into<LayerAt<'b>>, dir: &RealDir, path: &Path) -> Result<Marks> {
        let marks = read_marks(at, dir.belief).map_err(self.failed("read the marks of", path))?;
        let Some(mark) = &marks.unbelieved else { return Ok(marks) };
        let why = format!(
            "has the mark {}, which isn't believed now; squash it as it is mounted: with --userxattr, or without",
            EscapedPath::from(mark.as_slice())
        );
        Err(SnapshotError::refused(self.of(dir).join(path), why))
    }

    /// Refuses a file of which a name is left out, for a layer above takes it away, and another isn't: how many of its names are hidden is
    /// counted in what lies above, which would be wrong then.
    fn all_names_are_there(&self) -> Result<()> {
        if self.names.is_empty() {
            return Ok(());
        }
        let mut counted: HashMap<(LayerIndex, u64), u64> = HashMap::new();
        let merged = self.union.merged_layers().iter().take(self.roots.len());
        let mut dirs: Vec<Arc<RealDir>> = merged.map(|layer| layer.root.clone()).collect();
        while let Some(dir) = dirs.pop() {
            let way = PathBuf::from(OsString::from_vec(dir.path().to_vec()));
            let opened = self.union.fds.get(&dir).map_err(self.failed("open", &way))?;
            let mut names = Vec::new();
            let listed = opened.list::<FsError>(|entry| {
                names.push(entry.name.to_vec());
                Ok(())
            });
            listed.map_err(self.failed("list", &way))?;
            for name in names {
                let stat = opened.entry(&name).stat().map_err(self.failed("look into", &way))?;
                if stat.kind() == Kind::Directory {
                    dirs.push(RealDir::child(&dir, &name, &stat, Generation::UNKNOWN));
                } else if stat.nlink > 1 {
                    *counted.entry((dir.layer, stat.ino)).or_default() += 1;
                }
            }
        }
        for (file, (there, path)) in &self.names {
            if counted.get(file).is_some_and(|all| all > there) {
                let layer = self.union.merged_layers().get(usize::from(file.0));
                let at = layer.map_or_else(|| path.clone(), |layer| layer.path.join(path));
                let why = "has another name, which a layer above takes away, and such a file can't be merged with that layer; \
                           choose a range without one of the two";
                return Err(SnapshotError::refused(at, why));
            }
        }
        Ok(())
    }

    /// Returns where the layer of a directory lies.
    fn of(&self, dir: &RealDir) -> PathBuf {
        self.union
            .merged_layers()
            .get(usize::from(dir.layer))
            .map_or_else(PathBuf::new, |layer| layer.path.clone())
    }

    fn failed<E: std::fmt::Display>(
        &self,
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> SnapshotError {
        let path = self.at.join(path);
        move |error| SnapshotError::refused(path, format!("cannot {what} what becomes it: {error}"))
    }
}

/// Tells whether an attribute of the topmost part is that of the whole. What says where the search goes on isn't.
fn is_taken_over(name: &[u8]) -> bool {
    match overlay_mark(name) {
        Some(mark) => !matches!(mark, b"opaque" | b"redirect"),
        None => name != b"user.fuseoverlayfs.opaque",
    }
}
