//! `unionmount commit`: an image of a container.

use std::process::ExitCode;

use super::Failure;
use super::page::Page;
use super::store::StoreArgs;
use crate::container::Container;
use crate::container::commit::{About, commit};
use crate::container::runtime;
use crate::image::change::Change;
use crate::image::name::ImageName;

/// Make an image of what a container changed, as one more layer; prints the new image's id
///
/// May be done while the container is mounted or runs: what was written before is in the image. Where it has snapshots, each is a layer.
#[derive(Debug, clap::Args)]
pub(super) struct Commit {
    #[command(flatten)]
    store: StoreArgs,

    /// Who made it
    #[arg(short, long)]
    author: Option<String>,

    /// What the image's history says of it
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,

    /// Set something in the image's config, as CMD ["sh"]; may repeat. CMD, ENTRYPOINT, ENV, EXPOSE,
    /// HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR are understood
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    changes: Vec<Change>,

    /// Stop the container's processes while its files are read (by its cgroup)
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_possible_values = true, hide_default_value = true, value_name = "true|false")]
    pause: bool,

    /// The container, by name or id; CONTAINER@SNAPSHOT is its state at a snapshot
    #[arg(value_name = "CONTAINER")]
    container: String,

    /// What the image is called
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<ImageName>,
}

impl Commit {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.with_something()?;
        // No container's name has an @.
        let (container, at) = match self.container.split_once('@') {
            Some((container, at)) => (container, Some(at)),
            None => (&*self.container, None),
        };
        let container = Container::find(&store, container)?;
        let about = About {
            author: self.author,
            message: self.message,
            changes: self.changes,
            created: super::import::now()?,
        };
        // What is frozen stands still.
        let paused = if self.pause && at.is_none() { runtime::pause(&container)? } else { None };
        let id = commit(&store, &container, at, &about, self.name)?;
        drop(paused);
        Page::of_line(format_args!("{id}")).print()?;
        Ok(ExitCode::SUCCESS)
    }
}
