//! Whose marks are believed: decided once for a mount, by who mounts and by its options.
//!
//! A mark says of an object what isn't on its face: that it hides something, is found elsewhere, belongs to somebody
//! else. Attributes in `trusted.` can only be written by root of the machine; those in `user.` by whoever may write to
//! the object. So:
//!
//! | who mounts | believes |
//! |---|---|
//! | root of the machine | `trusted.overlay.*`, nothing else |
//! | the same, with `userxattr` | `user.overlay.*` and `user.fuseoverlayfs.opaque`; what leads elsewhere (redirect, metacopy) only to what the mark's owner may read |
//! | the same, with `xattr_permissions=…` | `override_stat` as well |
//! | everybody else, root of a user namespace included | `user.overlay.*`, `user.fuseoverlayfs.opaque`, `override_stat`: the daemon can do no more than its user |
//!
//! Whiteouts of AUFS's form are entries, not attributes, and are believed by all; they only hide. With `userxattr` or
//! `xattr_permissions` root's mount is nosuid and nodev, unless `suid` or `dev` are asked for.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys::namespace::is_privileged;
use crate::sys::object::Stat;
use crate::union::lookup::private::Namespace;
use crate::union::options::XattrPermissions;

/// Whose marks are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Belief {
    /// Where the overlay's marks are.
    pub namespace: Namespace,
    /// Whether fuse-overlayfs's opaque marks are believed.
    pub foreign: bool,
    /// Whether `override_stat` is believed.
    pub overrides: bool,
    /// Whether marks may have been written by somebody who may less than this process.
    guarded: bool,
}

impl Belief {
    /// Decides by who this process is. `user`: it was asked for `user.` marks.
    pub fn decide(user: bool) -> Belief {
        Belief::of(is_privileged(), user)
    }

    /// Decides without options.
    pub fn of_process() -> Belief {
        Belief::decide(false)
    }

    fn of(privileged: bool, user: bool) -> Belief {
        let namespace = if privileged && !user { Namespace::Trusted } else { Namespace::User };
        Belief {
            namespace,
            foreign: namespace == Namespace::User,
            overrides: !privileged,
            guarded: privileged && namespace == Namespace::User,
        }
    }

    /// Returns the same, with marks in the namespace in which the upper can keep them.
    pub fn kept_in(self, namespace: Namespace) -> Belief {
        if namespace == self.namespace {
            self
        } else {
            Belief { namespace, foreign: true, guarded: true, ..self }
        }
    }

    /// Returns the same, with what `xattr_permissions` asks for.
    pub fn with_permissions(self, permissions: XattrPermissions) -> Belief {
        let asked = permissions != XattrPermissions::Off;
        Belief { foreign: self.foreign || asked, overrides: self.overrides || asked, ..self }
    }

    /// Tells whether marks are believed that somebody may have written who may less than this process.
    pub fn is_guarded(self) -> bool {
        self.guarded
    }

    /// Returns the name of the believed overlay mark that an attribute is.
    pub fn mark(self, attribute: &[u8]) -> Option<&[u8]> {
        attribute.strip_prefix(self.namespace.prefix().as_bytes())
    }

    /// Returns what a mark on the object whose stat is given may lead to.
    pub fn reach(self, stat: &Stat) -> Reach {
        match (self.guarded, stat.uid, stat.mode & 0o022 == 0) {
            (false, ..) | (true, 0, true) => Reach::All,
            (true, uid, true) => Reach::Of(uid),
            // Whoever may write to it can have set it. (The mask of an ACL is seen as the bits of the group.)
            (true, _, false) => Reach::Anybody,
        }
    }
}

/// What somebody may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// All that this process may.
    All,
    /// What the user of that id may. Of which groups that is isn't known: neither those of the group nor others may be
    /// kept out.
    Of(u32),
    /// What everybody may.
    Anybody,
}

impl Reach {
    /// Tells whether an object may be used so (4: read, 1: search).
    pub fn allows(self, stat: &Stat, bits: u32) -> bool {
        let all = |shift: u32| stat.mode >> shift & bits == bits;
        match self {
            Reach::All => true,
            Reach::Of(uid) if uid == stat.uid => all(6),
            Reach::Of(_) => all(3) && all(0),
            Reach::Anybody => all(6) && all(3) && all(0),
        }
    }
}

/// Warns, once, of a mark that is there and not believed.
pub(in crate::union) fn warn_unbelieved(mark: &[u8], layer: &std::path::Path, path: &[u8]) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if WARNED.swap(true, Ordering::Relaxed) {
        return;
    }
    let option = if mark.starts_with(b"user.overlay.") || mark.starts_with(b"user.fuseoverlayfs.opaque") {
        "userxattr"
    } else if mark.starts_with(b"trusted.") {
        "(none: leave out userxattr)"
    } else {
        "xattr_permissions=2"
    };
    log::warn!(
        "layer {}: {}: the mark {} is not believed, as others than root can set it; whoever trusts all who can write to the layers mounts with -o {option} (said once, there may be more)",
        layer.display(),
        String::from_utf8_lossy(path).escape_debug(),
        String::from_utf8_lossy(mark).escape_debug(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_believes_what_root_can_write() {
        let root = Belief::of(true, false);
        assert_eq!(root.mark(b"trusted.overlay.opaque"), Some(&b"opaque"[..]));
        assert_eq!(root.mark(b"user.overlay.opaque"), None);
        assert!(!root.foreign && !root.overrides);
        let asked = root.with_permissions(XattrPermissions::User);
        assert!(asked.foreign && asked.overrides);
        let user = Belief::of(false, false);
        assert_eq!(user.mark(b"user.overlay.opaque"), Some(&b"opaque"[..]));
        assert!(user.foreign && user.overrides);
    }

    #[test]
    fn what_a_mark_leads_to_is_what_its_owner_may_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::open(dir.path()).unwrap();
        let at = crate::sys::object::At::Fd(std::os::fd::AsFd::as_fd(&file));
        let stat = |uid, mode| Stat { uid, mode, ..at.stat().unwrap() };
        let asked = Belief::of(true, true);
        assert_eq!(asked.reach(&stat(0, 0o755)), Reach::All);
        assert_eq!(asked.reach(&stat(0, 0o775)), Reach::Anybody);
        assert_eq!(asked.reach(&stat(7, 0o755)), Reach::Of(7));
        assert_eq!(Belief::of(false, false).reach(&stat(7, 0o777)), Reach::All);
        assert!(Reach::Of(7).allows(&stat(0, 0o755), 5) && !Reach::Of(7).allows(&stat(0, 0o705), 5));
        assert!(!Reach::Of(7).allows(&stat(0, 0o700), 5) && Reach::Of(7).allows(&stat(7, 0o500), 5));
        assert!(!Reach::Anybody.allows(&stat(0, 0o750), 5));
    }
}
