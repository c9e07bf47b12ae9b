//! All that is below a directory, each object by a descriptor that is opened without following any link.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::scope::Source;
use crate::container::error::Result;
use crate::image::layer::place::{join, open_dir};
use crate::sys::cancel;
use crate::sys::copy::file_data;
use crate::sys::dir::for_each_entry;
use crate::sys::object::{At, Kind, Stat};

/// An object that is met.
#[derive(Debug)]
pub struct Met<'a> {
    /// Its path below the directory.
    pub path: &'a [u8],
    /// It, without being opened (O_PATH).
    pub fd: BorrowedFd<'a>,
    /// What it is.
    pub stat: &'a Stat,
}

/// Hands all that is below a directory to `each`, each directory before what is in it, by sorted names. What the kernel shows
/// of itself where a container runs (/proc, /sys, terminals) is left out: it is in no image and no layer. `each` answers whether
/// what is below is wanted too.
///
/// # Errors
/// Those of reading, with the path, and of `each`.
pub fn below(top: &Source, each: &mut dyn FnMut(Met<'_>) -> Result<bool>) -> Result<()> {
    // A list, not recursion: nothing bounds the depth of a tree.
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let dir = match open_dir(top.fd.as_fd(), &path) {
            // Removed meanwhile, where others work.
            Err(Errno::NOENT) if !path.is_empty() => continue,
            dir => dir.map_err(top.io("open", &path))?,
        };
        let mut names: Vec<Vec<u8>> = Vec::new();
        for_each_entry::<Errno>(dir.as_fd(), |entry| {
            names.push(entry.name.to_vec());
            Ok(())
        })
        .map_err(top.io("list", &path))?;
        names.sort();
        let mut dirs = Vec::new();
        for name in names {
            let inner = join(&path, &name);
            let met = match At::Name(dir.as_fd(), &name).pin() {
                Err(Errno::NOENT) => continue,
                met => met.map_err(top.io("open", &inner))?,
            };
            let stat = At::Fd(met.as_fd()).stat().map_err(top.io("look at", &inner))?;
            if stat.mount_root && is_of_the_kernel(&met) {
                continue;
            }
            let enters = each(Met { path: &inner, fd: met.as_fd(), stat: &stat })?;
            if enters && stat.kind() == Kind::Directory {
                dirs.push(inner);
            }
        }
        todo.extend(dirs.into_iter().rev());
    }
    Ok(())
}

/// Tells whether what is mounted there has no data of its own (linux/magic.h: proc, sysfs, cgroup, cgroup2, devpts, mqueue).
fn is_of_the_kernel(root: &OwnedFd) -> bool {
    const KINDS: [u32; 6] = [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270, 0x1cd1, 0x1980_0202];
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the numbers have 32 bits; the field's width differs by architecture"
    )]
    rustix::fs::fstatfs(root).is_ok_and(|found| KINDS.contains(&(found.f_type as u32)))
}

/// The most that is read of a file that tells no size.
const MOST_UNTOLD: u64 = 1 << 30;

/// Copies the data of one file into another, which is empty. Returns how many bytes there are.
///
/// # Errors
/// Those of reading and writing; `EINTR` when it is [asked to stop](cancel).
pub fn data(from: OwnedFd, to: BorrowedFd<'_>) -> io::Result<u64> {
    let size = At::Fd(from.as_fd()).stat()?.size;
    if size > 0 {
        file_data(from.as_fd(), to, size, false)?;
        return Ok(size);
    }
    // Files of the kernel tell no size.
    let (mut from, mut to) = (File::from(from), File::from(to.try_clone_to_owned()?));
    let (mut buffer, mut copied) = (vec![0; 64 << 10], 0);
    loop {
        if cancel::is_asked() {
            return Err(Errno::INTR.into());
        }
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        to.write_all(&buffer[..read])?;
        copied += read as u64;
        if copied > MOST_UNTOLD {
            return Err(io::Error::other("it tells no length, and comes to no end"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::cancel::Cancel;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn a_copy_stops_within_a_file() {
        let source = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&source, "something").unwrap();
        // The second tells no length.
        for path in [source.path(), std::path::Path::new("/proc/self/status")] {
            let copy = || data(File::open(path).unwrap().into(), tempfile::tempfile().unwrap().as_fd());
            assert!(copy().unwrap() > 0);
            let stopped = Cancel::by(Arc::new(AtomicBool::new(true))).during(copy).unwrap_err();
            assert_eq!(stopped.raw_os_error(), Some(libc::EINTR), "{}", path.display());
        }
    }
}
