//! Which extended attributes a copy-up carries over, and what becomes of those that the upper can't hold.
//!
//! An attribute is of one of four classes:
//!
//! | class | attributes | can't be held |
//! |---|---|---|
//! | rights | POSIX ACLs | the copy-up fails, as the kernel's overlayfs does; with `noacl` they are left out |
//! | privilege | `security.capability` | left out: the copy can less than the original |
//! | programs' | `user.*` | left out |
//! | the filesystem's | all others: `btrfs.*`, `system.nfs4_acl`, labels | left out: they say how that filesystem keeps the file |
//!
//! What is left out is told once a mount and class. The kernel's overlayfs and fuse-overlayfs leave out the last two
//! classes as well.
//!
//! In a user namespace an ACL may name users and groups that aren't mapped. They read as −1 and can't be set again; their
//! entries are left out of the copy, unless somebody would have more rights without them.

use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::{At, Kind, SetTime, Stat, Writable};
use crate::sys::xattr;
use crate::union::lookup::belief::Belief;
use crate::union::lookup::private;
use crate::union::nodes::node::Node;
use crate::union::stack::access::LayerAt;
use crate::union::view::override_stat::Override;
use crate::union::{Union, view::acl};

/// What an attribute says, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Rights,
    Privilege,
    Programs,
    Filesystem,
}

impl Class {
    fn of(name: &[u8]) -> Class {
        match name {
            _ if acl::is_acl(name) => Class::Rights,
            b"security.capability" => Class::Privilege,
            _ if name.starts_with(b"user.") => Class::Programs,
            _ => Class::Filesystem,
        }
    }

    /// Tells whether a copy may do without the attribute, which couldn't be set with that error.
    fn may_lack(self, errno: Errno, no_acl: bool) -> bool {
        match self {
            Class::Rights => no_acl && matches!(errno, Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM),
            Class::Programs => matches!(errno, Errno::OPNOTSUPP | Errno::INVAL),
            // EOVERFLOW: of a root that the user namespace doesn't map.
            Class::Privilege => {
                matches!(errno, Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM | Errno::OVERFLOW)
            }
            Class::Filesystem => {
                matches!(errno, Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM | Errno::ACCESS)
            }
        }
    }
}

/// What was left out of copies and told.
#[derive(Debug, Default)]
pub(in crate::union) struct LeftOut(AtomicU8);

impl LeftOut {
    /// An ACL's entries, beside the classes.
    const ENTRIES: u8 = 1 << 7;

    fn is_first(&self, bit: u8) -> bool {
        self.0.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }
}

impl Union {
    /// Copies the attribute `name` of a lower's object to its copy, where it is called `new_name`.
    ///
    /// # Errors
    /// Those of reading it, and of setting one that the copy can't do without. The log names it.
    pub(in crate::union) fn carry_xattr(
        &self,
        node: &Node,
        (from, name): (LayerAt<'_>, &[u8]),
        (to, new_name): (Writable<'_>, &[u8]),
    ) -> Result<()> {
        let class = Class::of(new_name);
        let carried = from.xattr(name).map_err(FsError::from).and_then(|value| {
            let Some(mut value) = value else { return Ok(()) };
            if class == Class::Rights {
                self.leave_out_unmapped(node, &mut value);
            }
            self.owners.set_xattr(to, new_name, &value, XattrFlags::empty())
        });
        let Err(error) = carried else { return Ok(()) };
        let (path, name) = (self.path_of(node), String::from_utf8_lossy(new_name));
        let path = String::from_utf8_lossy(&path);
        let errno = error.errno();
        if class.may_lack(errno, self.no_acl) {
            if self.left_out.is_first(1 << class as u8) {
                log::warn!(
                    "{path}: copied up without {name}, which the upper can't keep ({errno}); more are left out silently"
                );
            }
            return Ok(());
        }
        let way_out = if class == Class::Rights { "; the option noacl leaves ACLs out" } else { "" };
        log::error!("{path}: can't be copied up with its attribute {name}: {errno}{way_out}");
        Err(error)
    }

    /// Gives the copy owner, mode and extended attributes (of these names) with ACLs, as the upper keeps them; the times come last,
    /// by [`set_times`]. `made`: what it was when it was made.
    pub(in crate::union) fn give_metadata(
        &self,
        node: &Node,
        (from, names): (LayerAt<'_>, &[Vec<u8>]),
        kept: &Stat,
        (to, made): (Writable<'_>, &Stat),
    ) -> Result<()> {
        let new = Override::of(kept);
        self.owners.give_owner((to, made), &new)?;
        let no_acls = self.owners.override_real();
        for name in names {
            let shown = self.owners.kept_name(name);
            let private = shown.is_none() && (private::is_reserved(name) || is_own_mark(self.belief, name));
            if private || no_acls && acl::is_acl(name) {
                continue;
            }
            self.carry_xattr(node, (from, name), (to, shown.unwrap_or(name)))?;
        }
        if names.is_empty() && !self.owners.are_written() && made.mode & 0o7777 == new.mode {
            // It was made so, and nothing has come that changes them.
            return Ok(());
        }
        // After the attributes, which need the right to write. The bits of the group are the ACL's mask already.
        self.owners.give_mode((to, made), &new)
    }

    fn leave_out_unmapped(&self, node: &Node, acl: &mut Vec<u8>) {
        let length = acl.len();
        acl::drop_unmapped(acl);
        if acl.len() < length && self.left_out.is_first(LeftOut::ENTRIES) {
            let path = self.path_of(node);
            let path = String::from_utf8_lossy(&path);
            log::warn!(
                "{path}: its ACL names users or groups that this user namespace doesn't map; they are left out of copies"
            );
        }
    }
}

/// Makes an object of the upper in all but its times the same as another of the upper.
pub(in crate::union) fn copy_metadata(
    from: At<'_>,
    stat: &Stat,
    to: Writable<'_>,
    belief: Belief,
) -> Result<()> {
    let now = to.at().stat()?;
    if (now.uid, now.gid) != (stat.uid, stat.gid) {
        to.chown(Some(stat.uid), Some(stat.gid))?;
    }
    for name in xattr::list(from)? {
        if is_own_mark(belief, &name) {
            continue;
        }
        if let Some(value) = xattr::get(from, &name)? {
            to.set_xattr(&name, &value, XattrFlags::empty())?;
        }
    }
    // After the attributes, which need the right to write. The bits of the group are the ACL's mask already.
    if stat.kind() != Kind::Symlink {
        to.chmod(stat.mode & 0o7777)?;
    }
    Ok(())
}

/// Tells whether it is a mark of this union. Not so one of an overlay inside it, kept under an escaped name.
fn is_own_mark(belief: Belief, name: &[u8]) -> bool {
    match belief.mark(name) {
        Some(mark) => !mark.starts_with(b"overlay."),
        None => private::is_reserved(name) && !private::is_override(name) && !name.starts_with(private::KEPT),
    }
}

/// Sets access and modification time.
pub(in crate::union) fn set_times(stat: &Stat, to: Writable<'_>) -> Result<()> {
    Ok(to.utimens(Some(SetTime::At(stat.atime)), Some(SetTime::At(stat.mtime)))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_is_told_once_a_mount() {
        let left_out = LeftOut::default();
        for class in [Class::Rights, Class::Privilege, Class::Programs, Class::Filesystem] {
            assert!(left_out.is_first(1 << class as u8), "{class:?}");
            assert!(!left_out.is_first(1 << class as u8), "{class:?}");
        }
        assert!(left_out.is_first(LeftOut::ENTRIES));
    }

    #[test]
    fn what_says_who_may_do_what_is_never_left_out_unasked() {
        for name in [acl::ACCESS, acl::DEFAULT] {
            assert!(!Class::of(name).may_lack(Errno::OPNOTSUPP, false));
            assert!(Class::of(name).may_lack(Errno::OPNOTSUPP, true));
        }
        for name in ["btrfs.compression", "system.nfs4_acl", "security.selinux", "user.x"] {
            assert!(Class::of(name.as_bytes()).may_lack(Errno::OPNOTSUPP, false), "{name}");
            assert!(!Class::of(name.as_bytes()).may_lack(Errno::NOSPC, false), "{name}");
            assert!(!Class::of(name.as_bytes()).may_lack(Errno::IO, false), "{name}");
        }
    }
}
