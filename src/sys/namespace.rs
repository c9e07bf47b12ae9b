//! Entering namespaces, and writing back what the kernel holds.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{
    ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces, set_thread_res_gid, set_thread_res_uid,
    unshare_unsafe,
};

/// Makes a user and a mount namespace and enters them, as nobody yet: the ids must be mapped from outside.
///
/// # Errors
/// When the kernel's limits or its configuration forbid it, or this process has several threads.
pub fn new_user_namespace() -> io::Result<()> {
    // SAFETY: the flags are not CLONE_FILES or CLONE_FS, which would take descriptors or the working directory from
    // other threads of this process; and with CLONE_NEWUSER the kernel refuses a process that has any.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }?;
    KNOWN.store(UNKNOWN, Ordering::Relaxed);
    Ok(())
}

/// Returns whether this process may mount in its own user namespace.
pub fn may_mount() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN))
}

/// Makes a mount namespace, a copy of this process's, and enters it.
///
/// # Errors
/// When this process has no CAP_SYS_ADMIN.
pub fn new_mounts() -> io::Result<()> {
    // SAFETY: the flag is not CLONE_FILES; the kernel parts the working directory from other threads' by itself, and who
    // calls this has one thread.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?)
}

/// Opens the mount namespace of this process, to come back to.
///
/// # Errors
/// Without /proc.
pub fn mounts_of_this_process() -> io::Result<OwnedFd> {
    Ok(std::fs::File::open("/proc/self/ns/mnt")?.into())
}

/// Enters a mount namespace.
///
/// # Errors
/// When this process has no CAP_SYS_ADMIN in it.
pub fn enter_mounts(namespace: &OwnedFd) -> io::Result<()> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?)
}

/// Lets programs that this process starts mount too, in its user namespace, without being root there.
///
/// # Errors
/// When this process may not itself.
pub fn hand_on_mounting() -> io::Result<()> {
    use rustix::thread::{CapabilitySet, configure_capability_in_ambient_set, set_capabilities};
    let mut sets = rustix::thread::capabilities(None)?;
    sets.inheritable |= CapabilitySet::SYS_ADMIN;
    set_capabilities(None, sets)?;
    Ok(configure_capability_in_ambient_set(CapabilitySet::SYS_ADMIN, true)?)
}

/// Takes back what [`hand_on_mounting`] lets programs do. This process still may.
///
/// # Errors
/// Those of prctl(2) and capset(2).
pub fn keep_mounting() -> io::Result<()> {
    rustix::thread::clear_ambient_capability_set()?;
    let mut sets = rustix::thread::capabilities(None)?;
    sets.inheritable = rustix::thread::CapabilitySet::empty();
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Makes a network namespace in which this process is not. It lasts as long as the descriptor, or something in it.
///
/// # Errors
/// When this process has no CAP_SYS_ADMIN, or the kernel's limits forbid it.
pub fn new_network() -> io::Result<OwnedFd> {
    let made = std::thread::Builder::new().spawn(|| -> io::Result<OwnedFd> {
        // SAFETY: the flag is not CLONE_FILES or CLONE_FS; the namespace is this thread's alone, which ends here.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        Ok(std::fs::File::open("/proc/thread-self/ns/net")?.into())
    })?;
    made.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
}

/// Enters the user and mount namespaces of another process, and becomes root there.
///
/// # Errors
/// When it has gone, or they are not this user's to enter.
pub fn join_namespaces_of(pid: i32) -> io::Result<()> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("no process"))?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT)?;
    KNOWN.store(UNKNOWN, Ordering::Relaxed);
    become_root()
}

/// Returns whether the process is in another user namespace than this one.
pub fn is_elsewhere(pid: i32) -> bool {
    let of = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/user")).ok();
    let there = of(&pid.to_string());
    there.is_some() && there != of("self")
}

/// Returns whether the kernel lets this process give it files to pass through to (FUSE_DEV_IOC_BACKING_OPEN). That
/// takes CAP_SYS_ADMIN in the user namespace that the system began with.
pub fn may_pass_through() -> bool {
    is_privileged()
}

/// Returns whether this process has CAP_SYS_ADMIN in the user namespace that the system began with.
pub fn is_privileged() -> bool {
    let admin = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN));
    admin && is_initial().unwrap_or(false)
}

/// Whether this process is in the user namespace that the system began with, as far as it is known.
static KNOWN: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 2;

/// Returns whether this process is in the user namespace that the system began with. Asked once, since so much hangs on
/// it: an answer that failed for want of memory half-way would be another one.
///
/// # Errors
/// When it can't be found out.
pub fn is_initial() -> io::Result<bool> {
    /// The inode number of that namespace (PROC_USER_INIT_INO), the same since Linux 3.8.
    const INITIAL: u64 = 0xefff_fffd;
    match KNOWN.load(Ordering::Relaxed) {
        UNKNOWN => {
            let initial = rustix::fs::stat("/proc/self/ns/user")?.st_ino == INITIAL;
            KNOWN.store(initial.into(), Ordering::Relaxed);
            Ok(initial)
        }
        known => Ok(known == 1),
    }
}

/// Becomes root of the user namespace that this process is in.
///
/// # Errors
/// When the namespace maps no root.
pub fn become_root() -> io::Result<()> {
    set_thread_res_gid(rustix::process::Gid::ROOT, rustix::process::Gid::ROOT, rustix::process::Gid::ROOT)?;
    set_thread_res_uid(rustix::process::Uid::ROOT, rustix::process::Uid::ROOT, rustix::process::Uid::ROOT)?;
    Ok(())
}

/// Starts to write the dirty pages of a file, and doesn't wait. A hint: whoever needs them on disk calls fsync(2), which
/// also tells what went wrong.
pub fn start_write_back(file: BorrowedFd<'_>) {
    // SAFETY: plain numbers and a descriptor that is borrowed for the call.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Hands the dirty pages of a file to its filesystem and waits until it has them. Asks for nothing to be written to
/// disk, which fsync(2) would.
///
/// # Errors
/// Those of writing.
pub fn write_back(file: BorrowedFd<'_>) -> io::Result<()> {
    let all =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: plain numbers and a descriptor that is borrowed for the call.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, all) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the effective capabilities of this thread, as bits.
///
/// # Errors
///
/// Those of capget(2).
pub fn rights() -> io::Result<u64> {
    Ok(rustix::thread::capabilities(None)?.effective.bits())
}

/// Returns whether this process may more than whoever else runs as its user: as root, as a program that is setuid, or by capabilities.
/// Root of a user namespace that has no other user may no more than the user who made it.
///
/// # Errors
///
/// Those of capget(2), and of reading what the namespace maps.
pub fn may_more_than_its_user() -> io::Result<bool> {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    let sets = rustix::thread::capabilities(None)?;
    let is_lent = getuid() != geteuid() || getgid() != getegid();
    let has_rights = geteuid().is_root() || is_lent || !(sets.permitted | sets.effective).is_empty();
    Ok(has_rights && (is_initial()? || users_mapped(&std::fs::read_to_string("/proc/self/uid_map")?) != 1))
}

/// Returns how many users a map of a namespace has (user_namespaces(7)).
fn users_mapped(map: &str) -> u64 {
    let counts = map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    counts.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::users_mapped;

    #[test]
    fn a_map_tells_how_many_users_there_are() {
        assert_eq!(users_mapped("         0       1000          1\n"), 1);
        assert_eq!(users_mapped("0 1000 1\n1 100000 65536\n"), 65537);
        assert_eq!(users_mapped("0 0 4294967295\n"), 4_294_967_295);
    }
}
