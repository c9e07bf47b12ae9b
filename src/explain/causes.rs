//! Why bytes are wasted: what was done to them, in which step, and what would have saved them.
//!
//! | cause | what tells it | what saves it |
//! |---|---|---|
//! | [`Cause::Attributes`] | the same bytes stand in the layer that hides them | set modes and owners in the step that brings the files |
//! | [`Cause::Caches`] | they are where package managers keep lists and downloads | remove them in the step that makes them |
//! | [`Cause::Deleted`] | nothing is there any more | remove them in the step that makes them |
//! | [`Cause::Replaced`] | something else is there | bring the last version alone |
//!
//! Bytes are compared only where the sizes are the same, and only so many of them: beyond, what replaces is another version.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use super::figures::Amount;
use super::survey::{Holding, Number, Survey, Waste};
use crate::image::layer::place::{open_dir, split};
use crate::sys::object::{At, Kind};

/// Why bytes are wasted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The same bytes once more. `mode`: with another mode; else with other owners, times or attributes.
    Attributes {
        /// Whether the modes differ.
        mode: bool,
    },
    /// Lists of packages, downloads, caches, which were removed.
    Caches,
    /// Anything else that was removed.
    Deleted,
    /// Another version took the place.
    Replaced,
}

impl Cause {
    /// Returns the key of what it is in words: what was done.
    pub(super) fn key(self) -> &'static str {
        match self {
            Cause::Attributes { mode: true } => "layers.cause.mode",
            Cause::Attributes { mode: false } => "layers.cause.owner",
            Cause::Caches => "layers.cause.caches",
            Cause::Deleted => "layers.cause.deleted",
            Cause::Replaced => "layers.cause.replaced",
        }
    }

    /// Returns the key of what would save it.
    pub(super) fn way_key(self) -> &'static str {
        match self {
            Cause::Attributes { mode: true } => "layers.way.mode",
            Cause::Attributes { mode: false } => "layers.way.owner",
            Cause::Caches | Cause::Deleted => "layers.way.deleted",
            Cause::Replaced => "layers.way.replaced",
        }
    }
}

/// Bytes that are wasted for one reason, by one pair of layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WasteGroup {
    /// The reason.
    pub cause: Cause,
    /// The layer that holds them.
    pub layer: Number,
    /// The layer that hides them.
    pub hidden_by: Number,
    /// The directory in which all of them are, or the one path.
    pub path: Vec<u8>,
    /// Whether that is a directory.
    pub is_dir: bool,
    /// How much it is.
    pub amount: Amount,
}

/// How many bytes are compared, altogether.
const MOST_COMPARED: u64 = 1 << 30;
const BLOCK: usize = 256 << 10;

/// Where package managers keep what a step may well delete.
const CACHES: [&str; 14] = [
    "var/lib/apt/lists",
    "var/cache/apt",
    "var/cache/debconf",
    "var/cache/yum",
    "var/cache/dnf",
    "var/cache/libdnf5",
    "var/cache/zypp",
    "var/cache/apk",
    "var/cache/pacman",
    "root/.cache",
    "root/.npm",
    "root/.cargo/registry",
    "root/.m2",
    "usr/local/share/.cache",
];

/// Returns the reasons, the one that wastes most first.
pub fn waste_groups(survey: &Survey) -> Vec<WasteGroup> {
    let mut compared = Comparison { survey, left: MOST_COMPARED, roots: BTreeMap::new() };
    let mut groups: BTreeMap<(Cause, Number, Number), WasteGroup> = BTreeMap::new();
    for waste in survey.wastes.iter().filter(|waste| waste.bytes > 0) {
        let place = waste.place as usize;
        let path = survey.path(place);
        let cause = cause(&mut compared, waste, &path);
        let is_dir =
            survey.holdings(place).iter().any(|h| h.layer == waste.layer && h.kind == Some(Kind::Directory));
        let Waste { layer, hidden_by, bytes, files, .. } = *waste;
        groups
            .entry((cause, layer, hidden_by))
            .and_modify(|group| {
                let common = common(&group.path, &path);
                group.is_dir |= common.len() < group.path.len() || common.len() < path.len();
                group.path.truncate(common.len());
                group.amount.bytes += bytes;
                group.amount.files += files;
            })
            .or_insert_with(|| WasteGroup {
                cause,
                layer,
                hidden_by,
                path,
                is_dir,
                amount: Amount { files, bytes },
            });
    }
    let mut groups: Vec<WasteGroup> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.amount.bytes));
    groups
}

fn cause(compared: &mut Comparison<'_>, waste: &Waste, path: &[u8]) -> Cause {
    let is_in = |dir: &&str| {
        path.strip_prefix(dir.as_bytes()).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    };
    if waste.replaced
        && let Some(mode) = compared.differ_in_attributes(waste, path)
    {
        return Cause::Attributes { mode };
    }
    match waste.replaced {
        _ if CACHES.iter().any(is_in) => Cause::Caches,
        true => Cause::Replaced,
        false => Cause::Deleted,
    }
}

/// Returns the directory in which both are; the path, where they are one.
fn common<'a>(one: &'a [u8], other: &[u8]) -> &'a [u8] {
    let same = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    let whole = |path: &[u8]| path.len() == same || path[same] == b'/';
    if whole(one) && whole(other) {
        return &one[..same];
    }
    split(&one[..same]).0
}

/// Layers whose files are compared.
struct Comparison<'a> {
    survey: &'a Survey,
    /// Bytes that may still be read.
    left: u64,
    roots: BTreeMap<Number, Option<OwnedFd>>,
}

impl Comparison<'_> {
    /// Returns whether the modes differ of two files with the same bytes; `None`: they aren't such, or it can't be told.
    fn differ_in_attributes(&mut self, waste: &Waste, path: &[u8]) -> Option<bool> {
        let holding = |layer: Number| {
            let plain = |h: &&Holding| {
                h.layer == layer && h.kind == Some(Kind::File) && h.from == layer && !h.metacopy
            };
            self.survey.holdings(waste.place as usize).iter().find(plain).copied()
        };
        let (old, new) = (holding(waste.layer)?, holding(waste.hidden_by)?);
        if old.size != new.size || old.size > self.left {
            return None;
        }
        self.left -= old.size;
        let (one, other) = (self.open(waste.layer, path)?, self.open(waste.hidden_by, path)?);
        same_bytes(&one, &other)?.then_some(old.mode != new.mode)
    }

    fn open(&mut self, layer: Number, path: &[u8]) -> Option<File> {
        let place = &self.survey.layers.get(usize::from(layer).checked_sub(1)?)?.path;
        let root = self.roots.entry(layer).or_insert_with(|| File::open(place).ok().map(OwnedFd::from));
        let (parent, name) = split(path);
        let dir = open_dir(root.as_ref()?.as_fd(), parent).ok()?;
        At::Name(dir.as_fd(), name).open_read().ok().map(File::from)
    }
}

fn same_bytes(one: &File, other: &File) -> Option<bool> {
    let (mut here, mut there) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut offset = 0;
    loop {
        let read = one.read_at(&mut here, offset).ok()?;
        if read == 0 {
            return Some(other.read_at(&mut there[..1], offset).ok()? == 0);
        }
        if other.read_exact_at(&mut there[..read], offset).is_err() || here[..read] != there[..read] {
            return Some(false);
        }
        offset += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_paths_have_in_common() {
        for (one, other, both) in [
            ("usr/share/a", "usr/share/b", "usr/share"),
            ("usr/share", "usr/share/b", "usr/share"),
            ("usr/shared", "usr/share", "usr"),
            ("etc/a", "usr/a", ""),
            ("a", "a", "a"),
        ] {
            assert_eq!(common(one.as_bytes(), other.as_bytes()), both.as_bytes(), "{one}, {other}");
        }
    }
}
