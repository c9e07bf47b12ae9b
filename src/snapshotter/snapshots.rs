//! The snapshotter's calls, without gRPC: each is one transaction, with its directories before or after it.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::{Error, Result};
use super::filter::Filters;
use super::places::Places;
use super::store::{Changes, Store, must_be_active};

pub use super::mounts::Mount;
pub use super::store::{Labels, SnapshotKind, SnapshotRecord, Usage};

/// All snapshots below one root.
#[derive(Debug)]
pub struct Snapshots {
    store: Store,
    places: Places,
    program: String,
}

impl Snapshots {
    /// Opens the root, makes what is missing, and removes what no snapshot owns. `program` is what containerd shall run to
    /// mount a union. Only one process can have a root open.
    pub fn open(root: &Path, program: &str) -> Result<Snapshots> {
        let places = Places::open(root)?;
        let store = Store::open(root, &places.numbers()?)?;
        let snapshots = Snapshots { store, places, program: program.to_owned() };
        snapshots.cleanup()?;
        Ok(snapshots)
    }

    /// Makes a snapshot that can be written.
    pub fn prepare(&self, key: &str, parent: &str, labels: Labels) -> Result<Mount> {
        self.create(SnapshotKind::Active, key, parent, labels)
    }

    /// Makes a snapshot that can be read.
    pub fn view(&self, key: &str, parent: &str, labels: Labels) -> Result<Mount> {
        self.create(SnapshotKind::View, key, parent, labels)
    }

    fn create(&self, kind: SnapshotKind, key: &str, parent: &str, labels: Labels) -> Result<Mount> {
        let parent = (!parent.is_empty()).then_some(parent);
        self.store.write(|changes| {
            let record = changes.add(key, kind, parent, without_empty(labels))?;
            let parents = changes.snapshots.chain(parent)?;
            self.places.make(record.number, kind, parents.first().copied())?;
            self.mount(&record, &parents)
        })
    }

    fn mount(&self, record: &SnapshotRecord, parents: &[u64]) -> Result<Mount> {
        super::mounts::mount(&self.places, &self.program, record.number, record.kind, parents, &record.labels)
    }

    /// Returns how a snapshot is mounted that was prepared or viewed before.
    pub fn mounts(&self, key: &str) -> Result<Mount> {
        self.store.read(|now| {
            let record = now.get(key)?;
            if record.kind == SnapshotKind::Committed {
                return Err(Error::Precondition(format!("snapshot {key:?} is committed: make a view of it")));
            }
            self.mount(&record, &now.chain(record.parent.as_deref())?)
        })
    }

    /// Makes the active snapshot `key` the committed one `name`.
    pub fn commit(&self, name: &str, key: &str, labels: Labels) -> Result<()> {
        // What takes long goes before the transaction, which checks again.
        let record = self.store.read(|now| now.get(key))?;
        must_be_active(key, &record)?;
        let layer = self.places.quiet(record.number)?;
        layer.sync()?;
        let usage = self.places.usage(record.number)?;
        self.store.write(|changes| {
            if changes.snapshots.get(key)?.number != record.number {
                return Err(Error::Precondition(format!(
                    "snapshot {key:?} was replaced while it was committed"
                )));
            }
            changes.commit(name, key, without_empty(labels), usage)
        })?;
        if layer.alone {
            self.places.remove_work(record.number);
        }
        Ok(())
    }

    /// Forgets a snapshot without children, and removes what it holds.
    pub fn remove(&self, key: &str) -> Result<()> {
        let record = self.store.write(|changes| changes.remove(key))?;
        self.places.remove(record.number);
        Ok(())
    }

    /// Returns what a snapshot is.
    pub fn stat(&self, key: &str) -> Result<SnapshotRecord> {
        self.store.read(|now| now.get(key))
    }

    /// Changes labels. `fields` names what is taken from `labels`: `labels` for all, `labels.KEY` for one; without any, all
    /// that can be changed.
    pub fn update(&self, key: &str, labels: Labels, fields: &[String]) -> Result<SnapshotRecord> {
        if let Some(other) = fields.iter().find(|field| *field != "labels" && !field.starts_with("labels.")) {
            return Err(Error::Invalid(format!("cannot update field {other:?} of snapshot {key:?}")));
        }
        self.store.write(|changes| {
            changes.relabel(key, |current| {
                if fields.is_empty() {
                    current.clone_from(&labels);
                }
                for field in fields {
                    match field.strip_prefix("labels.") {
                        None => current.clone_from(&labels),
                        Some(label) => {
                            let value = labels.get(label).cloned().unwrap_or_default();
                            current.insert(label.to_owned(), value);
                        }
                    }
                }
                current.retain(|_, value| !value.is_empty());
            })
        })
    }

    /// Returns what a snapshot takes on the disk: what was measured at the commit, or what is there now.
    pub fn usage(&self, key: &str) -> Result<Usage> {
        let record = self.stat(key)?;
        match record.kind {
            SnapshotKind::Active => self.places.usage(record.number),
            SnapshotKind::View | SnapshotKind::Committed => Ok(record.usage),
        }
    }

    /// Returns the snapshots that pass one of `filters`, or all without any.
    pub fn list(&self, filters: &[String]) -> Result<Vec<(String, SnapshotRecord)>> {
        let filters = Filters::parse(filters)?;
        let mut found = self.store.read(|now| now.all())?;
        found.retain(|(name, record)| filters.pass(name, record));
        Ok(found)
    }

    /// Removes what no snapshot owns: leftovers of calls that were killed, and what could not be removed before.
    pub fn cleanup(&self) -> Result<()> {
        // Held, the transaction keeps others from making directories.
        let aside = self.store.write(|changes: &mut Changes<'_>| {
            let kinds = changes
                .snapshots
                .all()?
                .into_iter()
                .map(|(_, record)| (record.number, record.kind))
                .collect();
            self.places.set_orphans_aside(&kinds)
        })?;
        self.places.remove_all(&aside);
        Ok(())
    }
}

/// Drops what is empty, which containerd takes for none.
fn without_empty(labels: Labels) -> Labels {
    labels.into_iter().filter(|(_, value)| !value.is_empty()).collect::<BTreeMap<_, _>>()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::PathBuf;

    use super::*;

    struct Fixture {
        root: tempfile::TempDir,
        snapshots: Snapshots,
    }

    fn labels(of: &[(&str, &str)]) -> Labels {
        of.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    impl Fixture {
        fn new() -> Fixture {
            let root = tempfile::tempdir().unwrap();
            let snapshots = Snapshots::open(&root.path().join("root"), "prog").unwrap();
            Fixture { root, snapshots }
        }

        fn place(&self, name: &str) -> PathBuf {
            self.root.path().join("root/snapshots").join(name)
        }

        /// Starts again as after a kill: the process is gone, and the next one starts.
        fn restart(self) -> Fixture {
            let Fixture { root, snapshots } = self;
            drop(snapshots);
            let snapshots = Snapshots::open(&root.path().join("root"), "prog").unwrap();
            Fixture { root, snapshots }
        }

        /// Makes a committed snapshot that holds one file of its name.
        fn layer(&self, name: &str, parent: &str) {
            self.snapshots.prepare("tmp", parent, Labels::new()).unwrap();
            let number = self.snapshots.stat("tmp").unwrap().number;
            fs::write(self.place(&format!("{number}/fs/{name}")), name).unwrap();
            self.snapshots.commit(name, "tmp", Labels::new()).unwrap();
        }

        fn names(&self, filters: &[&str]) -> Vec<String> {
            let filters: Vec<String> = filters.iter().map(ToString::to_string).collect();
            self.snapshots.list(&filters).unwrap().into_iter().map(|(name, _)| name).collect()
        }

        fn directories(&self) -> Vec<String> {
            let mut names: Vec<String> = fs::read_dir(self.place(""))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    #[test]
    fn a_snapshot_goes_from_active_to_committed() {
        let f = Fixture::new();
        f.snapshots.prepare("a", "", labels(&[("l", "1"), ("none", "")])).unwrap();
        let active = f.snapshots.stat("a").unwrap();
        assert_eq!((active.kind, active.parent.clone()), (SnapshotKind::Active, None));
        assert_eq!(active.labels, labels(&[("l", "1")]), "an empty value is none");
        assert_eq!(active.created, active.updated);
        f.snapshots.commit("A", "a", labels(&[("m", "2")])).unwrap();
        let committed = f.snapshots.stat("A").unwrap();
        assert_eq!((committed.kind, committed.number), (SnapshotKind::Committed, active.number));
        assert_eq!(committed.labels, labels(&[("m", "2")]), "labels are not inherited");
        assert!(committed.created >= active.created);
        assert!(matches!(f.snapshots.stat("a"), Err(Error::NotFound(_))));
        f.snapshots.prepare("b", "A", Labels::new()).unwrap();
        f.snapshots.view("v", "A", Labels::new()).unwrap();
        assert_eq!(f.snapshots.stat("b").unwrap().parent.as_deref(), Some("A"));
        assert_eq!(f.names(&[]), ["A", "b", "v"]);
        assert_eq!(f.names(&["kind==view", "name==A"]), ["A", "v"]);
        assert_eq!(f.names(&["parent==A,kind==active"]), ["b"]);
        assert!(matches!(f.snapshots.list(&["name=".into()]), Err(Error::Invalid(_))));
    }

    #[test]
    fn what_may_not_be_done_is_refused_and_changes_nothing() {
        let f = Fixture::new();
        f.layer("A", "");
        f.snapshots.prepare("a", "A", Labels::new()).unwrap();
        f.snapshots.view("v", "A", Labels::new()).unwrap();
        let before = (f.snapshots.list(&[]).unwrap(), f.directories());
        let s = &f.snapshots;
        let none = Labels::new;
        assert!(matches!(s.prepare("a", "A", none()), Err(Error::Exists(_))));
        assert!(matches!(s.view("a", "", none()), Err(Error::Exists(_))));
        assert!(matches!(s.prepare("v", "", none()), Err(Error::Exists(_))));
        assert!(matches!(s.prepare("", "A", none()), Err(Error::Invalid(_))));
        assert!(matches!(s.prepare("n", "none", none()), Err(Error::NotFound(_))));
        assert!(
            matches!(s.prepare("n", "a", none()), Err(Error::Invalid(_))),
            "an active snapshot is no parent"
        );
        assert!(matches!(s.view("n", "v", none()), Err(Error::Invalid(_))));
        assert!(matches!(s.commit("N", "none", none()), Err(Error::NotFound(_))));
        assert!(matches!(s.commit("N", "v", none()), Err(Error::Precondition(_))));
        assert!(matches!(s.commit("N", "A", none()), Err(Error::Precondition(_))));
        assert!(matches!(s.commit("A", "a", none()), Err(Error::Exists(_))));
        assert!(matches!(s.commit("", "a", none()), Err(Error::Invalid(_))));
        assert!(matches!(s.mounts("A"), Err(Error::Precondition(_))));
        assert!(matches!(s.mounts("none"), Err(Error::NotFound(_))));
        assert!(matches!(s.remove("none"), Err(Error::NotFound(_))));
        assert!(matches!(s.remove("A"), Err(Error::Precondition(_))), "it has children");
        assert!(matches!(s.usage("none"), Err(Error::NotFound(_))));
        assert!(matches!(s.update("none", none(), &[]), Err(Error::NotFound(_))));
        assert!(matches!(s.update("a", none(), &["parent".into()]), Err(Error::Invalid(_))));
        assert_eq!(before, (f.snapshots.list(&[]).unwrap(), f.directories()));
        for name in ["a", "v", "A"] {
            s.remove(name).unwrap();
        }
        assert_eq!(f.directories(), [""; 0]);
    }

    #[test]
    fn a_committed_child_holds_its_parent_as_the_active_one_did() {
        let f = Fixture::new();
        f.layer("A", "");
        f.layer("B", "A");
        f.layer("C", "B");
        for (name, held) in [("A", true), ("B", true), ("C", false), ("B", false), ("A", false)] {
            let removed = f.snapshots.remove(name);
            assert_eq!(matches!(removed, Err(Error::Precondition(_))), held, "{name}: {removed:?}");
        }
    }

    #[test]
    fn labels_are_updated_by_field() {
        let f = Fixture::new();
        f.layer("A", "");
        let before = f.snapshots.stat("A").unwrap();
        let update = |given: &[(&str, &str)], fields: &[&str]| {
            let fields: Vec<String> = fields.iter().map(ToString::to_string).collect();
            f.snapshots.update("A", labels(given), &fields).unwrap()
        };
        let after = update(&[("a", "1"), ("b.c/d", "2"), ("e", "3")], &[]);
        assert_eq!(after.labels, labels(&[("a", "1"), ("b.c/d", "2"), ("e", "3")]));
        assert!(after.created == before.created && after.updated > before.updated);
        let after = update(&[("a", "9"), ("b.c/d", "8"), ("x", "7")], &["labels.b.c/d", "labels.e"]);
        assert_eq!(after.labels, labels(&[("a", "1"), ("b.c/d", "8")]), "a missing one is removed");
        assert_eq!(update(&[("y", "1")], &["labels"]).labels, labels(&[("y", "1")]));
        assert_eq!(f.snapshots.stat("A").unwrap().labels, labels(&[("y", "1")]));
        assert_eq!(update(&[], &[]).labels, Labels::new());
    }

    #[test]
    fn mounts_are_binds_or_unions() {
        let f = Fixture::new();
        let layers = f.place("").to_str().unwrap().trim_end_matches('/').to_owned();
        let bind = |number: u64, mode: &str| Mount {
            kind: "bind".into(),
            source: format!("{layers}/{number}/fs"),
            options: vec![mode.into(), "rbind".into()],
        };
        let union = |options: &[String]| Mount {
            kind: "fuse3.prog".into(),
            source: "unionmount".into(),
            options: options.to_vec(),
        };
        let none = Labels::new;
        let s = &f.snapshots;
        f.layer("A", ""); // 1
        f.layer("B", "A"); // 2
        assert_eq!(s.prepare("p0", "", none()).unwrap(), bind(3, "rw"));
        assert_eq!(s.view("v0", "", none()).unwrap(), bind(4, "ro"));
        assert_eq!(s.view("v1", "A", none()).unwrap(), bind(1, "ro"));
        let lower = |of: &[u64]| {
            let paths: Vec<_> = of.iter().map(|number| format!("{layers}/{number}/fs")).collect();
            format!("lowerdir={}", paths.join(":"))
        };
        let upper = |number: u64| {
            [format!("upperdir={layers}/{number}/fs"), format!("workdir={layers}/{number}/work")]
        };
        let two = union(&[lower(&[2, 1]), "ro".into()]);
        assert_eq!(s.view("v2", "B", none()).unwrap(), two);
        assert_eq!(s.mounts("v2").unwrap(), two, "the same when asked again");
        let p = union(&[&[lower(&[2, 1])][..], &upper(7)].concat());
        assert_eq!(s.prepare("p2", "B", none()).unwrap(), p);
        assert_eq!(s.mounts("p2").unwrap(), p);
        let unpacked = labels(&[("containerd.io/snapshot.ref", "sha256:x")]);
        let p = union(&[&[lower(&[1])][..], &upper(8), &["volatile".into()]].concat());
        assert_eq!(s.prepare("p1", "A", unpacked).unwrap(), p);
        let mapped = labels(&[
            ("containerd.io/snapshot/uidmapping", "0:100000:65536"),
            ("containerd.io/snapshot/gidmapping", "0:1:1,1:5:9"),
        ]);
        let maps = ["uidmapping=0:100000:65536".into(), "gidmapping=0:1:1:1:5:9".into()];
        let v = union(&[&maps[..], &[lower(&[1]), "ro".into()]].concat());
        assert_eq!(s.view("m1", "A", mapped).unwrap(), v);
    }

    #[test]
    fn paths_within_options_are_escaped() {
        let top = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(&top.path().join(r#"a:b,c\d"#), "prog").unwrap();
        snapshots.prepare("a", "", Labels::new()).unwrap();
        snapshots.commit("A", "a", Labels::new()).unwrap();
        let mount = snapshots.prepare("b", "A", Labels::new()).unwrap();
        assert!(mount.options[0].ends_with(r"/a\:b\,c\\d/snapshots/1/fs"), "{mount:?}");
    }

    #[test]
    fn usage_counts_each_inode_once() {
        let f = Fixture::new();
        f.snapshots.prepare("a", "", Labels::new()).unwrap();
        let layer = f.place("1/fs");
        let empty = f.snapshots.usage("a").unwrap();
        assert_eq!(empty.inodes, 1);
        fs::create_dir(layer.join("d")).unwrap();
        fs::write(layer.join("d/f"), vec![1; 10000]).unwrap();
        fs::hard_link(layer.join("d/f"), layer.join("g")).unwrap();
        std::os::unix::fs::symlink("nowhere", layer.join("s")).unwrap();
        let blocks = |path: &str| layer.join(path).symlink_metadata().unwrap().blocks() * 512;
        let usage = f.snapshots.usage("a").unwrap();
        assert_eq!(usage.inodes, 4);
        assert_eq!(usage.bytes, blocks("") + blocks("d") + blocks("d/f") + blocks("s"));
        f.snapshots.commit("A", "a", Labels::new()).unwrap();
        assert_eq!(f.snapshots.usage("A").unwrap(), usage);
        f.snapshots.view("v", "A", Labels::new()).unwrap();
        assert_eq!(f.snapshots.usage("v").unwrap(), Usage::default());
    }

    #[test]
    fn a_new_root_is_the_parents() {
        let f = Fixture::new();
        f.snapshots.prepare("a", "", Labels::new()).unwrap();
        let layer = f.place("1/fs");
        let mode = |path: &str| f.place(path).metadata().unwrap().mode() & 0o7777;
        assert_eq!((mode(""), mode("1"), mode("1/fs")), (0o700, 0o700, 0o755));
        fs::set_permissions(&layer, fs::Permissions::from_mode(0o1775)).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&layer, Some(7), Some(8)).unwrap();
        }
        let mark = rustix::fs::setxattr(&layer, "user.mark", b"m", rustix::fs::XattrFlags::empty());
        if mark.is_ok() {
            let opaque = "user.overlay.opaque";
            rustix::fs::setxattr(&layer, opaque, b"y", rustix::fs::XattrFlags::empty()).unwrap();
        }
        f.snapshots.commit("A", "a", Labels::new()).unwrap();
        f.snapshots.prepare("b", "A", Labels::new()).unwrap();
        let (parent, child) = (layer.metadata().unwrap(), f.place("2/fs").metadata().unwrap());
        assert_eq!((child.mode(), child.uid(), child.gid()), (parent.mode(), parent.uid(), parent.gid()));
        if mark.is_ok() {
            let mut names = [0u8; 256];
            let length = rustix::fs::listxattr(f.place("2/fs"), &mut names[..]).unwrap();
            let names = String::from_utf8_lossy(&names[..length]).into_owned();
            assert!(names.contains("user.mark") && !names.contains("overlay"), "{names}");
        }
    }

    #[test]
    fn the_workdir_goes_with_the_commit_unless_it_is_in_use() {
        let f = Fixture::new();
        f.layer("A", "");
        assert!(!f.place("1/work").exists(), "a layer without parents needs none");
        f.layer("B", "A");
        assert!(!f.place("2/work").exists());
        f.snapshots.prepare("c", "B", Labels::new()).unwrap();
        // A daemon holds the lock of its upper.
        let upper = fs::File::open(f.place("3/fs")).unwrap();
        crate::sys::flock::lock(&upper, crate::sys::flock::Access::Exclusive).unwrap();
        f.snapshots.commit("C", "c", Labels::new()).unwrap();
        f.snapshots.cleanup().unwrap();
        assert!(f.place("3/work").exists());
        drop(upper);
        f.snapshots.cleanup().unwrap();
        assert!(!f.place("3/work").exists());
    }

    #[test]
    fn what_no_snapshot_owns_is_removed_at_start_and_by_cleanup() {
        let mut f = Fixture::new();
        f.layer("A", "");
        for round in 0..2 {
            for name in ["rm-9.0/fs", "lost+found", "2/fs/stale"] {
                fs::create_dir_all(f.place(name)).unwrap();
            }
            match round {
                0 => {
                    // While it runs, nobody else gives numbers. At a start they would be of a newer database.
                    for name in ["7/fs/x", "8"] {
                        fs::create_dir_all(f.place(name)).unwrap();
                    }
                    f.snapshots.cleanup().unwrap();
                }
                _ => f = f.restart(),
            }
            assert_eq!(f.directories(), ["1", "lost+found"]);
            fs::remove_dir(f.place("lost+found")).unwrap();
        }
        assert_eq!(fs::read(f.place("1/fs/A")).unwrap(), b"A");
        assert_eq!(f.names(&[]), ["A"]);
    }

    #[test]
    fn a_directory_in_the_way_of_a_new_snapshot_is_no_hindrance() {
        let f = Fixture::new();
        // As a prepare leaves it whose transaction failed.
        fs::create_dir_all(f.place("1/fs/stale")).unwrap();
        f.snapshots.prepare("a", "", Labels::new()).unwrap();
        assert_eq!(f.snapshots.usage("a").unwrap().inodes, 1);
    }

    #[test]
    fn all_is_there_after_a_restart_and_numbers_are_not_given_again() {
        let f = Fixture::new();
        f.layer("A", "");
        f.snapshots.prepare("a", "A", labels(&[("l", "1")])).unwrap();
        f.snapshots.view("v", "A", Labels::new()).unwrap();
        f.snapshots.remove("v").unwrap();
        let before = (f.snapshots.list(&[]).unwrap(), f.snapshots.mounts("a").unwrap());
        let f = f.restart();
        assert_eq!(before, (f.snapshots.list(&[]).unwrap(), f.snapshots.mounts("a").unwrap()));
        f.snapshots.prepare("b", "A", Labels::new()).unwrap();
        assert_eq!(f.snapshots.stat("b").unwrap().number, 4);
    }

    #[test]
    fn a_root_belongs_to_one_process() {
        let f = Fixture::new();
        let second = Snapshots::open(&f.root.path().join("root"), "prog").unwrap_err();
        assert!(second.is_in_use(), "{second}");
    }

    #[test]
    fn calls_at_once_do_not_disturb_each_other() {
        let f = Fixture::new();
        f.layer("base", "");
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let snapshots = &f.snapshots;
                scope.spawn(move || {
                    for round in 0..5 {
                        let (key, name) = (format!("k{thread}"), format!("c{thread}.{round}"));
                        snapshots.prepare(&key, "base", Labels::new()).unwrap();
                        snapshots.commit(&name, &key, Labels::new()).unwrap();
                        snapshots.view(&key, &name, Labels::new()).unwrap();
                        assert!(matches!(snapshots.remove(&name), Err(Error::Precondition(_))));
                        snapshots.remove(&key).unwrap();
                        snapshots.cleanup().unwrap();
                        if round > 0 {
                            snapshots.remove(&name).unwrap();
                        }
                    }
                });
            }
        });
        assert_eq!(f.names(&[]).len(), 9);
        assert_eq!(f.directories().len(), 9);
    }
}
