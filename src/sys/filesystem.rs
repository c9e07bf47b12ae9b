//! What a filesystem promises.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Mode, OFlags, StatxAttributes, StatxFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, fstat,
    fstatfs, fsync, futimens, major, minor, openat, statx,
};
use rustix::io::{Errno, Result};
use rustix::system::uname;

const EXT4: u64 = 0xef53;

const XFS: u64 = 0x5846_5342;

/// Returns the type of a filesystem, and the size of its blocks.
fn kind(file: BorrowedFd<'_>) -> Option<(u64, u64)> {
    let filesystem = fstatfs(file).ok()?;
    #[allow(clippy::unnecessary_cast)] // the type differs by architecture
    Some((filesystem.f_type as u64, filesystem.f_bsize as u64))
}

/// Returns the mount options of an ext4, as it tells all of them.
fn ext4_options(file: BorrowedFd<'_>) -> Option<String> {
    let stat = fstat(file).ok()?;
    let device = format!("/sys/dev/block/{}:{}", major(stat.st_dev), minor(stat.st_dev));
    let device = std::fs::read_link(device).ok()?;
    std::fs::read_to_string(Path::new("/proc/fs/ext4").join(device.file_name()?).join("options")).ok()
}

/// Returns whether the filesystem of a file is known to make changes of attributes and of names durable in the order in which
/// they were made: XFS, and ext4 with a journal. Nothing is known of what doesn't tell.
pub fn has_journal(file: BorrowedFd<'_>) -> bool {
    match kind(file) {
        Some((XFS, _)) => true,
        Some((EXT4, _)) => {
            ext4_options(file).is_some_and(|options| options.lines().any(|line| line.starts_with("data=")))
        }
        _ => false,
    }
}

/// Returns whether the filesystem of a directory is known to make a new extent durable as data only after its data are:
///
/// - ext4 with a journal and `data=ordered`, as it tells itself: the extent is in the journal after its data, or is one without
///   data until these have been written.
/// - XFS from Linux 5.8 on, which makes an extent of a write one without data until these have been written. Before, only what moves the
///   end of the file was kept back so, and a hole in its midst was data as soon as it had room.
///
/// With DAX a block is the file's before its data are. The tests of power failures (`half_copied_files`) run on these two. Not btrfs: it
/// makes data of a hole when the end of the file moves into it or out of it (measured on 6.18), and a hole must stay one.
pub fn orders_data(directory: BorrowedFd<'_>) -> bool {
    let Some((kind, block)) = kind(directory) else { return false };
    let ordered = |options: String| options.lines().any(|option| option == "data=ordered");
    let is_known = match kind {
        EXT4 => ext4_options(directory).is_some_and(ordered),
        XFS => is_linux_from(uname().release(), (5, 8)),
        _ => false,
    };
    is_known && block.is_power_of_two() && block <= 64 << 10 && !is_direct(directory)
}

/// Tells whether a release of Linux is that version or a later one.
fn is_linux_from(release: &CStr, version: (u32, u32)) -> bool {
    let release = release.to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(first), Some(second)) => (first, second) >= version,
        _ => false,
    }
}

/// Tells whether files of a directory are accessed directly (DAX), or that can't be found out.
fn is_direct(directory: BorrowedFd<'_>) -> bool {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let attributes = openat(directory, c".", flags, Mode::RUSR | Mode::WUSR)
        .and_then(|file| statx(&file, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE))
        .map(|told| told.stx_attributes);
    attributes.is_ok_and(|attributes| attributes.contains(StatxAttributes::DAX)) || attributes.is_err()
}

/// Tells whether each change of an object in the filesystem of a directory, after somebody looked at it, has a change time of
/// its own, however little later it comes. Since Linux 6.13 that is so on ext4, XFS, btrfs and tmpfs; it is tried.
pub fn tells_changes_apart(directory: BorrowedFd<'_>) -> bool {
    // Within few ticks of the kernel's clock, which alone would tell apart no more than that.
    const CHANGES: usize = 8;
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let tried = || {
        let file = openat(directory, c".", flags, Mode::RUSR | Mode::WUSR)?;
        let mut last = fstat(&file)?;
        for _ in 0..CHANGES {
            fchmod(&file, Mode::RUSR | Mode::WUSR)?;
            let now = fstat(&file)?;
            if (now.st_ctime, now.st_ctime_nsec) <= (last.st_ctime, last.st_ctime_nsec) {
                return Ok(false);
            }
            last = now;
        }
        Ok::<_, Errno>(true)
    };
    tried().unwrap_or(false)
}

/// Writes all that the filesystem of an open directory holds back, so that a power failure takes nothing of it.
///
/// On XFS syncfs(2) has the device flush its cache only where the journal has something to write. Data that the kernel wrote
/// by itself before, over blocks that were there already, may be in that cache alone (measured on 6.18, with the disk of the
/// tests of power failures). An fsync of a regular file flushes in any case.
///
/// # Errors
/// Those of syncfs(2), and of having it flushed.
pub fn sync(directory: impl AsFd) -> Result<()> {
    let directory = directory.as_fd();
    sync_as_it_does(directory)?;
    if !matches!(kind(directory), Some((XFS, _))) {
        return Ok(());
    }
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    match openat(directory, c".", flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => fsync(file),
        // What became read-only was flushed then.
        Err(Errno::ROFS) => Ok(()),
        // No file can be made there, so something else is brought into the journal.
        Err(refused) => {
            change_nothing(directory).map_err(|_| refused)?;
            sync_as_it_does(directory)
        }
    }
}

/// Gives a directory the access time that it has: its owner may change all else of it meanwhile.
fn change_nothing(directory: BorrowedFd<'_>) -> Result<()> {
    let stat = fstat(directory)?;
    let kept = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    #[allow(clippy::unnecessary_cast)] // the types differ by architecture
    let last_access = kept(stat.st_atime as i64, stat.st_atime_nsec as i64);
    futimens(directory, &Timestamps { last_access, last_modification: kept(0, UTIME_OMIT) })
}

#[expect(clippy::disallowed_methods, reason = "of which this makes what it should be")]
fn sync_as_it_does(directory: BorrowedFd<'_>) -> Result<()> {
    rustix::fs::syncfs(directory)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn releases_are_told_apart() {
        let from_5_8 = |release: &CStr| is_linux_from(release, (5, 8));
        assert!(
            [c"5.8.0", c"5.10.1-amd64", c"6.0", c"6.18.44-fc-v769", c"5.8-rc1"].into_iter().all(from_5_8)
        );
        assert!([c"5.7.19", c"4.19.0-8", c"5", c"", c"x.9"].into_iter().all(|release| !from_5_8(release)));
    }

    #[test]
    fn a_directory_that_is_written_to_the_journal_stays_what_it_is() {
        let top = tempfile::tempdir().unwrap();
        let directory = fs::File::open(top.path()).unwrap();
        directory.set_permissions(fs::Permissions::from_mode(0o2710)).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
        directory.set_times(fs::FileTimes::new().set_accessed(long_ago).set_modified(long_ago)).unwrap();
        let before = directory.metadata().unwrap();
        change_nothing(directory.as_fd()).unwrap();
        let after = directory.metadata().unwrap();
        let seen = |stat: &fs::Metadata| (stat.mode(), stat.accessed().unwrap(), stat.modified().unwrap());
        assert_eq!(seen(&after), seen(&before));
        assert_ne!(
            (after.ctime(), after.ctime_nsec()),
            (before.ctime(), before.ctime_nsec()),
            "nothing was written"
        );
    }
}
