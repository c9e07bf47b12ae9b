//! Inode numbers that a lower gives again (`lower=checked`).
//!
//! The hardlink index and the records of hidden names know a lower's file by its inode number. A file that is deleted in the
//! lower frees its number, and another file may get it. What was known by the number is of that one no more: the first look at
//! the new file takes it away, so it has no copy and no hidden names. The copy of the file before keeps its names in the upper.
//!
//! The copy's entry tells the file handle of its original, which holds the filesystem's own generation, in the kernel's index and
//! where this mount has made it. Otherwise a file that was born after the copy, or after the record was written, is another.

use crate::error::Result;
use crate::union::Union;
use crate::union::hardlinks::link_index::Indexed;
use crate::union::lookup::found::{Found, FoundKind};
use crate::union::nodes::region::InodeId;

impl Union {
    /// Tells whether what is known of a file of the lowers by its number may be of another, which is gone.
    pub(in crate::union) fn may_have_changed(&self, found: &Found) -> bool {
        let is_leaf = matches!(found.what, FoundKind::Leaf { .. });
        is_leaf && self.watched.is_some() && self.upper.is_some() && !self.is_own(found.layer)
    }

    /// Forgets what is known by the number of a file that was found under a name, if that was another file.
    ///
    /// # Errors
    /// Those of looking at what is known.
    pub(in crate::union) fn forget_of_another(&self, name: &[u8], found: &Found) -> Result<()> {
        let (origin, upper) = (found.id, self.upper()?);
        if let Some(known) = upper.indexed(origin)
            && self.is_of_another(origin, &known, name, found)?
        {
            log::warn!(
                "lower=checked: {} has the inode number of a file that is gone: it has no copy",
                String::from_utf8_lossy(name).escape_debug()
            );
            upper.disown(origin, &known);
        }
        if self.hardlinks.hidden(origin).is_some()
            && upper.hidden_since(origin)?.zip(found.stat.born).is_some_and(|(since, born)| born > since)
            && self.hardlinks.count_no_hidden(origin)
            && let Err(error) = upper.forget_hidden(origin)
        {
            log::warn!("the record of hidden names of a file that is gone stays: {error}");
        }
        Ok(())
    }

    /// Tells whether a copy in the index is of another file than the one that was found.
    fn is_of_another(&self, origin: InodeId, known: &Indexed, name: &[u8], found: &Found) -> Result<bool> {
        let FoundKind::Leaf { dir, .. } = &found.what else { return Ok(false) };
        match known.original() {
            // It was copied from a copy of the file that a snapshot froze.
            Some(original) if original.real != found.id => return Ok(false),
            None if self.frozen > 0 => return Ok(false),
            Some(original) => {
                let handle =
                    || self.fds.generations().handle(self.fds.get(dir).ok()?.entry(name), &found.stat);
                if let Some((then, now)) = original.handle.as_ref().and_then(|then| Some((then, handle()?))) {
                    return Ok(*then != now);
                }
            }
            None => {}
        }
        let copied = self.indexed_object(origin)?.stat()?.born;
        Ok(copied.zip(found.stat.born).is_some_and(|(copied, born)| born > copied))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::sync::Arc;

    use crate::sys::object::{At, Stat};
    use crate::union::bed::{Bed, look_up};
    use crate::union::data::file::Write;
    use crate::union::nodes::node::Node;
    use crate::union::options::FsOptions;
    use crate::union::stack::layer::{Stack, StackOptions, XattrChoice};
    use crate::union::{Limits, Union};

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

    /// Deletes `h` and `h2` in the lower, and makes `z` and `z2` of their inode number, born after that time. `false`: the
    /// filesystem gives no numbers again.
    fn replace(bed: &Bed) -> bool {
        let ino = fs::metadata(bed.at("0/d/h")).unwrap().ino();
        // All that is there was born by then.
        bed.file("tick");
        let newest = stat(bed, "tick").born;
        for name in ["h", "h2"] {
            fs::remove_file(bed.at("0/d").join(name)).unwrap();
        }
        for _ in 0..20_000 {
            bed.file("0/d/z");
            let made = stat(bed, "0/d/z");
            if made.ino == ino && made.born > newest {
                link(bed, ["z", "z2"]);
                return true;
            }
            fs::remove_file(bed.at("0/d/z")).unwrap();
        }
        support::skipped("this filesystem doesn't give numbers again, or tells no time of birth");
        false
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
            let bed = Bed::new(1);
            pair(&bed, ["h", "h2"]);
            let mut union = checked(&bed, userxattr);
            if !union.upper().unwrap().caps().xattr {
                return support::skipped("the filesystem of the scratch directories keeps no marks");
            }
            write(&union, "d/h", "CHANGED");
            if again {
                union.shut_down();
                drop(union);
                union = checked(&bed, userxattr);
            }
            let h = find(&union, "d/h").ino;
            assert_eq!(nlink(&union, "d/h"), 2);
            if !replace(&bed) {
                return;
            }
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
        for userxattr in BOTH {
            let bed = Bed::new(1);
            pair(&bed, ["h", "h2"]);
            let union = checked(&bed, userxattr);
            union.unlink(&find(&union, "d"), b"h").unwrap();
            assert_eq!(nlink(&union, "d/h2"), 1);
            if !replace(&bed) {
                return;
            }
            assert_eq!(nlink(&union, "d/z"), 2, "{userxattr}");
            write(&union, "d/z", "WRITTEN");
            union.unlink(&find(&union, "d"), b"z").unwrap();
            assert_eq!(content(&union, "d/z2"), "WRITTEN", "the copy stays known by its other name");
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
