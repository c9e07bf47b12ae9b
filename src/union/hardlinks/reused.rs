//! Inode numbers that a lower gives again (`lower=checked`).
//!
//! The hardlink index and the records of hidden names know a lower's file by its inode number. A file that is deleted in the
//! lower frees its number, and another file may get it. What was known by the number is of that one no more: the first look at
//! the new file takes it away, so it has no copy and no hidden names. The copy of the file before keeps its names in the upper.
//!
//! A file is another if it has another file handle than the original, which holds the filesystem's own generation, or another time
//! of birth. The copy's entry tells the handle in the kernel's index and where this mount has made it; the time is kept with the copy,
//! and with the record of hidden names. Times are only ever held against their equals: clocks are set, and layers have several. Where
//! neither is known (entries of earlier versions, filesystems that tell neither) a file is believed to be the one that had the number.

use crate::error::{FsError, Result};
use crate::sys::object::Time;
use crate::union::Union;
use crate::union::change::lend::upper_xattr;
use crate::union::hardlinks::counts::{NLINK, ORIGIN};
use crate::union::hardlinks::link_index::Indexed;
use crate::union::lookup::found::{Found, FoundKind};
use crate::union::nodes::node::{Identity, NodePlace, NodeSource};
use crate::union::nodes::region::InodeId;
use crate::union::nodes::verified::Object;

impl Union {
    /// Tells whether what is known of a file of the lowers by its number may be of another, which is gone.
    pub(in crate::union) fn may_have_changed(&self, found: &Found) -> bool {
        let is_leaf = matches!(found.what, FoundKind::Leaf { .. });
        is_leaf && self.watched.is_some() && self.upper.is_some() && !self.is_own(found.layer)
    }

    /// Forgets what is known by the number of a file that was found under a name, if that was another file. The caller holds the
    /// lock of the number.
    ///
    /// # Errors
    /// Those of looking at what is known, and of [`Union::disown`].
    pub(in crate::union) fn forget_of_another(&self, name: &[u8], found: &Found) -> Result<()> {
        let (origin, upper) = (found.id, self.upper()?);
        if let Some(known) = upper.indexed(origin)
            && self.is_of_another(&known, name, found)
        {
            self.disown(origin, &known, name)?;
        }
        if let Some(hidden) = self.hardlinks.hidden_of(origin)
            && is_born_at_another_time(hidden.born, found)
            && self.hardlinks.count_no_hidden(origin)
            && let Err(error) = upper.forget_hidden(origin)
        {
            log::warn!("the record of hidden names of a file that is gone stays: {error}");
        }
        Ok(())
    }

    /// Tells whether a copy in the index is of another file than the one that was found, for certain.
    fn is_of_another(&self, known: &Indexed, name: &[u8], found: &Found) -> bool {
        let FoundKind::Leaf { dir, .. } = &found.what else { return false };
        // One that was copied from a copy of the file that a snapshot froze tells nothing of the file itself.
        let Some(original) = known.original().filter(|original| original.real == found.id) else {
            return false;
        };
        let handle = || self.fds.generations().handle(self.fds.get(dir).ok()?.entry(name), &found.stat);
        match original.handle.as_ref().and_then(|then| Some((then, handle()?))) {
            Some((then, now)) => *then != now,
            None => is_born_at_another_time(original.born, found),
        }
    }

    /// Parts a copy from the file that has its original's number by now. It shows the number that it had as long as the mount lives,
    /// and keeps its names in the upper. The caller holds the lock of the number, `origin`.
    ///
    /// Its marks go as far as they can be taken away: with them it would be the other file's copy again for the next mount, or for one
    /// that lies on it when it is frozen.
    ///
    /// # Errors
    /// Those of looking at the copy.
    pub(in crate::union) fn disown(&self, origin: InodeId, known: &Indexed, name: &[u8]) -> Result<()> {
        let upper = self.upper()?;
        log::warn!(
            "lower=checked: {} has the inode number of a file that is gone: it has no copy",
            String::from_utf8_lossy(name).escape_debug()
        );
        let copy = match self.indexed_object(origin) {
            // Something else has its name in the index, or somebody else was here.
            Err(FsError::Stale) => None,
            copy => Some(copy?),
        };
        let Some(copy) = copy else {
            upper.disown(known);
            return Ok(());
        };
        let marked = upper_xattr(copy.host()?, &upper.mark_name(ORIGIN)).unwrap_or_else(|error| {
            log::warn!("what a copy without original was made of isn't known: {error}");
            None
        });
        let marked = marked.and_then(|mark| InodeId::from_text(&mark, ':', &self.regions));
        let real = self.upper_id(&copy.stat()?);
        let number = self.table.part(Identity { origin: marked.unwrap_or(origin), real }, origin);
        // Before it leaves the index: what a kill leaves is found once more by that.
        for mark in [ORIGIN, NLINK] {
            // An immutable copy, or a full upper: the file that was found isn't to be missing for that.
            if let Err(error) = copy.writable().and_then(|at| upper.drop_mark(at, mark)) {
                log::warn!("a copy keeps a mark of its original, which is gone: {error}");
            }
        }
        upper.disown(known);
        self.lead_by_no_index((number, real), copy);
        Ok(())
    }

    /// Lets a node that was reached by the hardlink index be reached by a descriptor, until one of its names in the upper is found.
    fn lead_by_no_index(&self, (number, real): (u64, InodeId), copy: Object) {
        let Some(node) = self.table.get(number).filter(|node| node.real() == real && node.dir.is_none())
        else {
            return;
        };
        let mut left = self.hardlinks.part(number);
        let owner = copy.stat().map(|stat| stat.uid);
        {
            let mut place = node.place.write();
            if let NodePlace::Named { parent, entry } = &*place
                && entry.source() == NodeSource::Index
            {
                match owner.and_then(|owner| self.pins.hold_owned(copy.into_held(), owner)) {
                    Ok(fd) => {
                        left.push(parent.clone());
                        self.deferred.defer(number);
                        *place = NodePlace::Pinned { fd, upper: true };
                    }
                    Err(error) => log::warn!(
                        "a file whose original is gone isn't reached by whoever has it open: {error}"
                    ),
                }
            }
        }
        left.into_iter().for_each(|parent| self.release_parent(parent));
        self.changed_by_itself(&node);
    }
}

/// Tells whether a file wasn't made when the one was that had its number, as far as that is known of both.
fn is_born_at_another_time(then: Option<Time>, found: &Found) -> bool {
    let FoundKind::Leaf { dir, .. } = &found.what else { return false };
    dir.keeps_births() && then.zip(found.stat.born).is_some_and(|(then, now)| then != now)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use crate::sys::object::{At, Kind, Stat};
    use crate::sys::xattr;
    use crate::union::bed::{Bed, look_up};
    use crate::union::change::failpoint::hook;
    use crate::union::data::file::Write;
    use crate::union::frozen::snapshot::{Target, snapshot};
    use crate::union::hardlinks::counts::{NLINK, ORIGIN, ORIGINAL};
    use crate::union::nodes::node::Node;
    use crate::union::options::FsOptions;
    use crate::union::stack::layer::{Stack, StackOptions, XattrChoice};
    use crate::union::{Limits, Union};

    /// This program's index, which ordinary users have.
    const INDEX: &str = ".upper.work/index.unionmount";
    /// Whose marks are made: root's, with the kernel's index, or an ordinary user's.
    const BOTH: [bool; 2] = [false, true];

    fn checked(bed: &Bed, userxattr: bool) -> Union {
        let options = StackOptions {
            lowers: vec![bed.at("0").into()],
            upper: Some(bed.at("upper")),
            xattr: if userxattr { XattrChoice::User } else { XattrChoice::Auto },
            lock_wait: std::time::Duration::from_secs(20),
            ..StackOptions::default()
        };
        let how = FsOptions { check_lowers: true, ..FsOptions::default() };
        Union::with_options(Stack::open(&options).unwrap(), Limits::default(), &how).unwrap()
    }

    fn pair(bed: &Bed, names: [&str; 2]) {
        bed.file(&format!("0/d/{}", names[0]));
        link(bed, names);
    }

    fn link(bed: &Bed, [name, other]: [&str; 2]) {
        fs::hard_link(bed.at("0/d").join(name), bed.at("0/d").join(other)).unwrap();
    }

    fn stat(bed: &Bed, path: &str) -> Stat {
        At::Name(rustix::fs::CWD, bed.at(path).as_os_str().as_encoded_bytes()).stat().unwrap()
    }

    /// Returns a bed where nobody else takes a number that is free.
    fn bed_of_numbers() -> Option<Bed> {
        let bed = Bed::on_disk(1);
        if bed.is_none() {
            support::skipped("a filesystem of one's own needs root of the initial user namespace");
        }
        bed
    }

    /// Deletes `h` and `h2` in the lower, and makes `z` and `z2` of their inode number, which were born later.
    fn replace(bed: &Bed) {
        replace_by(bed, || {
            bed.file("0/d/z");
        });
    }

    fn replace_by(bed: &Bed, make: impl Fn()) {
        let gone = stat(bed, "0/d/h");
        assert!(gone.born.is_some(), "ext4 tells when inodes were made");
        for name in ["h", "h2"] {
            fs::remove_file(bed.at("0/d").join(name)).unwrap();
        }
        bed.dir("taken");
        for count in 0.. {
            make();
            let made = stat(bed, "0/d/z");
            if made.ino != gone.ino {
                // One that is free, too, and comes before it.
                fs::rename(bed.at("0/d/z"), bed.at("taken").join(count.to_string())).unwrap();
            } else if made.born == gone.born {
                fs::remove_file(bed.at("0/d/z")).unwrap(); // in the same tick of the clock
            } else {
                break;
            }
        }
        link(bed, ["z", "z2"]);
    }

    /// Makes a file that was born after another one. `false`: the filesystem tells no births.
    fn is_made_after(bed: &Bed, earlier: &str, path: &str) -> bool {
        let Some(before) = stat(bed, earlier).born else {
            support::skipped("this filesystem tells no time of birth");
            return false;
        };
        while bed.file(path).at(path).exists() && stat(bed, path).born <= Some(before) {
            fs::remove_file(bed.at(path)).unwrap();
        }
        true
    }

    /// The name in the upper's index that ends so.
    fn in_index(bed: &Bed, end: &str) -> PathBuf {
        let names = bed.names(INDEX);
        let name = names.iter().find(|name| name.ends_with(end)).expect("it is in the index");
        bed.at(INDEX).join(name)
    }

    fn marks(path: &Path) -> Vec<String> {
        let file = fs::File::open(path).unwrap();
        let names = xattr::list(At::Fd(file.as_fd())).unwrap();
        names.into_iter().map(|name| String::from_utf8(name).unwrap()).collect()
    }

    fn has_mark(path: &Path, mark: &str) -> bool {
        marks(path).iter().any(|name| name.ends_with(&format!(".overlay.{mark}")))
    }

    fn find(union: &Union, path: &str) -> Arc<Node> {
        look_up(union, path).unwrap_or_else(|| panic!("{path} is not there"))
    }

    fn content(union: &Union, path: &str) -> String {
        let mut data = vec![0; 64];
        let length = union.read(&find(union, path), 0, &mut data).unwrap();
        String::from_utf8(data[..length].to_vec()).unwrap()
    }

    fn write(union: &Union, path: &str, text: &str) {
        union.write(&find(union, path), 0, text.as_bytes(), Write::default()).unwrap();
    }

    fn nlink(union: &Union, path: &str) -> u64 {
        union.getattr(&find(union, path)).unwrap().stat.nlink
    }

    #[test]
    fn a_file_with_the_number_of_one_that_is_gone_isnt_its_copy() {
        for (userxattr, again) in BOTH.into_iter().flat_map(|user| BOTH.map(|again| (user, again))) {
            let Some(bed) = bed_of_numbers() else { return };
            pair(&bed, ["h", "h2"]);
            let mut union = checked(&bed, userxattr);
            write(&union, "d/h", "CHANGED");
            if again {
                union.shut_down();
                drop(union);
                union = checked(&bed, userxattr);
            }
            let h = find(&union, "d/h").ino;
            assert_eq!(nlink(&union, "d/h"), 2);
            replace(&bed);
            assert_eq!(content(&union, "d/z"), "0/d/z", "{userxattr} {again}");
            assert_eq!((nlink(&union, "d/z"), nlink(&union, "d/h")), (2, 1));
            let z = find(&union, "d/z").ino;
            assert_ne!(z, h);
            write(&union, "d/z2", "WRITTEN");
            assert_eq!(content(&union, "d/z"), "WRITTEN", "its names lead to one file");
            assert_eq!(content(&union, "d/h"), "CHANGED", "{userxattr} {again}");
            let numbers = ["d/h", "d/z", "d/z2"].map(|path| find(&union, path).ino);
            assert_eq!(numbers, [h, z, z], "a copy-up changes no number");
            assert_eq!((nlink(&union, "d/z"), nlink(&union, "d/h")), (2, 1));
            union.shut_down();
            drop(union);
            let union = checked(&bed, userxattr);
            assert_eq!(
                ["d/h", "d/z", "d/z2"].map(|path| content(&union, path)),
                ["CHANGED", "WRITTEN", "WRITTEN"]
            );
            union.shut_down();
        }
    }

    #[test]
    fn of_a_file_with_the_number_of_one_that_is_gone_no_name_is_hidden() {
        for (userxattr, again) in BOTH.into_iter().flat_map(|user| BOTH.map(|again| (user, again))) {
            let Some(bed) = bed_of_numbers() else { return };
            pair(&bed, ["h", "h2"]);
            let mut union = checked(&bed, userxattr);
            union.unlink(&find(&union, "d"), b"h").unwrap();
            if again {
                union.shut_down();
                drop(union);
                union = checked(&bed, userxattr);
            }
            assert_eq!(nlink(&union, "d/h2"), 1);
            replace(&bed);
            assert_eq!(nlink(&union, "d/z"), 2, "{userxattr}");
            write(&union, "d/z", "WRITTEN");
            union.unlink(&find(&union, "d"), b"z").unwrap();
            assert_eq!(content(&union, "d/z2"), "WRITTEN", "the copy stays known by its other name");
            union.shut_down();
        }
    }

    #[test]
    fn a_copy_that_was_born_before_its_original_is_its_copy() {
        for remembers in BOTH {
            let bed = Bed::new(1);
            bed.file("old");
            if !is_made_after(&bed, "old", "0/d/h") {
                return;
            }
            link(&bed, ["h", "h2"]);
            let union = checked(&bed, true);
            if !union.upper().unwrap().caps().xattr {
                return support::skipped("the filesystem of the scratch directories keeps no marks");
            }
            write(&union, "d/h", "CHANGED");
            union.shut_down();
            drop(union);
            // As when the clock was set back before the copy was made.
            let (copy, entry) = (bed.at("upper/d/h"), in_index(&bed, ""));
            fs::write(bed.at("old"), "CHANGED").unwrap();
            let [from, to] = [&copy, &bed.at("old")].map(|path| fs::File::open(path).unwrap());
            for name in marks(&copy) {
                let value = xattr::get(At::Fd(from.as_fd()), name.as_bytes()).unwrap().unwrap();
                if remembers || !name.ends_with(ORIGINAL) {
                    rustix::fs::fsetxattr(&to, name, &value, rustix::fs::XattrFlags::empty()).unwrap();
                }
            }
            assert!(has_mark(&copy, ORIGINAL));
            for link in [copy, entry] {
                fs::remove_file(&link).unwrap();
                fs::hard_link(bed.at("old"), link).unwrap();
            }
            fs::remove_file(bed.at("old")).unwrap();
            let union = checked(&bed, true);
            assert_eq!(content(&union, "d/h2"), "CHANGED", "{remembers}");
            assert_eq!((nlink(&union, "d/h"), nlink(&union, "d/h2")), (2, 2));
            union.shut_down();
        }
    }

    #[test]
    fn a_record_that_was_written_before_its_file_was_born_is_its_record() {
        let bed = Bed::new(1);
        symlink("1:0", bed.at("record")).unwrap(); // of earlier versions
        if !is_made_after(&bed, "record", "0/d/h") {
            return;
        }
        link(&bed, ["h", "h2"]);
        let union = checked(&bed, true);
        union.unlink(&find(&union, "d"), b"h").unwrap();
        union.shut_down();
        drop(union);
        fs::rename(bed.at("record"), in_index(&bed, ".hidden")).unwrap();
        let union = checked(&bed, true);
        assert_eq!(nlink(&union, "d/h2"), 1);
        union.shut_down();
    }

    #[test]
    fn a_copy_whose_original_is_gone_is_nobodys_copy_when_it_is_frozen_and_keeps_its_number() {
        for userxattr in BOTH {
            let Some(bed) = bed_of_numbers() else { return };
            pair(&bed, ["h", "h2"]);
            let union = checked(&bed, userxattr);
            // So that it becomes a link of the copy.
            find(&union, "d/h2");
            write(&union, "d/h", "CHANGED");
            let h = find(&union, "d/h").ino;
            assert!(has_mark(&bed.at("upper/d/h"), NLINK) && bed.at("upper/d/h2").exists());
            replace(&bed);
            let z = find(&union, "d/z").ino;
            for mark in [ORIGIN, NLINK] {
                assert!(!has_mark(&bed.at("upper/d/h"), mark), "{userxattr} {mark}");
            }
            assert_eq!((nlink(&union, "d/h"), nlink(&union, "d/z")), (2, 2), "{userxattr}");
            for (ino, lookups) in [(h, 4), (z, 2)] {
                let known = union.node(ino).unwrap().lookups();
                assert!(known >= lookups);
                union.forget(ino, known);
                assert!(union.node(ino).is_err());
            }
            assert_eq!(["d/z", "d/h", "d/z2", "d/h2"].map(|path| find(&union, path).ino), [z, h, z, h]);
            union.shut_down();
            drop(union);
            let target = Target {
                upper: bed.at("upper"),
                lowers: vec![bed.at("0").into()],
                xattr: if userxattr { XattrChoice::User } else { XattrChoice::Auto },
                ..Target::default()
            };
            snapshot(&target, Some("one")).unwrap();
            let union = checked(&bed, userxattr);
            write(&union, "d/h", "AGAIN");
            assert_eq!(content(&union, "d/z"), "0/d/z", "{userxattr}");
            assert_eq!(content(&union, "d/h2"), "AGAINED", "{userxattr}");
            union.shut_down();
        }
    }

    #[test]
    fn who_has_a_file_open_goes_on_when_its_original_is_gone() {
        for userxattr in BOTH {
            let Some(bed) = bed_of_numbers() else { return };
            pair(&bed, ["h", "h2"]);
            let union = checked(&bed, userxattr);
            write(&union, "d/h", "CHANGED");
            union.shut_down();
            drop(union);
            let union = checked(&bed, userxattr);
            // By the index.
            let open = find(&union, "d/h2");
            replace(&bed);
            find(&union, "d/z");
            let mut data = [0; 7];
            assert_eq!(union.read(&open, 0, &mut data), Ok(7), "{userxattr}");
            assert_eq!((&data, union.getattr(&open).unwrap().stat.nlink), (b"CHANGED", 1));
            assert_eq!(find(&union, "d/h").ino, open.ino);
            write(&union, "d/h", "AGAIN");
            assert_eq!(content(&union, "d/z"), "0/d/z");
            union.shut_down();
        }
    }

    #[test]
    fn what_leaves_the_index_leaves_it_whole_and_holds_nobody_up() {
        for userxattr in BOTH {
            let Some(bed) = bed_of_numbers() else { return };
            pair(&bed, ["h", "h2"]);
            let union = Arc::new(checked(&bed, userxattr));
            write(&union, "d/h", "CHANGED");
            let h = find(&union, "d/h").real();
            let number = stat(&bed, "upper/d/h").ino;
            let upper = union.upper().unwrap();
            {
                // As the kernel's entry of a copy of a copy, and as a metacopy.
                let mut indexed = upper.links().indexed.write();
                let [known] = indexed.values().cloned().collect::<Vec<_>>().try_into().unwrap();
                indexed.insert(h, known);
            }
            upper.lacks_data(number);
            replace(&bed);
            let watched = union.clone();
            let is_free = move |_| {
                let links = watched.upper().unwrap().links();
                assert!(links.indexed.try_write().is_some(), "all that ask for a copy wait for a disk");
            };
            hook::during(is_free, || assert_eq!(content(&union, "d/z"), "0/d/z"));
            assert!(!upper.has_index() && !upper.is_indexed_metacopy(number), "{userxattr}");
            union.shut_down();
        }
    }

    #[test]
    fn two_who_find_that_the_original_is_gone_part_the_copy_once() {
        for userxattr in BOTH {
            let Some(bed) = bed_of_numbers() else { return };
            pair(&bed, ["h", "h2"]);
            let union = Arc::new(checked(&bed, userxattr));
            write(&union, "d/h", "CHANGED");
            let h = find(&union, "d/h").ino;
            replace(&bed);
            let other = union.clone();
            // At each instant between them: while the marks go, when the copy has left the index, and when nothing is known.
            let look = move |_| {
                let other = other.clone();
                let beside = std::thread::spawn(move || (content(&other, "d/z2"), content(&other, "d/h")));
                assert_eq!(beside.join().unwrap(), ("0/d/z".into(), "CHANGED".into()));
            };
            hook::during(look, || assert_eq!(content(&union, "d/z"), "0/d/z", "{userxattr}"));
            write(&union, "d/z", "WRITTEN");
            assert_eq!(["d/h", "d/z2"].map(|path| content(&union, path)), ["CHANGED", "WRITTEN"]);
            assert_eq!((find(&union, "d/h").ino, nlink(&union, "d/z")), (h, 2));
            union.shut_down();
        }
    }

    #[test]
    fn a_file_of_another_type_is_another_whatever_is_known_of_it() {
        for userxattr in BOTH {
            let Some(bed) = bed_of_numbers() else { return };
            pair(&bed, ["h", "h2"]);
            let mut union = checked(&bed, userxattr);
            write(&union, "d/h", "CHANGED");
            union.shut_down();
            drop(union);
            if userxattr {
                // Of an earlier version.
                let copy = fs::File::open(bed.at("upper/d/h")).unwrap();
                rustix::fs::fremovexattr(&copy, format!("user.overlay.{ORIGINAL}")).unwrap();
            }
            union = checked(&bed, userxattr);
            replace_by(&bed, || symlink("away", bed.at("0/d/z")).unwrap());
            let z = find(&union, "d/z");
            assert_eq!(
                (z.kind, union.readlink(&z).unwrap()),
                (Kind::Symlink, b"away".to_vec()),
                "{userxattr}"
            );
            assert_eq!(content(&union, "d/h"), "CHANGED");
            assert_ne!(find(&union, "d/h").ino, z.ino);
            union.shut_down();
        }
    }

    #[test]
    fn a_copy_is_found_by_a_name_that_is_the_only_one_in_the_lower_by_then() {
        for userxattr in BOTH {
            let bed = Bed::new(1);
            pair(&bed, ["h", "h2"]);
            let union = checked(&bed, userxattr);
            if !union.upper().unwrap().caps().xattr {
                return support::skipped("the filesystem of the scratch directories keeps no marks");
            }
            write(&union, "d/h", "CHANGED");
            bed.file("0/d/new");
            fs::rename(bed.at("0/d/new"), bed.at("0/d/h")).unwrap();
            assert_eq!(content(&union, "d/h2"), "CHANGED");
            assert_eq!(find(&union, "d/h2").ino, find(&union, "d/h").ino);
            write(&union, "d/h2", "AGAIN");
            assert_eq!(content(&union, "d/h"), "AGAINED");
            union.unlink(&find(&union, "d"), b"h").unwrap();
            assert_eq!((content(&union, "d/h2"), nlink(&union, "d/h2")), ("AGAINED".into(), 1));
            union.shut_down();
        }
    }
}
