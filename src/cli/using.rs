//! Who uses a mount, for verbs that would take from them what they use.

use super::Failure;
use crate::control::mounts::Mount;
use crate::control::users::{self, MountedOn, Users};
use crate::union::escaped_path::EscapedPath;

/// So many are named.
const MOST: usize = 10;

fn cannot(mount: &Mount) -> impl Fn(std::io::Error) -> Failure {
    let point = EscapedPath::from(mount.point.as_path());
    move |error| Failure::failed(format!("{point}: who uses it can't be told: {error}"))
}

/// Returns who uses a mount, this process aside, and how many others may use it.
pub(super) fn users(mount: &Mount) -> Result<Users, Failure> {
    let mut users = users::of(mount).map_err(cannot(mount))?;
    // Without it nobody else has got in.
    let others_may = mount.options.split(',').any(|option| option == "allow_other");
    if !others_may {
        users.unseen = 0;
    }
    let own = std::process::id();
    users.found.retain(|user| user.pid != own);
    Ok(users)
}

/// Returns what is mounted on something in a mount.
pub(super) fn mounted_on(mount: &Mount) -> Result<Vec<MountedOn>, Failure> {
    users::mounted_on(mount).map_err(cannot(mount))
}

/// Joins what is told of each, or of the first.
pub(super) fn some_of(mut told: Vec<String>) -> String {
    let more = told.len().saturating_sub(MOST);
    told.truncate(MOST);
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    told.join(", ")
}
