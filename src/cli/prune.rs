//! `unionmount prune`: what nothing needs goes.

use std::process::ExitCode;
use std::time::Duration;

use super::page::Page;
use super::store::StoreArgs;
use super::{Failure, ask, output, say};
use crate::archive;
use crate::explain::names;
use crate::image::error::StoreError;
use crate::image::store::{PruneOptions, Pruned};

/// Delete images without a name, and layers and blobs that nothing needs; and what killed processes left
#[derive(Debug, clap::Args)]
pub(super) struct Prune {
    #[command(flatten)]
    store: StoreArgs,

    /// Delete every image that no container was made from
    #[arg(short, long)]
    all: bool,

    /// Delete also the unpacked trees of layers that no container has and nobody has mounted
    ///
    /// The layers stay as they came, and are unpacked again when they are needed.
    #[arg(long)]
    unpacked: bool,

    /// Delete also what is kept of archives that were mounted as layers; the next mount reads them again
    #[arg(long)]
    cache: bool,

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
            let nothing = self.store.nothing();
            if !self.cache {
                Page::of_line(format_args!("{nothing}; nothing to remove")).print()?;
            } else if self.force || ask::yes("Delete what is kept of archives?", "--force")? {
                let mut page = Page::default();
                clear_cache(&mut page)?;
                page.print()?;
            }
            return Ok(ExitCode::SUCCESS);
        };
        let options = PruneOptions { all: self.all, unpacked: self.unpacked };
        let what =
            if self.all { "all images that no container was made from" } else { "all images without a name" };
        let bar = super::progress_bar("removing");
        if !self.force {
            // What can't be told is told by the prune itself, which then removes nothing.
            let how_much = match store.prunable(options) {
                Ok(would) if is_nothing(&would) && !self.cache => {
                    Page::of_line(format_args!("There is nothing to remove")).print()?;
                    return Ok(ExitCode::SUCCESS);
                }
                Ok(would) => {
                    bar.set_length(would.bytes);
                    format!(": {}, {}", amounts(&would), names::bytes(would.bytes))
                }
                Err(error) => {
                    say(&format!("how much would go can't be told: {error}"));
                    String::new()
                }
            };
            let trees = if self.unpacked { ", unpacked layers that no container has" } else { "" };
            let cache = if self.cache { ", what is kept of archives" } else { "" };
            let question = format!("Delete {what}{trees}{cache}, and what nothing needs{how_much}?");
            if !ask::yes(&question, "--force")? {
                return Ok(ExitCode::SUCCESS);
            }
        }
        let pruned = store.prune(options, Duration::from_secs(self.wait.into()), &bar);
        bar.finish_and_clear();
        let pruned = pruned?;
        let mut page = Page::default();
        for (id, names) in &pruned.images {
            for name in names {
                page.line(format_args!("Untagged: {name}"));
            }
            page.line(format_args!("Deleted: {id}"));
        }
        page.line(format_args!("Removed {}: {} freed", amounts(&pruned), names::bytes(pruned.bytes)));
        page.print()?;
        // What is in use was to stay.
        let (in_use, mut left): (Vec<_>, Vec<_>) =
            pruned.left.into_iter().partition(|why| matches!(why, StoreError::InUse(_)));
        in_use.iter().for_each(|why| say(&why.to_string()));
        let last = left.pop();
        for error in left {
            say(&error.to_string());
        }
        if self.cache {
            let mut page = Page::default();
            clear_cache(&mut page)?;
            page.print()?;
        }
        match pruned.held_back {
            None => last.map_or(Ok(ExitCode::SUCCESS), |error| Err(error.into())),
            Some(why) => Err(Failure::failed(format!("no layers and no blobs were removed: {why}"))),
        }
    }
}

fn clear_cache(page: &mut Page) -> Result<(), Failure> {
    let freed = archive::clear_cache()
        .map_err(|error| Failure::failed(format!("what is kept of archives can't be deleted: {error}")))?;
    page.line(format_args!("Removed what was kept of archives: {} freed", names::bytes(freed)));
    Ok(())
}

fn amounts(pruned: &Pruned) -> String {
    format!(
        "{}, {}, {} and {}",
        output::count(pruned.images.len() as u64, "image"),
        output::count(pruned.layers.len() as u64, "layer"),
        output::count(pruned.blobs.len() as u64, "blob"),
        output::count(pruned.leftovers as u64, "leftover")
    )
}

fn is_nothing(pruned: &Pruned) -> bool {
    pruned.images.is_empty() && pruned.layers.is_empty() && pruned.blobs.is_empty() && pruned.leftovers == 0
}
