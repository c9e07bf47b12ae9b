//! Where the data of a file lie that has only its metadata in its own layer (`overlay.metacopy`).

use std::sync::Arc;

use rustix::io::Errno;

use crate::error::Result;
use crate::sys::object::{Kind, Stat};
use crate::union::Union;
use crate::union::change::lend::upper_marks;
use crate::union::lookup::belief::Reach;
use crate::union::lookup::found::{DataAt, Found, FoundKind};
use crate::union::lookup::marker::{self, Marks};
use crate::union::lookup::realdir::RealDir;
use crate::union::lookup::search::{Steps, nobody};
use crate::union::nodes::verified::Object;
use crate::union::stack::access::LayerAt;

/// What is asked of a file that a mark leads to, and of a directory on the way.
const READ: u32 = 4;
const READ_AND_SEARCH: u32 = 5;

/// A metacopy: the real directory that holds it, its name there, and what its mark may lead to.
struct Marked<'a> {
    dir: &'a Arc<RealDir>,
    name: &'a [u8],
    reach: Reach,
}

impl Union {
    /// Returns where the data of a metacopy file lie, or `None` for every other file.
    ///
    /// Every file's attributes are asked for, as the kernel does: neither its blocks nor its directory tell. There are
    /// filesystems that count blocks of what they don't hold (erofs), attributes take some themselves, and what copies
    /// layers need not keep the mark of a directory that holds metacopies.
    ///
    /// A file of no bytes is empty, whatever its marks say: nothing of what is below can be seen through it. What truncated it may
    /// have been killed before the marks went. They go before it gets its first byte, or that would be taken for one from below.
    pub(super) fn metacopy_data(
        &self,
        (dirs, depth): (&[Arc<RealDir>], usize),
        name: &[u8],
        (at, stat): (LayerAt<'_>, &Stat),
        steps: &Steps,
    ) -> Result<Option<DataAt>> {
        if stat.kind() != Kind::File || stat.size == 0 {
            return Ok(None);
        }
        let dir = &dirs[depth];
        let marks = self.marks_in(dir, at)?;
        self.tell_unbelieved(&marks, dir, name);
        if !marks.metacopy {
            return Ok(None);
        }
        if marks.redirect.is_some() || marks.half.is_some() {
            self.check_follow(dir, name)?;
        }
        let Marks { redirect, digest, half, .. } = marks;
        // What other overlays read of a half-copied file leads nowhere.
        let redirect = half.as_ref().map(|half| half.path.clone()).or(redirect);
        let marked = Marked { dir, name, reach: dir.belief.reach(stat) };
        let data = self.data_below(&dirs[depth + 1..], &marked, redirect.as_deref(), steps)?;
        let missing = || self.layer_form(dir, name, "a metacopy whose data no layer below holds");
        let data = data.ok_or_else(missing)?;
        if data.half.is_some() {
            // Three files would make up one.
            let form = "a metacopy above a half-copied file, which must be sealed";
            return Err(self.layer_form(dir, name, form));
        }
        Ok(Some(DataAt { digest: digest.or(data.digest), half: half.map(Arc::new), ..data }))
    }

    /// Finds the file whose data a metacopy shows: by that path, or under that name or its own in `below`.
    fn data_below(
        &self,
        below: &[Arc<RealDir>],
        marked: &Marked<'_>,
        redirect: Option<&[u8]>,
        steps: &Steps,
    ) -> Result<Option<DataAt>> {
        let found = match redirect {
            Some(path) if path.starts_with(b"/") => {
                let split = path.iter().rposition(|&b| b == b'/').unwrap_or(0);
                let (parents, leaf) = (&path[..split], &path[split + 1..]);
                self.check_component(leaf, marked.dir)?;
                let from = marked.dir.layer + 1;
                let dirs = self.search_path(from, parents, (marked.dir, marked.reach), steps, &mut nobody)?;
                match self.search_on(&dirs, leaf, steps, &mut nobody)? {
                    Some(found) => Some((found, leaf)),
                    None => return self.search_data_only(path, marked),
                }
            }
            redirect => {
                let name = redirect.unwrap_or(marked.name);
                self.check_component(name, marked.dir)?;
                self.search_on(below, name, steps, &mut nobody)?.map(|found| (found, name))
            }
        };
        let Some((Found { what: FoundKind::Leaf { dir, data }, stat, seen, .. }, name)) = found else {
            return Ok(None);
        };
        if stat.kind() != Kind::File {
            return Ok(None);
        }
        if !marked.reach.allows(&stat, READ) {
            return Err(self.leads_too_far(marked.dir, marked.name));
        }
        Ok(Some(data.unwrap_or_else(|| DataAt::of(dir, name, &stat, seen.generation()))))
    }

    /// Returns the marks of a node's object.
    pub(in crate::union) fn marks_of(&self, object: &Object) -> Result<Marks> {
        match object.in_upper() {
            true => upper_marks(object.writable()?, self.belief),
            false => Ok(marker::read_marks(object.at(), self.belief)?),
        }
    }

    /// Finds where a path leads to a file in the layers that hold data alone: to what the first of them has, and to
    /// nothing of an overlay's.
    fn search_data_only(&self, path: &[u8], marked: &Marked<'_>) -> Result<Option<DataAt>> {
        'layers: for layer in &self.layers[self.merged_layers().len()..] {
            let mut dir = layer.root.clone();
            let mut components = path.split(|&b| b == b'/').filter(|c| !c.is_empty()).peekable();
            while let Some(component) = components.next() {
                self.check_component(component, marked.dir)?;
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
                        if !marked.reach.allows(&stat, READ_AND_SEARCH) {
                            return Err(self.leads_too_far(marked.dir, marked.name));
                        }
                        dir = self.child_dir(&dir, component, at, (&stat, generation))?;
                    }
                    (Kind::File, false) => {
                        if !marked.reach.allows(&stat, READ) {
                            return Err(self.leads_too_far(marked.dir, marked.name));
                        }
                        return Ok(Some(DataAt::of(dir, component, &at.stat()?, generation)));
                    }
                    _ => continue 'layers,
                }
            }
        }
        Ok(None)
    }
}
