//! Containers go.
//!
//! The record goes first, and with it the container: whoever takes the record away removes the rest, and tells what can't be
//! removed of it. Who finds the record gone leaves the rest to that one. What is left of an interrupted removal is no
//! container; `prune` takes it away.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::time::Duration;

use rustix::io::Errno;

use super::error::{ContainerError, Result};
use super::mounting;
use super::record::{Container, ContainerRecord, Unreadable};
use super::state::ContainerState;
use crate::image::digest::Digest;
use crate::image::store::containers::linked_image;
use crate::image::store::{SHORTEST_ID, Store};
use crate::sys::remove;

/// How long a mount is waited for that something else may hold.
const HELD_ELSEWHERE: Duration = Duration::from_secs(2);

/// What is done with a container that somebody reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WhenRead {
    /// It stays.
    Refuse,
    /// Its record goes, and the rest is left to `prune`.
    Leave,
}

impl Container {
    /// Removes the container whose id begins with `text` and whose record is damaged; false when there is none or several. `forget`: see
    /// [`Container::remove`].
    ///
    /// # Errors
    /// When it can't be ended, unmounted or removed.
    pub fn remove_broken(store: &Store, text: &str, forget: bool) -> Result<bool> {
        let prefix = text.to_ascii_lowercase();
        let (_, mut broken) = Container::all_and_broken(store)?;
        broken.retain(|one| prefix.len() >= SHORTEST_ID && one.id().starts_with(&prefix));
        // What couldn't be read is not damaged.
        let [Unreadable { dir, error, .. }] = broken.as_slice() else { return Ok(false) };
        if !error.is_damage() {
            return Ok(false);
        }
        // Its id is all that is needed of the record.
        let record = ContainerRecord::derived(dir, linked_image(dir).unwrap_or_else(|| Digest::of(b"")));
        Container { dir: dir.clone(), record }.remove(true, forget).map(|()| true)
    }

    /// Removes it, with all that it changed. `force`: ends what runs in it and unmounts it first. `forget`: branches of it that aren't
    /// found, or can't be read, are gone for good.
    ///
    /// # Errors
    /// When it runs or is mounted, somebody reads it, a branch may lie on its snapshots, or something of it can't be removed.
    pub fn remove(&self, force: bool, forget: bool) -> Result<()> {
        // Before anything is ended for it.
        self.bears_nothing(forget)?;
        if let Some(lock) = self.lock_record()?
            && self.unread(&lock)?.is_none()
        {
            return Err(self.is_read());
        }
        match self.end(force) {
            // Run with --rm, it removes itself at the same time.
            Err(_) if !self.exists() => Ok(()),
            ended => ended.and_then(|()| self.delete(forget, WhenRead::Refuse)),
        }
    }

    /// Removes it after its command has ended and its mount was detached. What has files open in it keeps them, and the
    /// directory, until `prune`, and so does who reads it; the container has gone all the same.
    ///
    /// # Errors
    /// When something of it can't be removed.
    pub fn discard(&self) -> Result<()> {
        match mounting::wait_for_end(&self.upper(), HELD_ELSEWHERE) {
            Ok(true) => self.delete(false, WhenRead::Leave),
            Ok(false) => {
                log::info!("{}: in use; `unionmount prune` removes it later", self.dir.display());
                // What it lies on is in use as well, and lets it go when the rest of it goes.
                self.delete_record(false).map(|_| ())
            }
            // Removed by rm -f meanwhile.
            Err(_) if !self.exists() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn is_read(&self) -> ContainerError {
        ContainerError::Refused(format!(
            "container {} is being read by another command (commit, diff or layers), or its snapshots are being changed; try again when \
             that has ended",
            self.shown_name()
        ))
    }

    /// Returns whether nothing runs in it and it is mounted nowhere, not on a mount point that somebody chose either.
    ///
    /// # Errors
    /// When that can't be found out.
    pub fn is_idle(&self) -> Result<bool> {
        Ok(self.state()? != ContainerState::Running
            && !mounting::is_mounted(&self.merged())?
            // A mount elsewhere holds the upper's lock.
            && mounting::wait_for_end(&self.upper(), Duration::ZERO)?)
    }

    /// Tells whether it is still there.
    pub(super) fn exists(&self) -> bool {
        // Where that can't be seen, it may be.
        self.dir.join("config.json").try_exists().unwrap_or(true)
    }

    /// Sees to it that nothing runs in it and that it is mounted nowhere.
    fn end(&self, force: bool) -> Result<()> {
        if self.state()? == ContainerState::Running {
            if !force {
                return Err(ContainerError::Refused(format!(
                    "container {} is running; end it first, or use rm -f",
                    self.shown_name()
                )));
            }
            self.kill()?;
        }
        let state = self.dir.join("runtime");
        if force && state.exists() {
            // `run` was killed before it could end its runtime, which has cgroups.
            super::runtime::forget(self);
        }
        let merged = self.merged();
        if mounting::is_mounted(&merged)? {
            if !force {
                return Err(ContainerError::Refused(format!(
                    "container {} is mounted on {}; unmount it, or use rm -f",
                    self.shown_name(),
                    merged.display()
                )));
            }
            mounting::detach(&merged)?;
        }
        // A mount elsewhere holds the upper's lock.
        if !mounting::wait_for_end(&self.upper(), mounting::PATIENCE)? {
            return Err(ContainerError::Refused(format!(
                "container {} is still mounted somewhere; unmount it first",
                self.shown_name()
            )));
        }
        Ok(())
    }

    /// Kills what runs in it, and waits until `run` has ended.
    fn kill(&self) -> Result<()> {
        let path = self.dir.join("lock");
        if let Some(init) = self.init() {
            match rustix::process::kill_process(init, rustix::process::Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(ContainerError::io("kill what runs in it", &self.dir)(errno)),
            }
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while path.exists() && (self.runner()?.is_some() || self.init().is_some()) {
            if std::time::Instant::now() > deadline {
                return Err(ContainerError::Refused(format!(
                    "container {} does not end; kill its processes",
                    self.shown_name()
                )));
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Ok(())
    }

    /// Takes the record away, durably: a container that came back after a power failure would lack its files or its image.
    /// False when another process has. `forget`: see [`Container::bears_nothing`].
    pub(super) fn delete_record(&self, forget: bool) -> Result<bool> {
        // Open before: whoever prunes at the same time removes the directory once the record has gone.
        let Some(dir) = self.lock_record()? else { return Ok(false) };
        self.delete_record_locked(&dir, forget)
    }

    fn delete_record_locked(&self, dir: &File, forget: bool) -> Result<bool> {
        self.bears_nothing(forget)?;
        let record = self.dir.join("config.json");
        match fs::remove_file(&record) {
            Ok(()) => dir.sync_all().map(|()| true).map_err(ContainerError::io("sync it", &self.dir)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(ContainerError::io("remove it", &record)(error)),
        }
    }

    /// Takes away what a failed making has left. The record, if it was written, goes first.
    pub(super) fn unmake(&self) -> Result<()> {
        self.delete_record(true)?;
        self.let_go();
        self.sweep()
    }

    fn delete(&self, forget: bool, when_read: WhenRead) -> Result<()> {
        let Some(dir) = self.lock_record()? else { return Ok(()) };
        // Held until the rest of it has gone.
        let unread = self.unread(&dir)?;
        if unread.is_none() && when_read == WhenRead::Refuse {
            return Err(self.is_read());
        }
        if !self.delete_record_locked(&dir, forget)? {
            return Ok(());
        }
        drop(dir);
        if unread.is_none() {
            log::info!("{}: is being read; `unionmount prune` removes it later", self.dir.display());
            return Ok(());
        }
        self.let_go();
        self.sweep()
    }

    /// Removes the directory, of which nobody else knows any more but `prune`.
    fn sweep(&self) -> Result<()> {
        let mut removed = remove::tree(&self.dir);
        if let Err(left) = &removed
            && matches!(left.errno, Errno::PERM | Errno::ACCESS)
            && !rustix::process::geteuid().is_root()
        {
            // In volumes, an ordinary user's containers leave files of the user's subordinate ids.
            super::namespace::enter()?;
            removed = remove::tree(&self.dir);
        }
        match removed {
            // `prune` is at it as well.
            Err(left) if left.errno != Errno::NOENT => {
                Err(ContainerError::io("remove it", left.name)(left.errno))
            }
            _ => Ok(()),
        }
    }
}
