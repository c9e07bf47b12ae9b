//! Where the data of a file lie that has only its metadata in its own layer (`overlay.metacopy`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::Result;
use crate::sys::object::{Kind, Stat};
use crate::union::Union;
use crate::union::lookup::found::{DataAt, Found, FoundKind};
use crate::union::lookup::marker;
use crate::union::lookup::realdir::RealDir;
use crate::union::lookup::search::{Steps, nobody};
use crate::union::stack::access::LayerAt;

/// What is asked of a file that a mark leads to.
const READ: u32 = 4;

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
                let below = self.search_path(
                    dirs[depth].layer + 1,
                    parents,
                    (&dirs[depth], reach),
                    steps,
                    &mut nobody,
                )?;
                self.search_on(&below, leaf, steps, &mut nobody)?.map(|f| (f, leaf.to_vec()))
            }
            redirect => {
                let name = redirect.unwrap_or_else(|| name.to_vec());
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
                let generation = seen.generation();
                let (id, blocks) = ((stat.dev, stat.ino), stat.blocks);
                let own = DataAt { dir, name: name.into(), id, generation, blocks };
                Ok(Some(data.unwrap_or(own)))
            }
            _ => Err(missing()),
        }
    }
}
