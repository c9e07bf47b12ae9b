//! The users and groups of a container: names are those of its own /etc/passwd and /etc/group.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::error::{ContainerError, Result};

/// Who a container's command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// The home directory.
    pub home: String,
}

/// The largest /etc/passwd that is read.
const LARGEST: u64 = 16 << 20;

/// Reads a file of the container; links in it lead nowhere else. Empty when there is none.
fn read(root: BorrowedFd<'_>, path: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut bytes = Vec::new();
    if let Ok(fd) = openat2(root, path, flags, Mode::empty(), resolve)
        && let Err(error) = File::from(fd).take(LARGEST).read_to_end(&mut bytes)
    {
        log::debug!("{path} of the container: {error}");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Finds `USER[:GROUP]` (names or numbers; empty is root) in the root filesystem `root`.
///
/// # Errors
/// When a name is unknown there.
pub fn find(root: impl AsFd, text: &str) -> Result<User> {
    let root = root.as_fd();
    resolve(&read(root, "etc/passwd"), &read(root, "etc/group"), text)
}

fn resolve(passwd: &str, group: &str, text: &str) -> Result<User> {
    let unknown = |what: &str, name: &str| {
        ContainerError::Refused(format!(
            "{what} {name:?} is unknown in the container; give a number, or add it there"
        ))
    };
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let fields = |line: &'_ str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let number: Option<u32> = user.parse().ok();
    let entry = passwd
        .lines()
        .map(fields)
        .find(|f| f.len() >= 6 && (f[0] == user || number.is_some_and(|number| f[2].parse() == Ok(number))));
    let mut found = match (&entry, number) {
        (Some(f), _) => User {
            uid: f[2].parse().map_err(|_| unknown("user", user))?,
            gid: f[3].parse().unwrap_or(0),
            groups: Vec::new(),
            home: f[5].clone(),
        },
        (None, Some(uid)) => User { uid, gid: 0, groups: Vec::new(), home: String::new() },
        (None, None) => return Err(unknown("user", user)),
    };
    if found.home.is_empty() {
        found.home = if found.uid == 0 { "/root".to_owned() } else { "/".to_owned() };
    }
    let groups: Vec<Vec<String>> = group.lines().map(fields).filter(|f| f.len() >= 4).collect();
    if let Some(wanted) = wanted_group {
        found.gid = match wanted.parse() {
            Ok(gid) => gid,
            Err(_) => groups
                .iter()
                .find(|f| f[0] == wanted)
                .and_then(|f| f[2].parse().ok())
                .ok_or_else(|| unknown("group", wanted))?,
        };
    } else if let Some(entry) = &entry {
        let member = |f: &&Vec<String>| f[3].split(',').any(|name| name == entry[0]);
        found.groups = groups.iter().filter(member).filter_map(|f| f[2].parse().ok()).collect();
        found.groups.retain(|gid| *gid != found.gid);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:100::/home/ann:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:\naudio:x:29:ann,bob\n";

    #[test]
    fn names_and_numbers_are_found() {
        let user = |text| resolve(PASSWD, GROUP, text).unwrap();
        assert_eq!(user("").home, "/root");
        let ann = User { uid: 1000, gid: 100, groups: vec![29], home: "/home/ann".into() };
        assert_eq!(user("ann"), ann);
        assert_eq!(user("1000"), ann);
        assert_eq!(user("ann:audio"), User { gid: 29, groups: vec![], ..ann.clone() });
        assert_eq!(user("ann:7").gid, 7);
        assert_eq!(user("4711"), User { uid: 4711, gid: 0, groups: vec![], home: "/".into() });
        resolve(PASSWD, GROUP, "eve").unwrap_err();
        resolve(PASSWD, GROUP, "ann:wheel").unwrap_err();
        assert_eq!(resolve("", "", "").unwrap().uid, 0);
    }
}
