//! `unionmount diff`: what a container changed.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;

use super::Failure;
use super::page::Page;
use super::store::StoreArgs;
use crate::container::{Container, ContainerError};
use crate::image::layer::changes;
use crate::union::escaped_path::EscapedPath;

/// Show what a container changed: A for added, C for changed, D for deleted
#[derive(Debug, clap::Args)]
pub(super) struct Diff {
    #[command(flatten)]
    store: StoreArgs,

    /// The container, by name or id
    container: String,
}

impl Diff {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.open()?;
        let container = Container::find(&store, &self.container)?;
        let lowers = container.lowers(&store)?;
        let open = lowers.open()?;
        let below: Vec<BorrowedFd<'_>> = open.iter().map(AsFd::as_fd).collect();
        let path = container.upper();
        let upper = File::open(&path).map_err(ContainerError::io("open it", &path))?;
        let mut page = Page::default();
        for change in changes(upper.as_fd(), &below).map_err(Failure::failed)? {
            page.line(format_args!("{} {}", change.kind.letter(), EscapedPath(change.path)));
        }
        page.print()?;
        Ok(ExitCode::SUCCESS)
    }
}
