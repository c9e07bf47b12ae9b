//! Whose snapshots are meant by what stands on the command line: a mount's, a container's, or those of an upper directory.

use std::path::Path;

use super::Failure;
use super::store::StoreArgs;
use crate::container::{Container, ContainerError};
use crate::control::mounts::{self, Mount};
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
    let is_there = named.symlink_metadata().is_ok();
    if let Some(text) = named.to_str().filter(|text| !text.contains('/') && !text.starts_with('.')) {
        match container(args, text) {
            Ok(Some(_)) if is_there => {
                return Err(Failure::usage(format!(
                    "{text}: both a container and a directory here is called so; the directory is ./{text}, and a container has an id too \
                     (unionmount ps -a)"
                )));
            }
            Ok(Some((store, container))) => return Ok(Whose::Container(store, container)),
            Ok(None) => {}
            // The store has nothing to do with the directory.
            Err(failure) if is_there => log::info!("{}", failure.message),
            Err(failure) => return Err(failure),
        }
        if !is_there {
            let text = EscapedPath::from(named);
            return Err(Failure::failed(format!(
                "{text}: no container, no mount and no directory is called so; unionmount ps -a and unionmount status list what there is"
            )));
        }
    }
    Ok(live_at(named).map_or(Whose::Upper, Whose::Mount))
}

fn container(args: &StoreArgs, text: &str) -> Result<Option<(Store, Box<Container>)>, Failure> {
    let Some(store) = args.existing()? else { return Ok(None) };
    match Container::find(&store, text) {
        Ok(container) => Ok(Some((store, Box::new(container)))),
        Err(ContainerError::Unknown(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns the mount whose mount point that is.
fn live_at(path: &Path) -> Option<Mount> {
    let (mount, below) = mounts::of(path).ok()?;
    below.is_empty().then_some(mount)
}
