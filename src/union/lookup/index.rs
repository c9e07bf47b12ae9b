//! Indexes of a directory's names: what serves listings, and lookups of names that don't exist.
//!
//! The lowers never change, so the merged listing of a directory's lowers is built once ([`LowerIndex`]) and only
//! dropped to save memory; where they may, it is dropped when they do ([`checked`](super::checked)). The upper's part ([`UpperIndex`]) is kept up to date by every change that goes through the
//! mount. The merged listing is the two side by side.
//!
//! # Cookies
//!
//! A listing is ordered by a 63-bit hash of the name, and the hash is the offset that `telldir` shows. So an offset
//! stays valid without any open handle: across eviction of the index, across changes of the directory and across a
//! remount. Two names with one hash are returned in one page, so that none can be lost between two.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::dir::RawEntry;
use crate::sys::object::Kind;
use crate::union::lookup::marker::{self, AufsName, MarkerForms};
use crate::union::lookup::realdir::{RealDir, Veil};
use crate::union::stack::access::{LayerAt, LayerObject};
use crate::union::stack::layer::WhiteoutForm;

/// Offsets below this are those of the start, `.` and `..`.
pub const FIRST_COOKIE: u64 = 3;

/// Returns the offset of a name in every listing that holds it: 63 bits, at least [`FIRST_COOKIE`].
///
/// FNV-1a with a final mix; it must not depend on the process, or offsets would not survive a remount.
pub fn cookie(name: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in name {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 33;
    (hash >> 1).max(FIRST_COOKIE)
}

/// One name of one real directory, markers understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanned {
    /// The entry's type, or `None` for a whiteout.
    pub kind: Option<Kind>,
    /// Its inode number in the layer.
    pub ino: u64,
    /// Whether the entry hides what lies below by a whiteout of the same name beside it (AUFS's form of "replaced").
    pub cuts: bool,
    /// Whether the listing doesn't tell enough: the number is another's, or the entry could not be examined (a regular
    /// file or a whiteout, for all that is known). Only a lookup tells then.
    pub asks: bool,
}

/// Reads a real directory, reached by `opened`, and hands every name with its meaning to `each`, each name once. Remembers in
/// `dir` which forms of markers it holds. `trusted`: whether a listing tells an entry's number.
///
/// An entry that can't be examined (a dead mount, a directory on a broken disk) is one that is there: it answers its own
/// error to who asks for it.
pub fn scan(
    dir: &RealDir,
    opened: &LayerObject,
    trusted: impl Fn(&[u8], Option<Kind>) -> bool,
    each: impl FnMut(&[u8], Scanned),
) -> Result<()> {
    scan_within(dir, opened, &mut usize::MAX.clone(), trusted, each).map(drop)
}

/// Reads a real directory as [`scan`] does, unless it has more than `budget` names, which are taken off it.
///
/// Returns whether all were read; if not, none is handed on.
pub fn scan_within(
    dir: &RealDir,
    opened: &LayerObject,
    budget: &mut usize,
    trusted: impl Fn(&[u8], Option<Kind>) -> bool,
    mut each: impl FnMut(&[u8], Scanned),
) -> Result<bool> {
    if dir.veil() != Veil::None {
        return Ok(true);
    }
    let mut names = ScannedNames::default();
    let read = opened.list::<Stop>(|entry| {
        *budget = budget.checked_sub(1).ok_or(Stop::Budget)?;
        names.add(dir, opened, &entry, &trusted)
    });
    match read {
        Ok(()) => {}
        Err(Stop::Budget) => return Ok(false),
        // getdents(2) of a directory that was removed, as the root of a lower can be: it has no names any more.
        Err(Stop::Error(FsError::Absent)) => return Ok(true),
        Err(Stop::Error(e)) => return Err(e),
    }
    dir.set_forms(names.forms);
    names.hand_on(&mut each);
    Ok(true)
}

/// The names of a directory, while it is read.
#[derive(Default)]
struct ScannedNames {
    forms: MarkerForms,
    /// All names in one: of a million entries there is only one copy of all, and nothing a name.
    names: Vec<u8>,
    /// Where each name ends, and what it is.
    found: Vec<(u32, Scanned)>,
    /// What whiteouts of AUFS's form name.
    hidden: HashSet<Vec<u8>>,
}

impl ScannedNames {
    fn add(
        &mut self,
        dir: &RealDir,
        opened: &LayerObject,
        entry: &RawEntry<'_>,
        trusted: impl Fn(&[u8], Option<Kind>) -> bool,
    ) -> std::result::Result<(), Stop> {
        self.forms.note(entry.name);
        match marker::aufs_name(entry.name) {
            AufsName::Whiteout(name) => drop(self.hidden.insert(name.to_vec())),
            AufsName::Opaque | AufsName::Meta | AufsName::Malformed => {}
            AufsName::Plain => {
                let untrusted = !trusted(entry.name, entry.kind);
                let Some((kind, unexamined)) = kind_of(dir, opened, entry) else { return Ok(()) };
                self.names.extend_from_slice(entry.name);
                let end = u32::try_from(self.names.len()).map_err(|_| Errno::NOMEM)?;
                let asks = untrusted || unexamined;
                self.found.push((end, Scanned { kind, ino: entry.ino, cuts: false, asks }));
            }
        }
        Ok(())
    }

    fn hand_on(mut self, each: &mut impl FnMut(&[u8], Scanned)) {
        let mut from = 0;
        for (end, scanned) in self.found {
            let name = &self.names[from..end as usize];
            from = end as usize;
            let cuts = !self.hidden.is_empty() && self.hidden.remove(name);
            each(name, Scanned { cuts, ..scanned });
        }
        for name in self.hidden {
            each(&name, Scanned { kind: None, ino: 0, cuts: true, asks: false });
        }
    }
}

/// Tells what an entry is, `None` in it for a whiteout, and whether it could not be examined. `None`: it is gone.
fn kind_of(dir: &RealDir, opened: &LayerObject, entry: &RawEntry<'_>) -> Option<(Option<Kind>, bool)> {
    let xattr_whiteouts = dir.xattr_whiteouts.load(Ordering::Relaxed);
    match entry.kind {
        Some(Kind::File) if xattr_whiteouts => {}
        Some(Kind::CharDevice) | None => {}
        known => return Some((known, false)),
    }
    match classify(dir, opened.entry(entry.name), xattr_whiteouts) {
        Ok(Classified::Entry(kind)) => Some((Some(kind), false)),
        Ok(Classified::Whiteout) => Some((None, false)),
        Ok(Classified::Vanished) => None,
        Err(e) => {
            log::debug!("{}: {e}", String::from_utf8_lossy(entry.name));
            Some((Some(Kind::File), true))
        }
    }
}

/// Why a directory was not read to its end.
enum Stop {
    Budget,
    Error(FsError),
}

impl From<rustix::io::Errno> for Stop {
    fn from(errno: rustix::io::Errno) -> Stop {
        Stop::Error(errno.into())
    }
}

enum Classified {
    Entry(Kind),
    Whiteout,
    Vanished,
}

/// Tells a whiteout from an entry where the listing alone can't.
fn classify(dir: &RealDir, at: LayerAt<'_>, xattr_whiteouts: bool) -> Result<Classified> {
    let stat = match dir.stat_in(at) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::NOENT) => return Ok(Classified::Vanished),
        Err(e) => return Err(e.into()),
    };
    if stat.is_whiteout_device() {
        return Ok(Classified::Whiteout);
    }
    if xattr_whiteouts
        && stat.kind() == Kind::File
        && stat.size == 0
        && marker::read_marks(at, dir.belief)?.whiteout
    {
        return Ok(Classified::Whiteout);
    }
    Ok(Classified::Entry(stat.kind()))
}

/// One name that the lowers show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LowerEntry {
    /// Its offset in listings.
    pub cookie: u64,
    /// Inode number of the topmost one, in its layer.
    pub ino: u64,
    name_at: u32,
    name_len: u16,
    /// Index (among the directory's lowers) of the first that has the name.
    pub first: u16,
    /// Index of the last that can contribute; greater than `first` only for directories.
    pub last: u16,
    /// Its type.
    pub kind: Kind,
    /// Whether only a lookup tells what it is. See [`Scanned::asks`].
    pub asks: bool,
    /// While the index is built: whether nothing below counts any more.
    ended: bool,
    /// While the index is built: whether it is none, but a whiteout.
    whiteout: bool,
}

/// What a directory's lowers show together: every name once, by offset.
#[derive(Debug, Default)]
pub struct LowerIndex {
    entries: Vec<LowerEntry>,
    names: Vec<u8>,
}

impl LowerEntry {
    /// Notes that the layer at `position` has the name too, below the ones seen.
    fn descend(&mut self, position: u16, scanned: Scanned) {
        if self.ended {
            return;
        }
        if scanned.kind == Some(Kind::Directory) {
            self.last = position;
            self.ended = scanned.cuts;
        } else {
            self.ended = true;
        }
    }
}

impl LowerIndex {
    /// Builds it from the real directories, topmost first; `open` reaches them. `None`: they have more names than `budget`,
    /// from which the names that were read are taken off.
    pub fn build(
        lowers: &[Arc<RealDir>],
        budget: &mut usize,
        mut open: impl FnMut(&Arc<RealDir>) -> Result<LayerObject>,
        trusted: impl Fn(&RealDir, &[u8], Option<Kind>) -> bool,
    ) -> Result<Option<LowerIndex>> {
        let mut names: Vec<u8> = Vec::new();
        let mut found: HashMap<Box<[u8]>, usize> = HashMap::new();
        let mut entries: Vec<LowerEntry> = Vec::new();
        let single = lowers.len() == 1;
        for (position, dir) in lowers.iter().enumerate() {
            let position = position as u16;
            let opened = open(dir)?;
            let whole = scan_within(
                dir,
                &opened,
                budget,
                |name, kind| trusted(dir, name, kind),
                |name, scanned| {
                    if !single {
                        if let Some(known) = found.get(name) {
                            entries[*known].descend(position, scanned);
                            return;
                        }
                        found.insert(name.into(), entries.len());
                    }
                    let name_at = names.len() as u32;
                    names.extend_from_slice(name);
                    entries.push(LowerEntry {
                        cookie: cookie(name),
                        ino: scanned.ino,
                        name_at,
                        name_len: name.len() as u16,
                        first: position,
                        last: position,
                        kind: scanned.kind.unwrap_or(Kind::File),
                        asks: scanned.asks,
                        ended: scanned.cuts || scanned.kind != Some(Kind::Directory),
                        whiteout: scanned.kind.is_none(),
                    });
                },
            )?;
            if !whole {
                return Ok(None);
            }
        }
        entries.retain(|entry| !entry.whiteout);
        entries.sort_unstable_by_key(|e| e.cookie);
        entries.shrink_to_fit();
        names.shrink_to_fit();
        Ok(Some(LowerIndex { entries, names }))
    }

    /// Returns the name of an entry.
    pub fn name(&self, entry: &LowerEntry) -> &[u8] {
        let at = entry.name_at as usize;
        &self.names[at..at + usize::from(entry.name_len)]
    }

    /// Returns the entry of that name.
    pub fn get(&self, name: &[u8]) -> Option<&LowerEntry> {
        let hash = cookie(name);
        let from = self.entries.partition_point(|e| e.cookie < hash);
        self.entries[from..].iter().take_while(|e| e.cookie == hash).find(|e| self.name(e) == name)
    }

    /// Returns the entries whose offset is greater than `cookie`.
    pub fn after(&self, cookie: u64) -> &[LowerEntry] {
        &self.entries[self.entries.partition_point(|e| e.cookie <= cookie)..]
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the bytes of memory that it takes, about.
    pub fn cost(&self) -> usize {
        self.entries.capacity() * size_of::<LowerEntry>() + self.names.capacity()
    }
}

/// What the upper has under one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpperEntry {
    /// The entry's type, or `None` for a whiteout.
    pub kind: Option<Kind>,
    /// Inode number in the upper, `u64::MAX` where it was not asked for; 0 where the name itself is free and only
    /// `cuts` makes it a whiteout.
    pub ino: u64,
    /// Whether what lies below is hidden by a whiteout beside the entry.
    pub cuts: bool,
    /// Whether only a lookup tells what it is. See [`Scanned::asks`].
    pub asks: bool,
}

impl UpperEntry {
    /// Returns an entry of that type and number, which was made or examined.
    pub fn known(kind: Kind, ino: u64) -> UpperEntry {
        UpperEntry { kind: Some(kind), ino, cuts: false, asks: false }
    }
}

impl UpperEntry {
    /// Returns a whiteout in the upper's form, just made.
    pub(in crate::union) fn whiteout(form: WhiteoutForm) -> UpperEntry {
        let aufs = form == WhiteoutForm::Aufs;
        UpperEntry { kind: None, ino: if aufs { 0 } else { u64::MAX }, cuts: aufs, asks: false }
    }
}

/// What the upper's directory holds, whiteouts included, by offset.
#[derive(Debug, Default)]
pub struct UpperIndex {
    entries: BTreeMap<(u64, Box<[u8]>), UpperEntry>,
    bytes: usize,
}

impl UpperIndex {
    /// Builds it from the real directory. `None`: it has more names than `budget`, from which they are taken off.
    pub fn build(
        dir: &RealDir,
        opened: &LayerObject,
        budget: &mut usize,
        trusted: impl Fn(&[u8], Option<Kind>) -> bool,
    ) -> Result<Option<UpperIndex>> {
        let mut index = UpperIndex::default();
        let whole = scan_within(dir, opened, budget, trusted, |name, s| {
            index.insert(name, UpperEntry { kind: s.kind, ino: s.ino, cuts: s.cuts, asks: s.asks });
        })?;
        Ok(whole.then_some(index))
    }

    /// Adds or replaces a name.
    pub fn insert(&mut self, name: &[u8], entry: UpperEntry) {
        self.bytes += 96 + name.len();
        self.entries.insert((cookie(name), name.into()), entry);
    }

    /// Takes a name away.
    pub fn remove(&mut self, name: &[u8]) {
        if self.entries.remove(&(cookie(name), name.into())).is_some() {
            self.bytes -= (96 + name.len()).min(self.bytes);
        }
    }

    /// Returns what is known of a name.
    pub fn get(&self, name: &[u8]) -> Option<&UpperEntry> {
        let hash = cookie(name);
        self.entries
            .range((hash, Box::default())..)
            .take_while(|((c, _), _)| *c == hash)
            .find(|((_, n), _)| **n == *name)
            .map(|(_, entry)| entry)
    }

    /// Returns the names whose offset is greater than `cookie`, with their offsets.
    pub fn after(&self, cookie: u64) -> impl Iterator<Item = (u64, &[u8], &UpperEntry)> {
        self.entries
            .range((cookie.saturating_add(1), Box::default())..)
            .map(|((c, name), entry)| (*c, &**name, entry))
    }

    /// Returns all names.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &UpperEntry)> {
        self.entries.iter().map(|((_, name), entry)| (&**name, entry))
    }

    /// Returns the bytes of memory that it takes, about.
    pub fn cost(&self) -> usize {
        self.bytes
    }
}

/// The indexes of one directory, as far as they are built.
#[derive(Debug, Default)]
pub struct Indexes {
    /// Of the lowers together.
    pub lower: Option<Arc<LowerIndex>>,
    /// Of the upper.
    pub upper: Option<UpperIndex>,
}

impl Indexes {
    /// Returns the bytes of memory that they take, about.
    pub fn cost(&self) -> usize {
        self.lower.as_ref().map_or(0, |i| i.cost()) + self.upper.as_ref().map_or(0, UpperIndex::cost)
    }
}

/// Which directories have indexes, so that all together stay within a bound.
#[derive(Debug)]
pub struct IndexCache {
    limit: usize,
    built: Mutex<Built>,
}

#[derive(Debug, Default)]
struct Built {
    /// Numbers of the directories' nodes and what their indexes cost, oldest first.
    queue: VecDeque<(u64, usize)>,
    total: usize,
}

impl IndexCache {
    /// Makes a cache of about `limit` bytes. One directory's indexes may be larger alone.
    pub fn new(limit: usize) -> IndexCache {
        IndexCache { limit, built: Mutex::new(Built::default()) }
    }

    /// Notes that a directory's indexes were built. Returns the older directories whose indexes have to go, since all are
    /// too large.
    #[must_use]
    pub fn built(&self, ino: u64, cost: usize) -> Vec<u64> {
        let mut over = Vec::new();
        {
            let mut built = self.built.lock();
            if let Some(at) = built.queue.iter().position(|(known, _)| *known == ino)
                && let Some((_, known)) = built.queue.remove(at)
            {
                built.total -= known;
            }
            built.queue.push_back((ino, cost));
            built.total += cost;
            while built.total > self.limit && built.queue.len() > 1 {
                let Some((oldest, cost)) = built.queue.pop_front() else { break };
                built.total -= cost;
                over.push(oldest);
            }
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::object::At;
    use crate::union::lookup::belief::Belief;
    use std::fs;
    use std::os::fd::{AsFd, OwnedFd};
    use std::path::Path;

    fn real(path: &Path, layer: u16) -> Arc<RealDir> {
        let fd = OwnedFd::from(fs::File::open(path).unwrap());
        let stat = At::Fd(fd.as_fd()).stat().unwrap();
        RealDir::root(layer, fd, &stat, Belief::of_process())
    }

    fn build(layers: &[&Path]) -> LowerIndex {
        let dirs: Vec<_> = layers.iter().enumerate().map(|(i, p)| real(p, i as u16)).collect();
        let open = |d: &Arc<RealDir>| {
            Ok(LayerObject::from(OwnedFd::from(fs::File::open(layers[d.layer as usize]).unwrap())))
        };
        LowerIndex::build(&dirs, &mut usize::MAX.clone(), open, |_, _, _| true).unwrap().unwrap()
    }

    fn names(index: &LowerIndex) -> Vec<String> {
        let mut all: Vec<_> =
            index.after(0).iter().map(|e| String::from_utf8_lossy(index.name(e)).into()).collect();
        all.sort();
        all
    }

    #[test]
    fn layers_merge_and_whiteouts_end_names() {
        let top = tempfile::tempdir().unwrap();
        let low = tempfile::tempdir().unwrap();
        for (dir, name) in [(&top, "both"), (&low, "both"), (&top, ".wh.gone"), (&low, "gone"), (&low, "low")]
        {
            fs::write(dir.path().join(name), name).unwrap();
        }
        for dir in [&top, &low] {
            fs::create_dir(dir.path().join("d")).unwrap();
        }
        let index = build(&[top.path(), low.path()]);
        assert_eq!(names(&index), ["both", "d", "low"]);
        let d = index.get(b"d").unwrap();
        assert_eq!((d.first, d.last, d.kind), (0, 1, Kind::Directory));
        assert_eq!(index.get(b"both").unwrap().last, 0);
        assert!(index.get(b"gone").is_none());
    }

    #[test]
    fn a_file_or_whiteout_in_the_middle_ends_a_directory() {
        let dirs: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
        fs::create_dir(dirs[0].path().join("d")).unwrap();
        fs::write(dirs[1].path().join("d"), "").unwrap();
        fs::create_dir(dirs[2].path().join("d")).unwrap();
        fs::create_dir(dirs[0].path().join("e")).unwrap();
        fs::create_dir(dirs[1].path().join("e")).unwrap();
        fs::write(dirs[1].path().join(".wh.e"), "").unwrap();
        fs::create_dir(dirs[2].path().join("e")).unwrap();
        let paths: Vec<_> = dirs.iter().map(|d| d.path()).collect();
        let index = build(&paths);
        assert_eq!(index.get(b"d").unwrap().last, 0);
        assert_eq!(index.get(b"e").unwrap().last, 1, "the whiteout beside the directory cuts below it");
    }

    #[test]
    fn offsets_do_not_depend_on_the_process() {
        // Frozen: a listing position that a program saved must mean the same after an upgrade.
        assert_eq!(cookie(b"passwd"), 0x3d21_7874_b5bb_551c);
        assert_eq!(cookie(b""), 0x77e8_0fb0_5d4c_9493);
        assert_eq!(cookie(b"d\xff"), 0x713a_3fd5_f09d_0574);
        assert!(cookie(b"") >= FIRST_COOKIE);
        assert!(cookie(b"x") < 1 << 63);
    }

    #[test]
    fn the_upper_index_follows_changes() {
        let mut index = UpperIndex::default();
        index.insert(b"a", UpperEntry::known(Kind::File, 1));
        index.insert(b"b", UpperEntry { kind: None, ino: 2, cuts: false, asks: false });
        assert_eq!(index.get(b"b").unwrap().kind, None);
        index.remove(b"a");
        assert!(index.get(b"a").is_none());
        assert_eq!(index.after(0).count(), 1);
    }
}
