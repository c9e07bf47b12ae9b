//! Renames.
//!
//! What is renamed is copied up first, and then one renameat2 in the upper does it: with RENAME_WHITEOUT where the old
//! name must go on hiding what lowers have under it.
//!
//! A directory that lowers contribute to can be renamed too: only its own upper directory moves, marked with a
//! **redirect** that tells lookups where its lowers' parts are (kernel: overlayfs.rst, "Renaming directories"). A
//! directory of the upper alone is marked opaque where it would otherwise be merged with what lowers have under its
//! new name.

//!
//! A rename is prepared (`RenameRequest`: what is to move is looked up and copied up), then both directories are locked and
//! what the names stand for is looked at again; what is done then is in `moving`. What moved though it was not meant goes
//! back (`judged`).

mod moving;

use std::sync::Arc;

use parking_lot::RwLockWriteGuard;

use self::moving::{EntryName, Mover, Moving, Side};
use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::change::names::check_name;
use crate::union::events::EventKind as Event;
use crate::union::lookup::found::Found;
use crate::union::nodes::node::Node;
use crate::union::nodes::node_ref::NodeRef;

/// What a rename does about an entry of the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces it.
    Replace,
    /// Fails (RENAME_NOREPLACE).
    NoReplace,
    /// Gives it the old name (RENAME_EXCHANGE).
    Exchange,
}

/// A rename that is asked for.
struct RenameRequest<'a> {
    union: &'a Union,
    from: EntryName<'a>,
    to: EntryName<'a>,
    mode: RenameMode,
}

/// What is to move, in the upper.
struct Movers<'a> {
    source: NodeRef<'a>,
    /// What gets the old name.
    target: Option<NodeRef<'a>>,
}

impl Union {
    /// Gives the entry `name` of `parent` the name `new_name` in `new_parent`.
    pub fn rename(
        &self,
        (parent, name): (&Arc<Node>, &[u8]),
        (new_parent, new_name): (&Arc<Node>, &[u8]),
        mode: RenameMode,
    ) -> Result<()> {
        check_name(new_name)?;
        if mode == RenameMode::Exchange && !self.upper()?.caps().rename_exchange {
            return Err(FsError::Invalid("RENAME_EXCHANGE on the upper's filesystem"));
        }
        self.upper()?;
        let (from, to) = (EntryName { parent, name }, EntryName { parent: new_parent, name: new_name });
        let request = RenameRequest { union: self, from, to, mode };
        loop {
            // Copy-ups hold locks of their own, so they come first; then, with both directories locked, what the names
            // stand for is looked at again.
            if let Some(done) = request.run(&request.prepare()?)? {
                return done;
            }
        }
    }

    /// Returns the node that a name leads to, made if it isn't known.
    fn look(&self, EntryName { parent, name }: EntryName<'_>) -> Result<Option<NodeRef<'_>>> {
        let _names = self.dir_part(parent)?.names.read();
        match self.resolve(parent, name)? {
            Some(found) => self.node_looked_at(parent, name, &found).map(Some),
            None => Ok(None),
        }
    }

    /// Returns what a name leads to, if that is the node. The caller holds the directory's names.
    fn found_now(
        &self,
        EntryName { parent, name }: EntryName<'_>,
        node: &Arc<Node>,
    ) -> Result<Option<Found>> {
        let Some(found) = self.resolve_name(parent, name)? else { return Ok(None) };
        let origin = self.origin_of(parent, name, &found)?;
        let _hardlinks = self.has_hardlinks(parent, &found).then(|| self.hardlinks.locks.shared(origin));
        let (identity, ..) = self.identify_as(origin, (parent, name), &found)?;
        let known = self.table.find(identity);
        Ok(known.filter(|known| Arc::ptr_eq(known, node)).map(|_| found))
    }

    /// Locks the names of both directories: ancestors first, then by number.
    fn lock_names<'a>(
        &self,
        a: &'a Arc<Node>,
        b: &'a Arc<Node>,
    ) -> Result<[Option<RwLockWriteGuard<'a, ()>>; 2]> {
        let (first, second) = if Arc::ptr_eq(a, b) {
            return Ok([Some(self.dir_part(a)?.names.write()), None]);
        } else if b.is_below(a) || (!a.is_below(b) && a.ino < b.ino) {
            (a, b)
        } else {
            (b, a)
        };
        Ok([Some(self.dir_part(first)?.names.write()), Some(self.dir_part(second)?.names.write())])
    }
}

impl<'a> RenameRequest<'a> {
    fn is_across(&self) -> bool {
        !Arc::ptr_eq(self.from.parent, self.to.parent)
    }

    /// Looks up what is to move, and copies it up.
    fn prepare(&self) -> Result<Movers<'a>> {
        let union = self.union;
        let source = union.look(self.from)?.ok_or(FsError::Absent)?;
        self.check_before_copy_up(&source)?;
        union.check_redirect(&source)?;
        union.ensure_upper_to_move(&source)?;
        // A file with several names may have been copied up under another one, elsewhere.
        union.ensure_upper(self.from.parent)?;
        union.ensure_upper(self.to.parent)?;
        let target = match self.mode {
            RenameMode::Exchange => {
                let target = union.look(self.to)?.ok_or(FsError::Absent)?;
                union.check_redirect(&target)?;
                union.ensure_upper_to_move(&target)?;
                Some(target)
            }
            _ => None,
        };
        Ok(Movers { source, target })
    }

    /// Checks what must fail before anything is copied up.
    fn check_before_copy_up(&self, source: &Arc<Node>) -> Result<()> {
        if self.mode == RenameMode::Exchange {
            return Ok(());
        }
        self.check_not_into(source, self.to.parent)?;
        let Some(target) = self.union.look(self.to)? else { return Ok(()) };
        match (source.dir.is_some(), &target.dir) {
            _ if self.mode == RenameMode::NoReplace => Err(FsError::Exists),
            (true, None) => Err(FsError::NotADirectory),
            (false, Some(_)) => Err(FsError::IsADirectory),
            (true, Some(part)) if !Arc::ptr_eq(source, &target) => {
                let _names = part.names.read();
                self.union.check_empty(&target)
            }
            _ => Ok(()),
        }
    }

    fn check_not_into(&self, node: &Arc<Node>, parent: &Arc<Node>) -> Result<()> {
        match node.dir.is_some() && parent.is_below(node) {
            true => Err(FsError::Invalid("a directory can't be moved into itself")),
            false => Ok(()),
        }
    }

    /// Does it, with both directories locked. `None`: the names stand for something else by now.
    fn run(&self, movers: &Movers<'_>) -> Result<Option<Result<()>>> {
        let (union, Movers { source, target }) = (self.union, movers);
        let _renames = self.is_across().then(|| union.renames.lock());
        self.check_not_into(source, self.to.parent)?;
        target.as_ref().map_or(Ok(()), |target| self.check_not_into(target, self.from.parent))?;
        let _names = union.lock_names(self.from.parent, self.to.parent)?;
        let Some(source) = Mover::now(union, self.from, source)? else { return Ok(None) };
        let target = match target {
            Some(target) => match Mover::now(union, self.to, target)? {
                None => return Ok(None),
                target => target,
            },
            None => None,
        };
        let judged = self.check_judged(self.from, &source).and_then(|()| match &target {
            Some(target) => self.check_judged(self.to, target),
            None => Ok(()),
        });
        union.check_alive(union.dir_part(self.from.parent)?)?;
        union.check_alive(union.dir_part(self.to.parent)?)?;
        let (from, to) = (self.side(self.from)?, self.side(self.to)?);
        let moving = Moving { union, source: &source, from: &from, to: &to };
        let done = judged.and_then(|()| match &target {
            Some(target) => moving.exchange(target),
            None => moving.replace(self.mode != RenameMode::NoReplace),
        });
        if done.is_ok() {
            self.tell(source.node, from.below);
        }
        Ok(Some(done))
    }

    /// Checks that this was what the kernel judged.
    fn check_judged(&self, of: EntryName<'_>, Mover { node, found }: &Mover<'_>) -> Result<()> {
        self.union.check_judged(of.parent, of.name, Some(node), found.stat.nlink)?;
        if self.is_across() { self.union.check_moves(of.parent, of.name, node) } else { Ok(()) }
    }

    fn side(&self, EntryName { parent, name }: EntryName<'a>) -> Result<Side<'a>> {
        let union = self.union;
        let real = union.dir_part(parent)?.upper_dir().ok_or(FsError::Stale)?;
        let fd = union.upper_fd(&real)?;
        let below = union.lower_shows(parent, name)?
            || union.watched.is_some() && union.may_come_back(union.in_upper_dir(parent, &fd, name)?);
        Ok(Side { parent, name, fd, below })
    }

    fn tell(&self, source: &Node, below: bool) {
        let exchange = self.mode == RenameMode::Exchange;
        self.union.events.tell(|| Event::Rename {
            path: self.union.path_in(self.from.parent, self.from.name),
            to: self.union.path_in(self.to.parent, self.to.name),
            exchange,
            whiteout: !exchange && below,
            redirect: self.union.redirect_of(source),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::{Barrier, mpsc};
    use std::time::Duration;

    use crate::union::Limits;
    use crate::union::bed::{Bed, look_up};
    use crate::union::change::create::Create;
    use crate::union::change::failpoint::{Failpoint, hook};
    use crate::union::change::staged::New;

    /// Makes a lower with `a`, a directory with the file `f`, which has another name beside it.
    fn bed() -> Bed {
        let bed = Bed::new(1);
        fs::hard_link(bed.file("0/a/f").at("0/a/f"), bed.at("0/g")).unwrap();
        bed
    }

    fn make_directory(union: &Union, name: &[u8]) -> Arc<Node> {
        let create = Create { new: New::Directory, mode: 0o755, umask: 0, caller: union.own };
        union.create(union.root(), name, create).unwrap().0
    }

    #[test]
    fn a_merged_directory_is_listed_by_its_number_wherever_it_goes() {
        let bed = bed();
        let union = bed.open();
        let new = make_directory(&union, b"new");
        let (_, before) = union.lookup(union.root(), b"a").unwrap().unwrap();
        union.rename((union.root(), b"a"), (&new, b"moved"), RenameMode::Replace).unwrap();
        let (_, after) = union.lookup(&new, b"moved").unwrap().unwrap();
        let mut listed = Vec::new();
        union
            .readdir(&new, 0, |entry| {
                listed.push(entry.ino);
                true
            })
            .unwrap();
        assert_eq!((after.ino, &listed[..]), (before.ino, &[before.ino][..]));
    }

    #[test]
    fn directories_of_further_names_are_forgotten_with_the_file() {
        let bed = bed();
        let union = bed.open();
        let mut known = Vec::new();
        let (file, _) = union.lookup(union.root(), b"g").unwrap().unwrap();
        let (dir, _) = union.lookup(union.root(), b"a").unwrap().unwrap();
        let (same, _) = union.lookup(&dir, b"f").unwrap().unwrap();
        known.extend([dir.ino, file.ino, same.ino]);
        assert_eq!(file.ino, same.ino, "two names of one file");
        drop((file, dir, same));
        for ino in known {
            union.forget(ino, 1);
        }
        assert_eq!(union.known_nodes(), 1, "the root");
    }

    #[test]
    fn a_rename_that_fails_leaves_no_node_that_nobody_knows() {
        let bed = bed();
        let union = bed.open();
        let known = union.known_nodes();
        let root = union.root();
        // `g` and `a` are looked up by the rename alone.
        let done = union.rename((root, b"g"), (root, b"a"), RenameMode::Replace);
        assert_eq!((done, union.known_nodes()), (Err(FsError::IsADirectory), known));
        let done = union.rename((root, b"a"), (root, b"g"), RenameMode::Exchange);
        assert_eq!((done, union.known_nodes()), (Ok(()), known));
    }

    /// Takes the source away right before the system call, when the markers of the target have been taken out of its
    /// way.
    #[test]
    fn what_the_target_hid_stays_hidden_when_the_rename_fails() {
        for exchange in [true, false] {
            let bed = Bed::new(1);
            bed.file("0/target/below").dir("upper/target").dir("upper/source");
            let mut stack = bed.stack();
            stack.upper.as_mut().unwrap().caps.rename_exchange &= exchange;
            let union = Union::new(stack, Limits::default()).unwrap();
            let (root, target) = (union.root(), look_up(&union, "target").unwrap());
            union.unlink(&target, b"below").unwrap();
            let places = (bed.at("upper/source"), bed.at("upper/target"), bed.at("away"));
            let vanish = move |_| {
                if fs::read_dir(&places.1).is_ok_and(|mut left| left.next().is_none()) {
                    fs::rename(&places.0, &places.2).unwrap_or_default(); // once
                }
            };
            assert!(look_up(&union, "source").is_some());
            let done = hook::during(vanish, || {
                union.rename((root, b"source"), (root, b"target"), RenameMode::Replace)
            });
            assert!(done.is_err() && bed.at("away").exists(), "{exchange}");
            assert!(look_up(&union, "target/below").is_none(), "{exchange}");
            let create = Create { new: New::File, mode: 0o600, umask: 0, caller: union.own };
            union.create(&target, b"new", create).unwrap();
            union.create(&target, b"below", create).unwrap();
            union.unlink(&target, b"below").unwrap();
            union.shut_down();
            drop((target, union));
            let union = bed.open();
            assert!(look_up(&union, "target/below").is_none(), "{exchange}, in the next mount");
            assert!(look_up(&union, "target/new").is_some(), "{exchange}, in the next mount");
        }
    }

    /// Puts something among the markers that can't be removed with them.
    #[test]
    fn what_the_target_hid_stays_hidden_when_its_markers_cannot_all_go() {
        let bed = Bed::new(1);
        let names: Vec<_> = (0..20).map(|n| format!("below{n}")).collect();
        for name in &names {
            bed.file(&format!("0/target/{name}"));
        }
        bed.dir("upper/target").dir("upper/source");
        let mut stack = bed.stack();
        stack.upper.as_mut().unwrap().caps.rename_exchange = false;
        let union = Union::new(stack, Limits::default()).unwrap();
        let (root, target) = (union.root(), look_up(&union, "target").unwrap());
        names.iter().for_each(|name| union.unlink(&target, name.as_bytes()).unwrap());
        assert!(look_up(&union, "source").is_some());
        let kept = bed.at("upper/target/foreign/kept");
        let immutable = |on: bool| {
            let flags = if on { rustix::fs::IFlags::IMMUTABLE } else { rustix::fs::IFlags::empty() };
            rustix::fs::ioctl_setflags(fs::File::open(bed.at("upper/target/foreign/kept")).unwrap(), flags)
        };
        bed.file("upper/target/foreign/kept");
        if immutable(true).is_err() {
            fs::remove_dir_all(bed.at("upper/target/foreign")).unwrap();
            return support::skipped("no file can be made immutable here");
        }
        let done = union.rename((root, b"source"), (root, b"target"), RenameMode::Replace);
        assert!(done.is_err() && kept.exists());
        immutable(false).unwrap();
        fs::remove_dir_all(bed.at("upper/target/foreign")).unwrap();
        let create = Create { new: New::File, mode: 0o600, umask: 0, caller: union.own };
        for name in &names {
            let name = name.as_bytes();
            assert!(union.lookup(&target, name).unwrap().is_none());
            union.create(&target, name, create).unwrap();
            union.unlink(&target, name).unwrap();
        }
        assert_eq!(bed.names("upper/target").len(), names.len());
        let marks = union.with_object(&target, |object| union.marks_of(object)).unwrap();
        assert!(!marks.opaque, "whiteouts in an opaque directory");
        union.shut_down();
        drop((target, union));
        let union = bed.open();
        assert!(names.iter().all(|name| look_up(&union, &format!("target/{name}")).is_none()));
    }

    /// Lets each of two files lose a name to the other, in two directories at once.
    #[test]
    fn renames_over_each_others_names_do_not_wait_for_each_other() {
        let bed = Bed::new(1);
        bed.file("upper/p/one").file("upper/p/other").dir("upper/q");
        fs::hard_link(bed.at("upper/p/one"), bed.at("upper/q/one")).unwrap();
        fs::hard_link(bed.at("upper/p/other"), bed.at("upper/q/other")).unwrap();
        let union = Arc::new(bed.open());
        let [p, q, one, other] = ["p", "q", "p/one", "p/other"].map(|path| look_up(&union, path).unwrap());
        assert!(["q/one", "q/other"].iter().all(|path| look_up(&union, path).is_some()));
        let together = Arc::new(Barrier::new(3));
        let (done, ended) = mpsc::channel();
        for (dir, from, to) in [(&p, "one", "other"), (&q, "other", "one")] {
            let (union, dir, together, done) = (union.clone(), dir.clone(), together.clone(), done.clone());
            std::thread::spawn(move || {
                let meet = move |instant| {
                    if instant == Failpoint::Marked {
                        // Twice: in between the places are taken away.
                        together.wait();
                        together.wait();
                    }
                };
                let renamed = hook::during(meet, || {
                    union.rename((&dir, from.as_bytes()), (&dir, to.as_bytes()), RenameMode::Replace)
                });
                done.send(renamed).unwrap_or_default(); // nobody may wait any more
            });
        }
        together.wait();
        let read = (one.place.read(), other.place.read());
        together.wait();
        // Both wait for one place, or each for another: whichever it locks first.
        let waits = |node: &Node| node.place.try_read().is_none();
        support::wait_until(Duration::from_secs(10), || waits(&one) || waits(&other));
        support::wait_until(Duration::from_millis(300), || waits(&one) && waits(&other));
        drop(read);
        for _ in 0..2 {
            ended.recv_timeout(Duration::from_secs(20)).expect("they wait for each other").unwrap();
        }
        assert_eq!(look_up(&union, "p/other").unwrap().ino, one.ino);
        assert_eq!(look_up(&union, "q/one").unwrap().ino, other.ino);
    }

    /// Makes the whiteout that changed places with the directory one that can't be removed.
    #[test]
    fn a_directory_goes_back_when_what_it_replaced_cannot_be_removed() {
        let bed = Bed::new(1);
        bed.file("0/to/n").file("upper/d/file").dir("upper/to").dir("other/full");
        let union = bed.open();
        let to = look_up(&union, "to").unwrap();
        union.unlink(&to, b"n").unwrap();
        let d = look_up(&union, "d").unwrap();
        let places = (bed.at("upper/d"), bed.at("other"));
        let put = move |_| {
            // Once the whiteout is there.
            if fs::symlink_metadata(&places.0).is_ok_and(|found| !found.is_dir()) {
                fs::remove_file(&places.0).unwrap();
                fs::rename(&places.1, &places.0).unwrap();
            }
        };
        let done = hook::during(put, || union.rename((union.root(), b"d"), (&to, b"n"), RenameMode::Replace));
        assert!(done.is_err(), "nobody could have removed it");
        assert_eq!(look_up(&union, "d").unwrap().ino, d.ino);
        assert!(look_up(&union, "d/file").is_some());
        assert!(bed.at("upper/to/n/full").exists(), "what is another's is lost");
    }

    /// Exchanges, as the owner of the upper, the directory that is renamed for another, right before the system call.
    #[test]
    fn what_was_moved_in_anothers_place_goes_back_and_what_was_hidden_stays_hidden() {
        let bed = Bed::new(1);
        bed.file("0/to/n/below");
        let union = bed.open();
        make_directory(&union, b"d");
        bed.file("upper/important/file");
        let root = union.root();
        let (to, n) = (look_up(&union, "to").unwrap(), look_up(&union, "to/n").unwrap());
        union.unlink(&n, b"below").unwrap();
        union.rmdir(&to, b"n").unwrap();
        let upper = bed.at("upper");
        // The directory is made opaque, for lowers have one of the new name; then it is exchanged.
        let swap = hook::once(move || {
            fs::rename(upper.join("d"), upper.join("away")).unwrap();
            fs::rename(upper.join("important"), upper.join("d")).unwrap();
        });
        let done = hook::during(swap, || union.rename((root, b"d"), (&to, b"n"), RenameMode::Replace));
        assert_eq!(done, Err(FsError::Stale));
        assert!(bed.at("upper/d/file").exists(), "it is back");
        assert!(union.lookup(&to, b"n").unwrap().is_none(), "what the lower has shows again");
    }
}
