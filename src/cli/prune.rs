//! `unionmount prune`: what nothing needs goes.

use std::process::ExitCode;
use std::time::Duration;

use super::page::Page;
use super::store::StoreArgs;
use super::{Failure, ask, output, say};

/// Delete images without a name, layers and blobs that nothing needs, and what killed processes left
#[derive(Debug, clap::Args)]
pub(super) struct Prune {
    #[command(flatten)]
    store: StoreArgs,

    /// Delete every image that no container was made from
    #[arg(short, long)]
    all: bool,

    /// How long to wait for other processes that use the store
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    wait: u32,

    /// Do not ask; without a terminal it is needed
    #[arg(short, long)]
    force: bool,
}

impl Prune {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let Some(store) = self.store.existing()? else {
            Page::of_line(format_args!("{}; nothing to remove", self.store.nothing())).print()?;
            return Ok(ExitCode::SUCCESS);
        };
        let what =
            if self.all { "all images that no container was made from" } else { "all images without a name" };
        if !self.force && !ask::yes(&format!("Delete {what}, and what nothing needs?"), "--force")? {
            return Ok(ExitCode::SUCCESS);
        }
        let pruned = store.prune(self.all, Duration::from_secs(self.wait.into()))?;
        let mut page = Page::default();
        for (id, names) in &pruned.images {
            for name in names {
                page.line(format_args!("Untagged: {name}"));
            }
            page.line(format_args!("Deleted: {id}"));
        }
        page.line(format_args!(
            "Removed {}, {}, {} and {}: {} freed",
            output::count(pruned.images.len() as u64, "image"),
            output::count(pruned.layers.len() as u64, "layer"),
            output::count(pruned.blobs.len() as u64, "blob"),
            output::count(pruned.leftovers as u64, "leftover"),
            output::size(pruned.bytes)
        ));
        page.print()?;
        let mut left = pruned.left;
        let last = left.pop();
        for error in left {
            say(&error.to_string());
        }
        match pruned.held_back {
            None => last.map_or(Ok(ExitCode::SUCCESS), |error| Err(error.into())),
            Some(why) => Err(Failure::failed(format!("no layers and no blobs were removed: {why}"))),
        }
    }
}
