//! Lookup: which layer's entry a name of a directory stands for.
//!
//! The search goes through the directory's layers from the top down and ends at the first of:
//!
//! - a whiteout: the name ends here, deleted;
//! - something that is not a directory: it is the entry, or, if directories were found above, it hides what is below;
//! - a directory that is opaque: what lies below doesn't count.
//!
//! Directories found on the way are merged. A directory that was renamed carries a *redirect*: below it, another name
//! or another path is asked for (kernel: Documentation/filesystems/overlayfs.rst, "Renaming directories").

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use rustix::io::Errno;
use smallvec::SmallVec;

use crate::error::{FsError, Result};
use crate::sys::object::{At, Kind, Stat};
use crate::union::Union;
use crate::union::lookup::belief::{self, Reach};
use crate::union::lookup::index::{Indexes, LowerIndex, UpperIndex};
use crate::union::lookup::marker::{self, Marks, WH_OPAQUE, WH_PREFIX, WhiteoutMark};
use crate::union::lookup::realdir::{LayerIndex, RealDir, Veil};
use crate::union::lookup::veil::Sight;
use crate::union::nodes::generation::{Generation, Sighting};
use crate::union::nodes::node::{DirPart, Node, RealId};
use crate::union::options::RedirectDir;

/// Directories whose `st_size` adds up to more are not indexed for a mere lookup.
const INDEX_SIZE: u64 = 128 << 10;
/// After so many names that weren't found, an index pays even for a directory of one layer.
const INDEX_MISSES: u32 = 16;

/// What is asked of a directory, and of a file, that a mark leads to.
const READ_AND_SEARCH: u32 = 5;
const READ: u32 = 4;

/// Real directories, topmost first.
pub type RealDirs = SmallVec<[Arc<RealDir>; 4]>;

/// What a name stands for.
#[derive(Debug)]
pub struct Found {
    /// stat of the topmost object.
    pub stat: Stat,
    /// What tells the topmost object's generation.
    pub seen: Sighting,
    /// The topmost object's layer.
    pub layer: LayerIndex,
    /// Which inode that is.
    pub id: RealId,
    /// What it is.
    pub what: What,
}

/// The two kinds of findings.
#[derive(Debug)]
pub enum What {
    /// Anything but a directory.
    Leaf {
        /// The real directory that holds it.
        dir: Arc<RealDir>,
        /// Where its data are, if not in itself (`overlay.metacopy`).
        data: Option<DataAt>,
    },
    /// A directory: the real ones that are merged, topmost first.
    Directory {
        /// They.
        dirs: RealDirs,
        /// Marked impure in the topmost layer.
        impure: bool,
    },
}

/// What a search met in one layer on its way down.
#[derive(Debug)]
pub(in crate::union) struct Met<'a> {
    /// The real directory that was asked.
    pub dir: &'a Arc<RealDir>,
    /// The name it was asked for; a redirect above may have changed it.
    pub name: &'a [u8],
    /// The directories below, which are asked next unless the search ends here.
    pub rest: &'a [Arc<RealDir>],
    /// What it has under that name.
    pub seen: Seen<'a>,
}

/// What a real directory has under a name, as a search sees it.
#[derive(Debug)]
pub(in crate::union) enum Seen<'a> {
    /// Nothing; the search goes on.
    Nothing,
    /// A whiteout of that form; the search ends.
    Whiteout(WhiteoutMark),
    /// Something that is not a directory; the search ends.
    Leaf { stat: &'a Stat, data: Option<&'a DataAt> },
    /// A directory; the search goes on unless something cuts it off.
    Directory { stat: &'a Stat, marks: &'a Marks, cut: Option<Cut> },
}

/// Why a search ends at a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::union) enum Cut {
    /// It is opaque.
    Opaque,
    /// A whiteout of its name stands beside it.
    Beside,
    /// It is one that shows nothing; see [`super::veil`].
    Veiled,
}

/// Where the data of a file lie that has only its metadata in its own layer.
#[derive(Debug, Clone)]
pub struct DataAt {
    /// The real directory.
    pub dir: Arc<RealDir>,
    /// The name there.
    pub name: Box<[u8]>,
    /// Device and inode number of the file.
    pub id: (u64, u64),
    /// And its generation.
    pub generation: Generation,
}

impl Union {
    /// Searches `name` in real directories, topmost first.
    pub(in crate::union) fn search(&self, dirs: &[Arc<RealDir>], name: &[u8]) -> Result<Option<Found>> {
        self.search_telling(dirs, name, &mut |_| ())
    }

    /// As [`Union::search`], and tells `met` what it meets in each layer that it asks, from the top down.
    pub(in crate::union) fn search_telling(
        &self,
        dirs: &[Arc<RealDir>],
        name: &[u8],
        met: &mut impl FnMut(Met<'_>),
    ) -> Result<Option<Found>> {
        let mut name: Box<[u8]> = name.into();
        let mut top: Option<(Stat, Sighting, LayerIndex, RealId, bool)> = None;
        let mut merged = RealDirs::new();
        // What a redirect that was followed may lead to.
        let mut reach = Reach::All;
        for (depth, dir) in dirs.iter().enumerate() {
            if dir.veil() != Veil::None {
                continue; // it shows nothing
            }
            let fd = self.fds.get(dir)?;
            let named = At::Name(fd.as_fd(), &name);
            let rest = &dirs[depth + 1..];
            let below = !rest.is_empty();
            let mut tell = |seen| met(Met { dir, name: &name, rest, seen });
            // What a mark may lead to is judged by the object that has it, so that must not become another meanwhile.
            let held = if dir.belief.is_guarded() { named.pin().map(Some) } else { Ok(None) };
            let seen = held.map_err(FsError::from).and_then(|held| {
                let at = held.as_ref().map_or(named, |held| At::Fd(held.as_fd()));
                Ok((self.sight(dir, at, &name)?, held))
            });
            let (stat, held) = match seen {
                Ok((Sight::Plain(stat), held)) => (stat, held),
                Ok((Sight::Veiled(stat, stands), _)) => {
                    let child = RealDir::veiled(dir, &name, &stat, stands);
                    if top.is_none() {
                        let of_child = self.fds.get(&child)?;
                        let kept = self.owners.kept(At::Fd(of_child.as_fd()), stat, false)?;
                        top = Some((kept, Sighting::default(), dir.layer, self.dir_id(&child), false));
                    }
                    tell(Seen::Directory { stat: &stat, marks: &Marks::default(), cut: Some(Cut::Veiled) });
                    merged.push(child);
                    break;
                }
                Err(FsError::Absent) => {
                    if below && aufs_whiteout(dir, fd.as_fd(), &name)? {
                        tell(Seen::Whiteout(WhiteoutMark::Aufs));
                        break;
                    }
                    tell(Seen::Nothing);
                    continue;
                }
                Err(e) => return Err(e),
            };
            let at = held.as_ref().map_or(named, |held| At::Fd(held.as_fd()));
            if stat.is_whiteout_device() {
                tell(Seen::Whiteout(WhiteoutMark::Device));
                break;
            }
            if self.is_xattr_whiteout(dir, at, &stat)? {
                tell(Seen::Whiteout(WhiteoutMark::Xattr));
                break;
            }
            if stat.kind() != Kind::Directory {
                if top.is_some() {
                    tell(Seen::Leaf { stat: &stat, data: None });
                    break;
                }
                let data = self.metacopy_data(dirs, depth, &name, at, &stat)?;
                let seen = self.see(at, &stat);
                let upper = self.is_upper(dir.layer);
                // The owner of a link may be noted on the directory that holds it.
                let noted = if stat.kind() == Kind::Symlink { named } else { at };
                let mut kept = self.owners.kept(noted, stat, upper)?;
                let id = match upper {
                    true => self.id_in(dir, &stat),
                    false => self.lower_leaf_id(dir, &name, &mut kept),
                };
                tell(Seen::Leaf { stat: &kept, data: data.as_ref() });
                let what = What::Leaf { dir: dir.clone(), data };
                return Ok(Some(Found { stat: kept, seen, layer: dir.layer, id, what }));
            }
            let seen = self.see(at, &stat);
            let child = self.child_dir(dir, &name, at, (&stat, seen.generation()))?;
            let marks = self.marks_in(dir, at)?;
            self.tell_unbelieved(&marks, dir, &name);
            if !reach.allows(&stat, READ_AND_SEARCH) {
                return Err(self.leads_too_far(dir, &name));
            }
            child.xattr_whiteouts.store(marks.xattr_whiteouts, Ordering::Relaxed);
            child.impure.store(marks.impure, Ordering::Relaxed);
            if top.is_none() {
                let kept = self.owners.kept(at, stat, self.is_upper(dir.layer))?;
                top = Some((kept, seen, dir.layer, self.dir_id(&child), marks.impure));
            }
            let cut = if marks.opaque || below && self.aufs_opaque(&child)? {
                Some(Cut::Opaque)
            // A whiteout beside it hides what has its name below; a redirect leads elsewhere.
            } else if below && marks.redirect.is_none() && aufs_whiteout(dir, fd.as_fd(), &name)? {
                Some(Cut::Beside)
            } else {
                None
            };
            tell(Seen::Directory { stat: &stat, marks: &marks, cut });
            merged.push(child);
            if cut.is_some() {
                break;
            }
            if marks.redirect.is_some() {
                self.check_follow(dir, &name)?;
                reach = dir.belief.reach(&stat);
            }
            match marks.redirect {
                None => {}
                Some(path) if path.starts_with(b"/") => {
                    merged.extend(self.search_path(dir.layer + 1, &path, dir, reach, met)?);
                    break;
                }
                Some(new) => {
                    self.check_component(&new, dir)?;
                    name = new.into();
                }
            }
        }
        Ok(top.map(|(stat, seen, layer, id, impure)| Found {
            stat,
            seen,
            layer,
            id,
            what: What::Directory { dirs: merged, impure },
        }))
    }

    /// The real directories that an absolute redirect leads to, in the layers from `layer` down.
    /// Tells `met` what the search for the last name meets.
    fn search_path(
        &self,
        layer: LayerIndex,
        path: &[u8],
        marked: &Arc<RealDir>,
        reach: Reach,
        met: &mut impl FnMut(Met<'_>),
    ) -> Result<RealDirs> {
        let mut dirs: RealDirs = self.layers[usize::from(layer)..].iter().map(|l| l.root.clone()).collect();
        let mut components = path.split(|&b| b == b'/').filter(|c| !c.is_empty()).peekable();
        while let Some(component) = components.next() {
            self.check_component(component, marked)?;
            let found = match components.peek() {
                Some(_) => self.search(&dirs, component)?,
                None => self.search_telling(&dirs, component, met)?,
            };
            dirs = match found {
                Some(Found { what: What::Directory { dirs, .. }, .. }) => dirs,
                _ => return Ok(RealDirs::new()),
            };
            if reach != Reach::All {
                for dir in &dirs {
                    let stat = At::Fd(self.fds.get(dir)?.as_fd()).stat()?;
                    if !reach.allows(&stat, READ_AND_SEARCH) {
                        return Err(self.leads_too_far(marked, b""));
                    }
                }
            }
        }
        Ok(dirs)
    }

    /// With `redirect_dir=nofollow`, what lies below a redirect is not shown, and its upper part alone would be wrong: it
    /// is refused, as by the kernel.
    fn check_follow(&self, dir: &RealDir, name: &[u8]) -> Result<()> {
        if self.redirects == RedirectDir::NoFollow {
            // Logs which; programs get the kernel's number.
            drop(self.layer_form(dir, name, "a redirect, refused by redirect_dir=nofollow"));
            return Err(FsError::Os(Errno::PERM));
        }
        Ok(())
    }

    /// Warns of a mark that isn't believed.
    fn tell_unbelieved(&self, marks: &Marks, dir: &RealDir, name: &[u8]) {
        if let Some(mark) = &marks.unbelieved {
            let path = [&dir.path(), name].join(&b'/');
            belief::warn_unbelieved(mark, &self.layers[usize::from(dir.layer)].path, &path);
        }
    }

    /// The error of a mark that leads to what its owner may not read.
    fn leads_too_far(&self, dir: &RealDir, name: &[u8]) -> FsError {
        // Logs which; programs get the number that the kernel's overlayfs has for what isn't followed.
        drop(self.layer_form(dir, name, "a user.overlay mark that leads to what its owner may not read"));
        FsError::Os(Errno::PERM)
    }

    /// Refuses a redirect that no overlay writes: it could lead out of the layer.
    fn check_component(&self, component: &[u8], dir: &Arc<RealDir>) -> Result<()> {
        if matches!(component, b"" | b"." | b"..") || component.contains(&b'/') || component.contains(&0) {
            return Err(self.layer_form(dir, b"", "a redirect that is neither a name nor an absolute path"));
        }
        Ok(())
    }

    /// An error that names the layer and the path in it.
    pub(in crate::union) fn layer_form(&self, dir: &RealDir, name: &[u8], what: &str) -> FsError {
        let mut path = dir.path();
        if !path.is_empty() && !name.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let error = FsError::LayerForm {
            layer: self.layers[usize::from(dir.layer)].path.display().to_string(),
            path: String::from_utf8_lossy(&path).into_owned(),
            what: what.to_owned(),
        };
        log::error!("{error}");
        error
    }

    fn is_xattr_whiteout(&self, dir: &RealDir, at: At<'_>, stat: &Stat) -> Result<bool> {
        Ok(dir.xattr_whiteouts.load(Ordering::Relaxed)
            && stat.kind() == Kind::File
            && stat.size == 0
            && marker::read_marks(at, dir.belief)?.whiteout)
    }

    /// Does the directory hold `.wh..wh..opq`?
    pub(in crate::union) fn aufs_opaque(&self, dir: &Arc<RealDir>) -> Result<bool> {
        if let Some(forms) = dir.forms() {
            return Ok(forms.aufs_opaque);
        }
        let fd = self.fds.get(dir)?;
        match exists(At::Name(fd.as_fd(), WH_OPAQUE)) {
            // An ordinary user may not search it, so nothing in it is shown either, and its attributes can be.
            Err(FsError::Os(Errno::ACCESS)) => Ok(false),
            other => other,
        }
    }

    /// Where the data of a metacopy file lie, or `None` for every other file.
    ///
    /// The kernel makes such a file by a copy-up, so its directory is marked impure; and it has a size but no blocks,
    /// or a few for its attributes. Nothing else needs to be asked.
    fn metacopy_data(
        &self,
        dirs: &[Arc<RealDir>],
        depth: usize,
        name: &[u8],
        at: At<'_>,
        stat: &Stat,
    ) -> Result<Option<DataAt>> {
        let leaf_name = name;
        let suspect = stat.blocks * 512 < stat.size || dirs[depth].impure.load(Ordering::Relaxed);
        if stat.kind() != Kind::File || stat.size == 0 || !suspect {
            return Ok(None);
        }
        let marks = marker::read_marks(at, dirs[depth].belief)?;
        self.tell_unbelieved(&marks, &dirs[depth], name);
        if !marks.metacopy {
            return Ok(None);
        }
        if marks.redirect.is_some() {
            self.check_follow(&dirs[depth], name)?;
        }
        let reach = dirs[depth].belief.reach(stat);
        let missing = || self.layer_form(&dirs[depth], name, "a metacopy whose data no layer below holds");
        let found = match marks.redirect {
            Some(path) if path.starts_with(b"/") => {
                let split = path.iter().rposition(|&b| b == b'/').unwrap_or(0);
                let (parents, leaf) = (&path[..split], &path[split + 1..]);
                self.check_component(leaf, &dirs[depth])?;
                let below =
                    self.search_path(dirs[depth].layer + 1, parents, &dirs[depth], reach, &mut |_| ())?;
                self.search(&below, leaf)?.map(|f| (f, leaf.to_vec()))
            }
            redirect => {
                let name = redirect.unwrap_or_else(|| name.to_vec());
                self.check_component(&name, &dirs[depth])?;
                self.search(&dirs[depth + 1..], &name)?.map(|f| (f, name))
            }
        };
        match found {
            Some((Found { what: What::Leaf { dir, data }, stat, seen, .. }, name))
                if stat.kind() == Kind::File =>
            {
                if !reach.allows(&stat, READ) {
                    return Err(self.leads_too_far(&dirs[depth], leaf_name));
                }
                let generation = seen.generation();
                let own = DataAt { dir, name: name.into(), id: (stat.dev, stat.ino), generation };
                Ok(Some(data.unwrap_or(own)))
            }
            _ => Err(missing()),
        }
    }

    /// Finds what `name` stands for in a directory of the merged tree. The caller holds the directory's names.
    pub(in crate::union) fn resolve(&self, parent: &Node, name: &[u8]) -> Result<Option<Found>> {
        if name.starts_with(WH_PREFIX) {
            return Ok(None); // a marker, or hidden by being named like one
        }
        if name.len() > 255 {
            return Err(FsError::Os(Errno::NAMETOOLONG));
        }
        if matches!(name, b"" | b"." | b"..") {
            return Err(FsError::Invalid("not a name"));
        }
        let dir = self.dir_part(parent)?;
        self.index_for_lookup(parent, dir)?;
        let dirs = self.candidates(dir, name);
        if dirs.is_empty() {
            self.counters.index_answers.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        }
        let found = self.search(&dirs, name)?;
        if found.is_none() {
            dir.misses.fetch_add(1, Ordering::Relaxed);
        }
        Ok(found)
    }

    /// Do the directory's lowers show `name`?
    pub(in crate::union) fn lower_shows(&self, parent: &Node, name: &[u8]) -> Result<bool> {
        let dir = self.dir_part(parent)?;
        if dir.lowers.is_empty() {
            return Ok(false);
        }
        self.index_for_lookup(parent, dir)?;
        let index = dir.index.lock().lower.clone();
        match index {
            Some(index) => Ok(index.get(name).is_some()),
            None => Ok(self.search(&dir.lowers, name)?.is_some()),
        }
    }

    /// The real directories that may have the name, by the indexes.
    fn candidates(&self, dir: &DirPart, name: &[u8]) -> RealDirs {
        let index = dir.index.lock();
        let mut dirs = RealDirs::new();
        if let Some(upper) = dir.upper_dir() {
            match &index.upper {
                None => dirs.push(upper),
                Some(known) => match known.get(name) {
                    None => {}
                    Some(entry) if entry.kind.is_none() => return dirs,
                    // What isn't a directory ends the search; but where it says so by a mark, its data lie below.
                    Some(_) => dirs.push(upper),
                },
            }
        }
        if !dirs.is_empty() {
            // What the upper has, or may have, can carry a redirect to another name below.
            dirs.extend(dir.lowers.iter().cloned());
            return dirs;
        }
        match &index.lower {
            None => dirs.extend(dir.lowers.iter().cloned()),
            Some(known) => {
                if let Some(entry) = known.get(name) {
                    dirs.extend(dir.lowers[usize::from(entry.first)..].iter().cloned());
                }
            }
        }
        dirs
    }

    /// Builds the indexes that make lookups in this directory cheap, where they pay. The caller holds the names.
    fn index_for_lookup(&self, node: &Node, dir: &DirPart) -> Result<()> {
        let upper = dir.upper_dir();
        let layers = dir.lowers.len() + usize::from(upper.is_some());
        let missed = dir.misses.load(Ordering::Relaxed) >= INDEX_MISSES;
        if layers < 2 && !missed {
            return Ok(());
        }
        {
            let index = dir.index.lock();
            let lower_done = index.lower.is_some() || dir.lowers.is_empty();
            let upper_done = index.upper.is_some() || upper.is_none();
            if lower_done && upper_done {
                return Ok(());
            }
        }
        let size: u64 = dir.lowers.iter().chain(&upper).map(|d| d.size_hint).sum();
        if size <= INDEX_SIZE {
            match self.indexed(node) {
                // A directory that may be searched but not read: the search goes on without an index.
                Ok(_) | Err(FsError::Os(Errno::ACCESS)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The directory's indexes, built as far as they are missing. The caller holds the directory's names.
    pub(in crate::union) fn indexed<'n>(&self, node: &'n Node) -> Result<MutexGuard<'n, Indexes>> {
        let dir = self.dir_part(node)?;
        loop {
            let upper = dir.upper_dir();
            let (lower, has_upper) = {
                let index = dir.index.lock();
                let has_upper = index.upper.is_some() || upper.is_none();
                if index.lower.is_some() && has_upper {
                    return Ok(index);
                }
                (index.lower.clone(), has_upper)
            };
            let lower = match lower {
                Some(lower) => lower,
                None => Arc::new(LowerIndex::build(
                    &dir.lowers,
                    |d| self.fds.get(d).map(KeptFd),
                    |d, name, kind| self.regions.trusts_listing(d, name, kind),
                )?),
            };
            let built = match upper {
                Some(upper) if !has_upper => {
                    let fd = self.fds.get(&upper)?;
                    let trusted = |name: &[u8], kind| self.regions.trusts_listing(&upper, name, kind);
                    Some(UpperIndex::build(&upper, fd.as_fd(), trusted)?)
                }
                _ => None,
            };
            let cost = {
                let mut index = dir.index.lock();
                index.lower.get_or_insert(lower);
                if index.upper.is_none() {
                    index.upper = built;
                }
                index.cost()
            };
            for ino in self.index_cache.built(node.ino, cost) {
                let old = self.table.get(ino);
                let dropped =
                    old.and_then(|node| node.dir.as_ref().map(|dir| std::mem::take(&mut *dir.index.lock())));
                drop(dropped);
            }
        }
    }

    /// What only directories have, or `ENOTDIR`.
    pub(in crate::union) fn dir_part<'n>(&self, node: &'n Node) -> Result<&'n DirPart> {
        node.dir.as_deref().ok_or(FsError::NotADirectory)
    }
}

/// A descriptor out of the cache, usable where `AsFd` is asked for.
struct KeptFd(Arc<std::os::fd::OwnedFd>);

impl AsFd for KeptFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Does the object exist?
fn exists(at: At<'_>) -> Result<bool> {
    // By what is known, for it may be anything.
    match at.stat_as_known() {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Does the directory hold `.wh.NAME`?
pub(in crate::union) fn aufs_whiteout(dir: &RealDir, fd: BorrowedFd<'_>, name: &[u8]) -> Result<bool> {
    if dir.forms().is_some_and(|forms| !forms.aufs_whiteouts) {
        return Ok(false);
    }
    exists(At::Name(fd, &[WH_PREFIX, name].concat()))
}
