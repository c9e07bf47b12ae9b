//! The user namespace in which an ordinary user's containers run.
//!
//! The ids come from newuidmap(1) and newgidmap(1): the user is root inside, the subordinate ids of /etc/subuid and
//! /etc/subgid follow. Both must be called from outside the namespace about a process inside, so a helper is started first
//! and waits until this process has moved.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use super::error::{ContainerError, Result};
use crate::sys::namespace;

/// A range of subordinate ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    start: u32,
    count: u32,
}

/// Enters a user namespace, unless this process is root already, of the machine or of a namespace. The process must
/// have one thread.
///
/// # Errors
/// When the user has no subordinate ids, newuidmap is not installed, or namespaces are forbidden.
pub fn enter() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let uid = rustix::process::getuid().as_raw();
    let gid = rustix::process::getgid().as_raw();
    let name = user_name(uid);
    let uids = subordinate("/etc/subuid", uid, name.as_deref())?;
    let gids = subordinate("/etc/subgid", uid, name.as_deref())?;
    let pid = std::process::id();
    let Range { start, count } = uids;
    let Range { start: gid_start, count: gid_count } = gids;
    // Numbers only; nothing of it is anybody's text.
    let script = format!(
        "read -r go && newuidmap {pid} 0 {uid} 1 1 {start} {count} && newgidmap {pid} 0 {gid} 1 1 {gid_start} {gid_count}"
    );
    let mut helper = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(ContainerError::io("run it", "sh"))?;
    namespace::new_user_namespace().map_err(|error| {
        ContainerError::Refused(format!(
            "no user namespace can be made: {error}; see the sysctls user.max_user_namespaces and \
             kernel.unprivileged_userns_clone, or run as root"
        ))
    })?;
    let mut said = String::new();
    if let Some(mut stdin) = helper.stdin.take() {
        stdin.write_all(b"go\n").map_err(ContainerError::io("write to it", "newuidmap"))?;
    }
    if let Some(mut stderr) = helper.stderr.take() {
        stderr.read_to_string(&mut said).map_err(ContainerError::io("read from it", "newuidmap"))?;
    }
    let status = helper.wait().map_err(ContainerError::io("wait for it", "newuidmap"))?;
    if !status.success() {
        let said = said.trim().replace('\n', "; ");
        let way_out = if said.contains("not found") { "; install the package uidmap" } else { "" };
        return Err(ContainerError::Refused(format!("the ids cannot be mapped: {said}{way_out}")));
    }
    namespace::become_root()
        .map_err(|error| ContainerError::Refused(format!("cannot become root of the namespace: {error}")))
}

fn subordinate(file: &str, uid: u32, name: Option<&str>) -> Result<Range> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    find_range(&text, uid, name).ok_or_else(|| {
        let user = name.map_or_else(|| uid.to_string(), str::to_owned);
        ContainerError::Refused(format!(
            "user {user} has no subordinate ids in {file}; as root: usermod --add-subuids 100000-165535 \
             --add-subgids 100000-165535 {user}"
        ))
    })
}

fn find_range(text: &str, uid: u32, name: Option<&str>) -> Option<Range> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let user = fields.next()?;
        let (start, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let mine = name == Some(user) || user.parse() == Ok(uid);
        (mine && count > 0).then_some(Range { start, count })
    })
}

fn user_name(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    found.or_else(|| std::env::var("USER").ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_number() {
        let text = "ann:100000:65536\n1001:200000:1000\nbob:x:y\n";
        assert_eq!(find_range(text, 7, Some("ann")), Some(Range { start: 100_000, count: 65_536 }));
        assert_eq!(find_range(text, 1001, Some("eve")), Some(Range { start: 200_000, count: 1000 }));
        assert_eq!(find_range(text, 7, Some("bob")), None);
        assert_eq!(find_range(text, 7, None), None);
    }
}
