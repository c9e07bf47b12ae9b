//! POSIX ACLs of new entries.
//!
//! A new entry of a directory with a default ACL gets that as its access ACL, cut to the mode that was asked for, and
//! the umask doesn't count; a new directory gets the default ACL too (POSIX 1003.1e draft 17, section 23.1.4; acl(5),
//! "OBJECT CREATION AND DEFAULT ACLS"). The kernel does this where an object is made right in its directory; what is
//! made in the staging directory gets it here.

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::Writable;
use crate::union::Union;
use crate::union::nodes::node::Node;

/// The attribute of the default ACL.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";
/// The attribute of the access ACL.
pub const ACCESS: &[u8] = b"system.posix_acl_access";

/// Tags of ACL entries (linux/posix_acl.h).
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// What a new entry inherits.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::union) struct Inherited {
    /// Its permission bits.
    pub mode: u32,
    /// Its access ACL, where the permission bits don't say it all.
    pub access: Option<Vec<u8>>,
    /// The default ACL, for a directory.
    pub default: Vec<u8>,
}

/// Cuts a default ACL (the value of its attribute) to the mode that was asked for. `None`: not a form of version 2.
fn inherit(default: &[u8], mode: u32) -> Option<Inherited> {
    let (header, entries) = default.split_at_checked(4)?;
    if header != 2u32.to_le_bytes() || entries.len() % 8 != 0 {
        return None;
    }
    let mut access = default.to_vec();
    let has_mask = entries.chunks_exact(8).any(|e| tag(e) == MASK);
    let mut extended = false;
    let mut bits = 0;
    for entry in access[4..].chunks_exact_mut(8) {
        let shift = match tag(entry) {
            USER_OBJ => 6,
            OTHER => 0,
            MASK => 3,
            GROUP_OBJ if !has_mask => 3,
            _ => {
                extended = true;
                continue;
            }
        };
        let perm = u16::from_le_bytes([entry[2], entry[3]]) & (mode >> shift & 7) as u16;
        entry[2..4].copy_from_slice(&perm.to_le_bytes());
        bits |= u32::from(perm) << shift;
    }
    let mode = mode & !0o777 | bits;
    let access = (extended || has_mask).then_some(access);
    Some(Inherited { mode, access, default: default.to_vec() })
}

fn tag(entry: &[u8]) -> u16 {
    u16::from_le_bytes([entry[0], entry[1]])
}

/// Returns whether that is an attribute that holds an ACL.
pub(in crate::union) fn is_acl(attribute: &[u8]) -> bool {
    attribute == ACCESS || attribute == DEFAULT
}

/// Replaces the users and groups that an ACL names.
pub(in crate::union) fn map_ids(
    acl: &mut [u8],
    mut user: impl FnMut(u32) -> Result<u32>,
    mut group: impl FnMut(u32) -> Result<u32>,
) -> Result<()> {
    for entry in acl.get_mut(4..).unwrap_or_default().chunks_exact_mut(8) {
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let mapped = match tag(entry) {
            USER => user(id)?,
            GROUP => group(id)?,
            _ => continue,
        };
        entry[4..].copy_from_slice(&mapped.to_le_bytes());
    }
    Ok(())
}

/// What a user namespace shows for an id that it doesn't map.
const UNMAPPED: u32 = u32::MAX;

/// Takes the entries out of an ACL whose users and groups this process's user namespace doesn't map, for they can't be
/// set. Where one of them may do less than others may, somebody would have more rights without it: then all stay.
pub(in crate::union) fn drop_unmapped(acl: &mut Vec<u8>) {
    let Some((header, entries)) = acl.split_at_checked(4) else { return };
    let perm = |entry: &[u8]| u16::from_le_bytes([entry[2], entry[3]]);
    let of = |wanted| entries.chunks_exact(8).find(|entry| tag(entry) == wanted).map(perm);
    let mask = of(MASK).unwrap_or(7);
    let (group, other) = (of(GROUP_OBJ).unwrap_or(0) & mask, of(OTHER).unwrap_or(0));
    let mut kept = header.to_vec();
    for entry in entries.chunks_exact(8) {
        let unmapped = entry[4..8] == UNMAPPED.to_le_bytes();
        let others = match tag(entry) {
            USER if unmapped => group | other,
            GROUP if unmapped => other,
            _ => {
                kept.extend_from_slice(entry);
                continue;
            }
        };
        if others & !(perm(entry) & mask) != 0 {
            return;
        }
    }
    *acl = kept;
}

impl Union {
    /// Tells whether new entries of the directory inherit an ACL. The answer is remembered until the ACL is changed.
    pub(in crate::union) fn has_default_acl(&self, parent: &Node) -> Result<bool> {
        if self.no_acl {
            return Ok(false);
        }
        let dir = self.dir_part(parent)?;
        let mut known = dir.default_acl.lock();
        if let Some(has) = *known {
            return Ok(has);
        }
        let has = self.with_object(parent, |object| Ok(object.at().xattr(DEFAULT)?.is_some()))?;
        *known = Some(has);
        Ok(has)
    }

    /// Returns what a new entry of the directory with the mode that was asked for inherits.
    pub(in crate::union) fn inherited(&self, parent: &Node, mode: u32) -> Result<Option<Inherited>> {
        if !self.has_default_acl(parent)? {
            return Ok(None);
        }
        let Some(mut acl) = self.with_object(parent, |o| Ok(o.at().xattr(DEFAULT)?))? else {
            return Ok(None);
        };
        drop_unmapped(&mut acl);
        inherit(&acl, mode).map(Some).ok_or(FsError::Os(Errno::IO))
    }
}

/// Gives a staged object what it inherits.
pub(in crate::union) fn apply(inherited: &Inherited, object: Writable<'_>, directory: bool) -> Result<()> {
    if let Some(access) = &inherited.access {
        object.set_xattr(ACCESS, access, XattrFlags::empty())?;
    }
    if directory {
        object.set_xattr(DEFAULT, &inherited.default, XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut raw = 2u32.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            raw.extend(tag.to_le_bytes());
            raw.extend(perm.to_le_bytes());
            raw.extend(id.to_le_bytes());
        }
        raw
    }

    #[test]
    fn a_plain_default_acl_is_only_a_mode() {
        let got = inherit(&acl(&[(USER_OBJ, 7, !0), (GROUP_OBJ, 5, !0), (OTHER, 0, !0)]), 0o666).unwrap();
        assert_eq!((got.mode, got.access), (0o640, None));
    }

    #[test]
    fn the_mask_takes_the_group_bits_and_named_entries_stay() {
        let default =
            acl(&[(USER_OBJ, 7, !0), (USER, 7, 1000), (GROUP_OBJ, 5, !0), (MASK, 7, !0), (OTHER, 0, !0)]);
        let got = inherit(&default, 0o640).unwrap();
        assert_eq!(got.mode, 0o640);
        let want =
            acl(&[(USER_OBJ, 6, !0), (USER, 7, 1000), (GROUP_OBJ, 5, !0), (MASK, 4, !0), (OTHER, 0, !0)]);
        assert_eq!(got.access.unwrap(), want);
    }

    #[test]
    fn named_users_and_groups_are_mapped() {
        let mut value =
            acl(&[(USER_OBJ, 6, !0), (USER, 7, 5), (GROUP_OBJ, 5, !0), (GROUP, 7, 5), (MASK, 7, !0)]);
        map_ids(&mut value, |id| Ok(id + 10), |id| Ok(id + 20)).unwrap();
        let want =
            acl(&[(USER_OBJ, 6, !0), (USER, 7, 15), (GROUP_OBJ, 5, !0), (GROUP, 7, 25), (MASK, 7, !0)]);
        assert_eq!(value, want);
        map_ids(&mut [], |_| unreachable!(), |_| unreachable!()).unwrap();
    }

    #[test]
    fn entries_of_unmapped_ids_go_unless_somebody_had_more_without() {
        let with = |user: u16, group: u16| {
            acl(&[
                (USER_OBJ, 6, !0),
                (USER, user, !0),
                (USER, 7, 5),
                (GROUP_OBJ, 4, !0),
                (GROUP, group, !0),
                (MASK, 7, !0),
                (OTHER, 1, !0),
            ])
        };
        let mut value = with(7, 1);
        drop_unmapped(&mut value);
        let rest = acl(&[(USER_OBJ, 6, !0), (USER, 7, 5), (GROUP_OBJ, 4, !0), (MASK, 7, !0), (OTHER, 1, !0)]);
        assert_eq!(value, rest);
        for (user, group) in [(1, 7), (4, 7), (7, 0)] {
            let mut value = with(user, group);
            drop_unmapped(&mut value);
            assert_eq!(value, with(user, group), "{user} {group}");
        }
        drop_unmapped(&mut Vec::new());
    }

    #[test]
    fn a_broken_acl_is_no_acl() {
        assert_eq!(inherit(b"\x03\0\0\0", 0o644), None);
        assert_eq!(inherit(b"\x02\x00\x00\x00123", 0o644), None);
    }
}
