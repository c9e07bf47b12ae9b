//! What all verbs that speak to registries share: how they are reached, and how progress is shown.

use std::path::PathBuf;

use indicatif::{MultiProgress, ProgressDrawTarget};

use super::Failure;
use super::store::{LimitArgs, UnpackArgs};
use crate::image::load::LoadOptions;
use crate::image::platform::Platform;
use crate::registry::{Access, RegistryError};

/// How registries are reached.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct AccessArgs {
    /// Check the registry's certificate; false also allows plain HTTP [default: as registries.conf says, else true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "true|false")]
    tls_verify: Option<bool>,

    /// The file with your credentials [default: the first of containers' auth.json and Docker's config.json that knows the registry]
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,

    /// A directory with *.crt (authorities), *.cert and *.key (your own) [default: HOST in the certs.d of containers and of Docker]
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
}

impl AccessArgs {
    /// Returns what the registry room takes.
    pub(super) fn access(&self) -> Access {
        Access { verify: self.tls_verify, authfile: self.authfile.clone(), cert_dir: self.cert_dir.clone() }
    }
}

/// Shows progress on a terminal, or none.
pub(super) fn progress(quiet: bool) -> MultiProgress {
    let shown = !quiet && super::messages_are_read_on_a_terminal();
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    MultiProgress::with_draw_target(target)
}

/// Returns how an image that is pulled is loaded.
pub(super) fn load_options(
    limits: &LimitArgs,
    unpacking: &UnpackArgs,
    progress: &MultiProgress,
) -> LoadOptions {
    LoadOptions { limits: limits.limits(), unpack: unpacking.unpack(), progress: progress.clone() }
}

/// Parses a platform, for clap.
pub(super) fn parse_platform(text: &str) -> Result<Platform, String> {
    Platform::parse(text).ok_or_else(|| "give a platform as linux/arm64 or linux/arm/v7".to_owned())
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Failure {
        Failure::failed(error)
    }
}

/// Takes the bars away.
pub(super) fn clear(progress: &MultiProgress) -> Result<(), Failure> {
    progress.clear().map_err(|error| Failure::failed(format!("cannot write to stderr: {error}")))
}
