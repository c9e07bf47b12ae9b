//! `unionmount rmi`: images and names go.

use std::process::ExitCode;

use super::page::Page;
use super::store::StoreArgs;
use super::{Failure, say};
use crate::image::store::Store;

/// Remove names, and images that nothing needs any more
#[derive(Debug, clap::Args)]
pub(super) struct Rmi {
    #[command(flatten)]
    store: StoreArgs,

    /// Remove all names of an image given by its id, and the name of an image that a container needs
    #[arg(short, long)]
    force: bool,

    /// Remove all images; those that containers need are told, and stay without --force
    #[arg(short, long, conflicts_with = "images")]
    all: bool,

    /// As Docker has it; an image has no parents here that would go with it
    #[arg(long, hide = true)]
    no_prune: bool,

    /// The images, by name or id
    #[arg(value_name = "IMAGE", required_unless_present = "all")]
    images: Vec<String>,
}

/// Returns the names of all images, and the ids of those that have none.
fn all(store: &Store) -> Result<Vec<String>, Failure> {
    let catalog = store.catalog()?;
    let names = catalog.images.iter().flat_map(|image| match image.names.is_empty() {
        true => vec![image.id.to_string()],
        false => image.names.iter().map(ToString::to_string).collect(),
    });
    let broken = catalog.broken.iter().map(|(digest, ..)| digest.to_string());
    Ok(names.chain(broken).collect())
}

impl Rmi {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let Some(store) = self.store.existing()? else {
            return if self.all { Ok(ExitCode::SUCCESS) } else { Err(self.store.nothing()) };
        };
        let mut failures = Vec::new();
        let all = if self.all { all(&store)? } else { Vec::new() };
        for image in self.images.iter().chain(&all) {
            // The others go though one cannot.
            let removed = match store.remove_image(image, self.force) {
                Ok(removed) => removed,
                Err(error) => {
                    failures.push(error);
                    continue;
                }
            };
            let mut page = Page::default();
            for name in &removed.untagged {
                page.line(format_args!("Untagged: {name}"));
            }
            if let Some(id) = removed.deleted {
                page.line(format_args!("Deleted: {id}"));
            }
            page.print()?;
            if let Some(why) = removed.held_back {
                say(&format!("its layers and blobs are kept: {why}"));
            }
            if removed.postponed {
                say("another process uses the store; `unionmount prune` frees the space when it has ended");
            }
        }
        let last = failures.pop();
        for failure in failures {
            say(&failure.to_string());
        }
        last.map_or(Ok(ExitCode::SUCCESS), |failure| Err(failure.into()))
    }
}
