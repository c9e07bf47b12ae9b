//! Snapshots of containers: by the mount that a container has, or of its upper as it lies; and containers that branch off others.
//!
//! What is frozen lies beside the upper, and below it the layers of the image, as for every container. A branch has
//! the same settings, and lies on layers of the other's: so that one stays as long as the branch does.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{ContainerError, Result};
use super::lowers::Lowers;
use super::mounting;
use super::namespace as of_users;
use super::record::Container;
use crate::control::mounts::Mount;
use crate::image::error::StoreError;
use crate::image::store::Store;
use crate::sys::namespace;
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::below::{self, Below};
use crate::union::frozen::keeping::{self, Kept, Unread};
use crate::union::frozen::removal::{self, Branch};
use crate::union::frozen::snapshot::Target;
use crate::union::frozen::unfit::SnapshotError;

/// How the upper of a container is reached.
#[derive(Debug)]
pub enum Reached {
    /// By its mount.
    Mounted(Mount),
    /// As it lies. The layers below it stay as long as this does.
    Lying(Box<Target>, Lowers),
}

impl Container {
    /// Finds out how snapshots of it are taken. An ordinary user enters the namespaces of its root.
    ///
    /// # Errors
    /// When the layers can't be read, or it can have no snapshots.
    pub fn reach(&self, store: &Store) -> Result<Reached> {
        if self.record.settings.size.is_some() || self.record.settings.inodes.is_some() {
            return Err(self.refused(
                "it has a limit of its own (--size, --inodes), which would not count what is frozen; unionmount commit keeps its state",
            ));
        }
        match self.runner()? {
            Some(pid) if !rustix::process::geteuid().is_root() && namespace::is_elsewhere(pid) => {
                namespace::join_namespaces_of(pid)
                    .map_err(ContainerError::io("enter the namespaces of it", format!("/proc/{pid}")))?;
            }
            _ => of_users::enter()?,
        }
        // A bind mount may show a part of it.
        let whole = |mount: &Mount| mount.root == Path::new("/");
        if let Some(mount) = mounting::mounts_of(self.short_id())?.into_iter().find(whole) {
            return Ok(Reached::Mounted(mount));
        }
        let lowers = self.lowers(store)?;
        let target = Target {
            upper: self.upper(),
            work: Some(self.work()),
            lowers: lowers.sources()?,
            is_containers: true,
            ..Target::default()
        };
        Ok(Reached::Lying(Box::new(target), lowers))
    }

    /// Returns what lies frozen below its upper, its own and of what it branches off. `None`: nothing.
    ///
    /// # Errors
    /// When that isn't found.
    pub fn frozen(&self) -> Result<Option<Below>> {
        below::of_path(&self.upper()).map_err(|error| match error {
            SnapshotError::Later { path, what } => StoreError::Later { path, what }.into(),
            SnapshotError::Io { what, path, source } if source.kind() != ErrorKind::NotFound => {
                ContainerError::io(what, path)(source)
            }
            error => self.refused(&error.to_string()),
        })
    }

    /// Returns what lies frozen below its upper, and the layers of its image.
    ///
    /// # Errors
    /// When one isn't found.
    pub fn all_below(&self, store: &Store) -> Result<Lowers> {
        let mut lowers = self.lowers(store)?;
        if let Some(below) = self.frozen()? {
            lowers.paths.splice(0..0, below.layers);
        }
        Ok(lowers)
    }

    /// Returns the directories in which it keeps what it changed: its upper, and what was frozen of it.
    pub(super) fn own_layers(&self) -> Result<Vec<PathBuf>> {
        let frozen = removal::own_places(&self.upper()).map_err(|error| self.refused(&error.to_string()))?;
        Ok(std::iter::once(self.upper()).chain(frozen).collect())
    }

    /// Refuses to have it removed while another lies on layers of it. With the lock of its record, which whoever branches it off has.
    /// `forget`: branches that aren't found were not moved, but are gone for good, and so are those whose records can't be read.
    pub(super) fn bears_nothing(&self, forget: bool) -> Result<()> {
        let frozen = removal::place_of(&self.upper());
        let io = |error| ContainerError::io("look at it", &frozen)(error);
        if !frozen.try_exists().map_err(io)? {
            return Ok(());
        }
        let real = std::fs::canonicalize(&frozen).map_err(io)?;
        self.no_container_lies_on(&real, forget)?;
        // A mount of it may have been branched too, to wherever.
        let branches = match removal::standing(&self.upper()) {
            Ok(branches) => branches,
            Err(error) if forget => {
                log::warn!("{error}; that branches of it may be written down there is left aside");
                return Ok(());
            }
            Err(error) => return Err(self.cannot_tell(&error)),
        };
        branches.iter().try_for_each(|branch| self.does_not_bear(branch, forget))
    }

    /// Looks at all others of its store. `frozen`: where its frozen layers lie.
    fn no_container_lies_on(&self, frozen: &Path, forget: bool) -> Result<()> {
        let Some(all) = self.dir.parent() else { return Ok(()) };
        let io = |error| ContainerError::io("list it", all)(error);
        for entry in std::fs::read_dir(all).map_err(io)? {
            let dir = entry.map_err(io)?.path();
            let record = dir.join("config.json");
            let is_one = record.try_exists().map_err(ContainerError::io("look at it", &record));
            if dir == self.dir || !is_one? {
                continue;
            }
            match below::at(&dir.join("diff")) {
                Ok(None) => {}
                Ok(Some(below)) => {
                    for layer in below.layers {
                        let layer = std::fs::canonicalize(&layer)
                            .map_err(ContainerError::io("look at it", &layer))?;
                        if layer.starts_with(frozen) {
                            return Err(self.is_branched_by(&dir));
                        }
                    }
                }
                Err(error) if forget => log::warn!("{error}; whether it lies there is left aside"),
                Err(error) => return Err(self.cannot_tell(&error)),
            }
        }
        Ok(())
    }

    fn is_branched_by(&self, dir: &Path) -> ContainerError {
        let shown = match Container::load(dir) {
            Ok(Some(other)) => other.shown_name().to_owned(),
            // By its id it is found all the same.
            Ok(None) | Err(_) => {
                EscapedPath::from(Path::new(dir.file_name().unwrap_or_default())).to_string()
            }
        };
        self.refused(&format!("{shown} branches off it, and lies on its snapshots; remove {shown} first"))
    }

    /// Refuses where a branch may lie on its snapshots.
    fn does_not_bear(&self, branch: &Branch, forget: bool) -> Result<()> {
        let path = branch.upper();
        let upper = EscapedPath::from(path.as_path());
        if branch.is_left {
            // Of a container that has gone; who makes one has the lock.
            let is_used = branch.is_there && !mounting::wait_for_end(&path, Duration::ZERO)?;
            return match is_used {
                true => Err(self.refused(&format!(
                    "{upper} lies on its snapshots, of a container that has gone, and is still in use; end what uses it first"
                ))),
                false => Ok(()),
            };
        }
        match &branch.unclear {
            Some(_) if forget => Ok(()),
            Some(why) => Err(self.cannot_tell(why)),
            None if branch.is_there => Err(self.refused(&format!(
                "the branch {upper} lies on its snapshots; remove {upper} first, with what is beside it"
            ))),
            None if forget => Ok(()),
            None => Err(self.refused(&format!(
                "the branch {upper} lay on its snapshots, and isn't there now; if it is gone for good and was not moved: \
                 --forget-branches"
            ))),
        }
    }

    fn cannot_tell(&self, why: &dyn std::fmt::Display) -> ContainerError {
        self.refused(&format!(
            "whether a branch lies on its snapshots can't be told: {why}; if what is there is given up for good: --forget-branches"
        ))
    }

    /// Lets the container that it branches off forget it, now that it goes.
    pub(super) fn let_go(&self) {
        if let Err(error) = removal::let_go(&self.upper()) {
            log::warn!("{error}; so what it branches off has it written down still");
        }
    }

    /// Returns the container whose upper lies at a path, of whatever store. `None`: it is no container's.
    ///
    /// # Errors
    /// When that can't be told.
    pub fn of_upper(upper: &Path) -> Result<Option<Container>> {
        removal::container_of(upper).map_or(Ok(None), Container::load)
    }

    /// Keeps its upper, what is frozen of it and what that lies on from being taken away, as long as what is returned is there.
    ///
    /// # Errors
    /// When it has gone, or another is changing its snapshots.
    pub fn keep(&self) -> Result<Kept> {
        let gone = || ContainerError::Unknown(self.shown_name().to_owned());
        let refused = |error: SnapshotError| self.refused(&error.to_string());
        let mut kept = Kept::default();
        let lock = self.lock_record()?.ok_or_else(gone)?;
        if !self.exists() {
            return Err(gone());
        }
        kept.add(lock.as_fd(), &self.dir).map_err(refused)?;
        drop(lock);
        kept.join(keeping::keep(&self.upper()).map_err(refused)?);
        Ok(kept)
    }

    /// Finds out that nobody reads it who keeps it, nor a branch of it, and that nobody begins to as long as what is returned is there.
    /// With the lock of its record. `None`: somebody does.
    pub(super) fn unread(&self, lock: &File) -> Result<Option<Unread>> {
        let unread = keeping::unread(lock.as_fd(), &self.upper(), keeping::READING);
        unread.map_err(|error| self.refused(&error.to_string()))
    }

    fn refused(&self, why: &str) -> ContainerError {
        ContainerError::Refused(format!("container {}: {why}", self.shown_name()))
    }
}

impl Container {
    /// Makes a container that goes on from what another shows, with the same image and settings. `make` makes its upper, a branch of the
    /// other's.
    ///
    /// # Errors
    /// When the name is taken or malformed, the other has gone, or nothing can be written; and those of `make`.
    pub fn branch<E: From<ContainerError>>(
        store: &Store,
        of: &Container,
        name: &str,
        make: impl FnOnce(&Path) -> std::result::Result<(), E>,
    ) -> std::result::Result<Container, E> {
        let image = store.resolve(&of.record.image.to_string()).map_err(ContainerError::from)?;
        // Who removes it waits.
        let gone = || ContainerError::Unknown(of.shown_name().to_owned());
        let _kept = of.lock_record()?.filter(|_| of.exists()).ok_or_else(gone)?;
        let record = of.record.again(name)?;
        Container::make(store, &image, record, |container| {
            container.make_places(&image)?;
            make(&container.upper())?;
            let trees = container.image_lowers(store, &image)?.sources()?;
            Ok(container.make_targets(&image, &trees)?)
        })
    }
}
