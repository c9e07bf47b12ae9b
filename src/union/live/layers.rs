//! A mount goes on over other lowers: one comes, or one goes.
//!
//! The upper stays the same, and so do the other layers, which are reached by the descriptors that they have. What is known is held
//! against what the new stack shows: see `compared`. A file that is another now, or none, is lost to who has it open. A
//! directory that is made of other directories of layers is the same one as long as any of them stays: its number and whoever is
//! in it stay.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Access, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::FsError;
use crate::sys::own::is_own;
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::held::{OfWhat, is_nobodys};
use crate::union::frozen::record::MOST_LAYERS;
use crate::union::frozen::site::Site;
use crate::union::frozen::unfit::SnapshotError;
use crate::union::live::Unchanged;
use crate::union::live::compared::Compared;
pub use crate::union::live::compared::Outdated;
use crate::union::live::succession::{self, How};
use crate::union::nodes::skeleton::OfUpper;
use crate::union::stack::directory::Layer;
use crate::union::stack::layer::{Lower, LowerSource, Stack, TreeLayer, Veils, unchanged_by_reading};
use crate::union::stack::nesting::{self, DirId, Member};
use crate::union::stack::stack_error::{Role, StackError};
use crate::union::stack::tree::Tree;
use crate::union::{OpenLayer, Union};

/// A layer that somebody names. It is told by both: between the look and the change others may have come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedLayer {
    /// Its number: 1 is the topmost lower.
    pub layer: u16,
    /// Where it is.
    pub directory: EscapedPath,
}

/// What is to become a layer.
#[derive(Debug, Clone, Copy)]
pub struct Coming<'a> {
    /// The directory, or an archive that was opened.
    pub source: &'a LowerSource,
    /// Device and inode number of what is meant. An archive was held against it when it was opened.
    pub id: (u64, u64),
    /// Where the mount is.
    pub point: &'a Path,
}

/// Where a layer is to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Above all lowers that aren't the upper's own.
    Top,
    /// Below all others.
    Bottom,
    /// Right above that one.
    Above(NamedLayer),
    /// Right below that one.
    Below(NamedLayer),
}

/// Who uses what, as far as it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InUse {
    /// The inode numbers of what is open, mapped, or somebody's working directory.
    pub inodes: BTreeSet<u64>,
    /// On what something is mounted, relative to the root of the mount.
    pub mounted: Vec<EscapedPath>,
    /// How many processes couldn't be looked at, and may use anything.
    #[serde(default)]
    pub unseen: usize,
}

/// Something that is in use and would be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Its inode number.
    pub ino: u64,
    /// Its path in the mount; where something is mounted, what it is mounted on.
    pub path: EscapedPath,
    /// Whether something is mounted there.
    pub is_mounted_on: bool,
}

/// Why the layers stay what they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotChanged {
    /// What would be lost is in use.
    #[error("what is in use would be lost")]
    Used(Vec<Lost>),
    /// It can't be done. The text is for the person who asked.
    #[error("{0}")]
    Refused(String),
}

impl From<StackError> for NotChanged {
    fn from(error: StackError) -> NotChanged {
        NotChanged::Refused(error.to_string())
    }
}

fn refused(why: impl ToString) -> NotChanged {
    NotChanged::Refused(why.to_string())
}

/// A stack that is about to change.
#[derive(Debug)]
pub struct Restacking {
    /// The layer that comes, and which it is to be among all.
    added: Option<(usize, Lower)>,
    /// Which of all goes.
    removed: Option<usize>,
    /// Whether files that leave their data below may come to be while it is prepared.
    may_leave_below: bool,
}

impl Restacking {
    /// Prepares to add a layer to a union that is used.
    ///
    /// # Errors
    /// Why it can't be.
    pub fn add(
        union: &Union,
        coming: Coming<'_>,
        place: &Place,
        how: &How,
    ) -> Result<Restacking, NotChanged> {
        let at = union.position(place)?;
        let lower = match coming.source {
            LowerSource::Directory(path) => union.open_to_add(at, path, &coming)?,
            LowerSource::Tree { path, tree } => Lower::Tree(TreeLayer {
                path: path.clone(),
                tree: Tree::new(tree.clone()),
                belief: union.belief,
            }),
        };
        Restacking { added: Some((at, lower)), removed: None, may_leave_below: how.options.metacopy }
            .ready(union, how)
    }

    /// Prepares to remove a layer from a union that is used.
    ///
    /// # Errors
    /// Why it can't be.
    pub fn remove(union: &Union, layer: &NamedLayer, how: &How) -> Result<Restacking, NotChanged> {
        let at = union.lower_at(layer)?;
        if union.merged_layers().len() == union.own_layers() + 1 {
            return Err(refused("it is the only layer below, and a mount needs one"));
        }
        Restacking { added: None, removed: Some(at), may_leave_below: how.options.metacopy }.ready(union, how)
    }

    fn ready(self, union: &Union, how: &How) -> Result<Restacking, NotChanged> {
        // What was known before the last exchange can be compared only once it is known anew.
        union.know_all_anew()?;
        self.leaves_data_in_reach(union, &self.trial(union, how)?)?;
        Ok(self)
    }

    /// Does it. Nobody may ask the union meanwhile. Returns the union that takes over, and what the kernel
    /// must be told once requests are answered again. `used`: what must not be lost, if anything.
    ///
    /// # Errors
    /// See [`NotChanged`]; all is as it was then.
    pub fn go(
        &self,
        union: &Union,
        how: &How,
        used: Option<&InUse>,
    ) -> Result<(Union, Outdated), Unchanged<NotChanged>> {
        let (mut next, compared) = self.judged(union, how, used).map_err(Unchanged::AsBefore)?;
        let mut skeleton = union.skeleton(OfUpper::Stays).map_err(|why| Unchanged::AsBefore(refused(why)))?;
        compared.tell(&mut skeleton, union.root().ino);
        next.take_over(skeleton);
        if let (Some(next), Some(before)) = (&next.upper, &union.upper) {
            next.take_over(before);
        }
        Ok((next, compared.outdated()))
    }

    fn judged(
        &self,
        union: &Union,
        how: &How,
        used: Option<&InUse>,
    ) -> Result<(Union, Compared), NotChanged> {
        let trial = self.trial(union, how)?;
        if self.may_leave_below {
            self.leaves_data_in_reach(union, &trial)?;
        }
        let compared = Compared::of(union, &trial)
            .map_err(|error| refused(format!("the layers can't be compared: {error}")))?;
        if let Some(used) = used {
            let lost = union.lost_of(used, &compared)?;
            if !lost.is_empty() {
                return Err(NotChanged::Used(lost));
            }
            if used.unseen > 0 && compared.loses_what_is_known() {
                return Err(refused(format!(
                    "something that was looked at would be gone, and {} processes of other users can't be looked at, which may use it; \
                     ask as root, or with --force it fails for them with ESTALE",
                    used.unseen
                )));
            }
        }
        drop(trial);
        // Another one: what that has looked up has numbers of its own.
        Ok((self.next(union, how, true)?, compared))
    }

    /// Returns a union over the new stack, to be looked at.
    fn trial(&self, union: &Union, how: &How) -> Result<Union, NotChanged> {
        let mut trial = self.next(union, how, false)?;
        trial.fds.set_generations_key(union.fds.generations().key());
        Ok(trial)
    }

    fn next(&self, union: &Union, how: &How, serves: bool) -> Result<Union, NotChanged> {
        let stack = self.stack(union, serves)?;
        Union::after(Some(&union.regions), stack, how.limits, &how.options)
            .map_err(|error| refused(format!("the layers can't be read: {error}")))
    }

    /// Returns the new stack. `serves`: the union over it is to have the upper.
    fn stack(&self, union: &Union, serves: bool) -> Result<Stack, StackError> {
        let own = usize::from(union.upper.is_some());
        let mut lowers = Vec::new();
        for at in own..=union.layers.len() {
            if let Some((_, lower)) = self.added.as_ref().filter(|(added, _)| *added == at) {
                lowers.push(match lower {
                    Lower::Directory(layer) => Lower::Directory(succession::same(layer)?),
                    Lower::Tree(TreeLayer { path, tree, belief }) => {
                        Lower::Tree(TreeLayer { path: path.clone(), tree: tree.clone(), belief: *belief })
                    }
                });
            }
            if let Some(known) = union.layers.get(at).filter(|_| self.removed != Some(at)) {
                lowers.push(succession::again(union, known)?);
            }
        }
        let again = |upper: &crate::union::change::upper::Upper| {
            let layer = succession::same(&upper.layer.layer)?;
            Ok::<_, StackError>(upper.layer.again(layer, serves))
        };
        let upper = union.upper.as_ref().map(again).transpose()?;
        let (data_only, frozen, belief) = (union.data_only, union.frozen, union.belief);
        let stack = Stack { lowers, data_only, frozen, upper, belief, veils: Veils::default() };
        Ok(stack.believing(belief))
    }

    /// Refuses where files of the upper would have other data, or none.
    fn leaves_data_in_reach(&self, union: &Union, trial: &Union) -> Result<(), NotChanged> {
        let data = |union: &Union| {
            union.left_below().map_err(|error| refused(format!("the upper can't be gone through: {error}")))
        };
        let before = data(union)?;
        if before.is_empty() {
            return Ok(());
        }
        let after = data(trial)?;
        let needing = before.iter().filter(|(path, data)| data.is_some() && after.get(*path) != Some(data));
        let needing: Vec<String> =
            needing.map(|(path, _)| EscapedPath::from(&path[..]).to_string()).collect();
        let Some(first) = needing.first() else { return Ok(()) };
        let more =
            if needing.len() > 1 { format!(" and {} more files", needing.len() - 1) } else { String::new() };
        let how = if self.removed.is_some() {
            "has left its data in that layer"
        } else {
            "would have the data of that layer"
        };
        Err(refused(format!(
            "{first}{more} of the upper {how}; unmount it, and copy them into the upper first (unionmount seal)"
        )))
    }
}

/// Tells whether the mount lies in a directory, by whatever path that was opened.
fn holds(layer: &Layer, point: &Path) -> Result<bool, NotChanged> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let found = match rustix::fs::open(point, flags, Mode::empty()) {
        Ok(point) => nesting::lies_in(point.as_fd(), DirId { dev: layer.dev, ino: layer.ino }),
        // It was moved.
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    };
    found.map_err(|errno| refused(format!("{}: can't be looked at: {errno}", EscapedPath::from(point))))
}

impl Union {
    /// Tells whether the layers of this mount are its own to change.
    ///
    /// # Errors
    /// Whose else they are.
    pub fn may_change_layers(&self) -> Result<(), SnapshotError> {
        let Some(upper) = &self.upper else { return Ok(()) };
        let layer = &upper.layer.layer;
        let path = layer.place();
        is_nobodys(&Site::of(layer.root.as_fd(), &path)?, &path, OfWhat::Layers)
    }

    /// Returns the lowers that aren't the upper's own, the topmost first.
    pub fn lower_sources(&self) -> Vec<LowerSource> {
        let source = |layer: &OpenLayer| match layer.root.tree() {
            Some(tree) => LowerSource::Tree { path: layer.path.clone(), tree: tree.source() },
            None => LowerSource::Directory(layer.place()),
        };
        self.merged_layers().iter().skip(self.own_layers()).map(source).collect()
    }

    /// Returns how many layers, from the top, are the upper or were it.
    fn own_layers(&self) -> usize {
        if self.upper.is_some() { 1 + self.frozen } else { 0 }
    }

    /// Returns which of all layers a lower is.
    fn lower_at(&self, named: &NamedLayer) -> Result<usize, NotChanged> {
        let number = |at: usize| usize::from(self.layer_number(at as u16));
        let at = (0..self.layers.len()).find(|at| number(*at) == usize::from(named.layer));
        let at = at.ok_or_else(|| refused(format!("there is no layer {}", named.layer)))?;
        let inspector = self.inspector();
        let is_it = inspector.real_path(at as u16, b"").is_ok_and(|path| path == named.directory.0);
        if !is_it {
            return Err(refused(format!(
                "layer {} isn't {} any more; try again",
                named.layer, named.directory
            )));
        }
        if at < usize::from(self.upper.is_some()) {
            return Err(refused("that is the upper"));
        }
        if at < self.own_layers() {
            return Err(refused("that is a snapshot of the upper; unionmount snapshots lists them"));
        }
        if at >= self.merged_layers().len() {
            return Err(refused("that layer holds data alone, which files of other layers need"));
        }
        Ok(at)
    }

    /// Returns which of all layers one comes to be.
    fn position(&self, place: &Place) -> Result<usize, NotChanged> {
        if self.layers.len() >= MOST_LAYERS {
            return Err(refused(format!("it has {MOST_LAYERS} layers, and can't have more")));
        }
        match place {
            Place::Top => Ok(self.own_layers()),
            Place::Bottom => Ok(self.merged_layers().len()),
            Place::Above(layer) => self.lower_at(layer),
            Place::Below(layer) => Ok(self.lower_at(layer)? + 1),
        }
    }

    /// Opens a directory that is to be a lower as well.
    fn open_to_add(&self, at: usize, path: &Path, coming: &Coming<'_>) -> Result<Lower, NotChanged> {
        let role = Role::Lower(usize::from(self.layer_number(at as u16)));
        let layer = Layer::open(role, path)?;
        let shown = EscapedPath::from(path);
        // Before anything is asked of it. While the layers are exchanged nobody answers.
        if is_own(layer.dev) {
            return Err(refused(format!("{shown}: lies in the mount, which would wait for itself")));
        }
        if (layer.dev, layer.ino) != coming.id {
            let other = "the daemon sees something else there; is it in another mount namespace?";
            return Err(refused(format!("{shown}: {other}")));
        }
        if holds(&layer, coming.point)? {
            return Err(refused(format!("{shown}: the mount lies in it")));
        }
        layer.may(role, Access::READ_OK | Access::EXEC_OK, "read and search permission on it")?;
        if let Some(known) = self.layers.iter().position(|known| known.root.id == (layer.dev, layer.ino)) {
            let number = self.layer_number(known as u16);
            return Err(refused(format!("it is layer {number} of the mount already")));
        }
        let mut members = vec![layer.member(role)];
        if let Some(upper) = &self.upper {
            members.push(Member { fd: upper.root(), ..upper.layer.layer.member(Role::Upper) });
            members.push(upper.layer.work.member()?);
        }
        if let Some(held) = nesting::check(&members)?.first() {
            return Err(refused(format!("it holds the {} of the mount", held.role)));
        }
        drop(members);
        let mut opened = unchanged_by_reading(vec![Lower::Directory(layer)]);
        opened.pop().ok_or_else(|| refused("can't be opened"))
    }

    /// Looks up what nobody has asked for since the layers were exchanged last.
    fn know_all_anew(&self) -> Result<(), NotChanged> {
        let mut numbers = Vec::new();
        self.table.bones().for_each(|ino, bone| {
            if !bone.is_dead {
                numbers.push(ino);
            }
        });
        for ino in numbers {
            match self.node(ino) {
                // What isn't there any more is lost already.
                Ok(_) | Err(FsError::Stale | FsError::Absent) => {}
                Err(error) => {
                    return Err(refused(format!("what is known of the mount can't be looked up: {error}")));
                }
            }
        }
        Ok(())
    }

    /// Returns what of that which is in use is lost.
    fn lost_of(&self, used: &InUse, compared: &Compared) -> Result<Vec<Lost>, NotChanged> {
        let lost = compared.lost();
        let mut all = Vec::new();
        for ino in used.inodes.iter().filter(|ino| lost.contains(ino)) {
            let path = self.table.get(*ino).map(|node| self.path_of(&node)).unwrap_or_default();
            all.push(Lost { ino: *ino, path: EscapedPath(path), is_mounted_on: false });
        }
        for path in &used.mounted {
            let mut at = self.root().clone();
            for name in path.0.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
                let next = self.peek(&at, name).map_err(|error| refused(format!("{path}: {error}")))?;
                let Some(next) = next else { break };
                // With a name that leads elsewhere the kernel lets go of what is mounted on it.
                if lost.contains(&next.ino) || compared.is_outdated(at.ino, name) {
                    all.push(Lost { ino: next.ino, path: path.clone(), is_mounted_on: true });
                    break;
                }
                if next.dir.is_none() {
                    break;
                }
                at = Arc::clone(&next);
            }
        }
        Ok(all)
    }
}
