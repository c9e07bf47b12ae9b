//! Layers that somebody reads who has no lock on their upper: a commit, a comparison. They stay until he has ended.
//!
//! Who reads shares the lock of a file in each directory that holds such layers, and takes it with the lock of the directory, which
//! whoever changes what is there has alone. So who is about to remove layers, with the lock of the directory, finds out whether
//! somebody reads them, and nobody begins to meanwhile. A snapshot takes nothing away, and doesn't ask.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use crate::sys::flock::{Access, lock_until};
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::below::open_base;
use crate::union::frozen::held::PATIENCE;
use crate::union::frozen::record::MOST_LAYERS;
use crate::union::frozen::site::Layers;
use crate::union::frozen::unfit::{Result, SnapshotError};

/// The file whose lock those share who read.
const READERS: &str = "readers.lock";

/// How long who reads is waited for: most look at something and have ended.
const READING: Duration = Duration::from_secs(1);

/// Keeps layers from being taken away, as long as it is there.
#[derive(Debug, Default)]
#[must_use]
pub struct Kept(Vec<OwnedFd>);

impl Kept {
    /// Adds what a directory holds. With its lock, which the caller has.
    ///
    /// # Errors
    /// When the lock can't be shared.
    pub fn add(&mut self, dir: BorrowedFd<'_>, path: &Path) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match openat(dir, READERS, flags, Mode::from_raw_mode(0o644)) {
            // Nobody takes anything away there.
            Err(Errno::ROFS) => return Ok(()),
            Err(errno @ (Errno::ACCESS | Errno::PERM)) => {
                let path = EscapedPath::from(path);
                log::info!("{path}: {errno}: what is read there may be taken away meanwhile, by its owner");
                return Ok(());
            }
            opened => opened.map_err(SnapshotError::io("keep its layers: open readers.lock in it", path))?,
        };
        let until = Instant::now() + PATIENCE;
        match lock_until(&file, Access::Shared, until).map_err(SnapshotError::io("keep its layers", path))? {
            true => self.0.push(file),
            false => return Err(SnapshotError::refused(path, "another is removing its layers; try again")),
        }
        Ok(())
    }

    /// Adds all that another one keeps.
    pub fn join(&mut self, other: Kept) {
        self.0.extend(other.0);
    }

    /// Returns it as what is only to be held.
    pub fn into_pins(self) -> Vec<OwnedFd> {
        self.0
    }
}

/// Keeps the frozen layers of the upper at a path, those too that it doesn't lie on, and those of the stacks that it branches off.
/// Whoever reads them asks only afterwards which they are.
///
/// # Errors
/// When a record can't be read, or another is changing it.
pub fn keep(path: &Path) -> Result<Kept> {
    let mut kept = Kept::default();
    let Some(mut layers) = Layers::beside(path)? else { return Ok(kept) };
    // Where each branches off the next.
    for _ in 0..=MOST_LAYERS {
        keep_one(&layers, &mut kept)?;
        let Some(base) = layers.record.base.clone() else { return Ok(kept) };
        layers = open_base(&layers, &base)?;
    }
    Err(SnapshotError::damaged(path, "branches off a branch of itself"))
}

fn keep_one(layers: &Layers, kept: &mut Kept) -> Result<()> {
    let lock = layers.to_lock()?;
    let locked = lock_until(&lock, Access::Shared, Instant::now() + PATIENCE);
    if !locked.map_err(SnapshotError::io("lock it", &layers.path))? {
        return Err(SnapshotError::refused(&layers.path, "another is changing its snapshots; try again"));
    }
    kept.add(layers.dir.as_fd(), &layers.path)
}

/// Tells whether somebody reads what a directory holds. With its lock, so that nobody begins to.
///
/// # Errors
/// When that can't be found out.
pub fn is_read(dir: BorrowedFd<'_>, path: &Path) -> Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match openat(dir, READERS, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(false),
        opened => File::from(opened.map_err(SnapshotError::io("open readers.lock in it", path))?),
    };
    let alone = lock_until(&file, Access::Exclusive, Instant::now() + READING);
    Ok(!alone.map_err(SnapshotError::io("find out who reads in it", path))?)
}

/// Refuses to take layers away, or an upper, while somebody reads them.
pub(in crate::union) fn is_read_by_nobody(layers: &Layers) -> Result<()> {
    match is_read(layers.dir.as_fd(), &layers.path)? {
        false => Ok(()),
        true => Err(SnapshotError::refused(
            &layers.path,
            "its layers are being read (commit, diff or layers); try again when that has ended",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::union::bed::Bed;
    use crate::union::frozen::snapshot::{Target, snapshot};
    use crate::union::frozen::squash::{Range, Squashing};
    use crate::union::frozen::{branch, removal, rollback};

    #[test]
    fn what_is_read_is_not_taken_away_and_snapshots_go_on() {
        let bed = Bed::new(1);
        let target = |name: &str| Target {
            upper: bed.at(name),
            lowers: vec![bed.at("0").into()],
            ..Target::default()
        };
        drop(bed.open());
        for name in ["one", "two"] {
            snapshot(&target("upper"), Some(name)).unwrap();
        }
        branch::branch(&target("upper"), &bed.at("twig")).unwrap();
        for name in ["three", "four"] {
            snapshot(&target("upper"), Some(name)).unwrap();
        }
        let remove = || removal::remove(&bed.at("upper"), &["5".to_owned()], false);
        let squash = || Squashing::begin(&target("upper"), &Range::default(), false).map(drop);
        // Who reads the branch reads what it stands on.
        for read in ["upper", "twig"] {
            let kept = keep(&bed.at(read)).unwrap();
            let (squashed, back) =
                (squash().unwrap_err(), rollback::rollback(&target("upper"), None).unwrap_err());
            let removed = remove().unwrap_err();
            for why in [squashed.to_string(), back.to_string(), removed.to_string()] {
                assert!(why.contains(".upper.layers") && why.contains("being read"), "{read}: {why}");
            }
            snapshot(&target("upper"), None).unwrap();
            drop(kept);
            rollback::rollback(&target("upper"), Some("four")).unwrap();
        }
        remove().unwrap();
        squash().unwrap();
    }
}
