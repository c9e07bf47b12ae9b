//! `unionmount push`: an image of the store to a registry.

use std::process::ExitCode;

use super::Failure;
use super::output::count;
use super::page::Page;
use super::registry::{AccessArgs, clear, progress};
use super::store::StoreArgs;
use crate::image::name::ImageName;
use crate::registry::push;

/// Send an image to a registry
///
/// What the registry has is not sent again, nor what it can take over from another of its repositories.
#[derive(Debug, clap::Args)]
pub(super) struct Push {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    access: AccessArgs,

    /// Print the digest alone, and no progress
    #[arg(short, long)]
    quiet: bool,

    /// Write the digest to this file
    #[arg(long, value_name = "FILE")]
    digestfile: Option<std::path::PathBuf>,

    /// The image, by name or id
    #[arg(value_name = "IMAGE")]
    image: String,

    /// Where it goes [default: where its name says]
    #[arg(value_name = "NAME[:TAG]")]
    destination: Option<String>,
}

impl Push {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.with_something()?;
        let image = store.resolve(&self.image)?;
        let destination = match (&self.destination, image.name_meant_by(&self.image)) {
            (Some(destination), _) => destination.clone(),
            (None, Some(name)) => name.full(),
            (None, None) => {
                let known: Vec<String> = image.names.iter().map(ImageName::to_string).collect();
                let known = if known.is_empty() { String::new() } else { format!(" ({})", known.join(", ")) };
                return Err(Failure::usage(format!(
                    "say where image {} goes: by one of its names{known}, or unionmount push {} NAME:TAG",
                    image.id.short(),
                    self.image
                )));
            }
        };
        let bars = progress(self.quiet);
        let pushed = push(&store, &image, &destination, &self.access.access(), &bars);
        clear(&bars)?;
        let pushed = pushed?;
        if let Some(path) = &self.digestfile {
            std::fs::write(path, format!("{}\n", pushed.digest)).map_err(|error| {
                Failure::failed(format!("{}: cannot be written: {error}", path.display()))
            })?;
        }
        let mut page = Page::default();
        if self.quiet {
            page.line(format_args!("{}", pushed.digest));
        } else {
            page.line(format_args!("Digest: {}", pushed.digest));
            let (sent, mounted, there) = (count(pushed.sent as u64, "blob"), pushed.mounted, pushed.there);
            page.line(format_args!(
                "Pushed: {} ({sent} sent, {mounted} taken over, {there} there before)",
                pushed.reference
            ));
        }
        page.print()?;
        Ok(ExitCode::SUCCESS)
    }
}
