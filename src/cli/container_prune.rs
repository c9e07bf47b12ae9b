//! `unionmount container prune`: containers that don't run go.

use std::process::ExitCode;

use super::page::Page;
use super::store::StoreArgs;
use super::{Failure, ask, output, say};
use crate::container::{Container, ContainerError};
use crate::explain::names;

/// Remove all containers that don't run and aren't mounted; what they changed goes with them
#[derive(Debug, clap::Args)]
pub(super) struct ContainerPrune {
    #[command(flatten)]
    store: StoreArgs,

    /// Do not ask; without a terminal it is needed
    #[arg(short, long)]
    force: bool,
}

impl ContainerPrune {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let mut failures: Vec<ContainerError> = Vec::new();
        let mut idle = Vec::new();
        if let Some(store) = self.store.existing()? {
            for container in Container::all(&store)? {
                let asked = container.is_idle().and_then(|idle| Ok((idle, container.changed_bytes()?)));
                match asked {
                    Ok((true, bytes)) => idle.push((container, bytes)),
                    Ok((false, _)) => {}
                    Err(error) => failures.push(error),
                }
            }
        }
        let all = |idle: &[(Container, u64)]| {
            let bytes = idle.iter().map(|(_, bytes)| bytes).sum();
            (output::count(idle.len() as u64, "container"), names::bytes(bytes))
        };
        let (containers, bytes) = all(&idle);
        let question = format!("Delete {containers}, {bytes}?");
        if !self.force && !idle.is_empty() && !ask::yes(&question, "--force")? {
            return Ok(ExitCode::SUCCESS);
        }
        let mut page = Page::default();
        // The others go though one cannot.
        idle.retain(|(container, _)| match container.remove(false, false) {
            Ok(()) => {
                page.line(format_args!("{}", container.record.id));
                true
            }
            Err(error) => {
                failures.push(error);
                false
            }
        });
        let (containers, bytes) = all(&idle);
        page.line(format_args!("Removed {containers}: {bytes} freed"));
        page.print()?;
        let last = failures.pop();
        for failure in failures {
            say(&failure.to_string());
        }
        last.map_or(Ok(ExitCode::SUCCESS), |failure| Err(failure.into()))
    }
}
