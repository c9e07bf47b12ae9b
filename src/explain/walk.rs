//! The walk that makes a [`Survey`]: all layers at once, one directory after the other, the topmost layer first.
//!
//! It reads by [`index::scan`] and [`marker::read_marks`], as a lookup does, but doesn't stop where a lookup knows the
//! answer: what is hidden is walked too, with the layer that hides it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::report::short_name;
use super::survey::{Holding, Number, Survey, SurveyedLayer, SurveyedPath, Unreadable, Waste};
use crate::error::{FsError, Result};
use crate::sys::object::{Kind, Stat};
use crate::union::lookup::descent::{self, Entry, Next};
use crate::union::lookup::index;
use crate::union::lookup::marker::{self, Marks, WH_OPAQUE};
use crate::union::lookup::realdir::{DirFds, LayerIndex, RealDir};
use crate::union::stack::layer::{Lower, Stack};

/// Descriptors of directories that a walk keeps.
const DIR_FDS: usize = 256;

impl Survey {
    /// Reads all layers of a stack that has no upper: give the upper as the topmost lower, and say so by `upper`.
    ///
    /// # Errors
    /// A form in a layer that is not understood, and errors of reading other than missing permission, which are
    /// noted in [`Survey::unreadable`].
    pub fn take(stack: Stack, upper: bool) -> Result<Survey> {
        let surveyed = |(index, layer): (usize, &Lower)| SurveyedLayer {
            path: layer.path().to_owned(),
            name: short_name(layer.path()).to_string(),
            upper: upper && index == 0,
        };
        let mut survey = Survey {
            layers: stack.lowers.iter().enumerate().map(surveyed).rev().collect(),
            places: Vec::new(),
            wastes: Vec::new(),
            unreadable: Vec::new(),
            holdings: Vec::new(),
            targets: Vec::new(),
        };
        walk(&mut survey, stack.lowers)?;
        survey.close_places();
        survey.settle_links();
        survey.settle_wastes();
        Ok(survey)
    }
}

/// Walks all the layers, the topmost first, and fills in what is found.
fn walk(survey: &mut Survey, layers: Vec<Lower>) -> Result<()> {
    let fds = DirFds::new(DIR_FDS);
    let mut roots = Vec::with_capacity(layers.len());
    for (index, layer) in layers.into_iter().enumerate() {
        let belief = layer.belief();
        let (root, stat) = RealDir::of_lower(index as LayerIndex, layer, belief)?;
        note_marks(&root, &marker::read_marks(fds.get(&root)?.at(), belief)?);
        roots.push((root, stat));
    }
    let count = roots.len() as Number;
    Surveyor { count, fds, roots: Vec::new(), chains: 0, survey }.run(roots)
}

/// A directory of one layer on the walk.
#[derive(Debug, Clone)]
struct Part {
    dir: Arc<RealDir>,
    layer: Number,
    from: Number,
    hidden_by: Option<Number>,
    account: Option<u32>,
    /// 0, or which redirect has brought the directory here.
    chain: u16,
}

/// What one part has under a name.
struct PartEntry {
    part: usize,
    kind: Option<Kind>,
    cuts: bool,
}

/// What hides things below it.
struct Hider {
    layer: Number,
    from: Number,
    chain: u16,
    /// Everything below, or only what is not a directory.
    all: bool,
}

/// A directory that is still to be walked.
struct Pending {
    name: Box<[u8]>,
    parent: u32,
    depth: u16,
    holdings: Vec<Holding>,
    parts: Vec<Part>,
}

struct Surveyor<'s> {
    count: Number,
    fds: DirFds,
    roots: Vec<Part>,
    chains: u16,
    survey: &'s mut Survey,
}

/// What was found under a name of a part.
struct Looked {
    holding: Holding,
    marks: Marks,
    /// The directory, if it is one.
    dir: Option<Arc<RealDir>>,
}

impl Surveyor<'_> {
    fn run(&mut self, roots: Vec<(Arc<RealDir>, Stat)>) -> Result<()> {
        let mut holdings: Vec<Holding> = Vec::new();
        for (dir, stat) in roots {
            let layer = self.count - dir.layer;
            self.roots.push(Part { dir, layer, from: layer, hidden_by: None, account: None, chain: 0 });
            holdings.push(holding(layer, Some(&stat)));
        }
        // Roots are merged whatever marks they carry.
        mark_replaced(&mut holdings);
        let parts = self.roots.clone();
        let mut pending = vec![Pending { name: Box::default(), parent: 0, depth: 0, holdings, parts }];
        while let Some(next) = pending.pop() {
            let place = self.survey.places.len() as u32;
            self.survey.places.push(SurveyedPath {
                name: next.name,
                parent: next.parent,
                depth: next.depth,
                end: 0,
                first: self.survey.holdings.len() as u32,
                count: next.holdings.len() as u16,
            });
            for account in next.holdings.iter().filter_map(|h| h.account) {
                // Opened before the place had a number.
                let waste = &mut self.survey.wastes[account as usize];
                waste.place = waste.place.min(place);
            }
            self.survey.holdings.extend(next.holdings);
            let before = pending.len();
            for (name, seen) in self.names(&next.parts)? {
                let (holdings, parts) = self.holdings_of(&next.parts, &name, &seen)?;
                if !holdings.is_empty() {
                    let depth = next.depth.saturating_add(1);
                    pending.push(Pending { name, parent: place, depth, holdings, parts });
                }
            }
            pending[before..].reverse();
        }
        Ok(())
    }

    /// Returns all names of a directory's parts, with what each part has under it, the topmost first.
    fn names(&mut self, parts: &[Part]) -> Result<BTreeMap<Box<[u8]>, Vec<PartEntry>>> {
        let mut names: BTreeMap<Box<[u8]>, Vec<PartEntry>> = BTreeMap::new();
        for (part, Part { dir, layer, .. }) in parts.iter().enumerate() {
            let scanned = self.fds.get(dir).and_then(|opened| {
                index::scan(
                    dir,
                    &opened,
                    |_, _| true,
                    |name, scanned| {
                        let seen = PartEntry { part, kind: scanned.kind, cuts: scanned.cuts };
                        names.entry(name.into()).or_default().push(seen);
                    },
                )
            });
            match scanned {
                // The upper of a mount that is in use may change on the way.
                Ok(()) | Err(FsError::Stale | FsError::Absent) => {}
                Err(error @ FsError::Os(Errno::ACCESS | Errno::PERM)) => {
                    self.survey.unreadable.push(Unreadable { layer: *layer, path: dir.path(), error });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(names)
    }

    /// Returns the holdings at one name, and the directories among them.
    fn holdings_of(
        &mut self,
        parts: &[Part],
        name: &[u8],
        seen: &[PartEntry],
    ) -> Result<(Vec<Holding>, Vec<Part>)> {
        let mut found: Vec<(Holding, Option<Part>)> = Vec::new();
        let mut hiders: Vec<Hider> = Vec::new();
        let mut moved: Vec<Part> = Vec::new();
        for PartEntry { part, kind, cuts } in seen {
            let part = &parts[*part];
            let Some(Looked { mut holding, marks, dir }) = self.look(part, name, *kind)? else { continue };
            let is_dir = dir.is_some();
            holding.from = part.from;
            holding.chain = part.chain;
            self.hide(&mut holding, nearest(&hiders, part, is_dir), part);
            let entry = match kind {
                None => Entry::Whiteout,
                Some(_) if !is_dir => Entry::Leaf,
                Some(_) => Entry::Directory {
                    opaque: holding.opaque,
                    beside: *cuts,
                    redirect: marks.redirect.as_deref(),
                },
            };
            let next = descent::next(entry);
            let cut = next != Next::Below;
            hiders.push(Hider { layer: part.layer, chain: part.chain, from: part.from, all: cut });
            let child = dir.map(|dir| Part {
                dir,
                hidden_by: holding.hidden_by,
                account: holding.account,
                ..part.clone()
            });
            if let (Some(child), Next::Name(target) | Next::Path(target)) = (&child, next) {
                moved.extend(self.follow(parts, child, target)?);
            }
            found.push((holding, child));
        }
        for part in moved {
            let stat = self.fds.get(&part.dir)?.at().stat()?;
            let holding = Holding {
                from: part.from,
                chain: part.chain,
                hidden_by: part.hidden_by,
                ..holding(part.layer, Some(&stat))
            };
            found.push((holding, Some(part)));
        }
        found.sort_by_key(|(holding, _)| std::cmp::Reverse(holding.layer));
        let (mut holdings, below): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        mark_replaced(&mut holdings);
        Ok((holdings, below.into_iter().flatten().collect()))
    }

    /// Returns what a part has under a name that a scan has found; `None` if it has gone since.
    fn look(&mut self, part: &Part, name: &[u8], kind: Option<Kind>) -> Result<Option<Looked>> {
        let Some(_) = kind else {
            return Ok(Some(Looked {
                holding: holding(part.layer, None),
                marks: Marks::default(),
                dir: None,
            }));
        };
        let opened = self.fds.get(&part.dir)?;
        let at = opened.entry(name);
        let stat = match at.stat() {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut holding = holding(part.layer, Some(&stat));
        if stat.kind() == Kind::Symlink {
            let target = match at.read_link() {
                Ok(target) => Some(target),
                // The upper of a mount that is in use: it has gone, or is something else now.
                Err(Errno::NOENT | Errno::INVAL | Errno::STALE) => None,
                Err(error) => return Err(error.into()),
            };
            holding.target = target.map(|target| {
                self.survey.targets.push(target.into());
                (self.survey.targets.len() - 1) as u32
            });
        }
        if stat.kind() != Kind::Directory {
            // As in a lookup: nothing else tells.
            let sized = stat.kind() == Kind::File && stat.size > 0;
            if sized && marker::is_metacopy(at, part.dir.belief)? {
                holding.metacopy = true;
                // Those of its blocks that are here.
                let half = marker::is_half_copied(at, part.dir.belief)?;
                holding.size = if half { stat.size.min(stat.blocks * 512) } else { 0 };
            }
            return Ok(Some(Looked { holding, marks: Marks::default(), dir: None }));
        }
        let marks = marker::read_marks(at, part.dir.belief)?;
        let dir =
            RealDir::child(&part.dir, name, &stat, crate::union::nodes::generation::Generation::UNKNOWN);
        note_marks(&dir, &marks);
        holding.opaque = marks.opaque || self.aufs_opaque(&dir)?;
        Ok(Some(Looked { holding, marks, dir: Some(dir) }))
    }

    /// Returns whether the directory holds `.wh..wh..opq`.
    fn aufs_opaque(&self, dir: &Arc<RealDir>) -> Result<bool> {
        let opened = match self.fds.get(dir) {
            Ok(opened) => opened,
            Err(FsError::Stale | FsError::Absent) => return Ok(false),
            Err(error) => return Err(error),
        };
        match opened.entry(WH_OPAQUE).stat() {
            Ok(_) => Ok(true),
            // Without permission to search it, its listing will be refused, and told.
            Err(Errno::NOENT | Errno::ACCESS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Notes which layer hides a holding, and where its bytes are accounted for.
    fn hide(&mut self, holding: &mut Holding, by: Option<Number>, part: &Part) {
        let Some(nearest) = by.into_iter().chain(part.hidden_by).min() else { return };
        holding.hidden_by = Some(nearest);
        if part.hidden_by == Some(nearest) {
            holding.account = part.account;
        } else if holding.kind.is_some() {
            holding.account = Some(self.survey.wastes.len() as u32);
            self.survey.wastes.push(Waste {
                place: u32::MAX,
                layer: holding.layer,
                hidden_by: nearest,
                replaced: false,
                bytes: 0,
                files: 0,
            });
        }
    }

    /// Returns the directories that a redirect leads to, as parts of the directory that carries it.
    fn follow(&mut self, parts: &[Part], marked: &Part, target: &[u8]) -> Result<Vec<Part>> {
        let top = marked.layer;
        let mut dirs = if target.starts_with(b"/") { self.roots.clone() } else { parts.to_vec() };
        dirs.retain(|dir| dir.layer < top && dir.from <= top && dir.hidden_by.is_none_or(|by| by > top));
        for component in target.split(|&b| b == b'/').filter(|c| !c.is_empty()) {
            dirs = self.descend(&dirs, component)?;
        }
        self.chains += 1;
        for dir in &mut dirs {
            dir.chain = self.chains;
            dir.from = top.max(marked.from);
            dir.hidden_by = marked.hidden_by;
            dir.account = marked.account;
        }
        Ok(dirs)
    }

    /// Returns the directories that `name` stands for in directories which are merged, the topmost first.
    fn descend(&mut self, dirs: &[Part], name: &[u8]) -> Result<Vec<Part>> {
        let mut merged: Vec<Part> = Vec::new();
        for (depth, part) in dirs.iter().enumerate() {
            let mut seen = None;
            let opened = self.fds.get(&part.dir)?;
            index::scan(
                &part.dir,
                &opened,
                |_, _| true,
                |found, scanned| {
                    if found == name {
                        seen = Some(scanned);
                    }
                },
            )?;
            let Some(scanned) = seen else { continue };
            let Some(Looked { holding, marks, dir: Some(dir) }) = self.look(part, name, scanned.kind)? else {
                break;
            };
            merged.push(Part { dir, ..part.clone() });
            if holding.opaque || scanned.cuts {
                break;
            }
            if let Some(target) = marks.redirect {
                let below =
                    if target.starts_with(b"/") { self.roots.clone() } else { dirs[depth + 1..].to_vec() };
                let mut below: Vec<Part> = below.into_iter().filter(|dir| dir.layer < part.layer).collect();
                for component in target.split(|&b| b == b'/').filter(|c| !c.is_empty()) {
                    below = self.descend(&below, component)?;
                }
                merged.extend(below);
                break;
            }
        }
        Ok(merged)
    }
}

/// Returns the nearest layer above that hides what a part holds. Parts that a redirect has brought here have nothing to
/// do with those that lie below the redirect under this very name.
fn nearest(hiders: &[Hider], part: &Part, is_dir: bool) -> Option<Number> {
    hiders
        .iter()
        .rev()
        .find(|hider| {
            let together = hider.chain == part.chain || hider.chain < part.chain && hider.layer >= part.from;
            together && (hider.all || !is_dir)
        })
        .map(|hider| hider.layer.max(hider.from))
}

/// Fills in what each holding replaces, given all of one place, the topmost first.
fn mark_replaced(holdings: &mut [Holding]) {
    for at in 0..holdings.len() {
        let (upper, lower) = holdings.split_at_mut(at + 1);
        let this = &mut upper[at];
        // What was to be seen just before this one came.
        let before = this.from - 1;
        let shown = |h: &&mut Holding| {
            // What a redirect brings and its own layer changes was to be seen under the old name.
            h.seen_at(before) || h.from == this.layer && h.hidden_by == Some(this.layer)
        };
        let Some(below) = lower.iter_mut().find(shown) else { continue };
        let Some(kind) = below.kind else { continue };
        this.replaces = Some(below.layer);
        this.merges = kind == Kind::Directory && below.hidden_by != Some(this.layer);
        below.data_used |= this.metacopy && kind == Kind::File;
    }
}

fn note_marks(dir: &RealDir, marks: &Marks) {
    dir.xattr_whiteouts.store(marks.xattr_whiteouts, Ordering::Relaxed);
    dir.impure.store(marks.impure, Ordering::Relaxed);
}

/// Returns a holding of which nothing is known but what stat tells; a whiteout without.
fn holding(layer: Number, stat: Option<&Stat>) -> Holding {
    let file = stat.filter(|stat| stat.kind() == Kind::File);
    Holding {
        layer,
        from: layer,
        hidden_by: None,
        replaces: None,
        kind: stat.map(Stat::kind),
        opaque: false,
        metacopy: false,
        data_used: false,
        size: file.map_or(0, |stat| stat.size),
        mode: stat.map_or(0, |stat| stat.mode),
        mtime: stat.map_or(0, |stat| stat.mtime.sec),
        counts: true,
        account: None,
        target: None,
        merges: false,
        chain: 0,
        id: stat.map_or((0, 0), |stat| (stat.dev, stat.ino)),
        nlink: stat.map_or(1, |stat| stat.nlink),
    }
}
