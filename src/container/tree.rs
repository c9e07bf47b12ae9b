//! A container's merged tree, for who reads it: where it is mounted, or by a mount for the while.

use std::fs::File;

use super::error::{ContainerError, Result};
use super::mounting::{self, Rights};
use super::namespace as of_users;
use super::record::Container;
use crate::image::store::Store;
use crate::sys::namespace;

/// Calls `read` with the root of the container's tree. An ordinary user sees it as the container's root does.
///
/// # Errors
/// When it can't be mounted, and those of `read`.
pub fn with_tree<T>(
    store: &Store,
    container: &Container,
    read: impl FnOnce(&File) -> Result<T>,
) -> Result<T> {
    let is_root = rustix::process::geteuid().is_root();
    match container.runner()? {
        Some(pid) if !is_root && namespace::is_elsewhere(pid) => namespace::join_namespaces_of(pid)
            .map_err(ContainerError::io("enter the namespaces of it", format!("/proc/{pid}")))?,
        _ => of_users::enter()?,
    }
    let merged = container.merged();
    let was_there = mounting::is_mounted(&merged)?;
    if !was_there {
        container.mount(store, &merged, Rights::default())?;
    }
    let done =
        File::open(&merged).map_err(ContainerError::io("open it", &merged)).and_then(|root| read(&root));
    if was_there {
        return done;
    }
    // The mount goes in every case; of two errors the first is told.
    let gone = mounting::detach(&merged);
    let done = done?;
    gone.map(|()| done)
}
