//! Layers that somebody reads who has no lock on their upper: a commit, a comparison. They stay until he has ended.
//!
//! Who reads shares the lock of a file in each directory that holds such layers, and takes it with the lock of the directory, which
//! whoever changes what is there has alone. So who is about to remove layers, with the lock of the directory, finds out whether
//! somebody reads them, and nobody begins to meanwhile. A snapshot takes nothing away, and doesn't ask.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use crate::sys::flock::{Access, lock_until};
use crate::sys::object::{At, Kind};
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::below::open_base;
use crate::union::frozen::held::PATIENCE;
use crate::union::frozen::record::MOST_LAYERS;
use crate::union::frozen::site::{Layers, layers_name};
use crate::union::frozen::unfit::{Result, SnapshotError};

/// The file whose lock those share who read.
const READERS: &str = "readers.lock";

/// How it is opened: what somebody puts in its place is neither followed nor waited for.
const HOW: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How long who reads is waited for: most look at something and have ended.
pub const READING: Duration = Duration::from_secs(1);

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
        let file = match openat(dir, READERS, HOW | OFlags::CREATE, Mode::from_raw_mode(0o644)) {
            // Nobody takes anything away there.
            Err(Errno::ROFS) => return Ok(()),
            Err(errno @ (Errno::ACCESS | Errno::PERM)) => {
                let path = EscapedPath::from(path);
                log::info!("{path}: {errno}: what is read there may be taken away meanwhile, by its owner");
                return Ok(());
            }
            opened => opened.map_err(SnapshotError::io("keep its layers: open readers.lock in it", path))?,
        };
        is_file(&file, path)?;
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

/// Keeps who would read what is frozen of an upper from beginning to, as long as it is there.
#[derive(Debug)]
#[must_use]
pub struct Unread(Option<OwnedFd>);

impl Unread {
    /// Returns it as what is only to be held.
    pub fn into_pin(self) -> Option<OwnedFd> {
        self.0
    }
}

/// Finds out that nobody reads a container's upper nor what is frozen of it, and keeps others from beginning to. `None`: somebody does
/// for longer than `patience`, or is changing what is frozen. `dir`: the directory that holds the upper, with its lock, which the caller
/// has: those who read the container itself have that. Who reads a branch of it has the lock of what is frozen alone.
///
/// # Errors
/// When that can't be found out.
pub fn unread(dir: BorrowedFd<'_>, upper: &Path, patience: Duration) -> Result<Option<Unread>> {
    if is_read(dir, upper.parent().unwrap_or(upper), patience)? {
        return Ok(None);
    }
    let name = layers_name(upper.file_name().unwrap_or_default());
    let path = upper.with_file_name(&name);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let frozen = match openat(dir, &name, flags, Mode::empty()) {
        // In what is no directory nobody has layers.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Some(Unread(None))),
        opened => opened.map_err(SnapshotError::io("open it", &path))?,
    };
    let locked = lock_until(&frozen, Access::Exclusive, Instant::now() + patience);
    let is_free = locked.map_err(SnapshotError::io("lock it", &path))?;
    match is_free && !is_read(frozen.as_fd(), &path, patience)? {
        true => Ok(Some(Unread(Some(frozen)))),
        false => Ok(None),
    }
}

/// Tells whether somebody reads what a directory holds, for longer than `patience`. With its lock, so that nobody begins to.
fn is_read(dir: BorrowedFd<'_>, path: &Path, patience: Duration) -> Result<bool> {
    let file = match openat(dir, READERS, HOW, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(false),
        opened => opened.map_err(SnapshotError::io("open readers.lock in it", path))?,
    };
    is_file(&file, path)?;
    let alone = lock_until(&file, Access::Exclusive, Instant::now() + patience);
    Ok(!alone.map_err(SnapshotError::io("find out who reads in it", path))?)
}

/// Refuses what has the place of `readers.lock` and is no file.
fn is_file(opened: &OwnedFd, path: &Path) -> Result<()> {
    let stat =
        At::Fd(opened.as_fd()).stat().map_err(SnapshotError::io("look at readers.lock in it", path))?;
    match stat.kind() {
        Kind::File => Ok(()),
        _ => Err(SnapshotError::refused(path, "readers.lock in it is no regular file; remove it")),
    }
}

/// Refuses to take layers away, or an upper, while somebody reads them.
pub(in crate::union) fn is_read_by_nobody(layers: &Layers) -> Result<()> {
    match is_read(layers.dir.as_fd(), &layers.path, READING)? {
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
    use crate::sys::flock::try_lock;
    use crate::union::bed::Bed;
    use crate::union::frozen::snapshot::{Target, snapshot};
    use crate::union::frozen::squash::{Range, Squashing};
    use crate::union::frozen::{branch, removal, rollback};
    use std::fs::File;

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

    #[test]
    fn who_has_found_out_that_nobody_reads_lets_nobody_begin() {
        let bed = Bed::new(1);
        let target = Target { upper: bed.at("upper"), lowers: vec![bed.at("0").into()], ..Target::default() };
        drop(bed.open());
        let dir = File::open(bed.at("")).unwrap();
        let asked = || unread(dir.as_fd(), &bed.at("upper"), Duration::ZERO).unwrap();
        assert!(asked().is_some(), "nothing is frozen");
        snapshot(&target, None).unwrap();
        let frozen = removal::place_of(&bed.at("upper"));
        // As who begins to read takes it first.
        let begins = || {
            let dir = File::open(&frozen).unwrap();
            try_lock(&dir, Access::Shared).unwrap().then_some(dir)
        };
        let guard = asked().unwrap();
        assert!(begins().is_none());
        drop(guard);
        let begun = begins().unwrap();
        assert!(asked().is_none());
        drop(begun);
        let kept = keep(&bed.at("upper")).unwrap();
        assert!(asked().is_none());
        drop(kept);
        drop(asked().unwrap());
        // A link leads to what isn't the upper's.
        std::fs::rename(&frozen, bed.at("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", &frozen).unwrap();
        let kept = File::open(bed.at("elsewhere")).unwrap();
        assert!(try_lock(&kept, Access::Exclusive).unwrap());
        assert!(asked().is_some());
    }

    #[test]
    fn what_has_the_place_of_the_lock_and_is_no_file_is_refused_at_once() {
        use rustix::fs::{CWD, FileType, mknodat};

        let top = tempfile::tempdir().unwrap();
        let place = top.path().join(READERS);
        mknodat(CWD, &place, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        // Held open, for who waits for a writer to fail here as well.
        let _writer = std::fs::File::options().read(true).write(true).open(&place).unwrap();
        let dir = std::fs::File::open(top.path()).unwrap();
        let refused = [
            Kept::default().add(dir.as_fd(), top.path()).unwrap_err(),
            is_read(dir.as_fd(), top.path(), READING).unwrap_err(),
        ];
        for why in refused.map(|why| why.to_string()) {
            assert!(why.contains("no regular file"), "{why}");
        }
        std::fs::remove_file(&place).unwrap();
        std::os::unix::fs::symlink("elsewhere", &place).unwrap();
        assert!(Kept::default().add(dir.as_fd(), top.path()).is_err());
        assert!(!top.path().join("elsewhere").exists());
    }
}
