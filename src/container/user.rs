//! The users and groups of a container: names are those of its own /etc/passwd and /etc/group.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

use super::error::{ContainerError, Result};
use crate::sys::object::At;

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

/// Reads a regular file of the root filesystem, if it has one there: links lead nowhere else, and nothing is opened that
/// could make its opener wait. Empty when there is none.
///
/// # Errors
/// When it has something else there: runtimes would open it.
fn read(root: BorrowedFd<'_>, path: &str) -> Result<String> {
    use rustix::fs::FileType;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let shown = format!("/{path} of the container");
    let found = match openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        found => found.map_err(ContainerError::io("open it", &shown))?,
    };
    let stat = fstat(&found).map_err(ContainerError::io("stat it", &shown))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(ContainerError::Refused(format!(
            "/{path} of the image is no regular file, so that nobody can be looked up in it; replace it"
        )));
    }
    let mut bytes = Vec::new();
    let opened = At::Fd(found.as_fd()).open_read().map_err(std::io::Error::from);
    opened
        .and_then(|fd| File::from(fd).take(LARGEST).read_to_end(&mut bytes))
        .map_err(ContainerError::io("read it", &shown))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Finds `USER[:GROUP]` (names or numbers; empty is root) in the root filesystem `root`.
///
/// # Errors
/// When a name is unknown there, or one of the files is none.
pub fn find(root: impl AsFd, text: &str) -> Result<User> {
    let root = root.as_fd();
    resolve(&read(root, "etc/passwd")?, &read(root, "etc/group")?, text)
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
    // A number is an id, whatever names there are.
    let number: Option<u32> =
        is_number(user).then(|| user.parse()).transpose().map_err(|_| unknown("user", user))?;
    let entry = passwd.lines().map(fields).find(|f| {
        f.len() >= 6
            && match number {
                Some(number) => f[2].parse() == Ok(number),
                None => f[0] == user,
            }
    });
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
        found.gid = match is_number(wanted) {
            true => wanted.parse().map_err(|_| unknown("group", wanted))?,
            false => groups
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

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_an_id_whatever_names_there_are() {
        let passwd = "1000:x:0:0::/:/bin/sh\n7:x:7:0::/seven:/bin/sh\n";
        let found = resolve(passwd, "1000:x:0:\n", "1000:1000").unwrap();
        assert_eq!((found.uid, found.gid, found.home.as_str()), (1000, 1000, "/"));
        assert_eq!(resolve(passwd, "", "7").unwrap().home, "/seven");
        resolve(passwd, "", "99999999999").unwrap_err();
        resolve(passwd, "", "+1").unwrap_err();
    }

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
