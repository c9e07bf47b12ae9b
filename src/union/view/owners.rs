//! Owners, modes and types: what a layer keeps, and what the merged view shows.
//!
//! Three things stand between the two, in this order from the disk up:
//!
//! 1. **override_stat.** Where files cannot bear their owners (layers of an ordinary user, NFS), an extended attribute
//!    tells owner, mode and type ([`Override`]), and special files are empty regular ones. It is read where a layer's
//!    root carries the attribute, as fuse-overlayfs reads it, or where the mount option `xattr_permissions` asks for
//!    it, and it is written where the upper's root carries it. Only directories and regular files can carry it: Linux
//!    allows no `user.` attributes on symbolic links, so these show their real owner, and a change of it is tried and,
//!    where the daemon may not, let go, as fuse-overlayfs does. Links of an image that an ordinary user unpacked say
//!    nothing by that: they are shown as of the owner that the layer's root records, or that their directory notes
//!    ([`LINKS`]). (A regular file that is recorded as a link holds the target and is shown as a link.) Other attributes
//!    that the user may not set are kept under another name ([`KEPT`]).
//! 2. **Mappings** (`uidmapping`, `gidmapping`): ranges of ids on disk are shown as other ids. What is in no range is
//!    shown as the kernel's overflow id, nobody; nothing can be given to an id that no range shows. What is mapped
//!    already stays so ([`IdMap::kept`]).
//! 3. **Squashing** (`squash_to_uid` and the like): everything shows one owner, and what is made belongs to it.
//!
//! All of 1. is done only where such attributes are believed ([`Belief`]).
//!
//! "Kept" is what 1. tells, in ids of the layer; "shown" is what comes after 3.

use crate::union::lookup::private::{CONTAINERS, KEPT, LINKS, NAMES, PRIVILEGED};
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::{Kind, Stat, Writable};
use crate::union::Caller;
use crate::union::change::staged::New;
use crate::union::lookup::belief::Belief;
use crate::union::options::{FsOptions, IdMap, Squash, XattrPermissions};
use crate::union::stack::access::LayerAt;
use crate::union::view::override_stat::{BITS, Override, link_owner};

/// What a change of owner takes from a file, besides setuid and setgid; and where an ordinary user keeps it.
const CAPABILITIES: [&[u8]; 2] = [b"security.capability", b"user.unionmount.kept.security.capability"];

/// Returns the set-user-id and set-group-id bits that a change of the content by somebody without privilege takes away.
/// A set-group-id bit without group execution means mandatory locking, not privilege, and stays.
pub(in crate::union) fn privilege_bits(mode: u32) -> u32 {
    let mut bits = mode & 0o4000;
    if mode & 0o2010 == 0o2010 {
        bits |= 0o2000;
    }
    bits
}

/// How owners, modes and types on disk and those shown differ. By default they don't.
#[derive(Debug, Default)]
pub struct Owners {
    uid_map: Option<IdMap>,
    gid_map: Option<IdMap>,
    squash: Squash,
    /// Shown for ids that no range maps.
    overflow: Option<Caller>,
    /// The attributes that are read.
    read: Vec<&'static str>,
    /// Who unpacked the lowers, by real owner, and whom their roots record in their stead.
    unpacked: Vec<((u32, u32), (u32, u32))>,
    /// The attribute that the upper's objects get.
    write: Option<&'static str>,
    force_mask: Option<u32>,
}

impl Owners {
    /// Decides by the options, and by what the roots of the layers carry, the upper's first if there is one. The
    /// upper's root gets the attribute if its objects will, so that other programs read them.
    pub fn new(
        options: &FsOptions,
        belief: Belief,
        roots: &[LayerAt<'_>],
        upper: Option<Writable<'_>>,
    ) -> Result<Owners> {
        let asked = match options.xattr_permissions {
            XattrPermissions::Off => None,
            XattrPermissions::Privileged => Some(PRIVILEGED),
            XattrPermissions::User => Some(CONTAINERS),
        };
        let carried: Vec<Option<&str>> = if belief.overrides {
            roots.iter().map(|root| carried(*root)).collect::<Result<_>>()?
        } else {
            vec![None; roots.len()]
        };
        let write = upper.and(carried.first().copied().flatten().or(asked));
        let read = NAMES
            .into_iter()
            .filter(|name| carried.contains(&Some(*name)) || write == Some(name) || asked == Some(name));
        let mut unpacked = Vec::new();
        for (root, _) in
            roots.iter().zip(&carried).skip(usize::from(upper.is_some())).filter(|(_, c)| c.is_some())
        {
            let real = root.stat()?;
            let kept = carried_by(*root)?.and_then(|found| found.apply(real));
            if let Some(kept) = kept.filter(|kept| (kept.uid, kept.gid) != (real.uid, real.gid)) {
                unpacked.push(((real.uid, real.gid), (kept.uid, kept.gid)));
            }
        }
        let mapped = options.uid_map.is_some() || options.gid_map.is_some();
        let owners = Owners {
            uid_map: options.uid_map.clone(),
            gid_map: options.gid_map.clone(),
            squash: options.squash,
            overflow: mapped.then(overflow_ids),
            read: read.collect(),
            unpacked,
            write,
            force_mask: options.force_mask,
        };
        if let (Some(upper), Some(name), None) = (upper, write, carried.first().copied().flatten()) {
            let stat = upper.at().stat()?;
            upper.set_xattr(
                name.as_bytes(),
                Override::of(&stat).to_string().as_bytes(),
                XattrFlags::empty(),
            )?;
        }
        Ok(owners)
    }

    /// Tells whether owners, modes and types of the upper's objects are kept in an attribute.
    pub fn are_written(&self) -> bool {
        self.write.is_some()
    }

    /// Tells whether an object may have another owner, mode and type than it really has.
    pub fn override_real(&self) -> bool {
        !self.read.is_empty()
    }

    /// Tells whether that is one of the attributes that are read or written here. Nobody else is shown it.
    pub fn is_private(&self, attribute: &[u8]) -> bool {
        self.override_real()
            && (self.read.iter().any(|name| name.as_bytes() == attribute) || attribute.starts_with(KEPT))
    }

    /// Returns what a layer keeps of an object, whose real stat is given. `upper`: it is in the upper.
    pub fn kept<'a>(&self, at: impl Into<LayerAt<'a>>, mut stat: Stat, upper: bool) -> Result<Stat> {
        let at = at.into();
        stat.uid = self.uid_map.as_ref().map_or(stat.uid, |map| map.kept(stat.uid));
        stat.gid = self.gid_map.as_ref().map_or(stat.gid, |map| map.kept(stat.gid));
        if self.read.is_empty() {
            return Ok(stat);
        }
        if !is_bearer(&stat) {
            let lower_link = stat.kind() == Kind::Symlink && !upper && !self.unpacked.is_empty();
            return if lower_link { self.kept_link(at, stat) } else { Ok(stat) };
        }
        for name in &self.read {
            let value = match at.xattr(name.as_bytes()) {
                Ok(Some(value)) => value,
                // An ordinary user's daemon in front of files that it may not read.
                Ok(None) | Err(Errno::ACCESS) => continue,
                Err(e) => return Err(e.into()),
            };
            return Override::parse(&value).and_then(|found| found.apply(stat)).ok_or_else(|| {
                log::error!("{name}={:?} is not understood", String::from_utf8_lossy(&value));
                FsError::Os(Errno::IO)
            });
        }
        Ok(stat)
    }

    /// Returns the owner of a lower's symbolic link.
    fn kept_link(&self, at: LayerAt<'_>, mut stat: Stat) -> Result<Stat> {
        let noted = match at.in_directory() {
            Some((dir, name)) => match dir.xattr(LINKS) {
                Ok(noted) => noted.and_then(|all| {
                    all.split_inclusive(|byte| *byte == 0).find_map(|record| link_owner(record, name))
                }),
                Err(Errno::ACCESS) => None,
                Err(e) => return Err(e.into()),
            },
            None => None,
        };
        let real = (stat.uid, stat.gid);
        let by_root = || self.unpacked.iter().find(|(who, _)| *who == real).map(|(_, root)| *root);
        (stat.uid, stat.gid) = noted.or_else(by_root).unwrap_or(real);
        Ok(stat)
    }

    /// Turns what is kept into what is shown.
    pub fn show(&self, stat: &mut Stat) {
        stat.uid = self.squash.uid.unwrap_or_else(|| self.shown_uid(stat.uid));
        stat.gid = self.squash.gid.unwrap_or_else(|| self.shown_gid(stat.gid));
    }

    /// Returns the user id that the mapping shows for one on disk.
    pub fn shown_uid(&self, uid: u32) -> u32 {
        let nobody = || self.overflow.map_or(uid, |o| o.uid);
        self.uid_map.as_ref().map_or(uid, |map| map.shown(uid).unwrap_or_else(nobody))
    }

    /// Returns the group id that the mapping shows for one on disk.
    pub fn shown_gid(&self, gid: u32) -> u32 {
        let nobody = || self.overflow.map_or(gid, |o| o.gid);
        self.gid_map.as_ref().map_or(gid, |map| map.shown(gid).unwrap_or_else(nobody))
    }

    /// Returns the user id on disk for one that a program named; `EINVAL` where none is shown as that.
    pub fn uid_on_disk(&self, uid: u32) -> Result<u32> {
        const UNMAPPED: FsError = FsError::Invalid("uidmapping shows no id as that");
        self.uid_map.as_ref().map_or(Some(uid), |map| map.on_disk(uid)).ok_or(UNMAPPED)
    }

    /// Returns the group id on disk for one that a program named; `EINVAL` where none is shown as that.
    pub fn gid_on_disk(&self, gid: u32) -> Result<u32> {
        const UNMAPPED: FsError = FsError::Invalid("gidmapping shows no id as that");
        self.gid_map.as_ref().map_or(Some(gid), |map| map.on_disk(gid)).ok_or(UNMAPPED)
    }

    /// Returns the owner to keep for the one that chown(2) named.
    pub fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(Option<u32>, Option<u32>)> {
        let uid = uid.map(|id| self.squash.uid.map_or_else(|| self.uid_on_disk(id), Ok)).transpose()?;
        let gid = gid.map(|id| self.squash.gid.map_or_else(|| self.gid_on_disk(id), Ok)).transpose()?;
        Ok((uid, gid))
    }

    /// Returns the owner to keep for what `caller` makes. A caller without an id on disk makes nobody's files, as with
    /// fuse-overlayfs: an engine prepares a container's tree as the real root, whom the mapping doesn't know.
    pub fn creator(&self, caller: Caller) -> Caller {
        let overflow = self.overflow.unwrap_or(caller);
        let uid = self.squash.uid.unwrap_or_else(|| self.uid_on_disk(caller.uid).unwrap_or(overflow.uid));
        let gid = self.squash.gid.unwrap_or_else(|| self.gid_on_disk(caller.gid).unwrap_or(overflow.gid));
        Caller { uid, gid }
    }

    /// Returns what is really to be made for a new object.
    pub fn placeholder<'a>(&self, new: New<'a>) -> New<'a> {
        match new {
            New::Special(..) if self.write.is_some() => New::File,
            other => other,
        }
    }

    /// Tells whether the copy of an object will be a regular file, whatever it stands for.
    pub fn is_file(&self, real: &Stat, kept: &Stat) -> bool {
        match self.write {
            Some(_) => !matches!(real.kind(), Kind::Directory | Kind::Symlink),
            None => kept.kind() == Kind::File,
        }
    }

    /// Gives a new object, which is `now` still what it was made as, its owner, and what else the attribute holds. Before other
    /// attributes: a change of owner takes capabilities away.
    pub fn give_owner(&self, (object, now): (Writable<'_>, &Stat), new: &Override) -> Result<()> {
        match self.write {
            Some(name) if is_bearer(now) => {
                Ok(object.set_xattr(name.as_bytes(), new.to_string().as_bytes(), XattrFlags::empty())?)
            }
            _ if (now.uid, now.gid) == (new.uid, new.gid) => Ok(()),
            _ => self.try_chown(object, Some(new.uid), Some(new.gid)),
        }
    }

    /// Gives a new object, which was `made` so, its permission bits. After other attributes, which need the right to write.
    pub fn give_mode(&self, (object, made): (Writable<'_>, &Stat), new: &Override) -> Result<()> {
        match made.kind() {
            Kind::Symlink => Ok(()),
            kind if self.write.is_some() => Ok(object.chmod(self.real_mode(kind, new.mode))?),
            _ => Ok(object.chmod(new.mode)?),
        }
    }

    /// Changes owner and mode of an object of the upper, all in ids of the layer.
    pub fn change(
        &self,
        object: Writable<'_>,
        (uid, gid): (Option<u32>, Option<u32>),
        mode: Option<u32>,
    ) -> Result<()> {
        let owner = uid.is_some() || gid.is_some();
        let real = if self.write.is_some() { Some(object.at().stat()?) } else { None };
        let (Some(name), Some(real)) = (self.write, real.filter(is_bearer)) else {
            if owner {
                self.try_chown(object, uid, gid)?;
            }
            return mode.map_or(Ok(()), |mode| Ok(object.chmod(mode)?));
        };
        let mut now = Override::of(&self.kept(object.at(), real, true)?);
        now.uid = uid.unwrap_or(now.uid);
        now.gid = gid.unwrap_or(now.gid);
        if owner && real.kind() != Kind::Directory {
            now.mode &= !privilege_bits(now.mode);
        }
        now.mode = mode.map_or(now.mode, |mode| mode & BITS);
        object.set_xattr(name.as_bytes(), now.to_string().as_bytes(), XattrFlags::empty())?;
        if owner {
            self.drop_capabilities(object)?;
        }
        let bits = self.real_mode(real.kind(), now.mode);
        if bits != real.mode & BITS { Ok(object.chmod(bits)?) } else { Ok(()) }
    }

    /// Takes a file's capabilities away, as the kernel does where owners are real.
    pub fn drop_capabilities(&self, object: Writable<'_>) -> Result<()> {
        if self.write.is_none() {
            return Ok(());
        }
        for name in CAPABILITIES {
            match object.remove_xattr(name) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Sets an attribute, or keeps it under another name where the daemon may not.
    pub fn set_xattr(
        &self,
        object: Writable<'_>,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        let keepable =
            self.write.is_some() && [&b"security."[..], b"trusted."].iter().any(|p| name.starts_with(p));
        match object.set_xattr(name, value, flags) {
            Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) if keepable => {
                Ok(object.set_xattr(&[KEPT, name].concat(), value, flags)?)
            }
            other => Ok(other?),
        }
    }

    /// Reads an attribute, under whichever name it is kept.
    pub fn get_xattr(&self, at: LayerAt<'_>, name: &[u8]) -> Result<Option<Vec<u8>>> {
        match at.xattr(name)? {
            None if self.override_real() => Ok(at.xattr(&[KEPT, name].concat())?),
            found => Ok(found),
        }
    }

    /// Removes an attribute, under whichever name it is kept.
    pub fn remove_xattr(&self, object: Writable<'_>, name: &[u8]) -> Result<()> {
        let removed = match object.remove_xattr(name) {
            Err(Errno::NODATA | Errno::PERM) if self.write.is_some() => {
                object.remove_xattr(&[KEPT, name].concat())
            }
            other => other,
        };
        match removed {
            Err(Errno::NODATA) => Err(FsError::NoXattr),
            other => Ok(other?),
        }
    }

    /// Returns the name that an attribute of this name on disk has for programs, if it is one that the daemon could not
    /// set.
    pub fn kept_name<'a>(&self, stored: &'a [u8]) -> Option<&'a [u8]> {
        if self.override_real() { stored.strip_prefix(KEPT) } else { None }
    }

    /// Calls chown(2), which may fail where owners don't show anyway.
    fn try_chown(&self, object: Writable<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        match object.chown(uid, gid) {
            Err(Errno::PERM | Errno::INVAL) if self.write.is_some() || self.squash != Squash::default() => {
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Returns the bits that a file has on disk whose mode is in the attribute. Never setuid or setgid, which would
    /// work for the daemon's user there; and always what the daemon needs.
    fn real_mode(&self, kind: Kind, mode: u32) -> u32 {
        let own = if kind == Kind::Directory { 0o700 } else { 0o600 };
        self.force_mask.unwrap_or(mode) & 0o777 | own
    }
}

/// Tells whether it can carry the attribute.
fn is_bearer(stat: &Stat) -> bool {
    matches!(stat.kind(), Kind::File | Kind::Directory)
}

/// Tells which of the attributes the object carries.
fn carried(at: LayerAt<'_>) -> Result<Option<&'static str>> {
    for name in NAMES {
        match at.xattr(name.as_bytes()) {
            Ok(Some(_)) => return Ok(Some(name)),
            Ok(None) | Err(Errno::ACCESS) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(None)
}

/// Returns what an object's attribute says, if it carries one that is understood.
fn carried_by(at: LayerAt<'_>) -> Result<Option<Override>> {
    let Some(name) = carried(at)? else { return Ok(None) };
    Ok(at.xattr(name.as_bytes())?.and_then(|value| Override::parse(&value)))
}

/// Returns the kernel's ids for "no such id here".
fn overflow_ids() -> Caller {
    const NOBODY: u32 = 65534;
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok();
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(NOBODY)
    };
    Caller { uid: read("overflowuid"), gid: read("overflowgid") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_no_range_are_nobody_and_cannot_be_given() {
        let owners = Owners {
            uid_map: Some("0:100000:10:50:7:1".parse().unwrap()),
            gid_map: Some("0:200000:10".parse().unwrap()),
            overflow: Some(Caller { uid: 65534, gid: 65534 }),
            ..Owners::default()
        };
        assert_eq!((owners.shown_uid(0), owners.shown_uid(9), owners.shown_uid(50)), (100_000, 100_009, 7));
        assert_eq!((owners.shown_uid(10), owners.shown_gid(10)), (65534, 65534));
        assert_eq!(owners.chown(Some(100_003), Some(200_003)), Ok((Some(3), Some(3))));
        for (uid, gid) in [(Some(3), None), (None, Some(3)), (Some(65534), None)] {
            assert_eq!(owners.chown(uid, gid).unwrap_err().errno(), Errno::INVAL);
        }
        assert_eq!(owners.creator(Caller { uid: 7, gid: 200_001 }), Caller { uid: 50, gid: 1 });
        assert_eq!(owners.creator(Caller { uid: 0, gid: 0 }), Caller { uid: 65534, gid: 65534 });
    }

    #[test]
    fn bits_on_disk_never_give_privilege() {
        let mut owners = Owners { write: Some(CONTAINERS), ..Owners::default() };
        assert_eq!(owners.real_mode(Kind::File, 0o6511), 0o711);
        assert_eq!(owners.real_mode(Kind::Directory, 0), 0o700);
        owners.force_mask = Some(0o755);
        assert_eq!(owners.real_mode(Kind::File, 0o4600), 0o755);
    }
}
