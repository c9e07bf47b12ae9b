//! Which tree a name stands for, and how it is opened: a container as it runs, as it is mounted, or as it lies; an image; a mount.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::scope::Scope;
use crate::container::called::{Called, called};
use crate::container::detached::Written;
use crate::container::error::{ContainerError, Result};
use crate::container::lowers::image_as_it_lies;
use crate::container::record::Container;
use crate::container::{detached, mounting, namespace as of_users};
use crate::control::mounts;
use crate::image::store::{Image, Store};
use crate::sys::namespace;

/// A tree, open.
#[derive(Debug)]
pub struct Root {
    /// How paths are looked up in it; taken away before what it is of is waited for.
    scope: Option<Scope>,
    /// The upper of a container that is mounted for this alone.
    upper: Option<PathBuf>,
    /// It can't be changed.
    read_only: Option<String>,
}

/// A tree by its name.
#[derive(Debug)]
pub enum Named {
    /// A container's.
    Container(Box<Container>),
    /// An image's.
    Image(Box<Image>),
    /// That of a mount, by its mount point.
    Mount(PathBuf),
}

/// Finds what a name stands for: a container, an image, or else a mount point.
///
/// # Errors
/// When there is nothing of that name.
pub fn find(store: Option<&Store>, name: &str) -> Result<Named> {
    let mount = || {
        let (mount, below) = mounts::of(Path::new(name)).ok()?;
        below.is_empty().then_some(Named::Mount(mount.point))
    };
    let Some(store) = store else { return mount().ok_or_else(|| unknown(name)) };
    match called(store, name, true) {
        Ok(Called::Container(container)) => Ok(Named::Container(container)),
        Ok(Called::Image(image)) => Ok(Named::Image(image)),
        Err(ContainerError::Unknown(_)) => mount().ok_or_else(|| unknown(name)),
        Err(error) => Err(error),
    }
}

fn unknown(name: &str) -> ContainerError {
    ContainerError::Refused(format!(
        "no container, no image and no mount is called {name:?} (unionmount ps -a, images and status list what there is); a path of the host with a colon is written ./{name}:…"
    ))
}

impl Root {
    /// Opens the tree. An ordinary user enters the namespaces of the container's root, so that paths of the host are to be looked
    /// up before.
    ///
    /// # Errors
    /// When its layers can't be read, or are mounted where this process doesn't see it.
    pub fn open(store: Option<&Store>, named: &Named, shown: &str) -> Result<Root> {
        let of = |fd: OwnedFd, upper: Option<PathBuf>, read_only: Option<String>| {
            let scope = Scope::inside(fd, shown);
            let scope = if matches!(named, Named::Container(_)) { scope.with_devices() } else { scope };
            Root { scope: Some(scope), upper, read_only }
        };
        let store = || store.ok_or_else(|| unknown(shown));
        match named {
            Named::Mount(point) => Ok(of(open_dir(point)?, None, None)),
            Named::Image(image) => {
                of_users::enter()?;
                let layers = image_as_it_lies(store()?, image)?;
                let hold = layers.tree_dirs();
                let fd = detached::open(&layers.paths, None, &image.id.short(), &hold)?;
                let why = format!(
                    "{shown} is an image, which never changes; make a container of it, copy into that, and commit it"
                );
                Ok(of(fd, None, Some(why)))
            }
            Named::Container(container) => {
                if let Some(fd) = open_seen(container)? {
                    return Ok(of(fd, None, None));
                }
                let lowers = container.lowers(store()?)?;
                let (upper, work) = (container.upper(), container.work());
                // Its limits hold here as well.
                let options = container.record.settings.mount_options();
                let written = Written { upper: &upper, work: &work, options: &options };
                let fd = detached::open(&lowers.paths, Some(written), container.short_id(), &[])?;
                Ok(of(fd, Some(upper), None))
            }
        }
    }

    /// Returns how paths are looked up in it.
    ///
    /// # Errors
    /// When it has been closed.
    pub fn scope(&self) -> Result<&Scope> {
        self.scope.as_ref().ok_or_else(|| ContainerError::Refused("the tree has been closed".into()))
    }

    /// Refuses what can't be changed.
    ///
    /// # Errors
    /// The reason.
    pub fn check_writable(&self) -> Result<()> {
        match &self.read_only {
            Some(why) => Err(ContainerError::Refused(why.clone())),
            None => Ok(()),
        }
    }

    /// Closes it, and waits until what was written is in its layer. All that was opened in it must be closed.
    ///
    /// # Errors
    /// When its daemon doesn't end.
    pub fn close(mut self) -> Result<()> {
        self.scope = None;
        let Some(upper) = &self.upper else { return Ok(()) };
        match mounting::wait_for_end(upper, mounting::PATIENCE)? {
            true => Ok(()),
            false => Err(ContainerError::Refused(format!(
                "{}: its daemon doesn't end; what was copied is there, and comes to the disk when it does",
                upper.display()
            ))),
        }
    }
}

/// Opens the tree of a container as what runs in it sees it, volumes included, or where it is mounted. `None`: neither.
fn open_seen(container: &Container) -> Result<Option<OwnedFd>> {
    let is_root = rustix::process::geteuid().is_root();
    match container.runner()? {
        Some(pid) if !is_root && namespace::is_elsewhere(pid) => namespace::join_namespaces_of(pid)
            .map_err(ContainerError::io("enter the namespaces of it", format!("/proc/{pid}")))?,
        _ => of_users::enter()?,
    }
    if let Some(init) = container.init() {
        let root = format!("/proc/{}/root", init.as_raw_nonzero());
        match open_dir(Path::new(&root)) {
            // Its number may be another's by now.
            Ok(fd) if container.init() == Some(init) => return Ok(Some(fd)),
            Ok(_) => {}
            // It has ended meanwhile.
            Err(error) => log::info!("{error}"),
        }
    }
    for mount in mounting::mounts_of(container.short_id())? {
        // A bind mount may show a part of it.
        if mount.root == Path::new("/")
            && let Some(root) = mounting::open_root(&mount)?
        {
            return Ok(Some(root.into()));
        }
    }
    Ok(None)
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(ContainerError::io("open it", path))
}
