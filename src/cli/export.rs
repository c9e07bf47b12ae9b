//! `unionmount export`: a container's whole tree as a tar.

use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use super::Failure;
use super::store::StoreArgs;
use crate::container::Container;
use crate::container::tree::Tree;

/// Write a container's whole tree as a tar, without its layers; import makes an image of it
#[derive(Debug, clap::Args)]
pub(super) struct Export {
    #[command(flatten)]
    store: StoreArgs,

    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// The container, by name or id
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Export {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.with_something()?;
        let container = Container::find(&store, &self.container)?;
        let write = |out: &mut dyn Write| Tree::open(&store, &container)?.write_tar(out);
        match &self.output {
            Some(path) if path.as_os_str() != "-" => super::save::to_file(path, |out| Ok(write(out)?))?,
            _ if super::page::is_terminal() => return Err(Failure::usage(super::save::NOT_ON_A_TERMINAL)),
            _ => {
                let mut out = BufWriter::new(super::page::own_stdout());
                write(&mut out)?;
                out.flush().map_err(|error| Failure::failed(format!("cannot write to stdout: {error}")))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
