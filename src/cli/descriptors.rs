//! How a daemon's descriptors are shared out, before there is a mount that could suffer.

use super::Failure;
use crate::sys::process::nofile_limit;
use crate::union::Limits;

/// The session's own, once it runs: signals, copies of the device, the control socket with a client.
const SESSION: usize = 12;
/// What each thread that answers has for as long as it lives: its device, and the files by which pairs are found.
const THREAD: usize = 3;
/// What each thread needs at once to copy an object up: directories of both layers, both files, the new name's place.
const WORK: usize = 6;
/// Fewer directories and files that are kept open make everything slow.
const CACHED: usize = 16;

/// The standard ones, the caller's pipe, the device, the upper, its workdir with its parts, the locks on both, and what tells who
/// writes into archives.
const STACK: usize = 15;

/// Shares this process's limit of open files out for a mount of so many lowers and threads. Nothing is open yet.
///
/// # Errors
/// When the limit is below what works, with the number that would do.
pub(super) fn share_out(lowers: usize, threads: usize) -> Result<Limits, Failure> {
    let limit = nofile_limit();
    let needed = lowers + STACK + SESSION + threads * (THREAD + WORK);
    if limit < needed + CACHED {
        let needed = needed + CACHED;
        return Err(Failure::failed(format!(
            "at most {limit} files may be open, and this mount needs {needed}: raise the hard limit \
             (ulimit -Hn {needed}, or LimitNOFILE={needed} in a unit)"
        )));
    }
    Ok(Limits::within(limit - needed))
}
