//! Lowers that somebody changes while they are mounted (`lower=checked`).
//!
//! A union isn't told what happens in its layers. overlayfs(5) calls the result of a change undefined, and here, too, names
//! and attributes are kept for ever by default. With this option the kernel keeps them for half a second, and what this
//! process keeps of a directory is held against the directory itself when it is used and was last looked at half a second
//! ago. So a change is seen by the first access a second after it:
//!
//! | in a lower | what is seen |
//! |---|---|
//! | a file is written to | its new data and attributes |
//! | a file is replaced, by rename(2) as editors do | the new one by its name; who has the old one open goes on with it |
//! | a file or a directory appears, goes, or gets another name | the names as they are |
//! | a directory that layers share appears, goes or is exchanged in one of them | another directory, merged anew |
//!
//! What would be a mixture is `ESTALE`: what is done by a directory that was exchanged, by who still works in it; a copy-up of
//! what changes while it is copied, when a second attempt meets another change.
//!
//! # By what a change is known
//!
//! The times of a directory, to the clock tick of its filesystem: so what has changed less than two seconds ago (that is how
//! coarse such clocks are) is taken to change still, and read anew at each look.
//!
//! # Another directory is another node
//!
//! The layers' directories that a node merges never change ([`DirPart::lowers`]). Where a lookup finds others than those of
//! the node that is known, that node is **superseded**: it answers to no name any more, and the lookup makes another.
//! So a directory that is merged anew has another inode number.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use dashmap::DashMap;
use rustix::io::Errno;
use smallvec::SmallVec;

use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::lookup::found::{Found, FoundKind};
use crate::union::lookup::realdir::{LayerIndex, RealDir};
use crate::union::lookup::watch::{Seen, Stamp};
use crate::union::nodes::node::{DirPart, Identity, Named, Node, NodePlace, NodeSource};

/// How long the kernel keeps names and attributes where lowers are checked.
pub const KEPT: Duration = Duration::from_millis(500);

/// How long a directory of a lower is taken to be as it was. With what the kernel keeps it makes a second.
const PERIOD: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_millis(500) };

/// How long a change under way in a directory is waited for before another node stands for it.
const PATIENCE: Duration = Duration::from_millis(200);

/// Which node stands for a directory of a layer, by its device and inode number.
pub(in crate::union) type Watched = DashMap<(LayerIndex, (u64, u64)), u64>;

impl Union {
    /// Looks whether a directory's lowers are as they were, where that is to be checked, and forgets what was known of their
    /// names if not. The caller holds the directory's names.
    ///
    /// # Errors
    /// `ESTALE` where something else is in the directory's place, and those of looking.
    pub(super) fn check_lowers(&self, node: &Node, dir: &DirPart) -> Result<()> {
        if self.watched.is_none() {
            return Ok(());
        }
        if dir.watch.is_superseded() {
            return Err(FsError::Stale);
        }
        // One looks; who comes meanwhile goes on with what is known.
        let Some(mut seen) = dir.watch.seen.try_lock() else { return Ok(()) };
        if seen.as_ref().is_some_and(|seen| seen.at.elapsed() < PERIOD) {
            return Ok(());
        }
        let (at, now) = (Instant::now(), SystemTime::now());
        let stamps = dir.lowers.iter().filter(|lower| lower.tree().is_none());
        let stamps: Result<Box<[Stamp]>> = stamps.map(|lower| self.stamp(lower, now)).collect();
        let stamps = match stamps {
            Ok(stamps) => stamps,
            Err(FsError::Stale | FsError::Absent) => {
                self.supersede(node, dir);
                return Err(FsError::Stale);
            }
            Err(other) => return Err(other),
        };
        let is_still = seen
            .as_ref()
            .is_none_or(|seen| seen.stamps.iter().zip(&stamps).all(|(before, after)| before.is_still(after)));
        *seen = Some(Box::new(Seen { at, stamps }));
        if !is_still {
            dir.watch.changes.fetch_add(1, Ordering::AcqRel);
            let dropped = dir.index.lock().lower.take();
            drop(dropped);
            *dir.default_acl.lock() = None;
            dir.lowers.iter().for_each(|lower| lower.forget_forms());
        }
        Ok(())
    }

    fn stamp(&self, lower: &Arc<RealDir>, now: SystemTime) -> Result<Stamp> {
        let stat = self.fds.get(lower)?.at().stat()?;
        if stat.nlink == 0 {
            return Err(FsError::Absent);
        }
        Ok(Stamp::of(&stat, now))
    }

    /// Supersedes what is known of a directory that was found under a name, and merges others than those that were found.
    /// The caller holds its parent's names.
    ///
    /// # Errors
    /// `EBUSY` where somebody goes on changing something in it.
    pub(in crate::union) fn supersede_other(
        &self,
        (parent, name): (&Arc<Node>, &[u8]),
        identity: Identity,
        found: &Found,
    ) -> Result<()> {
        let FoundKind::Directory { dirs, .. } = &found.what else { return Ok(()) };
        let Some(watched) = &self.watched else { return Ok(()) };
        let lowers = || dirs.iter().filter(|dir| !self.is_upper(dir.layer));
        let is_same = |dir: &DirPart| {
            lowers().count() == dir.lowers.len()
                && lowers().zip(&dir.lowers).all(|(found, known)| found.is_same_place(known))
        };
        let is_here = |node: &Node| match &*node.place.read() {
            NodePlace::Named { parent: above, entry } => {
                entry.name() == name && (Arc::ptr_eq(above, parent) || is_superseded(above))
            }
            NodePlace::Root | NodePlace::Pinned { .. } => false,
        };
        // The topmost lower gives a directory its identity, so what had another is found by what it shares with this one.
        // Two directories of a copied upper can share lowers, under two names.
        let shared = dirs.iter().filter_map(|dir| {
            let node = self.table.get(*watched.get(&(dir.layer, dir.id))?)?;
            (self.is_upper(dir.layer) || is_here(&node)).then_some(node)
        });
        let known: SmallVec<[Arc<Node>; 4]> = self.table.find(identity).into_iter().chain(shared).collect();
        for known in &known {
            let Some(dir) = known.dir.as_deref() else { continue };
            if matches!(*known.place.read(), NodePlace::Root) || dir.watch.is_superseded() || is_same(dir) {
                continue;
            }
            // Ancestors first. What a rename holds besides may be of another order, so nobody waits without end.
            let _names = dir.names.try_write_for(PATIENCE).ok_or(FsError::Os(Errno::BUSY))?;
            self.supersede(known, dir);
        }
        Ok(())
    }

    /// Remembers which directories of layers a node stands for, where lowers are checked.
    pub(in crate::union) fn watch(&self, node: &Node) {
        let (Some(watched), Some(dir)) = (&self.watched, &node.dir) else { return };
        for real in dir.upper_dir().iter().chain(&dir.lowers) {
            watched.insert((real.layer, real.id), node.ino);
        }
        let most = (2 * self.layers.len() * self.table.len()).max(4096);
        if watched.len() > most {
            watched.retain(|_, ino| self.table.get(*ino).is_some());
        }
    }

    fn supersede(&self, node: &Node, dir: &DirPart) {
        if matches!(*node.place.read(), NodePlace::Root) || dir.watch.superseded.swap(true, Ordering::AcqRel)
        {
            return;
        }
        log::warn!(
            "lower=checked: the directory {} is another one in its layers: who works in it gets ESTALE until he enters it anew",
            String::from_utf8_lossy(&self.path_of(node)).escape_debug()
        );
        node.supersede();
        if let NodePlace::Named { parent, entry } = &*node.place.read() {
            // What the name means now is no second thing that it was told to be.
            self.told_dirs.forget(parent, entry.name());
            self.stale_name(parent, entry.name());
        }
    }

    /// Gives a node that was found under a name this one, if what it had was one of a superseded directory.
    pub(in crate::union) fn place_anew(
        &self,
        node: &Node,
        parent: &Arc<Node>,
        name: &[u8],
        source: NodeSource,
    ) {
        let is_of_superseded = |place: &NodePlace| match place {
            NodePlace::Named { parent: known, .. } => {
                !Arc::ptr_eq(known, parent) && known.dir.as_ref().is_some_and(|dir| dir.watch.is_superseded())
            }
            NodePlace::Root | NodePlace::Pinned { .. } => false,
        };
        if self.watched.is_some() && is_of_superseded(&node.place.read()) {
            let mut place = node.place.write();
            if is_of_superseded(&place) {
                *place = NodePlace::Named { parent: parent.clone(), entry: Named::new(name, source) };
            }
        }
    }
}

fn is_superseded(node: &Node) -> bool {
    node.dir.as_ref().is_some_and(|dir| dir.watch.is_superseded())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::union::bed::{Bed, look_up};
    use crate::union::change::create::Create;
    use crate::union::change::failpoint::hook;
    use crate::union::change::staged::New;
    use crate::union::data::file::Write;
    use crate::union::options::FsOptions;

    fn checked(bed: &Bed) -> Union {
        bed.open_with(&FsOptions { check_lowers: true, ..FsOptions::default() })
    }

    fn names(union: &Union, path: &str) -> Result<Vec<String>> {
        let node = if path.is_empty() { union.root().clone() } else { look_up(union, path).unwrap() };
        names_of(union, &node)
    }

    fn names_of(union: &Union, node: &Arc<Node>) -> Result<Vec<String>> {
        let mut names = Vec::new();
        union.readdir(node, 0, |entry| {
            names.push(String::from_utf8(entry.name.to_vec()).unwrap());
            true
        })?;
        names.sort();
        Ok(names)
    }

    #[test]
    fn names_that_come_and_go_are_seen_by_lookups_and_listings() {
        for check_lowers in [true, false] {
            let bed = Bed::new(2);
            let union = bed
                .file("0/d/f")
                .file("1/d/g")
                .file("1/d/h")
                .open_with(&FsOptions { check_lowers, ..FsOptions::default() });
            assert_eq!(names(&union, "d").unwrap(), ["f", "g", "h"]);
            fs::rename(bed.at("1/d/g"), bed.at("1/d/renamed")).unwrap();
            fs::remove_file(bed.at("1/d/h")).unwrap();
            bed.file("0/d/new").file("0/d/.wh.away").file("1/d/away");
            let expected = if check_lowers { ["f", "new", "renamed"] } else { ["f", "g", "h"] };
            assert_eq!(names(&union, "d").unwrap(), expected, "{check_lowers}");
            assert_eq!(look_up(&union, "d/new").is_some(), check_lowers);
            assert_eq!(look_up(&union, "d/renamed").is_some(), check_lowers);
            assert!(look_up(&union, "d/g").is_none(), "it is asked where it was");
            assert!(look_up(&union, "d/away").is_none(), "a whiteout that came is one");
        }
    }

    #[test]
    fn a_file_that_is_replaced_is_the_new_one_by_its_name() {
        let bed = Bed::new(1);
        let union = checked(bed.file("0/f").file("0/other"));
        let before = look_up(&union, "f").unwrap();
        assert_eq!(union.getattr(&before).unwrap().stat.size, 3);
        fs::rename(bed.at("0/other"), bed.at("0/f")).unwrap();
        let after = look_up(&union, "f").unwrap();
        assert_ne!(before.ino, after.ino);
        let mut data = [0; 7];
        assert_eq!(union.read(&after, 0, &mut data), Ok(7));
        assert_eq!(&data, b"0/other");
    }

    #[test]
    fn a_directory_that_one_layer_gets_is_merged_anew() {
        let bed = Bed::new(2);
        let union = checked(bed.file("1/d/sub/g").file("upper/d/u"));
        let before = look_up(&union, "d").unwrap();
        let sub = look_up(&union, "d/sub").unwrap();
        bed.file("0/d/f").file("0/d/sub/h");
        assert_eq!(names(&union, "d").unwrap(), ["f", "sub", "u"]);
        assert_eq!(names(&union, "d/sub").unwrap(), ["g", "h"]);
        // Who works in the old one can't put anything beside the new one's back.
        let create = Create { new: New::File, mode: 0o644, umask: 0, caller: union.own };
        let make = |dir: &Arc<Node>| union.create(dir, b"made", create).map(drop);
        assert_eq!(make(&before), Err(FsError::Stale));
        assert_eq!(make(&sub), Err(FsError::Stale));
        assert_eq!(names_of(&union, &before), Err(FsError::Stale));
        make(&look_up(&union, "d").unwrap()).unwrap();
        make(&look_up(&union, "d/sub").unwrap()).unwrap();
        assert_eq!(names(&union, "d").unwrap(), ["f", "made", "sub", "u"]);
        assert_eq!(bed.names("upper/d/sub"), ["made"]);
        // What lies below is reached by the new one.
        let g = look_up(&union, "d/sub/g").unwrap();
        union.open(&g, rustix::fs::OFlags::WRONLY, false).unwrap();
        union.write(&g, 0, b"X", Write::default()).unwrap();
        assert_eq!(fs::read(bed.at("upper/d/sub/g")).unwrap(), b"X/d/sub/g");
    }

    /// Its topmost lower is another each time, and with it its identity.
    #[test]
    fn of_two_nodes_of_a_directory_one_alone_takes_changes() {
        let bed = Bed::new(2);
        let union = checked(bed.file("1/d/g"));
        let create = Create { new: New::File, mode: 0o644, umask: 0, caller: union.own };
        let make = |dir: &Arc<Node>, name: &str| union.create(dir, name.as_bytes(), create).map(drop);
        let lower_alone = look_up(&union, "d").unwrap();
        bed.file("0/d/f");
        let merged = look_up(&union, "d").unwrap();
        assert_eq!(make(&lower_alone, "first"), Err(FsError::Stale));
        fs::rename(bed.at("0/d"), bed.at("0/away")).unwrap();
        let again = look_up(&union, "d").unwrap();
        assert_eq!(make(&merged, "second"), Err(FsError::Stale));
        make(&again, "third").unwrap();
        assert_eq!(
            (names(&union, "d").unwrap(), bed.names("upper/d")),
            (vec!["g".into(), "third".into()], vec!["third".into()])
        );
        assert_eq!(names(&union, "away").unwrap(), ["f"]);
    }

    #[test]
    fn directories_that_are_renamed_removed_and_made_again_are_what_they_are() {
        let bed = Bed::new(1);
        let union = checked(bed.file("0/a/deep/f").file("0/c/x"));
        let deep = look_up(&union, "a/deep").unwrap();
        look_up(&union, "c/x").unwrap();
        fs::rename(bed.at("0/a"), bed.at("0/b")).unwrap();
        assert_eq!(names(&union, "").unwrap(), ["b", "c"]);
        assert!(look_up(&union, "a").is_none());
        assert_eq!(names(&union, "b/deep").unwrap(), ["f"]);
        assert!(names_of(&union, &deep).is_err(), "it is another node's now");
        let f = look_up(&union, "b/deep/f").unwrap();
        union.open(&f, rustix::fs::OFlags::WRONLY, false).unwrap();
        assert!(bed.at("upper/b/deep/f").exists() && !bed.at("upper/a").exists());
        for round in 0..3 {
            fs::remove_dir_all(bed.at("0/c")).unwrap();
            bed.file(&format!("0/c/{round}"));
            assert_eq!(names(&union, "c").unwrap(), [round.to_string()]);
        }
    }

    #[test]
    fn what_changes_while_it_is_copied_up_is_copied_again_or_stale() {
        for changes in [1, 9] {
            let bed = Bed::new(1);
            let union = checked(bed.file("0/f"));
            let f = look_up(&union, "f").unwrap();
            let path = bed.at("0/f");
            let change = hook::times(changes, move || fs::write(&path, "changed meanwhile").unwrap());
            let done = hook::during(change, || union.open(&f, rustix::fs::OFlags::WRONLY, false).map(drop));
            if changes == 1 {
                done.unwrap();
                assert_eq!(fs::read(bed.at("upper/f")).unwrap(), b"changed meanwhile");
            } else {
                assert_eq!(done, Err(FsError::Stale));
                assert!(!bed.at("upper/f").exists());
            }
        }
    }
}
