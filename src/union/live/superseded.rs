//! Directories for which other nodes stand (`lower=checked`), before a mount goes on with another union.
//!
//! What was exchanged in the layers stays superseded: the union that takes over must not find it by its name, or two nodes would
//! stand for one directory. What was found in it, and is there still, goes on in the directory that stands for it now.

use std::collections::HashSet;
use std::sync::Arc;

use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::live::compared::name_of;
use crate::union::nodes::node::Node;

/// So often a directory may be exchanged while something in it is looked for.
const CHANGES: usize = 3;

impl Union {
    /// Gives what was found in superseded directories a place in those that stand for them, as far as it is there. Nobody may
    /// change anything meanwhile.
    ///
    /// # Errors
    /// The first of looking for it where it is now, which another time may not meet: the union that takes over would not know it. What
    /// may not be looked at is told in the log.
    pub(in crate::union) fn leave_superseded(&self) -> Result<()> {
        if self.watched.is_none() {
            return Ok(());
        }
        let mut looked_at = Vec::new();
        let left = self.leave_all_superseded(&mut looked_at);
        // Nobody was told of these.
        looked_at.into_iter().for_each(|ino| self.release(ino));
        left
    }

    fn leave_all_superseded(&self, looked_at: &mut Vec<u64>) -> Result<()> {
        let mut tried = HashSet::new();
        loop {
            let mut left = Vec::new();
            self.table.for_each(|node| {
                if node.parent().is_some_and(|parent| parent.is_gone()) && !tried.contains(&node.ino) {
                    left.push(node.clone());
                }
            });
            if left.is_empty() {
                return Ok(());
            }
            for node in left {
                tried.insert(node.ino);
                let mut done = self.leave_superseded_parent(&node, looked_at);
                for _ in 0..CHANGES {
                    match done {
                        // What stood for the directory was superseded itself by the look.
                        Err(FsError::Stale) => done = self.leave_superseded_parent(&node, looked_at),
                        _ => break,
                    }
                }
                // What may not be looked at, or has no directory any more, stays unknown: that is no reason to refuse all else, and
                // it will not be another time.
                let unreachable = [Errno::ACCESS, Errno::PERM, Errno::NOTDIR];
                if let Err(error) = &done
                    && unreachable.contains(&error.errno())
                {
                    let path = self.path_of(&node);
                    log::warn!(
                        "{}: its directory was exchanged in a lower, and it can't be looked for where it is now: {error}",
                        String::from_utf8_lossy(&path).escape_debug()
                    );
                    continue;
                }
                done.map_err(|error| {
                    let path = self.path_of(&node);
                    let path = String::from_utf8_lossy(&path);
                    let place = format!("{}, whose directory was exchanged in a lower", path.escape_debug());
                    error
                        .of(place, "it can't be looked for where it is now; try again when nobody changes it")
                })?;
            }
            // What was looked at may have been superseded by that, with other things in it.
        }
    }

    /// Looks a node up by its name in what stands for its superseded directory, which gives it its place there if it is that.
    fn leave_superseded_parent(&self, node: &Node, looked_at: &mut Vec<u64>) -> Result<()> {
        let Some((mut at, name)) = name_of(node) else { return Ok(()) };
        let mut names = vec![name];
        while at.is_gone() {
            let Some((above, name)) = name_of(&at) else { return Ok(()) };
            names.push(name);
            at = above;
        }
        while let Some(name) = names.pop().filter(|_| at.dir.is_some()) {
            let Some(next) = self.peek(&at, &name)? else { return Ok(()) };
            looked_at.push(next.ino);
            at = Arc::clone(&next);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::error::FsError;
    use crate::union::bed::{Bed, look_up};
    use crate::union::change::create::Create;
    use crate::union::change::staged::New;
    use crate::union::live::How;
    use crate::union::live::compared::Compared;
    use crate::union::live::snapshot::Freezing;
    use crate::union::nodes::node::Node;
    use crate::union::nodes::skeleton::OfUpper;
    use crate::union::options::FsOptions;
    use crate::union::{Limits, Union};

    fn make(union: &Union, dir: &Arc<Node>, name: &str) -> Result<(), FsError> {
        let create = Create { new: New::File, mode: 0o644, umask: 0, caller: union.own };
        union.create(dir, name.as_bytes(), create).map(drop)
    }

    #[test]
    fn what_cannot_be_looked_for_is_refused() {
        let bed = Bed::new(2);
        bed.file("0/d/sub/deep");
        let union = bed.open_with(&FsOptions { check_lowers: true, ..FsOptions::default() });
        let [sub, _] = ["d/sub", "d/sub/deep"].map(|path| look_up(&union, path).unwrap());
        bed.file("1/d/sub/f");
        look_up(&union, "d").unwrap();
        {
            // As by somebody who changes something there, and takes long.
            let _names = sub.dir.as_ref().unwrap().names.write();
            let refused = Compared::of(&union, &union).unwrap_err().to_string();
            assert!(refused.contains("d/sub") && refused.contains("exchanged in a lower"), "{refused}");
            let refused = union.skeleton(OfUpper::Stays).unwrap_err();
            assert!(refused.contains("exchanged in a lower"), "{refused}");
        }
        Compared::of(&union, &union).unwrap();
        union.skeleton(OfUpper::Stays).unwrap();
        union.shut_down();
    }

    #[test]
    fn a_snapshot_brings_no_superseded_directory_back() {
        let bed = Bed::new(2);
        bed.file("0/d/g").file("0/d/sub/deep").file("0/d/gone");
        let how = How {
            limits: Limits::default(),
            options: FsOptions { check_lowers: true, ..FsOptions::default() },
        };
        let union = bed.open_with(&how.options);
        let numbers = ["d", "d/g", "d/sub/deep", "d/gone"].map(|path| look_up(&union, path).unwrap().ino);
        let [before, g, deep, gone] = numbers;
        // The topmost lower, by which it is known, stays the same.
        bed.file("1/d/f");
        std::fs::remove_file(bed.at("0/d/gone")).unwrap();
        let now = look_up(&union, "d").unwrap();
        assert_eq!(make(&union, &union.node(before).unwrap(), "no"), Err(FsError::Stale));
        let lowers = ["0", "1"].map(|layer| bed.at(layer).into());
        let mut freezing = Freezing::prepare(&union, &bed.at("upper"), &lowers, Some("one")).unwrap();
        let next = freezing.take(&union, &how).unwrap();
        assert!(matches!(next.node(before), Err(FsError::Stale)), "it is found by its name again");
        assert!(matches!(next.node(gone), Err(FsError::Stale)));
        // Also by who has them open, and asks for no name.
        for (number, content) in [(g, "0/d/g"), (deep, "0/d/sub/deep")] {
            let mut data = [0; 64];
            let length = next.read(&next.node(number).unwrap(), 0, &mut data).unwrap();
            assert_eq!(&data[..length], content.as_bytes());
        }
        let again = next.node(now.ino).unwrap();
        make(&next, &again, "made").unwrap();
        assert_eq!(look_up(&next, "d").unwrap().ino, now.ino);
        assert!(look_up(&next, "d/made").is_some() && look_up(&next, "d/f").is_some());
        next.shut_down();
    }
}
