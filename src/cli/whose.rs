//! Whose snapshots are meant by what stands on the command line: a mount's, a container's, or those of an upper directory.

use std::io::ErrorKind;
use std::path::Path;

use super::Failure;
use super::store::StoreArgs;
use crate::container::{Container, ContainerError};
use crate::control::mounts::{self, Mount, NotFound};
use crate::image::error::StoreError;
use crate::image::store::Store;
use crate::union::escaped_path::EscapedPath;

/// What is called so.
pub(super) enum Whose {
    /// The mount whose mount point that is.
    Mount(Mount),
    /// A container of the store.
    Container(Store, Box<Container>),
    /// An upper directory, or nothing.
    Upper,
}

/// Finds out what a word of the command line stands for. What looks like a path is one.
///
/// # Errors
/// When it stands for two things: what would be thrown away of the wrong one doesn't come back.
pub(super) fn whose(args: &StoreArgs, named: &Path) -> Result<Whose, Failure> {
    let is_there = match named.symlink_metadata() {
        Ok(_) => true,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => false,
        Err(error) => return Err(Failure::failed(format!("{}: {error}", EscapedPath::from(named)))),
    };
    if let Some(text) = named.to_str().filter(|text| !text.contains('/') && !text.starts_with('.')) {
        match container(args, text, is_there) {
            Ok(Some(_)) if is_there => {
                return Err(Failure::usage(format!(
                    "{text}: both a container and a directory here is called so; the directory is ./{text}, and a container has an id too \
                     (unionmount ps -a)"
                )));
            }
            Ok(Some((store, container))) => return Ok(Whose::Container(store, container)),
            Ok(None) => {}
            Err(failure) if is_there => {
                return Err(Failure::failed(format!(
                    "{text}: whether a container is called so too can't be told: {}; the directory is ./{text}",
                    failure.message
                )));
            }
            Err(failure) => return Err(failure),
        }
        if !is_there {
            let text = EscapedPath::from(named);
            return Err(Failure::failed(format!(
                "{text}: no container, no mount and no directory is called so; unionmount ps -a and unionmount status list what there is"
            )));
        }
    }
    let mount = mount_of(named)?.filter(|(_, below)| below.is_empty());
    Ok(mount.map_or(Whose::Upper, |(mount, _)| Whose::Mount(mount)))
}

/// `is_there`: a directory is called so, too.
fn container(
    args: &StoreArgs,
    text: &str,
    is_there: bool,
) -> Result<Option<(Store, Box<Container>)>, Failure> {
    let store = match args.existing() {
        // In a store that he may not look into nobody has a container that he could mean.
        Err(StoreError::Io { path, source, .. })
            if is_there && source.kind() == ErrorKind::PermissionDenied =>
        {
            log::info!("{}: {source}", EscapedPath::from(path.as_path()));
            return Ok(None);
        }
        store => store?,
    };
    let Some(store) = store else { return Ok(None) };
    match Container::find(&store, text) {
        Ok(container) => Ok(Some((store, Box::new(container)))),
        Err(ContainerError::Unknown(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns the mount that a path is in, and the path in it. `None`: it is in none.
///
/// # Errors
/// When that can't be told.
pub(super) fn mount_of(path: &Path) -> Result<Option<(Mount, Vec<u8>)>, Failure> {
    match mounts::of(path) {
        Ok(found) => Ok(Some(found)),
        Err(NotFound::Elsewhere(_)) => Ok(None),
        Err(error) => Err(Failure::failed(error)),
    }
}
