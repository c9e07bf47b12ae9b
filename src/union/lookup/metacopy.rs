//! Where the data of a file lie that has only its metadata in its own layer (`overlay.metacopy`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::error::Result;
use crate::sys::object::{Kind, Stat};
use crate::union::Union;
use crate::union::lookup::belief::Reach;
use crate::union::lookup::found::{DataAt, Found, FoundKind};
use crate::union::lookup::marker::{self, Marks};
use crate::union::lookup::realdir::RealDir;
use crate::union::lookup::search::{Steps, nobody};
use crate::union::stack::access::LayerAt;

/// What is asked of a file that a mark leads to, and of a directory on the way.
const READ: u32 = 4;
const READ_AND_SEARCH: u32 = 5;

impl Union {
    /// Where the data of a metacopy file lie, or `None` for every other file.
    ///
    /// The kernel makes such a file by a copy-up, so its directory is marked impure; and it has a size but no blocks,
    /// or a few for its attributes. Nothing else needs to be asked.
    pub(super) fn metacopy_data(
        &self,
        (dirs, depth): (&[Arc<RealDir>], usize),
        name: &[u8],
        (at, stat): (LayerAt<'_>, &Stat),
        steps: &Steps,
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
        if marks.redirect.is_some() && marks.half.is_none() {
            self.check_follow(&dirs[depth], name)?;
        }
        let Marks { redirect, digest, half, .. } = marks;
        let half = half.map(Arc::new);
        // What other overlays read leads nowhere.
        let redirect = half.as_ref().map(|half| half.path.clone()).or(redirect);
        let reach = dirs[depth].belief.reach(stat);
        let missing = || self.layer_form(&dirs[depth], name, "a metacopy whose data no layer below holds");
        let found = match &redirect {
            Some(path) if path.starts_with(b"/") => {
                let split = path.iter().rposition(|&b| b == b'/').unwrap_or(0);
                let (parents, leaf) = (&path[..split], &path[split + 1..]);
                self.check_component(leaf, &dirs[depth])?;
                let below = self.search_path(
                    dirs[depth].layer + 1,
                    parents,
                    (&dirs[depth], reach),
                    steps,
                    &mut nobody,
                )?;
                match self.search_on(&below, leaf, steps, &mut nobody)? {
                    Some(found) => Some((found, leaf.to_vec())),
                    None => {
                        let data = self.search_data_only(path, (&dirs[depth], name), reach)?;
                        return data.map(|data| Some(DataAt { digest, half, ..data })).ok_or_else(missing);
                    }
                }
            }
            redirect => {
                let name = redirect.clone().unwrap_or_else(|| name.to_vec());
                self.check_component(&name, &dirs[depth])?;
                self.search_on(&dirs[depth + 1..], &name, steps, &mut nobody)?.map(|f| (f, name))
            }
        };
        match found {
            Some((Found { what: FoundKind::Leaf { dir, data }, stat, seen, .. }, name))
                if stat.kind() == Kind::File =>
            {
                if !reach.allows(&stat, READ) {
                    return Err(self.leads_too_far(&dirs[depth], leaf_name));
                }
                let (id, blocks, generation) = ((stat.dev, stat.ino), stat.blocks, seen.generation());
                let own = DataAt { dir, name: name.into(), id, generation, blocks, digest: None, half: None };
                let data = data.unwrap_or(own);
                if data.half.is_some() {
                    // Three files would make up one.
                    return Err(self.layer_form(
                        &dirs[depth],
                        leaf_name,
                        "a metacopy above a half-copied file, which must be sealed",
                    ));
                }
                Ok(Some(DataAt { digest: digest.or(data.digest), half, ..data }))
            }
            _ => Err(missing()),
        }
    }

    /// Where a path leads to a file in the layers that hold data alone: to what the first of them has, and to nothing of an
    /// overlay's.
    fn search_data_only(
        &self,
        path: &[u8],
        (marked, name): (&Arc<RealDir>, &[u8]),
        reach: Reach,
    ) -> Result<Option<DataAt>> {
        'layers: for layer in &self.layers[self.merged_layers().len()..] {
            let mut dir = layer.root.clone();
            let mut components = path.split(|&b| b == b'/').filter(|c| !c.is_empty()).peekable();
            while let Some(component) = components.next() {
                self.check_component(component, marked)?;
                let fd = self.fds.get(&dir)?;
                let held = match fd.entry(component).hold() {
                    Err(Errno::NOENT | Errno::NOTDIR) => continue 'layers,
                    held => held?,
                };
                let at = held.at();
                let stat = dir.stat_in(at)?;
                let generation = self.see(at, &stat).generation();
                match (stat.kind(), components.peek().is_some()) {
                    (Kind::Directory, true) => {
                        if !reach.allows(&stat, READ_AND_SEARCH) {
                            return Err(self.leads_too_far(marked, name));
                        }
                        dir = self.child_dir(&dir, component, at, (&stat, generation))?;
                    }
                    (Kind::File, false) => {
                        if !reach.allows(&stat, READ) {
                            return Err(self.leads_too_far(marked, name));
                        }
                        let stat = at.stat()?;
                        let (id, blocks) = ((stat.dev, stat.ino), stat.blocks);
                        let name = component.into();
                        return Ok(Some(DataAt {
                            dir,
                            name,
                            id,
                            generation,
                            blocks,
                            digest: None,
                            half: None,
                        }));
                    }
                    _ => continue 'layers,
                }
            }
        }
        Ok(None)
    }
}
