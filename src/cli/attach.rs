//! `unionmount mount`: an image or a container as a tree, without a runtime.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::store::StoreArgs;
use super::{Failure, print_all};
use crate::container::record::image_layers;
use crate::container::{Container, ContainerError, mounting};

/// Mount a container to work in, or an image to look at; end it with umount
#[derive(Debug, clap::Args)]
pub(super) struct Attach {
    #[command(flatten)]
    store: StoreArgs,

    /// A container, by name or id: its changes are kept in it. Or an image: it is mounted read-only
    name: String,

    /// Where; a container has a place of its own, which is printed
    #[arg(value_name = "DIR")]
    at: Option<PathBuf>,
}

impl Attach {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.open()?;
        match Container::find(&store, &self.name) {
            Ok(container) => {
                let at = self.at.clone().unwrap_or_else(|| container.merged());
                container.mount(&store, &at)?;
                if self.at.is_none() {
                    print_all(format!("{}\n", at.display()).as_bytes())?;
                }
            }
            Err(ContainerError::Unknown(_)) => {
                let image = store.resolve(&self.name)?;
                let Some(at) = self.at else {
                    return Err(Failure::usage(format!(
                        "give the directory on which to mount image {}",
                        self.name
                    )));
                };
                let layers = image_layers(&store, &image)?;
                // A container's record keeps its layers; nothing but the mount itself does so here.
                let dirs: Vec<&Path> = layers.paths.iter().filter_map(|tree| tree.parent()).collect();
                mounting::mount(&layers.paths, None, &at, &image.id.short(), &dirs)?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(ExitCode::SUCCESS)
    }
}
