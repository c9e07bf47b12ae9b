//! Verifying containers: each record is read, each image is there, and so is what is frozen below each upper.

use super::record::{Container, ContainerRecord, Unreadable};
use super::{ContainerError, Result};
use crate::image::store::containers::linked_image;
use crate::image::store::{Store, Verified};

/// Checks the containers of a store. `repair` gives one whose record is damaged a new one, of what can be told without
/// it; the old one is set aside.
///
/// # Errors
/// When they can't be listed.
pub fn verify(store: &Store, repair: bool, verified: &mut Verified) -> Result<()> {
    match verify_all(store, repair, verified) {
        Err(ContainerError::Store(cause)) if !cause.is_damage() => {
            verified.unchecked(&cause);
            Ok(())
        }
        checked => checked,
    }
}

fn verify_all(store: &Store, repair: bool, verified: &mut Verified) -> Result<()> {
    let (containers, broken) = Container::all_and_broken(store)?;
    for container in containers {
        let image = container.record.image;
        if store.blob_size(&image)?.is_none() {
            let id = container.short_id();
            verified.broken(
                format!("container {id}: its image {image} is not in the store"),
                format!("load that image again, or unionmount rm {id}"),
            );
        }
        match container.frozen() {
            Ok(_) => {}
            Err(ContainerError::Store(cause)) if !cause.is_damage() => verified.unchecked(&cause),
            Err(error) => {
                let id = container.short_id();
                verified.broken(
                    error.to_string(),
                    format!("bring back what is missing of its snapshots, or unionmount rm {id}"),
                );
            }
        }
    }
    for Unreadable { dir, error, .. } in broken {
        match &error {
            ContainerError::Store(cause) if !cause.is_damage() => {
                verified.unchecked(cause);
                continue;
            }
            _ => {}
        }
        let Some(image) = linked_image(&dir) else {
            let id = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            verified.broken(error.to_string(), format!("unionmount rm -f {id}, which removes the container"));
            continue;
        };
        if !repair {
            verified.broken(
                error.to_string(),
                "unionmount verify --repair, which keeps its image and what it changed, and forgets its name and settings"
                    .into(),
            );
            continue;
        }
        match mend(store, &dir, image) {
            Ok(aside) => verified.mended(error.to_string(), aside),
            Err(cause) => verified.broken(error.to_string(), format!("cannot be mended now: {cause}")),
        }
    }
    Ok(())
}

/// Gives a container a new record.
fn mend(store: &Store, dir: &std::path::Path, image: crate::image::digest::Digest) -> Result<String> {
    let container = Container { dir: dir.to_owned(), record: ContainerRecord::derived(dir, image) };
    // Who removes it at the same time waits, or is told of here: without a record nothing is set aside.
    let _lock = container.lock_record()?;
    // In its place until the new one takes it: a directory without a record is no container.
    let aside = store.keep_aside(&dir.join("config.json"))?;
    container.save()?;
    Ok(format!(
        "has a new record without its name and settings; the old one is set aside as {}",
        aside.display()
    ))
}
