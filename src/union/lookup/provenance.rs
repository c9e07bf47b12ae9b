//! Where a path comes from: what each layer holds under it, which layer wins, what hides the others.
//!
//! A lookup ends as soon as it knows the answer. Here the same search (`Union::search_telling`) tells what it passed,
//! and is started again below the point at which it ended, to see what that hides. A [`Trail`] is a path's parent with
//! all of this: the directories that are merged, and beside them, in groups, those that are hidden and why. So what lies
//! in a hidden directory is found too. What is told of a path is in `answer`; a [`View`] is a stack that isn't mounted.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use unionmount::union::lookup::provenance::{Outcome, View};
//! # let top = tempfile::tempdir()?;
//! # for dir in ["app", "base"] { std::fs::create_dir(top.path().join(dir))?; }
//! # std::fs::write(top.path().join("base/motd"), "hello")?;
//! # std::fs::write(top.path().join("app/.wh.motd"), "")?;
//! # let (app, base) = (top.path().join("app"), top.path().join("base"));
//! let view = View::open(&[app, base], None)?; // the first on top; nothing is mounted, locked or made
//! let motd = view.inspector().provenance(b"motd")?;
//! assert!(matches!(motd.outcome, Outcome::Absent)); // app/ has a whiteout, app/.wh.motd …
//! assert_eq!(motd.hidden(), [1]); // … which hides base/motd
//! # Ok(()) }
//! ```

mod answer;
mod view;
mod walk;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

pub use self::answer::{Held, Hider, Hides, Holds, Outcome, Provenance};
pub use self::view::View;
use self::walk::ProvenanceWalk;
use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::lookup::found::{Found, FoundKind, RealDirs};
use crate::union::lookup::index::scan;
use crate::union::lookup::marker::WH_PREFIX;
use crate::union::lookup::realdir::{LayerIndex, RealDir};

/// A path on the way down: real directories in groups that are searched each for itself.
#[derive(Debug, Clone)]
pub struct Trail {
    path: Vec<u8>,
    /// The group that the merged view shows comes first and has no hider; the others are hidden.
    groups: Vec<Group>,
    missing_parents: Vec<Vec<u8>>,
    broken_at: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
struct Group {
    dirs: RealDirs,
    hidden: Option<Hider>,
}

impl Trail {
    /// The path that was followed, relative to the root of the merged view.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The layers whose directories are merged here, topmost first; empty where the merged view has no directory.
    pub fn merged(&self) -> Vec<LayerIndex> {
        self.shown().iter().map(|dir| dir.layer).collect()
    }

    fn shown(&self) -> &[Arc<RealDir>] {
        match self.groups.first() {
            Some(Group { dirs, hidden: None }) => dirs,
            _ => &[],
        }
    }

    fn join(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [&self.path, &b"/"[..], name].concat() }
    }
}

/// Answers where paths come from.
#[derive(Debug, Clone, Copy)]
pub struct Inspector<'u> {
    union: &'u Union,
    upper: bool,
}

impl Union {
    /// Returns what answers where paths of this union come from, mounted or not. It takes no locks of the union: changes that
    /// are made at the same time may be seen half-way.
    pub fn inspector(&self) -> Inspector<'_> {
        Inspector { union: self, upper: self.upper.is_some() }
    }
}

impl<'u> Inspector<'u> {
    /// Is the topmost layer the upper?
    pub fn has_upper(&self) -> bool {
        self.upper
    }

    /// The number by which users know a layer: 0 is the upper, 1 the topmost lower.
    pub fn number(&self, layer: LayerIndex) -> u16 {
        layer + u16::from(!self.upper)
    }

    /// The paths of the layers, topmost first.
    pub fn layer_paths(&self) -> Vec<&'u Path> {
        self.union.layers.iter().map(|layer| layer.path.as_path()).collect()
    }

    /// The absolute path of a place in a layer, as this process sees it.
    pub fn real_path(&self, layer: LayerIndex, path: &[u8]) -> Result<Vec<u8>> {
        let layer = self.union.layers.get(usize::from(layer)).ok_or(FsError::Stale)?;
        // Not asked of the descriptor: a lower may be open by a mount of this process's own, which has no place in the tree.
        let mut real = layer.place.clone();
        if !path.is_empty() {
            if real != b"/" {
                real.push(b'/');
            }
            real.extend_from_slice(path);
        }
        Ok(real)
    }

    /// The root, where every path starts.
    pub fn root(&self) -> Trail {
        let dirs = self.union.merged_layers().iter().map(|layer| layer.root.clone()).collect();
        Trail {
            path: Vec::new(),
            groups: vec![Group { dirs, hidden: None }],
            missing_parents: Vec::new(),
            broken_at: None,
        }
    }

    /// The root's own provenance: all layers are merged in it.
    pub fn root_provenance(&self) -> Result<Provenance> {
        let mut held = Vec::new();
        let mut top = None;
        for layer in self.union.merged_layers() {
            let stat = self.union.fds.get(&layer.root)?.at().stat()?;
            top.get_or_insert(stat);
            let holds = Holds::Directory { stat, opaque: false, beside: false, redirect: None };
            held.push(Held { layer: layer.root.layer, path: Vec::new(), holds, hidden: None });
        }
        let layers = held.iter().map(|held| held.layer).collect();
        let stat = top.ok_or(FsError::Absent)?;
        Ok(Provenance {
            path: Vec::new(),
            held,
            outcome: Outcome::Directory { layers, stat },
            below: true,
            missing_parents: Vec::new(),
            broken_at: None,
        })
    }

    /// All about a path, relative to the root of the merged view. It need not exist.
    ///
    /// # Errors
    /// A component that is `..` or longer than any name; those of reading the layers.
    pub fn provenance(&self, path: &[u8]) -> Result<Provenance> {
        Ok(self.follow(path)?.0)
    }

    /// As [`Inspector::provenance`], with the trail that leads on into the path.
    pub fn follow(&self, path: &[u8]) -> Result<(Provenance, Trail)> {
        let mut trail = self.root();
        let mut last = None;
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty() && *name != b".") {
            let (provenance, next) = self.descend(&trail, name)?;
            (trail, last) = (next, Some(provenance));
        }
        let found = match last {
            Some(found) => found,
            None => self.root_provenance()?,
        };
        Ok((found, trail))
    }

    /// One step down: all about `name` in a directory, and the trail that leads on into it.
    pub fn descend(&self, trail: &Trail, name: &[u8]) -> Result<(Provenance, Trail)> {
        if name.len() > 255 {
            return Err(FsError::Os(rustix::io::Errno::NAMETOOLONG));
        }
        if name == b".." || name.contains(&0) {
            return Err(FsError::Invalid("not a name"));
        }
        let path = trail.join(name);
        let mut walk = ProvenanceWalk { inspector: *self, path: &path, held: Vec::new(), groups: Vec::new() };
        let mut outcome = Outcome::Absent;
        // A name of a marker's form is never shown, whatever a layer has under it.
        if !name.starts_with(WH_PREFIX) {
            for group in &trail.groups {
                let found = walk.search(&group.dirs, name, group.hidden.clone())?;
                if group.hidden.is_none() {
                    outcome = self.outcome(found)?;
                }
            }
        }
        let ProvenanceWalk { mut held, groups, .. } = walk;
        for layer in 0..self.union.layers.len() as LayerIndex {
            if !held.iter().any(|held| held.layer == layer) {
                held.push(Held { layer, path: path.clone(), holds: Holds::Absent, hidden: None });
            }
        }
        held.sort_by_key(|held| held.layer);
        let next = Trail {
            path: path.clone(),
            groups,
            missing_parents: self.missing_parents(trail),
            broken_at: trail
                .broken_at
                .clone()
                .or_else(|| trail.shown().is_empty().then(|| trail.path.clone())),
        };
        let provenance = Provenance {
            path,
            held,
            outcome,
            below: self.lowers_show(trail, name)?,
            missing_parents: next.missing_parents.clone(),
            broken_at: next.broken_at.clone(),
        };
        Ok((provenance, next))
    }

    /// Every name that any layer has in a directory, hidden ones too, and those that whiteouts name.
    pub fn names(&self, trail: &Trail) -> Result<BTreeSet<Vec<u8>>> {
        let mut names = BTreeSet::new();
        for dir in trail.groups.iter().flat_map(|group| &group.dirs) {
            scan(
                dir,
                &self.union.fds.get(dir)?,
                |_, _| true,
                |name, _| {
                    names.insert(name.to_vec());
                },
            )?;
        }
        Ok(names)
    }

    fn is_upper(&self, layer: LayerIndex) -> bool {
        self.upper && layer == 0
    }

    fn outcome(&self, found: Option<Found>) -> Result<Outcome> {
        let Some(Found { stat, layer, id, what, .. }) = found else { return Ok(Outcome::Absent) };
        Ok(match what {
            FoundKind::Directory { dirs, .. } => {
                Outcome::Directory { layers: dirs.iter().map(|dir| dir.layer).collect(), stat }
            }
            FoundKind::Leaf { .. } => {
                let copy = match self.is_upper(layer) || stat.nlink < 2 {
                    true => None,
                    false => self.union.indexed_copy(id)?,
                };
                Outcome::Leaf { layer, stat: copy.unwrap_or(stat), copied_elsewhere: copy.is_some() }
            }
        })
    }

    /// Do the lowers of the merged directory show the name?
    fn lowers_show(&self, trail: &Trail, name: &[u8]) -> Result<bool> {
        let lowers = trail.shown();
        let lowers = &lowers[usize::from(lowers.first().is_some_and(|dir| self.is_upper(dir.layer)))..];
        Ok(!name.starts_with(WH_PREFIX) && self.union.search(lowers, name)?.is_some())
    }

    /// The parents of what lies in a directory that the upper doesn't have.
    fn missing_parents(&self, trail: &Trail) -> Vec<Vec<u8>> {
        let mut missing = trail.missing_parents.clone();
        if self.upper && trail.shown().first().is_some_and(|dir| !self.is_upper(dir.layer)) {
            missing.push(trail.path.clone());
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::union::lookup::marker::WhiteoutMark;
    use std::fs;
    use tempfile::TempDir;

    /// Layers by their files' paths, topmost first; a path that ends in `/` is a directory.
    fn view(layers: &[&[&str]]) -> (TempDir, View) {
        let top = tempfile::tempdir().unwrap();
        let mut paths = Vec::new();
        for (at, files) in layers.iter().enumerate() {
            let root = top.path().join(at.to_string());
            fs::create_dir(&root).unwrap();
            for file in *files {
                let place = root.join(file);
                fs::create_dir_all(place.parent().unwrap()).unwrap();
                match file.ends_with('/') {
                    true => fs::create_dir_all(place).unwrap(),
                    false => fs::write(place, file).unwrap(),
                }
            }
            paths.push(root);
        }
        let view = View::open(&paths[1..], Some(&paths[0])).unwrap();
        (top, view)
    }

    fn hider(found: &Provenance, layer: LayerIndex) -> Hider {
        found.held[usize::from(layer)].hidden.clone().unwrap()
    }

    #[test]
    fn the_topmost_file_wins_and_hides_the_others() {
        let (_top, view) = view(&[&["x"], &["etc/os"], &["etc/os"], &[]]);
        let found = view.inspector().provenance(b"etc//os").unwrap();
        assert_eq!(found.path, b"etc/os");
        assert_eq!((found.winner(), found.hidden()), (Some(1), vec![2]));
        assert_eq!(hider(&found, 2), Hider { layer: 1, path: b"etc/os".to_vec(), what: Hides::Leaf });
        assert_eq!(found.held[3].holds, Holds::Absent);
        assert_eq!(found.missing_parents, [b"etc".to_vec()]);
        assert!(found.below);
    }

    #[test]
    fn what_an_opaque_parent_hides_is_found_with_the_reason() {
        let (_top, view) = view(&[&["d/"], &["d/.wh..wh..opq", "d/new"], &["d/old"], &["d/old"]]);
        let found = view.inspector().provenance(b"d/old").unwrap();
        assert_eq!((found.winner(), found.hidden()), (None, vec![2, 3]));
        assert_eq!(hider(&found, 3), Hider { layer: 1, path: b"d".to_vec(), what: Hides::Opaque });
        assert!(!found.below && found.broken_at.is_none());
        let d = view.inspector().provenance(b"d").unwrap();
        assert!(matches!(&d.outcome, Outcome::Directory { layers, .. } if layers == &[0, 1]));
        assert_eq!(d.hidden(), [2, 3]);
    }

    #[test]
    fn a_whiteout_that_hides_nothing_is_seen_too() {
        let (_top, view) = view(&[&[".wh.a"], &["f/below"], &["a", ".wh.b", "f"]]);
        let found = view.inspector().provenance(b"a").unwrap();
        assert_eq!(found.held[0].holds, Holds::Whiteout(WhiteoutMark::Aufs));
        assert_eq!(hider(&found, 2).what, Hides::Whiteout);
        let found = view.inspector().provenance(b"b").unwrap();
        assert_eq!(found.held[2].holds, Holds::Whiteout(WhiteoutMark::Aufs));
        // A directory above a file.
        let found = view.inspector().provenance(b"f").unwrap();
        assert_eq!(hider(&found, 2).what, Hides::Directory);
        let through_a_file = view.inspector().provenance(b"a/b").unwrap();
        assert_eq!(through_a_file.broken_at, Some(b"a".to_vec()));
    }

    #[test]
    fn a_redirect_leads_elsewhere_and_hides_the_namesake() {
        let (top, view) = view(&[&["new/"], &["in/old/x", "new/y"]]);
        let dir = top.path().join("0/new");
        let flags = rustix::fs::XattrFlags::empty();
        if rustix::fs::setxattr(
            &dir,
            &*crate::union::lookup::belief::Belief::of_process().namespace.name("redirect"),
            b"/in/old",
            flags,
        )
        .is_err()
        {
            return support::skipped("no extended attributes here");
        }
        let found = view.inspector().provenance(b"new").unwrap();
        assert!(matches!(&found.outcome, Outcome::Directory { layers, .. } if layers == &[0, 1]));
        let below: Vec<_> = found.held[1..].iter().map(|h| (&h.path[..], h.hidden.is_some())).collect();
        assert_eq!(below, [(&b"in/old"[..], false), (b"new", true)]);
        assert_eq!(view.inspector().provenance(b"new/x").unwrap().winner(), Some(1));
        let hidden = view.inspector().provenance(b"new/y").unwrap();
        assert_eq!((hidden.winner(), hidden.hidden()), (None, vec![1]));
    }

    #[test]
    fn links_on_the_way_are_followed_within_the_merged_view() {
        let (top, view) = view(&[&["usr/"], &["usr/bin/sh"]]);
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, top.path().join(name)).unwrap();
        };
        link("usr/bin", "1/bin");
        link("/usr/../bin", "0/usr/up");
        link("sh", "1/usr/bin/dash");
        link("loop", "0/loop");
        for (path, found) in [
            ("/bin/sh", "usr/bin/sh"),
            ("bin", "bin"),
            ("bin/../x/./y", "usr/x/y"),
            ("usr/up/dash", "usr/bin/dash"),
            ("none/../sh", "none/../sh"),
            ("/", ""),
        ] {
            let followed = view.follow_links(path.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(followed).unwrap(), found, "{path}");
        }
        assert_eq!(view.follow_links(b"loop/x"), Err(FsError::Os(rustix::io::Errno::LOOP)));
    }

    #[test]
    fn names_of_every_layer_are_listed() {
        let (_top, view) = view(&[&[".wh.gone"], &["gone", "d/"], &["d/x"]]);
        let inspector = view.inspector();
        let names = inspector.names(&inspector.root()).unwrap();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), [b"d".to_vec(), b"gone".to_vec()]);
    }
}
