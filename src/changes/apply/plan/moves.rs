//! Directories that were renamed: which are moved, when they are taken out, and where things are in the end.

use std::os::fd::AsFd;

use super::rights::may_change;
use super::walk::Walk;
use crate::changes::apply::beneath::{Dir, Seen, find_dir, name_of};
use crate::changes::apply::error::Result;
use crate::changes::apply::raw::{self, Renamed};
use crate::changes::apply::step::{Act, Step};
use crate::image::layer::LayerError;
use crate::image::layer::place::{join, open_dir, split};

impl Walk<'_> {
    /// Plans what is moved: directories that come to another place are taken out of theirs first, the deepest first, so that each is found where
    /// it is now.
    pub(super) fn take_out(&mut self) -> Result<()> {
        let depth = |renamed: &Renamed| renamed.from.iter().filter(|&&byte| byte == b'/').count();
        let mut moves = std::mem::take(&mut self.moves);
        let mut kept = Vec::new();
        for renamed in moves.drain(..) {
            let (_, from) = self.open_target(&renamed.from)?;
            let (_, parent) = self.open_target(split(&renamed.from).0)?;
            // What is on another filesystem is copied.
            if from.dev == parent.dev && !from.mount_root {
                kept.push((renamed, from.dev));
            }
        }
        // One whose new parent is made anew is copied with it, and so is one that comes to another filesystem, or subvolume:
        // a rename doesn't lead there.
        loop {
            let all: Vec<Renamed> = kept.iter().map(|(renamed, _)| renamed.clone()).collect();
            let mut staying = Vec::new();
            for (renamed, dev) in kept {
                if let Some(parent) = self.lands_in(&renamed.to, &all)?
                    && self.open_target(&parent)?.1.dev == dev
                {
                    staying.push((renamed, dev));
                }
            }
            kept = staying;
            if kept.len() == all.len() {
                break;
            }
        }
        let mut kept: Vec<Renamed> = kept.into_iter().map(|(renamed, _)| renamed).collect();
        kept.sort_by_key(|renamed| depth(renamed));
        for renamed in &kept {
            let home = self.staying(split(&renamed.from).0)?;
            let (_, stat) = self.open_target(&home)?;
            self.stage(stat.dev, &Dir { path: home.into(), seen: Seen::of(&stat) });
        }
        kept.reverse();
        for renamed in &kept {
            let (_, stat) = self.open_target(&renamed.from)?;
            let (parent, _) = split(&renamed.from);
            let (holder, around) = self.open_target(parent)?;
            may_change(holder.as_fd(), name_of(&renamed.from), &renamed.from)?;
            let dir = Dir { path: parent.into(), seen: Seen::of(&around) };
            let stage = self.stage(around.dev, &dir);
            let act = Act::Take { seen: Seen::of(&stat) };
            self.steps.push(Step { path: renamed.from.clone().into(), dir, stage, act });
        }
        self.moves = kept;
        Ok(())
    }

    /// Returns the nearest directory around that stays in its place: what lies in another goes with it, or can't be moved into
    /// what lies there.
    pub(super) fn staying(&self, path: &[u8]) -> Result<Vec<u8>> {
        let mut path = path;
        while !path.is_empty() && raw::hides(self.upper, path, |_| false)? {
            path = split(path).0;
        }
        Ok(path.to_vec())
    }

    /// Returns where the directory that is to hold a renamed one is now; `None`: it is none of the target's, in its place or
    /// moved.
    fn lands_in(&self, to: &[u8], moves: &[Renamed]) -> Result<Option<Vec<u8>>> {
        let mut now: Vec<u8> = Vec::new();
        let (parent, _) = split(to);
        let mut at: Vec<u8> = Vec::new();
        for name in parent.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
            at = join(&at, name);
            now = match moves.iter().find(|renamed| renamed.to == at) {
                Some(renamed) => renamed.from.clone(),
                None => {
                    let dir = open_dir(self.upper, split(&at).0).map_err(LayerError::os(&at, "open it"))?;
                    let marks = raw::marks(dir.as_fd(), name, &at)?;
                    if (marks.opaque || marks.redirect.is_some()) && !self.settled.contains(&at) {
                        return Ok(None);
                    }
                    join(&now, name)
                }
            };
            if find_dir(self.target, &now)?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(now))
    }

    pub(super) fn moved_to(&self, path: &[u8]) -> Option<&Renamed> {
        self.moves.iter().find(|renamed| renamed.to == path)
    }

    pub(super) fn is_moved_away(&self, now: &[u8]) -> bool {
        self.moves.iter().any(|renamed| renamed.from == now)
    }

    /// Tells where something of the target is when all is done.
    pub(super) fn in_the_end(&self, now: &[u8]) -> Vec<u8> {
        let within = |renamed: &&Renamed| {
            now.strip_prefix(&renamed.from[..]).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        match self.moves.iter().filter(within).max_by_key(|renamed| renamed.from.len()) {
            Some(renamed) => [&renamed.to[..], &now[renamed.from.len()..]].concat(),
            None => now.to_vec(),
        }
    }
}
