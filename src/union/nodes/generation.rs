//! Which of the inodes that have had one number in turn it is.
//!
//! An inode number is given again as soon as its inode is gone. Who may delete and make files in a layer could so have
//! another object take the number of one that the kernel knows, with its owner and mode, and with whoever has it open.
//! So what is known of an object holds its number and its **generation**: 32 bits of a keyed hash of the time at which the
//! inode was made, which comes with every stat and which nobody can set.
//!
//! That time is the kernel's clock of ticks, and two inodes may have one number within a tick. So one that is so *young*
//! that this may still happen has a hash of its file handle in its stead, which holds the filesystem's own generation:
//! one system call, for what was made within the last tick (1 to 10 ms).
//!
//! Filesystems that tell no time of birth have no generations. Handles of FUSE filesystems are not made use of: they are
//! node ids, which change when the kernel forgets a node.

use std::hash::{BuildHasher, Hasher, RandomState};

use rustix::time::{ClockId, clock_gettime};

use crate::sys::handle::{self, FileHandle};
use crate::sys::object::{Stat, Time};
use crate::union::stack::access::LayerAt;

/// The generation of an inode that is known. One that isn't known is like any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Generation(u32);

impl Generation {
    /// Not known.
    pub const UNKNOWN: Generation = Generation(0);

    fn of_hash(hash: u64) -> Generation {
        Generation(((hash >> 32) as u32).max(1))
    }

    /// Returns it as a number.
    pub(in crate::union) fn bits(self) -> u32 {
        self.0
    }

    /// Returns the reverse of [`Generation::bits`].
    pub(in crate::union) fn from_bits(bits: u32) -> Generation {
        Generation(bits)
    }
}

/// What tells the generation of an inode that was just looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sighting {
    by_birth: Generation,
    by_handle: Option<Generation>,
}

impl Sighting {
    /// Tells whether it may be the one of that generation, as far as is known.
    pub fn fits(self, known: Generation) -> bool {
        known == Generation::UNKNOWN
            || self.by_birth == Generation::UNKNOWN
            || known == self.by_birth
            || self.by_handle == Some(known)
    }

    /// Returns what is to be remembered in place of `known`, which told that it is the same object: the time of its birth
    /// alone, which comes with every stat, once no other inode can be born at that time.
    pub(in crate::union) fn settled(self, known: Generation, stat: &Stat) -> Option<Generation> {
        let is_settled =
            self.by_handle == Some(known) && known != self.by_birth && stat.born.is_some_and(is_past);
        (is_settled && self.by_birth != Generation::UNKNOWN).then_some(self.by_birth)
    }

    /// Returns what is to be remembered of it.
    pub fn generation(self) -> Generation {
        self.by_handle.unwrap_or(self.by_birth)
    }
}

/// What makes the hashes those of one mount. Another process that goes on with the mount has to come to the same, whatever it was
/// built with: so it is SipHash-2-4 of bytes whose order is fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Key(u64, u64);

impl Key {
    fn new() -> Key {
        let random = RandomState::new();
        Key(random.hash_one(0), random.hash_one(1))
    }

    #[allow(deprecated, reason = "it is the one of the standard library whose algorithm is promised")]
    fn hash(self, parts: &[&[u8]]) -> u64 {
        let mut hasher = std::hash::SipHasher::new_with_keys(self.0, self.1);
        parts.iter().for_each(|part| hasher.write(part));
        hasher.finish()
    }
}

/// What tells generations in one mount.
#[derive(Debug, Default)]
pub struct Generations {
    key: Key,
    /// Devices of filesystems whose file handles last.
    lasting: Vec<u64>,
}

impl Generations {
    /// Makes them of `lasting`: the devices of filesystems whose file handles last.
    pub fn new(lasting: Vec<u64>) -> Generations {
        Generations { key: Key::new(), lasting }
    }

    /// Returns what makes the numbers those of one mount.
    pub(in crate::union) fn key(&self) -> Key {
        self.key
    }

    /// Makes the numbers those of another one, which goes on.
    pub(in crate::union) fn set_key(&mut self, key: Key) {
        self.key = key;
    }

    /// Looks at an object, whose stat is given, to remember it.
    pub fn see<'a>(&self, at: impl Into<LayerAt<'a>>, stat: &Stat) -> Sighting {
        let Some(born) = stat.born else { return Sighting::default() };
        let by_handle = if is_past(born) { None } else { self.by_handle(at.into(), stat) };
        Sighting { by_birth: self.by_birth(born), by_handle }
    }

    /// Tells whether an object, whose stat is given, is the one of that generation.
    pub fn is<'a>(&self, known: Generation, at: impl Into<LayerAt<'a>>, stat: &Stat) -> bool {
        self.look_again(Sighting::default(), known, at, stat).fits(known)
    }

    /// Does as [`Generations::see`], to be held against what is known.
    pub fn look_again<'a>(
        &self,
        seen: Sighting,
        known: Generation,
        at: impl Into<LayerAt<'a>>,
        stat: &Stat,
    ) -> Sighting {
        let Some(born) = stat.born else { return Sighting::default() };
        let seen = Sighting { by_birth: self.by_birth(born), ..seen };
        if seen.fits(known) { seen } else { Sighting { by_handle: self.by_handle(at.into(), stat), ..seen } }
    }

    fn by_birth(&self, born: Time) -> Generation {
        Generation::of_hash(self.key.hash(&[&born.sec.to_le_bytes(), &born.nsec.to_le_bytes()]))
    }

    /// Returns the file handle of an object, whose stat is given, where handles last.
    pub(in crate::union) fn handle<'a>(&self, at: impl Into<LayerAt<'a>>, stat: &Stat) -> Option<FileHandle> {
        if !self.lasting.contains(&stat.dev) {
            return None;
        }
        // An error is one of whoever uses the object next; here it only means that nothing more is known.
        handle::of(at.into().host()?).ok().flatten()
    }

    fn by_handle(&self, at: LayerAt<'_>, stat: &Stat) -> Option<Generation> {
        let handle = self.handle(at, stat)?;
        Some(Generation::of_hash(self.key.hash(&[&handle.kind.to_le_bytes(), &handle.id])))
    }
}

/// Tells whether no inode can be born at that time any more.
fn is_past(born: Time) -> bool {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    // A clock of seconds, or of less than the kernel's, is not waited for.
    born.nsec != 0 && (born.sec, i64::from(born.nsec)) < (now.tv_sec, now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::object::At;
    use crate::union::bed::Disk;
    use std::fs;
    use std::os::fd::AsFd;

    /// The vector of the paper: the key 00 … 0f, the bytes 00 … 0e.
    #[test]
    fn hashes_are_the_same_in_every_program() {
        let key = Key(0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908);
        let bytes: Vec<u8> = (0..15).collect();
        assert_eq!(key.hash(&[&bytes]), 0xa129_ca61_49be_45e5);
        assert_eq!(key.hash(&[&bytes[..3], &bytes[3..]]), key.hash(&[&bytes]));
        assert_ne!(Key::new(), Key::new());
    }

    #[test]
    fn a_generation_is_the_same_as_long_as_the_inode_is() {
        let top = tempfile::tempdir().unwrap();
        let dir = fs::File::open(top.path()).unwrap();
        let at = At::Name(dir.as_fd(), b"f");
        fs::write(top.path().join("f"), "x").unwrap();
        let stat = at.stat().unwrap();
        if stat.born.is_none() {
            support::skipped("this filesystem tells no time of birth");
            return;
        }
        let generations = Generations::new(vec![stat.dev]);
        let young = generations.see(at, &stat).generation();
        for _ in 0..20 {
            std::thread::sleep(std::time::Duration::from_millis(1)); // past the tick, for it to be another form
            assert!(generations.is(young, at, &at.stat().unwrap()));
        }
        let grown = generations.see(at, &at.stat().unwrap());
        assert_eq!(grown.by_handle, None);
        assert!(generations.is(grown.generation(), at, &stat));
        assert!(generations.is(Generation::UNKNOWN, at, &stat));
    }

    #[test]
    fn an_inode_made_in_the_same_tick_under_the_same_number_is_another() {
        // Others make files as well where all do, and may get the number.
        let Some(disk) = Disk::new() else {
            support::skipped("a filesystem of one's own needs root of the initial user namespace");
            return;
        };
        let top = disk.path();
        let dir = fs::File::open(top).unwrap();
        let at = At::Name(dir.as_fd(), b"f");
        let mut reused = 0;
        for _ in 0..200 {
            fs::write(top.join("f"), "x").unwrap();
            let first = at.stat().unwrap();
            let generations = Generations::new(vec![first.dev]);
            let known = generations.see(at, &first).generation();
            fs::remove_file(top.join("f")).unwrap();
            fs::write(top.join("f"), "x").unwrap();
            let second = at.stat().unwrap();
            if first.ino == second.ino && first.born.is_some() {
                reused += 1;
                assert!(!generations.is(known, at, &second));
            }
            fs::remove_file(top.join("f")).unwrap();
        }
        assert!(reused > 0, "ext4 gives numbers again, and tells when inodes were made");
    }
}
