//! `unionmount rm`: containers go.

use std::process::ExitCode;

use super::page::Page;
use super::store::StoreArgs;
use super::{Failure, say};
use crate::container::{Container, ContainerError};

/// Remove containers, with all that they changed
#[derive(Debug, clap::Args)]
pub(super) struct Rm {
    #[command(flatten)]
    store: StoreArgs,

    /// Kill what runs in them and unmount them first
    #[arg(short, long)]
    force: bool,

    /// Also where branches of their snapshots aren't found or can't be read; these are gone for good then
    #[arg(long)]
    forget_branches: bool,

    /// Remove all containers; of those that run or are mounted each is told, and stays without --force
    #[arg(short, long, conflicts_with = "containers")]
    all: bool,

    /// As Docker has it; the data of an image's volumes go with their container in every case
    #[arg(short = 'v', long, hide = true)]
    volumes: bool,

    /// The containers, by name or id
    #[arg(value_name = "CONTAINER", required_unless_present = "all")]
    containers: Vec<String>,
}

impl Rm {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let Some(store) = self.store.existing()? else {
            return if self.all { Ok(ExitCode::SUCCESS) } else { Err(self.store.nothing()) };
        };
        let mut failures: Vec<ContainerError> = Vec::new();
        let all = match self.all {
            true => Container::all(&store)?.into_iter().map(|container| container.record.id).collect(),
            false => Vec::new(),
        };
        for name in self.containers.iter().chain(&all) {
            // The others go though one cannot.
            let removed = match Container::find(&store, name) {
                Ok(container) => container.remove(self.force, self.forget_branches),
                // By its id, one whose record is damaged.
                Err(error) if self.force && error.is_damage() => {
                    match Container::remove_broken(&store, name, self.forget_branches) {
                        Ok(true) => Ok(()),
                        Ok(false) => Err(error),
                        Err(error) => Err(error),
                    }
                }
                Err(error) => Err(error),
            };
            match removed {
                Ok(()) => Page::of_line(format_args!("{name}")).print()?,
                Err(error) => failures.push(error),
            }
        }
        let last = failures.pop();
        for failure in failures {
            say(&failure.to_string());
        }
        last.map_or(Ok(ExitCode::SUCCESS), |failure| Err(failure.into()))
    }
}
