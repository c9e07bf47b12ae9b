//! Which programs a daemon may start to go on in its place.
//!
//! Whoever may ask for an upgrade names the program: the daemon's user, and root. Where the daemon may no more than its user, that user may
//! start the program anyway. Where it may more, the program would get what it may: so it must be one that nobody but root can have
//! written.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;

use crate::sys::namespace::may_more_than_its_user;

/// Write permission for the group and for others. Where there is an ACL, the group's are what it gives at the most.
const BY_OTHERS: u32 = 0o022;

/// Refuses a program that this daemon may not start. `found`: the file that is started, by its descriptor; not what has its path.
///
/// # Errors
/// Why it may not.
pub(super) fn may_be_started(found: &Metadata) -> Result<(), String> {
    let may_more = may_more_than_its_user()
        .map_err(|error: io::Error| format!("what the daemon may can't be told: {error}"))?;
    is_fit(found.uid(), found.mode(), may_more)
}

/// Tells whether a daemon may start a program of that owner and mode. `may_more`: than its user.
fn is_fit(owner: u32, mode: u32, may_more: bool) -> Result<(), String> {
    if !may_more {
        return Ok(());
    }
    if owner != 0 {
        return Err(format!(
            "belongs to uid {owner}, and the daemon, which may more than its user, starts programs of root alone"
        ));
    }
    match mode & BY_OTHERS {
        0 => Ok(()),
        _ => Err(format!(
            "others may write to it (mode {:04o}), and the daemon, which may more than its user, doesn't start it",
            mode & 0o7777
        )),
    }
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
        ] {
            assert_eq!(is_fit(owner, mode, true).is_ok(), is_started, "{owner} {mode:o}");
            assert_eq!(is_fit(owner, mode, false), Ok(()), "{owner} {mode:o}");
        }
    }
}
