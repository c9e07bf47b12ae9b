//! Which programs a daemon may start to go on in its place.
//!
//! Whoever may ask for an upgrade names the program: the daemon's user, and root. Where the daemon may no more than its user, that user may
//! start the program anyway. Where it may more, the program would get what it may: so it must be one that nobody but root can have
//! written. What a filesystem tells of owners and modes proves that only where root answers for it: on one that the user serves himself
//! (FUSE), or has mounted of an image of his (nosuid, as the kernel doesn't believe setuid there), a file may belong to anybody.
//!
//! Root's programs do many things for whoever runs them as root, and an interpreter among them what its environment says. So a daemon that is
//! root by setuid alone starts what is setuid as well and everybody may execute, which its user can start with the same rights, and no script,
//! for which the kernel doesn't heed setuid; and no daemon that may more than its user lends its environment, which may be that user's.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{StatVfsMountFlags, fstatfs, fstatvfs};
use rustix::process::{geteuid, getuid};

use crate::sys::namespace::may_more_than_its_user;

/// Write permission for the group and for others. Where there is an ACL, the group's are what it gives at the most.
const BY_OTHERS: u32 = 0o022;

/// Who starts it is its owner meanwhile (S_ISUID).
const SETUID: u32 = 0o4000;

/// Execute permission for everybody.
const BY_ANYBODY: u32 = 0o001;

/// The type of FUSE filesystems (statfs(2), `f_type`).
const FUSE: u64 = 0x6573_5546;

/// What a daemon may that is asked to start a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Daemon {
    /// No more than its user.
    AsItsUser,
    /// More than others, and nobody but root may ask it.
    Roots,
    /// More than its user, who isn't root.
    AboveItsUser,
    /// The same, being root by setuid.
    RootForItsUser,
}

impl Daemon {
    /// Tells whether somebody who may less may have chosen its environment.
    pub(super) fn has_anothers_environment(self) -> bool {
        matches!(self, Daemon::AboveItsUser | Daemon::RootForItsUser)
    }
}

/// On what a program lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Place {
    /// The mount is nosuid.
    no_suid: bool,
    /// Some process answers for what is there.
    is_fuse: bool,
}

/// Refuses a program that this daemon may not start. `file`: the one that is started, and what was `found` of it by its descriptor; not
/// what has its path. Returns what the daemon is.
///
/// # Errors
/// Why it may not.
pub(super) fn may_be_started(file: &File, found: &Metadata) -> Result<Daemon, String> {
    let may_more = may_more_than_its_user()
        .map_err(|error: io::Error| format!("what the daemon may can't be told: {error}"))?;
    // The one that it was started by, or that it has become, is who may ask.
    let daemon = match (may_more, getuid().is_root(), geteuid().is_root()) {
        (false, ..) => Daemon::AsItsUser,
        (true, true, true) => Daemon::Roots,
        (true, false, true) => Daemon::RootForItsUser,
        (true, _, false) => Daemon::AboveItsUser,
    };
    let place = match daemon {
        Daemon::AboveItsUser | Daemon::RootForItsUser => {
            place_of(file).map_err(|error| format!("on what it lies can't be told: {error}"))?
        }
        Daemon::AsItsUser | Daemon::Roots => Place::default(),
    };
    is_fit(daemon, (found.uid(), found.mode()), place)?;
    if daemon == Daemon::RootForItsUser
        && is_script(file).map_err(|error| format!("what it is can't be told: {error}"))?
    {
        return Err(
            "is a script, which setuid isn't heeded for, and the daemon, which is setuid, doesn't start it"
                .to_owned(),
        );
    }
    Ok(daemon)
}

/// Tells whether the kernel starts an interpreter for it. `file` only names it, and may be nothing else than a regular file: the owner is
/// root, and the mode lets everybody execute it.
fn is_script(file: &File) -> io::Result<bool> {
    let mut head = Vec::new();
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.take(2).read_to_end(&mut head)?;
    Ok(head == b"#!")
}

fn place_of(file: &File) -> io::Result<Place> {
    #[allow(clippy::unnecessary_cast)] // the type differs by architecture
    let kind = fstatfs(file)?.f_type as u64 & 0xffff_ffff;
    let no_suid = fstatvfs(file)?.f_flag.contains(StatVfsMountFlags::NOSUID);
    Ok(Place { no_suid, is_fuse: kind == FUSE })
}

/// Tells whether a daemon may start a program of that owner and mode, on that.
fn is_fit(daemon: Daemon, (owner, mode): (u32, u32), place: Place) -> Result<(), String> {
    if daemon == Daemon::AsItsUser {
        return Ok(());
    }
    if owner != 0 {
        return Err(format!(
            "belongs to uid {owner}, and the daemon, which may more than its user, starts programs of root alone"
        ));
    }
    if mode & BY_OTHERS != 0 {
        return Err(format!(
            "others may write to it (mode {:04o}), and the daemon, which may more than its user, doesn't start it",
            mode & 0o7777
        ));
    }
    if daemon == Daemon::RootForItsUser && mode & (SETUID | BY_ANYBODY) != SETUID | BY_ANYBODY {
        return Err("is not setuid for everybody, and the daemon, which is, doesn't start for its user as root what that user can't".to_owned());
    }
    let untrusted = match place {
        _ if daemon == Daemon::Roots => return Ok(()),
        Place { is_fuse: true, .. } => "a FUSE filesystem, which tells of owners what it likes",
        Place { no_suid: true, .. } => "a mount with nosuid, whose owners may be anybody's invention",
        Place { is_fuse: false, no_suid: false } => return Ok(()),
    };
    Err(format!(
        "lies on {untrusted}, and the daemon, which may more than its user, doesn't start it; let root install it where setuid counts, as in \
         /usr/local/bin, and name that, or unmount, and mount again"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_more_than_its_user_starts_only_what_root_alone_can_write() {
        for (owner, mode, is_started) in [
            (0, 0o100755, true),
            (0, 0o104755, true),
            (1000, 0o100755, false),
            (0, 0o100775, false),
            (0, 0o100757, false),
            (0, 0o104757, false),
            (1000, 0o104755, false),
            (0, 0o104750, true),
            (0, 0o104754, true),
        ] {
            let by_setuid = is_fit(Daemon::RootForItsUser, (owner, mode), Place::default());
            assert_eq!(by_setuid.is_ok(), (owner, mode) == (0, 0o104755), "{owner} {mode:o}");
            for daemon in [Daemon::Roots, Daemon::AboveItsUser] {
                let is_fit = is_fit(daemon, (owner, mode), Place::default());
                assert_eq!(is_fit.is_ok(), is_started, "{daemon:?} {owner} {mode:o}");
            }
            assert_eq!(
                is_fit(Daemon::AsItsUser, (owner, mode), Place::default()),
                Ok(()),
                "{owner} {mode:o}"
            );
        }
    }

    #[test]
    fn an_owner_proves_nothing_where_the_user_may_have_made_him_up() {
        let roots = (0, 0o100755);
        for (no_suid, is_fuse, why) in [(true, false, "nosuid"), (false, true, "FUSE"), (true, true, "FUSE")]
        {
            let place = Place { no_suid, is_fuse };
            for (daemon, file) in [(Daemon::AboveItsUser, roots), (Daemon::RootForItsUser, (0, 0o104755))] {
                let refused = is_fit(daemon, file, place).unwrap_err();
                assert!(refused.contains(why) && refused.contains("/usr/local/bin"), "{place:?}: {refused}");
            }
            for daemon in [Daemon::AsItsUser, Daemon::Roots] {
                assert_eq!(is_fit(daemon, roots, place), Ok(()), "{daemon:?} {place:?}");
            }
        }
    }

    /// By a descriptor that only names it, as the daemon has it.
    #[test]
    fn on_what_a_file_lies_is_told_by_its_descriptor() {
        let open = |path: &str| {
            File::from(rustix::fs::open(path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap())
        };
        // Whether this machine's /proc is nosuid stands in its options.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mut options = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            (fields.next() == Some("/proc")).then(|| fields.nth(1)).flatten()
        });
        let Some(options) = options.next_back() else {
            eprintln!("skipped: no mount of /proc is seen");
            return;
        };
        let no_suid = options.split(',').any(|option| option == "nosuid");
        assert_eq!(place_of(&open("/proc/version")).unwrap(), Place { no_suid, is_fuse: false });
    }
}
