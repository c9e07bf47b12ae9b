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
mod inspector;
mod trail;
mod view;
mod walk;

pub use self::answer::{Held, Hider, Hides, Holds, Outcome, Provenance};
pub use self::inspector::Inspector;
pub use self::trail::Trail;
pub use self::view::View;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FsError;
    use crate::union::lookup::marker::WhiteoutMark;
    use crate::union::lookup::realdir::LayerIndex;
    use std::fs;
    use tempfile::TempDir;

    /// Makes layers of their files' paths, topmost first; a path that ends in `/` is a directory.
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
