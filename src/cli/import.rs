//! `unionmount import`: a root filesystem becomes an image.

use std::path::PathBuf;
use std::process::ExitCode;

use jiff::Timestamp;

use super::Failure;
use super::load::input;
use super::page::Page;
use super::store::{LimitArgs, StoreArgs};
use crate::image::change::Change;
use crate::image::import::{ImportOptions, import};
use crate::image::name::ImageName;

/// Make an image of a root filesystem, given as a tar or as a directory; prints the new image's id
#[derive(Debug, clap::Args)]
pub(super) struct Import {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    limits: LimitArgs,

    /// Set something in the image's config, as CMD ["sh"]; may repeat. CMD, ENTRYPOINT, ENV, EXPOSE, LABEL,
    /// STOPSIGNAL, USER, VOLUME and WORKDIR are understood
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    changes: Vec<Change>,

    /// What the image's history says of it
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,

    /// The tar, plain or compressed with gzip, zstd, xz or bzip2, or the directory; - is standard input
    #[arg(value_name = "FILE|DIR|-")]
    source: PathBuf,

    /// What the image is called
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<ImageName>,
}

impl Import {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        super::logging::tell_warnings();
        let options = ImportOptions {
            name: self.name,
            changes: self.changes,
            message: self.message,
            limits: self.limits.limits(),
            created: now()?,
        };
        let id = import(&self.store.open()?, &input(Some(self.source))?, &options)?;
        Page::of_line(format_args!("{id}")).print()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns the time to write into an image: SOURCE_DATE_EPOCH where it is set, for images that come out the same each
/// time.
pub(super) fn now() -> Result<Timestamp, Failure> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(Timestamp::now()) };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    seconds
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .ok_or_else(|| Failure::usage("SOURCE_DATE_EPOCH must be a number of seconds"))
}
