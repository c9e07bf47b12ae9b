//! What a container does: its lock and its first process tell.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};

use rustix::process::Pid;

use super::error::{ContainerError, Result};
use super::record::Container;
use crate::sys::flock::{Access, try_lock};
use crate::sys::mountinfo::{Entry, Table};
use crate::union::lookup::usage::{self, Budget};

/// What a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    /// Made and never run.
    Created,
    /// A command runs in it.
    Running,
    /// The command has ended with this status.
    Exited(i32),
}

impl Container {
    /// Returns what it does now.
    ///
    /// # Errors
    /// When its lock can't be asked.
    pub fn state(&self) -> Result<ContainerState> {
        if self.runner()?.is_some() || self.init().is_some() {
            return Ok(ContainerState::Running);
        }
        Ok(self.record.exit_code.map_or(ContainerState::Created, ContainerState::Exited))
    }

    /// Returns the process that runs it.
    ///
    /// # Errors
    /// When its lock can't be asked.
    pub fn runner(&self) -> Result<Option<i32>> {
        let path = self.dir.join("lock");
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ContainerError::io("open it", &path)(error)),
        };
        match try_lock(&file, Access::Shared) {
            Ok(true) => Ok(None),
            Ok(false) => {
                let mut text = String::new();
                file.read_to_string(&mut text).map_err(ContainerError::io("read it", &path))?;
                Ok(Some(text.trim().parse().unwrap_or(0)))
            }
            Err(errno) => Err(ContainerError::io("lock it", &path)(errno)),
        }
    }

    /// Takes the lock that says "it runs".
    ///
    /// # Errors
    /// When somebody else has it.
    pub fn lock(&self) -> Result<File> {
        let path = self.dir.join("lock");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(ContainerError::io("open it", &path))?;
        match try_lock(&file, Access::Exclusive) {
            Ok(true) => {}
            Ok(false) => {
                return Err(ContainerError::Refused(format!("container {} is running", self.shown_name())));
            }
            Err(errno) => return Err(ContainerError::io("lock it", &path)(errno)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| write!(file, "{}", std::process::id()))
            .map_err(ContainerError::io("write", &path))?;
        Ok(file)
    }

    /// Returns when the run began that goes on, as RFC 3339 tells times.
    pub fn running_since(&self) -> Option<String> {
        let locked = fs::metadata(self.dir.join("lock")).ok()?.modified().ok()?;
        jiff::Timestamp::try_from(locked).ok().map(|time| time.to_string())
    }

    /// Returns the bytes of the files that it changed or made, with what was frozen of them, as far as this user may read its layers.
    ///
    /// # Errors
    /// When its layer can't be opened.
    pub fn changed_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for layer in self.own_layers()? {
            match usage::measure(&layer, None, Budget::unlimited(), &mut |_| ()) {
                Some(usage) => bytes += usage.bytes,
                None => return Err(ContainerError::Refused(format!("{}: cannot be read", layer.display()))),
            }
        }
        Ok(bytes)
    }

    /// Returns the first process in it, as its runtime noted it.
    pub fn init(&self) -> Option<Pid> {
        let state = self.dir.join("runtime").join(&self.record.id);
        let pid = ["state.json", "status"].iter().find_map(|name| {
            let text = fs::read(state.join(name)).ok()?;
            let value: serde_json::Value = serde_json::from_slice(&text).ok()?;
            // runc's and youki's word, and crun's.
            i32::try_from(value.get("init_process_pid").or(value.get("pid"))?.as_i64()?).ok()
        })?;
        // The number may be another process's by now: this container's has its mount as root.
        let init = Pid::from_raw(pid)?;
        let source = format!("unionmount-{}", self.short_id());
        let mounts = Table::of(init).ok()?;
        // Every process of the host that sees where it is mounted has that among its mounts.
        let is_root = |mount: Entry<'_>| &*mount.point == b"/" && &*mount.source == source.as_bytes();
        mounts.entries().any(is_root).then_some(init)
    }
}
