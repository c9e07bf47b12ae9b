//! Two unions of one mount, over other lowers: what of that which is known is something else in the second.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::error::{FsError, Result};
use crate::sys::remove;
use crate::union::Union;
use crate::union::lookup::marker::WH_PREFIX;
use crate::union::nodes::generation::Generation;
use crate::union::nodes::node::{InodeId, Named, Node, NodePlace};
use crate::union::nodes::skeleton::Skeleton;

/// What becomes of the nodes that are known, as far as it isn't nothing.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Nothing that is found is these.
    lost: Vec<Arc<Node>>,
    /// Directories that are the same to who knows them, and whose topmost layer is another.
    turned: Vec<(Arc<Node>, InodeId, Generation)>,
    /// Files that stay under another of their names than the one in their place, which leads elsewhere.
    moved: Vec<(Arc<Node>, Arc<Node>, Named)>,
    outdated: Outdated,
}

/// What the kernel may keep that isn't so any more.
#[derive(Debug, Default)]
pub struct Outdated {
    /// Names, by the numbers of their directories: what they lead to is another, or there is something where nothing was, or nothing
    /// where something was.
    pub names: Vec<(u64, Vec<u8>)>,
    /// Nodes, by their numbers: attributes, listings, and what was read of what is lost.
    pub nodes: Vec<u64>,
}

impl Compared {
    /// Compares what is known of a union with what another shows. Nobody may change anything meanwhile.
    ///
    /// # Errors
    /// Those of reading the layers.
    pub fn of(before: &Union, after: &Union) -> Result<Compared> {
        before.leave_superseded()?;
        let (known, found) = (HashMap::new(), Compared::default());
        let mut walk = Walk { before, after, known, kept: HashSet::new(), gone: HashSet::new(), found };
        let root = if walk.same_layers(before.root(), after.root()) { Seen::Same } else { Seen::Other };
        walk.known.insert(before.root().ino, (root, Some(after.root().clone())));
        let mut all = Vec::new();
        before.table.for_each(|node| all.push(node.clone()));
        for node in &all {
            match &node.dir {
                Some(_) => drop(walk.directory(node)?),
                None => walk.leaf(node)?,
            }
        }
        walk.outdated(&all)?;
        Ok(walk.found)
    }

    /// Returns what the kernel is to be told.
    pub fn outdated(self) -> Outdated {
        self.outdated
    }

    /// Returns the numbers of what is lost.
    pub fn lost(&self) -> HashSet<u64> {
        self.lost.iter().map(|node| node.ino).collect()
    }

    /// Tells whether something is lost that the kernel knows, so that somebody may use it.
    pub fn loses_what_is_known(&self) -> bool {
        self.lost.iter().any(|node| node.lookups() > 0)
    }

    /// Tells whether a name is one of those that the kernel is to forget, with what is mounted on it.
    pub fn is_outdated(&self, directory: u64, name: &[u8]) -> bool {
        self.outdated.names.iter().any(|(dir, known)| *dir == directory && *known == name)
    }

    /// Writes it down for the union that takes over.
    pub fn tell(&self, skeleton: &mut Skeleton, root: u64) {
        for (node, parent, entry) in &self.moved {
            let entry = Named::new(entry.name(), entry.source());
            *node.place.write() = NodePlace::Named { parent: parent.clone(), entry };
        }
        self.lost.iter().for_each(|node| skeleton.lose(node, root));
        self.turned.iter().for_each(|(node, real, seen)| skeleton.turn_into(node, *real, *seen));
    }
}

/// Where data lie that files have left below, by the files' paths: device and inode number, if that can be told.
pub(super) type LeftBelow = BTreeMap<Vec<u8>, Option<(u64, u64)>>;

/// What a directory is in the second union.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// It is made of the same directories of layers, so all in it is the same.
    Same,
    /// It is made of others, some of which are the same.
    Other,
    Lost,
}

struct Walk<'u> {
    before: &'u Union,
    after: &'u Union,
    /// By number. The node in the second union, as far as it was needed.
    known: HashMap<u64, (Seen, Option<Arc<Node>>)>,
    /// Names, by the numbers of their directories, of files that have several: those that lead to them still, and those that don't.
    kept: HashSet<(u64, Vec<u8>)>,
    gone: HashSet<(u64, Vec<u8>)>,
    found: Compared,
}

impl Walk<'_> {
    /// Tells what a directory is, and those above it. One that has no name is nobody's business.
    fn directory(&mut self, node: &Arc<Node>) -> Result<Seen> {
        let mut chain = Vec::new();
        let mut at = node.clone();
        while !self.known.contains_key(&at.ino) {
            let Some((parent, name)) = name_of(&at) else {
                self.known.insert(at.ino, (Seen::Same, None));
                break;
            };
            chain.push((at, parent.clone(), name));
            at = parent;
        }
        while let Some((node, parent, name)) = chain.pop() {
            let judged = self.judge_directory(&node, &parent, &name)?;
            self.known.insert(node.ino, judged);
        }
        Ok(self.known.get(&node.ino).map_or(Seen::Lost, |(seen, _)| *seen))
    }

    fn judge_directory(
        &mut self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        name: &[u8],
    ) -> Result<(Seen, Option<Arc<Node>>)> {
        if node.is_gone() {
            // Another node stands for what its name leads to.
            return Ok((Seen::Lost, None));
        }
        match self.directory_seen(parent) {
            Seen::Same if !self.may_lead_elsewhere(parent, node) => return Ok((Seen::Same, None)),
            Seen::Same | Seen::Other => {}
            Seen::Lost => {
                self.found.lost.push(node.clone());
                return Ok((Seen::Lost, None));
            }
        }
        let Some(now) = self.child(parent, name)?.filter(|now| now.dir.is_some() && self.overlap(node, now))
        else {
            self.found.lost.push(node.clone());
            return Ok((Seen::Lost, None));
        };
        if now.real() != node.real() {
            self.found.turned.push((node.clone(), now.real(), now.generation()));
        }
        let seen = if self.same_layers(node, &now) { Seen::Same } else { Seen::Other };
        Ok((seen, Some(now)))
    }

    fn directory_seen(&self, node: &Node) -> Seen {
        self.known.get(&node.ino).map_or(Seen::Lost, |(seen, _)| *seen)
    }

    fn leaf(&mut self, node: &Arc<Node>) -> Result<()> {
        let Some((parent, name)) = name_of(node) else { return Ok(()) };
        let data = self.before.metacopies.get(&node.ino).map(|data| data.id);
        let is_there = match self.directory(&parent)? {
            Seen::Same if data.is_none() => true,
            _ => self.leads_to(node, data, &parent, &name)?,
        };
        let others = self.before.other_names(node);
        if others.is_empty() {
            if !is_there {
                self.found.lost.push(node.clone());
            }
            return Ok(());
        }
        self.names(is_there).insert((parent.ino, name));
        // Each is looked at: what is known of it may be older than what its directory has.
        let mut stays = None;
        for (parent, entry) in others {
            let seen = self.directory(&parent)?;
            let leads = self.leads_to(node, data, &parent, entry.name())?;
            // In a directory that is the same it led elsewhere before.
            if leads || seen != Seen::Same || data.is_some() {
                self.names(leads).insert((parent.ino, entry.name().to_vec()));
            }
            if leads {
                stays = stays.or(Some((parent, entry)));
            }
        }
        match stays {
            _ if is_there => {}
            Some((parent, entry)) => self.found.moved.push((node.clone(), parent, entry)),
            None => self.found.lost.push(node.clone()),
        }
        Ok(())
    }

    fn names(&mut self, lead: bool) -> &mut HashSet<(u64, Vec<u8>)> {
        if lead { &mut self.kept } else { &mut self.gone }
    }

    /// Tells whether a name leads to a file in the second union, with the same data.
    fn leads_to(
        &mut self,
        node: &Node,
        data: Option<(u64, u64)>,
        parent: &Arc<Node>,
        name: &[u8],
    ) -> Result<bool> {
        if self.directory(parent)? == Seen::Lost {
            return Ok(false);
        }
        let Some(now) = self.child(parent, name)? else { return Ok(false) };
        let data_now = self.after.metacopies.get(&now.ino).map(|data| data.id);
        Ok(now.kind == node.kind && now.real() == node.real() && data_now == data)
    }

    /// Returns what the second union has under a name of a directory. What can't be made sense of is nothing.
    fn child(&mut self, parent: &Arc<Node>, name: &[u8]) -> Result<Option<Arc<Node>>> {
        let Some(parent) = self.counterpart(parent)? else { return Ok(None) };
        self.after.peek(&parent, name)
    }

    /// Returns the node of a directory in the second union.
    fn counterpart(&mut self, node: &Arc<Node>) -> Result<Option<Arc<Node>>> {
        let mut chain = Vec::new();
        let mut at = node.clone();
        let mut now = loop {
            match self.known.get(&at.ino) {
                Some((_, Some(now))) => break now.clone(),
                Some((Seen::Lost, None)) | None => return Ok(None),
                Some((_, None)) => {}
            }
            let Some((parent, name)) = name_of(&at) else { return Ok(None) };
            chain.push((at, name));
            at = parent;
        };
        while let Some((at, name)) = chain.pop() {
            let Some(child) = self.after.peek(&now, &name)? else { return Ok(None) };
            if let Some(known) = self.known.get_mut(&at.ino) {
                known.1 = Some(child.clone());
            }
            now = child;
        }
        Ok(Some(now))
    }

    /// Finds what the kernel may keep that isn't so any more. A name leads to something else only if one of those directories has it that
    /// came, or that went: whoever is asked for a name asks them, and the others are the same.
    fn outdated(&mut self, all: &[Arc<Node>]) -> Result<()> {
        let lost = self.found.lost();
        let named = |node: &Arc<Node>| name_of(node).map(|(parent, name)| (parent.ino, name));
        let mut gone = std::mem::take(&mut self.gone);
        let stays = all.iter().filter(|node| !lost.contains(&node.ino) && !node.is_gone()).filter_map(named);
        let mut kept: HashSet<(u64, Vec<u8>)> = stays.filter(|name| !gone.contains(name)).collect();
        kept.extend(self.kept.drain());
        // Also where no directory has come or gone: an absolute redirect leads there.
        gone.extend(self.found.lost.iter().filter_map(named));
        let mut names: HashSet<(u64, Vec<u8>)> = gone;
        names.retain(|(parent, _)| !lost.contains(parent));
        let mut nodes: Vec<u64> = lost.iter().copied().collect();
        for node in all {
            let Some((Seen::Other, Some(now))) = self.known.get(&node.ino) else { continue };
            nodes.push(node.ino);
            for (union, these, others) in [(self.before, node, parts(now)), (self.after, now, parts(node))] {
                let Some(part) = &these.dir else { continue };
                let own = part.upper_dir();
                for real in own.iter().chain(&part.lowers).filter(|real| !others.contains(&real.id)) {
                    union.fds.get(real)?.list(|entry| {
                        let name = entry.name.strip_prefix(WH_PREFIX).unwrap_or(entry.name);
                        names.insert((node.ino, name.to_vec()));
                        Ok::<_, FsError>(())
                    })?;
                }
            }
        }
        self.found.outdated = Outdated { names: names.difference(&kept).cloned().collect(), nodes };
        Ok(())
    }

    /// Tells whether what a directory is made of may lie elsewhere than in what its parent is made of: it was renamed. Where it leads to
    /// there may be nothing yet.
    fn may_lead_elsewhere(&self, parent: &Node, node: &Node) -> bool {
        let (Some(part), above) = (&node.dir, parts(parent)) else { return false };
        part.upper_dir().iter().chain(&part.lowers).any(|real| {
            let Some((at, name)) = real.found_at().filter(|(at, _)| above.contains(&at.id)) else {
                return true;
            };
            let marks = self.before.fds.get(&at).and_then(|dir| self.before.marks_in(&at, dir.entry(&name)));
            // What can't be read is looked at.
            marks.map_or(true, |marks| marks.redirect.is_some())
        })
    }

    fn same_layers(&self, node: &Node, now: &Node) -> bool {
        parts(node) == parts(now)
    }

    /// Tells whether a directory has any of those that it had.
    fn overlap(&self, node: &Node, now: &Node) -> bool {
        let now = parts(now);
        parts(node).iter().any(|part| now.contains(part))
    }
}

/// Returns which directories of layers one is made of, the topmost first.
fn parts(node: &Node) -> Vec<(u64, u64)> {
    let Some(part) = &node.dir else { return Vec::new() };
    part.upper_dir().iter().chain(&part.lowers).map(|real| real.id).collect()
}

/// Returns under which name of which directory a node is known.
pub(super) fn name_of(node: &Node) -> Option<(Arc<Node>, Vec<u8>)> {
    match &*node.place.read() {
        NodePlace::Named { parent, entry } => Some((parent.clone(), entry.name().to_vec())),
        NodePlace::Root | NodePlace::Pinned { .. } => None,
    }
}

impl Union {
    /// Returns what is known as a name of a directory, for who only looks. What can't be made sense of is nothing.
    pub(in crate::union) fn peek(&self, parent: &Arc<Node>, name: &[u8]) -> Result<Option<Arc<Node>>> {
        let _names = self.dir_part(parent)?.names.read();
        let found = match self.resolve(parent, name) {
            Ok(Some(found)) => found,
            Ok(None) | Err(FsError::LayerForm { .. } | FsError::Absent) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(self.node_of(parent, name, &found, 0)?.0))
    }

    /// Returns, by their paths, where the data of those files lie that have left them below, in the upper and in what was frozen of
    /// it. `None` where that can't be told.
    pub(super) fn left_below(&self) -> Result<LeftBelow> {
        let mut all = BTreeMap::new();
        if self.upper.is_none() {
            return Ok(all);
        }
        let mut directories = vec![(self.root().clone(), Vec::new())];
        while let Some((directory, path)) = directories.pop() {
            for name in self.own_names(&directory)? {
                let path = [&path[..], b"/", &name].concat();
                match self.lookup(&directory, &name) {
                    Ok(Some((node, _))) => {
                        if let Some(data) = self.metacopies.get(&node.ino) {
                            all.insert(path.clone(), Some(data.id));
                        }
                        let ino = node.ino;
                        if node.dir.is_some() {
                            directories.push((node, path));
                        }
                        self.forget(ino, 1);
                    }
                    Err(FsError::LayerForm { .. }) => drop(all.insert(path, None)),
                    Ok(None) => {}
                    Err(error) => return Err(error),
                }
            }
            let ino = directory.ino;
            drop(directory);
            self.release(ino);
        }
        Ok(all)
    }

    /// Returns the names that the upper, and what was frozen of it, have in a directory; markers among them.
    fn own_names(&self, directory: &Node) -> Result<HashSet<Vec<u8>>> {
        let part = self.dir_part(directory)?;
        let frozen = part.lowers.iter().filter(|real| self.is_own(real.layer)).cloned();
        let mut names = HashSet::new();
        for real in part.upper_dir().into_iter().chain(frozen) {
            let fd = self.fds.host(&real)?;
            names.extend(
                remove::names(std::os::fd::AsFd::as_fd(&fd))?.into_iter().map(|name| name.into_bytes()),
            );
        }
        Ok(names)
    }
}
