//! Whether somebody has written into a file. Its times don't tell: one who writes may set the time of the content back, and the
//! inode's own changes with rights, attributes and names as well. inotify(7) does tell, of what is done on this machine.
//!
//! One inotify serves the process: a user may have 128 of them.

use std::collections::HashMap;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use parking_lot::Mutex;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use crate::sys::object::proc_path;

/// A file that is watched as long as this lives.
#[derive(Debug)]
pub(super) struct Watch {
    number: i32,
    /// How often it had been written to when the watch began.
    before: u64,
}

struct Watches {
    inotify: OwnedFd,
    /// Of each watched file: for how many, and how often it was written to. The same file has the same number.
    files: HashMap<i32, (usize, u64)>,
    /// How often something was lost, which can have been about any.
    lost: u64,
}

fn watches() -> Option<&'static Mutex<Watches>> {
    static ALL: OnceLock<Option<Mutex<Watches>>> = OnceLock::new();
    ALL.get_or_init(|| match inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK) {
        Ok(inotify) => Some(Mutex::new(Watches { inotify, files: HashMap::new(), lost: 0 })),
        Err(errno) => {
            log::debug!("nobody tells who writes into archives: {errno}");
            None
        }
    })
    .as_ref()
}

impl Watches {
    /// Takes note of what has happened.
    fn note(&mut self) -> rustix::io::Result<()> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => self.lost += 1,
                Ok(event) if event.events().contains(ReadFlags::MODIFY) => {
                    if let Some((_, writes)) = self.files.get_mut(&event.wd()) {
                        *writes += 1;
                    }
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }

    fn writes(&mut self, number: i32) -> rustix::io::Result<u64> {
        self.note()?;
        let writes = self.files.get(&number).map_or(0, |(_, writes)| *writes);
        Ok(writes + self.lost)
    }
}

impl Watch {
    /// Begins to watch a file. `None`: here nobody tells, as where too many are watched.
    pub(super) fn of(file: &File) -> Option<Watch> {
        let mut all = watches()?.lock();
        let watched = inotify::add_watch(&all.inotify, &proc_path(file.as_fd())[..], WatchFlags::MODIFY);
        let number = watched.map_err(|errno| log::debug!("an archive can't be watched: {errno}")).ok()?;
        all.files.entry(number).or_default().0 += 1;
        let mut watch = Watch { number, before: 0 };
        let before = all.writes(number);
        // Where that isn't known, dropping it gives the watch back.
        drop(all);
        watch.before = before.ok()?;
        Some(watch)
    }

    /// Tells whether somebody has written to it since. `None`: that isn't known.
    pub(super) fn is_written(&self) -> Option<bool> {
        watches()?.lock().writes(self.number).map(|now| now != self.before).ok()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(all) = watches() else { return };
        let mut all = all.lock();
        let last = all.files.get_mut(&self.number).is_some_and(|(users, _)| {
            *users -= 1;
            *users == 0
        });
        if last {
            all.files.remove(&self.number);
            if let Err(errno) = inotify::remove_watch(&all.inotify, self.number) {
                log::debug!("an archive is watched on: {errno}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_is_written_is_told_to_who_watched_then() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let watch = || Watch::of(&file.reopen().unwrap()).unwrap();
        let first = watch();
        file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        std::fs::hard_link(file.path(), file.path().with_extension("link")).unwrap();
        std::fs::remove_file(file.path().with_extension("link")).unwrap();
        assert_eq!(first.is_written(), Some(false));
        file.as_file().write_all(b"x").unwrap();
        let second = watch();
        assert_eq!((first.is_written(), second.is_written()), (Some(true), Some(false)));
        drop(first);
        file.as_file().set_len(0).unwrap();
        assert_eq!(second.is_written(), Some(true));
    }
}
