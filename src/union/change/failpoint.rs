//! The instants of an operation at which it matters what is done and what is not: after each change of the upper, and
//! while the count of a file's names, or what lies in lowers that may change, is looked at. Nothing happens there; tests stop there, to see what a kill leaves
//! and who is held up.

/// What was just done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::union) enum Failpoint {
    /// Something was changed in the upper or its workdir.
    Changed,
    /// Something was found out about a file with several names.
    Identified,
    /// What a rename moves is marked for its new name, and about to get it.
    Marked,
    /// Something was found in lowers that may change, and is about to be made a node.
    Found,
}

/// Notes that an operation is at this instant.
#[inline]
pub(in crate::union) fn reached(instant: Failpoint) {
    #[cfg(test)]
    hook::run(instant);
    #[cfg(not(test))]
    let _ = instant;
}

#[cfg(test)]
pub(in crate::union) mod hook {
    use std::cell::RefCell;

    use super::Failpoint;

    type Hook = Box<dyn FnMut(Failpoint)>;

    thread_local! {
        static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    }

    /// Calls `hook` at each instant that this thread reaches while it does `work`.
    pub fn during<T>(hook: impl FnMut(Failpoint) + 'static, work: impl FnOnce() -> T) -> T {
        HOOK.set(Some(Box::new(hook)));
        let done = work();
        HOOK.set(None);
        done
    }

    /// Makes a hook of what is done at the first instant alone.
    pub fn once(act: impl FnOnce() + 'static) -> impl FnMut(Failpoint) + 'static {
        let mut act = Some(act);
        move |_| act.take().into_iter().for_each(|act| act())
    }

    /// Makes a hook of what is done at the first `count` instants.
    pub fn times(count: usize, act: impl Fn() + 'static) -> impl FnMut(Failpoint) + 'static {
        let mut left = count;
        move |_| {
            if left > 0 {
                left -= 1;
                act();
            }
        }
    }

    pub(in crate::union) fn run(instant: Failpoint) {
        // Taken out, so that a hook may do something that reaches instants itself.
        let Some(mut hook) = HOOK.take() else { return };
        hook(instant);
        HOOK.set(Some(hook));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::error::Result;
    use crate::union::Union;
    use crate::union::bed::Bed;
    use crate::union::bed::kill::{Order, kill_at};
    use crate::union::change::create::Create;
    use crate::union::change::rename::RenameMode;
    use crate::union::change::staged::New;
    use crate::union::nodes::node::Node;
    use crate::union::view::attr::SetAttr;
    use crate::union::view::readdir::Looked;

    /// Builds a stack with two lower files of several names, each in a directory of its own.
    fn build() -> Bed {
        let bed = Bed::new(1);
        for (file, names) in [("a", 3), ("b", 30)] {
            bed.dir(&format!("0/{file}"));
            let dir = bed.at("0").join(file);
            fs::write(dir.join("1"), file).unwrap();
            for name in 2..=names {
                fs::hard_link(dir.join("1"), dir.join(name.to_string())).unwrap();
            }
        }
        bed
    }

    fn directory(union: &Union, name: &str) -> Arc<Node> {
        union.lookup(union.root(), name.as_bytes()).unwrap().unwrap().0
    }

    fn find(union: &Union, dir: &Arc<Node>, name: &[u8]) -> Result<Arc<Node>> {
        Ok(union.lookup(dir, name)?.expect("a name that the operation needs").0)
    }

    /// What can be done to a file with several names.
    #[derive(Debug, Clone, Copy)]
    enum Act {
        Find,
        CopyUp,
        Unlink,
        UnlinkCopied,
        RenameOver,
        RenameOverCopied,
        RenameAway,
        RenameAwayCopied,
    }

    const ACTS: [Act; 8] = [
        Act::Find,
        Act::CopyUp,
        Act::Unlink,
        Act::UnlinkCopied,
        Act::RenameOver,
        Act::RenameOverCopied,
        Act::RenameAway,
        Act::RenameAwayCopied,
    ];

    impl Act {
        /// Does what it needs to be done before.
        fn prepare(self, union: &Union, dir: &Arc<Node>) -> Result<()> {
            // So that the directory is there, as it is but for the first change in it.
            let create = Create { new: New::File, mode: 0o644, umask: 0, caller: union.own };
            union.create(dir, b"new", create)?;
            match self {
                Act::UnlinkCopied | Act::RenameOverCopied | Act::RenameAwayCopied => {
                    chmod(union, &find(union, dir, b"3")?)
                }
                _ => Ok(()),
            }
        }

        fn run(self, union: &Union, dir: &Arc<Node>) -> Result<()> {
            let rename = |from: &[u8], to: &[u8]| union.rename((dir, from), (dir, to), RenameMode::Replace);
            match self {
                Act::Find => find(union, dir, b"1").map(drop),
                Act::CopyUp => chmod(union, &find(union, dir, b"1")?),
                Act::Unlink | Act::UnlinkCopied => union.unlink(dir, b"1"),
                Act::RenameOver | Act::RenameOverCopied => rename(b"new", b"1"),
                Act::RenameAway | Act::RenameAwayCopied => rename(b"1", b"away"),
            }
        }
    }

    fn chmod(union: &Union, node: &Arc<Node>) -> Result<()> {
        let change =
            SetAttr { mode: Some(0o600), uid: None, gid: None, size: None, atime: None, mtime: None };
        union.setattr(node, change, false).map(drop)
    }

    /// Tests the invariant "No waiting for others' disks": while an operation on one file waits for its disk, those on
    /// another file go on.
    #[test]
    fn an_operation_that_is_held_up_holds_up_no_other_files() {
        for slow in ACTS {
            let bed = build();
            let union = Arc::new(bed.open());
            let (a, b) = (directory(&union, "a"), directory(&union, "b"));
            slow.prepare(&union, &a).unwrap();
            let (stopped, is_stopped) = mpsc::channel();
            let (go_on, may_go_on) = mpsc::channel::<()>();
            let held = std::thread::spawn({
                let union = union.clone();
                move || {
                    let hook = move |_| {
                        stopped.send(()).unwrap();
                        may_go_on.recv().unwrap();
                    };
                    hook::during(hook, || slow.run(&union, &a)).unwrap();
                }
            });
            let mut stops = 0;
            while is_stopped.recv().is_ok() {
                stops += 1;
                let (done, is_done) = mpsc::channel();
                let (union, b) = (union.clone(), b.clone());
                std::thread::spawn(move || {
                    let name = stops.to_string().into_bytes();
                    find(&union, &b, &name).unwrap();
                    union.unlink(&b, &name).unwrap();
                    done.send(()).unwrap();
                });
                let quick = is_done.recv_timeout(Duration::from_secs(10));
                assert!(quick.is_ok(), "{slow:?}, held up at instant {stops}, holds up another file");
                go_on.send(()).unwrap();
            }
            held.join().unwrap();
            assert!(stops > 0, "{slow:?} was never held up");
        }
    }

    /// Returns the names of the tree with the inode numbers and link counts that they show.
    fn shown(union: &Union) -> BTreeMap<String, (u64, u64)> {
        let mut shown = BTreeMap::new();
        for name in ["a", "b"] {
            let dir = directory(union, name);
            union
                .readdirplus(&dir, 0, |entry| {
                    let path = format!("{name}/{}", String::from_utf8_lossy(&entry.name));
                    let Looked::Found { attr, .. } = &entry.what else { panic!("{path}: not examined") };
                    shown.insert(path, (attr.ino, attr.stat.nlink));
                    true
                })
                .unwrap();
        }
        shown
    }

    /// Tests the invariants "One step" and "Hardlinks stay one file": killed at any instant, the old names or the new
    /// ones, and the link count is that of the names.
    #[test]
    fn a_kill_at_any_instant_leaves_link_counts_that_are_those_of_the_names() {
        for (index, act) in ACTS.into_iter().enumerate() {
            let mut states = Vec::new();
            loop {
                let bed = build();
                let union = bed.open();
                act.prepare(&union, &directory(&union, "a")).unwrap();
                let before = names(&union);
                union.shut_down();
                drop(union);
                let killed = kill_at(module_path!(), states.len(), index, &bed);
                let union = bed.open();
                check_counts(&union, act, states.len());
                states.push(names(&union));
                if !killed {
                    let after = names(&union);
                    let mixed = states.iter().find(|state| ![&before, &after].contains(state));
                    assert_eq!(mixed, None, "{act:?}: neither {before:?} nor {after:?}");
                    break;
                }
                // What the kill left doesn't hinder what comes after it.
                act.run(&union, &directory(&union, "a")).unwrap_or_default();
                check_counts(&union, act, states.len());
                drop(union);
                check_counts(&bed.open(), act, states.len());
            }
            assert!(states.len() > 1 || matches!(act, Act::Find), "{act:?} was never killed");
        }
    }

    fn check_counts(union: &Union, act: Act, instant: usize) {
        let found = shown(union);
        for (path, (ino, links)) in &found {
            let names = found.values().filter(|(other, _)| other == ino).count() as u64;
            assert_eq!(*links, names, "{act:?}, killed at instant {instant}: {path}");
        }
    }

    fn names(union: &Union) -> Vec<String> {
        shown(union).into_keys().collect()
    }

    #[test]
    #[ignore = "started by the test of kills"]
    fn killed() {
        let Some(order) = Order::read() else { return };
        let union = order.bed().open();
        let dir = directory(&union, "a");
        order.carry_out(|| ACTS[order.act].run(&union, &dir)).unwrap();
    }
}
