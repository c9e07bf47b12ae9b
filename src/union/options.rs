//! What a user may choose about the merged view; the defaults are what overlayfs(5) users expect.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::union::quota::taken::Bounds;

/// How the merged view behaves, save for which layers it is made of.
///
/// It goes to the program that takes a mount over, which refuses what it doesn't know: an option that comes to it is left out there while it
/// has its default (`skip_serializing_if`), so that a program of before can still take over where nobody has chosen it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FsOptions {
    /// fsync and its kin do nothing (`volatile`, `fsync=0`).
    pub volatile: bool,
    /// How long the kernel may keep names and attributes; `None`: for ever, as only this mount changes them.
    pub timeout: Option<Duration>,
    /// No POSIX ACLs (`noacl`).
    pub no_acl: bool,
    /// Reading doesn't change access times (`noatime`).
    pub no_atime: bool,
    /// Directories report one link (`static_nlink`).
    pub static_nlink: bool,
    /// Inode numbers are cut to 32 bits (`ino32_t`).
    pub ino32: bool,
    /// How inode numbers of several filesystems are kept apart (`xino`).
    pub xino: Xino,
    /// No extended attributes are shown or set (`noxattrs`).
    pub no_xattrs: bool,
    /// The kernel may hold back writes (`writeback`). Not with `check_lowers`.
    pub writeback: bool,
    /// Which real files the kernel reads and writes itself (`passthrough`).
    pub passthrough: Passthrough,
    /// One owner and group for every file.
    pub squash: Squash,
    /// How user ids on disk are shown (`uidmapping`).
    pub uid_map: Option<IdMap>,
    /// How group ids on disk are shown (`gidmapping`).
    pub gid_map: Option<IdMap>,
    /// Owner and mode are kept in an extended attribute (`xattr_permissions`).
    pub xattr_permissions: XattrPermissions,
    /// The permission bits that files really have then (`force_mask`); `None`: those that are shown.
    pub force_mask: Option<u32>,
    /// What becomes of a renamed directory whose content lies below (`redirect_dir`).
    pub redirect_dir: RedirectDir,
    /// The data of a lower's file stay there until they are written to, when only its attributes or names change
    /// (`metacopy`).
    pub metacopy: bool,
    /// Whether large files are copied up block by block (`lazy`).
    pub lazy: Lazy,
    /// Whether the digests in marks of metacopies are checked (`verity`).
    pub verity: Verity,
    /// What the upper may take (`size`, `inodes`).
    pub quota: Bounds,
    /// Others may change the lowers meanwhile, and what is kept of them is held against them (`lower=checked`): see
    /// [`checked`](crate::union::lookup::checked). Not with `writeback`, with which the kernel keeps sizes and times itself and would show its
    /// own: [`Union`](crate::union::Union) doesn't look at that, which is between the kernel and the adaptor; the command line refuses it.
    /// With `metacopy` a copy of attributes alone has the size and the times of when it was made, and its data are what the lower has by
    /// then: who changes lowers should leave that out. Nothing refuses it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub check_lowers: bool,
    /// The largest write request in bytes (`max_write`).
    pub max_write: Option<u32>,
}

/// Which real files the kernel reads, writes and maps itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Passthrough {
    /// None.
    #[default]
    Off,
    /// Those that hold their data as long as the mount lives: the upper's, and a lower's where there is no upper.
    Settled,
    /// Those of lowers as well: who has one open when it is copied up doesn't see what is written after.
    Lower,
}

/// Inode numbers across filesystems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Xino {
    /// The filesystem's index goes into the high bits where they are free.
    #[default]
    Auto,
    /// The same, required.
    On,
    /// Numbers as on disk when all layers are on one filesystem, which they are in any case; the same as
    /// [`Xino::Auto`] for several, for FUSE has one number space.
    Off,
}

/// What is done about redirects of directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RedirectDir {
    /// Made and followed.
    #[default]
    On,
    /// Followed, not made: renaming a directory of a lower gives EXDEV.
    Follow,
    /// Neither.
    NoFollow,
}

/// How much of a large file a write copies up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Lazy {
    /// All of it.
    #[default]
    Off,
    /// The blocks that it touches; the others stay below, also in later mounts.
    Keep,
    /// The same, and the others follow in the background, at the latest when the mount has ended.
    On,
}

/// What is done about the fs-verity digests in marks of metacopies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Verity {
    /// The digests aren't looked at.
    #[default]
    Off,
    /// Data that a mark has the digest of must have it.
    On,
    /// Every mark must have the digest of its data, and these must have it.
    Require,
}

/// Where owner and mode are kept when the files themselves cannot bear them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum XattrPermissions {
    /// On the files, as usual.
    #[default]
    Off,
    /// In `security.fuseoverlayfs.override_stat`, which only root can write (1).
    Privileged,
    /// In `user.containers.override_stat` (2).
    User,
}

/// One owner for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Squash {
    /// The user id of every file.
    pub uid: Option<u32>,
    /// The group id of every file.
    pub gid: Option<u32>,
}

/// One range of an [`IdMap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdRange {
    /// The first id as it is on disk.
    pub on_disk: u32,
    /// The first id as it is shown.
    pub shown: u32,
    /// How many ids follow each other; never 0.
    pub length: u32,
}

/// A translation of ids, in ranges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap(pub Vec<IdRange>);

impl IdMap {
    /// Returns what an id on disk is shown as.
    pub fn shown(&self, id: u32) -> Option<u32> {
        self.0.iter().find_map(|r| Some(r.shown + id.checked_sub(r.on_disk).filter(|n| *n < r.length)?))
    }

    /// Returns the id on disk that is shown as this one.
    pub fn on_disk(&self, id: u32) -> Option<u32> {
        self.0.iter().find_map(|r| Some(r.on_disk + id.checked_sub(r.shown).filter(|n| *n < r.length)?))
    }

    /// Returns the id on disk for one that stat(2) tells. podman gives the mapping and lowers that have been mapped
    /// already, by idmapped mounts, and makes the upper's root as the container's root: an id that is in no range on
    /// disk, but in one of those shown, is taken for such a one.
    pub fn kept(&self, id: u32) -> u32 {
        if self.shown(id).is_some() { id } else { self.on_disk(id).unwrap_or(id) }
    }
}

/// Why the text of an id mapping was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not of the form ON_DISK:SHOWN:LENGTH[:ON_DISK:SHOWN:LENGTH…]")]
pub struct IdMapError;

impl FromStr for IdMap {
    type Err = IdMapError;

    /// Reads `0:100000:65536:…`; podman puts a colon before the first number.
    fn from_str(text: &str) -> Result<IdMap, IdMapError> {
        let text = text.strip_prefix(':').unwrap_or(text);
        let numbers: Vec<u32> =
            text.split(':').map(|n| n.parse().map_err(|_| IdMapError)).collect::<Result<_, _>>()?;
        let (triples, []) = numbers.as_chunks::<3>() else { return Err(IdMapError) };
        let ranges = triples.iter().map(|&[on_disk, shown, length]| {
            let fits = |first: u32| first.checked_add(length.checked_sub(1)?).map(|_| ());
            fits(on_disk).and(fits(shown)).map(|()| IdRange { on_disk, shown, length }).ok_or(IdMapError)
        });
        Ok(IdMap(ranges.collect::<Result<_, _>>()?))
    }
}

impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let colon = if i == 0 { "" } else { ":" };
            write!(f, "{colon}{}:{}:{}", range.on_disk, range.shown, range.length)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program refuses an option that it doesn't know. These are known to all that do; one that comes later is told where somebody has
    /// chosen it alone.
    #[test]
    fn what_has_its_default_is_told_where_every_program_knows_it_alone() {
        let told = serde_json::to_value(FsOptions::default()).unwrap();
        let mut names: Vec<&str> = told.as_object().unwrap().keys().map(String::as_str).collect();
        let mut known = [
            "volatile",
            "timeout",
            "no_acl",
            "no_atime",
            "static_nlink",
            "ino32",
            "xino",
            "no_xattrs",
            "writeback",
            "passthrough",
            "squash",
            "uid_map",
            "gid_map",
            "xattr_permissions",
            "force_mask",
            "redirect_dir",
            "metacopy",
            "lazy",
            "verity",
            "quota",
            "max_write",
        ];
        names.sort_unstable();
        known.sort_unstable();
        assert_eq!(names, known, "give it a default, and skip_serializing_if");
        let checked = FsOptions { check_lowers: true, ..FsOptions::default() };
        let again: FsOptions = serde_json::from_value(serde_json::to_value(&checked).unwrap()).unwrap();
        assert_eq!(again, checked);
    }

    #[test]
    fn mappings_are_triples() {
        let map: IdMap = ":0:100000:65536".parse().unwrap();
        assert_eq!(map.0, [IdRange { on_disk: 0, shown: 100_000, length: 65536 }]);
        let map: IdMap = "0:1000:1:1:110000:65536".parse().unwrap();
        assert_eq!(map.0.len(), 2);
        assert_eq!(map.to_string(), "0:1000:1:1:110000:65536");
        // 1000 is on disk in its own right; 110004 can only have been mapped.
        assert_eq!([0, 5, 1000, 110_004, 200_000].map(|id| map.kept(id)), [0, 5, 1000, 5, 200_000]);
        for bad in ["", ":", "0", "0:1", "0:1:2:3", "0:1:0", "a:b:c", "0:1:-1", "4294967295:0:2", "::0:1:2"] {
            assert!(bad.parse::<IdMap>().is_err(), "{bad}");
        }
        assert!("4294967295:0:1".parse::<IdMap>().is_ok());
    }
}
