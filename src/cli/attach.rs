//! `unionmount mount`: an image or a container as a tree, without a runtime.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::Failure;
use super::page::Page;
use super::store::{StoreArgs, nothing_is_called};
use crate::archive::layer_name;
use crate::container::called::{Called, called};
use crate::container::lowers::image_layers;
use crate::container::mounting::Rights;
use crate::container::{ContainerError, mounting};

/// Mount a container to work in, or an image to look at; end it with umount
///
/// What the image brings is not trusted: its setuid programs and devices have no effect, and nobody else sees it.
#[derive(Debug, clap::Args)]
pub(super) struct Attach {
    #[command(flatten)]
    store: StoreArgs,

    /// A container, by name or id: its changes are kept in it. Or an image: it is mounted read-only
    name: String,

    /// Let the image's setuid programs and file capabilities have their effect
    #[arg(long)]
    suid: bool,

    /// Let its device nodes be opened
    #[arg(long)]
    dev: bool,

    /// Unpack nothing: mount the layers of an image as they came
    ///
    /// A layer that is compressed is decompressed into a file in the cache directory, which goes with the mount. Where all
    /// layers are unpacked already, their trees are used.
    #[arg(long)]
    lazy: bool,

    /// Let others than the caller use the mount
    #[arg(long)]
    allow_other: bool,

    /// Where; a container has a place of its own, which is printed
    #[arg(value_name = "DIR")]
    at: Option<PathBuf>,
}

impl Attach {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.with_something()?;
        let rights = Rights { suid: self.suid, dev: self.dev, others: self.allow_other };
        match called(&store, &self.name, true) {
            Ok(Called::Container(_)) if self.lazy => {
                return Err(Failure::usage(format!(
                    "{} is a container, which is lazy or not since it was made (create --lazy); --lazy mounts an image",
                    self.name
                )));
            }
            Ok(Called::Container(container)) => {
                let at = self.at.clone().unwrap_or_else(|| container.merged());
                container.mount(&store, &at, rights)?;
                if self.at.is_none() {
                    Page::of_line(format_args!("{}", at.display())).print()?;
                }
            }
            Ok(Called::Image(image)) => {
                let Some(at) = self.at else {
                    return Err(Failure::usage(format!(
                        "give the directory on which to mount image {}",
                        self.name
                    )));
                };
                let packed = if self.lazy { store.packed_layers(&image)? } else { None };
                if let Some(blobs) = packed {
                    let layers: Vec<PathBuf> =
                        blobs.into_iter().map(|(blob, diff_id)| layer_name(blob, &diff_id)).collect();
                    mounting::mount(&layers, None, &at, &image.id.short(), &[], (rights, ""))?;
                    return Ok(ExitCode::SUCCESS);
                }
                let layers = image_layers(&store, &image)?;
                // A container's record keeps its layers; nothing but the mount itself does so here.
                let dirs: Vec<&Path> = layers.paths.iter().filter_map(|tree| tree.parent()).collect();
                mounting::mount(&layers.paths, None, &at, &image.id.short(), &dirs, (rights, ""))?;
            }
            Err(ContainerError::Unknown(_)) => {
                return Err(nothing_is_called(&self.name));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(ExitCode::SUCCESS)
    }
}
