//! The search for a name in real directories, from the top down, by the rules of [`descent`].

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::{Kind, Stat};
use crate::union::Union;
use crate::union::lookup::belief::Reach;
use crate::union::lookup::descent::{self, Entry, Next};
use crate::union::lookup::found::{DataAt, Found, FoundKind, RealDirs};
use crate::union::lookup::marker::{self, Marks, WH_OPAQUE, WH_PREFIX, WhiteoutMark};
use crate::union::lookup::realdir::{LayerIndex, RealDir, Veil};
use crate::union::lookup::veil::Sight;
use crate::union::nodes::generation::Sighting;
use crate::union::nodes::region::InodeId;
use crate::union::stack::access::{LayerAt, LayerObject};

/// What is asked of a directory that a mark leads to.
const READ_AND_SEARCH: u32 = 5;

/// What a search met in one layer on its way down.
#[derive(Debug)]
pub(in crate::union) struct LayerVisit<'a> {
    /// The real directory that was asked.
    pub dir: &'a Arc<RealDir>,
    /// The name it was asked for; a redirect above may have changed it.
    pub name: &'a [u8],
    /// The directories below, which are asked next unless the search ends here.
    pub rest: &'a [Arc<RealDir>],
    /// What it has under that name.
    pub seen: LayerEntry<'a>,
}

/// What a real directory has under a name, as a search sees it.
#[derive(Debug, Clone)]
pub(in crate::union) enum LayerEntry<'a> {
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
    /// It is one that shows nothing; see [`veil`](super::veil).
    Veiled,
}

impl LayerEntry<'_> {
    /// Returns the same, as the rules see it.
    fn entry(&self) -> Entry<'_> {
        match self {
            LayerEntry::Nothing => Entry::Nothing,
            LayerEntry::Whiteout(_) => Entry::Whiteout,
            LayerEntry::Leaf { .. } => Entry::Leaf,
            LayerEntry::Directory { marks, cut, .. } => Entry::Directory {
                opaque: matches!(cut, Some(Cut::Opaque | Cut::Veiled)),
                beside: *cut == Some(Cut::Beside),
                redirect: marks.redirect.as_deref(),
            },
        }
    }
}

/// Listens to nothing: a visitor that is a function, as closures would be of another type at each level of a search in
/// a search.
pub(super) fn nobody(_: LayerVisit<'_>) {}

/// How many layers one lookup asks at most. A redirect's path is searched name by name, with redirects in it followed:
/// whoever owns several layers could make that grow without bound.
const STEPS: u32 = 100_000;

/// How many layers a lookup may still ask, with all searches that redirects begin.
pub(super) struct Steps(Cell<u32>);

impl Steps {
    fn take(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left > 0
    }
}

/// A search on its way down.
struct Search<'s, F> {
    union: &'s Union,
    steps: &'s Steps,
    visitor: &'s mut F,
    /// The file that the name stands for.
    leaf: Option<Found>,
    /// The topmost directory.
    top: Option<Top>,
    /// The real directories that are merged so far.
    merged: RealDirs,
    /// What a redirect that was followed may lead to.
    reach: Reach,
    /// Whether it is asked where the data of a file lie.
    data: bool,
}

/// The topmost of the directories that are merged.
struct Top {
    stat: Stat,
    seen: Sighting,
    layer: LayerIndex,
    id: InodeId,
    impure: bool,
}

/// A layer that is asked for a name.
#[derive(Clone, Copy)]
struct Asked<'a> {
    dir: &'a Arc<RealDir>,
    name: &'a [u8],
    /// The name in that directory.
    named: LayerAt<'a>,
    /// The directories below.
    rest: &'a [Arc<RealDir>],
}

/// Whether a search goes on after a layer.
enum Step {
    Down,
    /// With another name, by a redirect.
    Renamed(Box<[u8]>),
    End,
}

impl<'s, F: FnMut(LayerVisit<'_>)> Search<'s, F> {
    fn new(union: &'s Union, steps: &'s Steps, visitor: &'s mut F, data: bool) -> Self {
        let merged = RealDirs::new();
        Search { union, steps, visitor, leaf: None, top: None, merged, reach: Reach::All, data }
    }

    fn run(mut self, dirs: &[Arc<RealDir>], name: &[u8]) -> Result<Option<Found>> {
        let mut renamed: Option<Box<[u8]>> = None;
        for depth in 0..dirs.len() {
            match self.layer(dirs, depth, renamed.as_deref().unwrap_or(name))? {
                Step::Down => {}
                Step::Renamed(name) => renamed = Some(name),
                Step::End => break,
            }
        }
        let Search { leaf, top, merged, .. } = self;
        if leaf.is_some() {
            return Ok(leaf);
        }
        Ok(top.map(|Top { stat, seen, layer, id, impure }| Found {
            stat,
            seen,
            layer,
            id,
            what: FoundKind::Directory { dirs: merged, impure },
        }))
    }

    /// Asks one layer.
    fn layer(&mut self, dirs: &[Arc<RealDir>], depth: usize, name: &[u8]) -> Result<Step> {
        let (dir, rest) = (&dirs[depth], &dirs[depth + 1..]);
        if dir.veil() != Veil::None {
            return Ok(Step::Down); // it shows nothing
        }
        if !self.steps.take() {
            drop(self.union.layer_form(dir, name, "redirects that lead to each other without end"));
            return Err(FsError::Os(Errno::LOOP));
        }
        let opened = self.union.fds.get(dir)?;
        let named = opened.entry(name);
        let asked = Asked { dir, name, named, rest };
        // What a mark may lead to is judged by the object that has it, so that must not become another meanwhile.
        let held = if dir.belief.is_guarded() { named.hold().map(Some) } else { Ok(None) };
        let seen = held.map_err(FsError::from).and_then(|held| {
            let at = held.as_ref().map_or(named, LayerObject::at);
            Ok((self.union.sight(dir, at, name)?, held))
        });
        let (stat, held) = match seen {
            Ok((Sight::Plain(stat), held)) => (stat, held),
            Ok((Sight::Veiled(stat, stands), _)) => return self.veiled(asked, stat, stands),
            Err(FsError::Absent) => {
                // Below the last layer there is nothing to hide.
                let hidden = !rest.is_empty() && aufs_whiteout(dir, &opened, name)?;
                let seen =
                    if hidden { LayerEntry::Whiteout(WhiteoutMark::Aufs) } else { LayerEntry::Nothing };
                return self.goes_on(asked, seen);
            }
            Err(e) => return Err(e),
        };
        let at = held.as_ref().map_or(named, LayerObject::at);
        if stat.is_whiteout_device() {
            return self.goes_on(asked, LayerEntry::Whiteout(WhiteoutMark::Device));
        }
        if self.union.is_xattr_whiteout(dir, at, &stat)? {
            return self.goes_on(asked, LayerEntry::Whiteout(WhiteoutMark::Xattr));
        }
        match stat.kind() {
            Kind::Directory => self.directory(asked, at, stat),
            // Directories above it hide it.
            _ if self.top.is_some() => self.goes_on(asked, LayerEntry::Leaf { stat: &stat, data: None }),
            _ => self.leaf(asked, (dirs, depth), at, stat),
        }
    }

    /// Tells what a layer has, and whether the layers below are asked.
    fn goes_on(&mut self, asked: Asked<'_>, seen: LayerEntry<'_>) -> Result<Step> {
        let Asked { dir, name, rest, .. } = asked;
        let next = descent::next(seen.entry());
        (self.visitor)(LayerVisit { dir, name, rest, seen: seen.clone() });
        match next {
            Next::Below => Ok(Step::Down),
            Next::End => Ok(Step::End),
            Next::Name(new) => {
                self.union.check_component(new, dir)?;
                Ok(Step::Renamed(new.into()))
            }
            Next::Path(path) => {
                let below = self.union.search_path(
                    dir.layer + 1,
                    path,
                    (dir, self.reach),
                    self.steps,
                    &mut *self.visitor,
                )?;
                self.merged.extend(below);
                Ok(Step::End)
            }
        }
    }

    fn leaf(
        &mut self,
        asked: Asked<'_>,
        (dirs, depth): (&[Arc<RealDir>], usize),
        at: LayerAt<'_>,
        stat: Stat,
    ) -> Result<Step> {
        let (union, Asked { dir, name, named, .. }) = (self.union, asked);
        let data =
            if self.data { union.metacopy_data((dirs, depth), name, (at, &stat), self.steps)? } else { None };
        let seen = union.see(at, &stat);
        let upper = union.is_upper(dir.layer);
        // The owner of a link may be noted on the directory that holds it.
        let noted = if stat.kind() == Kind::Symlink { named } else { at };
        let mut kept = union.owners.kept(noted, stat, upper)?;
        let id = match upper {
            true => union.id_in(dir, &stat),
            false => union.lower_leaf_id(dir, name, &mut kept),
        };
        self.goes_on(asked, LayerEntry::Leaf { stat: &kept, data: data.as_ref() })?;
        let what = FoundKind::Leaf { dir: dir.clone(), data };
        self.leaf = Some(Found { stat: kept, seen, layer: dir.layer, id, what });
        Ok(Step::End)
    }

    /// Takes a directory that shows nothing, and what stands for it.
    fn veiled(&mut self, asked: Asked<'_>, stat: Stat, stands: Option<Arc<OwnedFd>>) -> Result<Step> {
        let Asked { dir, name, .. } = asked;
        let child = RealDir::veiled(dir, name, &stat, stands);
        if self.top.is_none() {
            let of_child = self.union.fds.get(&child)?;
            self.top = Some(Top {
                stat: self.union.owners.kept(of_child.at(), stat, false)?,
                seen: Sighting::default(),
                layer: dir.layer,
                id: self.union.dir_id(&child),
                impure: false,
            });
        }
        self.merged.push(child);
        let marks = Marks::default();
        self.goes_on(asked, LayerEntry::Directory { stat: &stat, marks: &marks, cut: Some(Cut::Veiled) })
    }

    fn directory(&mut self, asked: Asked<'_>, at: LayerAt<'_>, stat: Stat) -> Result<Step> {
        let Asked { dir, name, .. } = asked;
        let union = self.union;
        let seen = union.see(at, &stat);
        let child = union.child_dir(dir, name, at, (&stat, seen.generation()))?;
        let marks = union.marks_in(dir, at)?;
        union.tell_unbelieved(&marks, dir, name);
        if !self.reach.allows(&stat, READ_AND_SEARCH) {
            return Err(union.leads_too_far(dir, name));
        }
        child.xattr_whiteouts.store(marks.xattr_whiteouts, Ordering::Relaxed);
        child.impure.store(marks.impure, Ordering::Relaxed);
        if self.top.is_none() {
            self.top = Some(Top {
                stat: union.owners.kept(at, stat, union.is_upper(dir.layer))?,
                seen,
                layer: dir.layer,
                id: union.dir_id(&child),
                impure: marks.impure,
            });
        }
        let cut = self.cut(asked, &child, &marks)?;
        self.merged.push(child);
        if cut.is_none() && marks.redirect.is_some() {
            union.check_follow(dir, name)?;
            self.reach = dir.belief.reach(&stat);
        }
        self.goes_on(asked, LayerEntry::Directory { stat: &stat, marks: &marks, cut })
    }

    /// Tells whether what lies below a directory doesn't count. Nobody asks below the last layer.
    fn cut(&self, asked: Asked<'_>, child: &Arc<RealDir>, marks: &Marks) -> Result<Option<Cut>> {
        let Asked { dir, name, rest, .. } = asked;
        let below = !rest.is_empty();
        if marks.opaque || below && self.union.aufs_opaque(child)? {
            return Ok(Some(Cut::Opaque));
        }
        if !below || marks.redirect.is_some() {
            return Ok(None);
        }
        Ok(aufs_whiteout(dir, &self.union.fds.get(dir)?, name)?.then_some(Cut::Beside))
    }
}

impl Union {
    /// Searches `name` in real directories, topmost first.
    pub(in crate::union) fn search(&self, dirs: &[Arc<RealDir>], name: &[u8]) -> Result<Option<Found>> {
        self.search_telling(dirs, name, &mut nobody)
    }

    /// Searches as [`Union::search`] does, and tells `visitor` what is met in each layer that is asked, from the top down.
    pub(in crate::union) fn search_telling(
        &self,
        dirs: &[Arc<RealDir>],
        name: &[u8],
        visitor: &mut impl FnMut(LayerVisit<'_>),
    ) -> Result<Option<Found>> {
        self.search_on(dirs, name, &Steps(Cell::new(STEPS)), visitor)
    }

    /// Searches as [`Union::search_telling`] does. Where the data of a file lie isn't asked.
    pub(in crate::union) fn search_name_telling(
        &self,
        dirs: &[Arc<RealDir>],
        name: &[u8],
        visitor: &mut impl FnMut(LayerVisit<'_>),
    ) -> Result<Option<Found>> {
        Search::new(self, &Steps(Cell::new(STEPS)), visitor, false).run(dirs, name)
    }

    /// Searches as part of a lookup.
    pub(super) fn search_on(
        &self,
        dirs: &[Arc<RealDir>],
        name: &[u8],
        steps: &Steps,
        visitor: &mut impl FnMut(LayerVisit<'_>),
    ) -> Result<Option<Found>> {
        Search::new(self, steps, visitor, true).run(dirs, name)
    }

    /// Searches as [`Union::search`], for what a name stands for. Where the data of a file lie isn't asked.
    pub(super) fn search_name(&self, dirs: &[Arc<RealDir>], name: &[u8]) -> Result<Option<Found>> {
        Search::new(self, &Steps(Cell::new(STEPS)), &mut nobody, false).run(dirs, name)
    }

    /// Returns the real directories that an absolute redirect leads to, in the layers from `layer` down.
    /// Tells `met` what the search for the last name meets.
    pub(super) fn search_path(
        &self,
        layer: LayerIndex,
        path: &[u8],
        (marked, reach): (&Arc<RealDir>, Reach),
        steps: &Steps,
        met: &mut impl FnMut(LayerVisit<'_>),
    ) -> Result<RealDirs> {
        let mut dirs: RealDirs = self
            .merged_layers()
            .get(usize::from(layer)..)
            .unwrap_or_default()
            .iter()
            .map(|l| l.root.clone())
            .collect();
        let mut components = path.split(|&b| b == b'/').filter(|c| !c.is_empty()).peekable();
        while let Some(component) = components.next() {
            self.check_component(component, marked)?;
            let found = match components.peek() {
                Some(_) => self.search_on(&dirs, component, steps, &mut nobody)?,
                None => self.search_on(&dirs, component, steps, met)?,
            };
            dirs = match found {
                Some(Found { what: FoundKind::Directory { dirs, .. }, .. }) => dirs,
                _ => return Ok(RealDirs::new()),
            };
            if reach != Reach::All {
                for dir in &dirs {
                    let stat = self.fds.get(dir)?.at().stat()?;
                    if !reach.allows(&stat, READ_AND_SEARCH) {
                        return Err(self.leads_too_far(marked, b""));
                    }
                }
            }
        }
        Ok(dirs)
    }

    fn is_xattr_whiteout(&self, dir: &RealDir, at: LayerAt<'_>, stat: &Stat) -> Result<bool> {
        Ok(dir.xattr_whiteouts.load(Ordering::Relaxed)
            && stat.kind() == Kind::File
            && stat.size == 0
            && marker::read_marks(at, dir.belief)?.whiteout)
    }

    /// Tells whether the directory holds `.wh..wh..opq`.
    pub(in crate::union) fn aufs_opaque(&self, dir: &Arc<RealDir>) -> Result<bool> {
        if let Some(forms) = dir.forms() {
            return Ok(forms.aufs_opaque);
        }
        match exists(self.fds.get(dir)?.entry(WH_OPAQUE)) {
            // An ordinary user may not search it, so nothing in it is shown either, and its attributes can be.
            Err(FsError::Os(Errno::ACCESS)) => Ok(false),
            other => other,
        }
    }
}

/// Tells whether the object exists.
fn exists(at: LayerAt<'_>) -> Result<bool> {
    match at.stat_as_known() {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Tells whether the directory holds `.wh.NAME`.
pub(in crate::union) fn aufs_whiteout(dir: &RealDir, opened: &LayerObject, name: &[u8]) -> Result<bool> {
    if dir.forms().is_some_and(|forms| !forms.aufs_whiteouts) {
        return Ok(false);
    }
    exists(opened.entry(&[WH_PREFIX, name].concat()))
}
