//! Snapshots of containers: by the mount that a container has, or of its upper as it lies; and containers that branch off others.
//!
//! What is frozen lies beside the upper, in `.diff.layers`, and below it the layers of the image, as for every container. A branch has
//! the same settings, and lies on layers of the other's: so that one stays as long as the branch does.

use std::path::{Path, PathBuf};

use super::error::{ContainerError, Result};
use super::lowers::Lowers;
use super::mounting;
use super::namespace as of_users;
use super::record::Container;
use crate::control::mounts::Mount;
use crate::image::store::Store;
use crate::sys::namespace;
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::below::{self, Below};
use crate::union::frozen::removal::{self, Branch};
use crate::union::frozen::snapshot::Target;

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
        below::of_path(&self.upper()).map_err(|error| self.refused(&error.to_string()))
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
    /// `gone`: branches that aren't found were not moved, but are gone for good.
    pub(super) fn bears_nothing(&self, gone: bool) -> Result<()> {
        let frozen = self.dir.join(".diff.layers");
        if !frozen.try_exists().map_err(ContainerError::io("look at it", &frozen))? {
            return Ok(());
        }
        let real = std::fs::canonicalize(&frozen).map_err(ContainerError::io("look at it", &frozen))?;
        let Some(all) = self.dir.parent() else { return Ok(()) };
        let io = |error| ContainerError::io("list it", all)(error);
        for entry in std::fs::read_dir(all).map_err(io)? {
            let dir = entry.map_err(io)?.path();
            if dir == self.dir || !dir.join("config.json").exists() {
                continue;
            }
            // What can't be read may lie there.
            let lies_on = match below::of_path(&dir.join("diff")) {
                Ok(None) => false,
                Ok(Some(below)) => below
                    .layers
                    .iter()
                    .any(|layer| std::fs::canonicalize(layer).is_ok_and(|layer| layer.starts_with(&real))),
                Err(error) => {
                    return Err(self
                        .refused(&format!("whether another lies on its snapshots can't be told: {error}")));
                }
            };
            if lies_on {
                let shown = Container::load(&dir)?.map_or_else(
                    || EscapedPath::from(dir.as_path()).to_string(),
                    |other| other.shown_name().to_owned(),
                );
                return Err(self.refused(&format!(
                    "{shown} branches off it, and lies on its snapshots; remove {shown} first"
                )));
            }
        }
        // A mount of it may have been branched too, to wherever.
        let branches = removal::standing(&self.upper()).map_err(|error| self.refused(&error.to_string()))?;
        // One of a container that was never finished, and of which the rest is a leftover.
        let is_left = |upper: &Path| {
            upper
                .parent()
                .is_some_and(|dir| dir.parent() == self.dir.parent() && !dir.join("config.json").exists())
        };
        let bears = |branch: &&Branch| !is_left(&branch.upper()) && (branch.is_there || !gone);
        let Some(branch) = branches.iter().find(bears) else { return Ok(()) };
        let upper = EscapedPath::from(branch.upper().as_path());
        Err(self.refused(&match branch.is_there {
            true => {
                format!("the branch {upper} lies on its snapshots; remove {upper} first, with what is beside it")
            }
            false => format!(
                "the branch {upper} lay on its snapshots, and isn't there now; if it is gone for good and was not moved: --force"
            ),
        }))
    }

    /// Lets the container that it branches off forget it, now that it goes.
    pub(super) fn let_go(&self) {
        if !self.dir.join(".diff.layers").exists() {
            return;
        }
        if let Err(error) = removal::let_go(&self.upper()) {
            log::info!("{error}; its snapshot is removed with --force");
        }
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
        let _kept = of.lock_record()?.filter(|_| of.dir.join("config.json").exists()).ok_or_else(gone)?;
        let record = of.record.again(name)?;
        Container::make(store, &image, record, |container| {
            container.make_places(&image)?;
            make(&container.upper())?;
            let trees = container.image_lowers(store, &image)?.sources()?;
            Ok(container.make_targets(&image, &trees)?)
        })
    }
}
