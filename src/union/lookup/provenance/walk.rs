//! One name, asked in every layer: the search, and what lies below the point at which it ended.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::answer::{Held, Hider, Hides, Holds};
use super::trail::Group;
use crate::error::Result;
use crate::sys::object::{At, Stat};
use crate::union::Union;
use crate::union::data::half;
use crate::union::data::half_mark::HalfMark;
use crate::union::lookup::found::{Found, FoundKind, RealDirs};
use crate::union::lookup::marker::WhiteoutMark;
use crate::union::lookup::realdir::{LayerIndex, RealDir};
use crate::union::lookup::search::{Cut, LayerEntry, LayerVisit, aufs_whiteout};
use crate::union::stack::access::LayerObject;

/// One step down, as it is made.
pub(super) struct ProvenanceWalk<'w> {
    pub union: &'w Union,
    pub path: &'w [u8],
    pub held: Vec<Held>,
    pub groups: Vec<Group>,
}

/// What a search met, kept.
struct VisitRecord {
    held: Held,
    dir: Arc<RealDir>,
    name: Vec<u8>,
    rest: RealDirs,
    /// The mark of a half-copied file.
    half: Option<Arc<HalfMark>>,
}

impl ProvenanceWalk<'_> {
    /// Searches a group, and what the search leaves aside as groups that are hidden.
    pub fn search(
        &mut self,
        dirs: &[Arc<RealDir>],
        name: &[u8],
        hidden: Option<Hider>,
    ) -> Result<Option<Found>> {
        let mut records: Vec<VisitRecord> = Vec::new();
        let union = self.union;
        let found = union
            .search_telling(dirs, name, &mut |met| records.push(VisitRecord::of(&met, hidden.clone())))?;
        self.look_beside(&mut records)?;
        self.count_blocks(&mut records)?;
        let mut aside: Vec<(RealDirs, Vec<u8>, Hider)> = Vec::new();
        let mut directory: Option<LayerIndex> = None;
        let last = records.len().saturating_sub(1);
        for (at, VisitRecord { mut held, name, rest, .. }) in records.into_iter().enumerate() {
            let hider = |what| Hider { layer: held.layer, path: self.path.to_vec(), what };
            let hides = match &held.holds {
                Holds::Absent => None,
                Holds::Whiteout(_) => Some(Hides::Whiteout),
                Holds::Leaf { .. } => Some(Hides::Leaf),
                Holds::Directory { opaque: true, .. } | Holds::Directory { beside: true, .. } => {
                    Some(Hides::Opaque)
                }
                Holds::Directory { redirect: Some(_), .. } => Some(Hides::Redirect),
                Holds::Directory { .. } => None,
            };
            if let Some(what) = hides
                && (at == last || what == Hides::Redirect)
                && !rest.is_empty()
            {
                aside.push((rest, name, hider(what)));
            }
            match (&held.holds, directory) {
                (Holds::Directory { .. }, None) => directory = Some(held.layer),
                (Holds::Leaf { .. }, Some(layer)) if held.hidden.is_none() => {
                    held.hidden = Some(Hider { layer, path: self.path.to_vec(), what: Hides::Directory });
                }
                _ => {}
            }
            // Beside what was found elsewhere by a redirect, a layer that has nothing need not say so.
            if hidden.is_none() || held.holds != Holds::Absent {
                self.held.push(held);
            }
        }
        if let Some(Found { what: FoundKind::Directory { dirs, .. }, .. }) = &found {
            self.groups.push(Group { dirs: dirs.clone(), hidden: hidden.clone() });
        }
        for (dirs, name, hider) in aside {
            self.search(&dirs, &name, Some(hidden.clone().unwrap_or(hider)))?;
        }
        Ok(found)
    }

    /// Counts which blocks of half-copied files are in their own layers.
    fn count_blocks(&self, records: &mut [VisitRecord]) -> Result<()> {
        for VisitRecord { held, dir, name, half, .. } in records {
            if let (Holds::Leaf { stat, blocks, .. }, Some(mark)) = (&mut held.holds, half) {
                *blocks = own_blocks(&self.union.fds.get(dir)?, (name, stat), mark)?;
            }
        }
        Ok(())
    }

    /// Looks for markers that hide nothing, which a search need not ask for in the last layer. They are there all the
    /// same.
    fn look_beside(&self, records: &mut [VisitRecord]) -> Result<()> {
        let Some(VisitRecord { held, dir, name, rest, .. }) = records.last_mut() else { return Ok(()) };
        if !rest.is_empty() {
            return Ok(());
        }
        let union = self.union;
        match &mut held.holds {
            Holds::Absent if aufs_whiteout(dir, &union.fds.get(dir)?, name)? => {
                held.holds = Holds::Whiteout(WhiteoutMark::Aufs);
            }
            Holds::Directory { opaque, stat, .. } if !*opaque => {
                // Asked for its marks only.
                let child =
                    RealDir::child(dir, name, stat, crate::union::nodes::generation::Generation::UNKNOWN);
                *opaque = union.aufs_opaque(&child)?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Returns how many blocks of a half-copied file are in its own layer, and how many it has; `None` where it can't be read.
fn own_blocks(
    dir: &LayerObject,
    (name, stat): (&[u8], &Stat),
    mark: &HalfMark,
) -> Result<Option<(u64, u64)>> {
    let entry = dir.entry(name);
    let Some(at) = entry.host() else { return Ok(None) };
    let Ok(file) = at.open_read() else { return Ok(None) };
    if At::Fd(file.as_fd()).stat()?.ino != stat.ino {
        return Ok(None);
    }
    half::count_blocks(file.as_fd(), mark).map(Some)
}

impl VisitRecord {
    fn of(met: &LayerVisit<'_>, hidden: Option<Hider>) -> VisitRecord {
        let holds = match &met.seen {
            LayerEntry::Nothing => Holds::Absent,
            LayerEntry::Whiteout(mark) => Holds::Whiteout(*mark),
            LayerEntry::Leaf { stat, data } => {
                Holds::Leaf { stat: **stat, data: data.map(|data| data.dir.layer), blocks: None }
            }
            LayerEntry::Directory { stat, marks, cut, .. } => Holds::Directory {
                stat: **stat,
                opaque: matches!(cut, Some(Cut::Opaque | Cut::Veiled)),
                beside: *cut == Some(Cut::Beside),
                redirect: marks.redirect.clone(),
            },
        };
        let mut path = met.dir.path();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(met.name);
        let held = Held { layer: met.dir.layer, path, holds, hidden };
        let half = match &met.seen {
            LayerEntry::Leaf { data: Some(data), .. } => data.half.clone(),
            _ => None,
        };
        VisitRecord {
            held,
            dir: met.dir.clone(),
            name: met.name.to_vec(),
            rest: met.rest.iter().cloned().collect(),
            half,
        }
    }
}
