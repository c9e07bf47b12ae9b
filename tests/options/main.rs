//! What the mount options do, through the real binary: owners as they are kept and as they are shown, and each option
//! that fuse-overlayfs, the kernel's overlayfs or mount(8) knows. The oracle, where it is right, is Debian's
//! fuse-overlayfs 1.10.

#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

mod diff;
mod effects;
mod helper;
mod lowers;
mod mappings;
mod overrides;
mod quota;
mod uring;
mod uring_trouble;
mod whiteouts;

use std::path::Path;

use support::cli::Place;

/// Debian's fuse-overlayfs, not one of the same name elsewhere.
const FUSE_OVERLAYFS: &str = "/usr/bin/fuse-overlayfs";

fn has_fuse_overlayfs() -> bool {
    Path::new(FUSE_OVERLAYFS).exists()
}

/// Runs a script in which `set -e` holds, as root. It must succeed silently on stderr. Returns what it printed.
#[track_caller]
fn sh(place: &Place, script: &str) -> String {
    place.sh(&format!("set -e\n{script}")).ok().out
}

/// The same as the ordinary user.
#[track_caller]
fn sh_as_user(place: &Place, script: &str) -> String {
    place.sh_as_user(&format!("set -e\n{script}")).ok().out
}

/// Unmounts `mnt` and waits for the daemon's end.
#[track_caller]
fn umount(place: &Place) {
    place.umount("mnt");
    place.wait_for_no_daemon();
}

/// Owner, group, mode and type, one line for each name.
#[track_caller]
fn stats(place: &Place, dir: &str, names: &str) -> Vec<String> {
    let out = sh(place, &format!("cd {dir}; stat -c '%n %u:%g %a %F' {names}"));
    out.lines().map(str::to_owned).collect()
}

/// An extended attribute of what lies at `path` itself; empty where there is none.
fn attribute(place: &Place, path: &str, name: &str) -> String {
    let mut value = vec![0; 1024];
    match rustix::fs::lgetxattr(place.at(path), name, value.as_mut_slice()) {
        Ok(length) => String::from_utf8_lossy(&value[..length]).into_owned(),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => String::new(),
        Err(errno) => panic!("{path}: {errno}"),
    }
}

const OVERRIDE: &str = "user.containers.override_stat";
