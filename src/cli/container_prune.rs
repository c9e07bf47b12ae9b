//! `unionmount container prune`: containers that don't run go.

use std::process::ExitCode;

use super::page::Page;
use super::store::StoreArgs;
use super::{Failure, output, prune};
use crate::container::{Container, ContainerState, mounting};

/// Remove all containers that don't run and aren't mounted, with all that they changed
#[derive(Debug, clap::Args)]
pub(super) struct ContainerPrune {
    #[command(flatten)]
    store: StoreArgs,

    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

impl ContainerPrune {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.open()?;
        let mut idle = Vec::new();
        for container in Container::all(&store)? {
            let mounted = mounting::is_mounted(&container.merged()).unwrap_or(true);
            if container.state()? != ContainerState::Running && !mounted {
                idle.push(container);
            }
        }
        let mut bytes = 0;
        for container in &idle {
            bytes += container.changed_bytes()?;
        }
        let question = format!(
            "this deletes {}, {}",
            output::count(idle.len() as u64, "container"),
            output::size(bytes)
        );
        if !self.force && !prune::agreed(&question)? {
            return Ok(ExitCode::SUCCESS);
        }
        let mut page = Page::default();
        for container in &idle {
            container.remove(false)?;
            page.line(format_args!("{}", container.record.id));
        }
        page.line(format_args!(
            "Removed {}: {} freed",
            output::count(idle.len() as u64, "container"),
            output::size(bytes)
        ));
        page.print()?;
        Ok(ExitCode::SUCCESS)
    }
}
