//! `unionmount load`: images out of an archive or a layout.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use indicatif::{MultiProgress, ProgressDrawTarget};

use super::page::Page;
use super::store::{LimitArgs, StoreArgs, UnpackArgs};
use super::{Failure, say};
use crate::image::load::{Input, LoadOptions, load};

/// Load images from an OCI layout, or what docker, podman or skopeo saved
#[derive(Debug, clap::Args)]
pub(super) struct Load {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    unpacking: UnpackArgs,

    /// Read this file instead of standard input; - is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "source")]
    input: Option<PathBuf>,

    /// Print ids alone, and no progress
    #[arg(short, long)]
    quiet: bool,

    /// An archive, plain or compressed with gzip, zstd, xz or bzip2, or the directory of an OCI layout [default: standard input]
    #[arg(value_name = "FILE|DIR")]
    source: Option<PathBuf>,
}

impl Load {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        super::logging::tell_warnings();
        let input = input(self.source.or(self.input))?;
        let shown = !self.quiet && super::messages_are_read_on_a_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let progress = MultiProgress::with_draw_target(target);
        let (limits, unpack) = (self.limits.limits(), self.unpacking.unpack());
        let options = LoadOptions { limits, unpack, progress: progress.clone() };
        let loaded = load(&self.store.open()?, &input, &options);
        // The bars go before anything else is said.
        progress.clear().map_err(|error| Failure::failed(format!("cannot write to stderr: {error}")))?;
        let mut page = Page::default();
        for image in loaded? {
            for (name, id) in image.taken {
                say(&format!(
                    "{name} was the name of image {} before, which keeps its other names",
                    id.short()
                ));
            }
            if self.quiet {
                page.line(format_args!("{}", image.id));
            } else if image.names.is_empty() {
                page.line(format_args!("Loaded image ID: {}", image.id));
            }
            for name in image.names.iter().filter(|_| !self.quiet) {
                page.line(format_args!("Loaded image: {name}"));
            }
        }
        page.print()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Takes a path, or standard input, which must then not be the keyboard.
pub(super) fn input(path: Option<PathBuf>) -> Result<Input, Failure> {
    match path {
        Some(path) if path.as_os_str() != "-" => Ok(Input::Path(path)),
        _ if std::io::stdin().is_terminal() => {
            Err(Failure::usage("nothing to read: name a file or a directory, or pipe an archive in"))
        }
        _ => Ok(Input::Stdin),
    }
}
