//! `unionmount rmi`: images and names go.

use std::process::ExitCode;

use super::page::Page;
use super::store::StoreArgs;
use super::{Failure, say};

/// Remove names, and images that nothing needs any more
#[derive(Debug, clap::Args)]
pub(super) struct Rmi {
    #[command(flatten)]
    store: StoreArgs,

    /// Remove all names of an image given by its id, and the name of an image that a container needs
    #[arg(short, long)]
    force: bool,

    /// As Docker has it; an image has no parents here that would go with it
    #[arg(long, hide = true)]
    no_prune: bool,

    /// The images, by name or id
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

impl Rmi {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.open()?;
        let mut failures = Vec::new();
        for image in &self.images {
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
