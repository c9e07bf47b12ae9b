//! Importing: a root filesystem, as a tar or a directory, becomes an image of one layer.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use jiff::Timestamp;
use oci_spec::image::Arch;
use serde_json::json;

use super::change::{self, Change};
use super::digest::Digest;
use super::error::{Result, StoreError};
use super::layer::{Limits, Ownership, WriteOptions, write_tar};
use super::load::Input;
use super::name::ImageName;
use super::store::{AddedLayer, Staging, Store, Take};

/// What becomes of a root filesystem.
#[derive(Debug)]
pub struct ImportOptions {
    /// What the image is called.
    pub name: Option<ImageName>,
    /// What its config says.
    pub changes: Vec<Change>,
    /// What its history says.
    pub message: Option<String>,
    /// Against bombs.
    pub limits: Limits,
    /// The time of the image.
    pub created: Timestamp,
}

/// Imports a root filesystem. Returns the image's id.
///
/// # Errors
/// When the tar is damaged or not allowed, or the disk is full.
pub fn import(store: &Store, input: &Input, options: &ImportOptions) -> Result<Digest> {
    let staging = store.begin()?;
    let (source, layer) = match input {
        Input::Path(path) => {
            let file = File::open(path).map_err(StoreError::io("open it", path))?;
            let kind = file.metadata().map_err(StoreError::io("look at it", path))?.file_type();
            let layer = match kind.is_dir() {
                true => directory(&staging, &file, path),
                false => tar(&staging, file, &path.display().to_string(), options),
            };
            (path.display().to_string(), layer?)
        }
        Input::Stdin => {
            let stdin =
                rustix::io::dup(rustix::stdio::stdin()).map_err(StoreError::io("read it", "stdin"))?;
            ("-".to_owned(), tar(&staging, File::from(stdin), "stdin", options)?)
        }
    };
    let created = options.created.to_string();
    let comment = options.message.clone().unwrap_or_else(|| format!("Imported from {source}"));
    let mut config = json!({
        "created": created,
        "architecture": Arch::default(),
        "os": "linux",
        "config": {},
        "history": [{ "created": created, "created_by": "unionmount import", "comment": comment }],
    });
    change::apply(&mut config, &options.changes);
    let names: Vec<ImageName> = options.name.iter().cloned().collect();
    let id = staging.add_image(config, &[layer], &names)?;
    staging.publish()?;
    Ok(id)
}

fn directory(staging: &Staging<'_>, dir: &File, path: &PathBuf) -> Result<AddedLayer> {
    let store = staging.store().root();
    let inside = std::fs::canonicalize(path).is_ok_and(|path| store.starts_with(path));
    if inside {
        let what = format!(
            "{}: holds the store itself ({}), which would grow into itself",
            path.display(),
            store.display()
        );
        return Err(StoreError::Refused(what));
    }
    let options = WriteOptions { ownership: Ownership::Real, lowers: &[], root: true };
    let layer = staging.add_layer(|out| {
        write_tar(dir.as_fd(), out, &options).map_err(|error| StoreError::BadImage {
            source_name: path.display().to_string(),
            what: error.to_string(),
        })
    })?;
    staging.unpack_blob(layer.blob, Limits::default())?;
    Ok(layer)
}

fn tar(staging: &Staging<'_>, file: File, name: &str, options: &ImportOptions) -> Result<AddedLayer> {
    let wrong = |what: String| StoreError::BadImage { source_name: name.to_owned(), what };
    let mut stream = BufReader::new(file);
    if std::io::BufRead::fill_buf(&mut stream).map_err(StoreError::io("read it", name))?.is_empty() {
        return Err(wrong("is empty, where the tar of a root filesystem is expected".into()));
    }
    let take = Take {
        blob: None,
        diff_id: None,
        store: true,
        unpack: true,
        limits: options.limits,
        progress: &|_| {},
        stop: &AtomicBool::new(false),
    };
    let by_ref: &mut (dyn Read + Send) = &mut stream;
    staging.ingest(by_ref, take).map_err(|error| match error {
        StoreError::Refused(what) => wrong(what),
        other => other,
    })
}
