//! `unionmount diff`: what a container changed.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;

use super::store::StoreArgs;
use super::{Failure, print_all};
use crate::container::{Container, ContainerError};
use crate::image::layer::changes;

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
        let mut text = Vec::new();
        for change in changes(upper.as_fd(), &below).map_err(Failure::failed)? {
            text.push(change.kind.letter() as u8);
            text.push(b' ');
            text.extend_from_slice(&change.path);
            text.push(b'\n');
        }
        print_all(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}
