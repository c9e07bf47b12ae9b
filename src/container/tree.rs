//! A container's merged tree, for who reads it: through its mount if it has one, and without any otherwise.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

use super::error::{ContainerError, Result};
use super::lowers::Lowers;
use super::mounting;
use super::namespace as of_users;
use super::record::Container;
use crate::control::mounts::Mount;
use crate::image::layer::{Ownership, WriteOptions, write_merged, write_tar};
use crate::image::store::Store;
use crate::sys::namespace;
use crate::union::stack::layer::{Stack, StackOptions};
use crate::union::{self, Union};

/// A container's tree, open. It stays what it is, whatever is mounted or unmounted meanwhile.
#[derive(Debug)]
pub struct Tree {
    id: String,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// The root of a mount.
    Mounted(File),
    /// The layers. Their lock goes with this process, whatever ends it, and nobody finds a mount that isn't his.
    Layers { union: Box<Union>, _lowers: Lowers },
}

impl Tree {
    /// Opens the tree of a container. An ordinary user sees it as the container's root does, whose namespaces this process
    /// enters.
    ///
    /// # Errors
    /// When its layers can't be read, or are mounted where this process doesn't see it.
    pub fn open(store: &Store, container: &Container) -> Result<Tree> {
        let is_root = rustix::process::geteuid().is_root();
        match container.runner()? {
            Some(pid) if !is_root && namespace::is_elsewhere(pid) => namespace::join_namespaces_of(pid)
                .map_err(ContainerError::io("enter the namespaces of it", format!("/proc/{pid}")))?,
            _ => of_users::enter()?,
        }
        let id = container.short_id().to_owned();
        // A bind mount may show a part of it.
        let whole = |mount: &Mount| mount.root == Path::new("/");
        for mount in mounting::mounts_of(&id)?.into_iter().filter(whole) {
            if let Some(root) = mounting::open_root(&mount)? {
                return Ok(Tree { id, way: Way::Mounted(root) });
            }
        }
        let (union, lowers) = open_layers(store, container)?;
        Ok(Tree { id, way: Way::Layers { union: Box::new(union), _lowers: lowers } })
    }

    /// Writes the whole of it as a tar.
    ///
    /// # Errors
    /// Those of reading it, with the path, and of writing.
    pub fn write_tar(&self, out: impl Write) -> Result<()> {
        let written = match &self.way {
            Way::Mounted(root) => {
                let options = WriteOptions { ownership: Ownership::Real, lowers: &[], root: true };
                write_tar(root.as_fd(), out, &options)
            }
            Way::Layers { union, .. } => write_merged(union, out),
        };
        written.map(drop).map_err(|source| ContainerError::Layer { id: self.id.clone(), source })
    }
}

/// Opens a container that nobody has mounted, to be changed. An ordinary user enters the namespaces of its root.
///
/// # Errors
/// As those of [`Tree::open`], and when it is mounted.
pub fn open_to_change(store: &Store, container: &Container) -> Result<(Union, Lowers)> {
    of_users::enter()?;
    open_layers(store, container)
}

/// Opens the layers of a container that nobody has mounted; their lock goes with what is returned.
///
/// # Errors
/// When they can't be read, or are mounted.
fn open_layers(store: &Store, container: &Container) -> Result<(Union, Lowers)> {
    let lowers = container.lowers(store)?;
    let stack = StackOptions {
        lowers: lowers.sources()?,
        upper: Some(container.upper()),
        work: Some(container.work()),
        ..StackOptions::default()
    };
    let refused = |error: &dyn std::fmt::Display| {
        ContainerError::Refused(format!("container {}: {error}", container.shown_name()))
    };
    let stack = Stack::open(&stack).map_err(|error| refused(&error))?;
    let union = Union::new(stack, union::Limits::of_process()).map_err(|error| refused(&error))?;
    Ok((union, lowers))
}
